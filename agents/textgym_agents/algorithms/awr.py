"""Advantage-weighted regression: imitate a log's tokens, weighted by how well their episodes continued."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from textgym.task import Task
from textgym_agents.config import not_negative, positive
from textgym_agents.lm.logged import LoggedAgent, LoggedConfig, expectile_loss, regression_weights
from textgym_agents.lm.sequences import Sequences
from textgym_agents.protocol import Metrics


@dataclass(frozen=True)
class AWRConfig(LoggedConfig):
    """Settings of advantage-weighted regression. Raises: as `LMConfig` does."""

    advantage_temperature: float | None = None
    """Temperature T of the weights exp((return - V) / T), reward units; None: `beta`, or the task's beta."""
    greatest_weight: float = 1000.0
    """Upper bound of the weights; the paper uses 20, which at T = beta cuts off a quarter of Helpful's."""
    value_coefficient: float = 0.1
    """Weight of the value loss relative to the policy loss, in units of the first returns' spread."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "greatest_weight")
        not_negative(self, "value_coefficient")


class AWR(LoggedAgent):
    """An LM policy that imitates a log, weighted by advantages. Args: see `LMAgent`.

    The loss is -exp((G - V(s)) / T) log pi(a) for every logged token, where G is the return that followed. If the
    reference wrote the log, nothing is random in the environment, and no weight is cut off, the minimum of the loss is
    at pi(a) proportional to ref(a) E[exp(G / T) given s, a]: for T = beta that is the optimum of J, whatever V is.

    Raises: as `LMAgent` does; ValueError for a task with turns or a grammar mask.
    Source: Peng et al. (2019), arXiv:1910.00177, algorithm 1, with Monte-Carlo returns.
    """

    name = "awr"
    config_type = AWRConfig
    config: AWRConfig

    def __init__(self, task: Task, config: AWRConfig | None = None, model: nn.Module | None = None) -> None:
        super().__init__(task, config or AWRConfig(), model)

    def _losses(self, batch: Sequences, reference: Tensor) -> tuple[Tensor, Metrics]:
        states = self.states(batch)
        errors = states.to_go - states.values
        weights = regression_weights(errors, self.advantage_temperature, self.config.greatest_weight)
        of_values = expectile_loss(errors / (self.value_scale or 1.0), 0.5)
        losses = self.config.value_coefficient * of_values - weights * states.log_probs
        return losses, {
            "loss/values": float(of_values.detach().sum()),
            "weights/mean": float(weights.sum()),
            "weights/cut": float((weights >= self.config.greatest_weight).sum()),
        }
