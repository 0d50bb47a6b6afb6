"""Agents in tasks with turns: what they record, what they learn, and which of them refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from textgym_agents.exact.objective import EnumeratedPolicy, policy_gradient
from textgym_agents.lm.rollout import collect
from textgym_agents.registry import agent_class, make_agent, make_config, make_env

from textgym.evaluate import evaluate
from textgym.optimum import optimum_of
from textgym.solver import prefix_tree
from textgym.state import POLICY


@pytest.mark.parametrize("agent", ["alphazero", "value-guided", "soft-q", "rejection", "dpo"])
def test_agents_of_one_turn_say_so(agent):

    env = make_env("textgym/Clarify-v0", 4)
    with pytest.raises(ValueError, match=r"answers in turns; .* takes episodes of one turn, docs/turns.md"):
        make_agent(agent, env, make_config(agent_class(agent), {}))


def test_the_exact_gradient_is_that_of_finite_differences():

    env = make_env("textgym/TwentyQuestions-v0", 4, difficulty=1)
    agent = make_agent("rloo", env, make_config(agent_class("rloo"), {"seed": 0}))
    agent.policy.double()
    task = env.unwrapped.task
    parameters = [each for each in agent.policy.parameters() if each.requires_grad]
    found = policy_gradient(task, agent).gradient
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = torch.nn.utils.parameters_to_vector(parameters).detach().clone()

    tree = prefix_tree(task)
    edges = EnumeratedPolicy(agent).edges(tree, 1, tree.levels[1].running)
    assert edges.detach().numpy() == pytest.approx(np.log(np.full(6, 0.5)))  # of what the environment writes

    def moved(by: float) -> float:
        torch.nn.utils.vector_to_parameters(start + by * direction, parameters)
        return policy_gradient(task, agent).values.objective

    assert (moved(1e-4) - moved(-1e-4)) / 2e-4 == pytest.approx(float(direction @ found), rel=1e-4)


def test_a_rollout_holds_the_policys_tokens_alone():

    env = make_env("textgym/TwentyQuestions-v0", 16, difficulty=2)
    agent = make_agent("lm-ppo", env, make_config(agent_class("lm-ppo"), {"seed": 0}))
    rollout = collect(env, agent.policy, 3, ())
    states = env.unwrapped.get_states()
    authors = [np.array(state.authors) for state in states]
    assert rollout.lengths.tolist() == [int((each == POLICY).sum()) for each in authors]
    assert max(state.replies for state in states) > 1
    for row, column, action in zip(rollout.rows, rollout.columns, rollout.actions.tolist(), strict=True):
        assert authors[row][column + 1] == POLICY  # what was chosen behind the state stands there
        assert states[row].tokens[column + 1] == action
    # The log-probability of each is that of the plain forward pass of the whole row.
    logs, _ = agent.policy.states(rollout.input_ids, *map(torch.tensor, (rollout.rows, rollout.columns)))
    plain = logs.log_softmax(-1).gather(1, rollout.actions[:, None]).squeeze(1)
    assert plain.detach().numpy() == pytest.approx(rollout.log_probs.numpy(), abs=1e-5)


@pytest.mark.learning
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("agent", ["lm-ppo", "rloo"])
def test_policy_gradients_learn_to_ask(agent, seed):

    env = make_env("textgym/Clarify-v0", 256)
    learner = make_agent(agent, env, make_config(agent_class(agent), {"seed": seed}))
    env.reset(seed=seed)
    learner.learn(env, 8192)
    task = env.unwrapped.task
    assert evaluate(learner, task, optimum=optimum_of(task)).optimality.mean >= 0.9
