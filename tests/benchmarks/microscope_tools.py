"""Policies, critics and hostile tokens for the tests of the microscope."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from textgym_benchmarks.microscope.record import TraceRequest, record

from textgym import make_task
from textgym.lm.reference import UniformReference

HOSTILE = (
    "x<script>alert(1)</script>",
    "</script><script>alert(2)</script>x",
    "<img/src=x/onerror=alert(3)>x",
    "\x1b[31mred",
    "[bold]loud[/bold]",
    "\u202egnihton",
    "{{7*7}}",
)


class Fixed:
    """The same distribution in every state; V(s) is `value` if it is given."""

    def __init__(self, *probabilities: float, value: float | None = None, kl: str | None = None) -> None:
        with np.errstate(divide="ignore"):
            self._row = np.log(np.array(probabilities))
        self.config = SimpleNamespace(kl=kl)
        if value is not None:
            self.critic = True
            self.values = lambda observation: np.full(len(observation["input_ids"]), value)

    def log_probs(self, observation: Any) -> Any:
        return np.tile(self._row, (len(observation["input_ids"]), 1))


class Silent:
    """Writes one token after another and says nothing."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = list(tokens)

    def log_probs(self, observation: Any) -> None:
        return None

    def act(self, observation: Any, deterministic: bool = False) -> Any:
        return np.array([self.tokens.pop(0)])


def count_a(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Pays the number of words a."""
    return [float(text.split().count("a")) for text in completions]


def letters(**options: Any) -> Any:
    """Two words, two tokens, no stop: the hand-made numbers of the tests are of this task."""
    settings = {
        "prompts": ["a"],
        "tokenizer": ["a", "b"],
        "reward": count_a,
        "max_new_tokens": 2,
        "beta": 0.5,
    }
    return make_task("Text", **{**settings, **options})


def hostile_task() -> Any:
    """Every word and the prompt try to be more than text."""
    return make_task(
        "Text", prompts=[" ".join(HOSTILE)], tokenizer=HOSTILE, reward=count_a, max_new_tokens=len(HOSTILE)
    )


def hostile_trace() -> Any:
    """An episode that writes every hostile word, by an agent of a hostile name."""
    task = hostile_task()
    agent = Fixed(*np.full(len(HOSTILE), 1 / len(HOSTILE)))
    request = TraceRequest(completion=" ".join(HOSTILE), max_states=0)
    return record(agent, task, UniformReference(task.vocabulary.allowed), request, "textgym/Text-v0", HOSTILE[1])


def traced(agent: Any, task: Any, reference: Any, **request: Any) -> Any:
    """A trace; on the training split, which small tasks are solved on."""
    return record(agent, task, reference, TraceRequest(**{"split": "train", **request}))
