"""What runs spent: curves, levels that they reach, and agents at equal tokens and equal CPU time, by hand."""

from __future__ import annotations

import copy

import pytest
from synthetic import make_results
from test_summary import changed, made, results_of, row_of, summary_of_made
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.summaries import summarise
from textgym_benchmarks.summaries.entries import crossing_of_agent, crossing_of_runs
from textgym_benchmarks.summaries.grid import make_grid


def test_curves_are_means_on_the_grid_that_all_runs_reach():
    data = [copy.deepcopy(each) for each in made() if each["cell"]["agent"] == "rloo" and "Copy" in each["cell"]["id"]]
    first = data[0]["measures"]["curve"]
    del first[1]  # this run was not evaluated there: it is read off between its neighbours
    del data[1]["measures"]["curve"][-1]  # this one ended earlier
    (curve,) = summarise(results_of(data)).curves
    grid = [row["episode"] for row in data[1]["measures"]["curve"]]
    assert curve.episodes == tuple(grid)
    assert len(grid) == 8
    scores = [[row["optimality"] for row in each["measures"]["curve"]] for each in data]
    halfway = (scores[0][0] + scores[0][1]) / 2
    assert curve.optimality.mean[1] == pytest.approx((halfway + scores[1][1] + scores[2][1]) / 3)
    assert curve.optimality.low[2] == pytest.approx(min(scores[0][1], scores[1][2], scores[2][2]))
    assert set(curve.gold.mean) == {None}
    assert curve.tokens[-1] == pytest.approx(grid[-1] * first[-1]["tokens"] / first[-1]["episode"], rel=1e-4)


@pytest.mark.parametrize("seeds", [1, 2])
def test_of_two_points_at_an_episode_a_curve_has_the_later(seeds):
    wanted = [
        copy.deepcopy(each) for each in made() if each["cell"]["agent"] == "rloo" and "Copy" in each["cell"]["id"]
    ]
    doubled = copy.deepcopy(wanted[:seeds])
    for each in doubled:
        points = each["measures"]["curve"]
        each["measures"]["curve"] = [row for point in points for row in ({**point, "optimality": -9.0}, point)]
    (curve,) = summarise(results_of(doubled)).curves
    assert curve == summarise(results_of(wanted[:seeds])).curves[0]


def test_crossings_count_a_run_that_never_got_there_as_infinitely_long():
    def reach(tokens):
        place = None if tokens is None else {"episodes": tokens / 2, "tokens": tokens}
        return lambda result: result["measures"].__setitem__("to_half", place)

    def crossing(*tokens):
        runs = changed(*[("rloo", "Copy", seed, reach(each)) for seed, each in enumerate(tokens)])
        return crossing_of_runs([run for run in runs if run.cell.agent == "rloo" and "Copy" in run.cell.id], "to_half")

    assert (crossing(100.0, 200.0, 300.0).tokens, crossing(100.0, 200.0, 300.0).reached) == (200.0, 3)
    found = crossing(100.0, 200.0, None)
    assert (found.tokens, found.reached, found.of) == (200.0, 2, 3)
    assert (crossing(100.0, None, None).tokens, crossing(100.0, None, None).reached) == (None, 1)
    runs = changed(*[("rloo", "Copy", seed, reach(None)) for seed in range(3)])
    over = crossing_of_agent(make_grid(runs), "rloo", "to_half")
    before = row_of(summary_of_made(), "rloo").to_half
    assert (over.of, over.reached) == (5, before.reached - 1)


