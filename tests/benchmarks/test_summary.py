"""A summary of made-up results tells their truth: ranks, gaps, failures, curves and surprises, by hand or as made."""

from __future__ import annotations

import copy
import json
from functools import cache

import numpy as np
import pytest
from scipy.stats import trim_mean
from synthetic import make_results
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.summaries import Summary, summarise
from textgym_benchmarks.summaries.charts import CAPABILITIES
from textgym_benchmarks.summaries.grid import make_grid
from textgym_benchmarks.summaries.leaderboard import comparison

from textgym.task import task_entry, task_names

AGENTS = ("lm-ppo", "rloo", "q-learning", "reference", "mcts", "sb3-ddpg")
TASKS = tuple(f"textgym/{name}-v0" for name in ("Bandit", "Copy", "Stop", "Helpful", "Json"))


def results_of(data):
    return [Result.from_json(each) for each in data]


@cache
def made() -> tuple[dict, ...]:
    """Results in which nothing is lost."""
    return tuple(make_results(AGENTS, TASKS, 3, failed=0.0, missing=0.0, samples=0))


@cache
def summary_of_made() -> Summary:
    return summarise(results_of(made()))


def changed(*changes):
    """The made results after (agent, task, seed, function of the result) were applied, as results."""
    data = copy.deepcopy(list(made()))
    for agent, task, seed, change in changes:
        for each in data:
            cell = each["cell"]
            if cell["agent"] == agent and task in cell["id"] and seed in (None, cell["seed"]):
                change(each)
    return results_of(data)


def fail(result):
    error = {"type": "RuntimeError", "message": "<b>no</b>", "traceback": "", "attempts": 3}
    result |= {"status": "failed", "measures": None, "timing": None, "error": error}


def lose(result):
    result |= {"status": "missing", "measures": None, "timing": None}


def scored(score):
    def change(result):
        result["measures"]["after"]["optimality"] = {"mean": score, "low": score - 0.1, "high": score + 0.1}

    return change


def row_of(summary, agent):
    return next(row for row in summary.leaderboard if row.agent == agent)


def entry_of(summary, agent, task):
    (index,) = (problem.index for problem in summary.problems if task in problem.id)
    return next(entry for entry in summary.entries if (entry.agent, entry.problem) == (agent, index))


def finding_of(summary, kind):
    return next(finding for finding in summary.findings if finding.kind == kind)


def finals(agent, task=""):
    return [
        each["measures"]["after"]["optimality"]["mean"]
        for each in made()
        if each["cell"]["agent"] == agent and task in each["cell"]["id"]
    ]


@pytest.mark.slow
def test_agents_are_ranked_as_they_were_made():
    rows = summary_of_made().leaderboard
    assert [row.agent for row in rows] == ["lm-ppo", "rloo", "q-learning", "reference", "mcts", "sb3-ddpg"]
    assert [row.rank for row in rows] == [1, 2, 3, 4, 5, None]
    for row in rows[:3]:
        assert row.iqm.value == pytest.approx(trim_mean(finals(row.agent), 0.25))
        assert row.mean.value == pytest.approx(np.mean(finals(row.agent)))
        assert row.iqm.low < row.iqm.value < row.iqm.high
        assert (row.common, row.common_with_failures) == (row.iqm, pytest.approx(row.iqm.value))
        assert row.over_reference.value == 1.0
    assert rows[0].over_best is None
    assert rows[1].over_best.value < 0.5
    assert rows[3].over_reference.value == 0.5  # the reference ties with itself
    assert len(summary_of_made().common) == 5


def test_a_score_without_end_is_clipped_in_aggregates_only_and_counted():
    summary = summary_of_made()
    assert all(score < -1 for score in finals("mcts"))
    row = row_of(summary, "mcts")
    assert (row.iqm.value, row.mean.value) == (-1.0, pytest.approx(-1.0))
    assert row.counts.clipped == 15
    assert entry_of(summary, "mcts", "Copy").optimality.value == pytest.approx(np.mean(finals("mcts", "Copy")))
    found = finding_of(summary, "clipped")
    (item,) = found.items
    assert found.title == "Agents with runs below -1, which count as -1 in aggregates"
    assert item == f"mcts: 15 of 15 runs, the least {min(finals('mcts')):.1f}"


