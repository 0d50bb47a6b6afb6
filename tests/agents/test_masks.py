"""Grammar masks: sampling, scoring, the reference, the KL and the optimum all live on the allowed tokens."""

import dataclasses

import numpy as np
import pytest
import torch
from agents.enumerated import STOP, tiny_agent, tiny_task
from gymnasium.vector import AutoresetMode
from solver_tools import no_repeats
from textgym_agents.lm.rollout import collect, score_reference, token_kl

from textgym import TokenVectorEnv
from textgym.estimates import draw_samples
from textgym.evaluate import evaluate
from textgym.lm.reference import restricted
from textgym.optimum import estimated
from textgym.sampling import play
from textgym.solver import policy_values, solve


@pytest.fixture
def masked():
    return dataclasses.replace(tiny_task(), mask=no_repeats)


def batch_env(task, count=256):
    return TokenVectorEnv(task, count, autoreset_mode=AutoresetMode.DISABLED)


def legal(rollout):
    """(N, V) by hand: from the tokens themselves."""
    allowed = np.ones((len(rollout.rows), 4), dtype=bool)
    ids = rollout.input_ids.numpy()
    for n, (row, column, step) in enumerate(zip(rollout.rows, rollout.columns, rollout.steps, strict=True)):
        allowed[n, ids[row, column] if step else STOP] = False
    return allowed


def test_a_rollout_takes_and_scores_only_what_the_grammar_allows(masked):
    agent = tiny_agent(masked)
    rollout = collect(batch_env(masked), agent.policy, 0, (STOP,), keep_features=True)
    allowed = legal(rollout)
    assert np.array_equal(rollout.masks[:].numpy(), allowed)
    assert allowed[np.arange(len(allowed)), rollout.actions.numpy()].all()
    scored = score_reference(agent.reference, rollout, 64, True)
    own = agent.policy.distribution(rollout.features, rollout.masks_of(slice(None)))
    reference = agent.reference.distribution(scored, rollout.masks_of(slice(None)))
    for log_probs in (own, reference):
        probabilities = log_probs.exp().numpy()
        np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-5)
        assert (probabilities[~allowed] == 0).all()
    # Independently: the unmasked model, renormalised.
    logits, _ = agent.reference.states(rollout.input_ids, torch.tensor(rollout.rows), torch.tensor(rollout.columns))
    expected = restricted(torch.log_softmax(logits, -1).numpy(), allowed)
    np.testing.assert_allclose(reference.numpy()[allowed], expected[allowed], atol=1e-5)
    assert (token_kl(rollout, agent.policy, agent.reference, scored, "exact") >= -1e-6).all()


@pytest.mark.slow
def test_the_first_ratio_is_one_and_training_improves_the_objective(masked):
    agent = tiny_agent(masked, shift=0.0, learning_rate=1e-2, batch=64, value_coefficient=0.01)
    seen = []
    agent.learn(batch_env(masked, 64), 64 * 40, seen.append)
    assert seen[0]["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)
    reference = agent.own_reference()
    exact = solve(masked, reference)
    assert exact.optimality(policy_values(masked, agent, reference).objective) > 0.9


@pytest.mark.slow
def test_evaluation_and_estimated_optimum_agree_with_the_exact_solver(masked):
    agent = tiny_agent(masked)
    samples = draw_samples(masked, agent.own_reference(), split="train", each=3000)
    optimum = estimated(samples, masked.beta, "train")
    found = evaluate(agent, masked, agent.own_reference(), optimum, split="train", per_prompt=3000)
    exact = solve(masked, agent.own_reference())
    assert optimum.value.mean == pytest.approx(exact.objective, abs=0.02)
    assert optimum.reference.mean == pytest.approx(exact.reference_objective, abs=0.05)
    own = policy_values(masked, agent, agent.own_reference())
    assert found.objective.mean == pytest.approx(own.objective, abs=0.05)
    assert found.kl.mean == pytest.approx(own.kl, abs=0.03)


def test_prompts_can_be_played_in_any_order(masked):
    agent = tiny_agent(masked)
    episodes = play(agent, masked, prompt_index=np.array([1, 0, 1, 1]), per_prompt=1, split="train", seed=3)
    assert episodes.prompts == ("c", "a b", "c", "c")
    assert episodes.returns.shape == (4, 1)
    again = play(agent, masked, prompt_index=np.array([1, 0, 1, 1]), per_prompt=1, split="train", seed=3)
    assert (episodes.completions == again.completions).all()
    for wrong in ([], [2], [-1], [0.5]):
        with pytest.raises(ValueError, match="prompt_index"):
            play(agent, masked, prompt_index=np.array(wrong), split="train")


def test_restricting_renormalises_and_survives_a_policy_that_forbids_all():
    log_probs = np.log(np.array([[0.5, 0.25, 0.25], [1.0, 1e-300, 1e-300]]))
    log_probs[1, 1:] = -np.inf
    masks = np.array([[False, True, True], [False, True, True]])
    np.testing.assert_allclose(np.exp(restricted(log_probs, masks)), [[0, 0.5, 0.5], [0, 0.5, 0.5]])
    assert restricted(log_probs, None) is log_probs
