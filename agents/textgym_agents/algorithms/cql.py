"""Conservative Q-learning: learn from a log the best values that its own tokens support, and reweight the reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from textgym.task import Task
from textgym_agents.config import share
from textgym_agents.lm.logged import LoggedStates, ValueAgent, ValueConfig, expectile_loss, mixed_returns


@dataclass(frozen=True)
class CQLConfig(ValueConfig):
    """Settings of CQL. Raises: as `LMConfig` does."""

    cql_weight: float = 0.01
    """alpha in the paper, reward units: weight of log sum exp Q - Q(a). With 0, nothing keeps the values of unlogged
    tokens low."""
    lam: float = 0.95
    """Share of the logged return in the target BQ, per token; the rest is max Q. 0, as in the paper, takes many passes
    over a log to propagate values from the last token to the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "lam")


class CQL(ValueAgent):
    """An LM policy reweighted by conservative values of a log. Args: see `LMAgent`.

    Q(s, a) is fitted to BQ = r + max Q(s', .) and pushed down where its own softmax mu exceeds the log's frequencies
    pi_data: Q = BQ - alpha (mu / pi_data - 1). Q is represented by the policy itself, see `textgym_agents.lm.logged`,
    and V is its maximum.

    Raises: as `LMAgent` does; ValueError for a task with turns or a grammar mask.
    Source: Kumar et al. (2020), arXiv:2006.04779, eq. 4, CQL(H).
    """

    name = "cql"
    config_type = CQLConfig
    config: CQLConfig

    def __init__(self, task: Task, config: CQLConfig | None = None, model: nn.Module | None = None) -> None:
        super().__init__(task, config or CQLConfig(), model)

    def targets(self, states: LoggedStates) -> Tensor:
        """See `ValueAgent.targets`."""
        best = (states.centres + states.greatest).detach()
        return mixed_returns(states.rewards, best, states.last, self.config.lam)

    def value_loss(self, states: LoggedStates) -> Tensor:
        """See `ValueAgent.value_loss`: V is max Q."""
        return expectile_loss((states.centres + states.greatest).detach() - states.values, 0.5)
