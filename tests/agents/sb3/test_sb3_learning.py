"""Every algorithm of Stable-Baselines3 learns Bandit and Copy."""

from __future__ import annotations

from typing import Any

import pytest
from textgym_agents.registry import agent_class, make_agent, make_config, make_env

from textgym.evaluate import evaluate
from textgym.solver import policy_values, solve

pytestmark = [pytest.mark.slow, pytest.mark.long]

WITH_ENTROPY = ("sb3-a2c", "sb3-ppo", "sb3-maskable-ppo", "sb3-recurrent-ppo")
WITHOUT = ("sb3-dqn", "sb3-qrdqn", "sb3-trpo", "sb3-ddpg", "sb3-td3")


def trained(name: str, env_id: str, episodes: int, options: dict[str, Any] | None = None, **settings: Any) -> Any:
    config = make_config(agent_class(name), settings)
    env = make_env(env_id, config.batch, **(options or {}))
    agent = make_agent(name, env, config)
    agent.learn(env, episodes)
    return agent


@pytest.mark.parametrize("name", WITH_ENTROPY)
def test_bandit_is_learned_as_j_asks(name: str) -> None:
    agent = trained(name, "textgym/Bandit-v0", 4096)
    solution = solve(agent.task)
    assert solution.optimality(policy_values(solution.tree, agent).objective) > 0.8


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["sb3-ppo", "sb3-maskable-ppo"])
def test_clarify_is_learned_in_turns(name: str, seed: int) -> None:
    """It asks where that pays, and nowhere else; what the environment writes is no action of the policy."""
    agent = trained(name, "textgym/Clarify-v0", 4096, seed=seed)
    solution = solve(agent.task)
    assert solution.optimality(policy_values(solution.tree, agent).objective) >= 0.9


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


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("sb3-ppo", {"learning_rate": 0.003}, 0.55),
        ("sb3-maskable-ppo", {"learning_rate": 0.003}, 0.55),
        ("sb3-dqn", {}, 0.55),
    ],
)
def test_two_words_are_copied(name: str, settings: dict[str, Any], least: float) -> None:
    """The reference has optimality 0; a policy that does not read the prompt comes hardly further."""
    agent = trained(name, "textgym/Copy-v0", 2048, {"difficulty": 2}, **settings)
    solution = solve(agent.task)
    assert solution.optimality(policy_values(solution.tree, agent).objective) > least


def test_trpo_copies_two_words_for_the_reward() -> None:
    """Without reading the prompt every word is right once in six times."""
    settings: dict[str, Any] = {"features": "mean", "learning_rate": 0.003, "target_kl": 0.03}
    agent = trained("sb3-trpo", "textgym/Copy-v0", 1536, {"difficulty": 2}, **settings)
    assert policy_values(solve(agent.task).tree, agent).expected_return > 0.45
