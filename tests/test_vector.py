"""The vector environment equals SyncVectorEnv of single ones; its own manners by hand."""

from __future__ import annotations

import contextlib
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
from textgym.optimum import optimum_of
from textgym.rewards import RewardError
from textgym.solver import UnsolvableError, solve
from textgym.vector import TokenVectorEnv, scoring_together, settle_rest

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


def test_bad_arguments() -> None:
    for number in (0, -1, 2.0, True, 2**20 + 1, 2**31, 10**400, 10**5000, "2", None):
        with pytest.raises(ValueError, match=r"num_envs=.*allowed is an int in 1\.\.1048576"):
            TokenVectorEnv(word_task(), number)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"autoreset_mode 'SameStp': not one of .*Did you mean 'SameStep'"):
        TokenVectorEnv(word_task(), 2, autoreset_mode="SameStp")


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


def together(task: Any, num_envs: int, **options: Any) -> TokenVectorEnv:
    return TokenVectorEnv(task, num_envs, autoreset_mode=AutoresetMode.DISABLED, **options)


@given(
    actions=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=6, max_size=6),
    settled=st.integers(0, 7),
)
@settings(max_examples=60, deadline=None)
def test_scored_together_or_not_every_row_earns_and_says_the_same(actions: list[list[int]], settled: int) -> None:
    """Also where the waiting rows are settled early; the last action is what each reward belongs to."""
    task = word_task(gold=gold_length)
    apart, joint = together(task, 3), together(task, 3, score_together=True)
    for env in (apart, joint):
        env.reset(seed=1)
    earned, said = {}, {}
    for step, row in enumerate([*actions, [1, 1, 1]]):
        results = {}
        for name, env in (("apart", apart), ("joint", joint)):
            before = env.get_states()
            observation, rewards, terminations, _, infos = env.step(np.array(row))
            results[name] = observation["input_ids"], terminations
            if name == "joint" and step == settled:
                more, later = env.settle()
                rewards, infos = rewards + more, infos or later
            for at in np.flatnonzero(infos.get("_completion", ())):
                assert (name, at) not in earned
                earned[name, at] = rewards[at]
                said[name, at] = [infos["completion"][at], infos["finish_reason"][at], infos["gold"][at]]
                said[name, at] += [infos["reward_terms"][term][at] for term in ("lower", "upper")]
            assert not rewards[[at for at in range(3) if (name, at) not in earned]].any()
            assert before[0].finish_reason is None or env.get_states()[0] == before[0]
        np.testing.assert_array_equal(results["apart"][0], results["joint"][0])
        np.testing.assert_array_equal(results["apart"][1], results["joint"][1])
    running = [at for at in range(3) if ("apart", at) not in earned]
    assert not running, "max_new_tokens end every row"
    for at in range(3):
        assert earned["apart", at] == earned["joint", at]
        assert said["apart", at] == said["joint", at]


def test_scored_together_the_reward_is_called_once_and_unpaid_rows_are_kept() -> None:
    reward = CountA()
    env = together(word_task(reward=reward), 3, score_together=True)
    env.reset(seed=0)
    assert env.settle()[1] == {}
    _, rewards, terminations, _, infos = env.step(np.array([STOP, A, A]))
    assert terminations.tolist() == [True, False, False]
    assert (reward.batches, rewards.tolist(), infos) == ([], [0, 0, 0], {})
    with pytest.raises(RuntimeError, match=r"reset: rows \[0\] have ended and wait .* or call settle\(\)"):
        env.reset()
    with pytest.raises(RuntimeError, match=r"set_states: rows \[0\]"):
        env.set_states(env.get_states([1]), [0])
    env.reset(options={"reset_mask": np.array([False, True, False])})
    env.step(np.array([A, A, STOP]))
    *_, infos = env.step(np.array([A, STOP, A]))
    assert reward.batches == [3]
    assert infos["_completion"].all()
    assert env.reset(seed=1)


