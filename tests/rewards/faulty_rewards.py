"""Rewards that misbehave on completions that contain "bad"; importable, so a child process can load them."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import Any

from textgym.rewards import Scorer


@dataclass(frozen=True)
class Faulty:
    """Pays the number of characters; does `fault` when a completion contains "bad"."""

    fault: str

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
        scores: list[Any] = [float(len(text)) for text in completions]
        hit = [index for index, text in enumerate(completions) if "bad" in text]
        values = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "none": None, "wrong_item": "1.0"}
        for index in hit:
            scores[index] = values.get(self.fault, scores[index])
        if hit and self.fault == "raises":
            raise KeyError("lost")
        if hit and self.fault == "exits":
            raise SystemExit(0)
        if hit and self.fault == "leaves":
            raise GeneratorExit("gone")
        if hit and self.fault == "interrupts":
            raise KeyboardInterrupt
        if hit and self.fault == "dies":
            os._exit(3)
        if hit and self.fault == "wrong_length":
            return scores[1:]
        if hit and self.fault == "wrong_type":
            return dict(enumerate(scores))
        if hit and self.fault == "hangs":
            time.sleep(60)
        if self.fault == "prints":
            print("a line from the reward")
        if self.fault == "changes":
            change_everything(prompts, completions, columns)
        return scores


def change_everything(prompts: list[str], completions: list[str], columns: dict[str, Any]) -> None:
    """Change every list and dict that can be reached."""
    for values in columns.values():
        for value in values:
            if isinstance(value, list):
                value.append(99)
            if isinstance(value, dict):
                value.clear()
        values.clear()
    prompts.clear()
    completions[0] = "changed"
    completions.clear()


class Counting:
    """Pays how many completions it has ever seen; the count is its state."""

    name = "counting"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        if "bad" in completions:
            time.sleep(60)
        if "clash" in completions:
            raise KeyError("lost")
        self.seen += len(completions)
        return [float(self.seen)] * len(completions)

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


class BrokenPickle:
    """Can be pickled but not unpickled."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [0.0 for _ in completions]

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return int, ("no number",)


def returns(result: Any) -> Any:
    """A reward that returns this, whatever it is asked."""

    def fixed(prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return result

    return fixed


def score(result: Any, count: int = 2, **options: Any) -> Any:
    """What a `Scorer` makes of it."""
    return Scorer(returns(result), **options).score(["p"] * count, ["c"] * count)


shouting = Faulty("prints")
raising = Faulty("raises")
