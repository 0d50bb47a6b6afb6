"""What learning costs, evaluations apart: tokens, seconds and CPU seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from textgym_agents.protocol import Metrics

_PREFIX = "learning/"


class LearningMeter:
    """Adds up what every iteration takes, from `start` to `stop`.

    Tokens are those of every completion that the task's reward has scored, the same way for every agent: what a search
    or a choice scores in environments of its own is among them, what a rollout leaves unfinished is not. Where an
    iteration has none scored, because it learns from given texts, it counts those that were read, which the agent
    reports as `tokens`.

    Args:
        env: that the agent learns in.
    """

    def __init__(self, env: Any) -> None:
        self._scorer = env.unwrapped.task.scorer
        self._tokens = 0
        self._seconds = self._cpu_seconds = 0.0
        self._marks = self._now()

    def start(self) -> None:
        """Learning goes on."""
        self._marks = self._now()

    def stop(self, metrics: Mapping[str, float] | None = None) -> None:
        """An iteration is over. Args: metrics: what the agent says of it."""
        metrics = metrics or {}
        scored, seconds, cpu_seconds = (
            now - then for now, then in zip(self._now(), self._marks, strict=True)
        )
        self._tokens += int(scored) or int(metrics.get("tokens", 0))
        self._seconds += seconds
        self._cpu_seconds += cpu_seconds
        self.start()

    def row(self) -> Metrics:
        """The sums so far, under `learning/...`."""
        return {
            f"{_PREFIX}tokens": self._tokens,
            f"{_PREFIX}seconds": self._seconds,
            f"{_PREFIX}cpu_seconds": self._cpu_seconds,
        }

    def restore(self, row: Mapping[str, Any]) -> None:
        """Goes on from the sums of a row that an interrupted run has logged."""
        self._tokens = int(row.get(f"{_PREFIX}tokens", 0))
        self._seconds = float(row.get(f"{_PREFIX}seconds", 0.0))
        self._cpu_seconds = float(row.get(f"{_PREFIX}cpu_seconds", 0.0))
        self.start()

    def _now(self) -> tuple[float, float, float]:
        return self._scorer.tokens, time.monotonic(), time.process_time()
