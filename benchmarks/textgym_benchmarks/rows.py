"""What the measuring scripts share: the optimum that they measure against, and a line of JSON for every result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from textgym_agents.registry import make_env

from textgym.evaluate import Optimum
from textgym.references import make_reference
from textgym_benchmarks.optima import work_out


def optimum_of(env_id: str, per_prompt: int) -> Optimum:
    """J* on the held-out prompts of an environment, solved where it can be, else estimated once for all.

    Raises: SystemExit where there is none: at beta = 0 without an exact solution.
    """
    task = make_env(env_id, 1).unwrapped.task
    optimum = work_out(task, make_reference(task), task.beta, per_prompt)
    if optimum is None:
        raise SystemExit(f"{env_id}: at beta = 0 it has no optimum that could be estimated")
    return optimum


def keep(row: dict[str, Any], out: Path | None) -> None:
    """Prints a row to standard error as a line of JSON, and appends it to a file."""
    line = json.dumps(row)
    Console(stderr=True).print_json(line, indent=None)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
