"""Every fault a reward can have, under every `on_error`."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
from faulty_rewards import FAULTS, Faulty

from textgym.rewards import RewardError, Scorer, TextGymWarning

PROMPTS = ["one", "two", "three"]
COMPLETIONS = ["ok", "bad", "fine!"]  # 2, 3 and 5 characters
COLUMNS = {"completion_ids": [[1], [2, 3], [4]], "answer": ["a", ["b"], {"c": [1]}]}
KIND = {
    "raises": "raises", "nan": "nan", "inf": "inf", "-inf": "inf", "wrong_length": "wrong_length",
    "wrong_type": "wrong_type", "wrong_item": "wrong_type", "hangs": "timeout",
}  # fmt: skip


@pytest.mark.parametrize("on_error", ["raise", "skip", "penalty"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_the_chosen_outcome(fault: str, on_error: Any, capfd: Any) -> None:
    scorer = Scorer(Faulty(fault), on_error, penalty=-7.0, timeout=0.5 if fault == "hangs" else None)
    kept = copy.deepcopy((PROMPTS, COMPLETIONS, COLUMNS))
    try:
        if fault not in KIND:
            check_harmless(scorer, fault, capfd)
        elif on_error == "raise":
            with pytest.raises(RewardError) as caught:
                scorer.score(PROMPTS, COMPLETIONS, COLUMNS)
            assert caught.value.kind == KIND[fault]
            assert "Faulty" in str(caught.value)
            assert sum(scorer.failures.values()) >= 1
        else:
            check_failed(scorer, fault, 0.0 if on_error == "skip" else -7.0)
    finally:
        scorer.close()
    assert kept == (PROMPTS, COMPLETIONS, COLUMNS)


def check_harmless(scorer: Scorer, fault: str, capfd: Any) -> None:
    """Nothing to report: the numbers come out, an abstention pays 0 and its term is NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = scorer.score(PROMPTS, COMPLETIONS, COLUMNS)
    abstains = fault == "none"
    np.testing.assert_array_equal(scores.total, [2, 0 if abstains else 3, 5])
    np.testing.assert_array_equal(scores.terms["Faulty"], [2, np.nan if abstains else 3, 5])
    assert not scorer.failures
    assert ("a line from the reward" in capfd.readouterr().out) == (fault == "prints")


def check_failed(scorer: Scorer, fault: str, pay: float) -> None:
    """Only the bad completion fails, except that a hang costs the whole batch."""
    with pytest.warns(TextGymWarning, match="Faulty"):
        scores = scorer.score(PROMPTS, COMPLETIONS, COLUMNS)
    hangs = fault == "hangs"
    np.testing.assert_array_equal(scores.total, [pay] * 3 if hangs else [2, pay, 5])
    np.testing.assert_array_equal(scores.terms["Faulty"], [np.nan] * 3 if hangs else [2, np.nan, 5])
    assert scorer.failures == {KIND[fault]: 3 if hangs else 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the second failure of a kind is counted, not warned about
        if not hangs:
            scorer.score(["p"], ["bad"], {})
            assert scorer.failures == {KIND[fault]: 2}
        np.testing.assert_array_equal(scorer.score(["p"], ["good"], {}).total, [4])


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "hangs"])
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
    with pytest.raises(
        RewardError, match=r"'Faulty' is nan for completion 1; a finite number or None"
    ) as caught:
        Scorer(Faulty("nan")).score(PROMPTS, COMPLETIONS)
    assert caught.value.index == 1
    with pytest.raises(RewardError, match="raised KeyError: 'lost'") as caught:
        Scorer(Faulty("raises")).score(PROMPTS, COMPLETIONS)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(RewardError, match="returned 2 values for 3 completions"):
        Scorer(Faulty("wrong_length")).score(PROMPTS, COMPLETIONS)


def test_two_kinds_warn_once_each() -> None:
    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(text) for text in completions]

    scorer = Scorer(reward, "skip")
    with pytest.warns(TextGymWarning) as caught:
        scorer.score(["p"] * 4, ["nan", "1", "inf", "nan"])
    assert sorted("nan for" in str(warning.message) for warning in caught) == [False, True]
    assert scorer.failures == {"nan": 2, "inf": 1}
    assert scorer.scored == 4
