"""The exact gradient of J for a torch policy, and what it is summed from, over the states of a small task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypedDict, Unpack, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from textgym import Task, TokenVectorEnv
from textgym.checks import Floats, Ints, token_counts
from textgym.lm.reference import Reference
from textgym.solver import PolicyValues, PrefixTree, evaluate_edges, policy_values
from textgym.state import TokenState
from textgym.task import refuse_turns
from textgym_agents.protocol import Observation

_ROWS_AT_ONCE = 1024
_LARGEST = 100_000_000  # numbers in a Jacobian
Problem = Task | gym.Env[object, object] | TokenVectorEnv | PrefixTree
"""A task, an environment of one, or its tree."""


class TorchPolicy(Protocol):
    """A differentiable policy, as `textgym_agents.lm.policy.LMPolicy` is one."""

    def states(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, object]:
        """Return logits (N, V) at (rows, columns) of right-padded ids (B, L), and whatever else; differentiable."""

    def parameters(self) -> Iterator[Tensor]:
        """Return the tensors that the gradient is taken with respect to."""


@dataclass(frozen=True, eq=False)
class PolicyGradient:
    """The gradient of J at a policy.

    Attributes:
        gradient: (D,) float64, all parameters that require gradients, flattened one after the other.
        values: the exact values of the policy, `values.objective` is J.
    """

    gradient: Tensor = field(repr=False)
    values: PolicyValues

    @property
    def norm(self) -> float:
        """The Euclidean norm of the gradient."""
        return float(self.gradient.norm())


class EnumeratedPolicy:
    """Give a torch policy `log_probs(observation)`, in float64 and without a cache.

    What its cut keeps in a state (`LMPolicy.cut`), where it has one, is held fixed in gradients.

    Args:
        policy: a `TorchPolicy`, or an agent whose attribute `policy` is one.
    Raises: TypeError if it is neither.
    """

    def __init__(self, policy: object) -> None:
        inner = policy if hasattr(policy, "states") else getattr(policy, "policy", policy)
        if not (hasattr(inner, "states") and hasattr(inner, "parameters")):
            raise TypeError(
                f"policy={policy!r:.80}: allowed is a module with states(input_ids, rows, columns), as "
                "LMPolicy is, or an agent that has one under the name policy"
            )
        self.policy: TorchPolicy = inner
        self._cut: Callable[..., Tensor] | None = getattr(inner, "cut", None)
        self.parameters = [parameter for parameter in inner.parameters() if parameter.requires_grad]
        self.device = next(iter(inner.parameters())).device

    def logits(self, observation: Observation) -> Tensor:
        """Return logits (B, V) float64 of a batch of observations; differentiable."""
        lengths = token_counts(observation)
        ids = torch.tensor(observation["input_ids"][:, : lengths.max()], device=self.device)
        rows = torch.arange(len(lengths), device=self.device)
        logits, _ = self.policy.states(ids, rows, torch.tensor(lengths - 1, device=self.device))
        return logits.double()

    @torch.no_grad()
    def log_probs(self, observation: Observation) -> Floats:
        """See `textgym.lm.reference.Reference.log_probs`; (B, V) float64."""
        parts: list[Floats] = []
        for start in range(0, len(observation["input_ids"]), _ROWS_AT_ONCE):
            part = {name: array[start : start + _ROWS_AT_ONCE] for name, array in observation.items()}
            logits = self.logits(part) if self._cut is None else self._cut(self.logits(part), part)
            parts.append(torch.log_softmax(logits, -1).cpu().numpy())
        return np.concatenate(parts)

    def edges(self, tree: PrefixTree, depth: int, rows: Ints) -> Tensor:
        """Return the log-probability of every edge, see `PrefixTree.edges`; differentiable."""
        where, place = tree.edges(depth, rows)
        below = tree.levels[depth + 1]
        observation = tree.observations(depth, rows)
        logits = self.logits(observation)
        legal = torch.zeros(logits.shape, dtype=torch.bool)
        action = np.minimum(below.action[where], logits.shape[1] - 1)  # of a reply any: its chance is no policy's
        legal[place, action] = True
        masked = logits.masked_fill(~legal.to(self.device), -torch.inf)
        if self._cut is not None:
            masked = self._cut(masked, observation, masked=True)
        own = torch.log_softmax(masked, -1)[place, action]
        if below.chance is None:
            return own
        chance = torch.tensor(below.chance[where], device=self.device)
        return torch.where(chance.isnan(), own, chance)

    def flat(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Return gradients, None where a parameter has none, as one vector (D,) float64."""
        pairs = zip(gradients, self.parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).double().flatten() for g, p in pairs])


