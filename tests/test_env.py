"""The single environment: its contract by hand, its conformance by Gymnasium's own checker."""

from __future__ import annotations

import pickle
import random
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from core_tools import (
    STORIES,
    CountA,
    gold_length,
    needs_stories,
    odd_after_even,
    play,
    seed_noise,
    word_task,
)
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from hypothesis import given, settings
from hypothesis import strategies as st

import textgym
from textgym.env import TokenEnv
from textgym.state import TokenState
from textgym.task import task_entry, task_names

WORLD = TokenEnv("Text", max_prompt_tokens=120)


@pytest.mark.parametrize("name", task_names())
def test_every_id_passes_the_checker_without_a_warning(name: str) -> None:
    for module in task_entry(name).needs:
        pytest.importorskip(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(task_entry(name).id)
        check_env(env.unwrapped)


def test_an_episode_by_hand() -> None:
    env = TokenEnv(word_task(gold=gold_length))
    observation, info = env.reset(options={"prompt_index": 0})
    assert info == {"prompt": "a b", "prompt_index": 0}
    # The longest prompt has three words and an episode four: seven places. Padding and stop id are both 4.
    assert observation["input_ids"].tolist() == [0, 2, 4, 4, 4, 4, 4]
    assert observation["attention_mask"].tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert (observation["input_ids"].dtype, observation["attention_mask"].dtype) == (np.int64, np.int8)
    assert env.step(0)[1:] == (0.0, False, False, {})
    assert env.step(np.int64(1))[1:] == (0.0, False, False, {})
    observation, reward, terminated, truncated, info = env.step(4)
    assert observation["input_ids"].tolist() == [0, 2, 0, 1, 4, 4, 4]
    assert observation["attention_mask"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert (reward, terminated, truncated) == (2.0, True, False)
    # Three ids with the stop id, and a tenth of the prompt's bonus of 1.
    expected = {"completion": "a A", "finish_reason": "stop", "reward_terms": {"lower": 1.0, "upper": 1.0}}
    assert info == {**expected, "gold": 3.1}
    assert type(reward) is type(info["gold"]) is float


def test_segments_say_who_wrote_what() -> None:
    env, plain = TokenEnv(word_task(), segments=True), TokenEnv(word_task())
    assert set(env.observation_space.spaces) == {*plain.observation_space.spaces, "segment_ids"}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="segments=1: True or False is allowed"):
        TokenEnv(word_task(), segments=1)  # type: ignore[arg-type]
    for word in ("b b", "a b c"):
        # A prompt that goes on as another one begins, and the longest: 4 places are left for the answer.
        start = env.reset(options={"prompt": word})[0]
        assert start["segment_ids"].tolist() == [0] * 7
        count = len(word.split())
        for step in range(1, 4):
            observation = env.step(0)[0]
            assert observation["segment_ids"].tolist() == [0] * count + [1] * step + [0] * (7 - count - step)
        assert observation["segment_ids"].dtype == np.int8
        assert env.get_state().authors == (0,) * count + (1,) * 3
        assert env.observation_space.contains(observation)


def test_a_state_keeps_what_the_environment_wrote() -> None:
    env, plain = TokenEnv(word_task(), segments=True), TokenEnv(word_task())
    env.reset(options={"prompt": "a b"})
    env.step(0)
    env.step(1)
    state = replace(env.get_state(), environment=(1,))
    assert state.authors == (0, 0, 1, 2)
    assert env.set_state(state)["segment_ids"].tolist() == [0, 0, 1, 2, 0, 0, 0]
    assert env.step(0)[0]["segment_ids"].tolist() == [0, 0, 1, 2, 1, 0, 0]
    assert "segment_ids" not in plain.set_state(env.get_state())
    assert plain.get_state() == env.get_state() != replace(env.get_state(), environment=())
    env.reset(options={"prompt": "a b"})
    assert env.get_state().environment == ()
    with pytest.raises(ValueError, match=r"state: environment=\(2,\): allowed is a tuple of places in 0\.\.1"):
        env.set_state(replace(state, environment=(2,)))


def test_the_budget_ends_an_episode_as_terminated() -> None:
    env = TokenEnv(word_task())
    env.reset(options={"prompt": "c"})
    *_, (_, reward, terminated, truncated, info) = play(env, [0, 0, 2, 0])
    assert (reward, terminated, truncated) == (3.0, True, False)
    assert info["finish_reason"] == "length"
    assert "gold" not in info


def test_steps_need_a_reset() -> None:
    env = TokenEnv(word_task())
    for ask in (lambda: env.step(0), env.get_state):
        with pytest.raises(ResetNeeded, match="before the first reset"):
            ask()
    env.reset()
    play(env, [4])
    with pytest.raises(ResetNeeded, match="after the end"):
        env.step(0)
    with pytest.raises(ResetNeeded):
        gym.make("textgym/Text-v0").step(0)


BAD_ACTIONS = [
    -1,
    6,
    2**70,
    True,
    False,
    np.True_,
    1.0,
    float("nan"),
    np.float32(1),
    None,
    "1",
    b"1",
    [1],
    {},
]


@pytest.mark.parametrize("action", [*BAD_ACTIONS, np.array([1]), np.array(1.0)], ids=repr)
def test_bad_actions_are_refused_and_change_nothing(action: Any) -> None:
    env = TokenEnv(word_task())
    env.reset(seed=1)
    before = env.get_state()
    with pytest.raises(InvalidAction, match=r"not a token id in 0\.\.5 \(the vocabulary has 6 tokens\)"):
        env.step(action)
    assert env.get_state() == before


@settings(deadline=None, max_examples=60)
@given(st.integers(-3, 9) | st.floats() | st.booleans() | st.none() | st.text(max_size=2))
def test_an_action_is_taken_or_refused(action: Any) -> None:
    env = TokenEnv(word_task())
    env.reset(seed=0)
    if type(action) is int and 0 <= action < 6:
        assert env.step(action)[0] in env.observation_space
    else:
        with pytest.raises(InvalidAction):
            env.step(action)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 5), min_size=8, max_size=20))
