"""Pattern: pays for completions that match a regular expression."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from textgym.rewards.base import NamedReward
from textgym.rewards.extras import Rebuilt
from textgym.rewards.regex import Mode, Regex


@dataclass(frozen=True)
class Pattern(Rebuilt, NamedReward):
    """Pays 1 for a completion that matches `pattern`, else 0.

    Args:
        pattern, mode, ignore_case, dot_all, multi_line: see `textgym.rewards.regex.Regex`. Time is linear in
            the text; what re2 cannot express is refused.
    """

    pattern: str
    mode: Mode = "full"
    ignore_case: bool = False
    dot_all: bool = False
    multi_line: bool = False
    name = "pattern"
    maximum = 1.0

    def __post_init__(self) -> None:
        assert self._regex  # a bad pattern is refused now, not when it is first used

    @cached_property
    def _regex(self) -> Regex:
        return Regex(
            self.pattern,
            self.mode,
            ignore_case=self.ignore_case,
            dot_all=self.dot_all,
            multi_line=self.multi_line,
        )

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        return [*map(float, self._regex.matches(completions))]
