"""VinePPO: its gradient is that of J, its rollouts estimate V, and they are counted."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from agents.enumerated import STOP, full_rollout, tiny_task, trajectories
from agents.groups import expected_gradient, objective_gradient, small_agent
from agents.test_exact_estimators import Recurrent
from agents.test_pitfalls_returns import Staggered
from gymnasium.vector import AutoresetMode
from solver_tools import Paid, bigram, odd_grammar, small_task
from textgym_agents.algorithms.vine_ppo import VinePPO, VinePPOConfig
from textgym_agents.exact.objective import (
    edge_jacobian,
    edge_mass,
    log_ratios,
    policy_gradient,
    steps,
    torch_values,
    values_of,
)
from textgym_agents.lm.critic_free import Continuation, segment_advantages

from textgym import TokenState, TokenVectorEnv, make_task
from textgym.solver import policy_values, prefix_tree, solve


def played(lengths, truncated=None):
    """A rollout of which only the shape is known."""
    lengths = np.array(lengths)
    return SimpleNamespace(
        rows=np.repeat(np.arange(len(lengths)), lengths),
        steps=np.concatenate([np.arange(length) for length in lengths]),
        lengths=lengths,
        truncated=np.zeros(len(lengths), dtype=bool) if truncated is None else np.array(truncated),
    )


def test_segments_by_hand():
    # Two rows of five and two tokens in segments of two. V at the times 0, 2 and 4 of the first row, and at 0 of the
    # second, which an outer limit stopped in a state of V = 0.4.
    rollout = played([5, 2], [False, True])
    rewards = np.array([0.1, 0.2, 0.0, -0.1, 1.0, 0.3, 0.3])
    values = np.array([0.5, 0.7, 0.9, 0.2, 0.4])
    # 0.3 + 0.7 - 0.5; -0.1 + 0.9 - 0.7; 1 - 0.9; 0.6 + 0.4 - 0.2
    want = [0.5, 0.5, 0.1, 0.1, 0.1, 0.8, 0.8]
    np.testing.assert_allclose(segment_advantages(rollout, rewards, values, 2, 0.0), want, atol=1e-12)
    # lambda 1: all that is still paid less V, 1.2 - 0.5; 0.9 - 0.7; 1 - 0.9; 0.6 + 0.4 - 0.2
    want = [0.7, 0.7, 0.2, 0.2, 0.1, 0.8, 0.8]
    np.testing.assert_allclose(segment_advantages(rollout, rewards, values, 2, 1.0), want, atol=1e-12)


def expected(values, jacobian, stride, lam, kl, wrong=0.0):
    """The expected gradient by listing every trajectory: sum of P(tau) A_t grad log pi(a_t), and the KL of the loss."""
    every, taken = values.trajectories, steps(values)
    row, step = np.nonzero(taken.path >= 0)
    rollout = played(every.length)
    own = taken.log_ratio if kl == "k1" else taken.kl
    rewards = (taken.rewards - values.beta * own)[row, step]
    state = np.concatenate([-1 - every.prompt[:, None], taken.path[:, :-1]], axis=1)  # the edge that led there
    known = (taken.state_values + wrong * np.cos(state))[row, step]
    advantages = segment_advantages(rollout, rewards, known[rollout.steps % stride == 0], stride, lam)
    total = (every.probability[row] * advantages) @ jacobian[taken.path[row, step]]
    if kl == "exact":
        gaps = zip(edge_mass(values), log_ratios(values), strict=True)
        total = total - values.beta * np.concatenate([mass * ratio for mass, ratio in gaps]) @ jacobian
    return total


@pytest.mark.parametrize("kl", ["exact", "k1"])
@pytest.mark.parametrize("options", [{}, {"gamma": 0.6}, {"mask": odd_grammar}, {"reward": Paid("every")}])
def test_with_the_exact_v_the_mean_is_the_gradient_of_j(options, kl):
    tree, policy, reference = prefix_tree(small_task(**options)), Recurrent(), bigram()
    own, values = torch_values(tree, policy, reference)
    want = policy_gradient(tree, policy, reference)
    jacobian = edge_jacobian(tree, own)
    assert want.norm > 0.1

    def error(stride, lam, wrong=0.0):
        return float(np.abs(expected(values, jacobian, stride, lam, kl, wrong) - want.gradient.numpy()).max())

    assert max(error(*form) for form in [(1, 0.0), (1, 0.5), (2, 0.0), (2, 1.0), (8, 0.0)]) < 1e-8
    # A wrong V is a baseline and cancels with lambda = 1, or where a text is one segment; elsewhere it does not.
    assert max(error(1, 1.0, 0.3), error(2, 1.0, 0.3), error(8, 0.0, 0.3)) < 1e-8
    assert min(error(1, 0.0, 0.3), error(2, 0.0, 0.3), error(1, 0.5, 0.3)) > 1e-3


def played_whole(agent):
    """`full_rollout`, with the agent's environment where it has ended."""
    rollout, probabilities = full_rollout(agent)
    agent._env = TokenVectorEnv(agent.task, len(probabilities), autoreset_mode=AutoresetMode.DISABLED)
    agent._env.reset(seed=0)
    prompts = {prompt.ids: prompt for prompt in agent.task.encoded("train")}
    reasons = ["stop" if each.completion[-1] == STOP else "length" for each in trajectories(agent.task)]
    ended = zip(trajectories(agent.task), reasons, strict=True)
    agent._env.set_states([TokenState(prompts[each.prompt], each.completion, why) for each, why in ended])
    return rollout, probabilities


