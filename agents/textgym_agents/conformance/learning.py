"""Checks that an agent learns: the exact J of what it has learned, on tasks whose optimum is known."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from textgym.solve import policy_values, solve
from textgym_agents.conformance.findings import NotAsked, Outcome, judge
from textgym_agents.conformance.subject import LearningTask, Subject

ENOUGH = 0.95
_ENVS = 128  # where an agent's own batch is larger, or it has none: the tasks are small

DEFAULT_TASKS = {
    "Bandit": LearningTask("textgym/Bandit-v0"),
    "Delayed": LearningTask("textgym/Delayed-v0"),
    "Stop": LearningTask("textgym/Stop-v0"),
}


def _env(problem: LearningTask, count: int) -> Any:
    return gym.make_vec(problem.id, num_envs=count, autoreset_mode=AutoresetMode.DISABLED, **problem.options)


def learns(subject: Subject, name: str) -> Outcome:
    """Reaches 0.95 of the way from the reference's J to the optimum's within the budget, or half of it."""
    if name not in subject.learning:
        raise NotAsked(f"learning {name} was not asked for")
    problem = subject.learning[name]
    small = _env(problem, 2)
    agent = subject.make(small)
    if getattr(agent, "greedy", False):
        raise NotAsked("the agent is greedy: no policy without entropy comes near this optimum")
    if getattr(agent, "offline", False):
        raise NotAsked(
            "the agent learns from texts that others wrote, and cannot learn what these leave open"
        )
    tokens = getattr(agent, "objective_tokens", None)
    if tokens is not None and small.unwrapped.task.max_new_tokens > tokens:
        raise NotAsked(f"the agent optimises J on tasks of up to {tokens} tokens only")
    own: int = getattr(getattr(agent, "config", None), "batch", _ENVS)
    if own > _ENVS:
        own = _ENVS - _ENVS % getattr(agent, "group", 1)
    count = own if problem.envs is None else problem.envs
    reached, budget = -math.inf, 0
    # Half of the budget is enough for most; a schedule spans what it is given, so that the other try starts afresh.
    for budget in (max(problem.episodes // 2, 1), problem.episodes):
        env = _env(problem, count)
        solution = solve(env.unwrapped.task)
        agent = subject.make(env)
        agent.learn(env, budget)
        if agent.log_probs(solution.tree.observations(0, solution.tree.levels[0].running)) is None:
            raise NotAsked("log_probs gives None")
        reached = solution.optimality(policy_values(solution.tree, agent).objective)
        if reached >= ENOUGH:
            break
    return judge(reached >= ENOUGH, f"optimality {reached:.3f} after {budget} episodes", f"at least {ENOUGH}")
