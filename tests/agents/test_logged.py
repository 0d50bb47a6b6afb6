"""Learning from logs: the losses by hand, and in a table their exact fixed points, by backward induction in numpy."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from agents.enumerated import WORDS, count_a
from agents.mutant_logs import LOG_MUTANTS
from gymnasium.vector import AutoresetMode
from lm.tiny_models import tiny_llama
from textgym_agents import load_agent, make_agent, make_env
from textgym_agents.algorithms.ilql import ILQL
from textgym_agents.conformance import FAILS, HOLDS, NOT_ASKED, check, check_names
from textgym_agents.datasets import play_episodes, write_log
from textgym_agents.lm import logged
from textgym_agents.lm.sequences import Sequences
from textgym_benchmarks import logs

from textgym import TokenVectorEnv, make_task
from textgym.solver import edge_log_probs, policy_values, prefix_tree, solve
from textgym.task import make_reference

CPU = {"device": "cpu"}
TABLE = {"device": "cpu", "model": "table"}
FEW = ("Stop", "TwoModes")
LATER = ("Stop", "Bandit", "Scale", "BetaSweep", "Deceptive", "BigVocab")
MANY = ["TwoModes", *(pytest.param(name, marks=pytest.mark.long) for name in LATER)]
AGENTS = ("ilql", "cql", "mc-values", "awr")


def test_an_expectile_loss_by_hand():
    errors = torch.tensor([2.0, -1.0])
    assert logged.expectile_loss(errors, 0.9).tolist() == pytest.approx([0.9 * 4, 0.1 * 1])
    assert logged.expectile_loss(errors, 0.5).tolist() == pytest.approx([2.0, 0.5])


def test_returns_to_go_and_what_follows_stay_within_a_row():
    rewards, lengths = np.array([1.0, 0, 2, 5, 3, 4]), np.array([3, 1, 2])
    assert logged.returns_to_go(rewards, lengths).tolist() == [3, 2, 2, 5, 7, 4]
    last = torch.tensor([False, False, True, True, False, True])
    assert logged.following(torch.arange(1.0, 7.0), last).tolist() == [2, 3, 0, 0, 6, 0]


def test_mixed_returns_by_hand():
    rewards, values = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([9.0, 4.0, 9.0])
    last = torch.tensor([False, True, True])
    # y_1 = 1; y_0 = 0.25 * 4 + 0.75 * 1
    assert logged.mixed_returns(rewards, values, last, 0.75).tolist() == [1.75, 1.0, 2.0]
    assert logged.mixed_returns(rewards, values, last, 0.0).tolist() == [4.0, 1.0, 2.0]
    assert logged.mixed_returns(rewards, values, last, 1.0).tolist() == [1.0, 1.0, 2.0]


def test_the_conservative_term_has_the_gradient_of_the_paper():
    values = torch.tensor([[0.5, -1.0, 2.0]], requires_grad=True)
    data = torch.tensor([0.2, 0.5, 0.3])
    terms = logged.cql_term(values.logsumexp(-1).expand(3), values[0])
    (data * terms).sum().backward()
    torch.testing.assert_close(values.grad[0], values[0].softmax(0).detach() - data)


def test_weights_of_a_regression_are_cut_off():
    found = logged.regression_weights(torch.tensor([0.0, 0.5, 9.0]), 0.5, 20.0)
    assert found.tolist() == pytest.approx([1.0, np.e, 20.0])


def small_values(scale=3.0, offset=0.5):
    """An agent that has left its reference and the zeros of its values, in a task with a fifth token, not allowed."""
    words = {"prompts": ["a b", "c"], "tokenizer": (*WORDS, "<pad>"), "stop": "<end>"}
    task = make_task("Text", reward=count_a, max_new_tokens=3, beta=0.3, **words)
    config = ILQL.config_type(device="cpu", advantage_temperature=0.7, minibatches=1)
    agent, generator = ILQL(task, config, model=tiny_llama(5)), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    agent.value_scale, agent.value_offset = scale, offset
    return agent


@torch.no_grad()
def plainly(agent, ids):
    """V(s) and b(s) (B, L, 2), Q(s, .) - b(s) and log pi (B, L, 4) of allowed tokens, by one pass over rows of ids."""
    own, base = (each.model(ids, output_hidden_states=True) for each in (agent.policy, agent.reference))
    logs, before = (torch.log_softmax(each.logits[..., :4], -1) for each in (own, base))
    head = own.hidden_states[-1] @ agent.policy.value_head.weight.T + agent.policy.value_head.bias
    return agent.value_offset + (agent.value_scale or 1.0) * head, 0.7 * (logs - before), logs


@pytest.mark.parametrize("scale", [None, 3.0])
def test_what_is_known_of_logged_states(scale):
    agent = small_values(scale)
    paid = np.array([[0, 0, 1.0, 2.0, 4.0], [0, 8.0, 16.0, 0, 0]])
    rows = Sequences.of([((0, 1), (0, 2, 3)), ((2,), (1, 3))], 4)
    found = agent.states(replace(rows, rewards=paid))
    values, gaps, logs = plainly(agent, torch.tensor([[0, 1, 0, 2, 3], [2, 1, 3, 4, 4]]))
    at, tokens = ([0, 0, 0, 1, 1], [1, 2, 3, 0, 1]), torch.tensor([0, 2, 3, 1, 3])
    each = torch.arange(5)
    want = {
        "values": values[at][:, 0],
        "centres": values[at][:, 1],
        "gaps": gaps[at][each, tokens],
        "log_sum": gaps[at].exp().sum(1).log(),
        "greatest": gaps[at].max(1).values,
        "log_probs": logs[at][each, tokens],
    }
    for name, wanted in want.items():
        torch.testing.assert_close(getattr(found, name).detach(), wanted, atol=1e-5, rtol=1e-4, msg=name)
    assert found.rewards.tolist() == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert found.to_go.tolist() == [7.0, 6.0, 4.0, 24.0, 16.0]
    assert found.last.tolist() == [False, False, True, False, True]


@pytest.mark.parametrize("scale", [None, 3.0])
def test_action_values_of_states_that_it_meets(scale):
    agent = small_values(scale)
    env = TokenVectorEnv(agent.task, 4, autoreset_mode=AutoresetMode.DISABLED)
    found, action_values = agent.action_values(env.reset(seed=0)[0])
    for row, state in enumerate(env.get_states(range(4))):
        values, gaps, _ = plainly(agent, torch.tensor([state.prompt.ids]))
        torch.testing.assert_close(found[row], values[0, -1, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(action_values[row, :4], values[0, -1, 1] + gaps[0, -1], atol=1e-5, rtol=1e-4)


def test_metrics_of_a_log_are_means_over_its_tokens():
    agent = small_values()
    with torch.no_grad():
        agent.policy.value_head.weight.zero_()
        agent.policy.value_head.bias.zero_()
    env = TokenVectorEnv(agent.task, 8, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    batch, _ = agent._batch(env)
    assert agent._update(batch)["values/v"] == pytest.approx(0.5)  # as it is everywhere at first


def test_backups_by_hand():
    targets, data = np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]])
    assert logs.expectile_backup(0.8)(targets, data)[1] == pytest.approx([0.8])  # 0.2 v = 0.8 (1 - v)
    assert logs.expectile_backup(1)(targets, data)[1] == [1.0]
    found, best = logs.conservative_backup(0.3)(targets, data)
    mu = np.exp(found) / np.exp(found).sum()
    np.testing.assert_allclose(found, targets - 0.3 * (mu / data - 1), atol=1e-10)
    assert best == found.max()


def truth(name):
    tree = prefix_tree(make_env(f"textgym/{name}-v0", 1).unwrapped.task)
    return tree, edge_log_probs(tree, make_reference(tree.task))


def spread(tree):
    return float(logs.full_log(tree)[0].returns.std())


def near(tree):
    """What is near enough: 0.02, and of returns that are a hundred times as large as others as large a share."""
    return 0.02 * max(1.0, spread(tree))


@pytest.mark.long
@pytest.mark.parametrize("name", MANY)
def test_ilql_comes_to_the_expectiles_of_q(name):
    tree, data = truth(name)
    found = logs.table_values(*logs.learned(name, "ilql", {"expectile": 0.8, "cql_weight": 0.0}, 300))[1]
    exact = logs.fixed_point(tree, data, logs.expectile_backup(0.8))
    assert logs.distance(found, exact) <= near(tree)
    if name in FEW:  # a neighbouring expectile is another fixed point
        assert logs.distance(exact, logs.fixed_point(tree, data, logs.expectile_backup(0.7))) > 0.05


@pytest.mark.long
@pytest.mark.parametrize("name", MANY)
def test_cql_comes_to_what_its_softmax_and_the_log_say(name):
    tree, data = truth(name)
    alpha = 0.3 * spread(tree)
    found = logs.table_values(*logs.learned(name, "cql", {"cql_weight": alpha}, 300))[1]
    exact = logs.fixed_point(tree, data, logs.conservative_backup(alpha))
    assert logs.distance(found, exact) <= near(tree)
    if name in FEW:
        assert logs.distance(exact, logs.fixed_point(tree, data, logs.expectile_backup(1))) > 0.05


@pytest.mark.long
@pytest.mark.parametrize("name", MANY)
def test_monte_carlo_values_are_those_of_the_policy_that_logged(name):
    tree, _ = truth(name)
    values, action_values = logs.table_values(*logs.learned(name, "mc-values", {}, 300))
    exact = policy_values(tree, make_reference(tree.task), beta=0.0)
    own = tuple(each[level.running] for each, level in zip(exact.values, tree.levels[:-1], strict=False))
    assert logs.distance(values, own) <= near(tree)
    assert logs.distance(action_values, exact.action_values) <= near(tree)


@pytest.mark.parametrize("name", FEW)
def test_both_come_near_the_maximum_over_logged_tokens(name):
    tree, data = truth(name)
    best, scale = logs.fixed_point(tree, data, logs.expectile_backup(1)), spread(tree)
    rising = [logs.distance(best, logs.fixed_point(tree, data, logs.expectile_backup(t))) for t in (0.7, 0.9, 0.999)]
    falling = [
        logs.distance(best, logs.fixed_point(tree, data, logs.conservative_backup(a * scale))) for a in (1, 0.1, 1e-3)
    ]
    for found in (rising, falling):
        assert found[0] > found[1] > found[2]
        assert found[2] < 0.01 * scale * len(tree.levels)


@pytest.mark.long
def test_on_the_log_of_the_reference_advantage_weighted_regression_comes_to_the_optimum_of_j():
    tree, agent = logs.learned("Stop", "awr", {"advantage_temperature": 0.1, "greatest_weight": 1e9}, 300)
    solution = solve(tree.task)
    assert agent.advantage_temperature == tree.task.beta
    assert solution.optimality(policy_values(tree, agent).objective) > 0.999


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    env = make_env("textgym/Stop-v0", 8)
    path = tmp_path_factory.mktemp("logs") / "stop.jsonl"
    write_log(path, play_episodes(make_agent("reference", env), env.unwrapped.task, 96, seed=5))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("settings", [CPU, TABLE], ids=["lm", "table"])
def test_it_learns_a_log_and_goes_on_where_it_was_saved(name, settings, log, tmp_path):
    env = make_env("textgym/Stop-v0", 16)
    agent = make_agent(name, env, data=str(log), batch=16, **settings)
    before = agent.log_probs(env.reset(seed=0)[0])
    agent.learn(env, 32)
    agent.save(tmp_path / "saved")
    loaded = load_agent(tmp_path / "saved", env)
    rows = [], []
    for each, found in zip((agent, loaded), rows, strict=True):
        each.learn(env, 64, found.append)
    assert rows[0] == rows[1]
    np.testing.assert_array_equal(agent.log_probs(env.reset(seed=0)[0]), loaded.log_probs(env.reset(seed=0)[0]))
    assert np.abs(agent.log_probs(env.reset(seed=0)[0]) - before).max() > 1e-3


@pytest.mark.parametrize("name", AGENTS)
def test_the_loss_is_that_of_logged_tokens_whatever_stands_behind_them(name, log):
    env = make_env("textgym/Stop-v0", 16)
    agent = make_agent(name, env, data=str(log), batch=16, **TABLE)
    agent.check_learning(env)
    agent._centre_values(agent._data.returns)
    chosen = agent._data.rows(np.arange(5))
    losses, _ = agent._losses(chosen, torch.zeros(5))
    wide = np.concatenate([chosen.input_ids, np.ones_like(chosen.input_ids)], 1)
    paid = np.concatenate([chosen.rewards, np.full(chosen.rewards.shape, 9.0)], 1)
    again, _ = agent._losses(Sequences(wide, chosen.starts, chosen.lengths, rewards=paid), torch.zeros(5))
    assert losses.shape == (chosen.lengths.sum(),)
    torch.testing.assert_close(losses, again)


def test_a_discount_counts_from_the_prompt(log):
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    task = replace(make_env("textgym/Stop-v0", 4).unwrapped.task, gamma=0.5)
    env = TokenVectorEnv(task, 4, autoreset_mode=AutoresetMode.DISABLED)
    agent = make_agent("mc-values", env, data=str(log), batch=4, **CPU)
    agent.check_learning(env)
    expected = [row["reward"] * 0.5 ** (len(row["completion_ids"]) - 1) for row in rows]
    np.testing.assert_allclose(agent._data.returns, expected)


def test_without_data_the_reference_logs_as_much_as_was_asked_for():
    env = make_env("textgym/Stop-v0", 8)
    agent = make_agent("ilql", env, batch=8, logged=16, **CPU)
    seen = []
    agent._update = lambda batch: seen.append(batch.input_ids.tobytes()) or {}
    agent.learn(env, 32)
    assert len(seen) == 4
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ilql", {"expectile": 1.0}, "expectile=1.0: allowed is a number in"),
        ("cql", {"cql_weight": -1.0}, "cql_weight=-1.0"),
        ("ilql", {"lam": 1.5}, "lam=1.5"),
        ("cql", {"parallel": "fsdp"}, "parallel='fsdp': allowed is 'ddp'"),
        ("awr", {"greatest_weight": 0.0}, "greatest_weight=0.0"),
        ("mc-values", {"logged": 8, "data": "x.jsonl"}, "logged=8: allowed is None where data is given"),
        ("mc-values", {"advantage_temperature": 0.0}, "advantage_temperature=0.0"),
        ("ilql", {"beta": 0.0}, "beta is 0"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make_agent(name, make_env("textgym/Stop-v0", 4), **CPU, **settings)


def test_texts_without_rewards_are_refused(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    env = make_env("textgym/Stop-v0", 4)
    with pytest.raises(ValueError, match="without rewards"):
        make_agent("awr", env, data=str(path), **CPU).check_learning(env)


def test_a_table_starts_as_the_reference_and_is_refused_where_states_cannot_be_listed():
    env = make_env("textgym/TwoModes-v0", 4)
    tree, data = truth("TwoModes")
    agent = make_agent("lm-ppo", env, batch=4, **TABLE)
    for own, base in zip(edge_log_probs(tree, agent), data, strict=True):
        np.testing.assert_allclose(own, base, atol=1e-6)
    assert not agent.has_own_reference
    with pytest.raises(ValueError, match="model='table': task 'Helpful' has no list of its states"):
        make_agent("lm-ppo", make_env("textgym/Helpful-v0", 2), **TABLE)


LOGS = [name for name in check_names() if name.startswith("log: ")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*AGENTS, "behaviour-cloning"])
def test_the_kit_finds_nothing_wrong_with_what_learns_from_a_log(name):
    found = check(name, LOGS, settings=CPU, envs=16, iterations=2)
    assert {f.check: f.status for f in found} == dict.fromkeys(LOGS, HOLDS)


@pytest.mark.slow
@pytest.mark.parametrize("bug", LOG_MUTANTS)
def test_the_kit_finds_what_is_wrong_with_it(bug):
    mutant, name = LOG_MUTANTS[bug]
    (found,) = check(mutant, [name], settings=CPU, envs=16, iterations=2)
    assert found.status == FAILS
    assert "Error" not in found.found


def test_what_learns_from_no_log_is_not_asked():
    found = check("rloo", LOGS, settings=CPU, envs=16, iterations=2)
    found += check("dpo", LOGS, settings={"sampler": "policy", **CPU}, envs=16, iterations=2)
    assert {f.status for f in found} == {NOT_ASKED}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", AGENTS)
def test_it_passes_every_other_check_that_applies(name):
    found = check(name, check_names(slow=False), settings=CPU, envs=32, iterations=2)
    assert {f.check: f.found for f in found if f.status == FAILS} == {}
