"""Learning from logged completions with rewards: action values beside a policy, as pure functions and as an agent.

A log holds episodes that somebody else has played, the behaviour policy. N are the tokens that it wrote, row by row and
in order. Q(s, a) = b(s) + T log(pi(a) / ref(a)), T being the `advantage_temperature`: so the policy pi is the reference
reweighted by exp((Q - V) / T), and there is no second network to be asked when it acts. b(s) is a number apart, which
makes Q any function at all; it is T log E_ref[exp(Q / T)]. With log-probabilities in place of logits an error that all
logged tokens of a state share has no gradient on a policy that is the log's, on average, and b(s) takes it up. Values
are those of rewards alone, at time 0, without the KL.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from textgym.checks import Floats, Ints
from textgym.lm.categorical import streamed
from textgym.preferences import Demonstration
from textgym.task import Task
from textgym.vector import TokenVectorEnv
from textgym_agents.config import at_least_one, not_negative, positive, require
from textgym_agents.datasets.reading import Recording
from textgym_agents.lm.gathered import whole_rollout
from textgym_agents.lm.offline import OfflineAgent, OfflineConfig
from textgym_agents.lm.rollout import collect
from textgym_agents.lm.sequences import Sequences, of_rollout
from textgym_agents.protocol import Metrics, Observation


@dataclass(frozen=True)
class LoggedConfig(OfflineConfig):
    """Settings of agents that learn from a log with rewards. Raises: as `LMConfig` does."""

    data: str | None = None
    """Log of completions with rewards, or folder of a Minari dataset; None: completions of the reference."""
    logged: int | None = None
    """Number of completions of the reference to log, rounded up to whole iterations, with repeated passes over them;
    None: new ones in every iteration. Only without data."""
    advantage_temperature: float | None = None
    """T, reward units: the policy is the reference times exp((Q - V) / T). None: `beta`, or the task's beta."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "logged")
        require("logged", self.logged, self.logged is None or self.data is None, "None where data is given")
        positive(self, "advantage_temperature")

    @property
    def prompts_from(self) -> str:
        """See `OfflineConfig.prompts_from`: what is logged once comes again."""
        return super().prompts_from or ("logged" if self.logged is not None else "")


