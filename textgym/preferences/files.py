"""Files of rankings and demonstrations: one JSON object a line, in every format, read strictly and written atomically.

trl: `prompt`, `chosen`, `rejected`. messages: the same with lists of messages, the prompt may stand in the answers.
hh: `chosen`, `rejected`, transcripts. rankings: `prompt`, `completions` (best first, or in any order with `ranks`).
demonstrations: `prompt`, `completion`. Optional keys of pairs: `margin`, `chosen_ended`, `rejected_ended`,
`chosen_score`, `rejected_score`; of rankings: `margin`, `ended`, `scores`; of demonstrations: `ended`.
Every other key is left alone.

Every line that cannot be used is a `Problem`; blank lines are no rows. What is read, and what is refused, is said in
`textgym.files`: a byte order mark spoils the first line, which is reported and left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from textgym.checks import not_one_of
from textgym.files import json_object, line_text, make_folder, numbered_lines, replaced
from textgym.preferences import data
from textgym.preferences.data import Demonstration, Problem, Ranking, Reading, demonstration, pairs

_NAMES = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "a text", "bool": "true or false"}
_NAMES |= {"int": "a number", "float": "a number"}


def as_text(value: Any, what: str, allowed: str = "a text") -> str:
    """Raises: ValueError, as all here, for a value of another type; `what` names it."""
    return str(_typed(value, what, (str,), allowed))


def as_list(value: Any, what: str) -> list[Any]:
    """A list."""
    return list(_typed(value, what, (list,), "a list"))


def as_flag(value: Any, what: str) -> bool:
    """True or false; no number."""
    return bool(_typed(value, what, (bool,), "true or false"))


def as_number(value: Any, what: str) -> float:
    """A number as a float; JSON's true is none."""
    try:
        return float(_typed(value, what, (int, float), "a number"))
    except OverflowError:
        raise ValueError(f"{what} is too large a number") from None


def _typed(value: Any, what: str, types: tuple[type, ...], allowed: str) -> Any:
    # A bool is an int to Python.
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ValueError(f"{what} is {_NAMES[type(value).__name__]}, allowed is {allowed}")
    return value


pass

_ALLOWED = "a text or a list of messages"


def is_conversation(value: Any) -> bool:
    """Whether a value is meant as a list of messages."""
    return isinstance(value, list)


def one_turn(prompt: Any, answers: dict[str, Any]) -> tuple[str, list[str]]:
    """The user's text and the assistant's texts.

    Args:
        prompt: a text, a list with one message of the user, or None: the answers hold the user's message too.
        answers: key in the row -> a text, or a list of messages that ends in the assistant's.
    Raises: ValueError for a system message, more turns, or users' messages that differ.
    """
    asked = None
    if is_conversation(prompt):
        asked = _contents(prompt, "prompt", ("user",))[0]
    elif prompt is not None:
        asked = as_text(prompt, '"prompt"', _ALLOWED)
    texts = []
    for key, value in answers.items():
        if not is_conversation(value):
            texts.append(as_text(value, f'"{key}"', _ALLOWED))
            continue
        own = _contents(value, key, ("assistant",) if len(value) == 1 else ("user", "assistant"))
        if len(own) == 2 and asked not in (None, own[0]):
            raise ValueError(f'the message of the user in "{key}" is not the one before: the prompts differ')
        asked = own[0] if len(own) == 2 else asked
        texts.append(own[-1])
    if asked is None:
        raise ValueError('there is no message of the user, neither under "prompt" nor before the answers')
    return asked, texts


def _contents(messages: list[Any], key: str, roles: tuple[str, ...]) -> list[str]:
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(name), str) for name in ("role", "content")
        ):
            raise ValueError(f'"{key}" is no list of messages with the texts "role" and "content"')
    found = tuple(message["role"] for message in messages)
    if found != roles:
        shown = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "") if found else "none"
        raise ValueError(
            f'the messages of "{key}" are by: {shown}; only one turn can be read: {", ".join(roles)}'
        )
    return [message["content"] for message in messages]


RankingFormat = Literal["trl", "hh", "rankings"]
_PAIR = ("chosen", "rejected")
_RANKINGS_NEED = '"prompt", "chosen", "rejected"; or "chosen", "rejected"; or "prompt", "completions"'


def ranking_format(row: Mapping[str, Any]) -> str:
    """The format that a row's keys say. Raises: ValueError if they say none."""
    if all(key in row for key in _PAIR):
        if any(is_conversation(row.get(key)) for key in ("prompt", *_PAIR)):
            return "messages"
        return "trl" if "prompt" in row else "hh"
    if "prompt" in row and "completions" in row:
        return "rankings"
    raise ValueError(f"the keys are {_keys(row)}; needed are {_RANKINGS_NEED}")


def read_ranking(row: Mapping[str, Any], format: str) -> Ranking:
    """A row of a format. Raises: TypeError or ValueError, naming what is wrong with it."""
    if format == "rankings":
        return _read_completions(row)
    ended = _both(row, "ended", as_flag)
    scores = _both(row, "score", as_number)
    margin = None if row.get("margin") is None else as_number(row["margin"], '"margin"')
    if format == "messages":
        prompt, answers = one_turn(row.get("prompt"), {key: row[key] for key in _PAIR})
        return Ranking(prompt, tuple(answers), ended, margin, scores)
    chosen, rejected = as_text(row["chosen"], '"chosen"'), as_text(row["rejected"], '"rejected"')
    if format == "trl":
        return Ranking(as_text(row["prompt"], '"prompt"'), (chosen, rejected), ended, margin, scores)
    if chosen == rejected:
        raise ValueError("the chosen and the rejected transcript are identical")
    prompt, *parts = data.split_transcripts(chosen, rejected)
    return Ranking(prompt, tuple(parts), ended, margin, scores)


