"""Settings of objectives: KL with the ratio, importance weights, entropy target, equal groups, overlong completions.

Gradients are held to enumeration of what they estimate, in float64 to 1e-8 where the functions alone are asked.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from agents.enumerated import BETA, beside, full_rollout, tiny_agent, tiny_task
from agents.groups import expected_gradient, flat_gradient, small_agent, take
from agents.test_referee import gradient_of, shifted, taken
from gymnasium.vector import AutoresetMode
from solver_tools import bigram, small_task
from textgym_agents.algorithms.grpo import GRPO, GRPOConfig
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.algorithms.rloo import RLOO, RLOOConfig
from textgym_agents.config import LMPPOConfig
from textgym_agents.exact.referee import CAP, KL_ESTIMATORS, REWARD_ESTIMATORS
from textgym_agents.exact.samples import TwoPolicies, samples_of
from textgym_agents.lm.critic_free import Resampled, score_function_loss
from textgym_agents.lm.gathered import joined
from textgym_agents.lm.maths import kl_estimate, scores
from textgym_agents.lm.metrics import EntropyController, UpdateMeter, varied
from textgym_agents.lm.rollout import collect, score_reference, token_kl
from textgym_agents.lm.sampler import importance_weights

from textgym import TokenVectorEnv
from textgym.rewards import make_reward
from textgym.solver import prefix_tree

SIXTEEN = {"batch": 16, "group": 4, "learning_rate": 0.01, "epochs": 1}


@pytest.fixture(scope="module")
def samples() -> TwoPolicies:
    return samples_of(prefix_tree(small_task()), *shifted(), bigram())


def mean_of(samples, weights):
    return samples.mass @ samples.on_edges(weights) @ samples.current.jacobian


# Importance weights and the KL, to 1e-8


@pytest.mark.parametrize(
    ("how", "level", "row"),
    [
        ("truncate", "token", "token ratio, truncated (TIS)"),
        ("mask", "token", "token ratio, masked (MIS)"),
        ("truncate", "sequence", "sequence ratio, truncated"),
        ("mask", "sequence", "sequence ratio, masked"),
        ("none", "token", "REINFORCE, reward to go - V"),
    ],
)
def test_weighed_losses_have_the_gradients_of_the_referees_rows(samples, how, level, row):
    log_pi, own = taken(samples)
    rows, steps = np.nonzero(samples.real)
    log_rho = torch.tensor(samples.log_rho[rows, steps])
    weights = importance_weights(log_rho, torch.tensor(rows), how, level, CAP)
    loss = weights * score_function_loss(log_pi[rows, steps], torch.tensor(samples.advantages[rows, steps]))
    found = -gradient_of((torch.tensor(samples.mass[rows]) * loss).sum(), own)
    np.testing.assert_allclose(found, mean_of(samples, REWARD_ESTIMATORS[row].weights(samples)), atol=1e-8)
    if how != "none":
        assert not torch.equal(weights, importance_weights(log_rho, torch.tensor(rows), how, level, 99.0))


def test_weights_by_hand():
    log_rho, rows = torch.tensor([4.0, 0.5, 3.0, 0.1]).log(), torch.tensor([0, 0, 1, 1])
    of = {
        ("none", "token"): [1, 1, 1, 1],
        ("truncate", "token"): [2, 0.5, 2, 0.1],
        ("mask", "token"): [0, 0.5, 0, 0],
        ("truncate", "sequence"): [2, 2, 0.3, 0.3],
        ("mask", "sequence"): [2, 2, 0.3, 0.3],
    }
    for (how, level), want in of.items():
        got = importance_weights(log_rho, rows, how, level, cap=2.0 + 1e-6, floor=0.2 if how == "mask" else 0.0)
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float32), atol=1e-5, rtol=0)


def test_k3_with_the_ratio_has_the_gradient_of_the_kl_in_each_state_visited(samples):
    log_pi, own = taken(samples)
    real, mass = torch.tensor(samples.real), torch.tensor(samples.mass)
    log_rho = log_pi - (log_pi.detach() - torch.tensor(samples.log_rho))
    ratio = log_pi - (log_pi.detach() - torch.tensor(samples.log_ratio))
    found = gradient_of((mass * (kl_estimate(ratio, "k3-ratio", log_rho) * real).sum(1)).sum(), own)
    # Of the older policy's states, with all of their actions.
    np.testing.assert_allclose(found, mean_of(samples, KL_ESTIMATORS["exact in the loss"].weights(samples)), atol=1e-8)
    plain = gradient_of((mass * (kl_estimate(ratio, "k3") * real).sum(1)).sum(), own)
    assert np.linalg.norm(plain - found) > 0.1 * np.linalg.norm(found)


def test_agents_differentiate_the_ratio_of_k3_on_samples_of_an_older_policy():
    agent = small_agent(RLOO, kl="k3-ratio", group=2)
    rollout, probabilities = full_rollout(agent)
    rollout = replace(rollout, rewards=np.zeros_like(rollout.rewards))  # the KL alone is left
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in agent.policy.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    got = expected_gradient(agent, rollout, probabilities)
    agent.policy.zero_grad()
    total = torch.zeros(())
    for (_, own, base), probability in zip(beside(agent, agent.reference), probabilities, strict=True):
        total = total + float(probability) * BETA * (own.exp() * (own - base)).sum()
    total.backward()
    torch.testing.assert_close(got, flat_gradient(agent), atol=3e-4, rtol=2e-3)


# Entropy


def test_the_entropy_coefficient_by_hand():
    control = EntropyController(0.01, target=1.0, step=0.02)
    found = []
    for entropy in (6.0, 3.0, 3.0, 6.0, 6.0, 6.0, 4.0):  # of sequences of 4 tokens
        control.follow({"objective/entropy": entropy, "completion_length": 4.0})
        found.append((control.weight, round(control.coefficient, 6)))
    assert found == [(0, 0), (0, 0.02), (0.02, 0.04), (0, 0.02), (0, 0), (0, 0), (0, 0.02)]
    fixed = EntropyController(0.3)
    assert (fixed.follow({}), fixed.weight, fixed.coefficient) == ({}, 0.3, 0.3)


def test_the_bonus_is_what_the_loss_loses(env, task):
    losses = []
    for weight in (0.0, 0.5):
        agent = tiny_agent(task, kl="k1")
        rollout = collect(env, agent.policy, 0, task.vocabulary.stop_ids)
        scored = score_reference(agent.reference, rollout, 64, False)
        targets = agent._targets(rollout, token_kl(rollout, agent.policy, agent.reference, scored, "k1"))
        agent.entropy.weight = weight
        features = agent.policy.features(rollout.input_ids, *map(torch.tensor, (rollout.rows, rollout.columns)))
        losses.append(agent._loss(features, slice(None), rollout, targets, scored, UpdateMeter()))
    log_probs = torch.log_softmax(agent.policy.heads(features)[0], -1)
    torch.testing.assert_close(losses[0] - losses[1], -0.5 * (log_probs.exp() * log_probs).sum(1))


def resumed(kind, config, task, path, iterations=4):
    """Two agents after so many iterations, the second saved and loaded in the middle, and the rows of the first."""
    env = TokenVectorEnv(task, 16, autoreset_mode=AutoresetMode.DISABLED)
    whole, rows = kind(task, config), []
    whole.learn(env, 10_000, lambda row: rows.append(row) or len(rows) == iterations)
    half, first = kind(task, config), []
    half.learn(env, 10_000, lambda row: first.append(row) or len(first) == 2)
    half.save(path)
    half = kind.load(path, env)
    half.learn(env, 10_000 - half.episodes, lambda row: first.append(row) or len(first) == iterations)
    assert rows == first
    for one, other in zip(whole.policy.parameters(), half.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    return whole, half, rows


@pytest.mark.slow
def test_an_entropy_target_is_logged_and_resumed(task, tmp_path):
    config = LMPPOConfig(batch=16, minibatches=1, device="cpu", entropy_target=99.0, entropy_step=0.25)
    whole, half, rows = resumed(LMPPO, config, task, tmp_path / "saved")
    assert [row["objective/entropy_weight"] for row in rows] == [0, 0.25, 0.5, 0.75]
    assert whole.entropy.coefficient == half.entropy.coefficient == 1.0


# Groups without variance


def two_as(prompts, completions, **columns):
    return [float(text.startswith("a a")) for text in completions]


def group_env(reward=two_as):
    task = tiny_task(reward=reward)
    return task, TokenVectorEnv(task, 16, autoreset_mode=AutoresetMode.DISABLED)


def test_varied_by_hand():
    assert varied(np.array([1.0, 1, 0, 1, 1e3, 1e3 + 1e-6, -2, -2]), 2).tolist() == [False, True, False, False]


def two_groups(agent, **more):
    """Two completions of equal reward and of other lengths, and two of which one is rewarded."""
    rollout = take(full_rollout(agent)[0], np.array([0, 7, 13, 38]))
    last = np.cumsum(rollout.lengths) - 1
    rewards = np.zeros_like(rollout.rewards)
    rewards[last] = [1, 1, 0, 1]
    return replace(rollout, rewards=rewards, **more)


def updated(agent, rollout):
    """The gradient of the only step of an update."""
    scored = score_reference(agent.reference, rollout, 64, agent.config.kl == "exact")
    targets = agent._targets(rollout, token_kl(rollout, agent.policy, agent.reference, scored, agent.config.kl))
    agent._finish_step = lambda: 0.0
    agent.optimizer.zero_grad()
    agent._update(rollout, targets, scored)
    return flat_gradient(agent), targets, scored


@pytest.mark.slow
@pytest.mark.parametrize("kl", ["k1", "k3"])
@pytest.mark.parametrize("settings", [{"aggregation": "token"}, {"aggregation": "sequence", "divide_by_std": True}])
def test_dropped_groups_are_left_out_of_the_loss_and_its_total(settings, kl):
    settings = {"group": 2, "epochs": 1, "kl": kl, **settings}
    agent = small_agent(GRPO, equal_groups="drop", **settings)
    got, *_ = updated(agent, two_groups(agent))
    kept = small_agent(GRPO, **settings)
    alone = take(two_groups(kept), np.array([2, 3]))
    torch.testing.assert_close(got, updated(kept, alone)[0], atol=1e-6, rtol=1e-4)
    everything = updated(kept, two_groups(kept))[0]
    assert (everything - got).norm() > 0.1 * got.norm()


def test_resampling_plays_until_the_batch_is_full_and_counts_what_it_played():
    task, env = group_env()
    agent = RLOO(task, RLOOConfig(**SIXTEEN, device="cpu", equal_groups="resample", most_rounds=20))
    trained, before = [], agent._trained

    def watched(rollout, targets):
        trained.append((rollout, before(rollout, targets)))
        return trained[-1][1]

    agent._trained = watched
    rows = []
    agent.learn(env, 1, lambda row: bool(rows.append(row)))
    ((rollout, chosen),) = trained
    rounds = rollout.rounds
    assert rounds > 1  # with this seed some group of the first batch is equal
    assert agent.episodes == rows[0]["episode"] == len(rollout.lengths) == 16 * rounds
    assert (rows[0]["val/rounds"], rows[0]["tokens"]) == (rounds, rollout.lengths.sum())
    assert len(chosen) == 16
    paid = scores(rollout, 1.0)
    assert (np.ptp(paid[chosen].reshape(4, 4), axis=1) > 0).all()
    assert rows[0]["objective/scores"] == paid.mean()  # of everything that was sampled
    assert rows[0]["val/equal_groups"] == np.mean(np.ptp(paid.reshape(-1, 4), axis=1) == 0)
    full = np.ptp(paid.reshape(-1, 4), axis=1) > 0
    assert full[: 4 * (rounds - 1)].sum() < 4  # the last round was needed


def test_resampling_stops_at_its_bound_and_learns_nothing_from_a_constant():
    task, env = group_env(lambda prompts, completions, **columns: [0.5] * len(prompts))
    agent = GRPO(task, GRPOConfig(**SIXTEEN, device="cpu", equal_groups="resample", most_rounds=3, divide_by_std=True))
    start = [parameter.detach().clone() for parameter in agent.policy.parameters()]
    rows = []
    agent.learn(env, 50, rows.append)
    assert [row["episode"] for row in rows] == [48, 96]
    assert [row["updates"] for row in rows] == [0, 0]
    assert all(torch.equal(*pair) for pair in zip(start, agent.policy.parameters(), strict=True))


@pytest.mark.slow
def test_resampling_resumes_bit_for_bit(tmp_path):
    task, _ = group_env()
    config = GRPOConfig(**SIXTEEN, device="cpu", equal_groups="resample", most_rounds=4, top_p=0.95)
    _, _, rows = resumed(GRPO, config, task, tmp_path / "saved", iterations=3)
    assert max(row["val/rounds"] for row in rows) > 1
    assert all(after["episode"] - row["episode"] == 16 * after["val/rounds"] for row, after in pairwise(rows))


def test_several_batches_are_joined_row_by_row(env, task):
    agent = tiny_agent(task, top_p=0.9)
    parts = [collect(env, agent.policy, seed, task.vocabulary.stop_ids, True) for seed in (1, 2)]
    parts[1] = replace(parts[1], input_ids=parts[1].input_ids[:, : int(parts[1].columns.max()) + 2])
    whole = joined(parts)
    assert whole.rounds == 2
    assert len(set(whole.rows.tolist())) == 32
    for place, part in enumerate(parts):
        own = np.flatnonzero(whole.rows // 16 == place)
        assert np.array_equal(whole.rows[own] - 16 * place, part.rows)
        assert torch.equal(whole.log_probs[own], part.log_probs)
        assert torch.equal(whole.features[own], part.features)
        assert torch.equal(whole.kept_of(torch.tensor(own)), part.kept_of(slice(None)))
        width = part.input_ids.shape[1]
        assert torch.equal(whole.input_ids[16 * place : 16 * place + 16, :width], part.input_ids)
    assert joined(parts[:1]) is parts[0]


def test_every_round_has_prompts_and_samples_of_its_own():
    task, env = group_env()
    agent = tiny_agent(task)
    seeds = []

    def play(env, policy, seed, *rest):
        seeds.append(seed)
        return collect(env, policy, seed, *rest)

    whole = Resampled(play, 1.0, 3)(env, agent.policy, 7, task.vocabulary.stop_ids, False, 16)
    assert seeds[0] == 7
    assert len(set(seeds)) == len(seeds) == whole.rounds


# Overlong completions


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LMPPO, GRPO])
def test_overlong_completions_are_left_out_of_the_loss_and_its_total(kind):
    settings = {"epochs": 1, "kl": "k1", **({"group": 2, "aggregation": "token"} if kind is GRPO else {})}
    agent, plain = (small_agent(kind, overlong=how, **settings) for how in ("mask", "keep"))
    stopped, truncated = np.array([True, False, True, False]), np.array([False, False, False, True])
    rollout = two_groups(agent, stopped=stopped, truncated=truncated)  # row 1 alone has used up the budget
    rollout = replace(rollout, rewards=rollout.rewards + 0.1 * rollout.rows)
    got, targets, scored = updated(agent, rollout)
    plain._finish_step = lambda: 0.0
    plain.optimizer.zero_grad()
    plain._update(rollout, replace(targets, rows=np.array([0, 2, 3])), scored)
    torch.testing.assert_close(got, flat_gradient(plain), atol=1e-7, rtol=1e-5)
    assert (updated(plain, rollout)[0] - got).norm() > 0.05 * got.norm()


def test_the_length_penalty_is_dapos_soft_overlong_punishment():
    # Yu et al. (2025), eq. 13, of 20 tokens the last 8.
    penalty = make_reward({"name": "length_penalty", "limit": 12, "per_unit": 1 / 8})
    lengths = [5, 12, 13, 16, 20]
    want = [0.0 if n <= 12 else (12 - n) / 8 for n in lengths]
    assert penalty(["p"] * 5, ["x"] * 5, completion_ids=[[0] * n for n in lengths]) == pytest.approx(want)


# REINFORCE++


def test_ppo_without_a_critic_is_reinforce_plus_plus(env, task):
    agent = tiny_agent(task, kl="k1", lam=1.0, whiten=True, value_coefficient=0.0)
    agent.value_scale = None
    rollout = collect(env, agent.policy, 3, task.vocabulary.stop_ids)
    kl = token_kl(rollout, agent.policy, agent.reference, score_reference(agent.reference, rollout, 64, False), "k1")
    credits = [
        rollout.rewards[(rollout.rows == row) & (rollout.steps >= step)].sum()
        - BETA * kl[(rollout.rows == row) & (rollout.steps >= step)].sum()
        for row, step in zip(rollout.rows, rollout.steps, strict=True)
    ]
    want = (np.array(credits) - np.mean(credits)) / np.std(credits)
    np.testing.assert_allclose(agent._targets(rollout, kl).advantages.numpy(), want, atol=1e-5)
    before = agent.policy.value_head.weight.detach().clone()
    agent.learn(env, 32)
    assert torch.equal(agent.policy.value_head.weight, before)  # V stays a constant, which the mean takes away


def test_grpo_whitened_is_reinforce_plus_plus_with_the_groups_baseline():
    agent = small_agent(GRPO, group=2, whiten=True, beta=0.0, kl="k1")
    rollout = replace(two_groups(agent), rewards=np.arange(len(two_groups(agent).rows)) ** 2.0)
    found = agent._targets(rollout, np.zeros(len(rollout.rows))).advantages.double().numpy()
    paid = np.bincount(rollout.rows, rollout.rewards).reshape(2, 2)
    tokens = (paid - paid.mean(1, keepdims=True)).ravel()[rollout.rows]
    np.testing.assert_allclose(found, tokens / tokens.std(), rtol=1e-5)


# Settings that do not fit


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (LMPPOConfig, {"entropy_target": 0.0}, "entropy_target=0.0: allowed is None or a finite number > 0"),
        (LMPPOConfig, {"entropy_step": 0.1}, "entropy_step=0.1: allowed is 0.005 without entropy_target"),
        (LMPPOConfig, {"overlong": "drop"}, "overlong='drop': allowed is 'keep' or 'mask'"),
        (LMPPOConfig, {"importance": "mask"}, "importance='mask': allowed is 'truncate' without sampler"),
        (
            LMPPOConfig,
            {"importance_level": "sequence"},
            "importance_level='sequence': allowed is 'token' without sampler",
        ),
        (
            LMPPOConfig,
            {"importance_floor": 0.5, "sampler": "http://localhost:1"},
            "importance_floor=0.5: allowed is 0.0 without importance='mask'",
        ),
        (
            LMPPOConfig,
            {"importance_floor": 3.0, "importance": "mask", "sampler": "http://localhost:1"},
            "importance_floor=3.0: allowed is less than importance_cap=2.0",
        ),
        (RLOOConfig, {"equal_groups": "no"}, "equal_groups='no': allowed is 'keep' or 'drop' or 'resample'"),
        (GRPOConfig, {"most_rounds": 3}, "most_rounds=3: allowed is 10 without equal_groups='resample'"),
    ],
)
def test_settings_that_do_not_fit_are_named(kind, given, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the message is looked at below)
        kind(**given)
    assert message in str(caught.value)
