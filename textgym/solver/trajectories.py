"""Every trajectory of a prefix tree, with its probability under a policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.solver.distributions import edge_log_probs
from textgym.solver.grow import MAX_STATES, prefix_tree
from textgym.solver.tree import Floats, Ints, PrefixTree


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
        """The `count` most probable completions of a prompt, the most probable first."""
        own = np.flatnonzero((self.prompt == prompt) & (self.log_probability > -np.inf))
        order = own[np.argsort(-self.log_probability[own], kind="stable")[:count]]
        return [self._completion(int(i)) for i in order]

    def _completion(self, index: int) -> Completion:
        tokens = self.tree.completions(int(self.length[index]), self.row[index : index + 1])[0].tolist()
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
    subject: Any,
    policy: Any,
    reference: Any = None,
    gamma: float | None = None,
    split: str | None = None,
    max_states: int = MAX_STATES,
) -> Trajectories:
    """P(tau) of every trajectory under a policy. For the arguments see `policy_values`; no reference, no log-ratios.

    Raises: as `prefix_tree` and `edge_log_probs`.
    """
    tree = prefix_tree(subject, split, max_states)
    log_policy = edge_log_probs(tree, policy)
    log_reference = None if reference is None else edge_log_probs(tree, reference, "reference")
    return trajectories(tree, log_policy, log_reference, tree.task.gamma if gamma is None else gamma)


def trajectories(
    tree: PrefixTree, log_policy: tuple[Floats, ...], log_reference: tuple[Floats, ...] | None, gamma: float
) -> Trajectories:
    """The trajectories of a tree from log-probabilities per edge."""
    count = len(tree.levels[0].parent)
    sums = np.zeros((count, 3))  # log pi, log ref, discounted rewards
    parts: list[tuple[NDArray[Any], ...]] = []
    for depth in range(1, len(tree.levels)):
        level = tree.levels[depth]
        sums = sums[level.parent]
        sums[:, 0] += log_policy[depth - 1]
        sums[:, 1] += np.nan if log_reference is None else log_reference[depth - 1]
        sums[:, 2] += gamma ** (depth - 1) * level.reward
        ended = np.flatnonzero(level.finished)
        parts.append((tree.prompt_of[depth][ended], np.full(len(ended), depth), ended, sums[ended]))
    prompt, length, row, ends = (np.concatenate(part) for part in zip(*parts, strict=True))
    with np.errstate(invalid="ignore"):
        log_ratio = ends[:, 0] - ends[:, 1]
    return Trajectories(tree, prompt, length, row, ends[:, 0], log_ratio, ends[:, 2])
