"""Losses of agents that learn from a log or in groups, by hand, and where they have a gradient and where none."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from agents.enumerated import first_metrics, full_rollout, tiny_agent, tiny_task
from agents.groups import small_agent, take
from agents.test_targets import two_rows
from gymnasium.vector import AutoresetMode
from lm.tiny_models import tiny_llama
from textgym_agents.algorithms.awr import AWR
from textgym_agents.algorithms.cql import CQL
from textgym_agents.algorithms.ilql import ILQL
from textgym_agents.algorithms.mc_values import MCValues
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.algorithms.reinforce import Reinforce
from textgym_agents.algorithms.rloo import RLOO
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.critic_free import Resampled, _before
from textgym_agents.lm.gathered import joined
from textgym_agents.lm.logged import LoggedStates
from textgym_agents.lm.maths import Targets
from textgym_agents.lm.metrics import UpdateMeter
from textgym_agents.lm.rollout import score_reference, token_kl

from textgym import TokenVectorEnv
from textgym.state import TokenState

WEIGHT, LAM, TAU, ALPHA = 0.3, 0.6, 0.8, 0.05
DATA = ("rewards", "to_go")
STATES = {
    "rewards": [1.0, 2.0, 0.5],
    "to_go": [3.0, 2.0, 0.5],
    "values": [0.3, -0.2, 0.9],
    "centres": [0.5, 0.4, -0.3],
    "gaps": [0.2, -0.6, 0.1],
    "log_sum": [0.9, 0.2, 0.4],
    "greatest": [0.7, 0.1, 0.2],
    "log_probs": [-0.5, -1.0, -2.0],
}


def losses(kind, scale, **settings):
    """The losses of an agent in three states, two of a row and one of another; metrics; and the gradients by name."""
    agent = kind(tiny_task(), kind.config_type(device="cpu", **settings), model=tiny_llama(4))
    agent.value_scale = scale
    leaves = {name: torch.tensor(values, requires_grad=name not in DATA) for name, values in STATES.items()}
    agent.states = lambda batch: LoggedStates(last=torch.tensor([False, True, True]), **leaves)
    found, metrics = agent._losses(None, None)
    found.sum().backward()
    return found.detach().numpy(), metrics, {name: leaf.grad for name, leaf in leaves.items()}


def numbers(*names):
    return (np.array(STATES[name]) for name in names)


def near(found, want):
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7)


# Before the first returns that differ there is no scale: values are in reward units.
scales = pytest.mark.parametrize("scale", [None, 3.0])


@scales
def test_advantage_weighted_regression(scale):
    settings = {"value_coefficient": WEIGHT, "advantage_temperature": 1.5, "greatest_weight": 4.0}
    found, metrics, gradients = losses(AWR, scale, **settings)
    unit = scale or 1.0
    to_go, values, log_probs = numbers("to_go", "values", "log_probs")
    weights = np.minimum(np.exp((to_go - values) / 1.5), 4.0)
    errors = (to_go - values) / unit
    near(found, WEIGHT * 0.5 * errors**2 - weights * log_probs)
    near(gradients["values"], -WEIGHT * errors / unit)
    near(gradients["log_probs"], -weights)
    assert metrics["loss/values"] == pytest.approx((0.5 * errors**2).sum())
    assert metrics["weights/mean"] == pytest.approx(weights.sum())
    assert metrics["weights/cut"] == 2.0


def by_hand(targets, value_losses, value_gradients):
    """Losses and gradients of Q held in a policy, from what Q is fitted to and from the loss of V."""
    centres, gaps, log_sum = numbers("centres", "gaps", "log_sum")
    errors = targets - centres - gaps
    whole = WEIGHT * (value_losses + 0.5 * errors**2) + 0.5 * errors**2 + ALPHA * (log_sum - gaps)
    wanted = {
        "values": WEIGHT * value_gradients,
        "centres": -WEIGHT * errors,
        "gaps": -errors - ALPHA,
        "log_sum": np.full(3, ALPHA),
    }
    return whole, wanted


def expectile(errors, tau):
    weights = np.where(errors < 0, 1 - tau, tau)
    return weights * errors**2, -2 * weights * errors


def of_values(kind):
    """What Q is fitted to, and the loss and the gradient of V; of the first state something follows, 2 being paid."""
    to_go, values, centres, gaps, greatest = numbers("to_go", "values", "centres", "gaps", "greatest")
    if kind is MCValues:
        return to_go, *expectile(to_go - values, 0.5)
    following = values[1] if kind is ILQL else centres[1] + greatest[1]
    targets = np.array([1.0 + (1 - LAM) * following + LAM * 2.0, 2.0, 0.5])
    if kind is ILQL:
        return targets, *expectile(centres + gaps - values, TAU)
    return targets, *expectile(centres + greatest - values, 0.5)


@scales
@pytest.mark.parametrize("kind", [MCValues, ILQL, CQL])
def test_values_of_a_log(kind, scale):
    settings = {MCValues: {}, ILQL: {"lam": LAM, "expectile": TAU}, CQL: {"lam": LAM}}[kind]
    found, metrics, gradients = losses(kind, scale, cql_weight=ALPHA, value_coefficient=WEIGHT, **settings)
    wanted, slopes = by_hand(*of_values(kind))
    square = (scale or 1.0) ** 2
    near(found, wanted / square)
    for name, leaf in gradients.items():
        near(np.zeros(3) if leaf is None else leaf, slopes.get(name, np.zeros(3)) / square)
    assert metrics["values/v"] == pytest.approx(sum(STATES["values"]))


def an_env(count=8):
    env = TokenVectorEnv(tiny_task(), count, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    return env


def test_batches_are_played_until_groups_enough_differ():
    differ, equal, seeds = two_rows(), two_rows(rewards=np.array([1.0, 1.0, 1.0, 2.0, 1.0])), []
    four = take(joined([differ, differ]), np.arange(4))

    def played(parts, most):
        left = iter(parts)
        play = lambda env, policy, seed, *rest: (seeds.append(seed), next(left))[1]  # noqa: E731
        return Resampled(play, 1.0, most)(SimpleNamespace(num_envs=4), None, 7, (), group=2)

    rollout = played([differ, equal, differ, differ], 10)  # two groups are missing, one is played at a time
    assert (rollout.rounds, len(rollout.lengths)) == (3, 6)
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    assert played([differ, equal, differ, differ], 2).rounds == 2
    assert len(played([four, differ], 10).lengths) == 4


@pytest.mark.parametrize("equal_groups", ["keep", "resample"])
def test_rounds_are_told_where_more_than_one_may_be_played(equal_groups):
    config = RLOO.config_type(device="cpu", batch=8, equal_groups=equal_groups, epochs=1, minibatches=1)
    agent = RLOO(tiny_task(), config, model=tiny_llama(4))
    metrics = first_metrics(agent, an_env())
    assert metrics["episode"] == 8 * agent.rounds
    assert metrics.get("val/rounds") == (agent.rounds if equal_groups == "resample" else None)


def test_the_value_loss_of_reinforce_is_half_a_square():
    agent = small_agent(Reinforce, baseline="value")
    targets = Targets(torch.zeros(3), torch.tensor([1.0, 2.0, 5.0]), None, 0.0, np.zeros(3))
    found = agent._value_loss(torch.tensor([3.0, 4.0]), targets, torch.tensor([2, 0]))
    assert found.tolist() == [2.0, 4.5]
    without = Targets(torch.zeros(3), None, None, 0.0, np.zeros(3))
    assert agent._value_loss(torch.tensor([3.0]), without, torch.tensor([2])).tolist() == [0.0]


def test_a_batch_of_two_is_baseline_enough():
    agent = small_agent(Reinforce, baseline="batch", batch=2)
    agent.learn(an_env(2), 2)
    assert agent.episodes == 2
    with pytest.raises(ValueError, match="1 sub-environments"):
        agent.learn(an_env(1), 1)


@pytest.mark.parametrize(
    ("model", "reference", "given", "rate"),
    [
        (None, "uniform", None, 5e-4),
        ("a/model", "uniform", None, 1.25e-4),
        (None, "builtin", None, 1.25e-4),
        ("a/model", "builtin", 0.5, 0.5),
        (None, "uniform", 0.5, 0.5),
    ],
)
def test_without_a_rate_the_first_batch_of_a_language_model_has_a_quarter_of_the_usual_one(
    model, reference, given, rate
):
    config = LMPPOConfig(device="cpu", model=model, learning_rate=given)
    agent = LMPPO(replace(tiny_task(), reference=reference), config, model=tiny_llama(4))
    assert (agent.learning_rate, agent.first_rate) == (rate, rate)
    assert agent.settles is (rate == 1.25e-4)


@pytest.mark.parametrize(("kind", "asked"), [(LMPPO, True), (RLOO, False)])
def test_the_reference_is_asked_behind_a_cut_where_there_is_a_critic(kind, asked):
    agent, seen = kind(tiny_task(), kind.config_type(device="cpu", batch=8), model=tiny_llama(4)), []

    def collected(env, policy, seed, ends, exact, group, behind, devices):
        seen.extend([policy, behind])
        raise StopIteration

    agent._collect = collected
    with pytest.raises(StopIteration):
        agent._iterate(an_env())
    assert seen == [agent.policy, agent.reference if asked else None]


def test_a_loss_with_a_bonus_for_entropy_and_weights_of_tokens():
    rows, found = np.arange(6), {}
    for name, coefficient in (("plain", 0.0), ("bonus", 0.3)):
        agent = tiny_agent(kl="k2", entropy_coefficient=coefficient)
        rollout = take(full_rollout(agent)[0], rows)
        meter, count = UpdateMeter(), len(rollout.rows)
        meter.start(count)
        scored = score_reference(agent.reference, rollout, 100, False)
        targets = agent._targets(rollout, token_kl(rollout, agent.policy, agent.reference, scored, "k2"))
        arguments = agent.policy.features(rollout.input_ids, *map(torch.tensor, (rollout.rows, rollout.columns)))
        states = torch.arange(count)
        found[name] = agent._loss(arguments, states, rollout, targets, scored, meter).detach()
        weights = torch.linspace(0, 2, count)
        weighted = agent._loss(arguments, states, rollout, replace(targets, weights=weights), scored, meter).detach()
        torch.testing.assert_close(weighted, weights * found[name])
        if name == "plain":  # as are those of samples of another policy
            samples = replace(rollout, importance=weights)
            weighted = agent._loss(arguments, states, samples, targets, scored, meter).detach()
            torch.testing.assert_close(weighted, weights * found[name])
        logits, _ = agent.policy.heads(arguments)
    agent.value_coefficient = 0.7  # of half a square; V is 0
    valued = agent._loss(arguments, states, rollout, targets, scored, meter).detach()
    torch.testing.assert_close(valued - found["bonus"], 0.35 * targets.returns.square())
    logs = torch.log_softmax(logits, -1)
    torch.testing.assert_close(found["plain"] - found["bonus"], (-0.3 * (logs.exp() * logs).sum(-1)).detach())
    # The first step of an update: the ratio is 1, the value loss has no weight, and k2 is half the squared log-ratio.
    ratio = rollout.log_probs - scored
    wanted = -targets.advantages + targets.kl_weight * 0.5 * ratio.square()
    torch.testing.assert_close(found["plain"], wanted, rtol=1e-4, atol=1e-5)


def test_a_loss_with_the_exact_kl_of_its_state():
    agent = tiny_agent(kl="exact")
    rollout = take(full_rollout(agent)[0], np.array([0, 20, 45, 70]))
    at, (own, base) = (rollout.rows, rollout.columns), (agent.policy.model, agent.reference.model)
    logs, before = (torch.log_softmax(each(rollout.input_ids).logits[at], -1).detach() for each in (own, base))
    kl = (logs.exp() * (logs - before)).sum(-1)
    targets = replace(agent._targets(rollout, kl.double().numpy()), kl_weight=0.7)
    features = agent.policy.features(rollout.input_ids, *map(torch.tensor, at))
    scored, meter = score_reference(agent.reference, rollout, 100, True), UpdateMeter()
    meter.start(len(kl))
    found = agent._loss(features, torch.arange(len(kl)), rollout, targets, scored, meter)
    torch.testing.assert_close(found.detach(), 0.7 * kl - targets.advantages, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tokens", "gamma"), [(None, 0.6), (1, 0.6), (0, None)])
def test_the_learning_rate_settles_in_the_first_iteration(tokens, gamma, monkeypatch):
    agent, calls = small_agent(LMPPO, tiny_task(gamma=0.6), batch=8), []

    def settled(learner, config, discount, *_):
        calls.append((learner.iteration, learner.learning_rate, discount))
        return 0.125, 0.5, "so"

    monkeypatch.setattr("textgym_agents.lm.rates.settled", settled)
    agent.objective_tokens = tokens  # 0: an objective that scores have no part in
    agent.settles, rate = True, agent.learning_rate
    agent.learn(an_env(), 16)
    assert calls == [(1, rate, gamma)]
    assert (agent.learning_rate, agent.chosen) == (0.125, "so")


def test_a_state_before_a_token_knows_what_the_environment_had_written():
    state = TokenState(tiny_task().encoded("train")[0], completion=(5, 6, 7, 8, 9), environment=(2, 4))
    before = _before(state, 2)  # the policy's tokens stand at 0, 1 and 3
    assert (before.completion, before.environment) == ((5, 6, 7), (2,))
    assert _before(state, 3) == state
    assert _before(state, 0).completion == ()


def test_a_ratio_counts_as_clipped_outside_of_the_clip_range():
    agent = tiny_agent(clip=0.2)
    rollout = take(full_rollout(agent)[0], np.arange(6))
    ratios = torch.tensor([0.5, 0.75, 0.85, 1.0, 1.15, 1.25, 1.9, 2.5])
    count = len(ratios)
    states, meter = torch.arange(count), UpdateMeter()
    meter.start(count)
    older = rollout.log_probs.clone()
    older[:count] -= ratios.log()
    scored = score_reference(agent.reference, rollout, 100, True)
    targets = agent._targets(rollout, np.zeros(len(rollout.rows)))
    features = agent.policy.features(rollout.input_ids, *map(torch.tensor, (rollout.rows, rollout.columns)))
    agent._loss(features[:count], states, replace(rollout, log_probs=older), targets, scored, meter)
    meter.finish(0.0)
    assert meter.means()["policy/clipfrac_avg"] == 5 / 8
    assert meter.means()["val/ratio"] == pytest.approx(float(ratios.mean()), rel=1e-4)


def test_completions_that_ended_are_trained_on_where_overlong_ones_are_masked():
    how = {"stopped": np.array([True, False, False]), "truncated": np.array([False, True, False])}
    how["bootstrap_kl"] = np.zeros(3)
    agent, kept = (small_agent(LMPPO, overlong=each) for each in ("mask", "keep"))
    rollout = replace(take(full_rollout(agent)[0], np.array([0, 7, 13])), **how)
    every = agent._targets(rollout, np.zeros(len(rollout.rows)))
    some = replace(every, rows=np.array([2, 1]))
    found = [each._trained(rollout, targets).tolist() for each in (agent, kept) for targets in (every, some)]
    assert found == [[0, 1], [1], [0, 1, 2], [2, 1]]
    assert agent._update(rollout, replace(every, rows=np.array([2])), None) == {"updates": 0.0}
    # Without a token that ends them all run to the limit.
    agent.task = replace(agent.task, vocabulary=replace(agent.task.vocabulary, stop_ids=()))
    assert agent._trained(rollout, every).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("bound", "updates"), [(1e-9, 2), (1e9, 12), (None, 12)])
def test_an_update_stops_early_when_the_policy_has_moved_too_far(bound, updates):
    # The first step moves it, and the second sees that it did.
    agent = tiny_agent(stop_update_kl=bound, minibatches=4, epochs=3)
    assert first_metrics(agent, an_env())["updates"] == updates


def test_the_mask_policy_is_copied_after_every_third_iteration():
    agent = small_agent(LMPPO, batch=8, mask_top_p=0.9, mask_every=3)
    own, mask = (each.model.lm_head.weight for each in (agent.policy, agent.policy.cut.mask_policy))
    agent.learn(an_env(), 16)
    assert not torch.equal(own, mask)
    agent.learn(an_env(), 8)
    assert torch.equal(own, mask)


def test_the_weight_of_the_value_loss_and_what_is_whitened_with_a_value_as_baseline():
    agent = small_agent(Reinforce, baseline="value", value_coefficient=0.7, whiten=True, kl="k1")
    assert agent.value_coefficient == 0.7
    rollout = take(full_rollout(agent)[0], np.arange(6))
    found = agent._targets(rollout, np.zeros(len(rollout.rows))).advantages
    returns = np.bincount(rollout.rows, rollout.rewards)[rollout.rows]  # all is paid at the end, and V is 0
    np.testing.assert_allclose(found, returns / returns.std(), rtol=1e-5)
