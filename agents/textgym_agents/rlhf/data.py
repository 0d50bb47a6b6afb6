"""Demonstrations and rankings, read, split by prompt, ordered and encoded as the environment shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from textgym.files import numbered_lines
from textgym.lm.scoring import Encoded, encode_exchange, encode_pair, end_id
from textgym.preferences import Demonstration, Ranking, Reading
from textgym.vocab import Vocabulary
from textgym_agents.rlhf.losses import RankedRow
from textgym_agents.rlhf.settings import FitSettings
from textgym_agents.training.loop import Watcher


def lay_out(lengths: Sequence[int], batch: int, epochs: int, seed: int) -> NDArray[np.int64]:
    """The rows of all epochs, one after the other: what step s trains on depends on nothing but s.

    Within a step, rows are sorted by length, the longest first, so that its parts are padded little. Which rows a
    step has is independent of their lengths.

    Args:
        lengths: tokens of every row.
        batch: rows per step.
    Returns: (epochs * rows,) row numbers.
    """
    generator = np.random.default_rng([seed, 1])
    order = np.concatenate([generator.permutation(len(lengths)) for _ in range(epochs)])
    size = np.asarray(lengths)
    parts = [order[start : start + batch] for start in range(0, len(order), batch)]
    return np.concatenate([part[np.argsort(-size[part], kind="stable")] for part in parts])


def split_by_prompt(prompts: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers to train on and to hold out; rows with the same prompt are on the same side.

    Args:
        prompts: of every row.
        share: of the different prompts that is held out; at least one if it is not 0.
    Raises: ValueError if there are too few prompts for rows on both sides.
    """
    names = sorted(set(prompts))
    count = max(1, round(share * len(names))) if share else 0
    if count >= len(names):
        raise ValueError(
            f"held_out={share}: the data have {len(names)} different prompts, so none is left to train on; "
            "allowed are more prompts, or held_out=0"
        )
    chosen = np.random.default_rng([seed, 0]).permutation(len(names))[:count]
    away = {names[index] for index in chosen}
    held_out = [row for row, prompt in enumerate(prompts) if prompt in away]
    return [row for row, prompt in enumerate(prompts) if prompt not in away], held_out


_SHOWN = 10  # broken rows that are named one by one

Source = TypeVar("Source", Demonstration, Ranking)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Split(Generic[Item]):
    """Encoded rows to learn from and held-out ones.

    Args:
        train, held_out: rows. held_out_prompts: of the held-out rows.
        report: counts of what was read, left out and cut.
    """

    train: list[Item]
    held_out: list[Item]
    held_out_prompts: list[str]
    report: dict[str, int]


def usable(
    reading: Reading[Source],
    encode: Callable[[Source], Item],
    settings: FitSettings,
    watcher: Watcher,
    argument: str = "data",
) -> tuple[list[str], list[Item]]:
    """The prompts and encoded forms of the rows that can be used.

    Args:
        reading: of the file that the setting `argument` names.
    Raises: ValueError for a row that cannot be encoded, unless such rows are to be skipped; or without any row.
    """
    path = getattr(settings, argument)
    problems = [str(problem) for problem in reading.problems]
    prompts, items = [], []
    for place, row in enumerate(reading.rows):
        try:
            items.append(encode(row))
            prompts.append(row.prompt)
        except (ValueError, TypeError) as error:
            message = f"{path}, line {_line_of(place, reading, path)}: {error}"
            if settings.on_broken == "stop":
                raise ValueError(message) from error
            problems.append(message)
    for problem in problems[:_SHOWN]:
        watcher.note(f"left out: {problem}")
    if len(problems) > _SHOWN:
        watcher.note(f"left out: {len(problems) - _SHOWN} more broken rows")
    if not items:
        raise ValueError(f"{argument}={path!r}: no usable row is in it")
    return prompts, items


def left_out(reading: Reading[Source], used: int) -> int:
    """How many rows of a file could not be read or encoded, where `used` of them could."""
    return len(reading.problems) + len(reading.rows) - used


def _line_of(place: int, reading: Reading[Source], path: str) -> int:
    """The line of a file that gave a row: every line that is neither blank nor a problem gave one."""
    if not Path(path).is_file():
        return place + 1
    broken = {problem.line for problem in reading.problems}
    good = [number for number, _ in numbered_lines(Path(path)) if number not in broken]
    return good[place]


def split_rows(
    prompts: Sequence[str], items: Sequence[Item], answers: Callable[[Item], Sequence[Encoded]], settings: Any
) -> Split[Item]:
    """Rows on both sides of the split by prompt, and counts of them and of what was cut."""
    train, held_out = split_by_prompt(prompts, settings.held_out, settings.seed)
    cuts = [sum(answer.cut for answer in answers(item)) for item in items]
    report = {
        "prompts": len(set(prompts)),
        "train_rows": len(train),
        "held_out_rows": len(held_out),
        "rows_cut": sum(cut > 0 for cut in cuts),
        "tokens_cut": sum(cuts),
        "tokens": sum(len(answer.ids) for item in items for answer in answers(item)),
    }
    return Split(
        [items[row] for row in train],
        [items[row] for row in held_out],
        [prompts[row] for row in held_out],
        report,
    )


def encode_demonstration(row: Demonstration, vocabulary: Vocabulary, max_length: int) -> Encoded:
    """A demonstration's tokens as a policy would write them, the end included where it came to its end.

    Raises: ValueError if it cannot be encoded, or nothing of the completion fits.
    """
    encoded = encode_pair(vocabulary, row.prompt, row.completion, row.ended, end_id(vocabulary), max_length)
    if len(encoded.ids) == encoded.prompt_tokens:
        raise ValueError(f"nothing of the completion fits into max_length={max_length} tokens")
    return encoded


def encode_answer(row: Demonstration, vocabulary: Vocabulary, max_length: int) -> Encoded:
    """A demonstration's tokens as a reward model reads them. Raises: ValueError if it cannot be encoded."""
    return encode_exchange(vocabulary, row.prompt, row.completion, row.ended, max_length)


def encode_ranking(row: Ranking, vocabulary: Vocabulary, max_length: int, margin: float | None) -> RankedRow:
    """A ranking's tokens as a reward model reads them; its margin is `margin`, or else its own, or else 0.

    Raises: ValueError if it cannot be encoded.
    """
    ended = row.ended or (True,) * len(row.completions)
    answers = tuple(
        encode_exchange(vocabulary, row.prompt, text, whole, max_length)
        for text, whole in zip(row.completions, ended, strict=True)
    )
    return RankedRow(answers, (row.margin or 0.0) if margin is None else margin)


def note_cuts(report: dict[str, int], max_length: int, watcher: Watcher) -> None:
    """Says what was cut, where anything was."""
    if report["rows_cut"]:
        rows = report["train_rows"] + report["held_out_rows"]
        watcher.note(
            f"{report['rows_cut']} of {rows} rows are longer than {max_length} tokens: "
            f"{report['tokens_cut']} tokens were cut, those of prompts first"
        )
