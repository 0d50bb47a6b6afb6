"""Agents that learn from logs with one planted bug each, and the check that must catch it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from textgym_agents.algorithms.awr import AWR, AWRConfig
from textgym_agents.algorithms.behaviour_cloning import BehaviourCloning
from textgym_agents.algorithms.cql import CQL
from textgym_agents.algorithms.ilql import ILQL
from textgym_agents.algorithms.mc_values import MCValues
from textgym_agents.lm.logged import expectile_loss
from textgym_agents.lm.rollout import collect
from textgym_agents.lm.sequences import Sequences


class AsksTheEnvironment(ILQL):
    """Plays a batch beside the log."""

    def _batch(self, env: Any) -> Any:
        collect(env, self.reference, 0, self.task.vocabulary.stop_ids)
        return super()._batch(env)


class LearnsThePrompt(BehaviourCloning):
    """Takes the last token of a prompt for one of the completion."""

    def _losses(self, batch: Any, reference: Any) -> Any:
        more = (batch.starts > 1).astype(np.int64)
        return super()._losses(Sequences(batch.input_ids, batch.starts - more, batch.lengths + more), reference)


class LearnsThePadding(BehaviourCloning):
    """Takes every completion to be as long as the longest."""

    def _losses(self, batch: Any, reference: Any) -> Any:
        room = batch.input_ids.shape[1] - batch.starts
        return super()._losses(Sequences(batch.input_ids, batch.starts, room), reference)


class PaysTheFirstToken(MCValues):
    """Pays the first token for the whole episode."""

    def _select(self, recording: Any) -> Any:
        found = super()._select(recording)
        rewards = np.zeros_like(found.rewards)
        rewards[np.arange(len(rewards)), found.starts] = found.returns
        return replace(found, rewards=rewards)


class LeaksBetweenRows(ILQL):
    """Adds behind the end of a row what stands in the next one."""

    def targets(self, states: Any) -> Any:
        return states.rewards + states.values.detach().roll(-1)


class ExpectileUpsideDown(ILQL):
    """Leans towards the worst token."""

    def value_loss(self, states: Any) -> Any:
        return expectile_loss((states.centres + states.gaps).detach() - states.values, 1 - self.config.expectile)


class ForgetsTheRest(MCValues):
    """Fits Q to the token's own reward."""

    def targets(self, states: Any) -> Any:
        return states.rewards


class BacksUpTheMean(CQL):
    """Follows the logged token in place of the best."""

    def targets(self, states: Any) -> Any:
        taken = (states.centres + states.gaps).detach()
        return states.rewards + torch.where(states.last, 0.0, taken.roll(-1))


class HoldsUp(CQL):
    """Raises what was not logged."""

    def _losses(self, batch: Any, reference: Any) -> Any:
        self.config = replace(self.config, cql_weight=abs(self.config.cql_weight))
        object.__setattr__(self.config, "cql_weight", -self.config.cql_weight)
        found = super()._losses(batch, reference)
        object.__setattr__(self.config, "cql_weight", -self.config.cql_weight)
        return found


@dataclass(frozen=True)
class LowLimit(AWRConfig):
    greatest_weight: float = 1.5


class ForgetsTheLimit(AWR):
    """Lets weights grow."""

    config_type = LowLimit

    def __init__(self, task: Any, config: LowLimit | None = None) -> None:
        super().__init__(task, config or LowLimit())

    def _losses(self, batch: Any, reference: Any) -> Any:
        kept = self.config
        self.config = replace(kept, greatest_weight=1e30)
        found = super()._losses(batch, reference)
        self.config = kept
        return found


class CountsRows(AWR):
    """Divides by the rows and not by the tokens."""

    def _total(self, batch: Any) -> int:
        return len(batch.lengths)


LOG_MUTANTS = {
    "asks the environment": (AsksTheEnvironment, "log: environment left alone"),
    "learns the prompt": (LearnsThePrompt, "log: tokens of completions"),
    "learns the padding": (LearnsThePadding, "log: tokens of completions"),
    "pays the first token": (PaysTheFirstToken, "log: loss"),
    "leaks between rows": (LeaksBetweenRows, "log: loss"),
    "expectile upside down": (ExpectileUpsideDown, "log: loss"),
    "forgets the rest": (ForgetsTheRest, "log: loss"),
    "backs up the mean": (BacksUpTheMean, "log: loss"),
    "holds up": (HoldsUp, "log: loss"),
    "forgets the limit": (ForgetsTheLimit, "log: loss"),
    "counts rows": (CountsRows, "log: loss"),
}
