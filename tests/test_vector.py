"""The vector environment equals SyncVectorEnv of single ones; its own manners by hand."""

from __future__ import annotations

import functools
import pickle
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from core_tools import CountA, gold_length, odd_after_even, seed_noise, word_task
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.env import TokenEnv
from textgym.vector import TokenVectorEnv

MODES = list(AutoresetMode)
A, STOP = 0, 4  # of the six words
TASKS: dict[str, dict[str, Any]] = {
    "end": {"gold": gold_length},
    "every": {"reward": CountA("every"), "gold": gold_length},
    "difference": {"reward": CountA("difference", 0.9), "gamma": 0.9},
    "noisy": {"reward": seed_noise, "noisy": True, "mask": odd_after_even},
}


def pair(num_envs: int, mode: AutoresetMode, task: Any, **options: Any) -> tuple[TokenVectorEnv, SyncVectorEnv]:
    sync = SyncVectorEnv([functools.partial(TokenEnv, task, **options)] * num_envs, autoreset_mode=mode)
    return TokenVectorEnv(task, num_envs, autoreset_mode=mode, **options), sync


def same(ours: Any, theirs: Any) -> None:
    assert data_equivalence(ours, theirs, exact=True), (ours, theirs)
    assert infos_equal(ours[-1], theirs[-1])


def infos_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """The same keys, types and dtypes, all the way down."""
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert type(value) is type(theirs[key])
        if isinstance(value, dict):
            infos_equal(value, theirs[key])
        else:
            assert (value.dtype, value.shape) == (theirs[key].dtype, theirs[key].shape), key
            assert [type(v) for v in value.tolist()] == [type(v) for v in theirs[key].tolist()], key
    return True


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "segments"), [*((kind, False) for kind in TASKS), ("every", True)])
def test_it_equals_the_sync_vector_env(mode: AutoresetMode, kind: str, segments: bool) -> None:
    ours, theirs = pair(4, mode, word_task(**TASKS[kind]), segments=segments)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.metadata == theirs.metadata
    same(ours.reset(seed=5), theirs.reset(seed=5))
    assert ours.np_random_seed == theirs.np_random_seed == (5, 6, 7, 8)
    rng = np.random.default_rng(0)
    ends = 0
    for step in range(120):
        actions = rng.integers(0, 6, 4)
        result = ours.step(actions)
        same(result, theirs.step(actions))
        np.testing.assert_array_equal(ours.action_masks(), np.array(theirs.call("action_masks")))
        ends += result[2].sum()
        if mode is AutoresetMode.DISABLED and result[2].any():
            options = {"reset_mask": result[2].copy()}
            kept = dict(options)
            seed = [step, None, None, step] if step % 2 else None
            same(ours.reset(seed=seed, options=options), theirs.reset(seed=seed, options=dict(options)))
            assert options == kept
        if step == 60:
            same(ours.reset(seed=[1, None, 3, None]), theirs.reset(seed=[1, None, 3, None]))
    assert ends > 40


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(MODES),
    st.integers(1, 3),
    st.integers(0, 10**9),
    st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=3, max_size=12),
    st.sampled_from([None, {"prompt": "b b"}, {"prompt": "c"}, {"prompt_index": 1}]),
)
def test_it_equals_the_sync_vector_env_on_anything(
    mode: AutoresetMode, num_envs: int, seed: int, steps: list[list[int]], options: dict[str, Any] | None
) -> None:
    ours, theirs = pair(num_envs, mode, word_task(gold=gold_length))
    same(ours.reset(seed=seed, options=options), theirs.reset(seed=seed, options=options))
    for step in steps:
        actions = np.array(step[:num_envs])
        result = ours.step(actions)
        same(result, theirs.step(actions))
        if mode is AutoresetMode.DISABLED and result[2].any():
            break


