"""Read the chapters of the course, and write them as notebooks for a student or a teacher."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import jupytext
from nbformat import NotebookNode

from textgym_benchmarks.course.exercises import numbers

_SUFFIXES = (".ipynb", ".md", ".py")
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]+\)")  # to a page that is not beside a copied notebook
_TAG = "exercise"  # of a cell that holds the beginning of a solution


@dataclass(frozen=True)
class Chapter:
    """A chapter.

    Attributes:
        number: from 1. path: of its text, Markdown that Jupytext and MyST-NB read as a notebook.
    """

    number: int
    path: Path

    @property
    def title(self) -> str:
        """Its first heading."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("# "))[2:]

    @property
    def exercises(self) -> list[str]:
        """Names of its exercises, in order."""
        return [name for name, place in numbers().items() if place.partition(".")[0] == str(self.number)]

    @property
    def solutions(self) -> dict[str, str]:
        """The code of a right solution of each exercise, by name."""
        module = import_module(f"textgym_benchmarks.course.solutions.ch{self.number:02}")
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        statements = ast.parse(source).body
        return {
            each.name: str(ast.get_source_segment(source, each))
            for each in statements
            if isinstance(each, ast.FunctionDef)
        }


def all_chapters() -> list[Chapter]:
    """Return the chapters in order."""
    folder = Path(str(files("textgym_benchmarks.course").joinpath("chapters")))
    return [Chapter(int(path.name[:2]), path) for path in sorted(folder.glob("[0-9][0-9]_*.md"))]


def chapter_of(number: int) -> Chapter:
    """Return a chapter. Raises: ValueError for a number that no chapter has."""
    found = {each.number: each for each in all_chapters()}
    if number not in found:
        raise ValueError(f"chapter {number}: allowed are {min(found)} to {max(found)}")
    return found[number]


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook: .ipynb, or a text that Jupytext reads, .md or .py. Raises: ValueError that names the file."""
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path}: allowed are notebooks, {', '.join(_SUFFIXES)}")
    try:
        notebook: NotebookNode = jupytext.read(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # whatever is in the file, and whatever the library says of it
        raise ValueError(f"{path}: no notebook can be read there ({type(error).__name__})") from None
    return notebook


def code_of(notebook: NotebookNode) -> list[str]:
    """Return the code of each cell of code."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def student_notebook(chapter: Chapter, solved: bool = False) -> NotebookNode:
    """Return a chapter as a notebook, with what stands in the place of solutions, or with right ones."""
    notebook = read_notebook(chapter.path)
    solutions = chapter.solutions
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _LINK.sub(r"\1", cell.source)
        if solved and _TAG in cell.metadata.get("tags", []):
            cell.source = _solve(cell.source, solutions)
    return notebook


def _solve(source: str, solutions: dict[str, str]) -> str:
    """Return the code of a cell with right solutions in the place of the functions that they are of."""
    lines = source.splitlines()
    for statement in reversed(ast.parse(source).body):
        if isinstance(statement, ast.FunctionDef) and statement.name in solutions:
            lines[statement.lineno - 1 : statement.end_lineno] = solutions[statement.name].splitlines()
    return "\n".join(lines)
