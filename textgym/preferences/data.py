"""Rankings, demonstrations and transcripts, and statistics of them.

Source: Bai et al., arXiv:2204.05862; the files of https://github.com/anthropics/hh-rlhf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Generic, TypeVar

import numpy as np

Row = TypeVar("Row")


@dataclass(frozen=True)
class Ranking:
    """Completions of one prompt, best first. A preference between two is a ranking of 2.

    Args:
        prompt: text; may be empty.
        completions: K >= 2 different texts, none of them empty or white space only.
        ended: K, whether the text was written to its end rather than cut off; None: not known, all count as ended.
        margin: how much better, in reward units; None: not known.
        scores: K gold rewards, reward units; they need not fall, since annotators make mistakes. None: not known.

    Raises: TypeError or ValueError, naming what is wrong.
    """

    prompt: str
    completions: tuple[str, ...]
    ended: tuple[bool, ...] | None = None
    margin: float | None = None
    scores: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_text(self.prompt, "the prompt")
        count = len(self.completions)
        if isinstance(self.completions, str) or count < 2:
            raise ValueError(f"completions: {count} given, a ranking needs at least 2")
        for place, text in enumerate(self.completions):
            _check_answer(text, _place(place, count))
        if len(set(self.completions)) < count:
            first, second = next(
                (i, j) for i, j in combinations(range(count), 2) if self.completions[i] == self.completions[j]
            )
            raise ValueError(f"{_place(first, count)} and {_place(second, count)} are identical")
        for name, values in (("ended", self.ended), ("scores", self.scores)):
            if values is not None and len(values) != count:
                raise ValueError(f"{name}: {len(values)} values for {count} completions")
        for name, number in (("margin", self.margin), *(("scores", score) for score in self.scores or ())):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name}: {number!r} is not a finite number")


@dataclass(frozen=True)
class Demonstration:
    """An answer to learn from.

    Args:
        prompt: text; may be empty.
        completion: text, not empty.
        ended: whether it was written to its end rather than cut off.

    Raises: TypeError or ValueError, naming what is wrong.
    """

    prompt: str
    completion: str
    ended: bool = True

    def __post_init__(self) -> None:
        _check_text(self.prompt, "the prompt")
        _check_answer(self.completion, "the completion")


@dataclass(frozen=True)
class Problem:
    """A row of a file that cannot be used. Its message may quote the file: escape it where it is printed."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.message}"


@dataclass(frozen=True)
class Reading(Generic[Row]):
    """What a file holds: every line that is not blank is a row or a problem.

    Args:
        rows: in the file's order.
        problems: in the file's order; empty where reading was told to stop at them.
        format: "trl", "messages", "hh", "rankings" or "demonstrations"; "" where no row is good.
    """

    rows: list[Row]
    problems: list[Problem]
    format: str = ""


def pairs(ranking: Ranking) -> list[Ranking]:
    """The K (K - 1) / 2 preferences in a ranking, in its order, each with the ranking's margin."""
    ended, scores = ranking.ended, ranking.scores
    return [
        Ranking(
            ranking.prompt,
            (ranking.completions[i], ranking.completions[j]),
            None if ended is None else (ended[i], ended[j]),
            ranking.margin,
            None if scores is None else (scores[i], scores[j]),
        )
        for i, j in combinations(range(len(ranking.completions)), 2)
    ]


def demonstration(ranking: Ranking) -> Demonstration:
    """The best completion of a ranking."""
    return Demonstration(
        ranking.prompt, ranking.completions[0], True if ranking.ended is None else ranking.ended[0]
    )


def _place(place: int, count: int) -> str:
    if count == 2:
        return "the chosen answer" if place == 0 else "the rejected answer"
    return f"answer {place + 1} of {count}"


