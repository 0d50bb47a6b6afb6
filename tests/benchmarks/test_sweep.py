"""The sweep: what its cells are, and its regrets against numbers by hand."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from textgym_benchmarks.suite import Cell, Evaluation, Suite
from textgym_benchmarks.suites import ALGORITHMS, DIAGNOSTICS, STORY_REWARDS, task_id
from textgym_benchmarks.sweep import (
    AGENTS,
    SweepFlags,
    algorithms_suite,
    design,
    main,
    print_agreement,
    print_standings,
    print_table,
    regrets,
    spearman_interval,
    standings,
    sweep_suite,
)


def result(task, place, objective, before=0.0, optimum=None, width=0.0, seed=0):
    after = {"objective": {"mean": objective, "low": objective - width, "high": objective + width}}
    after["optimality"] = None if optimum is None else {"mean": objective / optimum}
    measures = {
        "before": {"objective": {"mean": before}},
        "after": after,
        "optimum": {"value": None if optimum is None else {"mean": optimum}},
    }
    cell = SimpleNamespace(agent="rloo", episodes=64, name=f"rloo {place}", task=task, seed=seed)
    return SimpleNamespace(cell=cell, measures=measures)


def test_regrets_by_hand(capsys):
    rows = [
        *(result("known", place, value, before=1.0, optimum=3.0) for place, value in ((0, 2.0), (1, 2.5), (2, 1.0))),
        *(result("best found", place, value) for place, value in ((0, 0.5), (1, 0.1), (2, 0.0))),
        result("known", 3, 3.0, optimum=3.0),  # not run on the other task
        SimpleNamespace(cell=SimpleNamespace(agent="rloo", episodes=64), measures=None),  # failed
        SimpleNamespace(
            cell=SimpleNamespace(agent="rloo", episodes=64), measures={"after": {"objective": None}}
        ),  # of which J is not known
    ]
    found = regrets(rows, "rloo", 64)
    assert (found.tasks, found.settings, found.known) == (("known", "best found"), (0, 1, 2), (True, False))
    np.testing.assert_allclose(found.regret, [[0.25, 0.0], [0.0, 0.8], [0.75, 1.0]])
    np.testing.assert_allclose(found.worst, [[0.25] * 3, [0.8] * 3, [1.0] * 3])  # no J has an error
    print_table(found, "rloo", 64, [{}, {"kl": "k1"}, {"learning_rate": 0.001}])
    shown = capsys.readouterr().out
    assert "best found *" in " ".join(shown.split())
    assert "0: defaults\n1: kl k1\n2: learning_rate 0.001" in shown
    assert "Spearman" not in shown  # three settings have any order by chance


def test_errors_and_seeds_widen_the_interval():
    noisy = [result("a", place, 1.0, optimum=2.0, width=0.2) for place in range(2)]
    worst = regrets(noisy, "rloo", 64).worst
    # Of two equal settings each loses max(difference, 0), N(0, 2 (0.2 / 1.96)^2), of the way of 2.
    np.testing.assert_allclose(worst[:, 0], 0.0)
    np.testing.assert_allclose(worst[:, 2], 1.96 * np.sqrt(2) * 0.2 / 1.96 / 2, rtol=0.1)
    seeds = [result("a", place, 1.0 + seed, optimum=2.0, seed=seed) for place in range(2) for seed in range(4)]
    found = regrets(seeds, "rloo", 64)
    np.testing.assert_allclose(found.regret, 0.0)
    assert (found.worst[:, 2] > 0.3).all()


def test_what_nothing_improves_has_no_regret():
    rows = [result("stuck", 0, 0.0), result("stuck", 1, -1.0), result("a", 0, 1.0), result("a", 1, 0.0)]
    found = regrets(rows, "rloo", 64)
    assert np.isnan(found.regret[:, 0]).all()
    assert found.worst[:, 0].tolist() == [0.0, 1.0]


@pytest.mark.long
def test_every_setting_runs_on_every_task(tmp_path):
    suite = sweep_suite(("rloo", "lm-ppo"), tmp_path, 14, (128, 64), tasks=("Copy",))
    assert len(suite.cells) == 2 * 2 * 14 * (1 + len(STORY_REWARDS))
    assert suite.evaluation.split == "tune"
    first = suite.cells[0]
    assert (first.episodes, first.config, first.name) == (64, {}, "rloo 0")
    tasks = {(cell.task, cell.name, cell.episodes) for cell in suite.cells}
    assert len(tasks) == len(suite.cells)
    assert design("rloo", 6)[4:] == [{"kl": "exact"}, {"epochs": 1}]
    assert design("lm-ppo", 7)[4:] == [{"lam": 0.95, "value_rate": 1.0}, {"kl": "k1"}, {"epochs": 1}]
    assert design("rloo", 14) == design("rloo", 14)
    assert set(design("lm-ppo", 14)[13]) > {"learning_rate", "lam"}
    assert {cell.seed for cell in sweep_suite(("rloo",), None, 1, (64,), seeds=2, first_seed=3).cells} == {3, 4}
    assert all("reference" not in cell.env for cell in sweep_suite(("rloo",), None, 1, (64,)).cells)


def test_agreement_between_tasks_has_intervals(capsys):
    low, high = spearman_interval(0.5, 28)  # tanh(0.5493 +- 1.96 sqrt(1.125 / 25))
    assert (low, high) == pytest.approx((np.tanh(0.5493 - 0.41577), np.tanh(0.5493 + 0.41577)), abs=1e-4)
    assert spearman_interval(0.9, 3) == (-1, 1)
    lost = np.array([[0.0, 0.3], [0.1, 0.2], [0.2, 0.0]])
    print_agreement(("a", "b"), np.concatenate([lost, lost + 0.01]), "settings")
    # Ranks on a are 1..6, of 0, 0.01, 0.1, 0.11, 0.2, 0.21; on b the pairs stand the other way round.
    ranks_b = [5, 6, 3, 4, 1, 2]
    expected = 1 - 6 * sum((a - b) ** 2 for a, b in zip(range(1, 7), ranks_b, strict=True)) / 210
    shown = capsys.readouterr().out
    assert f"{expected:.2f} [" in shown
    assert "Spearman, 6 settings" in shown
    print_agreement(("a", "b"), lost, "settings")
    assert capsys.readouterr().out == ""


def test_tasks_that_agree_wholly_have_an_interval_too(capsys):
    # Five settings in one order: 1 - 12 / (5 * 24) = 0.9 with two neighbours exchanged, 1.96 sqrt(1.405 / 2) = 1.6428.
    assert spearman_interval(1.0, 5) == pytest.approx((np.tanh(1.4722 - 1.6428), 1.0), abs=1e-4)
    assert spearman_interval(-1.0, 5) == pytest.approx((-1.0, np.tanh(1.6428 - 1.4722)), abs=1e-4)
    print_agreement(("a", "b"), np.array([[0.0, 1.0], [0.1, 1.1], [0.2, 1.2], [0.3, 1.3], [0.4, 1.4]]), "settings")
    assert capsys.readouterr().out.count("1.00 [-0.17, 1.00]") == 2  # a task's with itself is no estimate


def test_one_setting_on_one_task_has_a_table_alone(capsys):
    found = regrets([result("Helpful-v0", 0, 1.0)], "rloo", 64)
    print_table(found, "rloo", 64, [{}])
    print_agreement(found.tasks, found.regret, "settings")
    shown = capsys.readouterr().out
    assert "0: defaults" in shown
    assert "Spearman" not in shown


def test_algorithms_run_as_they_come_on_what_is_solved_and_what_is_not(tmp_path):
    suite = algorithms_suite(tmp_path, 64, seeds=2, tasks=("Helpful",), first_seed=5)
    assert Counter(cell.name for cell in suite.cells) == dict.fromkeys(
        ALGORITHMS, 2 * (len(DIAGNOSTICS) + 1 + len(STORY_REWARDS))
    )
    assert {cell.seed for cell in suite.cells} == {5, 6}
    assert suite.evaluation.split == "tune"
    [copy] = {cell.episodes for cell in suite.cells if cell.task == "Copy-v0"}
    [helpful] = {cell.episodes for cell in suite.cells if cell.task == "Helpful-v0"}
    assert (copy, helpful) == (16_384, 64)
    [gspo] = {json.dumps(cell.config) for cell in suite.cells if cell.name == "GSPO"}
    assert json.loads(gspo) == ALGORITHMS["GSPO"][1]


def test_standings_by_hand(capsys):
    def row(name, task, objective, optimality=None, seed=0, episodes=64):
        cell = Cell(f"textgym/{task}", "rloo", episodes, seed, label=name)
        after = {"objective": {"mean": objective}, "optimality": {"mean": optimality}}
        return SimpleNamespace(cell=cell, measures={"after": after})

    rows = []
    for place, name in enumerate(("lm-ppo", "rloo", "grpo", "GSPO")):
        rows += [row(name, "Helpful-v0", 0.1 * place), row(name, "Helpful-v0", 0.1 * place + 0.2, seed=1)]
        rows += [row(name, "Copy-v0", 9.0, 1 - 0.1 * place), row(name, "Bandit-v0", 9.0, 0.5)]
    partly = [row("a2c", "Helpful-v0", 3.0), row("a2c", "Bandit-v0", 9.0, 1.0)]  # Copy-v0 has no result
    failed = row("a2c", "Copy-v0", 0.0, 0.0)
    failed.measures = None
    suite = Suite("algorithms", tuple(each.cell for each in (*rows, *partly, failed)), "", Evaluation())
    other = row("rloo", "Helpful-v0", 99.0, episodes=128)  # of another budget
    for given in ([*rows, *partly, failed, other], [*rows, *partly]):
        names, tasks, values = standings(given, suite)
        assert (names, tasks) == (["lm-ppo", "rloo", "grpo", "GSPO"], ["Helpful-v0", "diagnostics: optimality"])
        np.testing.assert_allclose(values, [[0.1, 0.75], [0.2, 0.7], [0.3, 0.65], [0.4, 0.6]])
    print_standings(rows + partly, suite, "algorithms")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Spearman, 4 algorithms" in shown
    assert "1 more have cells without a result" in shown
    assert "lm-ppo 0.100 0.750" in shown
    assert "Helpful-v0 -1.00 [-1.00, 0.82] diagnostics" in shown  # 0.82 = tanh(1.96 sqrt(1.32) - atanh 0.8)
    assert standings([], suite)[0] == []
    assert regrets([], "rloo", 64).settings == ()


def test_flags_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"rewards='speach': one of .* is allowed"):
        SweepFlags(rewards=("speach",))
    for episodes in ((), (64, 128)):
        with pytest.raises(ValueError, match=r"episodes=.*allowed is one budget"):
            SweepFlags(episodes=episodes, algorithms=True)
    assert SweepFlags(episodes=(64, 128)).episodes == (64, 128)


def test_the_script_runs_and_reads_what_is_asked_for_alone(tmp_path, monkeypatch, capsys):
    """Of the four rewards of stories one is asked for, and of two suites in a folder the one that is named."""
    words = [
        "--model",
        str(tmp_path),
        "--out",
        str(tmp_path),
        "--tasks",
        "Json",
        "--rewards",
        "speech",
        "--settings",
        "2",
    ]
    monkeypatch.setattr("sys.argv", ["sweep", *words, "--agents", "rloo"])
    ran = []

    def run_suite(suite, out, workers):
        ran.extend(suite.cells)

    monkeypatch.setattr("textgym_benchmarks.sweep.run_suite", run_suite)
    monkeypatch.setattr("textgym_benchmarks.sweep.load_results", lambda path: [done(cell) for cell in ran])
    main()
    assert Counter(cell.reward_name for cell in ran) == {"default": 2, "speech": 2}
    shown = " ".join(capsys.readouterr().out.split())
    assert "Text-v0 speech" in shown
    assert "rloo 0 0.500 0.500 rloo 1 0.500 0.500" in shown  # J of both settings on both tasks
    everything = [done(cell) for cell in sweep_suite(("rloo",), tmp_path, 2, (4096,)).cells]
    monkeypatch.setattr("textgym_benchmarks.sweep.load_results", lambda path: everything)
    main()
    shown = capsys.readouterr().out
    assert "Json-v0" in shown
    assert "HHH-v0" not in shown
    monkeypatch.setattr("textgym_benchmarks.sweep.load_results", lambda path: [])
    with pytest.raises(ValueError, match="none of the 4 cells that these flags name is done there"):
        main()


@pytest.mark.parametrize(("words", "folder"), [([], "runs/sweep"), (["--algorithms"], "runs/algorithms")])
def test_settings_and_algorithms_have_folders_of_their_own(words, folder, monkeypatch, capsys):
    asked = []

    def load_results(path):
        asked.append(path)
        suite = algorithms_suite(None, 4096) if words else sweep_suite(("rloo",), None, 1, (4096,))
        return [done(cell) for cell in suite.cells]

    monkeypatch.setattr("textgym_benchmarks.sweep.load_results", load_results)
    monkeypatch.setattr("sys.argv", ["sweep", "--table", "--settings", "1", "--agents", "rloo", *words])
    main()
    assert [path.as_posix() for path in asked] == [folder]
    shown = " ".join(capsys.readouterr().out.split())
    assert "DAPO 0.500 0.500 0.500" in shown if words else "rloo 0 0.500 0.500" in shown


def test_every_budget_has_a_table_of_its_own(monkeypatch, capsys):
    cells = sweep_suite(AGENTS, None, 2, (64, 128), tasks=("Json", "HHH")).cells
    level = {"rloo 0": 0.1, "rloo 1": 0.2, "grpo 0": 0.3, "grpo 1": 0.4, "lm-ppo 0": 0.5, "lm-ppo 1": 0.6}
    found = [done(cell, level[cell.name] * cell.episodes / 64) for cell in cells]
    monkeypatch.setattr("textgym_benchmarks.sweep.load_results", lambda path: found)
    monkeypatch.setattr(
        "sys.argv", ["sweep", "--table", "--settings", "2", "--tasks", "Json", "HHH", "--episodes", "64", "128"]
    )
    main()
    shown = " ".join(capsys.readouterr().out.split())
    first, second = shown.split("settings, 128 episodes", 1)
    assert "rloo 1 0.200 0.200" in first
    assert "Spearman, 6 settings, 64 episodes" in first
    assert "rloo 1 0.400 0.400" in second


def done(cell, level=0.5):
    interval = {"mean": level, "low": level, "high": level}
    exact = cell.id in {task_id(name) for name in DIAGNOSTICS}
    after = {"objective": interval, "optimality": interval if exact else None}
    return SimpleNamespace(cell=cell, measures={"before": {"objective": {"mean": 0.1}}, "after": after})
