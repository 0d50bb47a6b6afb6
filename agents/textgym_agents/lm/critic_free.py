"""Policy gradients without a critic: returns of actions, groups and their baselines, and the loss of REINFORCE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from textgym.checks import Floats, Ints, equal_parts
from textgym.play import play_batch
from textgym.rewards.scorer import scorers_restored
from textgym.state import TokenState
from textgym.task import Task
from textgym.vector import TokenVectorEnv
from textgym_agents.config import KL
from textgym_agents.lm.devices import ALONE, Devices
from textgym_agents.lm.gathered import joined
from textgym_agents.lm.maths import Targets, charged_rewards, gae, on_device, scores, standardise
from textgym_agents.lm.metrics import varied
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.rollout import Recorder, Rollout, score_reference, token_kl
from textgym_agents.mcts.forest import Model

_EPSILON = 1e-4
_ROWS_AT_ONCE, _SCORED_AT_ONCE = 512, 64


def action_returns(rollout: Rollout, kl: Floats, kind: KL, beta: float, gamma: float) -> Floats:
    """Return the return of every action (N,), reward units at time 0.

    It is the sum of the action's own and all later rewards, less beta times the KL charged. A row's first entry is the
    return of the whole sequence. Behind a truncation, where only a critic could tell, it counts nothing.

    Args: see `textgym_agents.lm.maths.make_targets`.
    """
    rewards = charged_rewards(rollout, kl, kind, beta, gamma)
    return gae(rewards, np.zeros_like(rewards), rollout.lengths, 1.0)[rollout.rows, rollout.steps]


def critic_free_targets(
    rollout: Rollout, kl: Floats, kind: KL, beta: float, advantages: Floats, whiten: bool
) -> Targets:
    """Return targets without a critic.

    Args:
        advantages: (N,) reward units.
        whiten: divide them, and beta in the loss, by their standard deviation over the batch. Nothing is subtracted: a
            baseline is the algorithm's own business.
    """
    advantages, scale = standardise(advantages, centre=False) if whiten else (advantages, 1.0)
    return Targets(on_device(advantages, rollout), None, None, 0.0 if kind == "k1" else beta / scale, kl)


def _segments(rollout: Rollout, stride: int) -> tuple[Ints, Ints]:
    """Return row and time (M,) of where each segment of `stride` tokens begins, and then of where rows were cut off."""
    begin, cut = np.flatnonzero(rollout.steps % stride == 0), np.flatnonzero(rollout.truncated)
    return np.append(rollout.rows[begin], cut), np.append(rollout.steps[begin], rollout.lengths[cut])


def segment_states(env: TokenVectorEnv, rollout: Rollout, stride: int) -> list[TokenState]:
    """Return the M states that `segment_advantages` needs the values of, copied from the environment that was played.

    They are those in which a segment of `stride` tokens begins, and those in which an outer limit stopped a row.
    """
    rows, times = _segments(rollout, stride)
    ended = zip(env.get_states(rows.tolist()), times, strict=True)
    return [_before(state, time) for state, time in ended]


def _before(state: TokenState, time: int) -> TokenState:
    """Return the state in which the policy writes its token number `time`; the state itself where it has not."""
    own = [place for place in range(len(state.completion)) if place not in state.environment]
    place = own[time] if time < len(own) else len(state.completion)
    environment = tuple(each for each in state.environment if each < place)
    return replace(state, completion=state.completion[:place], environment=environment, finish_reason=None)


def segment_advantages(rollout: Rollout, rewards: Floats, values: Floats, stride: int, lam: float) -> Floats:
    """Return GAE(lambda) whose steps are segments of `stride` tokens: the tokens of a segment share its advantage.

    With lambda = 0 it is the reward of the segment, and V where it ends less V where it begins.

    Args:
        rewards: (N,) reward units at time 0, with the KL of an action's own state charged to it.
        values: (M,) V of `segment_states`, their own KL included, in the same units.
        lam: per segment, in [0, 1].
    Returns: (N,), reward units at time 0.
    Source: Kazemnejad et al. (2024), arXiv:2410.01679, section 4, with segments of equal length for steps of reasoning.
    """
    (rows, times), segments = _segments(rollout, stride), rollout.steps // stride
    known = len(rows) - int(rollout.truncated.sum())
    shape = len(rollout.lengths), int(segments.max()) + 1
    paid, begun, behind = np.zeros(shape), np.zeros(shape), np.zeros(shape[0])
    np.add.at(paid, (rollout.rows, segments), rewards)
    begun[rows[:known], times[:known] // stride] = values[:known]
    behind[rows[known:]] = values[known:]
    return gae(paid, begun, -(-rollout.lengths // stride), lam, behind)[rollout.rows, segments]


@dataclass(frozen=True)
class Continuation:
    """How texts that have been begun are written on: by a policy, whose KL to a reference is charged.

    Args:
        task, split: what the states are of. kind: of the KL. beta: reward units per nat.
    """

    task: Task
    split: str
    policy: LMPolicy
    reference: LMPolicy
    kind: KL
    beta: float

    def returns(self, states: list[TokenState], seed: int) -> Floats:
        """Write each of n running states to its end; return what it earns from there on (n,), reward units at time 0.

        The KL of the state itself is in it. A reward that learns is put back to where it was, and a noisy one draws
        noise of its own for every text.
        """
        generator = np.random.default_rng([seed])
        tokens = self.task.max_prompt_tokens + self.task.max_new_tokens
        most = min(_ROWS_AT_ONCE, self.policy.rows_at_once(tokens))
        with scorers_restored(self.task.scorer):
            parts = equal_parts(len(states), most)
            return np.concatenate([self._part(states[part], generator) for part in parts])

    @torch.no_grad()
    def _part(self, states: list[TokenState], generator: np.random.Generator) -> Floats:
        model, exact = Model(self.task, self.split, len(states)), self.kind == "exact"
        start = model.place(model.with_seeds(model.with_potentials(states), generator))
        recorder = Recorder(self.policy, None, exact, int(generator.integers(2**31)), len(states), ALONE)
        self.policy.forget()
        played = play_batch(model.env, start.observation, recorder.choose)
        self.policy.forget()
        rollout = recorder.rollout(played, self.task.end_ids)
        scored = score_reference(self.reference, rollout, _SCORED_AT_ONCE, exact)
        kl = token_kl(rollout, self.policy, self.reference, scored, self.kind)
        times = rollout.steps + np.array([len(state.completion) for state in states])[rollout.rows]
        earned = np.asarray(self.task.gamma**times * rollout.rewards - self.beta * kl, dtype=np.float64)
        return np.bincount(rollout.rows, earned).astype(np.float64)


def leave_one_out(returns: Floats) -> Floats:
    """Return each return less the mean of the others, (M, n).

    Source: Ahmadian et al. (2024), arXiv:2402.14740 (RLOO).
    """
    count = returns.shape[1]
    return np.asarray(centred(returns) * (count / (count - 1)))


def centred(returns: Floats) -> Floats:
    """Return each return less the mean of its group, itself included, (M, n).

    Source: Liu et al. (2025), arXiv:2503.20783.
    """
    return np.asarray(returns - returns.mean(1, keepdims=True), dtype=np.float64)


def standardised(returns: Floats) -> Floats:
    """Return `centred` over the group's standard deviation + 1e-4, (M, n).

    Source: Shao et al. (2024), arXiv:2402.03300 (GRPO).
    """
    return np.asarray(centred(returns) / (returns.std(1, ddof=1, keepdims=True) + _EPSILON))


def over_mean(returns: Floats) -> Floats:
    """Return `centred` over the group's mean, 0 where that is not above 0, (M, n).

    Source: Tajwar et al. (2026), arXiv:2602.02710 (MaxRL), for rewards of 0 and 1.
    """
    mean = returns.mean(1, keepdims=True)
    return np.asarray(np.divide(centred(returns), mean, out=np.zeros_like(returns), where=mean > 0))


def sequence_weights(lengths: Ints) -> Floats:
    """Return for every token (N,), row by row, one over the length of its sequence."""
    return np.asarray(np.repeat(1.0 / lengths, lengths))


def score_function_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Return -log pi(a) A (n,), whose gradient is minus REINFORCE's under the policy that sampled.

    Source: Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning.
    """
    return -log_probs * advantages


