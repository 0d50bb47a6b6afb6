"""How long the texts of a preference file are, and what about them may mislead a reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from textgym.preferences.data import Demonstration, Ranking
from textgym.preferences.hh import has_further_turns


def text_lengths(rows: Sequence[Ranking] | Sequence[Demonstration]) -> dict[str, dict[str, float]]:
    """Mean, median and longest length in characters: of prompts and completions, or of the best and worst ones.

    Returns: which texts -> "mean", "median", "max"; empty without rows.
    """
    texts: dict[str, list[str]] = {}
    for row in rows:
        parts = {"prompt": row.prompt}
        if isinstance(row, Ranking):
            parts |= {"best": row.completions[0], "worst": row.completions[-1]}
        else:
            parts["completion"] = row.completion
        for name, text in parts.items():
            texts.setdefault(name, []).append(text)
    return {name: _summary([len(text) for text in group]) for name, group in texts.items()}


def longer_wins(rankings: Sequence[Ranking]) -> float:
    """Share of all pairs in which the longer text is the preferred one; equally long ones count half."""
    wins = total = 0.0
    for ranking in rankings:
        lengths = [len(text) for text in ranking.completions]
        total += len(lengths) * (len(lengths) - 1) / 2
        wins += sum(
            1.0 if length > later else 0.5 if length == later else 0.0
            for i, length in enumerate(lengths)
            for later in lengths[i + 1 :]
        )
    return wins / total if total else math.nan


def several_turns(rankings: Sequence[Ranking]) -> int:
    """Rankings with a completion that goes on into further turns of an HH dialogue."""
    return sum(any(map(has_further_turns, ranking.completions)) for ranking in rankings)


def _summary(lengths: list[int]) -> dict[str, float]:
    return {
        "mean": float(np.mean(lengths)),
        "median": float(np.median(lengths)),
        "max": float(np.max(lengths)),
    }