def test_an_agent_without_a_kl_is_shown_with_its_reward():
    summary = summary_of_made()
    row = row_of(summary, "sb3-ddpg")
    assert (row.rank, row.iqm.value, row.common, row.over_reference.value) == (None, None, None, None)
    assert (row.counts.done, row.counts.no_optimality) == (15, 15)
    assert entry_of(summary, "sb3-ddpg", "Copy").reward.value is not None
    assert finding_of(summary, "no_optimality").items == ("sb3-ddpg: 15 of 15 runs",)
    assert finding_of(summary, "no_optimality").title.startswith("Agents with runs without an optimality: ")
    assert "sb3-ddpg" not in summary.pairwise.agents
    assert "sb3-ddpg" not in summary.radar.agents


@pytest.mark.slow
def test_failed_and_missing_runs_are_counted_and_never_averaged():
    summary = summarise(changed(("rloo", "Copy", 0, fail), ("rloo", "Stop", 1, lose)))
    row = row_of(summary, "rloo")
    assert (row.counts.done, row.counts.failed, row.counts.missing, row.counts.planned) == (13, 1, 1, 15)
    assert (row.iqm.runs, row.iqm.of_runs, row.iqm.tasks) == (13, 15, 5)
    entry = entry_of(summary, "rloo", "Copy")
    assert entry.optimality.value == pytest.approx(np.mean(finals("rloo", "Copy")[1:]))
    assert (entry.optimality.runs, entry.optimality.of_runs) == (2, 3)
    assert entry.runs[0].error == "RuntimeError: <b>no</b>"
    # The failed run counts as -1 where that is asked for; the missing one does not.
    scores = [s for task in TASKS for s in finals("rloo", task)]
    groups = [scores[i : i + 3] for i in range(0, 15, 3)]
    groups[1][0] = -1.0
    del groups[2][1]
    assert row.common_with_failures < row.iqm.value
    expected = sorted(score for group in groups for score in group)[3:11]
    assert min(expected) < row.common_with_failures < max(expected)
    assert finding_of(summary, "failed").items == ("rloo on Copy-v0, seed 0: RuntimeError: <b>no</b>",)
    assert finding_of(summary, "missing").items == ("rloo on Stop-v0: 1 of 3",)


def test_an_agent_that_failed_a_whole_task_stands_on_fewer_and_keeps_its_rank():
    summary = summarise(changed(*[("lm-ppo", "Json", None, fail)]))
    row = row_of(summary, "lm-ppo")
    assert (row.rank, row.common.tasks, row.common.of_tasks) == (1, 4, 5)
    assert entry_of(summary, "lm-ppo", "Json").optimality.interval == "none"
    assert row_of(summary, "rloo").over_best.tasks == 4


def test_agents_are_ranked_only_over_what_all_of_them_were_given():
    kept = [
        each
        for each in made()
        if each["cell"]["agent"] in ("lm-ppo", "rloo")
        or (each["cell"]["agent"] == "q-learning" and "Bandit" in each["cell"]["id"])
    ]
    easy = [each for each in kept if not ("rloo" in each["cell"]["agent"] and "Json" in each["cell"]["id"])]
    summary = summarise(results_of(easy))
    # 1 x 5 problems, 2 x 4, 3 x 1: the second is the largest table.
    assert summary.common == ("Bandit-v0", "Copy-v0", "Stop-v0", "Helpful-v0")
    assert [(row.agent, row.rank) for row in summary.leaderboard] == [
        ("lm-ppo", 1),
        ("rloo", 2),
        ("q-learning", None),
    ]
    assert row_of(summary, "q-learning").common is None
    assert row_of(summary, "lm-ppo").common.of_tasks == 4
    assert row_of(summary, "lm-ppo").iqm.tasks == 5
    assert [line.agent for line in summary.profiles] == ["lm-ppo", "rloo"]
    best = {each.family: (each.agent, each.agents) for each in summary.best}
    assert best["verifiable"] == ("lm-ppo", ("lm-ppo",))
    assert best["diagnostics"] == ("lm-ppo", ("lm-ppo", "rloo"))
    assert comparison(make_grid(results_of(easy))).agents == ("lm-ppo", "rloo")


def test_a_single_run_has_its_own_interval_and_an_aggregate_of_such_has_none():
    data = [each for each in made() if each["cell"]["seed"] == 0 and each["cell"]["agent"] == "lm-ppo"]
    summary = summarise(results_of(data))
    found = entry_of(summary, "lm-ppo", "Helpful").optimality
    after = next(each for each in data if "Helpful" in each["cell"]["id"])["measures"]["after"]["optimality"]
    assert (found.interval, found.value, found.low, found.high) == (
        "run",
        *(after[k] for k in ("mean", "low", "high")),
    )
    row = row_of(summary, "lm-ppo")
    assert (row.iqm.low, row.iqm.tasks, row.over_best) == (None, 5, None)
    assert summary.profiles[0].low is None
    (curve,) = [each for each in summary.curves if summary.problems[each.problem].label.startswith("Helpful")]
    points = next(each for each in data if "Helpful" in each["cell"]["id"])["measures"]["curve"]
    assert curve.optimality.low == tuple(point["optimality_low"] for point in points)


