"""Rankings and demonstrations: rows of `textgym.rows`, in every format, read strictly, and written atomically.

trl: `prompt`, `chosen`, `rejected`. messages: the same with lists of messages (`textgym.codecs.chat.write_dialogue`
says what a prompt of several becomes), the prompt may stand in the answers.
transcripts: `chosen`, `rejected`, dialogues. rankings: `prompt`, `completions` (best first, or in any order with
`ranks`). demonstrations: `prompt`, `completion`. Optional keys of pairs: `margin`, `chosen_ended`, `rejected_ended`,
`chosen_score`, `rejected_score`; of rankings: `margin`, `ended`, `scores`; of demonstrations: `ended`.
Every other key is left alone.

Every line that cannot be used is a `Problem`; blank lines are no rows. What is read, and what is refused, is said in
`textgym.files`: a byte order mark spoils the first line, which is reported and left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args

from textgym.checks import JsonObject, not_one_of
from textgym.codecs.chat import write_dialogue
from textgym.files import make_folder, replaced
from textgym.preferences.data import (
    Demonstration,
    Problem,
    Ranking,
    Reading,
    Row,
    demonstration,
    pairs,
    split_transcripts,
    transcripts,
)
from textgym.rows import SUFFIXES, numbered_rows

RankingFormat = Literal["trl", "transcripts", "rankings"]
OnBroken = Literal["stop", "skip"]
Value = TypeVar("Value")
_PAIR = ("chosen", "rejected")
_RANKINGS_NEED = '"prompt", "chosen", "rejected"; or "chosen", "rejected"; or "prompt", "completions"'
_NAMES: dict[type, str] = {
    type(None): "null",
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
}


def read_rankings(path: str | Path, on_broken: OnBroken = "stop") -> Reading[Ranking]:
    """Read preferences, in the format of their first good row.

    Args:
        path: a source of `textgym.rows`, in one of the formats of `textgym.preferences.files`.
        on_broken: what broken rows lead to: "stop" raises, "skip" leaves them out and returns them as problems.
    Raises: FileNotFoundError; ValueError for what is no file, or naming the line of the first broken row and how
        many more there are.
    """
    return _read(path, on_broken, _ranking_format, _read_ranking)


def read_demonstrations(path: str | Path, on_broken: OnBroken = "stop") -> Reading[Demonstration]:
    """Read demonstrations, or the best completions of preferences. See `read_rankings`."""
    return _read(path, on_broken, _demonstration_format, _read_demonstration)


def write_rankings(path: str | Path, rankings: Iterable[Ranking], format: RankingFormat = "trl") -> int:
    """Write preferences atomically, replacing an existing file; reading them returns the same.

    Args:
        path: its folder is made if there is none.
        rankings: of more than 2 become all their pairs in the formats "trl" and "transcripts".
        format: "transcripts" needs prompts that end where a turn of the assistant begins.
    Returns: the rows written.
    Raises: ValueError for another format, for what a format cannot hold, or for the name of a table, as "x.csv".
    """
    if format not in get_args(RankingFormat):
        raise ValueError(not_one_of("format", format, get_args(RankingFormat)))
    single = rankings if format == "rankings" else (pair for ranking in rankings for pair in pairs(ranking))
    return _write(path, (_ranking_row(ranking, format) for ranking in single))


def write_demonstrations(path: str | Path, rows: Iterable[Demonstration]) -> int:
    """Write `rows` as `prompt` and `completion`, and `ended` where one was cut off; return how many they are.

    See `write_rankings`.
    """
    return _write(
        path,
        (
            {"prompt": row.prompt, "completion": row.completion} | ({} if row.ended else {"ended": False})
            for row in rows
        ),
    )


def _read(
    path: str | Path, on_broken: str, format_of: Callable[[JsonObject], str], read: Callable[[JsonObject, str], Row]
) -> Reading[Row]:
    if on_broken not in get_args(OnBroken):
        raise ValueError(not_one_of("on_broken", on_broken, get_args(OnBroken)))
    rows: list[Row] = []
    problems: list[Problem] = []
    first = ""
    for number, read_row in numbered_rows(path):
        try:
            data = read_row()
            format = format_of(data)
            row = read(data, format)
            if format != (first or format):
                raise ValueError(f"a row of format {format}, while the file's first good row is of format {first}")
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


def _write(path: str | Path, rows: Iterable[JsonObject]) -> int:
    target = Path(path)
    if target.suffix in SUFFIXES[1:]:  # which are read as tables
        raise ValueError(
            f"path={str(path)!r}: rows are written as JSON lines, so allowed is a name that ends in .jsonl"
        )
    make_folder(target.parent)
    count = 0
    with replaced(target) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            count += 1
    return count


def _ranking_format(row: JsonObject) -> str:
    if all(key in row for key in _PAIR):
        if any(isinstance(row.get(key), list) for key in ("prompt", *_PAIR)):
            return "messages"
        return "trl" if "prompt" in row else "transcripts"
    if "prompt" in row and "completions" in row:
        return "rankings"
    raise ValueError(f"the keys are {_keys(row)}; needed are {_RANKINGS_NEED}")


def _demonstration_format(row: JsonObject) -> str:
    if "prompt" in row and "completion" in row:
        lists = any(isinstance(row[key], list) for key in ("prompt", "completion"))
        return "messages" if lists else "demonstrations"
    try:
        return _ranking_format(row)
    except ValueError:
        if "messages" in row:
            return "messages"
    raise ValueError(
        f'the keys are {_keys(row)}; needed are "prompt", "completion"; or "messages"; or {_RANKINGS_NEED}'
    )


def _keys(row: JsonObject) -> str:
    names = ", ".join(repr(key[:30]) for key in list(row)[:6])
    return (names + (", ..." if len(row) > 6 else "")) or "none"


def _read_ranking(row: JsonObject, format: str) -> Ranking:
    margin = _optional(row, "margin", float)
    if format == "rankings":
        return _read_completions(row, margin)
    ended, scores = _both(row, "ended", bool), _both(row, "score", float)
    if format == "messages":
        prompt, answers = _dialogue(row.get("prompt"), {key: row[key] for key in _PAIR})
        return Ranking(prompt, tuple(answers), ended, margin, scores)
    chosen, rejected = (_typed(row[key], f'"{key}"', str) for key in _PAIR)
    if format == "trl":
        return Ranking(_typed(row["prompt"], '"prompt"', str), (chosen, rejected), ended, margin, scores)
    if chosen == rejected:
        raise ValueError("the chosen and the rejected transcript are identical")
    prompt, *parts = split_transcripts(chosen, rejected)
    return Ranking(prompt, tuple(parts), ended, margin, scores)


def _read_completions(row: JsonObject, margin: float | None) -> Ranking:
    texts = [_typed(text, "a completion", str) for text in _typed(row["completions"], '"completions"', list)]

    def column(name: str, kind: type[Value]) -> list[Value] | None:
        values = _optional(row, name, list)
        if values is not None and len(values) != len(texts):
            raise ValueError(f'"{name}" has {len(values)} values for {len(texts)} completions')
        return None if values is None else [_typed(v, f'a value of "{name}"', kind) for v in values]

    ended, scores = column("ended", bool), column("scores", float)
    ranks = column("ranks", float) or range(len(texts))
    if len(set(ranks)) < len(ranks):
        raise ValueError('"ranks" has a tie: a ranking needs an order')
    best_first = sorted(range(len(texts)), key=ranks.__getitem__)
    return Ranking(
        _typed(row["prompt"], '"prompt"', str),
        tuple(texts[i] for i in best_first),
        None if ended is None else tuple(ended[i] for i in best_first),
        margin,
        None if scores is None else tuple(scores[i] for i in best_first),
    )


def _ranking_row(ranking: Ranking, format: RankingFormat) -> JsonObject:
    columns = {"ended": ranking.ended, "scores": ranking.scores}
    found = {name: list(values) for name, values in columns.items() if values is not None}
    row: JsonObject = {} if format == "transcripts" else {"prompt": ranking.prompt}
    if format == "rankings":
        row |= {"completions": list(ranking.completions), **found}
    else:
        texts = ranking.completions if format == "trl" else transcripts(ranking)
        row |= dict(zip(_PAIR, texts, strict=True))
        for name, values in found.items():
            row |= {f"{key}_{name.removesuffix('s')}": value for key, value in zip(_PAIR, values, strict=True)}
    return row if ranking.margin is None else row | {"margin": ranking.margin}


def _read_demonstration(row: JsonObject, format: str) -> Demonstration:
    """Read a row of a format; of preferences the best answer."""
    paired = format != "demonstrations" and all(key in row for key in _PAIR)
    own = next((key for key in ("completion", "messages") if key in row and not paired), None)
    if own is None or format not in ("demonstrations", "messages"):
        return demonstration(_read_ranking(row, format))
    ended = _optional(row, "ended", bool) is not False
    if format == "demonstrations":
        return Demonstration(
            _typed(row["prompt"], '"prompt"', str), _typed(row["completion"], '"completion"', str), ended
        )
    if own == "messages":
        _typed(row[own], '"messages"', list)
    prompt, (completion,) = _dialogue(row.get("prompt"), {own: row[own]})
    return Demonstration(prompt, completion, ended)


def _dialogue(prompt: object, answers: JsonObject) -> tuple[str, list[str]]:
    """Return the prompt, see `write_dialogue`, and the assistant's texts.

    Args:
        prompt: a text, a list of messages that ends in the user's, or None: the answers hold those messages too.
        answers: key in the row -> a text, or a list of messages that ends in the assistant's.
    Raises: ValueError for other messages, or messages before the answers that differ.
    """
    allowed = "a text or a list of messages"
    asked = None
    if isinstance(prompt, list):
        asked = _written("prompt", prompt)
    elif prompt is not None:
        asked = _typed(prompt, '"prompt"', str, allowed)
    texts = []
    for key, value in answers.items():
        if not isinstance(value, list):
            texts.append(_typed(value, f'"{key}"', str, allowed))
            continue
        if not value or not isinstance(value[-1], dict) or value[-1].get("role") != "assistant":
            raise ValueError(f'"{key}" must end in a message of the assistant')
        texts.append(_typed(value[-1].get("content"), f'the content of the last message of "{key}"', str))
        before = _written(key, value[:-1]) if len(value) > 1 else asked
        if asked not in (None, before):
            raise ValueError(f'what stands before the answer in "{key}" is not what stands before: the prompts differ')
        asked = before
    if asked is None:
        raise ValueError('there is no message of the user, neither under "prompt" nor before the answers')
    return asked, texts


def _written(key: str, messages: list[JsonObject]) -> str:
    try:
        return write_dialogue(messages)
    except ValueError as error:
        raise ValueError(f'"{key}": {error}') from error


def _optional(row: JsonObject, key: str, kind: type[Value]) -> Value | None:
    return None if row.get(key) is None else _typed(row[key], f'"{key}"', kind)


def _both(row: JsonObject, name: str, kind: type[Value]) -> tuple[Value, Value] | None:
    """Read what a pair has under `chosen_name` and `rejected_name`; None if neither is there."""
    first, second = (f"{key}_{name}" for key in _PAIR)
    there = [key for key in (first, second) if row.get(key) is not None]
    if len(there) == 1:
        raise ValueError(f'"{there[0]}" stands alone: "{first}" and "{second}" are needed, or neither')
    return (_typed(row[first], f'"{first}"', kind), _typed(row[second], f'"{second}"', kind)) if there else None


def _typed(value: object, what: str, kind: type[Value], allowed: str = "") -> Value:
    """Return a value of a kind. Raises: ValueError for one of another kind, such as true for a number."""
    types = (int, float) if kind is float else kind
    if not isinstance(value, types) or (isinstance(value, bool) and kind is not bool):
        found = _NAMES.get(type(value), "a number")
        raise ValueError(f"{what} is {found}, allowed is {allowed or _NAMES.get(kind, 'a number')}")
    try:
        result = cast("Callable[[object], Value]", kind)(value)
    except OverflowError:
        raise ValueError(f"{what} is too large a number") from None
    if isinstance(result, float) and not math.isfinite(result):  # as a table can hold
        raise ValueError(f"{what} is {result}, allowed is a finite number")
    return result