def test_segments_follow_the_prompts_of_the_rows() -> None:
    env = TokenVectorEnv(word_task(), 2, segments=True, autoreset_mode=AutoresetMode.DISABLED)
    assert env.observation_space["segment_ids"].dtype == np.int8  # type: ignore[index]
    first = env.reset(options={"prompt": ["a b", "c"]})[0]
    after = env.step(np.array([A, A]))[0]
    assert first["segment_ids"].tolist() == [[0] * 7, [0] * 7]
    assert after["segment_ids"].tolist() == [[0, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
    again = env.reset(options={"prompt": "c", "reset_mask": np.array([True, False])})[0]
    assert again["segment_ids"].tolist() == [[0] * 7, [0, 1, 0, 0, 0, 0, 0]]
    state = replace(env.get_states([1])[0], environment=(0,))
    assert env.set_states([state], [0])["segment_ids"].tolist() == [
        [0, 2, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
    ]


def test_make_vec_gives_it_and_the_built_in_world_works() -> None:
    settings_ = {"max_new_tokens": 3, "prompts": ["Hello <|end|>", "Bye"], "stop": [5, 6]}
    ours = gym.make_vec("textgym/Text-v0", num_envs=3, autoreset_mode="SameStep", **settings_)
    assert isinstance(ours, TokenVectorEnv)
    theirs = gym.make_vec(
        "textgym/Text-v0",
        num_envs=3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        **settings_,
    )
    same(ours.reset(seed=0), theirs.reset(seed=0))
    for actions in np.random.default_rng(0).integers(0, 12, (30, 3)):
        same(ours.step(actions), theirs.step(actions))


def test_a_finished_row_is_absorbing_where_autoreset_is_disabled() -> None:
    reward = CountA()
    env = TokenVectorEnv(word_task(reward=reward), 3, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(options={"prompt_index": np.array([0, 1, 2])})
    env.step(np.array([4, 0, 0]))
    before = env.get_states([0])
    # Whatever the action of the finished row is; the others go on.
    observation, rewards, terminated, truncated, infos = env.step(np.array([-7, 0, 4]))
    assert env.get_states([0]) == before
    assert observation["input_ids"][0].tolist() == [0, 2, 4, 4, 4, 4, 4]
    assert observation["attention_mask"].sum(axis=1).tolist() == [3, 3, 5]
    assert rewards.tolist() == [0.0, 0.0, 1.0]
    assert (terminated.tolist(), truncated.tolist()) == ([True, False, True], [False] * 3)
    assert infos["_completion"].tolist() == [False, False, True]
    assert reward.batches == [1, 1]
    env.step(np.array([0, 4, 0]))
    result = env.step(np.array([9, 9, 9]))
    assert (result[1].tolist(), result[2].tolist(), result[4]) == ([0.0] * 3, [True] * 3, {})
    _, infos = env.reset(options={"reset_mask": np.array([True, False, False]), "prompt": "c"})
    assert infos["prompt"].tolist() == ["c", None, None]
    assert env.step(np.array([0, 9, 9]))[2].tolist() == [False, True, True]


def test_the_action_of_a_row_that_is_reset_is_ignored() -> None:
    env = TokenVectorEnv(word_task(), 2)
    env.reset(seed=0)
    env.step(np.array([4, 0]))
    observation, rewards, terminated, _, infos = env.step(np.array([99, 0]))
    assert (rewards.tolist(), terminated.tolist()) == ([0.0, 0.0], [False, False])
    assert infos["_prompt"].tolist() == [True, False]
    assert observation["attention_mask"][0].sum() == len(env.get_states([0])[0].prompt.ids)


def test_all_episodes_that_end_at_a_step_are_scored_in_one_call() -> None:
    reward = CountA()
    env = TokenVectorEnv(word_task(reward=reward), 5, autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    env.step(np.array([4, 0, 4, 0, 4]))
    for _ in range(3):
        env.step(np.zeros(5, dtype=int))
    assert reward.batches == [3, 2]


BAD_ACTIONS = [
    [0.0, 1.0], [True, False], [0, None], ["0", "1"], [0, -1], [0, 6], [0], [[0, 1]], 0, None, [[0], [1, 2]],
    [0, float("nan")], np.array([0, 2**63], dtype=np.uint64),
]  # fmt: skip


@pytest.mark.parametrize("actions", BAD_ACTIONS, ids=repr)
def test_bad_actions_are_refused_and_change_nothing(actions: Any) -> None:
    env = TokenVectorEnv(word_task(), 2)
    env.reset(seed=0)
    before = env.get_states()
    with pytest.raises(InvalidAction, match="actions"):
        env.step(actions)
    assert env.get_states() == before


def test_small_integers_and_lists_are_actions_too() -> None:
    env = TokenVectorEnv(word_task(), 2)
    env.reset(seed=0)
    for actions in (np.array([1, 2], dtype=np.uint8), np.array([1, 2], dtype=np.int32), [1, 2]):
        env.step(actions)  # type: ignore[arg-type]
    assert [state.completion for state in env.get_states()] == [(1,) * 3, (2,) * 3]


@pytest.mark.parametrize(
    ("seed", "options", "message"),
    [
        ([1], None, "has 1 values, allowed is one for each of 2"),
        (1.5, None, "seed=1.5"),
        ([1, "2"], None, "seed='2': allowed are None, an int"),
        (-1, None, "seed=-1"),
        (None, {"reset_mask": [True, False]}, "reset_mask"),
        (None, {"reset_mask": np.array([True])}, "reset_mask"),
        (None, {"reset_mask": np.array([1, 0])}, "reset_mask"),
        (None, {"reset_mask": np.array([False, False])}, "at least one True"),
        (None, {"prompt_index": np.array([0])}, r"allowed is one value, or \(2,\)"),
        (None, {"prompt_index": np.array([0, 3])}, r"prompt_index=.*3.*: not an int in 0\.\.2"),
        (None, {"prompt": ["a", ""]}, "is empty"),
        (None, {"reset_maks": np.array([True, False])}, "Did you mean 'reset_mask'"),
    ],
)
def test_bad_resets_are_refused_and_change_nothing(seed: Any, options: Any, message: str) -> None:
    env = TokenVectorEnv(word_task(), 2)
    env.reset(seed=0)
    before = env.get_states()
    with pytest.raises((ValueError, TypeError), match=message):
        env.reset(seed=seed, options=options)
    assert env.get_states() == before


def test_a_prompt_for_every_row() -> None:
    env = TokenVectorEnv(word_task(), 3)
    _, infos = env.reset(options={"prompt": ["a", "d d d", "c"]})
    assert infos["prompt"].tolist() == ["a", "d d d", "c"]
    assert infos["prompt_index"].tolist() == [-1, 2, 1]
    # Rows outside the mask are not looked at.
    mask = np.array([False, True, True])
    _, infos = env.reset(options={"prompt_index": np.array([-1, 0, 1]), "reset_mask": mask})
    assert infos["prompt"].tolist() == [None, "a b", "c"]
    assert infos["_prompt_index"].tolist() == [False, True, True]


def test_steps_need_a_reset_of_every_row() -> None:
    env = TokenVectorEnv(word_task(), 2)
    for ask in (lambda: env.step(np.array([0, 0])), env.get_states):
        with pytest.raises(ResetNeeded):
            ask()
    env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded):
        env.step(np.array([0, 0]))
    assert env.get_states([0])[0].completion == ()


def test_states_go_from_row_to_row_and_to_a_single_environment() -> None:
    task = word_task(reward=CountA("difference"))
    env, single = TokenVectorEnv(task, 3, autoreset_mode="Disabled"), TokenEnv(task)
    env.reset(seed=0)
    env.step(np.array([0, 2, 1]))
    states = env.get_states()
    observation = env.set_states([states[2]], rows=[0])
    np.testing.assert_array_equal(observation["input_ids"][0], observation["input_ids"][2])
    _, rewards, *_ = env.step(np.array([0, 0, 0]))
    assert rewards.tolist() == [1.0, 1.0, 1.0]
    single.set_state(states[2])
    assert single.step(0)[1] == 1.0
    env.set_states(states)
    assert env.get_states() == states
    with pytest.raises(ValueError, match="2 states for 3 rows"):
        env.set_states(states[:2])


@pytest.mark.parametrize("mode", MODES)
def test_pickling_in_the_middle_of_episodes(mode: AutoresetMode) -> None:
    env = TokenVectorEnv(word_task(gold=gold_length), 3, autoreset_mode=mode)
    env.reset(seed=0)
    env.step(np.array([0, 4, 1]))
    twin = pickle.loads(pickle.dumps(env))
    for actions in ([0, 0, 4], [1, 1, 1], [4, 4, 4], [0, 0, 0]):
        same(env.step(np.array(actions)), twin.step(np.array(actions)))
    same(env.reset(), twin.reset())


def test_gymnasium_s_vector_wrappers() -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(TokenVectorEnv(word_task(), 2))
    env.reset(seed=0)
    env.step(np.array([0, 0]))
    *_, infos = env.step(np.array([4, 0]))
    assert infos["episode"]["r"].tolist() == [1.0, 0.0]
    assert infos["episode"]["l"].tolist() == [2, 0]
    listed = gym.wrappers.vector.DictInfoToList(TokenVectorEnv(word_task(), 2))
    assert len(listed.reset(seed=0)[1]) == 2


def test_rows_are_called_as_in_the_sync_vector_env() -> None:
    ours, theirs = pair(3, AutoresetMode.NEXT_STEP, word_task(mask=odd_after_even), render_mode="ansi")
    for env in (ours, theirs):
        env.reset(seed=5)
        env.step(np.array([0, 1, 2]))
    for name in ("action_masks", "get_state", "render"):
        assert data_equivalence(ours.call(name), theirs.call(name), exact=True), name
    for name in ("observation_space", "action_space", "split", "segments", "render_mode", "np_random_seed", "task"):
        assert ours.get_attr(name) == theirs.get_attr(name), name
    draws = [[generator.random() for generator in env.get_attr("np_random")] for env in (ours, theirs)]
    assert draws[0] == draws[1]
    state = ours.call("get_state")[1]
    left, right = ours.call("set_state", state), theirs.call("set_state", state)
    assert data_equivalence(left, right, exact=True)
    assert ours.get_states() == [state] * 3


def test_attributes_of_rows_are_set_as_in_the_sync_vector_env() -> None:
    ours, theirs = pair(2, AutoresetMode.NEXT_STEP, word_task())
    for env in (ours, theirs):
        env.set_attr("note", [1, 2])
        env.set_attr("both", "x")
        env.set_attr("np_random", [np.random.default_rng(seed) for seed in (7, 8)])
        assert (env.get_attr("note"), env.get_attr("both")) == ((1, 2), ("x", "x"))
    same(ours.reset(), theirs.reset())
    with pytest.raises(ValueError, match="values: 3 values, allowed is one, or a list of one for each of 2"):
        ours.set_attr("note", [1, 2, 3])
    with pytest.raises(ValueError, match="name='task': is set when the environment is made"):
        ours.set_attr("task", None)
    with pytest.raises(ValueError, match="np_random=3: allowed are numpy's Generators"):
        ours.set_attr("np_random", 3)
    with pytest.raises(AttributeError, match="have no attribute 'nothing'"):
        ours.get_attr("nothing")
    with pytest.raises(AttributeError, match="method 'step': not one of action_masks"):
        ours.call("step", 0)


def test_a_time_limit_is_refused_with_what_works() -> None:
    with pytest.raises(TypeError, match=r"max_episode_steps=2: .*vectorization_mode='sync' beside it"):
        gym.make_vec("textgym/Copy-v0", 2, max_episode_steps=2)
    env = gym.make_vec("textgym/Copy-v0", 2, max_episode_steps=2, vectorization_mode="sync")
    env.reset(seed=0)
    env.step(np.array([0, 0]))
    assert env.step(np.array([0, 0]))[3].tolist() == [True, True]


def test_bad_arguments() -> None:
    for number in (0, -1, 2.0, True, 2**20 + 1, 2**31, 10**400, 10**5000, "2", None):
        with pytest.raises(ValueError, match=r"num_envs=.*allowed is an int in 1\.\.1048576"):
            TokenVectorEnv(word_task(), number)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"autoreset_mode 'SameStp': not one of .*Did you mean 'SameStep'"):
        TokenVectorEnv(word_task(), 2, autoreset_mode="SameStp")


@pytest.mark.slow
def test_async_vector_env_with_spawn() -> None:
    make = functools.partial(TokenEnv, "Text", prompts=["Hello", "Bye"], max_new_tokens=2, gold="charset")
    there = AsyncVectorEnv([make, make], context="spawn")
    try:
        here = SyncVectorEnv([make, make])
        same(here.reset(seed=0), there.reset(seed=0))
        for actions in ([10, 11], [12, 13], [14, 15]):
            same(here.step(np.array(actions)), there.step(np.array(actions)))
    finally:
        there.close()


@pytest.mark.parametrize("mode", MODES)
def test_without_a_copy_it_equals_one_with_copies_and_shares_its_arrays(mode: AutoresetMode) -> None:
    ours, copies = (TokenVectorEnv("Helpful", 9, autoreset_mode=mode, copy=copy) for copy in (False, True))
    actions = np.random.default_rng(1).integers(1024, size=(90, 9))
    first, _ = ours.reset(seed=3)
    kept, _ = copies.reset(seed=3)
    same((first, {}), (kept, {}))
    for row in actions:
        same(ours.step(row), copies.step(row))
    assert np.shares_memory(first["input_ids"], ours.step(actions[0])[0]["input_ids"])
    assert not np.shares_memory(kept["input_ids"], copies.step(actions[0])[0]["input_ids"])
    with pytest.raises(ValueError, match="copy=1: True or False is allowed"):
        TokenVectorEnv("Helpful", 1, copy=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "places"), [([-1], None), ([2], None), ([0.5], None), ([0, 1], (1, "eos")), ([0, 1], (STOP, None))]
)
def test_states_that_do_not_fit_change_no_row(rows: list[Any], places: Any) -> None:
    env = TokenVectorEnv(word_task(), 2, autoreset_mode="Disabled")
    env.reset(seed=0)
    env.step(np.array([0, 1]))
    before = env.get_states()
    states = [replace(before[0], completion=())] * len(rows)
    if places is not None:
        states[-1] = replace(states[-1], completion=(places[0],), finish_reason=places[1])
    with pytest.raises(ValueError, match=r"rows=|state:"):
        env.set_states(states, rows)
    assert env.get_states() == before
    if places is None:
        with pytest.raises(ValueError, match=r"rows=.*: allowed is an integer in 0\.\.1"):
            env.get_states(rows)


def test_frames_say_what_was_paid_to_each_row() -> None:
    env = TokenVectorEnv(word_task(), 2, autoreset_mode="Disabled", render_mode="ansi")
    alone = TokenEnv(word_task(), render_mode="ansi")
    env.reset(seed=0)
    alone.reset(seed=0)
    assert env.render()[0] == alone.render()
    env.step(np.array([STOP, 0]))
    alone.step(STOP)
    ended = env.get_states([0])
    assert env.render()[0] == alone.render()
    env.step(np.array([0, 0]))  # the first row has ended, and is paid no more
    assert env.render()[0] == alone.render()
    alone.set_state(ended[0])
    env.set_states(ended, [0])
    assert env.render()[0] == alone.render()


def test_the_seed_of_a_generator_that_was_set_is_not_known() -> None:
    env = TokenVectorEnv(word_task(), 2)
    env.reset(seed=5)
    assert env.np_random_seed == (5, 6)
    env.set_attr("np_random", [np.random.default_rng(0), np.random.default_rng(1)])
    assert env.np_random_seed == (-1, -1)
