"""Which episode the microscope looks at."""

from __future__ import annotations

from dataclasses import dataclass

from textgym_benchmarks.microscope.exact import MAX_STATES
from textgym_benchmarks.microscope.trace import Chosen

TOP = 8


@dataclass(frozen=True)
class Request:
    """Which episode is looked at.

    Args:
        prompt: a text of one's own; prompt_index: a place in the split. None of them: drawn by `seed`.
        split: "train", "eval" or "tune".
        seed: of the prompt's draw, the reward's noise and the tokens: 0 or more.
        deterministic: the likeliest token is written. What is shown of pi stays that of pi.
        completion: a text whose tokens are written, and the stop token where there is room; the name of a stop token
            at its end is that token. None: pi's own.
        beta: reward units per nat; None takes the task's.
        top: how many of the likeliest tokens are shown.
        max_states: the largest tree of a prompt that is solved.
    Raises: ValueError for a number out of range, or two choices of the same.
    """

    prompt: str | None = None
    prompt_index: int | None = None
    split: str = "eval"
    seed: int = 0
    deterministic: bool = False
    completion: str | None = None
    beta: float | None = None
    top: int = TOP
    max_states: int = MAX_STATES

    def __post_init__(self) -> None:
        for name, least in {"seed": 0, "top": 1, "max_states": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)!r}: allowed is an integer >= {least}")
        if self.beta is not None and not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta={self.beta!r}: allowed is a finite number >= 0 (reward units per nat)")
        if self.prompt is not None and self.prompt_index is not None:
            raise ValueError(
                "prompt, prompt_index: both choose the prompt; allowed is one of them, or none to draw it"
            )
        if self.deterministic and self.completion is not None:
            raise ValueError(
                "deterministic, completion: both choose the tokens; allowed is one of them, or none to sample"
            )

    @property
    def chosen(self) -> Chosen:
        """How the tokens are chosen."""
        if self.completion is not None:
            return "given"
        return "likeliest" if self.deterministic else "sampled"
