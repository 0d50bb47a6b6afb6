"""Results of cells: read from a suite's folder, a cell's, a run's or a file of many; written compactly to one file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from textgym_agents.training.folder import RunFolder

from textgym.checks import JsonObject
from textgym.commands.console import script
from textgym.files import make_folder, plain, read_json, write_text
from textgym_benchmarks.results.format import FORMAT, check_result, check_suite
from textgym_benchmarks.results.rows import read_run, so_far
from textgym_benchmarks.suite import Cell
from textgym_benchmarks.suite_folder import cell_folder, cell_result, family_of, read_suite

ALLOWED = "a suite's folder, a cell's, a run's of `textgym train`, or a file of results"
_BEGUN = ("suite.json", "config.json", "result.json")
_ATTRIBUTES = ("family", "status", "error", "measures", "timing", "versions", "machine")


@dataclass(frozen=True)
class Result:
    """The outcome of one cell; the attributes are those of its result.json.

    Args:
        cell: what was run.
        family: of the task.
        status: "done", "failed" or "missing": not run yet, or not to its end.
        error: {"type", "message", "traceback", "attempts"} of a failed cell, else None.
        measures, timing: of a done cell, else None.
        versions, machine: where it ran.
        folder: the cell's; None where the result is from a file of many.
        so_far: of a missing one that has begun, what `textgym_benchmarks.results.rows.so_far` tells; it is not saved.
    """

    cell: Cell
    family: str
    status: str
    error: Mapping[str, Any] | None = field(default=None, hash=False)
    measures: Mapping[str, Any] | None = field(default=None, hash=False)
    timing: Mapping[str, Any] | None = field(default=None, hash=False)
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    machine: str = ""
    folder: Path | None = None
    so_far: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def known(self) -> JsonObject:
        """What is measured: at the end, or so far; {} where nothing is."""
        return dict(self.measures or (self.so_far if self.so_far and "after" in self.so_far else {}))

    @property
    def beta(self) -> float | None:
        """Reward units per nat that J is measured with; None where nothing tells it."""
        optimum = self.known.get("optimum")
        found = optimum["beta"] if optimum else (self.so_far or {}).get("beta")
        return None if found is None else float(found)

    @property
    def state(self) -> str:
        """The status, or "running" or "interrupted" in place of "missing" where the run has begun."""
        return str(self.so_far["state"]) if self.so_far else self.status

    def to_json(self) -> JsonObject:
        """Return what result.json holds."""
        values = {name: getattr(self, name) for name in _ATTRIBUTES}
        return {"format": FORMAT, "cell": self.cell.to_json(), **values}

    @classmethod
    def from_json(cls, data: JsonObject, folder: Path | None = None) -> Result:
        """Return the result that result.json holds. Raises: ValueError with the entry that is wrong."""
        check_result(data)
        values = {name: data[name] for name in _ATTRIBUTES if name in data}
        return cls(Cell.from_json(data["cell"]), **values, folder=folder, so_far=data.get("so_far"))


def load_results(path: str | Path) -> list[Result]:
    """Read results.

    Args:
        path: a suite's folder (a cell without a result has status "missing"), a cell's folder, the run folder of
            `textgym train`, or a file that `export_results` wrote.
    Returns: one per cell, in the order of the suite.
    Raises: ValueError naming the file and what is wrong with it.
    """
    place = Path(path)
    if place.is_dir():
        if (place / "suite.json").exists():
            return [_cell_result(place, cell) for cell in read_suite(place).cells]
        if (place / "config.json").exists():
            return [_checked(place, read_run(place), place)]
        if (place / "result.json").exists():
            return [_checked(place / "result.json", read_json(place / "result.json"), place)]
        raise ValueError(f"{path}: a folder without suite.json, config.json or result.json; allowed is {ALLOWED}")
    if not place.exists():
        raise ValueError(f"{path}: there is nothing; allowed is {ALLOWED}")
    data = read_json(place)
    if data.get("format") != FORMAT or not isinstance(data.get("results"), list):
        raise ValueError(f'{path}: no file of results; allowed is {{"format": {FORMAT}, "results": [...]}}')
    with _named(path):
        check_suite(data.get("suite", {}))
    return [_checked(f"{path}, result {number}", row, None) for number, row in enumerate(data["results"])]


def _cell_result(suite: Path, cell: Cell) -> Result:
    folder = cell_folder(suite, cell)
    data = cell_result(folder)
    if data is None:
        begun = None
        with contextlib.suppress(ValueError, OSError):  # `bench` may be starting it anew at this moment
            begun = so_far(folder / "run") if (folder / "run" / "config.json").exists() else None
        return Result(cell, family_of(cell.id), "missing", folder=folder, so_far=begun)
    result = _checked(folder / "result.json", data, folder)
    if result.cell.key != cell.key:
        raise ValueError(f"{folder / 'result.json'}: is of another cell ({result.cell.key}) than its folder")
    return replace(result, cell=cell)  # names in tables are those of the suite


def _checked(where: object, data: JsonObject, folder: Path | None) -> Result:
    with _named(where):
        return Result.from_json(data, folder)


@contextlib.contextmanager
def _named(where: object) -> Iterator[None]:
    """Put a place before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def suite_summary(path: str | Path) -> JsonObject:
    """Return what is said of all cells: name, description, settings, versions, date; {} where nothing is.

    Args:
        path: what `load_results` takes.
    Raises: ValueError naming the file and what is wrong with it.
    """
    place = Path(path)
    file = place / "suite.json" if place.is_dir() else place
    if not file.is_file():
        return {}
    data = read_json(file)
    found = data if place.is_dir() else data.get("suite", {})
    with _named(file):
        check_suite(found)
    return {name: value for name, value in found.items() if name != "cells"}


