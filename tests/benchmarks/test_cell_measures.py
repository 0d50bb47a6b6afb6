"""Numbers of a cell by hand: the curve, and where it crosses a level."""

from __future__ import annotations

import pytest
from benchmarks.live_runs import begin, end, row
from benchmarks.synthetic import make_results
from hypothesis import given
from hypothesis import strategies as st
from textgym_benchmarks.results.rows import between, crossing, crossings, curve, curve_seconds, read_run, snapshot
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.summaries import summarise


def point(episode, tokens, optimality):
    return {"episode": episode, "tokens": tokens, "optimality": optimality}


def test_crossings_by_hand():
    points = [point(0, 0, 0.0), point(100, 900, 0.4), point(200, 1700, 0.8), point(300, 2400, 0.7)]
    # 0.5 is a quarter of the way from 0.4 to 0.8.
    assert crossings(points)["to_half"] == {"episodes": 125.0, "tokens": 900 + 0.25 * 800}
    assert crossings(points)["to_nine_tenths"] is None


def test_unknown_points_are_passed_over():
    points = [point(0, 0, 0.0), point(100, 100, None), point(200, 200, 1.0)]
    assert crossings(points)["to_half"] == {"episodes": 100.0, "tokens": 100.0}
    assert crossings([point(0, 0, None)])["to_half"] is None
    assert crossing([], 0.5) is None


def test_a_level_that_is_reached_before_the_first_known_point_is_reached_nobody_knows_where():
    points = [point(0, 0, None), point(100, 100, None), point(200, 200, 0.8)]
    assert crossings(points)["to_half"] is None
    assert crossings([*points[:2], point(200, 200, 0.4), point(300, 300, 0.6)])["to_half"] == {
        "episodes": pytest.approx(250.0),
        "tokens": pytest.approx(250.0),
    }


def test_what_starts_above_has_crossed_at_the_start():
    assert crossings([point(0, 0, 0.95), point(10, 10, 0.2)])["to_half"] == {"episodes": 0.0, "tokens": 0.0}
    assert crossing([0.5], 0.5) == (0, 0, 0.0)
    assert between([1.0, 3.0], (0, 1, 0.5)) == 2.0
    assert between([1.0, 3.0], None) is None


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=9), st.floats(-1, 1))
def test_a_crossing_is_the_first_and_at_the_level(values, level):
    where = crossing(values, level)
    if where is None:
        assert max(values) < level
        return
    first, second, share = where
    assert all(value < level for value in values[:second])
    assert 0 <= share <= 1
    assert second - first in (0, 1)
    at = between(values, where)
    assert at is not None
    assert at >= level - 1e-9
    if second > first:
        assert abs(at - level) < 1e-9


def test_what_was_logged_before_j_star_was_worked_out_is_scored_on_it(tmp_path):
    run = begin(tmp_path / "run")
    with run.writing(events=False):
        for iteration, j in enumerate((0.1, 0.2, None, 0.4)):
            logged = row(iteration, j, seconds=10.0 * iteration)
            run.log({name: value for name, value in logged.items() if "optimality" not in name})
        end(run, 0.45)
    # J* = 0.5 and J_ref = 0: optimality is 2 J, and its interval, of 0.02 to each side of J, twice as wide.
    result = read_run(run.path)
    found, timing = result["measures"], result["timing"]
    assert [each["optimality"] for each in found["curve"]] == pytest.approx([0.2, 0.4, 0.8, 0.9])
    assert found["before"]["optimality"] == pytest.approx({"mean": 0.2, "low": 0.16, "high": 0.24}, abs=1e-3)
    # From 0.4 at 100 episodes, 300 tokens and 10 s to 0.8 at 300, 900 and 30: 0.5 is a quarter of the way.
    assert found["to_half"] == pytest.approx({"episodes": 150.0, "tokens": 450.0})
    assert timing["seconds_to_half"] == pytest.approx(15.0)


def test_nothing_is_read_off_a_curve_before_its_first_known_point():
    def score(known):
        curve = [point(0, 0, known), point(100, 100, known), point(300, 300, 0.8)]
        cells = make_results(["lm-ppo", "rloo"], ["textgym/Copy-v0"], 1, failed=0, missing=0)
        cells[0]["measures"]["curve"], cells[1]["measures"]["curve"] = curve, [point(0, 0, 0.0), point(200, 200, 0.6)]
        (found,) = summarise([Result.from_json(each) for each in cells]).equal_tokens
        assert found.spent == 200
        return found.optimality["lm-ppo"]

    assert score(0.4) == pytest.approx(0.6)
    assert score(None) is None


def test_the_curve_ends_at_the_budget():
    first = {"episode": 0, "eval/reward": 0.1, "learning/tokens": 0, "learning/seconds": 0.0}
    middle = {"episode": 50, "learning/tokens": 60, "learning/seconds": 3.0}  # not evaluated
    last = {"episode": 104, "eval/reward": 0.3, "learning/tokens": 130, "learning/seconds": 7.0}
    after, learned = {"eval/reward": 0.2}, {"learning/tokens": 60, "learning/seconds": 3.0}
    whole = curve([first, middle, last], {"eval/reward": 0.3}, {}, 100)
    assert [(row["episode"], row["tokens"], row["reward"]) for row in whole] == [(0, 0, 0.1), (104, 130, 0.3)]
    assert curve_seconds([first, middle, last], {}, 100) == [0.0, 7.0]
    # It stopped by itself after 50: what it is then, it is at the budget's end.
    cut = curve([first, middle], after, learned, 100)
    assert [(row["episode"], row["tokens"], row["reward"]) for row in cut] == [(0, 0, 0.1), (100, 60, 0.2)]
    assert curve_seconds([first, middle], learned, 100) == [0.0, 3.0]


def test_a_snapshot():
    row = {
        "eval/kl": 1.0,
        "eval/kl_low": 0.5,
        "eval/kl_high": 1.5,
        "eval/stop_rate": 0.9,
        "eval/terms/a": 2.0,
    }
    got = snapshot(row | {"eval/failures/raised": 3, "seconds": 1.0})
    assert got["kl"] == {"mean": 1.0, "low": 0.5, "high": 1.5}
    assert got["reward"] is got["optimality"] is got["distinct_1"] is None
    assert (got["stop_rate"], got["terms"], got["failures"]) == (0.9, {"a": 2.0}, {"raised": 3})