@pytest.mark.parametrize(("stride", "gamma", "kl"), [(1, 0.6, "exact"), (2, 1.0, "k1")])
def test_so_is_that_of_the_agent(stride, gamma, kl):
    agent = small_agent(VinePPO, tiny_task(gamma=gamma), kl=kl, stride=stride, values="exact")
    rollout, probabilities = played_whole(agent)
    got, want = expected_gradient(agent, rollout, probabilities), objective_gradient(agent)
    assert want.norm() > 0.05
    torch.testing.assert_close(-got, want, atol=3e-4, rtol=2e-3)


@pytest.mark.parametrize("kl", ["exact", "k1", "k3", "k3-ratio"])
def test_a_kl_in_the_loss_alone_is_charged_to_no_return(kl, monkeypatch):
    agent, seen = small_agent(VinePPO, tiny_task(gamma=0.6), values="exact", stride=1, kl=kl), []
    monkeypatch.setattr(agent, "_values", lambda states, beta: seen.append(beta) or np.zeros(len(states)))
    rollout, _ = played_whole(agent)
    kls = np.linspace(0.1, 1.0, len(rollout.rows))
    charged = 0.0 if kl in ("k3", "k3-ratio") else 0.3  # beta of the task
    # V is 0 everywhere and a segment one token: what is left is the token's own reward less its KL.
    want = rollout.rewards * 0.6**rollout.steps - charged * kls
    np.testing.assert_allclose(agent._targets(rollout, kls).advantages, want, atol=1e-6)
    assert seen == [charged]


