"""Samples of shipped tasks that are committed with the package: J* of each is one value for everybody."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from textgym.importance import Samples, read_samples
from textgym.references import has_language_model, reference_model
from textgym.task import Task

FOLDER: Final = Path(__file__).parent / "tasks" / "optima"
"""Holds `NAME.SPLIT.safetensors`, written by `python -m textgym_benchmarks.optima`."""


def committed_samples(task: Task, split: str) -> Samples | None:
    """Return the committed samples of a task; None where there are none, or they are of another task.

    They are those of this task if its fingerprint is the same and its reward pays their completions the same.
    """
    path = samples_path(task, split)
    if task.noisy or not path.is_file():
        return None
    samples, key = _read(path)
    return samples if key == fingerprint(task, split) and pays_the_same(task, split, samples) else None


def pays_the_same(task: Task, split: str, samples: Samples) -> bool:
    """Return whether the task's reward pays the kept completions what it paid when they were drawn.

    A noisy reward cannot be compared: True.
    """
    if task.noisy:
        return True
    kept = samples.returns[:, :: samples.each].ravel()
    return bool(np.allclose(pay(task, split, samples), kept, rtol=1e-5, atol=1e-6))


def samples_path(task: Task, split: str) -> Path:
    """Return where a task's committed samples are, whether or not they are there."""
    return FOLDER / f"{task.name.lower()}.{split}.safetensors"


def fingerprint(task: Task, split: str) -> dict[str, Any]:
    """Return what tells one task from another, as JSON values: prompts, limits, gamma, reward, mask, reference.

    beta is not in it: samples are good for any.
    """
    asked = task.prompt_set(split)
    prompts = [[prompt.text, list(prompt.ids)] for prompt in task.encoded(split)]
    facts = {
        "prompts": _digest(json.dumps([prompts, asked.weights.tolist()]).encode()),
        "vocabulary": _digest(
            json.dumps([task.vocabulary.stop_ids, task.vocabulary.allowed.tolist()]).encode()
        ),
        "reference": _reference(task),
    }
    plain = {name: getattr(task, name) for name in ("name", "max_prompt_tokens", "max_new_tokens", "gamma")}
    return {**plain, **facts, "split": split, "reward": task.reward_name, "mask": _mask(task)}


def pay(task: Task, split: str, samples: Samples) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return what the reward pays for the kept completions, prompt by prompt, (P * K,) discounted, reward units."""
    count = samples.tokens.shape[1]
    rows = samples.tokens.reshape(-1, samples.tokens.shape[2])
    ids = [row[row >= 0].tolist() for row in rows]
    prompts = [prompt for prompt in task.encoded(split) for _ in range(count)]
    before = task.scorer.state_dict()
    try:
        judged = task.judge(split, prompts, ids)
    finally:
        task.scorer.load_state_dict(before)
    return judged.total * task.gamma ** (np.array([len(row) for row in ids]) - 1)


def _mask(task: Task) -> str | None:
    """The digest of the task's grammar; the type of a mask that has none."""
    if task.mask is None:
        return None
    grammar = getattr(task.mask, "grammar", None)
    return type(task.mask).__qualname__ if grammar is None else _digest(str(grammar).encode())


def _reference(task: Task) -> str:
    """The digest of the reference's weights; its name where it has none."""
    if not has_language_model(task):
        return str(task.reference)
    weights = sorted(Path(reference_model(task)).glob("*.safetensors"))
    return _digest_of_files(tuple(weights)) if weights else str(task.reference)


@lru_cache(maxsize=8)
def _digest_of_files(paths: tuple[Path, ...]) -> str:
    return _digest(b"".join(path.read_bytes() for path in paths))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


@lru_cache(maxsize=16)
def _read(path: Path) -> tuple[Samples, dict[str, Any]]:
    return read_samples(path)
