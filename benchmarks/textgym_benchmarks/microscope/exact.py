"""What the solver knows along one episode: V*, Q*, pi* and the values of the policy, on the tree of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.lm.reference import Reference
from textgym.prompts import prompt_set
from textgym.rewards import RewardError
from textgym.solve import PolicyValues, Solution, policy_values, prefix_tree, solve
from textgym.state import Prompt, TokenState
from textgym.task import Task

Floats = NDArray[np.float64]
MAX_STATES = 10_000


@dataclass(frozen=True)
class ExactState:
    """One state, arrays over its n legal actions. Units of reward at time 0; the policy's are None if not known.

    Attributes:
        actions: (n,) ids. optimal: (n,) log pi*. action_values: (n,) Q*. value: V*.
        policy_value: V^pi. policy_action_values: (n,) Q^pi. advantages: (n,) A^pi.
    """

    actions: NDArray[np.int64]
    optimal: Floats
    action_values: Floats
    value: float
    policy_value: float | None
    policy_action_values: Floats | None
    advantages: Floats | None

    def place(self, token: int) -> int | None:
        """Where a token stands in the arrays; None for one that is not legal."""
        found = np.flatnonzero(self.actions == token)
        return int(found[0]) if len(found) else None


@dataclass(frozen=True)
class Exact:
    """The solved tree of one prompt.

    Attributes:
        solution: the optimum. policy: values of the policy; None where they are not known.
    """

    solution: Solution
    policy: PolicyValues | None

    def state(self, completion: Sequence[int]) -> ExactState | None:
        """A running state; None where no legal actions lead to one."""
        solution, policy = self.solution, self.policy
        try:
            depth, row = solution.tree.find(0, tuple(completion))
        except KeyError:
            return None
        level = solution.tree.levels[depth]
        edges = slice(int(level.first[row]), int(level.first[row + 1]))
        return ExactState(
            actions=solution.tree.levels[depth + 1].action[edges],
            optimal=solution.log_policy[depth][edges],
            action_values=solution.action_values[depth][edges],
            value=float(solution.values[depth][row]),
            policy_value=None if policy is None else float(policy.values[depth][row]),
            policy_action_values=None if policy is None else policy.action_values[depth][edges],
            advantages=None if policy is None else policy.advantages[depth][edges],
        )


def solve_prompt(
    task: Task,
    split: str,
    prompt: Prompt,
    policy: Any,
    reference: Reference,
    beta: float,
    max_states: int = MAX_STATES,
) -> tuple[Exact | None, str, str]:
    """The exact values below one prompt.

    Args:
        prompt: of the split, or a text of one's own.
        policy: anything with `log_probs(observation)`.
        beta: reward units per nat, >= 0.
        max_states: of the prompt's tree; a larger one is not solved.
    Returns: the values or None; why there are none; why there are none of the policy. "" where there are.
    """
    try:
        tree = prefix_tree(one_prompt(task, split, prompt), split, max_states)
        solution = solve(tree, reference, beta)
    except (ValueError, RewardError) as error:
        reason = str(error).partition(";")[0]
        large = "too many states: " if "max_states" in reason else "cannot be solved: "
        return None, large + reason, "the task is not solved"
    try:
        return Exact(solution, policy_values(tree, policy, reference, beta)), "", ""
    except TypeError:
        return Exact(solution, None), "", "the agent gives no probabilities"
    except ValueError as error:
        return Exact(solution, None), "", str(error).partition(";")[0]


def one_prompt(task: Task, split: str, prompt: Prompt) -> Task:
    """The same task with this prompt alone, in all splits: what follows one prompt does not depend on the others."""
    columns = {
        name: [None if prompt.index is None else values[prompt.index]]
        for name, values in task.prompt_set(split).columns.items()
    }
    alone = prompt_set([prompt.text], columns)
    mask = task.mask

    def own_mask(states: Sequence[TokenState]) -> NDArray[np.bool_]:
        assert mask is not None
        return mask([replace(state, prompt=prompt) for state in states])

    return replace(task, prompts=dict.fromkeys(task.prompts, alone), mask=None if mask is None else own_mask)
