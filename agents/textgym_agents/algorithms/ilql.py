"""Implicit language Q-learning: learn values of a log that lean towards its best tokens, and reweight the reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from textgym.task import Task
from textgym_agents.config import require, share
from textgym_agents.lm.logged import LoggedStates, ValueAgent, ValueConfig, expectile_loss, mixed_returns


@dataclass(frozen=True)
class ILQLConfig(ValueConfig):
    """Settings of ILQL. Raises: as `LMConfig` does."""

    expectile: float = 0.7
    """tau in (0, 1): V(s) is this expectile of Q(s, a) over logged tokens; near 1 it approaches their maximum."""
    lam: float = 0.95
    """Share of the logged return in the target of Q, per token; the rest is V. 0, as in the paper, takes many passes
    over a log to propagate values from the last token to the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "lam")
        require("expectile", self.expectile, 0 < self.expectile < 1, "a number in (0, 1)")


class ILQL(ValueAgent):
    """An LM policy reweighted by the values of a log. Args: see `LMAgent`.

    Q(s, a) is fitted to r + V(s'), and V(s) to an expectile of Q(s, a) over the log's own tokens, so no maximum is
    taken over tokens that nobody tried. Q is represented by the policy itself, see `textgym_agents.lm.logged`, so no
    second policy is fitted. The paper's slow copies of Q are not needed, since a text never returns to a state.

    Raises: as `LMAgent` does; ValueError for a task with turns or a grammar mask.
    Source: Snell et al. (2022), arXiv:2206.11871, section 4; Kostrikov et al. (2021), arXiv:2110.06169, eqs. 5 and 6.
    """

    name = "ilql"
    config_type = ILQLConfig
    config: ILQLConfig

    def __init__(self, task: Task, config: ILQLConfig | None = None, model: nn.Module | None = None) -> None:
        super().__init__(task, config or ILQLConfig(), model)

    def targets(self, states: LoggedStates) -> Tensor:
        """See `ValueAgent.targets`."""
        return mixed_returns(states.rewards, states.values.detach(), states.last, self.config.lam)

    def value_loss(self, states: LoggedStates) -> Tensor:
        """See `ValueAgent.value_loss`."""
        taken = (states.centres + states.gaps).detach()
        return expectile_loss(taken - states.values, self.config.expectile)
