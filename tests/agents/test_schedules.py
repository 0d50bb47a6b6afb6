"""Schedules of the learning rate and their warm-up: shares by hand, and what they leave of a rate that is found."""

import pytest
from gymnasium.vector import AutoresetMode
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.algorithms.rloo import RLOO, RLOOConfig
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.rates import rate_at

from textgym import TokenVectorEnv, make_task


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.775, 0.55, 0.1, 0.1]),
        ("cosine", [1, 0.55 + 0.45 / 2**0.5, 0.55, 0.1, 0.1]),
    ],
)
def test_schedules_by_hand(schedule, shares):
    config = RLOOConfig(schedule=schedule)
    assert [rate_at(config, episodes, 100) for episodes in (0, 25, 50, 100, 150)] == pytest.approx(shares)
    assert rate_at(config, 0, 0) == rate_at(config, 0, 1) == 1
    assert rate_at(config, 1, 1) == pytest.approx(shares[3])


def test_a_warm_up_rises_with_each_episode_and_the_schedule_follows():
    config = RLOOConfig(schedule="linear", warmup=0.2)
    shares = [rate_at(config, episodes, 100) for episodes in (0, 9, 18, 19, 20, 60)]
    assert shares == pytest.approx([0.05, 0.5, 0.95, 1.0, 0.82, 0.46])
    # Where an episode is more than the warm-up, it is over at once.
    assert [rate_at(config, 0, budget) for budget in (0, 1, 4)] == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_a_warm_up_leaves_the_rate_that_is_settled_where_it_was():
    task, rates = make_task("Helpful"), []
    for warmup in (0.0, 0.5):
        env = TokenVectorEnv(task, 16, autoreset_mode=AutoresetMode.DISABLED)
        env.reset(seed=0)
        agent = RLOO(task, RLOOConfig(batch=16, warmup=warmup, epochs=1, minibatches=2, device="cpu", update_kl=0.32))
        agent.learn(env, 32)
        assert agent.chosen
        rates.append(agent.learning_rate)
    assert 0.5 < rates[1] / rates[0] < 2  # 24 if the share of the first update is left out


@pytest.mark.slow
def test_a_warm_up_shorter_than_an_iteration_does_not_pass_the_peak(task):
    env = TokenVectorEnv(task, 8, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    agent = LMPPO(task, LMPPOConfig(batch=8, warmup=0.01, learning_rate=1e-3, schedule="constant", device="cpu"))
    rows = []
    agent.learn(env, 16, lambda row: rows.append(row["lr"]))
    assert rows == [1e-3, 1e-3]
