"""Monte-Carlo values: learn the mean returns of a log's tokens, and reweight the reference by them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from textgym.task import Task
from textgym_agents.lm.logged import LoggedStates, ValueAgent, ValueConfig, expectile_loss


@dataclass(frozen=True)
class MCValuesConfig(ValueConfig):
    """Settings of Monte-Carlo values. Raises: as `LMConfig` does."""


class MCValues(ValueAgent):
    """An LM policy reweighted by the returns of a log. Args: see `LMAgent`.

    Q(s, a) and V(s) are fitted to the returns that followed, so they are the values of the policy that wrote the log,
    and the result is one improvement step from that policy.

    Raises: as `LMAgent` does; ValueError for a task with turns or a grammar mask.
    Source: Abdulhai et al. (2023), arXiv:2311.18232, section 5.1 (MC returns).
    """

    name = "mc-values"
    config_type = MCValuesConfig
    config: MCValuesConfig

    def __init__(self, task: Task, config: MCValuesConfig | None = None, model: nn.Module | None = None) -> None:
        super().__init__(task, config or MCValuesConfig(), model)

    def targets(self, states: LoggedStates) -> Tensor:
        """See `ValueAgent.targets`."""
        return states.to_go

    def value_loss(self, states: LoggedStates) -> Tensor:
        """See `ValueAgent.value_loss`."""
        return expectile_loss(states.to_go - states.values, 0.5)
