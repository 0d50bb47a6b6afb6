"""The search's formulas on nodes that are made up: PUCT, the noise at the root, and what backups write."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from textgym_agents.mcts.search import MCTSConfig, Search

NODES, WIDTH = 40, 4


def made_up(seed, chance=False, solver=True):
    """A search over nodes with random values, priors and visits; the last candidate is padding in every third."""
    generator = np.random.default_rng(seed)
    visits = generator.integers(0, 6, (NODES, WIDTH)) * (generator.random((NODES, WIDTH)) < 0.7)
    prior = generator.dirichlet(np.ones(WIDTH), NODES)
    log_prior = np.log(prior)
    log_prior[::3, -1] = -np.inf
    found = generator.normal(size=(NODES, WIDTH))
    done = (generator.random((NODES, WIDTH)) < 0.3) | np.isneginf(log_prior)
    done[5] = True
    found[::3, -1] = 9.0  # padding that would be the best
    visits[::3, -1] = 1
    forest = SimpleNamespace(
        values=generator.normal(size=NODES),
        own=generator.normal(size=NODES),
        visits=visits,
        log_prior=log_prior,
        chance=np.full(NODES, chance),
        solved=np.zeros(NODES, dtype=bool),
        action_values=lambda nodes: (found[nodes], visits[nodes] > 0),
        done=lambda nodes: done[nodes],
    )
    low, high = np.full(NODES, -0.5), np.full(NODES, 1.5)
    high[::5] = -0.5  # one value has been seen
    config = MCTSConfig(c_init=0.7, c_base=20.0)
    return SimpleNamespace(
        _forest=forest, _config=config, _low=low, _high=high, _skips=solver, _generator=np.random.default_rng(0)
    )


@pytest.mark.parametrize("solver", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_puct_by_the_formula_of_its_paper(seed, solver):
    search = made_up(seed, solver=solver)
    forest, every = search._forest, np.arange(NODES)
    found, done = forest.action_values(every)[0], forest.done(every)
    prior = np.exp(forest.log_prior)
    chosen = Search._choose(search, every, every, prior)
    for node in range(NODES):
        total = 1 + forest.visits[node].sum()
        factor = 0.7 + math.log((1 + total + 20.0) / 20.0)
        scores = []
        for column in range(WIDTH):
            value = found[node, column] if forest.visits[node, column] else forest.values[node]
            scaled = 0.0 if search._high[node] == -0.5 else min(max((value + 0.5) / 2.0, 0.0), 1.0)
            score = scaled + factor * prior[node, column] * math.sqrt(total) / (1 + forest.visits[node, column])
            padding = np.isneginf(forest.log_prior[node, column])
            left_out = padding or (solver and done[node, column] and not done[node].all())
            scores.append(-math.inf if left_out else score)
        assert chosen[node] == int(np.argmax(scores)), node


def test_equal_candidates_are_taken_equally_often():
    search = made_up(0, solver=False)
    forest = search._forest
    forest.visits[:], forest.log_prior[:] = 0, np.log(0.25)
    nodes = np.zeros(4000, dtype=np.int64)
    chosen = Search._choose(search, nodes, nodes, np.full((4000, WIDTH), 0.25))
    np.testing.assert_allclose(np.bincount(chosen) / 4000, 0.25, atol=0.03)


def test_replies_come_as_often_as_their_chance_says():
    search = made_up(0, chance=True, solver=False)
    forest, node = search._forest, np.zeros(1, dtype=np.int64)
    forest.log_prior[0], forest.visits[0] = np.log([0.5, 0.3, 0.15, 0.05]), 1
    taken = np.zeros(WIDTH)
    for time in range(200):
        column = Search._choose(search, node, node, np.ones((1, WIDTH)))[0]
        assert time > 1 or column == time  # 0.5 / 1, and then 0.3 / 1 before 0.5 / 2
        forest.visits[0, column] += 1
        taken[column] += 1
    np.testing.assert_allclose(taken / 200, [0.5, 0.3, 0.15, 0.05], atol=0.02)


def test_the_noise_at_the_root_is_dirichlet_over_what_may_be_taken():
    logs = np.repeat(np.log([[0.6, 0.3, 0.1, 1.0]]), 20_000, axis=0)
    logs[:, -1] = -np.inf
    search = SimpleNamespace(
        _forest=SimpleNamespace(log_prior=logs),
        _roots=np.arange(20_000),
        _config=SimpleNamespace(root_noise=0.25),
        _generator=np.random.default_rng(0),
    )
    found = Search._noisy_prior(search)
    noise = (found - 0.75 * np.exp(logs)) / 0.25
    assert (noise[:, -1] == 0).all()
    np.testing.assert_allclose(noise.sum(1), 1.0)
    assert noise.min() >= -1e-12
    # Of Dirichlet(10 / 3, 10 / 3, 10 / 3): variances 1 / 3 * 2 / 3 / 11.
    np.testing.assert_allclose(noise[:, :3].mean(0), 1 / 3, atol=0.005)
    np.testing.assert_allclose(noise[:, :3].var(0), 2 / 9 / 11, rtol=0.05)
    search._config.root_noise = 0.0
    np.testing.assert_array_equal(Search._noisy_prior(search), np.exp(logs))


def test_a_mean_counts_the_simulation_that_made_the_node_and_a_chance_node_expects():
    search = made_up(1)
    forest = search._forest
    forest.chance[2] = True
    search._config = MCTSConfig(backup="mean")
    found, known = forest.action_values(np.arange(NODES))
    Search._revalue(search, np.arange(NODES))
    for node in range(NODES):
        want = (forest.own[node] + (forest.visits[node] * np.where(known[node], found[node], 0.0)).sum()) / (
            1 + forest.visits[node].sum()
        )
        if node == 2:
            want = np.exp(forest.log_prior[2]) @ found[2]
        assert forest.values[node] == pytest.approx(want)
    assert forest.solved.tolist() == forest.done(np.arange(NODES)).all(1).tolist()
    assert forest.solved[5]


def test_the_best_candidate_or_where_none_was_visited_what_was_said_of_the_node():
    search = made_up(2)
    forest = search._forest
    forest.visits[7] = 0
    search._config = MCTSConfig(backup="max")
    found, known = forest.action_values(np.arange(NODES))
    Search._revalue(search, np.arange(NODES))
    for node in range(NODES):
        want = found[node][known[node]].max() if known[node].any() else forest.own[node]
        assert forest.values[node] == want
    assert forest.values[7] == forest.own[7]
