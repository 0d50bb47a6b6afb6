"""Exact answers on small token MDPs: the optimum, the values of any policy, and the probability of every trajectory.

`textgym.optima.optimum_of` serves tasks of any size.
"""

from textgym.solver.distributions import edge_log_probs
from textgym.solver.grow import MAX_STATES, prefix_tree
from textgym.solver.optimum import Solution, solve
from textgym.solver.size import UnsolvableError
from textgym.solver.trajectories import Completion, Trajectories, trajectory_probabilities
from textgym.solver.tree import Level, PrefixTree
from textgym.solver.values import PolicyValues, evaluate_edges, policy_values

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