def test_equal_tokens_are_those_that_every_learner_reaches():
    def learns(*points):
        rows = [{"episode": at, "tokens": tokens, "optimality": score} for at, (tokens, score) in enumerate(points)]
        return lambda result: result["measures"].__setitem__("curve", rows)

    cells = make_results(["lm-ppo", "rloo", "best-of-n", "sb3-ddpg"], ["textgym/Copy-v0"], 2, failed=0, missing=0)
    curves = {
        "lm-ppo": [learns((0, 0.0), (100, 0.4), (300, 0.8)), learns((0, 0.0), (200, 0.6))],
        "rloo": [learns((0, 0.1), (160, None), (400, 0.5))] * 2,
        "best-of-n": [learns((0, 0.7), (0, 0.7))] * 2,
        "sb3-ddpg": [learns((0, None), (50, None))] * 2,
    }
    for cell in cells:
        curves[cell["cell"]["agent"]][cell["cell"]["seed"]](cell)
    (found,) = summarise(results_of(cells)).equal_tokens
    # The second run of lm-ppo ends first, at 200: the first is half way from 0.4 to 0.8 there, rloo from 0.1 to 0.5.
    # The others have no curve there, and sb3-ddpg, which ends earlier, has no optimality to compare.
    assert (found.problem, found.spent) == (0, 200)
    assert found.optimality == {
        "lm-ppo": pytest.approx((0.6 + 0.6) / 2),
        "rloo": pytest.approx(0.3),
        "best-of-n": None,
    }
    cells = [cell for cell in cells if cell["cell"]["agent"] == "best-of-n"]
    (found,) = summarise(results_of(cells)).equal_tokens
    assert (found.spent, found.optimality) == (None, {"best-of-n": None})


def test_equal_cpu_time_is_the_median_of_what_runs_took():
    def learns(tokens, clock, scores, **timing):
        rows = [{"episode": at, "tokens": tokens * at, "optimality": score} for at, score in enumerate(scores)]

        def change(result):
            result["measures"] |= {"curve": rows, "tokens": tokens * (len(rows) - 1)}
            result["timing"] = {"curve_seconds": clock} | timing

        return change

    cells = make_results(["lm-ppo", "rloo", "q-learning", "random"], ["textgym/Copy-v0"], 1, failed=0, missing=0)
    changes = {
        "lm-ppo": learns(5, [0.0, 8.0], [0.0, 0.8], curve_cpu_seconds=[0.0, 4.0]),
        # Its clock took 10 s, of which it computed for 5: it was half way at 2.5 s of CPU.
        "rloo": learns(5, [0.0, 5.0, 10.0], [0.0, 0.5, 0.9], learning_seconds=10.0, learning_cpu_seconds=5.0),
        "q-learning": learns(5, [0.0, 1.0], [0.0, 0.3], curve_cpu_seconds=[0.0, 1.0]),
        "random": learns(0, [0.0, 1.0], [0.0, 0.0], curve_cpu_seconds=[0.0, 1.0]),
    }
    for cell in cells:
        changes[cell["cell"]["agent"]](cell)
    (found,) = summarise(results_of(cells)).equal_cpu_time
    assert found.spent == 4.0  # of 1, 4 and 5
    expected = {"lm-ppo": 0.8, "rloo": 0.5 + 0.4 * 1.5 / 2.5, "q-learning": 0.3, "random": None}
    assert found.optimality == {name: value and pytest.approx(value) for name, value in expected.items()}


def test_throughput_is_that_of_learning_alone():
    data = make_results(["lm-ppo"], ["textgym/Copy-v0", "textgym/Reverse-v0"], 1, failed=0.0, missing=0.0)
    for result, tokens in zip(data, (300, 700), strict=True):
        result["measures"]["tokens"] = tokens
    data[0]["timing"] |= {"seconds": 90.0, "cpu_seconds": 80.0}
    data[0]["timing"] |= {"learning_seconds": 4.0, "learning_cpu_seconds": 3.0}
    # The second does not tell learning apart: its whole time is taken.
    data[1]["timing"] |= {"seconds": 8.0, "cpu_seconds": 7.0}
    summary = summarise([Result.from_json(each) for each in data])
    (row,) = summary.leaderboard
    assert row.tokens_per_cpu_second == pytest.approx(1000 / 10.0)
    assert row.cpu_seconds == pytest.approx(5.0)
    times = [(entry.cpu_seconds, entry.tokens_per_cpu_second) for entry in summary.entries]
    assert times == [(3.0, pytest.approx(100.0)), (7.0, pytest.approx(100.0))]