@dataclass(frozen=True)
class ValueConfig(LoggedConfig):
    """Settings of agents that learn action values from a log. Raises: as `LMConfig` does."""

    cql_weight: float = 0.0
    """Weight of the term log sum exp Q - Q(a), which keeps the values of unlogged tokens low, reward units."""
    value_coefficient: float = 0.1
    """Weight of the losses of V(s) and b(s) relative to that of the logits. All train the same trunk; the minimum does
    not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "cql_weight", "value_coefficient")
        require("parallel", self.parallel, self.parallel == "ddp", "'ddp': the heads of values are not sharded")


class LoggedStates(NamedTuple):
    """What a loss needs of the N states in which a logged token was written, (N,) each.

    Attributes:
        rewards: gamma^t r_t of the token. to_go: the sum of it and all later ones in its row. Reward units at time 0.
        last: bool, whether it is the last one of its row.
        values, centres: V(s) and b(s); V(s) twice for an agent without Q. Reward units at time 0, differentiable.
        gaps: Q(s, a) - b(s) of the token. log_sum, greatest: of Q(s, .) - b(s) over all allowed tokens the log sum exp
            and the maximum. Reward units at time 0, differentiable.
        log_probs: of the token under the policy, nats; differentiable.
    """

    rewards: Tensor
    to_go: Tensor
    last: Tensor
    values: Tensor
    centres: Tensor
    gaps: Tensor
    log_sum: Tensor
    greatest: Tensor
    log_probs: Tensor


# The losses


def expectile_loss(errors: Tensor, expectile: float) -> Tensor:
    """Return |tau - [u < 0]| u^2 of errors u (N,), target less prediction; differentiable.

    With tau = 1/2 it is half a square. The larger tau, the nearer is its minimum to the greatest target.

    Args: expectile: tau in (0, 1).
    Source: Newey and Powell (1987), Econometrica 55; Kostrikov et al. (2021), arXiv:2110.06169, eq. 3.
    """
    below = (errors < 0).to(errors.dtype)
    return (expectile - below).abs() * errors.square()


def following(values: Tensor, last: Tensor) -> Tensor:
    """Return what the next state of each row has (N,), 0 behind its last one. Args: values: (N,). last: (N,) bool."""
    return torch.where(last, 0.0, values.roll(-1))


def mixed_returns(rewards: Tensor, values: Tensor, last: Tensor, lam: float) -> Tensor:
    """Return y_t = r_t + (1 - lam) V(s_{t+1}) + lam y_{t+1} within each row (N,), with V and y 0 behind its end.

    Args: rewards, values: (N,), reward units at time 0. last: (N,) bool. lam: in [0, 1]; 1 is what was logged alone.
    Source: Sutton and Barto (2018), Reinforcement Learning: An Introduction, section 12.1.
    """
    base = rewards + (1 - lam) * following(values, last)
    found, left = base, last.logical_not()
    while lam and left.any():
        found, left = base + lam * following(found, last), following(left, last)
    return found


def returns_to_go(rewards: Floats, lengths: Ints) -> Floats:
    """Return the sum of each reward and all later ones of its row (N,): the Monte-Carlo targets.

    Args: rewards: (N,), row by row. lengths: (B,) int64, how many each row has.
    """
    sums = np.cumsum(rewards)
    ends = np.cumsum(lengths) - 1
    return np.asarray(np.repeat(sums[ends], lengths) - sums + rewards)


def cql_term(log_sum: Tensor, taken: Tensor) -> Tensor:
    """Return log sum_a exp Q(s, a) - Q(s, a_logged) (N,), whatever constant of the state is left out of both.

    Its gradient with respect to Q is mu - pi_data, with mu = softmax(Q): beside half the squared distance to BQ, times
    alpha, the minimum is at Q = BQ - alpha (mu / pi_data - 1).

    Source: Kumar et al. (2020), arXiv:2006.04779, eq. 4.
    """
    return log_sum - taken


def regression_weights(advantages: Tensor, temperature: float, most: float) -> Tensor:
    """Return exp(A / temperature) (N,), at most `most`; without a gradient.

    Source: Peng et al. (2019), arXiv:1910.00177, eq. 10 and section 5 (the limit).
    """
    return (advantages.detach() / temperature).exp().clamp(max=most)


# The agents


class LoggedAgent(OfflineAgent):
    """An LM policy that learns from a log with rewards; without one, the reference logs. Args: see `LMAgent`.

    Raises: as `LMAgent` does; ValueError for a grammar mask, a task with turns, or a temperature of 0.
    """

    config: LoggedConfig

    def __init__(self, task: Task, config: LoggedConfig, model: nn.Module | None = None) -> None:
        super().__init__(task, config, model)
        temperature = config.advantage_temperature
        self.advantage_temperature = self.controller.beta if temperature is None else temperature
        if not self.advantage_temperature > 0:
            raise ValueError("advantage_temperature=None: beta is 0, which it would be; allowed is a number > 0")

    def _has_data(self) -> bool:
        return self.config.data is not None

    def _read(self) -> list[Demonstration]:
        raise ValueError(f"data={self.config.data!r}: rows without rewards; allowed are logs with rewards")

    def _select(self, recording: Recording) -> Sequences:
        return recording.sequences

    def _batch(self, env: TokenVectorEnv) -> tuple[Sequences, Metrics]:
        if self._has_data():
            batch, metrics = super()._batch(env)
        else:
            rounds = self.config.logged and -(-self.config.logged // (self.devices.world * env.num_envs))
            place = self.iteration % rounds if rounds else self.iteration
            seed = int(np.random.SeedSequence([self.config.seed, place, 0]).generate_state(1)[0])
            part = collect(env, self.reference, seed, self.task.vocabulary.stop_ids, devices=self.devices)
            batch, metrics = of_rollout(whole_rollout(self.devices, part), self.task.gamma), {}
        self._centre_values(batch.returns)
        return batch, metrics | {"data/scores": float(batch.returns.mean())}

    def _total(self, batch: Sequences) -> int:
        return int(batch.lengths.sum())

    def states(self, batch: Sequences) -> LoggedStates:
        """Return what the losses need of some logged episodes; differentiable."""
        rows, columns = batch.places()
        ids = torch.tensor(batch.input_ids[:, : columns.max() + 1], device=self.policy.device)
        at = torch.tensor(rows, device=ids.device), torch.tensor(columns - 1, device=ids.device)
        with torch.no_grad():
            base = self.reference.features(ids, *at)
        found = streamed(
            self._of_states, self.policy.features(ids, *at), self.policy.backbone.vocab_size, base, ids[rows, columns]
        )
        assert batch.rewards is not None
        paid = batch.rewards[rows, columns]
        each = (paid, returns_to_go(paid, batch.lengths))
        rewards, to_go = (torch.tensor(part, dtype=torch.float32, device=ids.device) for part in each)
        last = torch.tensor(np.append(rows[1:] != rows[:-1], True), device=ids.device)
        return LoggedStates(rewards, to_go, last, *found)

    def _of_states(self, features: Tensor, base: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return what `LoggedStates` has from `values` on, (n,) each."""
        logits, head = self.policy.heads(features)
        logs = torch.log_softmax(logits, -1)
        gaps = self.advantage_temperature * (logs - self.reference.distribution(base))
        allowed = torch.tensor(self.task.vocabulary.allowed, device=gaps.device)
        over = gaps.masked_fill(~allowed, -torch.inf)
        taken, own = (each.gather(1, tokens[:, None]).squeeze(1) for each in (gaps, logs))
        values = (self.value_offset + (self.value_scale or 1.0) * head).view(len(head), -1)
        return values[:, 0], values[:, -1], taken, over.logsumexp(-1), over.amax(-1), own


