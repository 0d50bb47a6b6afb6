"""The exact gradient of J for a torch policy, and KL estimators, by enumerating the states of a small task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym.solver import MAX_STATES, PolicyValues, PrefixTree, policy_values, prefix_tree

_ROWS_AT_ONCE = 1024
_LARGEST = 100_000_000  # numbers in a Jacobian
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class TorchPolicy(Protocol):
    """A differentiable policy, as `textgym_agents.lm.policy.LMPolicy` is one."""

    def states(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Any]:
        """Logits (N, V) at (rows, columns) of right-padded ids (B, L), and whatever else; differentiable."""

    def parameters(self) -> Iterator[Tensor]:
        """What the gradient is taken with respect to."""


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
    """A torch policy as one with `log_probs(observation)`, in float64 and without a cache.

    Args:
        policy: see `TorchPolicy`; or an agent whose attribute `policy` is one.
    Raises: TypeError if it is neither.
    """

    def __init__(self, policy: Any) -> None:
        inner = policy if hasattr(policy, "states") else getattr(policy, "policy", policy)
        if not (hasattr(inner, "states") and hasattr(inner, "parameters")):
            raise TypeError(
                f"policy={policy!r:.80}: allowed is a module with states(input_ids, rows, columns), as "
                "LMPolicy is, or an agent that has one under the name policy"
            )
        self.policy: TorchPolicy = inner
        self.parameters = [parameter for parameter in inner.parameters() if parameter.requires_grad]
        self.device = next(iter(inner.parameters())).device

    def logits(self, observation: Any) -> Tensor:
        """Logits (B, V) float64 of a batch of states; differentiable."""
        lengths = np.count_nonzero(observation["attention_mask"], axis=1)
        ids = torch.tensor(observation["input_ids"][:, : lengths.max()], device=self.device)
        rows = torch.arange(len(lengths), device=self.device)
        logits, _ = self.policy.states(ids, rows, torch.tensor(lengths - 1, device=self.device))
        return logits.double()

    @torch.no_grad()
    def log_probs(self, observation: Any) -> Floats:
        """See `textgym.lm.reference.Reference.log_probs`; (B, V) float64."""
        count = len(observation["input_ids"])
        parts = []
        for start in range(0, count, _ROWS_AT_ONCE):
            part = {name: array[start : start + _ROWS_AT_ONCE] for name, array in observation.items()}
            parts.append(torch.log_softmax(self.logits(part), -1).cpu().numpy())
        return np.concatenate(parts)

    def edges(self, tree: PrefixTree, depth: int, rows: Ints) -> Tensor:
        """The log-probability of every edge out of consecutive running states; differentiable."""
        where, place = tree.edges(depth, rows)
        action = tree.levels[depth + 1].action[where]
        logits = self.logits(tree.observations(depth, rows))
        legal = torch.zeros(logits.shape, dtype=torch.bool)
        legal[place, action] = True
        masked = logits.masked_fill(~legal.to(self.device), -torch.inf)
        return torch.log_softmax(masked, -1)[place, action]

    def flat(self, gradients: Any) -> Tensor:
        """Gradients, None where a parameter has none, as one vector (D,) float64."""
        pairs = zip(gradients, self.parameters, strict=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).detach().double().flatten() for g, p in pairs]
        )


def policy_gradient(
    subject: Any,
    policy: Any,
    reference: Any = None,
    beta: float | None = None,
    gamma: float | None = None,
    split: str | None = None,
    max_states: int = MAX_STATES,
) -> PolicyGradient:
    """The exact gradient of J, by the policy-gradient theorem over all states.

    grad J = sum_s d(s) sum_a pi(a given s) A(s, a) grad log pi(a given s), with d(s) the probability of passing through
    s and A the advantage of the KL-regularised problem in units of time 0 (gamma^t and the KL are in it).

    Args:
        policy: see `EnumeratedPolicy`. reference: may be a torch policy too. For the others see
            `textgym.solver.policy_values`.
    Raises: TypeError for a policy that cannot be differentiated; otherwise as `policy_values`.
    Source: Sutton et al. (2000), theorem 1.
    """
    tree = prefix_tree(subject, split, max_states)
    own = EnumeratedPolicy(policy)
    values = policy_values(tree, own, readable(reference), beta, gamma)
    total = torch.zeros(sum(p.numel() for p in own.parameters), dtype=torch.float64, device=own.device)
    for depth, weights in enumerate(edge_weights(values)):
        for rows in _blocks(tree, depth):
            where, _ = tree.edges(depth, rows)
            surrogate = own.edges(tree, depth, rows) @ torch.tensor(weights[where], device=own.device)
            total += own.flat(torch.autograd.grad(surrogate, own.parameters, allow_unused=True))
    return PolicyGradient(total.cpu(), values)


def readable(reference: Any) -> Any:
    """Return a reference that is no torch policy: such a policy is wrapped, everything else stays as it is."""
    return EnumeratedPolicy(reference) if hasattr(reference, "states") else reference


def edge_weights(values: PolicyValues) -> list[Floats]:
    """For every edge rho d(s) pi(a given s) A(s, a): grad J is their sum times grad log pi(a given s)."""
    tree = values.tree
    result = []
    for depth in range(len(tree.levels) - 1):
        mass = tree.weights[tree.prompt_of[depth + 1]] * values.reach[depth + 1]
        result.append(np.where(mass > 0, mass * np.where(mass > 0, values.advantages[depth], 0.0), 0.0))
    return result


def edge_jacobian(tree: PrefixTree, policy: Any) -> Floats:
    """Grad log pi of every edge, (E, D) float64, level after level.

    Raises: ValueError if it would hold more than 100 million numbers.
    """
    own = EnumeratedPolicy(policy)
    edges = tree.states - len(tree.levels[0].parent)
    size = sum(parameter.numel() for parameter in own.parameters)
    if edges * size > _LARGEST:
        raise ValueError(
            f"policy: {edges:,} edges times {size:,} parameters are more numbers than the {_LARGEST:,} allowed; "
            "take a smaller task or a smaller policy"
        )
    result, at = np.empty((edges, size)), 0
    for depth in range(len(tree.levels) - 1):
        for row in tree.levels[depth].running:
            for log_prob in own.edges(tree, depth, np.array([row])):
                gradients = torch.autograd.grad(
                    log_prob, own.parameters, retain_graph=True, allow_unused=True
                )
                result[at] = own.flat(gradients).cpu().numpy()
                at += 1
    return result


def _blocks(tree: PrefixTree, depth: int) -> Iterator[Ints]:
    for rows in tree.batches(depth):
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            yield rows[start : start + _ROWS_AT_ONCE]
