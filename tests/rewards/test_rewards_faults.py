"""Every fault a reward can have, under every `on_error`: by the Scorer, one row of a table for each case."""

from __future__ import annotations

import asyncio
import copy
import math
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from faulty_rewards import Faulty
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.rewards import RewardError, Scorer, TextGymWarning, Weighted
from textgym.rewards.calling import copy_columns

PROMPTS = ["one", "two", "three"]
COMPLETIONS = ["ok", "bad", "fine!"]  # 2, 3 and 5 characters
COLUMNS = {"completion_ids": [[1], [2, 3], [4]], "answer": ["a", ["b"], {"c": [1]}]}
PENALTY = -7.0
SECONDS = 0.3
N = math.nan


class Cell(NamedTuple):
    """What one fault leads to under one `on_error`; `total` is None where RewardError is raised."""

    fault: str
    on_error: Any
    total: list[float] | None
    term: list[float] | None
    failures: dict[str, int]
    says: str


CELLS = [
    Cell("raises", "raise", None, None, {"raises": 3}, "'Faulty' raised KeyError: 'lost'"),
    Cell("raises", "skip", [2, 0, 5], [2, N, 5], {"raises": 1}, "raised KeyError: 'lost'"),
    Cell("raises", "penalty", [2, -7, 5], [2, N, 5], {"raises": 1}, "raised KeyError: 'lost'"),
    Cell("nan", "raise", None, None, {"nan": 1}, "'Faulty' is nan for completion 1"),
    Cell("nan", "skip", [2, 0, 5], [2, N, 5], {"nan": 1}, "is nan for completion 1"),
    Cell("nan", "penalty", [2, -7, 5], [2, N, 5], {"nan": 1}, "is nan for completion 1"),
    Cell("inf", "raise", None, None, {"inf": 1}, "'Faulty' is inf for completion 1"),
    Cell("inf", "skip", [2, 0, 5], [2, N, 5], {"inf": 1}, "is inf for completion 1"),
    Cell("inf", "penalty", [2, -7, 5], [2, N, 5], {"inf": 1}, "is inf for completion 1"),
    Cell("-inf", "raise", None, None, {"inf": 1}, "'Faulty' is -inf for completion 1"),
    Cell("-inf", "skip", [2, 0, 5], [2, N, 5], {"inf": 1}, "is -inf for completion 1"),
    Cell("-inf", "penalty", [2, -7, 5], [2, N, 5], {"inf": 1}, "is -inf for completion 1"),
    Cell("none", "raise", [2, 0, 5], [2, N, 5], {}, ""),
    Cell("none", "skip", [2, 0, 5], [2, N, 5], {}, ""),
    Cell("none", "penalty", [2, 0, 5], [2, N, 5], {}, ""),
    Cell("wrong_length", "raise", None, None, {"wrong_length": 3}, "'Faulty' returned 2 values for 3 compl"),
    Cell("wrong_length", "skip", [2, 0, 5], [2, N, 5], {"wrong_length": 1}, "returned 0 values for 1"),
    Cell("wrong_length", "penalty", [2, -7, 5], [2, N, 5], {"wrong_length": 1}, "returned 0 values for 1"),
    Cell("wrong_type", "raise", None, None, {"wrong_type": 3}, "'Faulty' returned a dict"),
    Cell("wrong_type", "skip", [2, 0, 5], [2, N, 5], {"wrong_type": 1}, "returned a dict"),
    Cell("wrong_type", "penalty", [2, -7, 5], [2, N, 5], {"wrong_type": 1}, "returned a dict"),
    Cell("wrong_item", "raise", None, None, {"wrong_type": 1}, "'Faulty' returned '1.0' (str) for completion 1"),
    Cell("wrong_item", "skip", [2, 0, 5], [2, N, 5], {"wrong_type": 1}, "(str) for completion 1"),
    Cell("wrong_item", "penalty", [2, -7, 5], [2, N, 5], {"wrong_type": 1}, "(str) for completion 1"),
    Cell("hangs", "raise", None, None, {"timeout": 3}, "'Faulty' took longer than 0.3 s"),
    Cell("hangs", "skip", [0, 0, 0], [N, N, N], {"timeout": 3}, "took longer than 0.3 s"),
    Cell("hangs", "penalty", [-7, -7, -7], [N, N, N], {"timeout": 3}, "took longer than 0.3 s"),
    Cell("prints", "raise", [2, 3, 5], [2, 3, 5], {}, ""),
    Cell("prints", "skip", [2, 3, 5], [2, 3, 5], {}, ""),
    Cell("prints", "penalty", [2, 3, 5], [2, 3, 5], {}, ""),
    Cell("changes", "raise", [2, 3, 5], [2, 3, 5], {}, ""),
    Cell("changes", "skip", [2, 3, 5], [2, 3, 5], {}, ""),
    Cell("changes", "penalty", [2, 3, 5], [2, 3, 5], {}, ""),
]


