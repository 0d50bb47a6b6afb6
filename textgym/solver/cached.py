"""The exact optimum of a registered task, solved once for every choice of its options."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from textgym.solver.optimum import solve
from textgym.task import make_task


@dataclass(frozen=True)
class KnownOptimum:
    """The ends of the scale on which policies of a task are compared.

    Attributes:
        objective: J*, reward units, averaged over rho. reference: J of the reference.
        prompt_values: V*(s_0) of every prompt, reward units.
        beta: reward units per nat. states: of the prefix tree.
    """

    objective: float
    reference: float
    prompt_values: tuple[float, ...]
    beta: float
    states: int

    def optimality(self, objective: float) -> float:
        """(J - J_ref) / (J* - J_ref): 0 is the reference, 1 the optimum; NaN where the two are the same."""
        room = self.objective - self.reference
        return (objective - self.reference) / room if room > 0 else float("nan")


def known_optimum(name: str, *, split: str = "eval", **options: Any) -> KnownOptimum:
    """The exact optimum of a task at its own beta, gamma and reference; kept for the life of the process.

    Args:
        name: of a registered task. split: "train", "eval" or "tune".
        options: of the task, JSON values.
    Raises: TypeError for an option that is no JSON value; ValueError if the tree is too large, as `solve`.
    """
    try:
        key = json.dumps(options, sort_keys=True)
    except TypeError as error:
        raise TypeError(f"options={options!r:.80}: allowed are JSON values ({error})") from error
    return _solved(name, split, key)


@lru_cache(maxsize=1024)
def _solved(name: str, split: str, options: str) -> KnownOptimum:
    solution = solve(make_task(name, **json.loads(options)), split=split)
    return KnownOptimum(
        objective=solution.objective,
        reference=solution.reference_objective,
        prompt_values=tuple(solution.prompt_values.tolist()),
        beta=solution.beta,
        states=sum(len(level.parent) for level in solution.tree.levels),
    )