def test_twins_of_one_seed_live_the_same_life(seed: int, actions: list[int]) -> None:
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    lives = []
    for _ in range(2):
        env = TokenEnv(word_task(reward=seed_noise, noisy=True))
        life: list[Any] = [env.reset(seed=seed)]
        for action in actions:
            life.append(env.step(action))
            if life[-1][2]:
                life.append(env.reset())
        lives.append(life)
    assert data_equivalence(lives[0], lives[1], exact=True)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_prompts_come_by_their_weights() -> None:
    env = TokenEnv(word_task())
    env.reset(seed=0)
    drawn = [env.reset()[1]["prompt_index"] for _ in range(2000)]
    counts = np.bincount(drawn, minlength=3)
    # Weights 1, 0, 3: a quarter, with a standard deviation of sqrt(2000 * 3/16) = 19.4.
    assert abs(counts[0] - 500) < 5 * 19.4
    assert counts[1] == 0


def test_the_eval_split_has_its_own_prompts() -> None:
    env = TokenEnv(word_task(), split="eval")
    assert env.reset(seed=0)[1] == {"prompt": "b", "prompt_index": 0}
    with pytest.raises(ValueError, match=r"split 'evil': not one of eval, train. Did you mean 'eval'"):
        TokenEnv(word_task(), split="evil")


def test_a_prompt_can_be_given_as_text() -> None:
    env = TokenEnv(word_task(gold=gold_length))
    observation, info = env.reset(options={"prompt": "b b b"})
    assert info == {"prompt": "b b b", "prompt_index": -1}
    assert observation["input_ids"].tolist()[:3] == [2, 2, 2]
    assert play(env, [4])[0][4]["gold"] == 1.0  # no bonus: the text has no data columns
    assert env.reset(options={"prompt": "d d d"})[1]["prompt_index"] == 2
    assert play(env, [4])[0][4]["gold"] == pytest.approx(1.3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"promt": "a"}, ValueError, "Did you mean 'prompt'"),
        ({"prompt": "a", "prompt_index": 0}, ValueError, "both choose"),
        ({"prompt": ""}, ValueError, "is empty"),
        ({"prompt": "a a a a"}, ValueError, r"has 4 tokens, max_prompt_tokens allows 1\.\.3"),
        ({"prompt": "e"}, ValueError, "'e' is not a word"),
        ({"prompt": "\ud800"}, ValueError, "UTF-8"),
        ({"prompt": 3}, TypeError, "allowed is a string"),
        ({"prompt_index": 3}, ValueError, r"prompt_index=3: not an int in 0\.\.2"),
        ({"prompt_index": -1}, ValueError, "not an int in"),
        ({"prompt_index": True}, ValueError, "not an int in"),
        ({"prompt_index": 1.0}, ValueError, "not an int in"),
        ({"prompt_index": "1"}, ValueError, "not an int in"),
        ({"reset_mask": np.array([True])}, ValueError, "not one of prompt, prompt_index"),
        ([("prompt", "a")], TypeError, "allowed are None and a dict"),
    ],
)
def test_bad_options_are_refused_and_change_nothing(options: Any, error: type[Exception], message: str) -> None:
    env = TokenEnv(word_task())
    env.reset(seed=3)
    before = (env.get_state(), env.np_random.bit_generator.state)
    with pytest.raises(error, match=message):
        env.reset(seed=4, options=options)
    assert (env.get_state(), env.np_random.bit_generator.state) == before


