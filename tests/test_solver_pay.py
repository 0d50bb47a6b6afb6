"""What the solver makes of pay: of none, of tiny pay, of pay that cancels, and of pay that did not come."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from solver_tools import Table, bigram, small_task, uneven

from textgym import make_task
from textgym.lm.reference import NGramReference
from textgym.rewards import RewardError, TextGymWarning
from textgym.solver import UnsolvableError, policy_values, prefix_tree, solve

TEXT: dict[str, Any] = {"prompts": ["a"], "tokenizer": ["a", "b", "<end>"], "stop": "<end>", "beta": 0.5}


def paying(amount: float) -> Callable[..., list[float]]:
    """A reward that pays so many times what `uneven` pays."""

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [amount * each for each in uneven(prompts, completions, **columns)]

    return reward


@pytest.mark.parametrize("unit", [1e-14, 1.0, 1e9])
def test_optimality_has_no_unit(unit: float) -> None:
    tree = prefix_tree(small_task(reward=paying(unit)))
    solution = solve(tree, bigram(), beta=0.4 * unit)
    plain = solve(small_task(), bigram(), beta=0.4)
    objective = policy_values(tree, Table(1), bigram(), beta=0.4 * unit).objective
    wanted = policy_values(small_task(), Table(1), bigram(), beta=0.4).objective
    assert objective == pytest.approx(unit * wanted, rel=1e-9)
    room = plain.objective - plain.reference_objective
    assert solution.optimality(objective) == pytest.approx((wanted - plain.reference_objective) / room, rel=1e-6)
    assert solution.optimality(solution.objective) == pytest.approx(1.0)


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_where_nothing_is_paid_there_is_no_optimality(beta: float) -> None:
    solution = solve(small_task(reward=paying(0.0)), bigram(), beta=beta)
    assert solution.objective == pytest.approx(0.0, abs=1e-15)
    assert math.isnan(solution.optimality(1.0))


class Cancels:
    """Pays 0.1, 0.2 and -0.3 for b b b and b b a, whose sum rounds to 2.8e-17, and 0.1 and -0.1 for b a."""

    name = "cancels"
    pay = "every"

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [
            {"b": 0.1, "b b": 0.2, "b b b": -0.3, "b b a": -0.3, "b a": -0.1}.get(text, 0.0) for text in completions
        ]


def test_pay_that_cancels_is_a_tie() -> None:
    # A word after b b costs what these two have brought, as a after b does; the mask leaves no other way out.
    def stays(states: Any) -> Any:
        return np.array([[True, True, len(state.completion) == 0] for state in states])

    task = replace(make_task("Text", reward=Cancels(), max_new_tokens=3, **TEXT), mask=stays)
    solution = solve(task, NGramReference(np.full((3, 3), 1 / 3)), beta=0.0)
    assert solution.objective == pytest.approx(0.0, abs=1e-15)
    # All of a, b and the stop token are worth 0, and whatever follows is no mistake.
    np.testing.assert_allclose(np.exp(solution.log_policy[0]), [1 / 3] * 3, atol=1e-12)


class CutOff:
    """Ends in a failure of some kind at a text with b, as a reward does that runs something else in a process."""

    name = "cut off"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        if any("b" in text for text in completions):
            raise RewardError("no answer", self.kind)
        return [1.0] * len(completions)


@pytest.mark.parametrize("kind", ["timeout", "dies"])
def test_texts_that_were_not_scored_have_no_pay_to_solve_with(kind: str) -> None:
    # a, b and the stop token, scored as one batch.
    task = make_task("Text", reward=CutOff(kind), on_error="skip", max_new_tokens=1, **TEXT)
    with (
        pytest.warns(TextGymWarning),
        pytest.raises(UnsolvableError, match="or its process died, on batches of 3 texts in all"),
    ):
        solve(task)


@pytest.mark.filterwarnings("ignore::textgym.rewards.TextGymWarning")
def test_an_error_on_the_way_is_not_hidden_by_texts_that_were_not_scored() -> None:
    class Fails(CutOff):
        def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
            if max(map(len, columns["completion_ids"])) > 1:
                raise KeyboardInterrupt
            return super().__call__(prompts, completions, **columns)

    task = make_task(
        "Text", reward={"name": "dense", "reward": Fails("dies")}, on_error="skip", max_new_tokens=2, **TEXT
    )
    with pytest.raises(KeyboardInterrupt):
        solve(task)


class Clock:
    """In place of a child process with a time limit: a text takes 1 ms, on a clock of its own."""

    def __init__(self, reward: Any, seconds: float, kind: str = "reward") -> None:
        self.reward, self.seconds = reward, seconds

    def call(self, method: str, arguments: Mapping[str, Any]) -> object:
        if 1e-3 * len(arguments["completions"]) > self.seconds:
            raise RewardError("too late", "timeout")
        return (self.reward if method == "__call__" else getattr(self.reward, method))(**arguments)

    def close(self) -> None:
        pass


def counts_a(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(text.count("a")) for text in completions]


def test_a_time_limit_is_of_no_more_texts_than_are_played_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textgym.rewards.deadline.Deadline", Clock)
    options: dict[str, Any] = TEXT | {
        "tokenizer": [*"abcdefghi", "<end>"],
        "max_new_tokens": 4,
    }  # of 4 tokens 7,290 texts: 7 s
    found = solve(make_task("Text", reward=counts_a, timeout=1.0, on_error="skip", **options))
    assert found.objective == solve(make_task("Text", reward=counts_a, **options)).objective
