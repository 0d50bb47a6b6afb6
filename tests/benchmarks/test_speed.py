"""The measurements of speed: what is timed, and that the rows say it."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console
from textgym_benchmarks import speed
from textgym_benchmarks.speed import Row, Speed, as_table, measure, time_pair


def test_a_pair_by_hand():
    now = iter(range(0, 1000, 2))  # a clock that goes on by 2 seconds each time it is read
    pair = time_pair(lambda: None, lambda: next(now), 3, lambda: next(now))
    # The second function reads the clock once more, so its calls last 4 seconds.
    assert pair == (2.0, 4.0, 0.5)


def test_one_thread_is_timed_by_its_own_seconds_and_several_by_the_wall_clock():
    assert speed._clock(Speed(("ppo",))) is time.process_time
    assert speed._clock(Speed(("ppo",), threads=2)) is time.perf_counter


def test_rewards_of_a_name_alone_and_scored():
    rows = measure(Speed(("rewards",), rounds=1, only=("no_repeat", "pattern, full")))
    assert [row.what.split(",")[0] for row in rows] == ["reward pattern", "reward no_repeat"]
    assert [row.goal for row in rows] == [">= 200,000/s", ""]


def test_the_tree_that_the_solver_is_timed_on(monkeypatch):
    monkeypatch.setattr(speed, "_LETTERS", 3)
    monkeypatch.setattr(speed, "_LENGTH", 4)
    states, building, solving, gigabytes = speed.solve_letters()
    # Texts of at most 4 of 3 letters, 1 + 3 + 9 + 27 + 81, and the ends of the shorter ones.
    assert states == 121 + 40
    assert min(building, solving, gigabytes) > 0


def test_without_the_model_its_subjects_are_left_out(tmp_path):
    with pytest.warns(UserWarning, match="no such folder; ppo is left out"):
        assert measure(Speed(("ppo",), model=tmp_path / "none")) == []


def test_a_table_of_80_columns_keeps_its_numbers_whole():
    what = "1024 x textgym/Helpful-v0, copy=False, steps/s (peer: CartPole-v1's own)"
    rows = [
        Row(what, "2,109,147", "11,839,635", 0.178, ">= 0.30", False),
        Row("textgym list, CPU time", "0.50 s", "", None, "<= 0.6 s", True),
    ]
    printed = io.StringIO()
    Console(file=printed, width=80).print(as_table(rows))
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (line,) = [line for line in lines if "2,109,147" in line]
    assert line.split()[-6:] == ["2,109,147", "11,839,635", "0.18", ">=", "0.30", "no"]
    assert "(peer: CartPole-v1's own)" in map(str.strip, lines)
    assert len(lines) <= 9
