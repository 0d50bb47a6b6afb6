"""J* of the cells' tasks: solved or estimated once for all cells that share it, and kept in a folder."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from textgym_agents.settings import versions
from textgym_agents.storage import read_json, write_json

from textgym.evaluate import Estimate, Optimum, estimate_optimum, exact_optimum
from textgym.lm.reference import Reference
from textgym.solve import UnsolvableError
from textgym.task import Task
from textgym_benchmarks.suite import canonical

SOLVED = "diagnostics"
"""The family whose tasks are solved exactly where they are small enough."""


def kept_optimum(
    folder: Path,
    key: dict[str, Any],
    task: Task,
    reference: Reference,
    beta: float,
    per_prompt: int,
    split: str = "eval",
) -> Optimum | None:
    """J* and J of the reference on the prompts of a split, from the folder or worked out and written there.

    It depends on the arguments and on TextGym's version alone: workers that do so at the same time write the same file.

    Args:
        folder: of one file for each optimum. key: says which task and reference it is, JSON values.
        per_prompt: completions of the reference, where J* is estimated.
    Returns: None where J* can be neither solved nor estimated: at beta = 0 without an exact solution.
    """
    # Another version may have another task of this name.
    key = key | {
        "beta": beta,
        "split": split,
        "per_prompt": per_prompt,
        "textgym": versions().get("textgym"),
    }
    name = f"{task.name.lower()}.{hashlib.sha256(canonical(key).encode()).hexdigest()[:16]}.json"
    path = folder / name
    if path.exists():
        return read_optimum(path, key)
    optimum = work_out(task, reference, beta, per_prompt, split)
    if optimum is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key} | _as_json(optimum))
    return optimum


def read_optimum(path: Path, key: dict[str, Any]) -> Optimum:
    """What `kept_optimum` has written. Raises: ValueError if the file holds another one, or none."""
    data = read_json(path)
    if data.get("key") != key:
        raise ValueError(f"{path}: holds the optimum of {data.get('key')!r:.200}, allowed is {key!r:.200}")
    try:
        if data["effective_samples"] is None:
            return Optimum.certain(data["value"]["mean"], data["reference"]["mean"], data["beta"])
        return Optimum(
            _estimate(data["value"]),
            _estimate(data["reference"]),
            data["beta"],
            np.array(data["replicates"], dtype=np.float64),
            data["effective_samples"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no optimum is there ({type(error).__name__}: {error})") from error


def work_out(
    task: Task, reference: Reference, beta: float, per_prompt: int, split: str = "eval"
) -> Optimum | None:
    """`kept_optimum` without a folder."""
    if task.family == SOLVED:
        try:
            return exact_optimum(task, reference, beta=beta, split=split)
        except UnsolvableError:
            pass  # samples serve
    if not beta > 0:
        return None
    # Always the same samples, so that every cell of a task is measured against the same J*.
    return estimate_optimum(task, reference, beta=beta, split=split, per_prompt=per_prompt, seed=0)


def _as_json(optimum: Optimum) -> dict[str, Any]:
    data: dict[str, Any] = {name: asdict(getattr(optimum, name)) for name in ("value", "reference")}
    replicates = None if optimum.exact else optimum.replicates.tolist()
    data |= {"beta": optimum.beta, "effective_samples": optimum.effective_samples, "replicates": replicates}
    return data


def _estimate(data: dict[str, Any]) -> Estimate:
    return Estimate(*(float("nan") if data[name] is None else data[name] for name in ("mean", "low", "high")))
