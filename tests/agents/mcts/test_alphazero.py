"""AlphaZero: its losses by hand, what its games are credited with, and that it learns."""

import numpy as np
import pytest
import torch
from lm.tiny_models import tiny_llama
from solver_tools import Paid, batch_env, small_task, uneven
from textgym_agents import make_agent, make_env
from textgym_agents.conformance import FAILS, check
from textgym_agents.conformance.under_test import CutOff
from textgym_agents.mcts.alphazero import AlphaZero, AlphaZeroConfig, distillation_losses, play_games
from textgym_agents.mcts.planner import Planner
from textgym_agents.mcts.search import MCTSConfig

from textgym.lm.reference import UniformReference
from textgym.solver import policy_values, solve


def seen_of(state, task):
    return batch_env(task, 1).set_states([state])


def test_the_losses_by_hand():
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [1.0, 0.0, 0.0]])
    targets = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    policy, value = distillation_losses(logits, torch.tensor([1.0, 3.0]), targets, torch.tensor([4.0, 1.0]))
    np.testing.assert_allclose(policy, [np.log(2), np.log(np.e + 2) - 1], rtol=1e-6)
    assert value.tolist() == [9.0, 4.0]


def test_tokens_beyond_the_candidates_are_one_event():
    """By hand: candidates 2 and 0 have 0.5 and 0.2, the other two share 0.3."""
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.7]], requires_grad=True)
    targets, tokens = torch.tensor([[0.5, 0.2]]), torch.tensor([[2, 0]])
    loss, _ = distillation_losses(logits, torch.zeros(1), targets, torch.zeros(1), tokens)
    p = torch.softmax(logits.detach(), -1)[0].numpy()
    assert float(loss.detach()) == pytest.approx(-0.5 * np.log(p[2]) - 0.2 * np.log(p[0]) - 0.3 * np.log(p[1] + p[3]))
    # The gradient is that of the whole target in which the others keep their shares of the policy.
    whole = np.array([0.2, 0.3 * p[1] / (p[1] + p[3]), 0.5, 0.3 * p[3] / (p[1] + p[3])])
    loss.sum().backward()
    np.testing.assert_allclose(logits.grad[0], p - whole, atol=1e-6)


def test_where_nothing_is_left_for_other_tokens_the_gradient_is_finite():
    logits = torch.tensor([[0.3, -torch.inf, 2.0]], requires_grad=True)
    loss, _ = distillation_losses(
        logits, torch.zeros(1), torch.tensor([[0.5, 0.5]]), torch.zeros(1), torch.tensor([[0, 2]])
    )
    loss.sum().backward()
    assert torch.isfinite(logits.grad[0, [0, 2]]).all()
    assert float(loss.detach()) == pytest.approx(-0.5 * float(torch.log_softmax(torch.tensor([0.3, 2.0]), 0).sum()))


def test_few_candidates_are_what_the_search_answered():
    task = small_task()
    planner = Planner(task, MCTSConfig(simulations=4, candidates=2), 0.4)
    games = play_games(batch_env(task, 16), 0, planner, 0.4, np.random.default_rng(0))
    assert games.targets.shape == games.tokens.shape == (len(games.rows), 2)
    for n, (row, column) in enumerate(zip(games.rows, games.columns, strict=True)):
        ids = games.input_ids[row : row + 1, : column + 1]
        (node,) = [at for key, at in planner.forest.index.items() if key[1] == tuple(ids[0].tolist())][:1]
        assert games.tokens[n].tolist() == planner.forest.actions[node].tolist()
        whole = planner.plan(seen_of(planner.forest.states[node], task))[0][0]
        np.testing.assert_allclose(games.targets[n], np.exp(whole[games.tokens[n]]), rtol=1e-6)


