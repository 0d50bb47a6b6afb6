"""The study of off-policy estimators: its policies and truths against the solver, its counts and ranks by hand."""

import numpy as np
import pytest
from textgym_agents import make_agent, make_env
from textgym_benchmarks import ope, ope_sampled
from textgym_benchmarks.ope import BINS, SHARES, LogPool, between, coverage, draw_study, print_study, study
from textgym_benchmarks.ope_sampled import PARTS, Mixture, SampledPool, print_truths, sampled_worth, study_run

from textgym import make_task
from textgym.solver import policy_values, solve


@pytest.fixture(scope="module")
def rows():
    return list(study("TwoModes", 20, 200))


def test_policies_lie_at_shares_of_the_optimums_kl():
    solution = solve(make_task("BetaSweep"))
    found = [between(solution, share) for share in SHARES]
    assert [each.kl / solution.optimal.kl for each in found] == pytest.approx(SHARES, abs=1e-3)
    assert found[-1].objective == pytest.approx(solution.objective)
    assert np.diff([each.objective for each in found]).min() > 0


@pytest.mark.slow
def test_the_pool_holds_every_trajectory_with_its_pay():
    pool = LogPool.of("Copy")
    expected = policy_values(make_task("Copy"), pool.solution).expected_return
    ratios = np.exp(
        pool.log_probs(pool.solution.log_policy).sum(1) - pool.log_probs(pool.solution.log_reference).sum(1)
    )
    assert pool.probability.sum() == pytest.approx(1)
    assert pool.probability @ (ratios * pool.rewards.sum(1)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_the_study_finds_what_is_known(rows):
    cells = [row for row in rows if "logs" in row]
    own = [row for row in cells if row["estimator"] == "importance sampling" and row["measure"] == "reward"]
    assert [row["share"] for row in own] == list(SHARES)
    assert all(sum(row["logs"]) == 20 for row in own)
    truths = [row["truth"] for row in own]
    assert truths == sorted(truths)
    assert abs(own[0]["bias"]) < 0.05
    # Of twenty logs one is used for fitted Q.
    assert {sum(row["logs"]) for row in cells if row["estimator"] == "fitted Q"} == {1}
    bound = [row for row in cells if row["estimator"] == "lower bound"]
    assert coverage(bound, BINS[1])[1] >= 0.95
    ranking = {row["estimator"]: row["ranking"] for row in rows if "ranking" in row and row["measure"] == "objective"}
    assert ranking["self-normalised"] > 0.5


def test_coverage_by_hand():
    row = {"logs": [5, 3, 0, 0, 0, 0, 0, 2], "t": [0, 2, 0, 0, 0, 0, 0, 2], "percentile": [0, 1, 0, 0, 0, 0, 0, 2]}
    assert coverage([row], 10.0) == (0.5, 0.8)
    assert coverage([row], 15.0, "percentile") == (0.2, 1.0)
    assert np.isnan(coverage([row | {"logs": [10] + [0] * 7}], 10.0)[1])


@pytest.mark.slow
def test_tables_and_pictures_are_made(rows, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    print_study(rows)
    shown = capsys.readouterr().out
    assert "doubly robust" in shown
    assert "ranking" in shown
    draw_study(rows, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"ope_samples.png", "ope_distance.png"}


@pytest.fixture(scope="module")
def moved():
    env = make_env("textgym/TwoModes-v0", 64)
    agent = make_agent("rloo", env, batch=64, epochs=1, minibatches=1, learning_rate=0.02, device="cpu")
    agent.learn(env, 256)
    return agent


def test_a_mixture_lies_between_its_two(moved):
    task = moved.task
    observation = {"input_ids": np.array([task.encoded("train")[0].ids]), "attention_mask": np.ones((1, 1), np.int8)}
    observation["input_ids"] = observation["input_ids"][:, :1]
    first, second = (each.log_probs(observation).astype(float) for each in (moved.reference, moved.policy))
    weights = np.exp(0.7 * first + 0.3 * second)
    got = np.exp(Mixture(moved.reference, moved.policy, 0.3).log_probs(observation))
    np.testing.assert_allclose(got, weights / weights.sum(), atol=1e-6)


@pytest.mark.slow
def test_sampled_values_are_those_of_the_solver_and_logs_are_weighed_by_the_policy(moved):
    task = moved.task
    solution = solve(task, moved.own_reference(), split="train")
    policy = Mixture(moved.reference, moved.policy, 0.6)
    exact = policy_values(solution.tree, policy, moved.own_reference())
    assert exact.kl > 0.01
    found = sampled_worth(moved, 0.6, 1000, 0)
    for name, true in (("reward", exact.expected_return), ("objective", exact.objective)):
        assert abs(found[name] - true) < 4 * found[f"{name}_error"] < 0.1
    assert found["kl"] == pytest.approx(exact.kl, rel=0.1)
    pool = SampledPool.of(moved, 4000, 0)
    log = pool.log(np.arange(4000), PARTS.index(0.6), task.beta)
    weighted = log.weights * log.returns
    assert log.weights.mean() == pytest.approx(1, abs=4 * log.weights.std() / 4000**0.5)
    assert abs(weighted.mean() - exact.objective) < 4 * weighted.std() / 4000**0.5


@pytest.mark.slow
def test_the_sampled_study_has_a_row_for_every_policy_and_prints_them(moved, tmp_path, capsys):
    rows = list(study_run(moved, 3, 50, 200, 8))
    own = [row for row in rows if "share" in row and row["measure"] == "objective"]
    assert {row["share"] for row in own} == set(PARTS)
    assert {row["estimator"] for row in own} >= {"per decision", "self-normalised", "doubly robust", "fitted Q"}
    assert all(row["truth_error"] > 0 for row in own)
    print_truths(rows)
    print_study(rows, "objective", PARTS)
    shown = capsys.readouterr().out
    assert "KL, nats" in shown
    assert "±" in shown


@pytest.mark.slow
def test_a_reward_without_a_least_value_has_no_lower_bound():
    words = {"prompts": ["a"], "tokenizer": ["a", "b"], "reference": "uniform", "max_new_tokens": 2}
    env = make_env("textgym/Text-v0", 32, reward={"name": "length", "target": 1}, **words)
    agent = make_agent("rloo", env, batch=32, epochs=1, minibatches=1, learning_rate=0.02, device="cpu")
    agent.learn(env, 64)
    names = {row["estimator"] for row in study_run(agent, 2, 20, 40, 4) if "estimator" in row}
    assert "doubly robust" in names
    assert "lower bound" not in names


@pytest.mark.parametrize("module", [ope, ope_sampled])
def test_a_folder_without_a_study_is_named(module, tmp_path, monkeypatch):
    words = ["RUN"] if module is ope_sampled else []
    monkeypatch.setattr("sys.argv", ["study", *words, "--out", str(tmp_path), "--table"])
    with pytest.raises(ValueError, match=r"jsonl: holds no row of a study; run it without --table first"):
        module.main()