def write_ranking(ranking: Ranking, format: RankingFormat) -> dict[str, Any]:
    """A row of a format; `trl` and `hh` hold rankings of 2. Raises: ValueError if `hh` cannot hold it exactly."""
    row: dict[str, Any]
    if format == "rankings":
        row = {"prompt": ranking.prompt, "completions": list(ranking.completions)}
        for name, values in (("ended", ranking.ended), ("scores", ranking.scores)):
            if values is not None:
                row[name] = list(values)
    else:
        texts = ranking.completions if format == "trl" else data.transcripts(ranking)
        row = {"prompt": ranking.prompt} if format == "trl" else {}
        row |= dict(zip(_PAIR, texts, strict=True))
        for name, values in (("ended", ranking.ended), ("score", ranking.scores)):
            if values is not None:
                row |= {f"{key}_{name}": value for key, value in zip(_PAIR, values, strict=True)}
    return row if ranking.margin is None else row | {"margin": ranking.margin}


def demonstration_format(row: Mapping[str, Any]) -> str:
    """The format that a row's keys say; preferences are ones too. Raises: ValueError if they say none."""
    if "prompt" in row and "completion" in row:
        lists = any(is_conversation(row[key]) for key in ("prompt", "completion"))
        return "messages" if lists else "demonstrations"
    try:
        return ranking_format(row)
    except ValueError:
        if "messages" in row:
            return "messages"
    raise ValueError(
        f'the keys are {_keys(row)}; needed are "prompt", "completion"; or "messages"; or {_RANKINGS_NEED}'
    )


def read_demonstration(row: Mapping[str, Any], format: str) -> Demonstration:
    """A row of a format; of preferences the best answer. Raises: TypeError or ValueError, naming what is wrong."""
    paired = format != "demonstrations" and all(key in row for key in _PAIR)
    own = next((key for key in ("completion", "messages") if key in row and not paired), None)
    if own is None or format not in ("demonstrations", "messages"):
        return demonstration(read_ranking(row, format))
    ended = True if row.get("ended") is None else as_flag(row["ended"], '"ended"')
    if format == "demonstrations":
        return Demonstration(
            as_text(row["prompt"], '"prompt"'), as_text(row["completion"], '"completion"'), ended
        )
    if own == "messages":
        as_list(row[own], '"messages"')
    prompt, (completion,) = one_turn(row.get("prompt"), {own: row[own]})
    return Demonstration(prompt, completion, ended)


def write_demonstration(row: Demonstration) -> dict[str, Any]:
    """A row; `ended` only where the answer was cut off."""
    return {"prompt": row.prompt, "completion": row.completion} | ({} if row.ended else {"ended": False})


def _read_completions(row: Mapping[str, Any]) -> Ranking:
    texts = [as_text(text, "a completion") for text in as_list(row["completions"], '"completions"')]
    order = list(range(len(texts)))
    columns: dict[str, list[Any]] = {}
    for name, read in (("ended", as_flag), ("scores", as_number), ("ranks", as_number)):
        if row.get(name) is not None:
            values = as_list(row[name], f'"{name}"')
            columns[name] = [read(value, f'a value of "{name}"') for value in values]
            if len(columns[name]) != len(texts):
                raise ValueError(f'"{name}" has {len(columns[name])} values for {len(texts)} completions')
    if "ranks" in columns:
        ranks = columns.pop("ranks")
        if len(set(ranks)) < len(ranks):
            raise ValueError('"ranks" has a tie: a ranking needs an order')
        order.sort(key=ranks.__getitem__)
    ended, scores = (
        tuple(columns[name][i] for i in order) if name in columns else None for name in ("ended", "scores")
    )
    margin = None if row.get("margin") is None else as_number(row["margin"], '"margin"')
    return Ranking(as_text(row["prompt"], '"prompt"'), tuple(texts[i] for i in order), ended, margin, scores)


def _both(row: Mapping[str, Any], name: str, read: Any) -> tuple[Any, Any] | None:
    """What a pair has under `chosen_name` and `rejected_name`; None if neither is there."""
    keys = [f"{key}_{name}" for key in _PAIR]
    there = [key for key in keys if row.get(key) is not None]
    if len(there) == 1:
        raise ValueError(f'"{there[0]}" stands alone: "{keys[0]}" and "{keys[1]}" are needed, or neither')
    if not there:
        return None
    first, second = (read(row[key], f'"{key}"') for key in keys)
    return first, second


def _keys(row: Mapping[str, Any]) -> str:
    names = ", ".join(repr(key[:30]) for key in list(row)[:6])
    return (names + (", ..." if len(row) > 6 else "")) or "none"


OnBroken = Literal["stop", "skip"]
Row = TypeVar("Row")


def read_rankings(path: str | Path, on_broken: OnBroken = "stop") -> Reading[Ranking]:
    """The preferences in a .jsonl file, in the format that its first good row has.

    Args:
        path: in one of the formats of `textgym.preferences.files`.
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