def test_profiles_fall_from_one_and_pairs_add_up_to_one():
    summary = summary_of_made()
    (line,) = (each for each in summary.profiles if each.agent == "lm-ppo")
    share = np.array(line.share)
    assert (np.diff(share) <= 0).all()
    assert (np.array(line.low) <= share + 1e-12).all()
    assert (share <= np.array(line.high) + 1e-12).all()
    at_half = summary.thresholds.index(0.5)
    assert share[at_half] == pytest.approx(np.mean(np.array(finals("lm-ppo")) > 0.5))
    pairs = summary.pairwise
    for i, first in enumerate(pairs.agents):
        assert pairs.rows[i][i] is None
        for j in range(len(pairs.agents)):
            if i != j:
                pair = pairs.rows[i][j]
                assert pair.value + pairs.rows[j][i].value == pytest.approx(1.0)
                assert pair.low <= pair.value <= pair.high
        if first == "lm-ppo":
            assert pairs.rows[i][pairs.agents.index("mcts")].value == 1.0


def test_the_radar_shows_diagnostics_clipped():
    radar = summary_of_made().radar
    assert radar.tasks == ("Bandit", "Copy", "Stop")
    assert set(radar.values[radar.agents.index("mcts")]) == {0.0}
    expected = np.mean(finals("lm-ppo", "Copy"))
    assert radar.values[radar.agents.index("lm-ppo")][1] == pytest.approx(expected)


def test_every_diagnostic_task_has_a_capability():
    diagnostics = {name.removesuffix("-v0") for name in task_names() if task_entry(name).family == "diagnostics"}
    assert {name.rpartition("/")[2] for name in diagnostics} == set(CAPABILITIES)


def test_surprises_are_found():
    def worse(result):
        after = result["measures"]["after"]
        after["reward"]["mean"] = result["measures"]["before"]["reward"]["mean"] + 0.2
        after["gold"]["mean"] = result["measures"]["before"]["gold"]["mean"] - 0.1

    def weak(result):
        result["measures"]["optimum"]["effective_samples"] = 4.25

    summary = summarise(
        changed(
            ("q-learning", "Stop", None, scored(-0.4)),
            ("rloo", "Copy", 0, scored(-0.1)),
            ("lm-ppo", "Json", None, scored(1.3)),
            ("lm-ppo", "Bandit", None, scored(0.4)),
            ("rloo", "Bandit", None, scored(0.3)),
            ("rloo", "Helpful", None, worse),
            ("rloo", "Json", 1, weak),
        )
    )
    items = {finding.kind: finding.items for finding in summary.findings}
    assert "q-learning on Stop-v0: -0.40" in items["below_reference"]
    assert not any("reference on" in item for item in items["below_reference"])
    assert items["seeds_disagree"] == (f"rloo on Copy-v0: -0.10 to {max(finals('rloo', 'Copy')[1:]):.2f}",)
    assert items["above_one"] == ("lm-ppo on Json-v0: 3 of 3 runs",)
    assert finding_of(summary, "above_one").title.startswith("Agents on problems with runs above J* by more than ")
    assert items["unsolved"] == ("Bandit-v0: best is lm-ppo with 0.40",)
    assert "rloo on Helpful-v0: reward +0.200, gold -0.100" in items["overoptimised"]
    assert items["weak_optimum"] == ("Json-v0: 4.2",)
    assert any(item.startswith("q-learning on Stop-v0") for item in items["collapse"])
    assert items["failed"] == items["missing"] == ()
    assert summary.counts.above_one == 3


