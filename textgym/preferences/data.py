"""Rankings, demonstrations and transcripts, and statistics of them.

Source: Bai et al., arXiv:2204.05862; the files of https://github.com/anthropics/hh-rlhf.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, median
from typing import Generic, TypeVar

from textgym.codecs.chat import read_dialogue

Row = TypeVar("Row")
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


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
        names = [f"answer {place} of {count}" for place in range(1, count + 1)]
        if count == 2:
            names = ["the chosen answer", "the rejected answer"]
        seen: dict[str, str] = {}
        for text, name in zip(self.completions, names, strict=True):
            _check_answer(text, name)
            if text in seen:
                raise ValueError(f"{seen[text]} and {name} are identical")
            seen[text] = name
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
    """A `line` of the file at `path` that cannot be used. `message` may quote it: escape it before printing."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.message}"


@dataclass(frozen=True)
class Reading(Generic[Row]):
    """The content of a file: every line that is not blank is a row or a problem.

    Args:
        rows: in the file's order.
        problems: in the file's order; empty where reading was told to stop at them.
        format: "trl", "messages", "transcripts", "rankings" or "demonstrations"; "" where no row is good.
    """

    rows: list[Row]
    problems: list[Problem]
    format: str = ""


def pairs(ranking: Ranking) -> list[Ranking]:
    """Return the K (K - 1) / 2 preferences in a ranking, in its order, each with the ranking's margin."""
    ended, scores = ranking.ended, ranking.scores
    return [
        replace(
            ranking,
            completions=(ranking.completions[i], ranking.completions[j]),
            ended=None if ended is None else (ended[i], ended[j]),
            scores=None if scores is None else (scores[i], scores[j]),
        )
        for i, j in combinations(range(len(ranking.completions)), 2)
    ]


def demonstration(ranking: Ranking) -> Demonstration:
    """Return the best completion of a ranking."""
    return Demonstration(ranking.prompt, ranking.completions[0], True if ranking.ended is None else ranking.ended[0])


def _check_text(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is of type {type(text).__name__}, allowed is a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Half of a pair of UTF-16 units: JSON can write it, no tokenizer and no UTF-8 file can hold it.
        raise ValueError(f"{what} holds a lone surrogate, {text[error.start]!r}, which is no character") from None


def _check_answer(text: str, what: str) -> None:
    _check_text(text, what)
    if not text or text.isspace():
        raise ValueError(f"{what} is empty")


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return the prompt and both answers of two transcripts.

    The prompt goes up to and including the last `ASSISTANT` of what both share, so it never ends inside a turn.
    Where the dialogues part before their last turn, the answers hold the further turns: those too are what the
    annotators compared.

    Raises: ValueError if the transcripts share no such border.
    """
    place = os.path.commonprefix([chosen, rejected]).rfind(ASSISTANT)  # noqa: RUF071
    if place < 0:
        raise ValueError(f"no common prefix: the transcripts share no turn that begins with {ASSISTANT!r}")
    end = place + len(ASSISTANT)
    return chosen[:end], chosen[end:], rejected[end:]


def transcripts(ranking: Ranking) -> tuple[str, str]:
    """Return both dialogues of a ranking of 2.

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
            f"prompt {prompt!r:.60}: in the format transcripts a prompt must end in {ASSISTANT!r}, and the answers "
            "must not share a further turn (textgym.preferences.data.as_dialogue makes a dialogue of a plain prompt)"
        )
    return pair


def as_dialogue(ranking: Ranking) -> Ranking:
    """Return the ranking as a dialogue, a turn for each message; unchanged if its prompt ends in `ASSISTANT` already.

    Raises: ValueError for a prompt with a system message, which has no tag.
    """
    if ranking.prompt.endswith(ASSISTANT):
        return ranking
    messages = read_dialogue(ranking.prompt)
    if messages[0]["role"] == "system":
        raise ValueError(f"prompt {ranking.prompt!r:.60}: has a system message, which transcripts do not know")
    turns = (f"{HUMAN if each['role'] == 'user' else ASSISTANT} {each['content']}" for each in messages)
    answers = tuple(f" {text}" for text in ranking.completions)
    return replace(ranking, prompt=f"{''.join(turns)}{ASSISTANT}", completions=answers)


def text_lengths(rows: Sequence[Ranking] | Sequence[Demonstration]) -> dict[str, dict[str, float]]:
    """Measure lengths in characters: of prompts and completions, or of prompts, best and worst completions.

    Returns: which texts -> "mean", "median", "max"; empty without rows.
    """
    lengths: dict[str, list[int]] = {}
    for row in rows:
        parts = {"prompt": row.prompt}
        if isinstance(row, Ranking):
            parts |= {"best": row.completions[0], "worst": row.completions[-1]}
        else:
            parts["completion"] = row.completion
        for name, text in parts.items():
            lengths.setdefault(name, []).append(len(text))
    return {
        name: {"mean": fmean(values), "median": float(median(values)), "max": float(max(values))}
        for name, values in lengths.items()
    }


def _share(wins: Iterable[float]) -> float:
    counted = [*wins]
    return sum(counted) / len(counted) if counted else math.nan


def longer_wins(rankings: Sequence[Ranking]) -> float:
    """Return the share of all pairs in which the longer text is the preferred one; equally long ones count half."""
    return _share(
        (len(text) > len(later)) + 0.5 * (len(text) == len(later))
        for ranking in rankings
        for text, later in combinations(ranking.completions, 2)
    )


def disagreement(rankings: Sequence[Ranking]) -> float:
    """Return the share of pairs in the rankings whose lower completion has the higher score; NaN without scores."""
    return _share(score < later for ranking in rankings for score, later in combinations(ranking.scores or (), 2))


def several_turns(rankings: Sequence[Ranking]) -> int:
    """Count the rankings with a completion that goes on into further turns of a dialogue."""
    return sum(any(HUMAN in text or ASSISTANT in text for text in ranking.completions) for ranking in rankings)
