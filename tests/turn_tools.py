"""Environments that answer: an echo with something hidden, and a task over six words in turns; tools and users, which
child processes can load.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from textgym import make_task
from textgym.rewards.base import NamedReward
from textgym.task import Task
from textgym.turns import Reply, Turns


class Echo:
    """Repeats the turn behind a mark; it answers with as many tokens as it got, and hides a number that it adds."""

    def __init__(self, mark=5, weights=(1.0,), ends_after=None):
        self.mark, self._weights, self.ends_after = mark, weights, ends_after

    def weights(self, prompt):
        return self._weights

    def replies(self, states):
        return [
            Reply((self.mark + (state.hidden or 0), *state.turn[:2]), state.replies + 1 == self.ends_after)
            for state in states
        ]


class CountsTurns(NamedReward):
    """Pays for every turn of the policy, and for every a in one."""

    name = "turns"

    def __call__(self, prompts, completions, **columns):
        said = [[text for author, text in each if author == "policy"] for each in columns["turns"]]
        return [len(texts) + sum(text.split().count("a") for text in texts) for texts in said]


def ragged(responder=None, most=3, tokens=3, close=(), **options) -> Task:
    """A task over a b c d e f whose turns end with f, or after three tokens."""
    base = make_task("Copy", difficulty=2)
    turns = Turns(responder or Echo(), most, tokens, reply_tokens=3, ends=(5,), close=close)
    return replace(base, turns=turns, max_new_tokens=turns.room, reward=CountsTurns(), gold=None, **options)


def shout(text):
    return text.upper()


def broken(text):
    raise {"exit": SystemExit(1), "empty": ValueError()}.get(text, KeyError("lost"))


def never(*arguments, **options):
    time.sleep(60)


def dies(*arguments, **options):
    os._exit(3)


def fails(conversations):
    raise KeyError("no line")


def polite(conversations):
    return [f"{conversation[-1]['content']}, please" for conversation in conversations]
