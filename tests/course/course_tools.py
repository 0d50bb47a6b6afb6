"""Run chapters, and the answers that tests give to their exercises."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from io import StringIO
from typing import Any

from textgym_benchmarks.course.chapters import chapter_of, code_of, read_notebook


@dataclass
class Ran:
    """A chapter that has run top to bottom: its names, and what it printed."""

    names: dict[str, Any]
    printed: str

    def __getitem__(self, name: str) -> Any:
        return self.names[name]


@cache
def ran(number: int) -> Ran:
    """Run a chapter's cells in this process, once."""
    import matplotlib as mpl

    mpl.use("agg")
    names: dict[str, Any] = {"__name__": f"chapter_{number}"}
    with redirect_stdout(StringIO()) as printed:
        for cell in code_of(read_notebook(chapter_of(number).path)):
            tree = ast.parse(cell)
            exec(compile(tree, f"chapter {number}", "exec"), names)
    return Ran(names, printed.getvalue())


def answers_of(number: int, kind: str) -> list[tuple[str, Callable[..., object]]]:
    """Return the answers of a kind, "right" or "wrong", with the names of the exercises."""
    module = import_module(f"answers.ch{number:02}")
    return [
        (name.partition("__")[0], function)
        for name, function in vars(module).items()
        if name.partition("__")[2].startswith(kind)
    ]
