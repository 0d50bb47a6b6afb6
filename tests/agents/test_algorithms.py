"""Every algorithm on a language model: it passes the conformance kit and nears the exact optimum of small tasks."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from solver_tools import small_task
from textgym_agents import make_agent, make_env
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig
from textgym_agents.conformance import FAILS, NOT_ASKED, check, check_names
from textgym_agents.conformance.under_test import HOLDS
from textgym_agents.registry import agent_class, batch_of, make_config

from textgym import TokenVectorEnv, make_task
from textgym.lm.reference import NGramReference
from textgym.solver import policy_values, solve

CRITICS_ONLY = {
    "truncation bootstraps",
    "values read nothing later",
    "value alignment",
    "GAE",
    "whitening",
}
NEED_A_BATCH = {
    "log-prob alignment",
    "gradient of the stop action",
    "score on the last action",
    "token rewards add up",
    "actions are the sampled ids",
    "penalised KL",
}
TURNS = {name for name in check_names(slow=False) if name.startswith("turns")} - {"turns: taken or refused"}
LOGS = {name for name in check_names() if name.startswith("log: ")}
NOT_ASKED_OF = {
    "a2c": {"clipping"},
    "reinforce": CRITICS_ONLY | {"clipping"},
    "rloo": CRITICS_ONLY,
    "grpo": CRITICS_ONLY,
    "rejection": CRITICS_ONLY | {"clipping"} | TURNS,
    "vine-ppo": CRITICS_ONLY,
    "soft-q": CRITICS_ONLY | NEED_A_BATCH | {"first ratio", "ratio under a grammar", "clipping"} | TURNS,
}
UNTRAINED = check_names(slow=False)


def outcomes(agent, iterations=2, **settings):
    findings = check(agent, UNTRAINED, settings={"device": "cpu", **settings}, envs=32, iterations=iterations)
    failed = {f.check: f.found for f in findings if f.status == FAILS}
    return failed, {f.check for f in findings if f.status == NOT_ASKED and f.check not in LOGS}


def _iterations(agent):
    return 16 if agent == "vine-ppo" else 2  # the episodes of its values count, so that a budget is fewer iterations


@pytest.mark.slow
@pytest.mark.parametrize(
    "agent",  # of these three other forms are asked below
    [pytest.param(name, marks=[pytest.mark.long] if name != "rloo" else []) for name in NOT_ASKED_OF],
)
def test_it_passes_every_check_that_applies(agent):
    assert outcomes(agent, _iterations(agent)) == ({}, NOT_ASKED_OF[agent])


@pytest.mark.long
def test_with_a_value_baseline_nothing_is_left_unasked():
    assert outcomes("reinforce", baseline="value") == ({}, {"clipping"})


@pytest.mark.long
@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        ("reinforce", {"baseline": "batch"}),
        ("reinforce", {"reward_to_go": False}),
        ("rloo", {"kl": "k1"}),
        ("grpo", {"kl": "k3", "divide_by_std": True, "aggregation": "sequence", "whiten": False}),
        ("grpo", {"aggregation": "token", "clip_high": 0.28}),
        ("vine-ppo", {"values": "exact", "stride": 1, "lam": 0.5}),
        ("vine-ppo", {"kl": "k1", "stride": 2, "rollouts": 2}),
    ],
)
def test_so_do_the_other_forms(agent, settings):
    without = {"clipping"} if agent == "reinforce" else set()
    without |= {"turns: gradient"} if settings.get("kl") == "k3" else set()  # its estimator is another's than J's
    assert outcomes(agent, _iterations(agent), **settings) == ({}, CRITICS_ONLY | without)


def test_best_of_n_has_no_log_probs_and_passes_what_can_be_asked_without():
    findings = {f.check: f for f in check("best-of-n", UNTRAINED, settings={"n": 2}, envs=8)}
    assert not [f for f in findings.values() if f.status == FAILS]
    assert findings["log-probs sum to one"].found == "log_probs gives None"


def optimality(agent, name, episodes, **settings):
    config = make_config(agent_class(agent), {"device": "cpu", **settings})
    env = make_env(f"textgym/{name}-v0", batch_of(config, episodes))
    solution = solve(env.unwrapped.task)
    learner = make_agent(agent, env, config)
    learner.learn(env, episodes)
    return solution.optimality(policy_values(solution.tree, learner).objective)


@pytest.mark.long
@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        ("reinforce", {}),
        ("a2c", {}),
        ("rloo", {}),
        ("grpo", {}),
        ("rejection", {}),
        ("vine-ppo", {}),
        ("soft-q", {"updates": 4}),
    ],
)
def test_it_learns_bandit(agent, settings):
    assert optimality(agent, "Bandit", 8192, **settings) >= 0.95


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        ("reinforce", {"baseline": "value"}),
        ("a2c", {}),
        ("rloo", {}),
        ("grpo", {}),
        ("rejection", {}),
        ("soft-q", {"updates": 4}),
    ],
)
def test_it_learns_copy(agent, settings):
    assert optimality(agent, "Copy", 16384, **settings) >= 0.95


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["Delayed", "Stop"])
def test_soft_q_reaches_the_soft_optimum(name):
    assert optimality("soft-q", name, 8192, updates=4) >= 0.95


@pytest.mark.slow
@pytest.mark.long
def test_ppo_at_its_defaults_nears_the_optimum_at_gamma_0_6():
    task = replace(make_task("Copy"), gamma=0.6)
    agent = LMPPO(task, LMPPOConfig(device="cpu"))
    agent.learn(TokenVectorEnv(task, 256, autoreset_mode=AutoresetMode.DISABLED), 20_480)
    solution = solve(task, split="eval")
    found = solution.optimality(policy_values(solution.tree, agent).objective)
    print(f"optimality {found:.4f}")
    assert found > 0.95


@pytest.mark.long
@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        *(
            (name, {"device": "cpu"})
            for name in ("a2c", "reinforce", "rloo", "grpo", "rejection", "vine-ppo", "soft-q")
        ),
        *((name, {}) for name in ("q-learning", "sarsa", "monte-carlo", "mcts", "alphazero")),
        *((f"sb3-{name}", {}) for name in ("ppo", "a2c", "maskable-ppo", "recurrent-ppo")),
    ],
)
def test_it_learns_what_the_kit_asks(agent, settings):
    found = check(agent, ["learns Bandit", "learns Delayed", "learns Stop"], settings=settings)
    assert {f.check: f.found for f in found if f.status == FAILS} == {}
    assert any(f.status == HOLDS for f in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["monte-carlo", "mcts", "best-of-n", "sb3-maskable-ppo"])
def test_what_a_reference_gives_to_tokens_that_are_never_legal_changes_nothing(name):
    leaking = np.random.default_rng(0).dirichlet(np.ones(4), size=4)
    leaking[:, 2] += [0.0, 1.0, 2.0, 3.0]  # the control token <pad>
    leaking /= leaking.sum(1, keepdims=True)
    legal = leaking * [1, 1, 0, 1]
    played = []
    for table in (leaking, legal / legal.sum(1, keepdims=True)):
        task = small_task(tokenizer=("a", "b", "<pad>", "<end>"), prompts=["a", "b"], reference=NGramReference(table))
        env = TokenVectorEnv(task, 64, segments=True, autoreset_mode=AutoresetMode.DISABLED)
        agent = make_agent(name, env)
        if not agent.plans and name != "best-of-n":
            agent.learn(env, 256)
        observation, _ = env.reset(seed=0)
        said = agent.act(observation) if name == "best-of-n" else agent.log_probs(observation)
        played.append(np.array(said))
    np.testing.assert_allclose(*played, atol=1e-6)
