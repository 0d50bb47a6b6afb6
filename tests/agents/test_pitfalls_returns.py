"""What must hold of returns in PPO on language models: values after a truncation, rewards discounted, the KL not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from agents.enumerated import BETA, tiny_agent, tiny_task
from gymnasium.vector import AutoresetMode
from solver_tools import odd_grammar
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.conformance import check
from textgym_agents.lm.critic_free import action_returns
from textgym_agents.lm.maths import make_targets, scores
from textgym_agents.lm.rollout import Rollout, collect, score_reference, token_kl

from textgym import TokenVectorEnv
from textgym.solver import policy_values, prefix_tree


class TimeLimited(TokenVectorEnv):
    """Truncates every episode after two tokens."""

    def reset(self, **kwargs):
        self.taken = 0
        return super().reset(**kwargs)

    def limits(self):
        return np.full(self.num_envs, 2)

    def step(self, actions):
        observation, rewards, terminated, _, infos = super().step(actions)
        self.taken += 1
        return observation, rewards, terminated, ~terminated & (self.taken == self.limits()), infos


class Staggered(TimeLimited):
    """Truncates even rows after one token and odd ones after two; the environment below goes on writing in them."""

    def limits(self):
        return 1 + np.arange(self.num_envs) % 2


def test_10_truncation_bootstraps_from_the_value_and_an_end_does_not(task):
    agent = tiny_agent(task)
    with torch.no_grad():
        agent.policy.value_head.bias.fill_(0.7)
    env = TimeLimited(task, 32, autoreset_mode=AutoresetMode.DISABLED)
    rollout = collect(env, agent.policy, 0, task.vocabulary.stop_ids)
    cut = (rollout.lengths == 2) & ~rollout.stopped
    assert cut.any()
    assert (~cut).any()
    np.testing.assert_allclose(rollout.bootstrap, np.where(cut, 0.7, 0.0), atol=1e-6)


def by_hand():
    """Two rows of two actions, of which the second was truncated."""
    return Rollout(
        input_ids=torch.zeros((2, 3), dtype=torch.long),
        rows=np.array([0, 0, 1, 1]),
        columns=np.array([0, 1, 0, 1]),
        steps=np.array([0, 1, 0, 1]),
        actions=torch.zeros(4, dtype=torch.long),
        log_probs=torch.zeros(4),
        values=torch.tensor([0.5, 0.25, 0.5, 0.25]),
        features=None,
        rewards=np.array([1.0, 2.0, 0.0, 4.0]),
        lengths=np.array([2, 2]),
        bootstrap=np.array([0.0, 1.0]),
        truncated=np.array([False, True]),
        stopped=np.array([True, False]),
        bootstrap_kl=np.array([0.0, 0.8]),
    )


@pytest.mark.parametrize(
    ("kind", "returns", "behind"),
    [
        # gamma 0.5, beta 0.1: rewards of time 0 are 1 + 1 and 0 + 2, and no KL is discounted.
        ("k1", [2 - 0.05, 1 - 0.03, 2 - 0.09, 2 - 0.07], 1.0),
        ("exact", [2 - 0.03, 1.0, 2 - 0.07, 2.0], 1 - 0.08),
        ("k2", [2 - 0.03, 1.0, 2 - 0.07, 2.0], 1 - 0.08),
        ("k3", [2.0, 1.0, 2.0, 2.0], 1.0),
    ],
)
def test_33_rewards_are_discounted_and_the_kl_is_not_by_hand(kind, returns, behind):
    rollout, kl = by_hand(), np.array([0.2, 0.3, 0.2, 0.7])
    assert scores(rollout, 0.5).tolist() == [2.0, 2.0]
    np.testing.assert_allclose(action_returns(rollout, kl, kind, 0.1, 0.5), returns)
    targets = make_targets(rollout, kl, kind, 0.1, 0.5, 1.0, False, 1.0)
    # With lambda = 1 the advantages are returns less V, and of the truncated row V(s_T) comes on top.
    want = np.array(returns) + np.array([0, 0, behind, behind]) - np.array([0.5, 0.25, 0.5, 0.25])
    np.testing.assert_allclose(targets.advantages.numpy(), want, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["free", "grammar"])
@pytest.mark.parametrize("kind", ["exact", "k2", "k1"])
@pytest.mark.parametrize("lam", [0.0, 0.9])
def test_33_an_exact_critic_gives_exact_advantages_on_truncated_rows(kind, lam, masked):
    task = replace(tiny_task(gamma=0.6), mask=odd_grammar if masked else None)
    agent = tiny_agent(task, kl=kind, lam=lam)
    env = Staggered(task, 64, autoreset_mode=AutoresetMode.DISABLED)
    stop_ids = task.vocabulary.stop_ids
    rollout = collect(env, agent.policy, 0, stop_ids, kind == "exact", reference=agent.reference)
    assert {1, 2} <= set(rollout.lengths[rollout.truncated].tolist())
    tree = prefix_tree(task)
    solved = policy_values(tree, agent, agent.own_reference())
    prompts = {prompt.ids: number for number, prompt in enumerate(task.encoded("train"))}

    def place(row, count):
        start = int(rollout.columns[rollout.rows == row][0]) + 1
        ids = rollout.input_ids[row].tolist()
        return tree.find(prompts[tuple(ids[:start])], tuple(ids[start : start + count]))

    def kl_of(depth, state):
        edges = slice(*tree.levels[depth].first[state : state + 2])
        own, base = solved.log_policy[depth][edges], solved.log_reference[depth][edges]
        return float(np.exp(own) @ (own - base))

    def head(depth, state):
        # With "exact" and "k2" the head says V without the KL of the state itself.
        return solved.values[depth][state] + (BETA * kl_of(depth, state) if kind != "k1" else 0.0)

    values, bootstrap, deltas = np.zeros(len(rollout.rows)), np.zeros(64), np.zeros(len(rollout.rows))
    for n, (row, step) in enumerate(zip(rollout.rows, rollout.steps, strict=True)):
        depth, state = place(row, step)
        _, edge = place(row, step + 1)
        values[n] = head(depth, state)
        ratio = solved.log_policy[depth][edge] - solved.log_reference[depth][edge]
        own = BETA * (ratio - kl_of(depth, state)) if kind != "k1" else 0.0
        deltas[n] = solved.advantages[depth][edge] + own  # A = Q - beta l - V
        last = step + 1 == rollout.lengths[row]
        if last and rollout.truncated[row]:
            bootstrap[row] = head(step + 1, edge)
        if kind == "k2" and not last:
            # k2 charges the log-ratio of the next action in place of the KL that is its mean.
            _, following = place(row, step + 2)
            taken = solved.log_policy[step + 1][following] - solved.log_reference[step + 1][following]
            deltas[n] += BETA * (kl_of(step + 1, edge) - taken)
    exact = replace(rollout, values=torch.tensor(values, dtype=torch.float32), bootstrap=bootstrap)
    scored = score_reference(agent.reference, exact, 64, kind == "exact")
    kl = token_kl(exact, agent.policy, agent.reference, scored, kind)
    got = make_targets(exact, kl, kind, BETA, 0.6, lam, False, 1.0).advantages.numpy()
    want = [
        sum(lam ** (m - n) * deltas[m] for m in range(n, len(deltas)) if rollout.rows[m] == rollout.rows[n])
        for n in range(len(deltas))
    ]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert BETA * rollout.bootstrap_kl[rollout.truncated].mean() > 0.02


class ForgetsTheLastKL(LMPPO):
    """Bootstraps with its value head alone, which leaves out the KL of the state that it was cut off in."""

    def _targets(self, rollout, kl):
        return super()._targets(replace(rollout, bootstrap_kl=np.zeros(len(rollout.lengths))), kl)


@pytest.mark.parametrize("kl", ["exact", "k2"])
@pytest.mark.long
def test_33_the_conformance_kit_asks_for_it(kl):
    settings = {"device": "cpu", "kl": kl}
    for agent, status in ((LMPPO, "holds"), (ForgetsTheLastKL, "FAILS")):
        (finding,) = check(agent, ["truncation bootstraps"], settings=settings, envs=32)
        assert finding.status == status
