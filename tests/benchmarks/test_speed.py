"""The measurements of speed: what is timed, and that the rows say it."""

from __future__ import annotations

import io
import time

import pytest
from core_tools import STORIES, needs_stories
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


def rows_of(*subjects, **settings):
    rows = measure(Speed(subjects, rounds=1, **settings))
    assert all(row.ratio > 0 for row in rows)
    assert all(float(number.removesuffix(" s").replace(",", "")) > 0 for row in rows for number in (row.ours, row.peer))
    assert all(row.reached is None if row.goal == "" else isinstance(row.reached, bool) for row in rows)
    return [(row.what.partition(" (peer")[0], row.goal) for row in rows]


@pytest.mark.slow
def test_one_environment_beside_cartpole():
    names = ("textgym/Text-v0", "textgym/Helpful-v0")
    assert rows_of("single", steps=100) == [(f"{name}, steps/s", ">= 3.00") for name in names]


@pytest.mark.slow
def test_vector_environments_beside_cartpoles():
    goals = {("64", "Text"): 0.8, ("64", "Helpful"): 0.8, ("1024", "Text"): 0.4, ("1024", "Helpful"): 0.3}
    expected = [
        (f"{number} x textgym/{name}-v0{copy}, steps/s", f">= {goal:.2f}")
        for (number, name), goal in goals.items()
        for copy in ("", ", copy=False")
    ]
    turns = ("64 x textgym/Text-v0, two turns of 20, steps/s", ">= 0.60")
    assert rows_of("vector", steps=410) == [*expected, turns]


@needs_stories
@pytest.mark.long
def test_sampling_and_ppo_beside_generate():
    goals = {16: 2.0, 64: 2.5, 256: 2.0}
    sampling = [(f"tokens/s at batch {batch} through env.step", f">= {goal:.2f}") for batch, goal in goals.items()]
    sampling.append(("tokens/s at batch 64, of 1,024 prompts through env.step", ">= 2.50"))
    iterations = [
        (f"PPO iteration, 64 episodes, 4 epochs, kl={kl}, in units of model.generate", f"<= {goal}")
        for kl, goal in (("exact", 2.0), ("k1", 1.8))
    ]
    passes = ("forward and backward pass of the plain model over the same, in units of model.generate", "")
    assert rows_of("rollout", "ppo", model=STORIES, tokens=2) == [*sampling, *iterations, passes]


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