@dataclass(frozen=True)
class Sources:
    """Results and their origin.

    Args:
        results: of all places, each cell once.
        suite: name, description, date and settings of the first place that has them.
        repeated: keys of cells that several places hold; kept is the first that is done, else that has failed, else
            that has begun.
        unread: why a place is not read, where that is allowed.
    """

    results: tuple[Result, ...]
    suite: JsonObject
    repeated: tuple[str, ...]
    unread: tuple[str, ...] = ()


def _stage(result: Result) -> int:
    """Return how far a cell has come."""
    if result.status == "missing":
        return int(result.so_far is not None)
    return 3 if result.status == "done" else 2


def read_sources(paths: Sequence[Path], patient: bool = False) -> Sources:
    """Read what `load_results` takes.

    Args:
        patient: a place that cannot be read is left out: a run may be about to start there.
    Raises: ValueError for no path; unless `patient`, also for no result, or as `load_results` does.
    """
    if not paths:
        raise ValueError("RUN: nothing given; allowed is at least one folder or file of results")
    kept: dict[str, Result] = {}
    repeated, unread, suites, split = [], [], [], ""
    for path in paths:
        try:
            results, suite = load_results(path), suite_summary(path)
            if (own := _split(path, suite)) != (split := split or own):
                raise ValueError(
                    f"{path}: measured on the split {own}, and what stands before it on {split}; allowed is one"
                )
        except (ValueError, OSError) as error:
            if not patient:
                raise
            begun = path.is_file() or any((path / name).exists() for name in _BEGUN)
            unread.append(str(error) if begun else f"{path}: no run there yet")
            continue
        suites += [suite] if suite else []
        for result in results:
            key = result.cell.key
            if key in kept:
                repeated.append(key)
            if key not in kept or _stage(result) > _stage(kept[key]):
                kept[key] = result
    if not (kept or patient):
        raise ValueError(f"RUN {', '.join(map(str, paths))}: no result in it")
    suite = suites[0] if suites else {"name": _joined(path.resolve().name for path in paths)}
    if len(suites) > 1:
        suite |= {"name": _joined(str(each.get("name")) for each in suites), "description": ""}
    return Sources(tuple(kept.values()), suite, tuple(dict.fromkeys(repeated)), tuple(unread))


def _joined(names: Iterable[str]) -> str:
    """Return names as a title, each once: "a", "a and b", "a, b and c"."""
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} and {last}" if others else last


def _split(path: Path, suite: JsonObject) -> str:
    """Return whose prompts the results of a place are about, "eval" where nothing says so."""
    for run in (path, path / "run"):  # of `textgym train`, or a cell's
        if not suite and (run / "config.json").is_file():
            suite = {"evaluation": RunFolder(run).config()}
    return str((suite.get("evaluation") or {}).get("split", "eval"))


def export_results(results: Iterable[Result], path: str | Path, suite: Mapping[str, Any] | None = None) -> None:
    """Write results to one file, numbers to 6 significant digits, one result a line, without tracebacks.

    Args:
        path: the file; it is replaced as a whole.
        suite: what is to be said of all results: name, description, date.
    """
    lines = []
    for result in results:
        data = plain(result.to_json())
        if data["error"] is not None:
            data["error"]["traceback"] = ""  # it is about the machine, and long
        lines.append(json.dumps(_rounded(data), allow_nan=False, separators=(",", ":")))
    head = json.dumps(plain(suite or {}), allow_nan=False)
    text = ",\n".join(lines)
    write_text(Path(path), f'{{"format": {FORMAT}, "suite": {head}, "results": [\n{text}\n]}}\n')


def _rounded(data: object) -> object:
    if isinstance(data, float):
        return float(f"{data:.6g}")
    if isinstance(data, dict):
        # The settings of a cell are what they are: its key depends on them.
        return {name: value if name == "cell" else _rounded(value) for name, value in data.items()}
    return [_rounded(value) for value in data] if isinstance(data, list) else data


def updated(results: Iterable[Result], newer: Iterable[Result]) -> list[Result]:
    """Return results in which those of cells that were run again stand in place of the old ones.

    Args:
        newer: of some of the same cells; a missing result replaces nothing.
    Raises: ValueError for a cell that is not among `results`.
    """
    by_key = {result.cell.key: result for result in results}
    for result in newer:
        if result.cell.key not in by_key:
            raise ValueError(f"cell {result.cell.key}: it is not among the results that are to be updated")
        if result.status != "missing":
            by_key[result.cell.key] = result
    return list(by_key.values())


@dataclass(frozen=True)
class Export:
    """Write the results of a suite's folder to one file, small enough to commit."""

    run: tyro.conf.Positional[Path]
    """The suite's folder, or a file of results."""
    out: Path
    """The file; it may be the one that is read."""
    update: tuple[Path, ...] = ()
    """Folders of suites in which some of the cells were run again: those results count."""


def main() -> None:
    """Run `python -m textgym_benchmarks.results.store`."""
    settings = tyro.cli(Export, description=Export.__doc__)
    results = load_results(settings.run)
    for newer in settings.update:
        results = updated(results, load_results(newer))
    make_folder(settings.out.parent)
    export_results(results, settings.out, suite_summary(settings.run))
    print(f"{settings.out}: {len(results)} results, {settings.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    script(main)