def running(tree):
    """Every state of a tree that has not ended."""
    prompts = tree.task.encoded(tree.split)
    for depth, level in enumerate(tree.levels[:-1]):
        written = tree.completions(depth, level.running).tolist()
        for prompt, tokens in zip(tree.prompt_of[depth][level.running], written, strict=True):
            yield TokenState(prompts[prompt], tuple(tokens))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "kl"),
    [
        ({}, "exact"),
        pytest.param({"gamma": 0.6}, "k1", marks=pytest.mark.sweep),
        pytest.param({"mask": odd_grammar}, "exact", marks=pytest.mark.sweep),
        pytest.param({"reward": Paid("every"), "gamma": 0.6}, "k1", marks=pytest.mark.long),
        pytest.param({"reward": Paid("difference")}, "exact", marks=pytest.mark.sweep),
    ],
)
def test_rollouts_tell_v_the_better_the_more_there_are(options, kl):
    agent = small_agent(VinePPO, small_task(**options), kl=kl)
    with torch.no_grad():
        agent.policy.model.lm_head.weight.mul_(0.4)  # every token is met in a few hundred texts
    tree = prefix_tree(agent.task)
    states, beta = list(running(tree)), 0.4
    exact = values_of(torch_values(tree, agent.policy, agent.reference, beta=beta)[1], states)
    assert np.ptp(exact) > 0.5
    writer = Continuation(agent.task, "train", agent.policy, agent.reference, kl, beta)
    deviations = []
    for count in (25, 400):
        returns = writer.returns(states * count, agent._seed(2)).reshape(count, -1)
        errors = returns.mean(0) - exact
        deviations.append(float(np.sqrt((errors**2).mean())))
    scores = errors / (returns.std(0, ddof=1) / np.sqrt(count))
    print(f"greatest error {np.abs(scores).max():.2f} standard errors, mean square {(scores**2).mean():.2f}")
    assert np.abs(scores).max() < 4
    assert 0.4 < (scores**2).mean() < 2
    assert deviations[1] < deviations[0] / 2  # 1 / 4 is expected
    agent.config, agent._env = replace(agent.config, rollouts=3), SimpleNamespace(task=agent.task, split="train")
    few = writer.returns(states * 3, agent._seed(2)).reshape(3, -1)
    np.testing.assert_allclose(agent._values(states, beta), few.mean(0), atol=1e-12)


@pytest.mark.parametrize("kl", ["exact", "k1"])
def test_rollouts_of_a_policy_without_chance_are_v(kl):
    agent = small_agent(VinePPO, small_task(gamma=0.6), kl=kl, rollouts=3)
    with torch.no_grad():
        agent.policy.model.lm_head.weight.mul_(1e4)  # the likeliest token has all the probability
    tree = prefix_tree(agent.task)
    states, beta = list(running(tree)), 0.4
    exact = values_of(torch_values(tree, agent.policy, agent.reference, beta=beta)[1], states)
    assert np.ptp(exact) > 0.5
    assert np.abs(exact).min() > 1e-4
    agent._env, agent.episodes = SimpleNamespace(task=agent.task, split="train"), 5
    agent.task.scorer.tokens = before = 7
    np.testing.assert_allclose(agent._values(states, beta), exact, atol=1e-5)
    assert agent.episodes == 5 + 3 * len(states)
    assert agent.extra_tokens == agent.task.scorer.tokens - before > 3 * len(states)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_row_that_an_outer_limit_stops_goes_on_from_v(stride, monkeypatch):
    agent = small_agent(VinePPO, values="exact", stride=stride)
    seen = []
    monkeypatch.setattr(agent, "_update", lambda *batch: seen.append(batch) or {})
    agent._iterate(Staggered(agent.task, 32, autoreset_mode=AutoresetMode.DISABLED))
    ((rollout, targets, _),) = seen
    assert rollout.truncated.any()
    assert not rollout.truncated.all()
    values = policy_values(agent.task, agent, agent.reference, beta=agent.controller.beta)
    prompts = {prompt.ids: prompt.index for prompt in agent.task.encoded("train")}
    paid, want = rollout.rewards - agent.controller.beta * targets.kl, []
    for row, first in enumerate(rollout.first_states):
        length, start = int(rollout.lengths[row]), int(rollout.columns[first]) + 1
        ids = rollout.input_ids[row].tolist()

        def v(time, ids=ids, start=start):
            depth, place = values.tree.find(prompts[tuple(ids[:start])], tuple(ids[start : start + time]))
            return values.values[depth][place]  # 0 where it has ended

        for time in range(length):
            begin = time - time % stride
            end = min(begin + stride, length)
            want.append(paid[first + begin : first + end].sum() + v(end) - v(begin))
    np.testing.assert_allclose(targets.advantages.numpy(), want, atol=1e-5)