def cell_id(cell: Cell) -> str:
    return f"{cell.fault}-{cell.on_error}"


@pytest.mark.parametrize("cell", CELLS, ids=cell_id)
def test_the_scorer_does_what_the_table_says(cell: Cell, capfd: Any) -> None:
    scorer = Scorer(Faulty(cell.fault), cell.on_error, PENALTY, SECONDS if cell.fault == "hangs" else None)
    kept = copy.deepcopy((PROMPTS, COMPLETIONS, COLUMNS))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if cell.total is None:
            with pytest.raises(RewardError) as error:
                scorer.score(PROMPTS, COMPLETIONS, COLUMNS)
            assert cell.says in str(error.value)
            assert error.value.kind in cell.failures
            assert caught == []
        else:
            scores = scorer.score(PROMPTS, COMPLETIONS, COLUMNS)
            np.testing.assert_array_equal(scores.total, cell.total)
            np.testing.assert_array_equal(scores.terms["Faulty"], cell.term)
            assert [cell.says in str(w.message) for w in caught] == [True] * bool(cell.failures)
            assert all(w.category is TextGymWarning for w in caught)
    assert scorer.failures == cell.failures
    assert scorer.scored == 3
    assert kept == (PROMPTS, COMPLETIONS, COLUMNS)
    # The next batch is scored as if nothing had happened, but for a child process that has to start again.
    if cell.fault != "hangs":
        np.testing.assert_array_equal(scorer.score(["p"], ["good"]).total, [4])
    scorer.close()
    out, err = capfd.readouterr()
    assert out == ""
    assert ("a line from the reward" in err) == (cell.fault == "prints")


def test_the_table_has_every_case() -> None:
    faults = "raises nan inf -inf none wrong_length wrong_type wrong_item hangs prints changes"
    pairs = [(fault, on_error) for fault in faults.split() for on_error in ("raise", "skip", "penalty")]
    assert [(cell.fault, cell.on_error) for cell in CELLS] == pairs


def test_the_page_of_rewards_says_the_same() -> None:
    text = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    rows = dict.fromkeys(("none", "prints", "changes"), "no failure")
    starts = {"none": "returns None", "prints": "prints", "changes": "changes its inputs"}
    for cell in CELLS:
        kind = rows.get(cell.fault) or next(iter(cell.failures))
        start = starts.get(cell.fault, "")
        (row,) = re.findall(rf"^\| {start}.* \| (.*) \| (.*) \| (.*) \| `?{kind}`? \|$", text, re.MULTILINE)
        pays = row[("raise", "skip", "penalty").index(cell.on_error)]
        if cell.total is None:
            assert pays == "`RewardError`"
        else:
            assert cell.total[1] == {"0": 0, "`penalty`": PENALTY, "its value": 3}[pays]


