"""Advantage-weighted regression: a log's tokens are imitated, each the more the better its episode went on."""

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
    """Reward units: a token weighs exp((return - V) / T). None: the task's beta, or that of `beta`."""
    greatest_weight: float = 1000.0
    """What weights are cut off at; the paper's is 20, which at T = beta cuts off a quarter of Helpful's."""
    value_coefficient: float = 0.1
    """Weight of the loss of V, in units of the first returns' spread, against that of the policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "greatest_weight")
        not_negative(self, "value_coefficient")


class AWR(LoggedAgent):
    """An LM policy that imitates a log by its advantages. Args: see `LMAgent`.

    The loss is -exp((G - V(s)) / T) log pi(a) for every logged token, G the return that followed. Where the reference
    logged, nothing chance decides, and no weight is cut off, the loss is least at pi(a) proportional to
    ref(a) E[exp(G / T) given s, a]: for T = beta that is the optimum of J, whatever V is.

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
