"""Search in tasks with turns: it finds the optimum with chance, and knows no more than the tokens say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from textgym_agents.algorithms.best_of_n import BestOfN, BestOfNConfig
from textgym_agents.algorithms.vine_ppo import VinePPOConfig
from textgym_agents.exact.objective import EnumeratedPolicy
from textgym_agents.mcts.agent import MCTS
from textgym_agents.mcts.search import MCTSConfig
from textgym_agents.registry import make_agent, make_env
from turn_tools import Echo, ragged

from textgym import TokenEnv, TokenVectorEnv, make_task
from textgym.rewards import TextGymWarning
from textgym.sampling import play
from textgym.solver import policy_values, solve
from textgym.turns import Reply


def shown(task, hidden, *tokens, prompt_index=0):
    """The observation of one episode in which `hidden` is hidden, as a batch."""
    env = TokenEnv(task, segments=True)
    observation, _ = env.reset(options={"prompt_index": prompt_index})
    observation = env.set_state(replace(env.get_state(), hidden=hidden))
    for token in tokens:
        observation = env.step(token)[0]
    return {name: array[None] for name, array in observation.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TwentyQuestions", "Clarify"])
def test_many_simulations_find_the_optimum_with_chance(name):
    task = make_task(name, difficulty=2)
    solution = solve(task)
    agent = MCTS(task, MCTSConfig(simulations=2000))
    seen = shown(task, 0)
    assert agent.values(seen)[0] == pytest.approx(solution.prompt_values[0], abs=1e-9)
    np.testing.assert_allclose(np.exp(agent.log_probs(seen)), np.exp(solution.log_probs(seen)), atol=1e-9)


@pytest.mark.slow
def test_without_a_price_of_kl_it_is_the_optimum_of_the_return():
    task = make_task("TwentyQuestions", difficulty=2)
    agent = MCTS(task, MCTSConfig(simulations=2000, backup="max"))
    assert agent.values(shown(task, 3))[0] == pytest.approx(0.9, abs=1e-9)


@pytest.mark.parametrize("backup", ["max", "soft", "mean"])
def test_a_search_does_not_know_the_number(backup):
    whole = make_task("TwentyQuestions", difficulty=2)
    turns = replace(whole.turns, most=1)
    task = replace(whole, turns=turns, max_new_tokens=turns.room)  # no time for a question
    agent = MCTS(task, MCTSConfig(simulations=200, backup=backup))
    answers = [agent.log_probs(shown(task, hidden))[0] for hidden in range(4)]
    assert all((answer == answers[0]).all() for answer in answers)
    episodes = play(agent, task, per_prompt=400, seed=1)
    right = float((episodes.returns > 0.5).mean())
    mass = np.exp(answers[0])[[3, 4, 5, 6]].sum()  # of naming a number, each right once in four
    assert right == pytest.approx(mass / 4, abs=4 * np.sqrt(0.25 * 0.75 / 400))


def test_after_an_answer_it_knows_what_the_answer_says():
    task = make_task("TwentyQuestions", difficulty=1)
    agent = MCTS(task, MCTSConfig(simulations=300, backup="max"))
    for hidden in (0, 1):
        seen = shown(task, hidden, 0)
        assert agent.values(seen)[0] == pytest.approx(0.95)
        assert agent.act(seen, deterministic=True)[0] == 1 + hidden
        assert agent.values(shown(task, hidden, 1 + hidden))[0] == 0.0  # the episode is over


@pytest.mark.slow
@pytest.mark.parametrize(("most", "tokens"), [(1, 2), (2, 1)])
def test_turns_of_several_tokens_and_replies_of_several(most, tokens):
    task = ragged(Echo(mark=2, weights=(0.5, 0.25, 0.25)), most=most, tokens=tokens)
    solution = solve(task)
    seen = shown(task, 1)
    agent = MCTS(task, MCTSConfig(simulations=600))
    assert agent.values(seen)[0] == pytest.approx(solution.prompt_values[0], abs=1e-6)


class TwoDice:
    """Replies with two tokens that are hidden: more different ones than there are tokens."""

    def weights(self, prompt):
        return [1 / 16] * 16

    def replies(self, states):
        return [Reply((state.hidden % 4, state.hidden // 4)) for state in states]


def test_a_turn_may_have_more_replies_than_a_state_has_candidates(tmp_path):
    task = ragged(TwoDice(), most=1, tokens=1)
    solution, size = solve(task), task.vocabulary.size
    assert size < 16
    seen = shown(task, 1)
    agent = MCTS(task, MCTSConfig(simulations=200, candidates=size))
    assert agent.values(seen)[0] == pytest.approx(solution.prompt_values[0], abs=1e-9)
    assert (agent.planner.forest.candidates, agent.planner.forest.columns) == (size, 16)
    env = TokenVectorEnv(task, 2, segments=True, autoreset_mode=AutoresetMode.DISABLED)
    agent.save(tmp_path / "agent")
    found = MCTS.load(tmp_path / "agent", env)
    assert found.log_probs(seen).tolist() == agent.log_probs(seen).tolist()
    assert found.planner.forest.columns == 16
    # A tree that is full of replies is emptied, and is as wide as the tokens again.
    agent.planner.forest.most = 201
    with pytest.warns(TextGymWarning, match="is emptied"):
        agent.planner.plan(seen, anew=True)
    assert agent.planner.forest.columns == 16


def test_a_tree_that_is_loaded_has_room_for_as_many_nodes(tmp_path):
    task = ragged(TwoDice(), most=1, tokens=1)
    env = TokenVectorEnv(task, 2, segments=True, autoreset_mode=AutoresetMode.DISABLED)
    agent = MCTS(task, MCTSConfig(simulations=50, candidates=task.vocabulary.size, memory=1))
    agent.log_probs(env.reset(seed=0)[0])
    agent.save(tmp_path / "agent")
    first, second = agent.planner.forest, MCTS.load(tmp_path / "agent", env).planner.forest
    assert first.columns == second.columns > task.vocabulary.size
    assert first.most == second.most


@pytest.mark.slow
def test_best_of_n_chooses_by_the_mean_and_not_by_luck():
    # One episode in ten pays 1 for the other colour, as much as any for red; the mean of clones tells them apart.
    task = make_task("Clarify", difficulty=2)
    (index,) = [i for i, prompt in enumerate(task.encoded("train")) if prompt.text == "paint mostly red"]
    agent = BestOfN(task, BestOfNConfig(n=24))
    seen = {name: np.repeat(array, 40, axis=0) for name, array in shown(task, 0, prompt_index=index).items()}
    words = [task.vocabulary.token_text(token) for token in agent.act(seen)]
    assert set(words) == {"red"}  # all of 24 are other words in 6 rows of 100,000
    assert agent.edge_log_probs(solve(task).tree, solve(task).log_reference) is None
    assert agent.sequence_kl(task, "train", 0) is None


def test_best_of_n_asks_and_then_names_what_it_was_told():
    task = make_task("TwentyQuestions", difficulty=1)
    agent = BestOfN(task, BestOfNConfig(n=16))
    for hidden in (0, 1):
        assert agent.act(shown(task, hidden, 0))[0] == 1 + hidden


@pytest.mark.slow
def test_vine_values_are_those_of_the_policy_given_the_tokens_seen():
    env = make_env("textgym/TwentyQuestions-v0", num_envs=32, difficulty=1)
    agent = make_agent("vine-ppo", env, VinePPOConfig(batch=32, rollouts=400, stride=1))
    starts = [TokenEnv(env.unwrapped.task) for _ in range(3)]
    for start, tokens in zip(starts, ((), (0,), (0,)), strict=True):
        start.reset(seed=0)
        start.set_state(replace(start.get_state(), hidden=1))
        for token in tokens:
            start.step(token)
    states = [start.get_state() for start in starts]
    agent._env = env.unwrapped
    sampled = agent._values(states, 0.0)
    exact = policy_values(env.unwrapped.task, EnumeratedPolicy(agent.policy)).expected_return
    after = np.exp(agent.log_probs(shown(env.unwrapped.task, 1, 0)))[0]
    told = after[:3] @ [-0.1, -0.05, 0.95]  # it asked <1 and was told no: ask again, 0, 1
    np.testing.assert_allclose(sampled, [exact, told, told], atol=4 * 0.5 / np.sqrt(400))
    agent.config = replace(agent.config, rollouts=2)
    metrics = []
    agent.learn(env, 64, metrics.append)
    assert np.isfinite(metrics[0]["vine/rollouts"])


@pytest.mark.slow
def test_both_play_whole_batches_and_best_of_n_beats_the_reference():
    env = make_env("textgym/Clarify-v0", 8)
    task = env.unwrapped.task
    agent, metrics = MCTS(task, MCTSConfig(simulations=50)), []
    agent.learn(env, 8, metrics.append)
    assert metrics[0]["episode"] == 8
    solution = solve(task)
    returns = play(BestOfN(task, BestOfNConfig(n=8)), task, per_prompt=8, seed=0).returns
    assert returns.mean() > solution.reference.expected_return + 0.2


def test_a_saved_tree_of_turns_goes_on(tmp_path):
    env = make_env("textgym/TwentyQuestions-v0", 4)
    agent = MCTS(env.unwrapped.task, MCTSConfig(simulations=20))
    agent.learn(env, 4)
    agent.save(tmp_path / "agent")
    found = MCTS.load(tmp_path / "agent", env)
    one, other = agent.planner.forest, found.planner.forest
    assert (found.episodes, len(other)) == (4, len(one))
    assert one.chance[: len(one)].sum() > 3
    assert list(one.index) == list(other.index)
    for name in ("chance", "values", "children", "visits"):
        np.testing.assert_array_equal(getattr(one, name)[: len(one)], getattr(other, name)[: len(one)])