@pytest.mark.parametrize("fault", ["raises", "nan", "wrong_length", "wrong_item"])
def test_a_kind_warns_once_and_is_counted_every_time(fault: str) -> None:
    scorer = Scorer(Faulty(fault), "skip")
    with pytest.warns(TextGymWarning, match="Faulty"):
        scorer.score(["p"], ["bad"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer.score(["p"], ["bad"])
        np.testing.assert_array_equal(scorer.score(["p"], ["good"]).total, [4])
    assert list(scorer.failures.values()) == [2]


@pytest.mark.parametrize("fault", sorted({cell.fault for cell in CELLS} - {"hangs"}))
def test_a_batch_scores_as_its_completions_do_alone(fault: str) -> None:
    batch, alone = Scorer(Faulty(fault), "penalty"), Scorer(Faulty(fault), "penalty")
    texts = ["bad", "a", "bad ones", "bcd"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = batch.score(["p"] * 4, texts, {"answer": [1, 2, 3, 4]})
        single = [alone.score(["p"], [text], {"answer": [i]}).total[0] for i, text in enumerate(texts)]
    np.testing.assert_array_equal(together.total, single)
    assert batch.failures == alone.failures


def test_raise_names_the_completion_and_keeps_the_cause() -> None:
    with pytest.raises(RewardError, match=r"'Faulty' is nan for completion 1; a finite number or None") as caught:
        Scorer(Faulty("nan")).score(PROMPTS, COMPLETIONS)
    assert caught.value.index == 1
    with pytest.raises(RewardError, match="raised KeyError: 'lost'") as caught:
        Scorer(Faulty("raises")).score(PROMPTS, COMPLETIONS)
    assert isinstance(caught.value.__cause__, KeyError)


def test_two_kinds_warn_once_each() -> None:
    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(text) for text in completions]

    scorer = Scorer(reward, "skip")
    with pytest.warns(TextGymWarning) as caught:
        scorer.score(["p"] * 4, ["nan", "1", "inf", "nan"])
    assert sorted("nan for" in str(warning.message) for warning in caught) == [False, True]
    assert scorer.failures == {"nan": 2, "inf": 1}
    assert scorer.scored == 4


def everything_seen(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Pays 1 for a row that is as the caller gave it."""
    rows = zip(prompts, completions, columns["completion_ids"], columns["answer"], strict=True)
    true = zip(PROMPTS, COMPLETIONS, COLUMNS["completion_ids"], COLUMNS["answer"], strict=True)
    return [float(row == right) for row, right in zip(rows, true, strict=True)]


def test_later_rewards_of_a_composition_see_the_originals() -> None:
    both = Weighted({"first": Faulty("changes"), "second": everything_seen, "third": Faulty("changes")})
    scores = Scorer(both).score(PROMPTS, COMPLETIONS, COLUMNS)
    np.testing.assert_array_equal(scores.terms["second"], [1, 1, 1])
    np.testing.assert_array_equal(scores.terms["first"], scores.terms["third"])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)


def shared(one: Any, other: Any) -> bool:
    """Whether two equal values have a list or dict in common."""
    if isinstance(one, dict):
        return one is other or any(shared(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return (one is other and isinstance(one, list)) or any(map(shared, one, other))
    return False


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.lists(JSON_VALUES, max_size=4))
def test_a_reward_gets_copies_all_the_way_down(column: list[Any]) -> None:
    for given_column in (column, tuple(column), [(value, [value]) for value in column]):
        copied = copy_columns({"column": given_column})["column"]
        assert copied == list(given_column)
        assert not shared(copied, list(given_column))


def test_columns_that_hold_themselves_or_objects_are_copied_too() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    deep: Any = []
    for _ in range(50):
        deep = [deep, {"a": deep}] if len(str(deep)) < 200 else [deep]
    counter = Counter("ab")
    copied = copy_columns({"column": [loop, deep, counter]})["column"]
    assert copied[1] == deep
    assert not shared(copied[1], deep)
    assert copied[2] == counter
    assert copied[2] is not counter
    copied[0].append(2)
    assert len(loop) == 2


@pytest.mark.slow
@pytest.mark.parametrize("timeout", [None, 20.0])
def test_whatever_is_raised_but_an_interrupt_is_a_failure(timeout: float | None) -> None:
    scorer = Scorer(Faulty("leaves"), "penalty", -1.0, timeout)
    with pytest.warns(TextGymWarning, match="raised GeneratorExit: gone"):
        np.testing.assert_array_equal(scorer.score(["p"] * 2, ["abc", "bad"]).total, [3.0, -1.0])
    assert scorer.failures == {"raises": 1}


@pytest.mark.slow
@pytest.mark.parametrize("timeout", [None, 20.0])
def test_an_exit_is_a_failure_and_an_interrupt_is_none(timeout: float | None) -> None:
    scorer = Scorer(Faulty("exits"), "penalty", -1.0, timeout)
    with pytest.warns(TextGymWarning, match="raised SystemExit: 0"):
        np.testing.assert_array_equal(scorer.score(["p"] * 2, ["abc", "bad"]).total, [3.0, -1.0])
    assert scorer.failures == {"raises": 1}
    with pytest.raises(RewardError, match="raised SystemExit: 0"):
        Scorer(Faulty("exits"), timeout=timeout).score(["p"], ["bad"])
    stopped = Scorer(Faulty("interrupts"), "skip", timeout=timeout)
    with pytest.raises(KeyboardInterrupt):
        stopped.score(["p"], ["bad"])
    assert not stopped.failures
    np.testing.assert_array_equal(stopped.score(["p"], ["abc"]).total, [3.0])
    for each in (scorer, stopped):
        each.close()


async def cancelled(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    raise asyncio.CancelledError


def test_a_coroutine_that_was_cancelled_is_a_failure() -> None:
    scorer = Scorer(cancelled, "skip")
    with pytest.warns(TextGymWarning, match="its coroutine was cancelled"):
        np.testing.assert_array_equal(scorer.score(["p"], ["a"]).total, [0.0])
