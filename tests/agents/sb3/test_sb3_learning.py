"""Every algorithm of Stable-Baselines3 learns Bandit and Copy."""

from __future__ import annotations

from typing import Any

import pytest
from textgym_agents.registry import agent_class, make_agent, make_config, make_env

from textgym.evaluate import evaluate
from textgym.solve import policy_values, solve

pytestmark = pytest.mark.slow

WITH_ENTROPY = ("sb3-a2c", "sb3-ppo", "sb3-maskable-ppo", "sb3-recurrent-ppo")
WITHOUT = ("sb3-dqn", "sb3-qrdqn", "sb3-trpo", "sb3-ddpg", "sb3-td3")


def trained(name: str, env_id: str, episodes: int, **settings: Any) -> Any:
    config = make_config(agent_class(name), settings)
    env = make_env(env_id, config.batch)
    agent = make_agent(name, env, config)
    agent.learn(env, episodes)
    return agent


@pytest.mark.parametrize("name", WITH_ENTROPY)
def test_bandit_is_learned_as_j_asks(name: str) -> None:
    agent = trained(name, "textgym/Bandit-v0", 4096)
    solution = solve(agent.task)
    assert solution.optimality(policy_values(solution.tree, agent).objective) > 0.8


@pytest.mark.parametrize("name", WITHOUT)
def test_bandit_is_learned_for_its_reward(name: str) -> None:
    """Without entropy the best is the best arm, which pays 1; the point algorithms find a neighbour of it."""
    agent = trained(name, "textgym/Bandit-v0", 4096)
    values = policy_values(solve(agent.task).tree, agent)
    assert values.expected_return > 0.85


def test_sac_beats_random_on_bandit() -> None:
    agent = trained("sb3-sac", "textgym/Bandit-v0", 4096)
    random = make_agent("random", make_env("textgym/Bandit-v0", 1))
    ours, theirs = (evaluate(each, agent.task, per_prompt=1024).reward for each in (agent, random))
    assert ours.low > theirs.high


def test_copy_is_learned() -> None:
    agent = trained("sb3-a2c", "textgym/Copy-v0", 32_768)
    solution = solve(agent.task)
    assert solution.optimality(policy_values(solution.tree, agent).objective) > 0.8
