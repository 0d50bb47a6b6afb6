"""Tree search where the vocabulary is as large as a language model's: what a node holds, and what a search takes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from agents.test_real_model import MODEL, make_env
from agents.test_real_model import pytestmark as needs_model
from lm.tiny_models import tiny_gpt2
from solver_tools import batch_env
from textgym_agents import make_agent
from textgym_agents.mcts.alphazero import AlphaZero, AlphaZeroConfig
from textgym_agents.mcts.planner import Planner
from textgym_agents.mcts.search import MCTSConfig

from textgym import make_task
from textgym.evaluate import evaluate
from textgym.lm.causal import CausalLM, load_causal_lm

SIZE = 50_257
CANDIDATES = 32


def even_ids(prompts, completions, **columns):
    return [float(np.mean(np.array(ids) % 2 == 0)) for ids in columns["completion_ids"]]


def large_task(**options):
    words = (*(f"w{i}" for i in range(SIZE - 1)), "<end>")
    settings = {"max_new_tokens": 4, "beta": 0.1, **options}
    return make_task("Text", prompts=["w1 w2", "w3"], tokenizer=words, stop="<end>", reward=even_ids, **settings)


@pytest.mark.slow
def test_a_search_over_50257_tokens_keeps_candidates_alone():
    task, model = large_task(), tiny_gpt2(SIZE)
    settings = {"simulations": 8, "batch": 8, "candidates": CANDIDATES, "widening": 2.0, "device": "cpu"}
    agent = AlphaZero(task, AlphaZeroConfig(**settings), model=model)
    planner, observation = agent._planner(), batch_env(task, 8).reset(seed=0)[0]
    tracemalloc.start()
    log_policy, _ = planner.plan(observation)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    forest = planner.forest
    arrays = [array for array in vars(forest).values() if isinstance(array, np.ndarray)]
    a_node = sum(array.nbytes for array in arrays) / len(forest.values)
    assert a_node == 8 * 7 * CANDIDATES + 3 * 8 + 2  # bytes, whatever the vocabulary
    assert peak < 10 * 8 * SIZE * 8  # a few arrays of 8 rows; a tree that held V numbers a node would hold 7 x 15 x 8 V
    np.testing.assert_allclose(np.exp(log_policy).sum(1), 1.0, atol=1e-5)
    # Prior and value are those of the model in every state that was reached.
    assert len(forest) > 8
    for node, state in enumerate(forest.states):
        logits = model(torch.tensor([state.tokens])).logits[0, -1].double().detach()
        logits[~torch.tensor(task.vocabulary.allowed)] = -torch.inf
        top = logits.log_softmax(-1).topk(CANDIDATES)
        assert sorted(top.indices.tolist()) == forest.actions[node].tolist()
        np.testing.assert_allclose(np.sort(forest.log_prior[node])[::-1], top.values.numpy(), atol=1e-4)
        assert forest.own[node] == pytest.approx(agent.values(batch_env(task, 1).set_states([state]))[0], abs=1e-4)
        # The visits open ceil(2 sqrt(N)) of them, the likeliest first.
        tried = forest.visits[node] > 0
        width = np.ceil(2 * np.sqrt(1 + forest.visits[node].sum()))
        assert set(np.flatnonzero(tried)) <= set(np.argsort(-forest.log_prior[node], kind="stable")[: int(width)])


@pytest.mark.slow
def test_an_iteration_over_50257_tokens_learns_from_candidates():
    task = large_task(max_new_tokens=2)
    settings = {"simulations": 4, "batch": 4, "candidates": CANDIDATES, "widening": 2.0, "device": "cpu"}
    agent = AlphaZero(task, AlphaZeroConfig(**settings), model=tiny_gpt2(SIZE))
    env, metrics = batch_env(task, 4), []
    before = agent.log_probs(env.reset(seed=0)[0]).copy()
    agent.learn(env, 4, metrics.append)
    assert np.isfinite(metrics[0]["loss/policy_avg"])
    assert np.abs(agent.log_probs(env.reset(seed=0)[0]) - before).max() > 1e-4


@pytest.mark.long
def test_regret_over_50257_tokens_is_exact_and_falls():
    """One token is written: V* is a sum over all of them, and the search may try 4, 64 or 1,024."""
    model = tiny_gpt2(SIZE)
    task = large_task(max_new_tokens=1, reference=CausalLM(model, np.ones(SIZE, dtype=bool), device="cpu"))
    found = [
        make_agent("mcts", batch_env(task, 2), simulations=count, candidates=1024, widening=1.0).regret()
        for count in (4, 64, 1024)
    ]
    logs = [model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).detach() for ids in ([1, 2], [3])]
    even = (torch.arange(SIZE) % 2 == 0).double()
    best = np.mean([0.1 * float(torch.logsumexp(each + even / 0.1, 0)) for each in logs])
    assert found[0].optimum == pytest.approx(best, abs=1e-5)
    regrets = [each.regret for each in found]
    assert regrets[0] > regrets[1] > regrets[2] > 0
    # 1,024 of the tokens are tilted, the others keep their share: J by hand.
    reached = []
    for each in logs:
        tried = each.topk(1024).indices
        share = each[tried].exp().sum()
        value = 0.1 * (torch.logsumexp(each[tried] + even[tried] / 0.1, 0) - share.log())
        rest = (each.exp() * even).sum() - (each[tried].exp() * even[tried]).sum()
        reached.append(float(share * value + rest))
    assert regrets[2] == pytest.approx(best - np.mean(reached), abs=1e-5)
    assert [each.nodes for each in found] == [2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("widening", [None, 1.0])
@needs_model
def test_a_real_models_search_goes_by_its_own_probabilities(widening):
    env = make_env(2, max_new_tokens=3, reward="charset", beta=0.05)
    task = env.unwrapped.task
    agent = make_agent("mcts", env, simulations=12, candidates=16, widening=widening)
    observation, _ = batch_env(task, 2).reset(seed=0)
    planner = Planner(task, MCTSConfig(simulations=12, candidates=16, widening=widening), task.beta)
    log_policy, _ = planner.plan(observation)
    np.testing.assert_array_equal(log_policy, agent.log_probs(observation))
    reference = CausalLM(load_causal_lm(MODEL), task.vocabulary.allowed, device="cpu").log_probs(observation)
    tokens = planner.forest.actions[[planner.forest.index[key] for key in planner._keys(observation)]]
    rest = np.ones_like(reference, dtype=bool)
    np.put_along_axis(rest, tokens, False, axis=1)
    np.testing.assert_allclose(log_policy[rest], reference[rest], atol=1e-4)


@pytest.mark.slow
@pytest.mark.long
@needs_model
def test_alphazero_writes_more_vowels_than_the_model_that_it_started_from():
    """Three tokens of 512; the reward of the reference is 0.30, and 10 CPU seconds later it is 0.59."""
    env = make_env(64, max_new_tokens=3, reward={"name": "charset", "characters": "aeiou"}, beta=0.05)
    task, model = env.unwrapped.task, load_causal_lm(MODEL)
    settings = {"simulations": 32, "widening": 2.0, "backup": "mean", "minibatches": 2, "device": "cpu"}
    agent = AlphaZero(task, AlphaZeroConfig(**settings), model=model)
    reference = CausalLM(model, task.vocabulary.allowed, device="cpu")
    before = evaluate(agent, task, reference, per_prompt=64).reward
    agent.learn(env, 2048)
    after = evaluate(agent, task, reference, per_prompt=64).reward
    assert after.low > before.high + 0.1
