"""Cells for tests of the runner: quick ones, ones that fail, die or are interrupted; workers import them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from textgym_benchmarks.suite import Cell, Evaluation, Suite

from textgym.interrupts import first_interrupt


def tiny_suite(agents: tuple[str, ...] = ("lm-ppo", "rloo"), seeds: int = 2) -> Suite:
    cells = [Cell("textgym/Bandit-v0", agent, 64, seed) for agent in agents for seed in range(seeds)]
    return Suite("tiny", tuple(cells), "For tests.", Evaluation(points=1, per_prompt=1))


def value_of(cell: Cell) -> float:
    return len(cell.agent) + cell.seed / 8


def quick(cell: Cell, settings: Evaluation, folder: Path, optima: Path) -> dict[str, Any]:
    """A result that depends on the cell alone; counts its calls in a file."""
    with (folder / "calls").open("a") as calls:
        calls.write("x")
    print("this must not reach the answers")
    estimate = dict.fromkeys(("mean", "low", "high"), value_of(cell))
    names = ("reward", "gold", "kl", "objective", "optimality", "entropy", "length")
    side = dict.fromkeys(names, estimate) | dict.fromkeys(("stop_rate", "distinct_1", "distinct_2"), 0.5)
    return {
        "format": 1,
        "cell": cell.to_json(),
        "family": "diagnostics",
        "status": "done",
        "error": None,
        "measures": {
            "before": side,
            "after": side,
            "optimum": None,
            "curve": [{"episode": 0, "tokens": 0, "optimality": value_of(cell)}],
            "to_half": None,
            "to_nine_tenths": {"episodes": 1 / 3, "tokens": 2.0},
            "episodes": cell.episodes,
            "tokens": 100,
            "iterations": 1,
            "samples": [{"prompt": "p", "before": {"completion": "a", "reward": 0.0}, "after": None}],
        },
        "timing": {"seconds": 1.0, "curve_seconds": [0.0]},
        "versions": {"python": "3"},
        "machine": "none",
    }


def rloo_fails(cell: Cell, *rest: Any) -> dict[str, Any]:
    if cell.agent == "rloo":
        raise RuntimeError("no\nluck")
    return quick(cell, *rest)


def rloo_dies(cell: Cell, *rest: Any) -> dict[str, Any]:
    if cell.agent == "rloo":
        print("my last words")
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(cell, *rest)


def rloo_dies_once(cell: Cell, settings: Evaluation, folder: Path, optima: Path) -> dict[str, Any]:
    if cell.agent == "rloo" and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(cell, settings, folder, optima)


def rloo_is_interrupted(cell: Cell, *rest: Any) -> dict[str, Any]:
    if cell.agent == "rloo":
        raise KeyboardInterrupt
    return quick(cell, *rest)


def rloo_is_asked_to_stop(cell: Cell, *rest: Any) -> dict[str, Any]:
    with first_interrupt(lambda: None):
        if cell.agent == "rloo":
            os.kill(os.getpid(), signal.SIGINT)
        return quick(cell, *rest)  # the signal came too late to stop it


def hangs(cell: Cell, settings: Evaluation, folder: Path, optima: Path) -> dict[str, Any]:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)
    raise AssertionError


# Jobs without a cell, for the engines alone.


def double(number: float) -> float:
    return 2 * number


def fail(number: float) -> float:
    raise ValueError(f"{number} is no good")


def die(number: float) -> float:
    os.write(2, b"my last words")
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_once(number: float, flag: str) -> float:
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def process() -> dict[str, Any]:
    return {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}


def no_json() -> object:
    return object()


def no_memory() -> None:
    raise MemoryError


def sources() -> dict[str, str]:
    """Where this process has its modules from."""
    import json
    import random

    import textgym

    return {module.__name__: str(module.__file__) for module in (textgym, random, json)}


def wait(flag: str) -> None:
    """Waits for an interrupt, which leaves a file."""
    Path(f"{flag}.begun").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        Path(flag).touch()
        raise


def until_there_is_space(cell: Cell, settings: Evaluation, folder: Path, optima: Path) -> dict[str, Any]:
    """Fails as safetensors does on a full disk."""
    if not (optima.parent / "space").exists():
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    return quick(cell, settings, folder, optima)
