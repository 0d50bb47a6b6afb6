"""What the solver takes from the task where the caller does not say: reference, beta and gamma."""

from __future__ import annotations

from typing import Any

from textgym.messages import shown
from textgym.references import make_reference
from textgym.rewards.values import is_finite
from textgym.solver.tree import PrefixTree
from textgym.task import Task


def default_reference(tree: PrefixTree, reference: Any) -> Any:
    """The reference itself, or the task's for None."""
    return make_reference(tree.task) if reference is None else reference


def check_beta(task: Task, beta: float | None) -> float:
    """Raises: ValueError unless it is finite and >= 0 (reward units per nat)."""
    beta = task.beta if beta is None else beta
    if not is_finite(beta) or beta < 0:
        raise ValueError(f"beta={shown(beta)}: allowed is a finite number >= 0 (reward units per nat)")
    return float(beta)


def check_gamma(task: Task, gamma: float | None) -> float:
    """Raises: ValueError unless it lies in [0, 1]."""
    gamma = task.gamma if gamma is None else gamma
    if not is_finite(gamma) or not 0 <= gamma <= 1:
        raise ValueError(f"gamma={shown(gamma)}: allowed is 0..1 (discount per token)")
    return float(gamma)
