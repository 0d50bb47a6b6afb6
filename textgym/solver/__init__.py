"""Exact solutions of small token MDPs: the optimum, the values of any policy, and trajectory probabilities.

`textgym.optimum.optimum_of` serves tasks of any size.
"""

from textgym.solver.build import MAX_STATES, prefix_tree
from textgym.solver.solution import Solution, solve
from textgym.solver.tree import Level, PrefixTree, UnsolvableError, edge_log_probs
from textgym.solver.values import (
    Completion,
    PolicyValues,
    Trajectories,
    evaluate_edges,
    policy_values,
    trajectory_probabilities,
)

__all__ = [
    "MAX_STATES",
    "Completion",
    "Level",
    "PolicyValues",
    "PrefixTree",
    "Solution",
    "Trajectories",
    "UnsolvableError",
    "edge_log_probs",
    "evaluate_edges",
    "policy_values",
    "prefix_tree",
    "solve",
    "trajectory_probabilities",
]