class ProblemOptions(TypedDict, total=False):
    """The options of `textgym.solver.policy_values`."""

    beta: float | None
    gamma: float | None
    split: str | None
    max_states: int


def torch_values(
    problem: Problem, policy: object, reference: object = None, **options: Unpack[ProblemOptions]
) -> tuple[EnumeratedPolicy, PolicyValues]:
    """Return a torch policy as one with `log_probs`, and its exact values, see `textgym.solver.policy_values`.

    Args:
        policy: see `EnumeratedPolicy`.
        reference: anything with `log_probs(observation)`, or a torch policy; None takes the task's.
    Raises: TypeError for a policy that cannot be differentiated; otherwise as `policy_values`.
    """
    own = EnumeratedPolicy(policy)
    against = EnumeratedPolicy(reference) if hasattr(reference, "states") else cast("Reference | None", reference)
    return own, policy_values(problem, own, against, **options)


def values_of(values: PolicyValues, states: Sequence[TokenState]) -> Floats:
    """Return V of n states (n,), reward units at time 0. Raises: KeyError for one that the tree has not."""
    places = map(values.tree.place, states)
    return np.array([values.values[depth][row] for depth, row in places])


def policy_gradient(
    problem: Problem, policy: object, reference: object = None, **options: Unpack[ProblemOptions]
) -> PolicyGradient:
    """Return the exact gradient of J, by the policy-gradient theorem over all states.

    grad J = sum_s d(s) sum_a pi(a given s) A(s, a) grad log pi(a given s), with d(s) the probability of passing through
    s and A the advantage of the KL-regularised problem in units of time 0 (gamma^t and the KL are in it).

    Args: see `torch_values`.
    Source: Sutton et al. (2000), theorem 1.
    """
    own, values = torch_values(problem, policy, reference, **options)
    tree = values.tree
    total = torch.zeros(sum(p.numel() for p in own.parameters), dtype=torch.float64, device=own.device)
    for depth, weights in enumerate(edge_weights(values)):
        for batch in tree.batches(depth):
            for start in range(0, len(batch), _ROWS_AT_ONCE):
                rows = batch[start : start + _ROWS_AT_ONCE]
                where, _ = tree.edges(depth, rows)
                surrogate = own.edges(tree, depth, rows) @ torch.tensor(weights[where], device=own.device)
                total += own.flat(torch.autograd.grad(surrogate, own.parameters, allow_unused=True))
    return PolicyGradient(total.cpu(), values)


def edge_weights(values: PolicyValues) -> list[Floats]:
    """Return rho d(s) pi(a given s) A(s, a) of every edge: grad J is their sum times grad log pi(a given s)."""
    return [
        mass * np.where(mass > 0, advantages, 0.0)
        for mass, advantages in zip(edge_mass(values), values.advantages, strict=True)
    ]


def edge_mass(values: PolicyValues) -> list[Floats]:
    """Return rho d(s) pi(a given s) of every edge."""
    tree = values.tree
    return [tree.weights[prompt] * reach for prompt, reach in zip(tree.prompt_of, values.reach, strict=True)][1:]


def unpaid(values: PolicyValues) -> PolicyValues:
    """Return the values of the same policy where nothing is paid and beta is 1: J is -KL(pi || ref)."""
    levels = tuple(replace(level, reward=np.zeros_like(level.reward)) for level in values.tree.levels)
    tree = replace(values.tree, levels=levels)
    return evaluate_edges(tree, values.log_policy, values.log_reference, 1.0, values.gamma)


