"""The solver where turns end after one token or two: on a level some states wait for a reply, others for a token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from solver_tools import Table, bigram, small_task

from textgym import TokenEnv, make_task
from textgym.lm.reference import NGramReference
from textgym.solver import UnsolvableError, prefix_tree, solve
from textgym.task import Task
from textgym.turns import Reply, Turns

A, B, END = range(3)


class Answer:
    """Says a after a turn of one token, b b after a longer one; with 1 hidden it is the other way round."""

    def __init__(self, *weights: float) -> None:
        self._weights = weights

    def weights(self, prompt: Any) -> tuple[float, ...]:
        return self._weights

    def replies(self, states: Any) -> list[Reply]:
        return [Reply(((A,), (B, B))[(len(state.turn) > 1) ^ state.hidden]) for state in states]


def one_a(prompts: list[str], completions: list[str], turns: Any, **columns: Any) -> list[float]:
    """Pays 1 for one a from the policy, and a little for what the environment writes."""
    said = [["".join(text for author, text in each if author == who) for who in ("policy", "environment")]
            for each in turns]  # fmt: skip
    return [float(own.count("a") == 1) + 0.25 * other.count("b") for own, other in said]


def end_after_b(states: Any) -> Any:
    """A turn goes on at will, but after its b it has to end."""
    return np.array([[(state.turn[-1:] != (B,)) or token == END for token in range(3)] for state in states])


def talk(*weights: float, **options: Any) -> Task:
    base = make_task("Text", prompts=["a", "b b"], tokenizer=["a", "b", "<end>"], stop="<end>", max_new_tokens=2)
    turns = Turns(Answer(*weights or (1.0,)), most=2, tokens=2, reply_tokens=2)
    return replace(base, turns=turns, max_new_tokens=turns.room, reward=one_a, gold=None, **options)


def test_the_levels_by_hand() -> None:
    # A turn is <end>, or two tokens: 3 + 2 * 3 states, 7 of them answered. 1 + 16 + 7 * 16 for each prompt.
    tree = prefix_tree(talk(), max_states=258)
    assert tree.states == 258
    first, second, third = tree.levels[:3]
    assert (first.chance, first.environment) == (None, None)
    assert first.action.tolist() == [-1, -1]
    assert first.reward.tolist() == [0.0, 0.0]
    assert second.chance is None
    assert second.environment is not None
    assert second.environment.tolist() == [False, False, True] * 2
    assert third.chance is not None
    assert np.isnan(third.chance).tolist() == [True] * 6 + [False] + [True] * 6 + [False]
    assert tree.levels[-1].environment is None


def test_pay_is_not_discounted_between_turns() -> None:
    tree = prefix_tree(talk())
    assert solve(tree, gamma=1.0).objective == solve(tree).objective
    with pytest.raises(ValueError, match=r"gamma=0.5: in a task with turns allowed is 1"):
        solve(tree, gamma=0.5)
    assert solve(small_task(), bigram(), gamma=0.5).objective == solve(small_task(gamma=0.5), bigram()).objective


def test_a_masked_conversation_is_counted_while_it_grows() -> None:
    # A turn is <end>, b <end> or a and another one: 3 + 3 + 1 states, 5 of them answered. 1 + 12 + 5 * 12 each.
    task = talk(mask=end_after_b)
    assert prefix_tree(task, max_states=146).states == 146
    with pytest.raises(UnsolvableError, match="at least 146 states, allowed is max_states=145"):
        prefix_tree(task, max_states=145)


def played(env: TokenEnv, tree: Any, state: Any, reference: Any, beta: float, values: dict[Any, float]) -> float:
    """The optimum from a state on, as the environment plays, with nothing hidden; every state's goes to `values`."""
    shown = {name: each[None] for name, each in env.set_state(state).items()}
    depth, row = tree.find(state.prompt.index, state.completion, state.environment)
    for name, array in tree.observations(depth, np.array([row])).items():
        np.testing.assert_array_equal(array, shown[name])
    allowed = np.ones(3, dtype=np.bool_) if tree.task.mask is None else tree.task.mask([state])[0]
    chances, worth = np.exp(reference.log_probs(shown)[0]) * allowed, np.zeros(3)
    for token in np.flatnonzero(allowed):
        env.set_state(state)
        _, reward, terminated, truncated, _ = env.step(int(token))
        after = env.get_state()
        worth[token] = reward
        if not (terminated or truncated):
            worth[token] += played(env, tree, after, reference, beta, values)
    value = -np.inf
    if not beta:
        value = worth[allowed].max()
    elif chances.any():
        value = beta * np.log(chances @ np.exp(worth / beta) / chances.sum())
    values[depth, row] = value
    return value


