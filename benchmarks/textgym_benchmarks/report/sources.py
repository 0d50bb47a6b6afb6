"""What a report is made of: results from any number of places, and what is said of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textgym.files import read_json
from textgym_benchmarks.results import Result, load_results
from textgym_benchmarks.results_format import check_suite


@dataclass(frozen=True)
class Sources:
    """Results and their origin.

    Args:
        results: of all places, each cell once.
        suite: name, description, date and settings of the first place that has them.
        repeated: keys of cells that several places hold; the first result that is done is kept.
    """

    results: tuple[Result, ...]
    suite: Mapping[str, Any]
    repeated: tuple[str, ...]


def read_sources(paths: Sequence[Path]) -> Sources:
    """Reads results.

    Args:
        paths: what `load_results` takes, at least one.
    Raises: ValueError for no path, no result, or whatever `load_results` raises.
    """
    if not paths:
        raise ValueError("RUN: nothing given; allowed is at least one folder or file of results")
    kept: dict[str, Result] = {}
    repeated = []
    for path in paths:
        for result in load_results(path):
            key = result.cell.key
            if key in kept:
                repeated.append(key)
            if key not in kept or (kept[key].status != "done" and result.status == "done"):
                kept[key] = result
    if not kept:
        raise ValueError(f"RUN {', '.join(map(str, paths))}: no result in it")
    suites = [suite for path in paths if (suite := _suite_of(path))]
    suite = dict(suites[0]) if suites else {"name": Path(paths[0]).resolve().name}
    if len(suites) > 1:
        suite["name"] = " and ".join(dict.fromkeys(str(each.get("name")) for each in suites))
        suite["description"] = ""
    return Sources(tuple(kept.values()), suite, tuple(dict.fromkeys(repeated)))


def _suite_of(path: Path) -> dict[str, Any]:
    """What suite.json or the head of a file of results says; {} where there is neither."""
    file = path / "suite.json" if path.is_dir() else path
    if not file.is_file():
        return {}
    data = read_json(file)
    found = data if path.is_dir() else data.get("suite", {})
    try:
        check_suite(found)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return {name: value for name, value in found.items() if name != "cells"}
