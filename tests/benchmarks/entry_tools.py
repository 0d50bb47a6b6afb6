"""Files of entries, and attempts of numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from textgym_benchmarks.leaderboard import Attempt, SeedOutcome

Write = Callable[..., Path]


def entry_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Yield what writes the file of an entry, whose module is forgotten in the end."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def written(name: str, code: str = "", **entry: object) -> Path:
        said = {"agent": "Own", "author": "Ada", "date": "2026-11-27", "description": "A tilt"} | entry
        own = "from benchmarks.fake_entries import Tilt\n\n\nclass Own(Tilt):\n    name = 'own'\n\n\n"
        path = tmp_path / f"{name}.py"
        path.write_text(code or f"{own}ENTRY = {said!r}\n")
        return path

    yield written
    for path in tmp_path.glob("*.py"):
        if str(getattr(sys.modules.get(path.stem), "__file__", "")) == str(path):
            del sys.modules[path.stem]


def attempt_of(
    scores: Sequence[float], own: Sequence[float | None], unit: Sequence[float | None] = (), first: int = 0
) -> Attempt:
    units = list(unit) or [10.0] * len(scores)
    return Attempt(
        "2026-11-27",
        "two cores",
        {"source": "0123456789ab"},
        tuple(SeedOutcome(first + seed, *pair) for seed, pair in enumerate(zip(scores, own, strict=True))),
        tuple(SeedOutcome(first + seed, 0.9, each) for seed, each in enumerate(units)),
    )
