"""What a run is started with, and the versions that its numbers depend on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_args

from textgym.messages import MOST_ROWS, not_one_of, shown
from textgym.prompts import HeldOut
from textgym.sources import source_digest, source_folder

_PACKAGES = (
    "textgym",
    "gymnasium",
    "numpy",
    "tokenizers",
    "torch",
    "transformers",
    "stable-baselines3",
    "sb3-contrib",
)


MOST = 2**53
"""Of a count: beyond it, floats and integers part."""


@dataclass(frozen=True)
class TrainSettings:
    """What a run is: its config.json.

    Args:
        id: of the environment. env: its options, JSON values.
        agent: a registered name or `module:Class`. config: the agent's settings.
        episodes: the budget.
        eval_every: iterations between evaluations on held-out prompts; 0 evaluates before and after only.
        eval_points: evaluations on the way at even distances over the budget of episodes, each with a checkpoint, in
            place of `eval_every`; 0: as `eval_every` says.
        eval_per_prompt: completions per prompt of the evaluations on the way.
        final_per_prompt: completions per prompt of the first and the last evaluation.
        optimum_per_prompt: completions per prompt that J* is estimated from.
        save_every: iterations between checkpoints; 0: at `eval_points` and at the end only.
        samples: prompts whose completions each evaluation writes to samples.jsonl.
        split: whose prompts are evaluated: "eval", or "tune" to choose settings on.
    Raises: ValueError for a number out of range, or an unknown split.
    """

    id: str
    agent: str
    episodes: int
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    eval_every: int = 10
    eval_per_prompt: int = 2
    final_per_prompt: int = 16
    optimum_per_prompt: int = 64
    save_every: int = 10
    samples: int = 8
    eval_points: int = 0
    split: HeldOut = "eval"

    def __post_init__(self) -> None:
        least = {"eval_every": 0, "eval_points": 0, "save_every": 0, "samples": 0}
        most = dict.fromkeys(("eval_per_prompt", "final_per_prompt", "optimum_per_prompt"), MOST_ROWS)
        for name in ("episodes", *most, *least):
            value, lowest, highest = getattr(self, name), least.get(name, 1), most.get(name, MOST)
            integer = isinstance(value, int) and not isinstance(value, bool)
            if not integer or not lowest <= value <= highest:
                raise ValueError(f"{name}={shown(value)}: allowed is an integer in {lowest}..{highest}")
        for name, kind, allowed in (
            ("id", str, "a text"),
            ("agent", str, "a text"),
            ("env", dict, "a JSON object"),
            ("config", dict, "a JSON object"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}={getattr(self, name)!r:.80}: allowed is {allowed}")
        check_split(self.split)


def check_split(split: object) -> None:
    """Raises: ValueError unless it is the name of a held-out split."""
    if split not in get_args(HeldOut):
        raise ValueError(not_one_of("split", split, get_args(HeldOut)))


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on; "source" is `source_digest`, which `textgym --version` prints.

    Raises: ValueError if the packages come from two checkouts.
    """
    source_folder()
    found = {
        "source": source_digest(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
