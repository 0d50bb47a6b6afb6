"""Engines: the same values whichever runs the jobs; what fails or dies takes nothing else with it."""

from __future__ import annotations

import importlib.util
import os

import pytest
from textgym_benchmarks.engines import Job, make_engine

NO_RAY = importlib.util.find_spec("ray") is None
RAY = pytest.param(
    "ray",
    marks=[pytest.mark.slow, pytest.mark.skipif(NO_RAY, reason='needs ray: pip install "textgym[dist]"')],
)
MORE_THAN_ONE = ["pool", RAY]


def job(key, function, **arguments):
    return Job(key, f"fake_cells:{function}", arguments)


def run(engine, jobs, workers=2):
    made = make_engine(engine, None if engine == "serial" else workers)
    return made, list(made.run(jobs))


def finished(events):
    return {event.key: event for event in events if event.kind == "finished"}


@pytest.mark.parametrize("engine", ["serial", *MORE_THAN_ONE])
def test_values_and_failures_come_back(engine):
    jobs = [job(f"d{i}", "double", number=i / 3) for i in range(5)] + [job("f", "fail", number=7)]
    made, events = run(engine, jobs)
    ended = finished(events)
    assert {key: event.value for key, event in ended.items() if key != "f"} == {
        f"d{i}": 2 * (i / 3) for i in range(5)
    }
    failure = ended["f"].failure
    assert (failure.type, failure.message, failure.attempts) == ("ValueError", "7 is no good", 1)
    assert "fake_cells.py" in failure.traceback
    assert sorted(event.key for event in events if event.kind == "started") == sorted(ended)
    assert made.cpu_seconds() >= 0


@pytest.mark.parametrize("engine", MORE_THAN_ONE)
def test_a_dying_process_takes_nothing_with_it(engine, tmp_path):
    jobs = [
        job("once", "die_once", number=3, flag=str(tmp_path / "flag")),
        job("always", "die", number=1),
        *(job(f"d{i}", "double", number=i) for i in range(3)),
    ]
    ended = finished(run(engine, jobs)[1])
    assert ended["once"].value == 6
    assert [ended[f"d{i}"].value for i in range(3)] == [0, 2, 4]
    failure = ended["always"].failure
    assert (failure.type, failure.attempts) == ("WorkerDied", 3)
    if engine == "pool":
        assert "SIGKILL" in failure.message
        assert "my last words" in failure.message


def test_the_pool_keeps_its_processes_and_gives_each_one_thread():
    made, events = run("pool", [job(f"p{i}", "process") for i in range(6)])
    values = [event.value for event in finished(events).values()]
    assert len({value["pid"] for value in values} - {os.getpid()}) <= 2
    assert {value["threads"] for value in values} == {"1"}
    assert made.cpu_seconds() > 0


def test_a_value_that_is_no_json_fails_its_job():
    ended = finished(run("pool", [job("n", "no_json"), job("d", "double", number=1)], workers=1)[1])
    assert ended["n"].failure.type == "TypeError"
    assert ended["d"].value == 2


def test_jobs_start_in_their_order_and_closing_stops_them():
    made = make_engine("pool", 1)
    events = made.run([job(f"d{i}", "double", number=i) for i in range(3)])
    assert [next(events).key for _ in range(3)] == ["d0", "d0", "d1"]
    events.close()
    assert made.cpu_seconds() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pol",), "Did you mean 'pool'"),
        (("pool", 0), "workers=0"),
        (("serial", 2), "workers=2"),
        (("pool", 2, "local"), "address='local'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_engine(*arguments)


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "textgym\[dist\]"'):
        make_engine("ray")


def test_where_no_worker_can_start_no_job_is_to_blame(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    kinds = []
    with pytest.raises(RuntimeError, match="workers cannot start: the worker process ended: exit code 1"):
        kinds.extend(event.kind for event in make_engine("pool", 1).run([job("d", "double", number=1)]))
    assert "finished" not in kinds