def _check_text(text: str, what: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is of type {type(text).__name__}, allowed is a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Half of a pair of UTF-16 units: JSON can write it, no tokenizer and no UTF-8 file can hold it.
        raise ValueError(
            f"{what} holds a lone surrogate, {text[error.start]!r}, which is no character"
        ) from None


def _check_answer(text: str, what: str) -> None:
    _check_text(text, what)
    if not text or text.isspace():
        raise ValueError(f"{what} is empty")


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt and both answers of two transcripts.

    The prompt goes up to and including the last `ASSISTANT` of what both share, so it never ends inside a turn.
    Where the dialogues part before their last turn, the answers hold the further turns: those too are what the
    annotators compared.

    Raises: ValueError if the transcripts share no such border.
    """
    place = chosen.rfind(ASSISTANT, 0, _shared_length(chosen, rejected))
    if place < 0:
        raise ValueError(f"no common prefix: the transcripts share no turn that begins with {ASSISTANT!r}")
    end = place + len(ASSISTANT)
    return chosen[:end], chosen[end:], rejected[end:]


def transcripts(ranking: Ranking) -> tuple[str, str]:
    """Both dialogues of a ranking of 2.

    Raises: ValueError if reading them would not give the same prompt and answers.
    """
    prompt, (chosen, rejected) = ranking.prompt, ranking.completions
    pair = prompt + chosen, prompt + rejected
    try:
        same = split_transcripts(*pair) == (prompt, chosen, rejected)
    except ValueError:
        same = False
    if not same:
        raise ValueError(
            f"prompt {prompt!r:.60}: in the format hh a prompt must end in {ASSISTANT!r}, and the answers must not "
            "share a further turn (textgym.preferences.data.as_dialogue makes a dialogue of a plain prompt)"
        )
    return pair


def as_dialogue(ranking: Ranking) -> Ranking:
    """The ranking as a dialogue of one turn each; unchanged if its prompt ends in `ASSISTANT` already."""
    if ranking.prompt.endswith(ASSISTANT):
        return ranking
    answers = tuple(f" {text}" for text in ranking.completions)
    return replace(ranking, prompt=f"{HUMAN} {ranking.prompt}{ASSISTANT}", completions=answers)


def has_further_turns(answer: str) -> bool:
    """Whether an answer goes on into another turn of the dialogue."""
    return HUMAN in answer or ASSISTANT in answer


def _shared_length(first: str, second: str) -> int:
    """Characters that two texts share at their beginnings, by bisection: long texts are compared in C."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def text_lengths(rows: Sequence[Ranking] | Sequence[Demonstration]) -> dict[str, dict[str, float]]:
    """Mean, median and longest length in characters: of prompts and completions, or of the best and worst ones.

    Returns: which texts -> "mean", "median", "max"; empty without rows.
    """
    texts: dict[str, list[str]] = {}
    for row in rows:
        parts = {"prompt": row.prompt}
        if isinstance(row, Ranking):
            parts |= {"best": row.completions[0], "worst": row.completions[-1]}
        else:
            parts["completion"] = row.completion
        for name, text in parts.items():
            texts.setdefault(name, []).append(text)
    return {name: _summary([len(text) for text in group]) for name, group in texts.items()}


def longer_wins(rankings: Sequence[Ranking]) -> float:
    """Share of all pairs in which the longer text is the preferred one; equally long ones count half."""
    wins = total = 0.0
    for ranking in rankings:
        lengths = [len(text) for text in ranking.completions]
        total += len(lengths) * (len(lengths) - 1) / 2
        wins += sum(
            1.0 if length > later else 0.5 if length == later else 0.0
            for i, length in enumerate(lengths)
            for later in lengths[i + 1 :]
        )
    return wins / total if total else math.nan


def several_turns(rankings: Sequence[Ranking]) -> int:
    """Rankings with a completion that goes on into further turns of an HH dialogue."""
    return sum(any(map(has_further_turns, ranking.completions)) for ranking in rankings)


def _summary(lengths: list[int]) -> dict[str, float]:
    return {
        "mean": float(np.mean(lengths)),
        "median": float(np.median(lengths)),
        "max": float(np.max(lengths)),
    }
