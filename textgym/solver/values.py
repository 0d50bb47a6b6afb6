"""Compute the exact values of any policy on a prefix tree: V, Q, advantages, KL, entropy, J and trajectories."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from textgym.checks import Floats, Ints
from textgym.lm.reference import Reference
from textgym.solver.build import MAX_STATES, check_beta, check_gamma, prefix_tree
from textgym.solver.tree import PrefixTree, TokenPolicy, edge_log_probs, per_edge, per_state
from textgym.task import make_reference


@dataclass(frozen=True)
class Completion:
    """One finished completion.

    Attributes:
        prompt: index. tokens: ids, the stop id included. text: decoded.
        probability: given the prompt. reference_probability: the same under the reference; NaN where it was not given.
        ret: discounted sum of rewards, reward units.
    """

    prompt: int
    tokens: tuple[int, ...]
    text: str
    probability: float
    reference_probability: float
    ret: float


@dataclass(frozen=True, eq=False)
class Trajectories:
    """All N trajectories of a tree, shortest first; arrays are (N,).

    Attributes:
        prompt: index of the prompt. length: tokens. row: the last state's, in `tree.levels[length]`.
        log_probability: given the prompt, nats.
        log_ratio: log of the probability under the policy over that under the reference, nats; NaN without a reference.
        returns: discounted sum of rewards, reward units.
    """

    tree: PrefixTree = field(repr=False)
    prompt: Ints
    length: Ints
    row: Ints
    log_probability: Floats
    log_ratio: Floats
    returns: Floats

    @property
    def probability(self) -> Floats:
        """P(tau) = rho(s_0) prod pi(a_t given s_t); they sum to 1."""
        return np.asarray(self.tree.weights[self.prompt] * np.exp(self.log_probability))

    def likeliest(self, prompt: int, count: int) -> list[Completion]:
        """Return the `count` most probable completions of a prompt, the most probable first."""
        own = np.flatnonzero((self.prompt == prompt) & (self.log_probability > -np.inf))
        ranked = own[np.argsort(-self.log_probability[own], kind="stable")[:count]]
        return [self._completion(int(i)) for i in ranked]

    def _completion(self, index: int) -> Completion:
        tokens = self.tree.written(int(self.length[index]), self.row[index : index + 1])[0][0]
        log_probability = self.log_probability[index]
        return Completion(
            prompt=int(self.prompt[index]),
            tokens=tuple(tokens),
            text=self.tree.task.vocabulary.decode([tokens])[0],
            probability=float(np.exp(log_probability)),
            reference_probability=float(np.exp(log_probability - self.log_ratio[index])),
            ret=float(self.returns[index]),
        )


def trajectory_probabilities(
    problem: object,
    policy: TokenPolicy,
    reference: Reference | None = None,
    gamma: float | None = None,
    split: str | None = None,
    max_states: int = MAX_STATES,
) -> Trajectories:
    """Return P(tau) of every trajectory under a policy; without a reference, the log-ratios are NaN.

    For the arguments see `policy_values`. Raises: as `prefix_tree` and `edge_log_probs`.
    """
    tree = prefix_tree(problem, split, max_states)
    log_policy = edge_log_probs(tree, policy)
    log_reference = None if reference is None else edge_log_probs(tree, reference, "reference")
    return trajectories(tree, log_policy, log_reference, check_gamma(tree.task, gamma))


def trajectories(
    tree: PrefixTree, log_policy: tuple[Floats, ...], log_reference: tuple[Floats, ...] | None, gamma: float
) -> Trajectories:
    """Return the trajectories of a tree from log-probabilities per edge."""
    count = len(tree.levels[0].parent)
    sums = np.zeros((count, 3))  # log pi, log ref, discounted rewards
    parts: list[tuple[Ints, Ints, Ints, Floats]] = []
    for depth in range(1, len(tree.levels)):
        level = tree.levels[depth]
        sums = sums[level.parent]
        sums[:, 0] += log_policy[depth - 1]
        sums[:, 1] += np.nan if log_reference is None else log_reference[depth - 1]
        sums[:, 2] += gamma ** (depth - 1) * level.reward
        ended = np.flatnonzero(level.finished)
        parts.append((tree.prompt_of[depth][ended], np.full(len(ended), depth), ended, sums[ended]))
    prompt, length, row, ends = map(np.concatenate, zip(*parts, strict=True))
    with np.errstate(invalid="ignore"):
        log_ratio = ends[:, 0] - ends[:, 1]
    return Trajectories(tree, prompt, length, row, ends[:, 0], log_ratio, ends[:, 2])


_RETURN, _KL, _ENTROPY, _LENGTH = range(4)


@dataclass(frozen=True, eq=False)
class PolicyValues:
    """The values of a policy, in units of reward at time 0.

    Divide those of depth t by gamma^t for the usual V(s_t) = E[r_t + gamma r_{t+1} + ...].

    Attributes:
        tree, beta, gamma: of the problem.
        log_policy, log_reference: per edge, nats.
        values: V(s) per state, E of the rewards to come less beta times the KL to come; 0 at ended states.
        action_values: Q(s, a) per edge, gamma^t r_t + V(s_{t+1}); without the KL that choosing a costs at s.
        advantages: A(s, a) per edge, Q(s, a) - beta log(pi / ref) - V(s), whose mean under the policy is 0; NaN
            where V(s) is -inf.
        reach: per state the probability of passing through it, given its prompt.
        prompt_returns, prompt_kl, prompt_entropy, prompt_lengths: (P,) expectations per episode: discounted rewards
            (reward units), sum of KL(pi || ref) (nats), sum of entropies (nats), tokens.
    """

    tree: PrefixTree = field(repr=False)
    beta: float
    gamma: float
    log_policy: tuple[Floats, ...] = field(repr=False)
    log_reference: tuple[Floats, ...] = field(repr=False)
    values: tuple[Floats, ...] = field(repr=False)
    action_values: tuple[Floats, ...] = field(repr=False)
    advantages: tuple[Floats, ...] = field(repr=False)
    reach: tuple[Floats, ...] = field(repr=False)
    prompt_returns: Floats
    prompt_kl: Floats
    prompt_entropy: Floats
    prompt_lengths: Floats

    @property
    def prompt_objectives(self) -> Floats:
        """J of each prompt, (P,): V at s_0."""
        return self.values[0]

    @property
    def objective(self) -> float:
        """J, averaged over rho."""
        return self._mean(self.values[0])

    @property
    def expected_return(self) -> float:
        """E[sum gamma^t r_t], averaged over rho."""
        return self._mean(self.prompt_returns)

    @property
    def kl(self) -> float:
        """E[sum_t KL(pi || ref)], nats per episode, averaged over rho."""
        return self._mean(self.prompt_kl)

    @property
    def entropy(self) -> float:
        """E[sum_t H(pi)], nats per episode, averaged over rho."""
        return self._mean(self.prompt_entropy)

    @property
    def length(self) -> float:
        """Expected tokens per episode, averaged over rho."""
        return self._mean(self.prompt_lengths)

    @cached_property
    def trajectories(self) -> Trajectories:
        """Every trajectory with its probability."""
        return trajectories(self.tree, self.log_policy, self.log_reference, self.gamma)

    def _mean(self, values: Floats) -> float:
        weights = self.tree.weights
        return float(np.sum(weights * np.where(weights > 0, values, 0.0)))


def policy_values(
    problem: object,
    policy: TokenPolicy,
    reference: Reference | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    split: str | None = None,
    max_states: int = MAX_STATES,
) -> PolicyValues:
    """Return the exact values of a policy, by backward induction over the prefix tree.

    Args:
        problem: a `Task`, an environment of one, or a `PrefixTree`.
        policy: anything with `log_probs(observation)`; it and the reference are normalised over the legal actions.
        reference: pi_ref; None takes the task's.
        beta: reward units per nat, >= 0; gamma: in [0, 1]; None takes the task's.
        split, max_states: see `prefix_tree`.
    Raises: as `prefix_tree` and `edge_log_probs`; ValueError if the policy comes to a state where it gives no legal
        action any probability.
    """
    tree = prefix_tree(problem, split, max_states)
    log_policy = edge_log_probs(tree, policy)
    base = make_reference(tree.task) if reference is None else reference
    log_reference = log_policy if policy is base else edge_log_probs(tree, base, "reference")
    return evaluate_edges(tree, log_policy, log_reference, check_beta(tree.task, beta), check_gamma(tree.task, gamma))


def evaluate_edges(
    tree: PrefixTree,
    log_policy: tuple[Floats, ...],
    log_reference: tuple[Floats, ...],
    beta: float,
    gamma: float,
    name: str = "policy",
) -> PolicyValues:
    """Return the values of a policy from its log-probability on every edge; for the arguments see `policy_values`.

    Args: name: of the policy in an error.
    """
    reach = _reach(tree, log_policy, name)
    sums = np.zeros((len(tree.levels[-1].parent), 4))
    values, action_values, advantages = [np.zeros(len(sums))], list[Floats](), list[Floats]()
    for depth in range(len(tree.levels) - 2, -1, -1):
        level, below = tree.levels[depth], tree.levels[depth + 1]
        logs, base = log_policy[depth], log_reference[depth]
        taken = np.exp(logs) > 0
        with np.errstate(invalid="ignore"):  # inf - inf on edges that are not taken
            # Where neither goes, going there costs nothing that could be compared: -inf, as if the policy did.
            ratio = np.where(taken | (base > -np.inf), logs - base, np.inf)
            steps = np.stack([np.zeros_like(ratio), ratio, -logs, np.ones_like(ratio)], axis=1)
        if below.chance is not None:  # what the environment writes is no choice of the policy, nor a token of it
            steps[~np.isnan(below.chance)] = 0.0
        paid = gamma**depth * below.reward
        sums[:, _RETURN] += paid
        gains = np.where(taken[:, None], sums, 0.0) + np.where(taken[:, None], steps, 0.0)
        weighted = np.exp(logs)[:, None] * gains
        worth = paid + values[0]
        sums = np.zeros((len(level.parent), 4))
        sums[level.running] = per_state(weighted, level, np.add)
        own = sums[:, _RETURN] - beta * sums[:, _KL] if beta else sums[:, _RETURN].copy()
        action_values.insert(0, worth)
        with np.errstate(invalid="ignore"):  # NaN where V(s) is -inf
            charged = worth - beta * ratio if beta else worth
            advantages.insert(0, charged - per_edge(own[level.running], level))
        values.insert(0, own)
    return PolicyValues(
        tree, beta, gamma, log_policy, log_reference, tuple(values), tuple(action_values), tuple(advantages),
        reach, *(sums[:, i].copy() for i in (_RETURN, _KL, _ENTROPY, _LENGTH)),
    )  # fmt: skip


def _reach(tree: PrefixTree, log_policy: tuple[Floats, ...], name: str) -> tuple[Floats, ...]:
    """Return the probability of passing through every state. Raises: ValueError if some of it is lost on the way."""
    logs = [np.zeros(len(tree.levels[0].parent))]
    for depth, own in enumerate(log_policy):
        level = tree.levels[depth]
        stuck = np.isneginf(per_state(own, level, np.maximum)) & (logs[-1][level.running] > -np.inf)
        if stuck.any():
            row = level.running[stuck][:1]
            tokens = tuple(tree.written(depth, row)[0][0])
            raise ValueError(f"{name}: after the tokens {tokens} it gives no legal action any probability")
        logs.append(logs[-1][tree.levels[depth + 1].parent] + own)
    return tuple(np.exp(values) for values in logs)