def test_what_values_cost_is_counted():
    agent = small_agent(VinePPO, rollouts=2, stride=1)
    env = TokenVectorEnv(agent.task, 4, autoreset_mode=AutoresetMode.DISABLED)
    rows, scored = [], [0]
    agent.learn(env, 29, lambda row: scored.append(agent.task.scorer.tokens) or rows.append(row))
    assert len(rows) > 1  # the first plays 28 at most
    for row, before, after in zip(rows, scored, scored[1:], strict=False):
        assert row["vine/rollouts"] == 2 * row["tokens"]  # two from each state
        assert row["vine/tokens"] + row["tokens"] == after - before
    ends = np.cumsum([4 + row["vine/rollouts"] for row in rows])
    assert [row["episode"] for row in rows] == ends.tolist()
    assert ends[-2] < 29 <= ends[-1]
    other = small_agent(VinePPO, values="exact", stride=1)
    rows.clear()
    other.learn(env, 8, rows.append)
    assert [(row["vine/rollouts"], row["vine/tokens"], row["episode"]) for row in rows] == [(0, 0, 4), (0, 0, 8)]


def test_exact_values_are_those_of_the_environment_s_reward():
    agent = small_agent(VinePPO, values="exact", stride=1)
    other = tiny_task(reward=lambda prompts, completions, **columns: [float(len(each)) for each in completions])
    states = [TokenState(prompt) for prompt in agent.task.encoded("train")]
    for task in (agent.task, other):
        agent._env = TokenVectorEnv(task, 2, autoreset_mode=AutoresetMode.DISABLED)
        want = policy_values(task, agent, agent.reference).prompt_objectives
        np.testing.assert_allclose(agent._values(states, task.beta), want, atol=1e-6)


def test_exact_values_are_those_of_the_environment_s_split():
    def pays_a(prompts, completions, **columns):
        return [float(prompt == "a") for prompt in prompts]

    words = {"prompts": ["a"], "eval_prompts": ["b"], "tokenizer": ["a", "b", "c", "<end>"], "stop": "<end>"}
    task = make_task("Text", **words, reward=pays_a, max_new_tokens=2)
    values = policy_values(prefix_tree(task, "train"), solve(task))
    assert values_of(values, [TokenState(task.encoded("train")[0])]).tolist() == [1.0]
    with pytest.raises(KeyError, match="prompt 'b': train has none like it"):
        values_of(values, [TokenState(task.encoded("eval")[0])])
    agent = small_agent(VinePPO, task, values="exact", stride=1)
    for split, worth in (("train", 1.0), ("eval", 0.0)):
        agent._env = TokenVectorEnv(task, 2, split=split, autoreset_mode=AutoresetMode.DISABLED)
        found = agent._values([TokenState(task.encoded(split)[0])], 0.0)
        assert found.tolist() == pytest.approx([worth], abs=1e-9)


def test_completions_that_are_compared_have_no_values():
    with pytest.raises(ValueError, match="reward='paid': allowed is one that scores each completion by itself"):
        small_agent(VinePPO, tiny_task(reward=Paid("together")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 0}, "stride=0: allowed is an integer in 1"),
        ({"rollouts": 0}, "rollouts=0: allowed is an integer in 1"),
        ({"kl": "k2"}, "kl='k2': allowed is 'exact', 'k1', 'k3' or 'k3-ratio'"),
        ({"lam": 1.5}, "lam=1.5"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"values": "critic"}, "values='critic': allowed is 'rollouts' or 'exact'"),
        ({"values": "exact", "rollouts": 9}, "rollouts=9: allowed is 2 without values='rollouts'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        VinePPOConfig(**settings)