def state_sums(tree: PrefixTree, edges: Sequence[Floats]) -> list[Floats]:
    """Return the sums of arrays per edge over the edges of every state; 0 at ended ones."""
    sums = []
    for level, own in zip(tree.levels, edges, strict=False):
        total = np.zeros(len(level.parent))
        total[level.running] = np.add.reduceat(own, level.starts)
        sums.append(total)
    return sums


def log_ratios(values: PolicyValues) -> list[Floats]:
    """Return log(pi / ref) of every edge, nats; 0 where the policy never goes."""
    pairs = zip(values.log_policy, values.log_reference, strict=True)
    with np.errstate(invalid="ignore"):  # inf - inf where the reference never goes either
        return [np.where(np.exp(own) > 0, own - base, 0.0) for own, base in pairs]


def kl_terms(values: PolicyValues) -> list[Floats]:
    """Return pi log(pi / ref) of every edge, nats: they add up to the KL of their state."""
    pairs = zip(values.log_policy, log_ratios(values), strict=True)
    return [np.exp(own) * ratios for own, ratios in pairs]


@dataclass(frozen=True, eq=False)
class Steps:
    """All N trajectories step by step; T is the longest. Time steps after the end hold 0.

    Attributes:
        path: (N, T) edge of each step, counted over all levels; -1 after the end.
        rewards: (N, T) discounted, reward units. log_ratio: (N, T) log(pi / ref) of the action, nats.
        kl: (N, T) KL(pi || ref) of the state, nats. state_values: (N, T) V(s_t), reward units at time 0.
    """

    path: Ints = field(repr=False)
    rewards: Floats = field(repr=False)
    log_ratio: Floats = field(repr=False)
    kl: Floats = field(repr=False)
    state_values: Floats = field(repr=False)


def steps(values: PolicyValues) -> Steps:
    """Return every trajectory step by step, in the order of `values.trajectories`."""
    tree, every = values.tree, values.trajectories
    depths = len(tree.levels) - 1
    ratios, kl = log_ratios(values), state_sums(tree, kl_terms(values))
    path, arrays = np.full((len(every.row), depths), -1), np.zeros((4, len(every.row), depths))
    offsets = np.cumsum([0, *(len(level.parent) for level in tree.levels[1:])])
    row = np.zeros(len(every.row), dtype=np.int64)
    for depth in range(depths, 0, -1):
        here = np.flatnonzero(every.length >= depth)
        ends = every.length[here] == depth
        row[here[ends]] = every.row[here[ends]]
        level, edge, step = tree.levels[depth], row[here], depth - 1
        path[here, step] = offsets[step] + edge
        arrays[0, here, step] = values.gamma**step * level.reward[edge]
        arrays[1, here, step] = ratios[step][edge]
        row[here] = level.parent[edge]
        arrays[2, here, step] = kl[step][row[here]]
        arrays[3, here, step] = values.values[step][row[here]]
    return Steps(path, *arrays)


def to_go(rewards: Floats) -> Floats:
    """Return the sums of this and all later entries, (N, T)."""
    sums: Floats = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    return sums


def edge_jacobian(tree: PrefixTree, own: EnumeratedPolicy) -> Floats:
    """Return grad log pi of every edge, (E, D) float64, level after level.

    Raises: ValueError if it would hold more than 100 million numbers.
    """
    refuse_turns(tree.task, "the referee")
    edges = tree.states - len(tree.levels[0].parent)
    size = sum(parameter.numel() for parameter in own.parameters)
    if edges * size > _LARGEST:
        raise ValueError(
            f"policy: {edges:,} edges times {size:,} parameters are more numbers than the {_LARGEST:,} allowed; "
            "take a smaller task or a smaller policy"
        )
    result, at = np.empty((edges, size)), 0
    for depth, level in enumerate(tree.levels):
        for row in level.running:
            for log_prob in own.edges(tree, depth, np.array([row])):
                gradients = torch.autograd.grad(log_prob, own.parameters, retain_graph=True, allow_unused=True)
                result[at] = own.flat(gradients).cpu().numpy()
                at += 1
    return result
