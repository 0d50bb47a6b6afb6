"""Reading what a user gives to the vector environment's reset: seeds, chosen prompts, the reset mask."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from textgym.options import RESET_OPTIONS, check_options, chosen_prompt
from textgym.state import Prompt
from textgym.task import Task


@dataclass(frozen=True)
class VectorReset:
    """A checked request to reset.

    Args:
        rows: the sub-environments concerned.
        seeds: one per sub-environment, None where the generator goes on.
        prompts: the prompts that were chosen, by row.
    """

    rows: list[int]
    seeds: list[int | None]
    prompts: dict[int, Prompt]


def read_reset(task: Task, split: str, num_envs: int, seed: Any, options: Any) -> VectorReset:
    """Check the arguments of `reset`. Raises: ValueError or TypeError, naming the argument and what is allowed."""
    choice = check_options(options, (*RESET_OPTIONS, "reset_mask"))
    rows = list(range(num_envs))
    if "reset_mask" in choice:
        rows = _masked_rows(choice.pop("reset_mask"), num_envs)
    seeds = _seeds(seed, num_envs)
    prompts: dict[int, Prompt] = {}
    for name, value in choice.items():
        values = _per_row(name, value, num_envs)
        prompts = {row: chosen_prompt(task, split, name, values[row]) for row in rows}
    return VectorReset(rows, seeds, prompts)


def _masked_rows(mask: Any, num_envs: int) -> list[int]:
    if (
        not isinstance(mask, np.ndarray)
        or mask.dtype != np.bool_
        or mask.shape != (num_envs,)
        or not mask.any()
    ):
        what = f"{mask.dtype} array {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(
            f"option reset_mask ({what}): allowed is a bool array ({num_envs},) with at least one True"
        )
    rows: list[int] = np.flatnonzero(mask).tolist()
    return rows


def _seeds(seed: Any, num_envs: int) -> list[int | None]:
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str):
        if len(seed) != num_envs:
            raise ValueError(
                f"seed: has {len(seed)} values, allowed is one for each of {num_envs} sub-environments"
            )
        return [None if value is None else operator.index(value) for value in seed]
    first = operator.index(seed)
    return [first + row for row in range(num_envs)]


def _per_row(name: str, value: Any, num_envs: int) -> Sequence[Any]:
    """One value for each sub-environment; a single value is for all of them."""
    if isinstance(value, str) or np.ndim(value) == 0:
        return [value] * num_envs
    if np.shape(value) != (num_envs,):
        raise ValueError(
            f"option {name}: has shape {np.shape(value)}, allowed is one value, or ({num_envs},)"
        )
    values: Sequence[Any] = value
    return values
