"""The trajectories of one policy for the gradient of another: by listing what may come, and at their ends."""

import numpy as np
import pytest
import torch
from agents.test_exact_estimators import Recurrent
from agents.test_referee import GROUP, Places, shifted, to_come, written
from solver_tools import bigram, small_task
from textgym_agents.exact.referee import referee
from textgym_agents.exact.samples import _coordinates, samples_of

from textgym import make_task
from textgym.solver import prefix_tree


@pytest.fixture(scope="module")
def samples():
    return samples_of(prefix_tree(small_task()), *shifted(), bigram())


def test_the_spread_of_a_state_by_listing_what_may_come(samples):
    among = to_come(samples)
    for step in range(samples.real.shape[1]):
        wanted = [0.0] * len(samples.mass)
        for row, (tokens, prompt) in enumerate(written(samples)):
            if step < len(tokens):
                returns, chances = among[prompt, tokens[:step]]
                wanted[row] = chances @ (returns - chances @ returns) ** 2
        np.testing.assert_allclose(samples.spread(step), wanted, atol=1e-12)
        assert max(wanted) > 0


def test_what_the_samples_never_write_counts_for_nothing():
    class Never(Recurrent):
        def states(self, *where):
            logits, values = super().states(*where)
            return logits.index_fill(1, torch.tensor([1]), -1e4), values

    seen = samples_of(prefix_tree(small_task()), Recurrent(), Never(), bigram())
    never = np.array([1 in tokens for tokens, _ in written(seen)])
    first = [tokens.index(1) for tokens, _ in written(seen) if 1 in tokens]
    assert (seen.mass[never] == 0).all()
    assert (seen.mass[~never] > 0).all()
    for each in (seen.log_rho, seen.old_log_ratio):
        assert np.isfinite(each).all()
        assert (each[never, first] == 0).all()
        assert np.count_nonzero(each) > 10
    assert all(np.isfinite([row.moments.bias, row.moments.variance]).all() for row in referee(seen, GROUP))


def test_without_a_stop_every_completion_ends_by_itself():
    task = make_task("Text", prompts=["a"], tokenizer=["a", "b"], max_new_tokens=2, reward=lambda **_: [0.0] * 4)
    assert samples_of(task, Places(task, 1.0), Places(task, 0.5)).ended.tolist() == [1.0] * 4


@pytest.mark.parametrize("parameters", [3, 40])
def test_many_parameters_become_as_many_coordinates_as_there_are_edges(parameters):
    jacobian = np.random.default_rng(0).normal(size=(7, parameters))
    found = _coordinates(jacobian)
    assert found.shape == (7, min(7, parameters))
    assert found @ found.T == pytest.approx(jacobian @ jacobian.T)
