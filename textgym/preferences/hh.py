"""Transcripts as in Anthropic's HH data: two dialogues that begin alike and end in different answers.

Source: Bai et al., arXiv:2204.05862; the files of https://github.com/anthropics/hh-rlhf.
"""

from __future__ import annotations

from dataclasses import replace

from textgym.preferences.data import Ranking

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
            "share a further turn (textgym.preferences.hh.as_dialogue makes a dialogue of a plain prompt)"
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