class ValueAgent(LoggedAgent):
    """An agent that learns Q and V from a log. Args, Raises: see `LoggedAgent`."""

    config: ValueConfig

    def __init__(self, task: Task, config: ValueConfig, model: nn.Module | None = None) -> None:
        super().__init__(task, config, model)
        heads = nn.utils.skip_init(nn.Linear, self.policy.backbone.hidden_size, 2, device=self.policy.device)
        for parameter in heads.parameters():
            nn.init.zeros_(parameter)
        self.policy.value_head = heads  # V(s) and b(s)
        (group,) = self.optimizer.param_groups
        group["params"] = list(self.policy.parameters())

    @abstractmethod
    def targets(self, states: LoggedStates) -> Tensor:
        """Return what Q(s, a) of the logged tokens is fitted to (N,), reward units at time 0; without a gradient."""

    @abstractmethod
    def value_loss(self, states: LoggedStates) -> Tensor:
        """Return the loss of V(s) (N,), reward units squared; differentiable in `states.values` alone."""

    def _losses(self, batch: Sequences, reference: Tensor) -> tuple[Tensor, Metrics]:
        states = self.states(batch)
        errors = self.targets(states) - states.centres
        of_values = self.value_loss(states)
        of_centres = expectile_loss(errors - states.gaps.detach(), 0.5)
        of_gaps = expectile_loss(errors.detach() - states.gaps, 0.5)
        held = self.config.cql_weight * cql_term(states.log_sum, states.gaps)
        losses = self.config.value_coefficient * (of_values + of_centres) + of_gaps + held
        parts = {"loss/v": of_values, "loss/q": of_gaps, "loss/cql": held, "values/v": states.values}
        return losses / (self.value_scale or 1.0) ** 2, {
            name: float(each.detach().sum()) for name, each in parts.items()
        }

    @torch.no_grad()
    def action_values(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Return V(s) (B,) and Q(s, .) (B, V) of a batch of states, reward units at time 0, of rewards alone."""
        logits, head = self.policy.heads(self.policy.read(observation))
        values = self.value_offset + (self.value_scale or 1.0) * head
        ratios = torch.log_softmax(logits, -1) - self.reference.distribution(self.reference.read(observation))
        return values[:, 0], values[:, 1:] + self.advantage_temperature * ratios