@dataclass(frozen=True)
class Resampled:
    """Plays further batches, in the place of `textgym_agents.lm.rollout.collect`, until groups enough have variance.

    Args:
        play: what plays one batch. gamma: of the rewards. most: batches that are played at most.
    Source: Yu et al. (2025), arXiv:2503.14476 (DAPO), section 3.2, dynamic sampling.
    """

    play: Callable[..., Rollout]
    gamma: float
    most: int

    def __call__(
        self,
        env: TokenVectorEnv,
        policy: LMPolicy,
        seed: int,
        stop_ids: tuple[int, ...],
        keep_features: bool = False,
        group: int = 1,
        reference: LMPolicy | None = None,
        devices: Devices = ALONE,
    ) -> Rollout:
        """Return all episodes of all batches: as many groups of unequal returns as a batch has groups, if it can be.

        Args: see `collect`.
        """
        parts: list[Rollout] = []
        missing = float(devices.world * env.num_envs // group)
        while missing > 0 and len(parts) < self.most:
            own = int(np.random.SeedSequence([seed, len(parts)]).generate_state(1)[0]) if parts else seed
            part = self.play(env, policy, own, stop_ids, keep_features, group, reference, devices)
            missing -= devices.sums([varied(scores(part, self.gamma), group).sum()])[0]
            parts.append(part)
        return joined(parts)