def test_the_gradient_vanishes_where_the_policy_is_what_the_search_came_to():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    distillation_losses(logits, torch.zeros(3), torch.softmax(logits.detach(), -1), torch.zeros(3))[0].sum().backward()
    assert float(logits.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("pay", ["every", "end"])
@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_outcomes_are_rewards_and_charges_to_come(beta, pay):
    task = small_task(reward=Paid(pay), gamma=0.5)
    planner = Planner(task, MCTSConfig(simulations=4), 0.4)
    games = play_games(batch_env(task, 16), 0, planner, beta, np.random.default_rng(0))
    reference = UniformReference(task.vocabulary.allowed)
    for row in range(16):
        states = np.flatnonzero(games.rows == row)
        columns = games.columns[states]
        assert (np.diff(columns) == 1).all()
        ids = games.input_ids[row]
        prompt = "a" if ids[0] == 0 and columns[0] == 0 else "b c"
        paid, charge = [], []
        for n, column in zip(states, columns, strict=True):
            completion = ids[columns[0] + 1 : column + 2].tolist()
            (text,) = task.vocabulary.decode([completion])
            paid += uneven([prompt], [text], completion_ids=[completion])
            logs = reference.log_probs({"input_ids": ids[None]})[0]
            charge.append(np.log(games.targets[n][completion[-1]]) - logs[completion[-1]])
        if pay == "end":
            paid[:-1] = [0.0] * (len(paid) - 1)
        for place, n in enumerate(states):
            want = sum(0.5**t * paid[t] - beta * charge[t] for t in range(place, len(states)))
            assert games.outcomes[n] == pytest.approx(want, abs=1e-5)
        assert games.returns[row] == pytest.approx(sum(0.5**t * r for t, r in enumerate(paid)))
        assert games.log_ratios[row] == pytest.approx(sum(charge), abs=1e-5)


def test_behind_a_truncation_stands_the_value_of_the_search():
    task = small_task(reward=Paid("every"), gamma=0.5)
    solution = solve(task)
    planner = Planner(task, MCTSConfig(simulations=4, leaf="exact", c_init=1000.0), task.beta)
    games = play_games(CutOff(task, 16), 0, planner, task.beta, np.random.default_rng(0))
    ids = games.input_ids
    stopped = ids[games.rows, games.columns + 1] == 3
    assert stopped.any()
    assert not stopped.all()
    mask = (np.arange(ids.shape[1]) <= games.columns[:, None] + 1).astype(np.int8)
    after = solution.state_values({"input_ids": ids[games.rows][~stopped], "attention_mask": mask[~stopped]})
    here = games.returns - task.beta * games.log_ratios
    np.testing.assert_allclose(games.outcomes[stopped], here[stopped], atol=1e-9)
    np.testing.assert_allclose(games.outcomes[~stopped], here[~stopped] + after, atol=1e-9)


def test_masked_tokens_are_neither_played_nor_learned():
    def no_repeats(states):
        masks = np.ones((len(states), 4), dtype=bool)
        for row, state in enumerate(states):
            masks[row, state.tokens[-1]] = False
        return masks

    task = small_task(mask=no_repeats)
    planner = Planner(task, MCTSConfig(simulations=4), 0.4)
    games = play_games(batch_env(task, 16), 0, planner, 0.4, np.random.default_rng(0))
    last = games.input_ids[games.rows, games.columns]
    assert (games.targets[np.arange(len(last)), last] == 0).all()
    agent = AlphaZero(task, AlphaZeroConfig(batch=16, simulations=4, device="cpu"), model=tiny_llama(4))
    losses = agent._losses(games, np.arange(16))
    assert all(torch.isfinite(loss).all() for loss in losses)


def learned(task):
    """An agent whose policy and value head have moved away from their start."""
    agent = AlphaZero(task, AlphaZeroConfig(device="cpu"), model=tiny_llama(4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    agent.value_offset, agent.value_scale = 0.4, 2.0
    return agent


@pytest.mark.slow
def test_as_a_guide_of_mcts_it_is_both_prior_and_value(tmp_path):
    task = small_task()
    agent = learned(task)
    agent.save(tmp_path / "run")
    settings = {
        "guide": str(tmp_path / "run"),
        "prior": "guide",
        "leaf": "values",
        "backup": agent.config.backup,
    }
    search = make_agent("mcts", batch_env(task), simulations=8, **settings)
    env = batch_env(task, 1)
    observation, _ = env.reset(seed=0)
    search.log_probs(observation)
    forest = search.planner.forest
    assert len(forest) > 1
    for node, state in enumerate(forest.states):
        seen = env.set_states([state])
        np.testing.assert_allclose(forest.log_prior[node], agent.log_probs(seen)[0], atol=1e-4)
        assert forest.own[node] == pytest.approx(agent.values(seen)[0], abs=1e-4)


@pytest.mark.slow
def test_a_leaf_costs_one_forward_of_the_network(monkeypatch):
    task = small_task()
    agent = learned(task)
    planner, asked = agent._planner(), []
    backbone = agent.policy.backbone
    for name in ("open", "extend", "features"):
        method = getattr(backbone, name)
        monkeypatch.setattr(backbone, name, lambda *given, do=method: asked.append(0) or do(*given))
    observation, _ = batch_env(task, 1).reset(seed=0)
    planner.plan(observation)
    assert 1 < len(asked) <= len(planner.forest)


def test_without_settings_it_has_the_defaults():
    assert AlphaZero(small_task()).config == AlphaZeroConfig()


@pytest.mark.long
def test_the_kit_finds_nothing():
    names = (
        "starts at the reference", "values read nothing later", "log-probs sum to one", "mask obedience",
        "same seed, same policy", "global random numbers", "saved and loaded", "resumed",
    )  # fmt: skip
    settings = {"simulations": 4, "batch": 8, "device": "cpu"}
    findings = check("alphazero", names, settings=settings, envs=8, iterations=2)
    assert not [finding for finding in findings if finding.status == FAILS]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"simulations": 0}, "simulations=0"),
        ({"backup": "max"}, "backup='max'"),
        ({"leaf": "exact"}, "leaf='exact'"),
        ({"kl": "exact"}, "kl='exact'"),
        ({"root_noise": 2.0}, "root_noise=2.0"),
        ({"minibatches": 65}, "minibatches=65"),
        ({"visit_temperature": 0.5}, "visit_temperature=0.5: allowed is 1.0 without backup='mean'"),
    ],
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        AlphaZeroConfig(**given)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "difficulty", "least"),
    [("Stop", 2, 0.8), ("Bandit", 6, 0.9)],  # of more arms than it simulates
)
def test_it_learns(name, difficulty, least):
    env = make_env(f"textgym/{name}-v0", 64, difficulty=difficulty)
    solution = solve(env.unwrapped.task)
    agent = make_agent("alphazero", env, device="cpu")
    assert agent.config.simulations == 32
    agent.learn(env, 2048)
    assert solution.optimality(policy_values(solution.tree, agent).objective) > least