def test_rows_that_could_not_be_scored_go_on_waiting() -> None:
    failures = [RuntimeError("no answer"), KeyboardInterrupt()]

    def shaky(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        if failures:
            raise failures.pop(0)
        return [2.0] * len(prompts)

    env = together(word_task(reward=shaky), 2, score_together=True)
    env.reset(seed=0)
    env.step(np.array([STOP, A]))
    with pytest.raises(RewardError, match="no answer"):
        env.step(np.array([A, STOP]))
    with pytest.raises(KeyboardInterrupt):
        env.settle()
    with pytest.raises(RuntimeError, match=r"rows \[0, 1\] have ended and wait"):
        env.reset()
    rewards, infos = env.settle()
    assert rewards.tolist() == [2, 2]
    assert infos["_completion"].all()
    env.reset(seed=1)


def test_a_row_that_is_ended_by_its_state_makes_the_others_due() -> None:
    env = together(word_task(), 2, score_together=True)
    env.reset(seed=0)
    env.step(np.array([STOP, A]))
    ended = env.get_states([0])
    env.set_states(ended, [1])
    *_, infos = env.step(np.array([A, A]))
    assert infos["_completion"].tolist() == [True, False]


def test_a_block_scores_together_and_forgets_what_an_interrupt_left() -> None:
    reward = CountA()
    env = together(word_task(reward=reward), 2)
    env.reset(seed=0)
    with contextlib.suppress(KeyboardInterrupt), scoring_together(env):
        env.step(np.array([STOP, A]))
        raise KeyboardInterrupt
    assert (env.score_together, reward.batches) == (False, [])
    env.reset(seed=0)
    env.step(np.array([STOP, A]))
    assert reward.batches == [1]
    dense = together(word_task(reward=CountA("every")), 2)
    with scoring_together(dense):
        assert not dense.score_together
    # A wrapper may count on rewards that come with the action they belong to.
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(env)
    with scoring_together(wrapped):
        assert not env.score_together
    assert settle_rest(wrapped)[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_together": 1}, "score_together=1: allowed is True or False"),
        ({"score_together": True, "autoreset_mode": "SameStep"}, "autoreset_mode='Disabled', not 'SameStep'"),
        ({"score_together": True, "reward": CountA("every")}, "'count_a' has pay='every'"),
        ({"reward": CountA("together"), "autoreset_mode": "NextStep"}, "compares the completions of a batch"),
    ],
)
def test_what_cannot_be_scored_together_is_refused(options: dict[str, Any], message: str) -> None:
    task = word_task(**({"reward": options.pop("reward")} if "reward" in options else {}))
    with pytest.raises((TypeError, ValueError), match=message):
        TokenVectorEnv(task, 2, **{"autoreset_mode": "Disabled", **options})


class Best(CountA):
    """Pays 1 for the completions of a batch that are not shorter than any other."""

    pay = "together"
    name = "best"

    def __init__(self) -> None:
        super().__init__("together")

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, Any]:
        longest = max(map(len, completions))
        return {"lower": [float(len(text) == longest) for text in completions], "upper": [0.0] * len(prompts)}


def test_a_reward_that_compares_completions_sees_whole_batches_or_is_refused() -> None:
    task = word_task(reward=Best())
    env = together(task, 3, score_together=True)
    env.reset(seed=0)
    env.step(np.array([STOP, A, A]))
    env.step(np.array([A, STOP, A]))
    _, rewards, *_ = env.step(np.array([A, A, STOP]))
    assert rewards.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=r"'best' compares the completions of a batch .* TokenVectorEnv"):
        TokenEnv(task)
    apart = together(task, 2)
    apart.reset(seed=0)
    with pytest.raises(ValueError, match=r"'best' compares .* score_together=True"):
        apart.step(np.array([STOP, A]))
    with pytest.raises(UnsolvableError, match="no function of one text"):
        solve(task)
    assert optimum_of(task).unknown == "the reward compares completions, so that no text has a value of its own"
