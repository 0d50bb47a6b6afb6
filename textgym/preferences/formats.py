"""From one JSON object to a ranking or a demonstration and back, in every format.

trl: `prompt`, `chosen`, `rejected`. messages: the same with lists of messages, the prompt may stand in the answers.
hh: `chosen`, `rejected`, transcripts. rankings: `prompt`, `completions` (best first, or in any order with `ranks`).
demonstrations: `prompt`, `completion`. Optional keys of pairs: `margin`, `chosen_ended`, `rejected_ended`,
`chosen_score`, `rejected_score`; of rankings: `margin`, `ended`, `scores`; of demonstrations: `ended`.
Every other key is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from textgym.preferences import conversations, fields, hh
from textgym.preferences.data import Demonstration, Ranking, demonstration

RankingFormat = Literal["trl", "hh", "rankings"]
_PAIR = ("chosen", "rejected")
_RANKINGS_NEED = '"prompt", "chosen", "rejected"; or "chosen", "rejected"; or "prompt", "completions"'


def ranking_format(row: Mapping[str, Any]) -> str:
    """The format that a row's keys say. Raises: ValueError if they say none."""
    if all(key in row for key in _PAIR):
        if any(conversations.is_conversation(row.get(key)) for key in ("prompt", *_PAIR)):
            return "messages"
        return "trl" if "prompt" in row else "hh"
    if "prompt" in row and "completions" in row:
        return "rankings"
    raise ValueError(f"the keys are {_keys(row)}; needed are {_RANKINGS_NEED}")


def read_ranking(row: Mapping[str, Any], format: str) -> Ranking:
    """A row of a format. Raises: TypeError or ValueError, naming what is wrong with it."""
    if format == "rankings":
        return _read_completions(row)
    ended = _both(row, "ended", fields.flag)
    scores = _both(row, "score", fields.number)
    margin = None if row.get("margin") is None else fields.number(row["margin"], '"margin"')
    if format == "messages":
        prompt, answers = conversations.one_turn(row.get("prompt"), {key: row[key] for key in _PAIR})
        return Ranking(prompt, tuple(answers), ended, margin, scores)
    chosen, rejected = fields.text(row["chosen"], '"chosen"'), fields.text(row["rejected"], '"rejected"')
    if format == "trl":
        return Ranking(fields.text(row["prompt"], '"prompt"'), (chosen, rejected), ended, margin, scores)
    if chosen == rejected:
        raise ValueError("the chosen and the rejected transcript are identical")
    prompt, *parts = hh.split_transcripts(chosen, rejected)
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
        texts = ranking.completions if format == "trl" else hh.transcripts(ranking)
        row = {"prompt": ranking.prompt} if format == "trl" else {}
        row |= dict(zip(_PAIR, texts, strict=True))
        for name, values in (("ended", ranking.ended), ("score", ranking.scores)):
            if values is not None:
                row |= {f"{key}_{name}": value for key, value in zip(_PAIR, values, strict=True)}
    return row if ranking.margin is None else row | {"margin": ranking.margin}


def demonstration_format(row: Mapping[str, Any]) -> str:
    """The format that a row's keys say; preferences are ones too. Raises: ValueError if they say none."""
    if "prompt" in row and "completion" in row:
        lists = any(conversations.is_conversation(row[key]) for key in ("prompt", "completion"))
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
    ended = True if row.get("ended") is None else fields.flag(row["ended"], '"ended"')
    if format == "demonstrations":
        return Demonstration(
            fields.text(row["prompt"], '"prompt"'), fields.text(row["completion"], '"completion"'), ended
        )
    if own == "messages":
        fields.array(row[own], '"messages"')
    prompt, (completion,) = conversations.one_turn(row.get("prompt"), {own: row[own]})
    return Demonstration(prompt, completion, ended)


def write_demonstration(row: Demonstration) -> dict[str, Any]:
    """A row; `ended` only where the answer was cut off."""
    return {"prompt": row.prompt, "completion": row.completion} | ({} if row.ended else {"ended": False})


def _read_completions(row: Mapping[str, Any]) -> Ranking:
    texts = [fields.text(text, "a completion") for text in fields.array(row["completions"], '"completions"')]
    order = list(range(len(texts)))
    columns: dict[str, list[Any]] = {}
    for name, read in (("ended", fields.flag), ("scores", fields.number), ("ranks", fields.number)):
        if row.get(name) is not None:
            values = fields.array(row[name], f'"{name}"')
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
    margin = None if row.get("margin") is None else fields.number(row["margin"], '"margin"')
    return Ranking(
        fields.text(row["prompt"], '"prompt"'), tuple(texts[i] for i in order), ended, margin, scores
    )


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
