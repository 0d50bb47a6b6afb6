"""The optimum of a small token MDP: V*, Q*, pi*, J*, and the optimal policy as a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.solver.distributions import edge_log_probs
from textgym.solver.grow import MAX_STATES, prefix_tree
from textgym.solver.induction import hard_backup, soft_backup
from textgym.solver.lookup import Lookup
from textgym.solver.settings import check_beta, check_gamma, default_reference
from textgym.solver.trajectories import Completion
from textgym.solver.tree import Floats, PrefixTree
from textgym.solver.values import PolicyValues, evaluate_edges


@dataclass(frozen=True, eq=False)
class Solution:
    """The optimum of J = E[sum gamma^t r_t] - beta E[sum KL]. Made by `solve`; it is the optimal policy too.

    Values are in units of reward at time 0, see `textgym.solver.induction`.

    Attributes:
        tree, beta, gamma: of the problem.
        values: V*(s) per state. action_values: Q*(s, a) per edge, gamma^t r_t + V*(s_{t+1}).
        log_policy, log_reference: log pi* and log pi_ref per edge, nats. At beta = 0 equally good actions share the
            probability as they do in the limit beta -> 0.
    """

    tree: PrefixTree = field(repr=False)
    beta: float
    gamma: float
    values: tuple[Floats, ...] = field(repr=False)
    action_values: tuple[Floats, ...] = field(repr=False)
    log_policy: tuple[Floats, ...] = field(repr=False)
    log_reference: tuple[Floats, ...] = field(repr=False)

    @property
    def objective(self) -> float:
        """J*, averaged over rho."""
        return float(self.tree.weights @ self.values[0])

    @property
    def reference_objective(self) -> float:
        """J of the reference, averaged over rho."""
        return self.reference.objective

    @property
    def prompt_values(self) -> Floats:
        """V*(s_0) of every prompt, (P,)."""
        return self.values[0]

    @cached_property
    def optimal(self) -> PolicyValues:
        """Return, KL, entropy and trajectories of pi*."""
        return evaluate_edges(self.tree, self.log_policy, self.log_reference, self.beta, self.gamma)

    @cached_property
    def reference(self) -> PolicyValues:
        """The values of the reference."""
        return evaluate_edges(self.tree, self.log_reference, self.log_reference, self.beta, self.gamma)

    def optimality(self, objective: float) -> float:
        """(J - J_ref) / (J* - J_ref): 0 is the reference, 1 the optimum; NaN where the reference is the optimum."""
        room = self.objective - self.reference_objective
        return (objective - self.reference_objective) / room if room > 0 else float("nan")

    def likeliest(self, prompt: int, count: int = 5) -> list[Completion]:
        """The optimum's most probable completions of a prompt, the most probable first."""
        return self.optimal.trajectories.likeliest(prompt, count)

    def log_probs(self, observation: Mapping[str, NDArray[Any]]) -> Floats:
        """The logs of pi* in a batch of states, (B, V) nats, -inf at illegal tokens: the optimum as a policy.

        A state that has ended gets the uniform distribution over the vocabulary's ordinary tokens: nothing follows it.
        Raises: ValueError for an observation that is no state of the tree, or that two of its states share.
        """
        depths, rows = self._lookup.locate(observation)
        allowed = self.tree.task.vocabulary.allowed
        with np.errstate(divide="ignore"):
            result = np.tile(np.log(allowed / np.count_nonzero(allowed)), (len(rows), 1))
        for depth in np.unique(depths):
            level = self.tree.levels[depth]
            here = np.flatnonzero(depths == depth)
            here = here[~level.finished[rows[here]]]
            if len(here):
                result[here] = -np.inf
                counts = level.first[rows[here] + 1] - level.first[rows[here]]
                place = np.repeat(here, counts)
                offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                edge = np.repeat(level.first[rows[here]], counts) + offset
                result[place, self.tree.levels[depth + 1].action[edge]] = self.log_policy[depth][edge]
        return result

    def state_values(self, observation: Mapping[str, NDArray[Any]]) -> Floats:
        """V* in a batch of states, (B,). Raises: as `log_probs`."""
        depths, rows = self._lookup.locate(observation)
        return np.array([self.values[depth][row] for depth, row in zip(depths, rows, strict=True)])

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.tree)


def solve(
    subject: Any,
    reference: Any = None,
    beta: float | None = None,
    gamma: float | None = None,
    split: str | None = None,
    max_states: int = MAX_STATES,
) -> Solution:
    """The exact optimum, by backward induction over the prefix tree.

    Args:
        subject: a `Task`, an environment of one, or a `PrefixTree`.
        reference: pi_ref, anything with `log_probs(observation)`; it is normalised over the legal actions. None takes
            the task's.
        beta: reward units per nat; above 0 the optimum is soft, at 0 it is the greatest return. gamma: in [0, 1].
            None takes the task's.
        split: "train", "eval" or "tune"; None takes the environment's, "train" for a task.
        max_states: states; a larger tree is refused before memory is spent on it.
    Raises: as `prefix_tree` and `edge_log_probs`; ValueError if the reference never finishes any legal completion of
        some prompt.
    """
    tree = prefix_tree(subject, split, max_states)
    beta, gamma = check_beta(tree.task, beta), check_gamma(tree.task, gamma)
    log_reference = edge_log_probs(tree, default_reference(tree, reference), "reference")
    solution = _induct(tree, log_reference, beta, gamma)
    if np.isneginf(solution.values[0]).any():
        prompt = tree.task.encoded(tree.split)[int(np.argmin(solution.values[0]))].text
        raise ValueError(
            f"reference: it gives every legal completion of prompt {prompt!r} the probability 0; "
            "allowed is one that can finish every prompt"
        )
    return solution


def _induct(tree: PrefixTree, log_reference: tuple[Floats, ...], beta: float, gamma: float) -> Solution:
    """Backward induction from the last level to the prompts."""
    ends = np.zeros(len(tree.levels[-1].parent))
    values, log_mass, action_values, log_policy = [ends], ends, list[Floats](), list[Floats]()
    for depth in range(len(tree.levels) - 2, -1, -1):
        level = tree.levels[depth]
        worth = gamma**depth * tree.levels[depth + 1].reward + values[0]
        own, mass = np.zeros(len(level.parent)), np.zeros(len(level.parent))
        if beta:
            own[level.running], logs = soft_backup(worth, log_reference[depth], level, beta)
        else:
            own[level.running], mass[level.running], logs = hard_backup(
                worth, log_reference[depth], log_mass, level
            )
        log_mass = mass
        values.insert(0, own)
        action_values.insert(0, worth)
        log_policy.insert(0, logs)
    return Solution(tree, beta, gamma, tuple(values), tuple(action_values), tuple(log_policy), log_reference)
