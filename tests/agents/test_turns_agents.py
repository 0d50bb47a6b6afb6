"""Agents in tasks with turns: what they record, what they learn, and which of them refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from textgym_agents.algorithms.dpo import DPO, DPOConfig
from textgym_agents.exact.objective import EnumeratedPolicy, policy_gradient
from textgym_agents.lm.rollout import collect
from textgym_agents.lm.sequences import sequence_log_probs
from textgym_agents.registry import agent_class, make_agent, make_config, make_env
from turn_tools import ragged

from textgym.evaluate import evaluate
from textgym.optimum import optimum_of
from textgym.solver import policy_values, prefix_tree, solve
from textgym.state import POLICY
from textgym.vector import TokenVectorEnv


@pytest.mark.parametrize("agent", ["best-of-n", "mcts", "alphazero", "vine-ppo", "soft-q"])
def test_agents_of_one_turn_say_so(agent):

    env = make_env("textgym/Clarify-v0", 4)
    with pytest.raises(ValueError, match=r"answers in turns; .* takes episodes of one turn, docs/turns.md"):
        make_agent(agent, env, make_config(agent_class(agent), {}))


@pytest.mark.parametrize("agent", ["rejection", "dpo"])
def test_agents_that_compare_whole_episodes_refuse_luck(agent):
    env = make_env("textgym/Clarify-v0", 8)
    with pytest.raises(ValueError, match=r"answers in turns, and chance has a say in them; .* compares whole episodes"):
        make_agent(agent, env, make_config(agent_class(agent), {}))


def test_preferences_of_a_file_are_refused_where_there_are_turns(tmp_path):
    task = ragged(most=2, tokens=1)
    with pytest.raises(ValueError, match="answers in turns; dpo takes episodes of one turn"):
        DPO(task, DPOConfig(data=str(tmp_path / "pairs.jsonl")))


def test_preferences_are_learned_from_by_the_policys_tokens_alone():
    env = TokenVectorEnv(ragged(), 8, autoreset_mode=AutoresetMode.DISABLED)
    agent = DPO(env.task, DPOConfig(batch=8, device="cpu"))
    with torch.no_grad():
        agent.policy.model.lm_head.weight += torch.randn(
            agent.policy.model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)
        )
    batch, _ = agent._batch(env)
    found = sequence_log_probs(agent.policy, batch).detach()
    written = {state.tokens: np.array(state.authors) for state in env.get_states()}
    assert len({tuple(authors) for authors in written.values()}) > 2
    for row, ids in enumerate(batch.input_ids):
        (tokens,) = [each for each in written if each[: len(ids)] == tuple(ids[: len(each)])]
        own = np.flatnonzero(written[tokens] == POLICY)
        logits = agent.policy.model(torch.tensor([tokens])).logits[0].detach()
        logits = logits.masked_fill(~torch.tensor(env.task.vocabulary.allowed), -1e9).log_softmax(-1)
        want = sum(float(logits[place - 1, tokens[place]]) for place in own)
        assert float(found[row]) == pytest.approx(want, abs=1e-4)
        assert batch.lengths[row] == len(own)


@pytest.mark.learning
@pytest.mark.parametrize("agent", ["dpo", "rejection"])
def test_preferences_teach_where_the_environment_is_no_chance(agent):
    env = TokenVectorEnv(replace(ragged(most=2, tokens=1), beta=0.5), 128, autoreset_mode=AutoresetMode.DISABLED)
    settings = {"seed": 0, "device": "cpu"} | ({"sampler": "policy"} if agent == "dpo" else {})
    learner = make_agent(agent, env, make_config(agent_class(agent), settings))
    learner.learn(env, 8192)
    solution = solve(env.task)
    assert solution.optimality(policy_values(solution.tree, learner).objective) >= 0.8


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


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1])
def test_ppo_learns_to_ask_a_second_time(seed):
    """A question that pays only with the next one: a bonus for entropy keeps it being tried until its use is known."""
    env = make_env("textgym/TwentyQuestions-v0", 256)
    settings = {"seed": seed, "learning_rate": 0.006, "entropy_coefficient": 0.05}
    learner = make_agent("lm-ppo", env, make_config(agent_class("lm-ppo"), settings))
    env.reset(seed=seed)
    learner.learn(env, 20_480)
    solution = solve(env.unwrapped.task)
    assert solution.optimality(policy_values(solution.tree, learner).objective) >= 0.9