NEVER_B = NGramReference(np.array([[0.7, 0.0, 0.3], [1.0, 0.0, 0.0], [0.2, 0.0, 0.8]]))  # nor ends after one


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize(("mask", "reference"), [(None, Table(1, 3)), (end_after_b, Table(2, 3)),
                                                 (end_after_b, NEVER_B)])  # fmt: skip
def test_values_are_those_of_a_search_through_the_environment(mask: Any, reference: Any, beta: float) -> None:
    task = talk(mask=mask)
    with np.errstate(invalid="raise"):
        solution = solve(task, reference, beta=beta)
    env, values = TokenEnv(task, segments=True), dict[Any, float]()
    for index in range(2):
        env.reset(options={"prompt_index": index})
        played(env, solution.tree, env.get_state(), reference, beta, values)
    assert len(values) == 2 * 3 * (1 + (7 if mask is None else 5))  # a state or two of each turn: 3 before a reply
    for (depth, row), value in values.items():
        assert solution.values[depth][row] == pytest.approx(value, abs=1e-12)
    assert solution.optimal.objective == pytest.approx(solution.objective, abs=1e-12)


@pytest.mark.parametrize("weights", [(1.0,), (0.25, 0.75)])
def test_at_beta_0_equal_moves_share_as_in_the_limit(weights: tuple[float, ...]) -> None:
    tree, reference = prefix_tree(talk(*weights)), Table(3, 3)
    hard, soft = solve(tree, reference, beta=0.0), solve(tree, reference, beta=1e-4)
    assert hard.optimal.objective == pytest.approx(hard.objective, abs=1e-12)
    assert soft.optimal.objective == pytest.approx(soft.objective, abs=1e-12)
    for own, other in zip(hard.log_policy, soft.log_policy, strict=True):
        np.testing.assert_allclose(np.exp(own), np.exp(other), atol=1e-9)
    ways = [np.count_nonzero(np.exp(logs) > 0.01) for logs in hard.log_policy]
    assert sum(ways) > len(ways)


def shown(tree: Any) -> tuple[dict[str, Any], list[int], list[int]]:
    """All states in which the policy moves, the deepest first, as one batch; and their depths and rows."""
    places = [
        (depth, row)
        for depth, level in reversed([*enumerate(tree.levels)])
        for row in level.running
        if level.environment is None or not level.environment[row]
    ]
    each = [tree.observations(depth, np.array([row])) for depth, row in places]
    batch = {name: np.concatenate([one[name] for one in each]) for name in each[0]}
    return batch, *map(list, zip(*places, strict=True))


def test_states_of_all_depths_are_found_in_one_batch() -> None:
    solution = solve(talk(), Table(4, 3), beta=0.5)
    batch, depths, rows = shown(solution.tree)
    assert len(depths) == 2 * 3 * (1 + 7)
    wanted = [solution.values[depth][row] for depth, row in zip(depths, rows, strict=True)]
    np.testing.assert_array_equal(solution.state_values(batch), wanted)
    logs = solution.log_probs(batch)
    for (depth, row), own in zip(zip(depths, rows, strict=True), logs, strict=True):
        first = solution.tree.levels[depth].first
        np.testing.assert_array_equal(own, solution.log_policy[depth][first[row] : first[row + 1]])
    empty = {name: array[:0] for name, array in batch.items()}
    assert solution.state_values(empty).shape == (0,)


def test_a_conversation_that_cannot_be_is_named_by_its_place_in_the_batch() -> None:
    solution = solve(talk(), beta=0.5)
    batch, *_ = shown(solution.tree)
    batch["input_ids"][3, : batch["attention_mask"][3].sum()] = END
    with pytest.raises(ValueError, match=r"observation 3: its tokens .* are no state"):
        solution.state_values(batch)
