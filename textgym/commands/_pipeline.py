"""Follows work of several stages: one bar after the other, or plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textgym.commands._fit import FitDisplay

_EVERY = 10  # iterations of a long training between two lines


class PipelineDisplay(FitDisplay):
    """A `Watcher` for people that reads the rows of every kind of training.

    Args:
        episodes: the budget of the reinforcement learning among the stages.
    """

    def __init__(self, episodes: int) -> None:
        super().__init__()
        self._episodes = episodes

    def iteration(self, row: Mapping[str, Any]) -> None:
        """See `Watcher.iteration`."""
        if "episode" not in row:
            super().iteration(row)
            return
        names = {
            "objective/scores": "reward",
            "objective/kl": "kl",
            "eval/reward": "held-out reward",
            "eval/gold": "held-out gold",
        }
        cells = [f"{label} {row[name]:.4g}" for name, label in names.items() if row.get(name) is not None]
        done = min(row["episode"], self._episodes)
        if self._live:
            self._progress.update(
                self._task, completed=done, total=self._episodes, description="  ".join(cells)
            )
        elif row["iteration"] % _EVERY == 0 or "eval/reward" in row or done == self._episodes:
            self._say(f"episode {done:.0f}/{self._episodes}  {'  '.join(cells)}")
