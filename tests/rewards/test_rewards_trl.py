"""The same reward works in TRL's trainers and here, both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from textgym.rewards import Scorer, make_reward

SPECS: list[Any] = [
    "length",
    "charset",
    {"name": "contains_all", "words": ["red"]},
    {"name": "length_penalty", "limit": 2},
    {"name": "missing_stop", "stop_ids": [1]},
    {"name": "clipped", "reward": "length"},
    {"name": "running_norm", "reward": "length"},
    {"name": "weighted", "rewards": {"a": "length", "b": {"name": "missing_stop", "stop_ids": [1]}}},
]


def trl_style(
    completions: list[str], completion_ids: list[list[int]], answer: list[str], **kwargs: Any
) -> list[Any]:
    """A reward in TRL's manner: the keywords it needs, **kwargs, None where it does not apply."""
    rows = zip(completions, completion_ids, answer, strict=True)
    return [None if not right else float(right in text) + 0.1 * len(ids) for text, ids, right in rows]


def test_a_trl_reward_works_here() -> None:
    columns = {"completion_ids": [[1, 2], [3], [4, 5, 6]], "answer": ["red", "", "blue"]}
    scores = Scorer(trl_style).score(["p"] * 3, ["a red hat", "red", "red"], columns)
    np.testing.assert_allclose(scores.total, [1.2, 0.0, 0.3])
    np.testing.assert_allclose(scores.terms["trl_style"], [1.2, np.nan, 0.3])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_our_rewards_work_in_trl(spec: Any) -> None:
    reward = make_reward(spec)
    # GRPOTrainer logs under __name__ and passes everything by keyword, its own state and functions too.
    assert isinstance(reward.__name__, str)
    result = reward(
        prompts=["p", "q"],
        completions=["a red hat", "red"],
        completion_ids=[[5, 6, 1], [5]],
        answer=["x", "y"],
        trainer_state=object(),
        log_metric=print,
        environments=None,
    )
    assert isinstance(result, list)
    assert len(result) == 2
    assert all(isinstance(value, float) for value in result)