def test_observations_are_copies() -> None:
    env = TokenEnv(word_task())
    first, _ = env.reset(options={"prompt_index": 0})
    kept = first["input_ids"].copy()
    second = env.step(3)[0]
    assert (first["input_ids"] == kept).all()
    second["input_ids"][:] = 5
    second["attention_mask"][:] = 0
    third = env.step(3)[0]
    assert third["input_ids"].tolist() == [0, 2, 3, 3, 4, 4, 4]
    assert third["attention_mask"].tolist() == [1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("pay", ["end", "every", "difference"])
def test_restore_and_replay_is_bit_identical(pay: str) -> None:
    env, other = (TokenEnv(word_task(reward=CountA(pay), gold=gold_length)) for _ in range(2))
    env.reset(seed=7)
    play(env, [0, 1])
    state = env.get_state()
    assert hash(state) == hash(pickle.loads(pickle.dumps(state)))
    first = play(env, [0, 3])
    observation = env.set_state(state)
    assert observation["input_ids"].tolist()[: len(state.tokens)] == list(state.tokens)
    assert data_equivalence(play(env, [0, 3]), first, exact=True)
    other.set_state(state)
    assert data_equivalence(play(other, [0, 3]), first, exact=True)
    ended = env.get_state()
    other.set_state(ended)
    assert other.get_state() == ended
    with pytest.raises(ResetNeeded):
        other.step(0)


def test_a_state_of_another_task_is_refused() -> None:
    env = TokenEnv(word_task())
    env.reset(options={"prompt_index": 0})
    state = env.get_state()
    with pytest.raises(ValueError, match="prompt 0 of this task's eval split"):
        TokenEnv(word_task(), split="eval").set_state(state)
    with pytest.raises(TypeError, match="dict is not a TokenState"):
        env.set_state({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"finish_reason=None with .*: allowed is 'length'"):
        env.set_state(TokenState(state.prompt, (0, 0, 0, 0)))
    assert env.get_state() == state


LONG = "word " * 100


@settings(deadline=None, max_examples=80)
@given(st.text(st.characters(), max_size=20) | st.sampled_from(["", LONG, "a\0b", "\udcff", "👩‍🚀", "<|end|><|user|>"]))
def test_any_prompt_starts_an_episode_or_is_refused(text: str) -> None:
    env = WORLD
    writable = not any("\ud800" <= character <= "\udfff" for character in text)
    if text and writable and text != LONG:
        observation, info = env.reset(options={"prompt": text})
        assert observation in env.observation_space
        assert info["prompt"] == text
        ids = observation["input_ids"][: observation["attention_mask"].sum()]
        control = env.task.vocabulary.codec.special_ids
        assert [int(token) for token in ids if token in control] == [1, 3, 2]  # the template's own three
    else:
        with pytest.raises(ValueError, match=r"UTF-8|is empty|max_prompt_tokens allows"):
            env.reset(options={"prompt": text})


def test_masks() -> None:
    plain = TokenEnv(word_task())
    assert plain.action_masks().tolist() == [True] * 6
    env = TokenEnv(word_task(mask=odd_after_even))
    env.reset(seed=0)
    assert env.action_masks().tolist() == [True, False] * 3
    env.step(0)
    assert env.action_masks().tolist() == [False, True] * 3
    env.step(0)  # against the mask, and legal nevertheless
    env.step(4)
    assert env.action_masks().tolist() == [True] * 6
    mask = plain.action_masks()
    mask[:] = False
    assert plain.action_masks().any()
    env = TokenEnv(word_task(mask=lambda states: np.zeros((len(states), 6), dtype=bool)))
    env.reset()
    with pytest.raises(ValueError, match="leaves no token"):
        env.action_masks()


def test_pickling_in_the_middle_of_an_episode() -> None:
    env = gym.make("textgym/Text-v0", prompts=["Hello <|end|>", "Bye"], max_new_tokens=5)
    env.reset(seed=2)
    play(env, [10, 11])
    twin = pickle.loads(pickle.dumps(env))
    for each in (env, twin):
        play(each, [12, 13, 14])
    assert data_equivalence(env.reset(), twin.reset(), exact=True)
    assert data_equivalence(play(env, [9] * 5), play(twin, [9] * 5), exact=True)


@pytest.mark.slow
def test_gymnasium_s_wrappers(tmp_path: Path) -> None:
    env = gym.wrappers.RecordEpisodeStatistics(gym.make("textgym/Text-v0", max_new_tokens=3))
    env.reset(seed=0)
    *_, (_, reward, _, _, info) = play(env, [9] * 3)
    assert (info["episode"]["r"], info["episode"]["l"]) == (pytest.approx(reward), 3)
    limited = gym.make("textgym/Text-v0", max_episode_steps=2)
    limited.reset(seed=0)
    assert [result[2:4] for result in play(limited, [9, 9])] == [(False, False), (False, True)]
    pytest.importorskip("moviepy")
    film = gym.make("textgym/Text-v0", max_new_tokens=3, render_mode="rgb_array")
    film = gym.wrappers.RecordVideo(film, str(tmp_path / "film"), disable_logger=True)
    film.reset(seed=0)
    play(film, [9] * 3)
    film.close()
    assert list(tmp_path.glob("film/*.mp4"))


def test_bad_tasks_and_arguments() -> None:
    with pytest.raises(ValueError, match=r"task 'Txt': not one of .* Did you mean 'Text'"):
        TokenEnv("Txt")
    with pytest.raises(TypeError, match=r"task 'Text' got an unexpected keyword argument 'max_tokens'.* Did you mean"):
        TokenEnv("Text", max_tokens=3)
    with pytest.raises(TypeError, match="a Task object takes no further options"):
        TokenEnv(word_task(), max_new_tokens=3)
    with pytest.raises(TypeError, match="allowed are a task's name and a"):
        TokenEnv(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="render_mode='ascii': not one of None, ansi, human, rgb_array"):
        TokenEnv(word_task(), render_mode="ascii")
    for limit in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=r"max_new_tokens=.*: allowed is an integer in 1\.\.1048576"):
            word_task(max_new_tokens=limit)
    for name in ("beta", "gamma", "penalty"):
        for value in ("x", None, True, [1.0]):
            with pytest.raises(ValueError, match=rf"^{name}={re.escape(repr(value))}: .*number"):
                word_task(**{name: value})
    with pytest.raises(ValueError, match=r"eval prompt 0: 'b b' has 2 tokens, max_prompt_tokens allows 1\.\.1"):
        textgym.make_task(
            "Text", prompts=["a"], eval_prompts=["b b"], tokenizer=["a", "b"], max_prompt_tokens=1
        ).encoded("eval")
    with pytest.raises(ValueError, match="train prompt 1: '' is empty"):
        textgym.make_task("Text", prompts=["a", ""])


@needs_stories
def test_a_real_tokenizer_and_pad_that_is_no_control_token() -> None:
    env = gym.make("textgym/Text-v0", prompts=["Once upon a time"], tokenizer=str(STORIES), max_new_tokens=4)
    observation, _ = env.reset(seed=0)
    assert env.action_space.n == 512  # type: ignore[attr-defined]
    length = int(observation["attention_mask"].sum())
    # The id of the padding, written as an action, counts as a token.
    assert env.step(0)[0]["attention_mask"].sum() == length + 1
    assert play(env, [2])[-1][4]["finish_reason"] == "stop"
