"""The course: list its chapters, copy one as a notebook, grade solutions."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import jupytext
import tyro

from textgym.checks import JsonObject, check_number
from textgym.commands.console import UsageError, folded, number, output, table, untrusted
from textgym.commands.flags import parse
from textgym.files import make_folder, read_json, write_json, write_text
from textgym_benchmarks.course.chapters import all_chapters, chapter_of, student_notebook
from textgym_benchmarks.course.exercises import numbers
from textgym_benchmarks.course.grading import DEADLINE, Grade, grade_file, sentence

PROGRESS: Final = "textgym-course.json"
"""File beside a graded file that stores the exercises solved so far."""
EXIT_WRONG = 1


@dataclass(frozen=True)
class CourseFlags:
    """A course on the theory of RL for language models: twelve notebooks with automatically graded exercises.

    `textgym course` lists the chapters, `textgym course get 3` copies chapter 3 into the folder --out, and `textgym
    course grade FILE...` grades the exercises in notebooks.

    Example: textgym course get 3
    """

    action: Annotated[Literal["list", "get", "grade"], tyro.conf.Positional] = "list"
    """What to do."""
    what: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHAPTER|FILE")] = ()
    """get: numbers of chapters; grade: notebooks (.ipynb, .md, .py)."""
    out: Path = Path()
    """Folder to copy chapters into, and whose progress is listed; by default the current one."""
    solutions: bool = False
    """With get: include a solution of each exercise, for teachers."""
    deadline: float = DEADLINE
    """Time limit for the exercises of a file, seconds; if one exceeds it, the others start anew."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_number("deadline", self.deadline, 1, 86_400, "seconds")


def main(arguments: list[str]) -> None:
    """Run the command. Raises: SystemExit with 1 if a graded answer is wrong."""
    flags = parse(CourseFlags, arguments, "course")
    if flags.action == "list" and flags.what:
        raise UsageError(f"course list {flags.what[0]}: allowed is nothing behind list")
    if flags.action != "list" and not flags.what:
        raise UsageError(f"course {flags.action}: name at least one {'chapter' if flags.action == 'get' else 'file'}")
    {"list": _list, "get": _get, "grade": _grade}[flags.action](flags)


def _list(flags: CourseFlags) -> None:
    right = set(_progress(flags.out))
    rows: list[JsonObject] = [
        {
            "chapter": each.number,
            "title": each.title,
            "exercises": len(each.exercises),
            "right": len(right.intersection(each.exercises)),
        }
        for each in all_chapters()
    ]
    if flags.json:
        print(json.dumps(rows, indent=2))
        return
    shown = table(number(""), "chapter", number("exercises"), number("right"))
    for row in rows:
        shown.add_row(*map(str, row.values()))
    output().print(shown)
    output().print("textgym course get 1 copies chapter 1 into this folder.", markup=False)


def _get(flags: CourseFlags) -> None:
    if any(not word.isdecimal() for word in flags.what):
        raise UsageError(f"course get {' '.join(flags.what)}: allowed are numbers of chapters, as in course get 3")
    make_folder(flags.out)
    for chapter in [chapter_of(int(word)) for word in flags.what]:
        path = flags.out / f"{chapter.path.stem}{'_solved' * flags.solutions}.ipynb"
        if path.exists():
            raise FileExistsError(f"{path}: is there already; allowed is another folder, --out")
        write_text(path, jupytext.writes(student_notebook(chapter, flags.solutions), fmt="ipynb"))
        output().print(untrusted(str(path)))


def _grade(flags: CourseFlags) -> None:
    graded: dict[str, list[Grade]] = {}
    refused: dict[str, str] = {}
    for word in dict.fromkeys(flags.what):
        try:
            graded[word] = grade_file(Path(word), flags.deadline)
            if not graded[word]:
                raise ValueError(f"{word}: has no function of an exercise; textgym course get 1 copies a chapter")
        except ValueError as error:
            if len(flags.what) == 1:
                raise
            graded[word], refused[word] = [], str(error)
    if len(graded) == 1:
        ((word, grades),) = graded.items()
        _keep(Path(word).parent, grades)
    if flags.json:
        found = {word: [asdict(grade) for grade in grades] for word, grades in graded.items()}
        print(json.dumps(found | {word: {"error": error} for word, error in refused.items()}, indent=2))
    elif len(graded) == 1:
        for grade in grades:
            output().print(untrusted(sentence(grade)), soft_wrap=True)
    else:
        _print_table(graded, refused)
    if refused or any(grade.state == "wrong" for grades in graded.values() for grade in grades):
        raise SystemExit(EXIT_WRONG)


def _print_table(graded: dict[str, list[Grade]], refused: dict[str, str]) -> None:
    """Print a line for each file: how many of its answers are right, wrong and open, and which are wrong."""
    shown = table(folded("file"), number("right"), number("wrong"), number("open"), "wrong are")
    for word, grades in graded.items():
        counts = Counter(grade.state for grade in grades)
        wrong = [numbers()[each.exercise] for each in grades if each.state == "wrong"]
        said = "cannot be graded" if word in refused else ", ".join(wrong)
        shown.add_row(untrusted(word), *(str(counts[state]) for state in ("right", "wrong", "open")), said)
    output().print(shown)
    for error in refused.values():
        output().print(untrusted(error), soft_wrap=True)


def _progress(folder: Path) -> list[str]:
    path = folder / PROGRESS
    if not path.exists():
        return []
    right = read_json(path).get("right")
    if not isinstance(right, list) or not all(isinstance(name, str) for name in right):
        raise ValueError(f'{path}: "right" must be a list of names of exercises; delete the file to begin anew')
    return right


def _keep(folder: Path, grades: list[Grade]) -> None:
    """Add what is right to a folder's progress, and take out of it what no longer is."""
    judged = {grade.exercise for grade in grades}
    right = {grade.exercise for grade in grades if grade.state == "right"}
    write_json(folder / PROGRESS, {"right": sorted((set(_progress(folder)) - judged) | right)})
