"""Files of rankings and demonstrations: one JSON object a line, read line by line and written atomically.

Every line that cannot be used is a `Problem`; blank lines are no rows. What is read, and what is refused, is said in
`textgym.data_files`: a byte order mark spoils the first line, which is reported and left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from textgym.data_files import json_object, line_text, numbered_lines
from textgym.files import make_folder, replaced
from textgym.messages import not_one_of
from textgym.preferences.data import Demonstration, Problem, Ranking, Reading, pairs
from textgym.preferences.formats import (
    RankingFormat,
    demonstration_format,
    ranking_format,
    read_demonstration,
    read_ranking,
    write_demonstration,
    write_ranking,
)

OnBroken = Literal["stop", "skip"]
Row = TypeVar("Row")


def read_rankings(path: str | Path, on_broken: OnBroken = "stop") -> Reading[Ranking]:
    """The preferences in a .jsonl file, in the format that its first good row has.

    Args:
        path: in one of the formats of `textgym.preferences.formats`.
        on_broken: what broken rows lead to: "stop" raises, "skip" leaves them out and returns them as problems.
    Raises: FileNotFoundError; ValueError for what is no file, or naming the line of the first broken row and how
        many more there are.
    """
    return _read(path, on_broken, ranking_format, read_ranking)


def read_demonstrations(path: str | Path, on_broken: OnBroken = "stop") -> Reading[Demonstration]:
    """The demonstrations in a .jsonl file; of preferences the best completions. See `read_rankings`."""
    return _read(path, on_broken, demonstration_format, read_demonstration)


def write_rankings(path: str | Path, rankings: Iterable[Ranking], format: RankingFormat = "trl") -> int:
    """Writes preferences, atomically, in the place of what was there; reading them gives the same again.

    Args:
        path: its folder is made if there is none.
        rankings: of more than 2 become all their pairs in the formats "trl" and "hh".
        format: "hh" needs prompts that end where a turn of the assistant begins.
    Returns: the rows written.
    Raises: ValueError for another format, or for what a format cannot hold.
    """
    if format not in get_args(RankingFormat):
        raise ValueError(not_one_of("format", format, get_args(RankingFormat)))
    single = rankings if format == "rankings" else (pair for ranking in rankings for pair in pairs(ranking))
    return _write(path, (write_ranking(ranking, format) for ranking in single))


def write_demonstrations(path: str | Path, rows: Iterable[Demonstration]) -> int:
    """Writes demonstrations as `prompt` and `completion`. See `write_rankings`."""
    return _write(path, map(write_demonstration, rows))


def _read(
    path: str | Path,
    on_broken: str,
    format_of: Callable[[Mapping[str, Any]], str],
    read: Callable[[Mapping[str, Any], str], Row],
) -> Reading[Row]:
    if on_broken not in get_args(OnBroken):
        raise ValueError(not_one_of("on_broken", on_broken, get_args(OnBroken)))
    rows: list[Row] = []
    problems: list[Problem] = []
    first = ""
    for number, line in numbered_lines(Path(path)):
        try:
            data = json_object(line_text(line, number))
            format = format_of(data)
            row = read(data, format)
            if format != (first or format):
                raise ValueError(
                    f"a row of format {format}, while the file's first good row is of format {first}"
                )
        except (ValueError, TypeError) as error:
            problems.append(Problem(str(path), number, str(error)))
            continue
        first = format
        rows.append(row)
    if not rows and not problems:
        problems.append(Problem(str(path), 1, "the file is empty"))
    if problems and on_broken == "stop":
        more = f" (and {len(problems) - 1} more broken rows)" if len(problems) > 1 else ""
        raise ValueError(f"{problems[0]}{more}")
    return Reading(rows, problems, first)


def _write(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    target = Path(path)
    make_folder(target.parent)
    count = 0
    with replaced(target) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            count += 1
    return count
