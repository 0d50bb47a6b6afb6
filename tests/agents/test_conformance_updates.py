"""The kit's checks of the update: planted bugs are caught by other checks than learning, clean agents pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agents.enumerated import tiny_agent
from agents.mutant_lm import HOOKLESS_BUGS, UPDATE_MUTANTS, HandWritten
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig
from textgym_agents.conformance import FAILS, HOLDS, NOT_ASKED, Estimator, check, check_names
from textgym_agents.conformance.gradient import ExactGradients, exact_gradients
from textgym_agents.conformance.objective import Fit, common_rest, exact_variance
from textgym_agents.exact.estimators import enumerate_trajectories, estimator_table
from textgym_agents.exact.objective import EnumeratedPolicy

UPDATES = (
    "gradient of J",
    "gradient with a discount",
    "gradient under a grammar",
    "ratio under a grammar",
    "states used",
    "variance",
    "value loss",
    "clipping",
)
CPU = {"device": "cpu"}
FIRST = ("ignores gamma",)
"""Bugs that are planted in the gate; tests of the others are marked `long`."""


def outcomes(agent, names=UPDATES, **settings):
    return {f.check: f for f in check(agent, names, settings=settings)}


@pytest.fixture(scope="module")
def exact():
    agent = tiny_agent()
    return agent, exact_gradients(agent.task, _View(agent))


class _View:
    """An agent's policy in float64, with the agent's own reference."""

    def __init__(self, agent):
        self.log_probs = EnumeratedPolicy(agent.policy).log_probs
        self.own_reference = lambda: EnumeratedPolicy(agent.reference)


def test_the_parts_add_up_to_the_gradient_that_autograd_finds(exact):
    agent, parts = exact
    # J, E[R] and the KL of a table of logits, by summing over the states with torch.
    values, size = parts.values, agent.task.vocabulary.size
    logits = torch.tensor(_log_table(parts).reshape(-1, size), requires_grad=True)
    reward, kl, entropy = _by_torch(parts, logits)
    reward_now, kl_now, entropy_now = (float(n.detach()) for n in (reward, kl, entropy))
    assert reward_now == pytest.approx(values.expected_return)
    assert kl_now == pytest.approx(values.kl)
    assert entropy_now == pytest.approx(values.entropy)
    for place, number in enumerate((reward, kl)):
        (wanted,) = torch.autograd.grad(number, logits, retain_graph=True)
        np.testing.assert_allclose(parts.parts[:, place], wanted.numpy().ravel(), atol=1e-9)
    (wanted,) = torch.autograd.grad(_by_torch(parts, logits, fixed=True)[2], logits)
    np.testing.assert_allclose(parts.parts[:, 2], wanted.numpy().ravel(), atol=1e-9)


def _log_table(parts: ExactGradients):
    probability = parts.mass.reshape(parts.states, -1)
    return np.log(probability / probability.sum(1, keepdims=True))


def _by_torch(parts, logits, fixed=False):
    """E[R], KL and entropy of one episode; `fixed` keeps how often a state is visited out of the gradient."""
    tree, logs = parts.tree, logits.log_softmax(-1)
    reach, first = [torch.tensor(tree.weights)], 0
    reward = kl = entropy = torch.zeros((), dtype=torch.float64)
    for depth, level in enumerate(tree.levels[:-1]):
        below = tree.levels[depth + 1]
        index = np.zeros(len(level.parent), dtype=np.int64)
        index[level.running] = first + np.arange(len(level.running))
        first += len(level.running)
        taken = logs[index[below.parent], below.action]
        here = reach[-1][below.parent]
        mass = (here.detach() if fixed else here) * taken.exp()
        reward = reward + (mass * torch.tensor(below.reward)).sum()
        kl = kl + (mass * (taken - torch.tensor(parts.values.log_reference[depth]))).sum()
        entropy = entropy - (mass * taken).sum()
        reach.append(mass)
    return reward, kl, entropy


@pytest.mark.slow
def test_the_variance_is_that_of_the_table_of_estimators():
    # The table sums over pairs of completions by autograd on the parameters; a table of logits is its own parameter.
    agent = tiny_agent()
    parts = exact_gradients(agent.task, _View(agent))
    enumeration = enumerate_trajectories(agent.task, _Table(parts), EnumeratedPolicy(agent.reference))
    rows = {row.estimator: row.variance for row in estimator_table(enumeration, group=2)}
    for estimator, name, episodes in (
        (Estimator(to_go=False), "REINFORCE", 1),
        (Estimator(), "REINFORCE, reward to go", 1),
        (Estimator("group", 2, to_go=False), "RLOO, groups of 2", 2),
    ):
        got, spread = exact_variance(parts, estimator, None, episodes)
        assert got == pytest.approx(rows[name], rel=1e-5), name
        assert 0 < spread <= 1


class _Table(torch.nn.Module):
    """A table of logits as a policy that can be enumerated."""

    def __init__(self, parts):
        super().__init__()
        size = parts.tree.task.vocabulary.size
        self.logits = torch.nn.Parameter(torch.tensor(_log_table(parts).reshape(-1, size)))
        self.place = parts.place

    def states(self, input_ids, rows, columns):
        index = [
            self.place[tuple(input_ids[row, : column + 1].tolist())]
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
        return self.logits[index], None


def test_a_rest_is_found_in_both_halves_or_it_is_noise():
    # Halves (1, 1) and (1, 1): the product of the means is 2, with no scatter. Opposite halves: -2.
    ones = np.ones((4, 2))
    assert common_rest(ones)[1] == pytest.approx(np.sqrt(2))
    opposite = ones * np.array([1, 1, -1, -1])[:, None]
    assert common_rest(opposite)[1] == 0.0


def test_contrasts_by_hand():
    # KL coefficients -0.5 and -0.7 beside 1 and 1, wanted -0.3 times that of E[R]: mean -0.3, error 0.1.
    coefficients = np.array([[1.0, -0.5, 0.0], [1.0, -0.7, 0.0]])
    assert Fit(coefficients, np.zeros((2, 2)), 1.0, 0.3, 0.0).contrast(1, -0.3) == pytest.approx((-0.3, 0.1))


def test_a_clip_that_takes_the_maximum_is_caught():
    mutant, names = UPDATE_MUTANTS["clip takes the maximum"]
    assert outcomes(mutant, names, **CPU)["clipping"].status == FAILS
    assert outcomes("lm-ppo", names, **CPU)["clipping"].status == HOLDS


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(name, marks=[] if name in FIRST else [pytest.mark.long])
        for name in UPDATE_MUTANTS
        if name != "clip takes the maximum"
    ],
)
def test_a_planted_bug_is_caught_without_learning(bug):
    mutant, names = UPDATE_MUTANTS[bug]
    found = outcomes(mutant, sorted(names), **CPU)
    assert {f.check: f.status for f in found.values()} == dict.fromkeys(names, FAILS)
    assert not any("Error" in f.found for f in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("bug", HOOKLESS_BUGS)
def test_without_hooks_it_is_not_asked_and_the_hook_is_named(bug):
    names = sorted(HOOKLESS_BUGS[bug])
    for finding in outcomes(HandWritten, names, bug=bug, hooks=False, **CPU).values():
        assert finding.status == NOT_ASKED
        assert "no hook 'gradient'" in finding.found or "no hook 'batch'" in finding.found


@pytest.mark.slow
@pytest.mark.long
def test_with_its_hook_half_a_kl_is_caught():
    found = outcomes(HandWritten, ["gradient of J"], bug="halves the KL in the reward", **CPU)
    assert found["gradient of J"].status == FAILS


@pytest.mark.long
def test_with_its_hook_the_same_agent_is_caught():
    found = outcomes(HandWritten, ["states used"], bug="pads in the value loss", **CPU)
    assert found["states used"].status == FAILS
    assert "gradients where nobody acts" in found["states used"].found


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "not_asked"),
    [
        ("lm-ppo", set()),
        ("a2c", {"clipping"}),
        ("reinforce", {"clipping", "value loss"}),
        ("rloo", {"value loss"}),
        ("grpo", {"value loss"}),
        (HandWritten, {"clipping", "ratio under a grammar"}),
    ],
)
def test_a_clean_agent_passes(agent, not_asked):
    found = outcomes(agent, **CPU)
    assert {f.check: f.found for f in found.values() if f.status == FAILS} == {}
    assert {f.check for f in found.values() if f.status == NOT_ASKED} == not_asked


@pytest.mark.long
def test_a_clean_stranger_passes_and_its_update_is_not_asked():
    found = outcomes("sb3-ppo", [name for name in check_names() if not name.startswith("learns")])
    assert {f.check: f.found for f in found.values() if f.status == FAILS} == {}
    assert all(found[name].status == NOT_ASKED for name in UPDATES)
    assert "no hook 'gradient'" in found["gradient of J"].found


def test_an_agent_that_refuses_masks_is_not_asked_about_them():
    found = outcomes("soft-q", ["ratio under a grammar"], **CPU)["ratio under a grammar"]
    assert found.status == NOT_ASKED
    assert "grammar mask" in found.found


def test_a_function_that_makes_another_agent_is_told_which_setting_is_in_the_way():
    def make(env):
        return LMPPO(env.task, LMPPOConfig(device="cpu", epochs=1, minibatches=1, lam=1.0))

    found = outcomes(make, ["gradient of J"])["gradient of J"]
    assert (found.status, found.found) == (NOT_ASKED, "the agent has whiten=True; the check needs False")
