"""What a worker does with one cell: holds its folder, runs it, writes its result."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

from textgym.files import plain, write_json
from textgym.interrupts import disk_full_at
from textgym_benchmarks.suite import Cell, Evaluation
from textgym_benchmarks.suite_folder import cell_result, hold

FUNCTION: Final = "textgym_benchmarks.run.work:run_one"
RUN_CELL: Final = "textgym_benchmarks.run.cell:run_cell"


def run_one(
    cell: dict[str, Any], evaluation: dict[str, Any], suite: str, function: str, save: bool = False
) -> dict[str, Any]:
    """Runs a cell in its folder, or goes on with one that was interrupted.

    Args:
        cell, evaluation: as JSON.
        suite: the suite's folder.
        function: "module:function" that takes a `Cell`, an `Evaluation`, the cell's folder and one for optima that
            cells share, and returns the values of result.json.
        save: also pass `save=True` to the function: the last checkpoint is kept.
    Returns: these values; those that are there already, if another process was faster.
    Raises: CellBusyError if another process is at work on the cell; DiskFullError; whatever the function raises.
    """
    row = Cell.from_json(cell)
    folder = Path(suite) / "cells" / row.key
    with disk_full_at(folder), hold(folder):
        there = cell_result(folder)
        if there is not None:
            return there
        module, _, name = function.partition(":")
        run = getattr(importlib.import_module(module), name)
        more = {"save": True} if save else {}
        result = run(row, Evaluation.from_json(evaluation), folder, Path(suite) / "optima", **more)
        found: dict[str, Any] = plain(result)
        write_json(folder / "result.json", found)
        return found
