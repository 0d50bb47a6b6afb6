"""Behaviour cloning of a causal LM: cross entropy on demonstrated completions, which is supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from textgym.checks import not_one_of
from textgym.preferences import Demonstration, read_demonstrations
from textgym.task import Task
from textgym.world.demonstrations import task_demonstrations
from textgym.world.prompts import TASK_SHARES
from textgym_agents.config import at_least_one, only_with, require
from textgym_agents.datasets.reading import Recording
from textgym_agents.lm.offline import OfflineAgent, OfflineConfig
from textgym_agents.lm.sequences import Sequences, token_log_probs
from textgym_agents.protocol import Metrics


@dataclass(frozen=True)
class BehaviourCloningConfig(OfflineConfig):
    """Settings of behaviour cloning. Raises: as `LMConfig` does."""

    data: str | None = None
    """File of demonstrations, of preferences (the best completions are used) or of logged episodes; None: the built-in
    world's demonstrations, for its own tasks."""
    demonstrations: int = 5000
    """Number of demonstrations drawn from the built-in world, without `data`."""
    best_share: float = 1.0
    """Share of logged episodes to imitate, those with the highest returns: filtered behaviour cloning."""
    best_of: Literal["log", "prompt"] = "log"
    """What the share refers to. log: all episodes. prompt: the episodes of each prompt, at least one: rejection
    sampling from a log."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "demonstrations")
        only_with(self, "demonstrations", self.data is None, "data=None")
        share = self.best_share
        require("best_share", share, 0 < share <= 1, "a number in (0, 1]")
        require("best_share", share, share == 1 or self.data is not None, "1.0 without logged episodes")
        require("best_of", self.best_of, self.best_of in ("log", "prompt"), "'log' or 'prompt'")
        only_with(self, "best_of", share < 1, "best_share below 1")

    @property
    def prompts_from(self) -> str:
        """See `OfflineConfig.prompts_from`: demonstrations have their own."""
        return "data"


class BehaviourCloning(OfflineAgent):
    """An LM policy trained to reproduce demonstrations. Args: see `LMAgent`.

    It does not use rewards, except that `best_share` selects the best episodes of a log. Each demonstration that it
    sees counts as an episode.

    Raises: as `LMAgent` does; ValueError for a task with turns or a grammar mask, or without demonstrations.
    Source: Pomerleau (1989), ALVINN: An Autonomous Land Vehicle in a Neural Network; Ouyang et al. (2022),
        arXiv:2203.02155, section 3.5 (supervised fine-tuning); Chen et al. (2021), arXiv:2106.01345, section 5.1 (a
        share of the best episodes, there %BC).
    """

    name = "behaviour-cloning"
    config_type = BehaviourCloningConfig
    config: BehaviourCloningConfig

    def __init__(
        self, task: Task, config: BehaviourCloningConfig | None = None, model: nn.Module | None = None
    ) -> None:
        super().__init__(task, config or BehaviourCloningConfig(), model)
        if self.config.data is None and task.name not in TASK_SHARES:
            raise ValueError(
                f"data=None: {not_one_of('task with demonstrations', task.name, TASK_SHARES)} "
                "For another task, name a file"
            )

    def _has_data(self) -> bool:
        return True

    def _select(self, recording: Recording) -> Sequences:
        return recording.sequences.rows(recording.best(self.config.best_share, self.config.best_of == "prompt"))

    def _read(self) -> list[Demonstration]:
        if self.config.data is not None:
            share = self.config.best_share
            require("best_share", share, share == 1, "1.0 where data are texts without returns")
            return self._usable(read_demonstrations(self.config.data, self.config.on_broken))
        count, seed = self.config.demonstrations, self.config.seed
        return [Demonstration(*row) for row in task_demonstrations(self.task.name, count, seed)]

    def _losses(self, batch: Sequences, reference: Tensor) -> tuple[Tensor, Metrics]:
        logs, _ = token_log_probs(self.policy, batch)
        return -logs, {"loss/cross_entropy": -float(logs.detach().sum())}

    def _total(self, batch: Sequences) -> int:
        return int(batch.lengths.sum())
