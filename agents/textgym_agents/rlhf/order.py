"""The order in which rows are trained on, laid out beforehand, and the split by prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def lay_out(lengths: Sequence[int], batch: int, epochs: int, seed: int) -> NDArray[np.int64]:
    """The rows of all epochs, one after the other: what step s trains on depends on nothing but s.

    Within a step, rows are sorted by length, the longest first, so that its parts are padded little. Which rows a
    step has is independent of their lengths.

    Args:
        lengths: tokens of every row.
        batch: rows per step.
    Returns: (epochs * rows,) row numbers.
    """
    generator = np.random.default_rng([seed, 1])
    order = np.concatenate([generator.permutation(len(lengths)) for _ in range(epochs)])
    size = np.asarray(lengths)
    parts = [order[start : start + batch] for start in range(0, len(order), batch)]
    return np.concatenate([part[np.argsort(-size[part], kind="stable")] for part in parts])


def split_by_prompt(prompts: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers to train on and to hold out; rows with the same prompt are on the same side.

    Args:
        prompts: of every row.
        share: of the different prompts that is held out; at least one if it is not 0.
    Raises: ValueError if there are too few prompts for rows on both sides.
    """
    names = sorted(set(prompts))
    count = max(1, round(share * len(names))) if share else 0
    if count >= len(names):
        raise ValueError(
            f"held_out={share}: the data have {len(names)} different prompts, so none is left to train on; "
            "allowed are more prompts, or held_out=0"
        )
    chosen = np.random.default_rng([seed, 0]).permutation(len(names))[:count]
    away = {names[index] for index in chosen}
    held_out = [row for row, prompt in enumerate(prompts) if prompt in away]
    return [row for row, prompt in enumerate(prompts) if prompt not in away], held_out
