"""TopKActions, AllowedActions and EmbeddingActions: what an action stands for, single and vector alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_tools import odd_after_even, word_task
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from textgym import wrappers
from textgym.env import TokenEnv
from textgym.lm.reference import NGramReference
from textgym.vector import TokenVectorEnv
from textgym.wrappers.actions import AllowedTokens, Nearest, TopKTokens
from textgym.wrappers.reference import _principal

BATCH = {"input_ids": np.array([[2, 0], [3, 0]]), "attention_mask": np.array([[1, 0], [1, 0]])}


class Rows:
    """A reference with given log-probabilities."""

    def __init__(self, logs: Any) -> None:
        self.logs = np.asarray(logs)

    def log_probs(self, observation: Any) -> Any:
        return self.logs


def bigram(size: int = 6) -> NGramReference:
    return NGramReference(np.random.default_rng(0).dirichlet(np.ones(size), size=size))


def test_ranks_by_hand() -> None:
    reference = Rows(np.log([[0.1, 0.3, 0.2, 0.3, 0.1], [0.5, 0.1, 0.1, 0.2, 0.1]]))
    allowed = np.array([True, True, True, True, False])
    tokens, legal = TopKTokens(reference, allowed, 3).tokens(BATCH)
    # Equals by id: 1 before 3 in the first row, 1 before 2 in the second.
    np.testing.assert_array_equal(tokens, [[1, 3, 2], [0, 3, 1]])
    assert legal.all()


def test_ranks_begin_again_where_few_tokens_are_legal() -> None:
    reference = Rows(np.log([[0.1, 0.3, 0.2, 0.3, 0.1], [0.5, 0.1, 0.1, 0.2, 0.1]]))
    masks = np.array([[True, False, True, False, True], [True] * 5])
    tokens, legal = TopKTokens(reference, np.array([True, True, True, True, False]), 3).tokens(BATCH, masks)
    np.testing.assert_array_equal(tokens, [[2, 0, 2], [0, 3, 1]])
    np.testing.assert_array_equal(legal, [[True, True, False], [True, True, True]])


def test_a_legal_token_of_probability_zero_comes_before_what_is_not_legal() -> None:
    with np.errstate(divide="ignore"):
        reference = Rows(np.log([[0.0, 1.0, 0.0, 0.0]] * 2))
    tokens, legal = TopKTokens(reference, np.array([False, True, True, True]), 3).tokens(BATCH)
    np.testing.assert_array_equal(tokens, [[1, 2, 3]] * 2)
    assert legal.all()


@settings(max_examples=60, deadline=None)
@given(
    logs=arrays.arrays(np.float64, (4, 7), elements=st.sampled_from([-5.0, -2.0, -1.0, -np.inf])),
    masks=arrays.arrays(np.bool_, (4, 7)),
    k=st.integers(1, 7),
)
def test_ranks_are_those_of_a_plain_sort(logs: Any, masks: Any, k: int) -> None:
    masks[:, 0] = True
    tokens, legal = TopKTokens(Rows(logs), np.ones(7, dtype=bool), k).tokens(BATCH, masks)
    for row in range(4):
        order = sorted(np.flatnonzero(masks[row]), key=lambda token, row=row: (-logs[row, token], token))[:k]
        assert tokens[row].tolist() == [order[rank % len(order)] for rank in range(k)]
        assert legal[row].tolist() == [rank < len(order) for rank in range(k)]


def test_the_nearest_legal_token_by_hand() -> None:
    embedding = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    choice = Nearest(AllowedTokens(np.array([True, True, True, False])), embedding)
    points = np.array([[0.8, 0.1], [-0.2, 0.9]])
    np.testing.assert_array_equal(choice.take(points, BATCH), [0, 2])
    masks = np.array([[False, True, True, True], [True, True, False, True]])
    # From (0.8, 0.1) token 2 is at distance 1.2, token 1 at 1.8; from (-0.2, 0.9) token 1 is nearer than 0.
    np.testing.assert_array_equal(choice.take(points, BATCH, masks), [2, 1])
    for bad in (np.zeros(2), np.zeros((2, 3)), np.array([[np.nan, 0.0]] * 2)):
        with pytest.raises(InvalidAction, match="finite points"):
            choice.take(bad, BATCH)


PAIRS = {
    "top": (wrappers.TopKActions, wrappers.VectorTopKActions, {"k": 3}),
    "allowed": (wrappers.AllowedActions, wrappers.VectorAllowedActions, {}),
    "points": (wrappers.EmbeddingActions, wrappers.VectorEmbeddingActions, {"dimensions": 2}),
}


@pytest.mark.parametrize("mask", [None, odd_after_even])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("kind", PAIRS)
def test_rows_equal_single_environments(kind: str, mode: AutoresetMode, mask: Any) -> None:
    task = word_task(reference=bigram(), mask=mask)
    single, vector, options = PAIRS[kind]
    rows = vector(TokenVectorEnv(task, 3, autoreset_mode=mode), **options)
    singles = [single(TokenEnv(task), **options) for _ in range(3)]
    rows.action_space.seed(0)
    observation, _ = rows.reset(seed=4)
    shown = [env.reset(seed=4 + number)[0] for number, env in enumerate(singles)]
    ends = 0
    for _ in range(80):
        actions = rows.action_space.sample()
        np.testing.assert_array_equal(rows.action_masks(), [env.action_masks() for env in singles])
        observation, rewards, terminated, _, _ = rows.step(actions)
        for number, env in enumerate(singles):
            shown[number], reward, done, *_ = env.step(actions[number])
            assert (reward, done) == (rewards[number], terminated[number])
            if done:
                ends += 1
                shown[number] = env.reset()[0]
        if mode is AutoresetMode.DISABLED and terminated.any():
            observation, _ = rows.reset(options={"reset_mask": terminated})
        for name in observation:
            np.testing.assert_array_equal(observation[name], [each[name] for each in shown])
    assert ends > 20


def test_a_state_that_is_set_is_what_actions_are_ranked_in() -> None:
    task = word_task(reference=bigram())
    env = wrappers.TopKActions(TokenEnv(task), 2)
    env.reset(seed=0)
    start = env.get_wrapper_attr("get_state")()
    env.step(0)
    env.set_state(start)
    tokens, _ = env.choice.table.tokens({name: array[None] for name, array in env.unwrapped.set_state(start).items()})
    observation, *_ = env.step(1)
    assert observation["input_ids"][len(start.tokens)] == tokens[0, 1]


def test_bad_arguments_are_named() -> None:
    task = word_task(reference=bigram())
    for k in (0, 7, 1.5, True):
        with pytest.raises(ValueError, match=r"1\.\.6"):
            wrappers.TopKActions(TokenEnv(task), k)
    with pytest.raises(ValueError, match="dimensions"):
        wrappers.EmbeddingActions(TokenEnv(task), dimensions=0)
    env = wrappers.TopKActions(TokenEnv(task), 2)
    env.reset(seed=0)
    for action in (2, -1, 0.5):
        with pytest.raises(InvalidAction, match=r"0\.\.1"):
            env.step(action)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize(
    ("wrap", "anything"),
    [
        (wrappers.VectorAllowedActions, -1),
        (lambda env: wrappers.VectorTopKActions(env, 6), 99),
        (lambda env: wrappers.VectorEmbeddingActions(env, 2), np.nan),
    ],
)
def test_the_action_of_a_row_that_takes_none_may_be_anything(wrap: Any, anything: float, mode: AutoresetMode) -> None:
    env = wrap(TokenVectorEnv(word_task(reference=bigram()), 3, autoreset_mode=mode))
    env.reset(seed=0)
    env.action_space.seed(0)
    idle = np.zeros(3, dtype=bool)
    while not idle.any():
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        idle = terminated | truncated
    actions = env.action_space.sample()
    actions[idle] = anything
    env.step(actions)
    env.reset()
    actions[:] = anything
    with pytest.raises(InvalidAction):
        env.step(actions)


def test_nothing_is_chosen_before_the_first_reset() -> None:
    single, rows = TokenEnv(word_task(reference=bigram())), TokenVectorEnv(word_task(reference=bigram()), 2)
    env, both = wrappers.AllowedActions(single), wrappers.VectorAllowedActions(rows)
    for call in (lambda: env.step(0), env.action_masks, lambda: both.step(np.zeros(2, dtype=int)), both.action_masks):
        with pytest.raises(ResetNeeded, match="before the first reset"):
            call()


def test_the_wrong_order_of_wrappers_is_refused() -> None:
    top = wrappers.TopKActions(TokenEnv(word_task(reference=bigram())), 2)
    with pytest.raises(TypeError, match="order is ReferenceReward"):
        wrappers.ReferenceReward(top)
    with pytest.raises(TypeError, match="order is ReferenceReward"):
        wrappers.TopKActions(top, 2)


def test_the_reference_is_paid_for_once() -> None:
    task = word_task(reference=bigram())
    single = wrappers.ReferenceReward(TokenEnv(task))
    rows = wrappers.VectorReferenceReward(TokenVectorEnv(task, 2))
    for again in (lambda: wrappers.ReferenceReward(single), lambda: wrappers.VectorReferenceReward(rows)):
        with pytest.raises(TypeError, match="ReferenceReward is around it already"):
            again()
    with pytest.raises(TypeError, match="VectorReferenceReward is around it already"):
        wrappers.VectorReferenceReward(RecordEpisodeStatistics(rows))


def test_n_tokens_lie_in_no_more_than_n_minus_1_dimensions() -> None:
    rows, allowed = np.random.default_rng(0).standard_normal((8, 16)), np.arange(8) < 6
    assert np.ptp(_principal(rows, 5, allowed)[allowed], axis=0).min() > 0.1
    with pytest.raises(ValueError, match=r"dimensions=6: .* 16 for 6 allowed tokens; allowed is 5 at most"):
        _principal(rows, 6, allowed)


ROWS = {
    "top-k": lambda env: wrappers.VectorTopKActions(env, 2),
    "allowed": wrappers.VectorAllowedActions,
    "embedding": lambda env: wrappers.VectorEmbeddingActions(env, 2),
}


@pytest.mark.parametrize(
    "embedding",
    [np.zeros((5, 2)), np.zeros((7, 2)), np.zeros(6), np.full((6, 2), np.nan), np.full((6, 2), 1.5), [["a"]] * 6, 3],
)
def test_an_embedding_that_has_not_one_point_for_each_token_is_refused(embedding: Any) -> None:
    task = word_task(reference=bigram())
    assert task.vocabulary.size == 6
    for wrap, env in (
        (wrappers.EmbeddingActions, TokenEnv(task)),
        (wrappers.VectorEmbeddingActions, TokenVectorEnv(task, 2)),
    ):
        with pytest.raises(ValueError, match=r"embedding .*allowed is \(6, D\)"):
            wrap(env, embedding=embedding)


def test_points_that_are_no_numbers_are_refused_as_actions() -> None:
    env = wrappers.EmbeddingActions(TokenEnv(word_task(reference=bigram())), 2)
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="finite points"):
        env.step(np.array(["a", "b"]))
    with pytest.raises(ValueError, match="seed=-1"):
        wrappers.EmbeddingActions(TokenEnv(word_task()), 2, seed=-1)


@pytest.mark.parametrize("reference", ["uniform", 3])
def test_a_reference_that_is_none_is_refused_by_its_argument(reference: Any) -> None:
    task = word_task(reference=bigram())
    single, rows = TokenEnv(task), TokenVectorEnv(task, 2)
    makers = [
        lambda: wrappers.TopKActions(single, 2, reference),
        lambda: wrappers.VectorTopKActions(rows, 2, reference),
        lambda: wrappers.ReferenceReward(single, reference=reference),
        lambda: wrappers.VectorReferenceReward(rows, reference=reference),
        lambda: wrappers.LMFeatures(single, reference),
    ]
    for make in makers:
        with pytest.raises(TypeError, match=f"reference={reference!r}: allowed are None"):
            make()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("kind", ROWS)
def test_actions_are_as_many_as_rows(kind: str, count: int) -> None:
    env = ROWS[kind](TokenVectorEnv(word_task(reference=bigram()), 3))
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="allowed is one for each of 3 sub-environments"):
        env.step(np.repeat(env.action_space.sample()[:1], count, axis=0))


@pytest.mark.parametrize("kind", ROWS)
def test_rows_are_wrapped_over_a_wrapper_of_gymnasium(kind: str) -> None:
    env = ROWS[kind](RecordEpisodeStatistics(TokenVectorEnv(word_task(reference=bigram(), mask=odd_after_even), 3)))
    env.reset(seed=0)
    env.step(np.zeros_like(env.action_space.sample()))
    env.set_states(env.unwrapped.get_states(range(3)))