def test_names_are_told_apart_where_they_clash_and_only_there():
    data = copy.deepcopy([each for each in made() if each["cell"]["agent"] in ("lm-ppo", "rloo")])
    more = copy.deepcopy([each for each in data if each["cell"]["agent"] == "lm-ppo"])
    for each in more:
        each["cell"] = {k: v for k, v in each["cell"].items() if k != "key"} | {"config": {"beta": 0.3}}
    for each in data:
        if "Copy" in each["cell"]["id"]:  # other settings on another problem are no clash
            del each["cell"]["key"]
            each["cell"]["config"] = {"batch": 8} if each["cell"]["agent"] == "rloo" else {}
    agents = set(summarise(results_of(data + more)).agents)
    assert agents == {"rloo", "lm-ppo {}", 'lm-ppo {"beta":0.3}'}
    longer = copy.deepcopy([each for each in data if "Stop" in each["cell"]["id"]])
    for each in longer:
        each["cell"] = {k: v for k, v in each["cell"].items() if k != "key"} | {"episodes": 77}
    labels = [problem.label for problem in summarise(results_of(data + longer)).problems]
    assert "Stop-v0, 77 episodes" in labels
    assert len(set(labels)) == len(labels) == 6


def test_other_settings_are_told_apart_whatever_their_seeds():
    data = copy.deepcopy([each for each in made() if each["cell"]["agent"] == "lm-ppo"])
    for each in data:
        each["cell"] = {k: v for k, v in each["cell"].items() if k != "key"}
        each["cell"]["config"] = {"beta": 0.3} if each["cell"]["seed"] == 2 else {}
    assert set(summarise(results_of(data)).agents) == {"lm-ppo {}", 'lm-ppo {"beta":0.3}'}


def test_tasks_of_other_modules_have_labels_of_their_own():
    data = copy.deepcopy([each for each in made() if "Bandit" in each["cell"]["id"]])
    for each in data:
        each["cell"] = {k: v for k, v in each["cell"].items() if k != "key"}
        each["cell"]["id"] = f"mine_{each['cell']['seed'] % 2}:lab/Bandit-v0"
    labels = [problem.label for problem in summarise(results_of(data)).problems]
    assert len(set(labels)) == len(labels) == 2


def test_scores_that_differ_by_rounding_are_equal():
    most, least = 1.0000000000000004, 0.9999999999999991
    summary = summarise(changed(("lm-ppo", "", None, scored(most)), ("rloo", "", None, scored(least))))
    pairs = summary.pairwise
    assert pairs.rows[pairs.agents.index("lm-ppo")][pairs.agents.index("rloo")].value == 0.5
    (line,) = (each for each in summary.profiles if each.agent == "lm-ppo")
    assert line.share[summary.thresholds.index(1.0)] == 0.0


def test_equal_agents_share_their_rank():
    data = make_results(("zeta", "alpha", "mid", "low"), TASKS[:1], 3, failed=0.0, missing=0.0)
    for each in data:
        score = {"low": 0.5, "mid": 1.0 + 4e-16}.get(each["cell"]["agent"], 1.0)
        each["measures"]["after"]["optimality"] = {"mean": score, "low": score, "high": score}
    rows = summarise(results_of(data)).leaderboard
    assert [(row.agent, row.rank) for row in rows] == [("alpha", 1), ("mid", 1), ("zeta", 1), ("low", 4)]
    assert [row.over_best and row.over_best.value for row in rows] == [None, 0.5, 0.5, 0.0]


@pytest.mark.slow
def test_the_same_results_give_the_same_summary_and_others_change_no_row():
    assert summarise(results_of(made())) == summary_of_made()
    assert summarise(results_of(made()), seed=1) != summary_of_made()
    fewer = summarise(results_of(each for each in made() if each["cell"]["agent"] != "mcts"))
    assert row_of(fewer, "lm-ppo") == row_of(summary_of_made(), "lm-ppo")
    assert entry_of(fewer, "rloo", "Copy") == entry_of(summary_of_made(), "rloo", "Copy")


def test_a_summary_is_json():
    data = json.loads(json.dumps(summary_of_made().to_json(), allow_nan=False))
    assert data["leaderboard"][0]["iqm"]["value"] == summary_of_made().leaderboard[0].iqm.value
    assert data["machines"] == ["2 cores, a processor that does not exist"]
    assert data["versions"]["textgym"] == ["0.1.0"]
    assert summary_of_made().families == ("diagnostics", "alignment", "verifiable")


def test_nothing_at_all_and_only_failures():
    with pytest.raises(ValueError, match=r"results=\[\]: allowed is at least one result"):
        summarise([])
    twice = results_of(made()[:1] * 2)
    with pytest.raises(ValueError, match="is there twice"):
        summarise(twice)
    data = copy.deepcopy(list(made()[:3]))
    for each in data:
        fail(each)
    summary = summarise(results_of(data))
    assert (summary.common, summary.profiles, summary.curves) == ((), (), ())
    assert (summary.leaderboard[0].rank, summary.leaderboard[0].counts.failed) == (None, 3)
    assert summary.best[0].agent is None
