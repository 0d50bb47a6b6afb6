"""Engines: the same values whichever runs the jobs; what fails or dies takes nothing else with it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from fake_cells import sources
from textgym_benchmarks.engines import Job, make_engine
from textgym_benchmarks.engines.jobs import call, fresh_python, reply_line, search_path
from textgym_benchmarks.engines.ray_engine import Ray, _task

pytestmark = pytest.mark.slow

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
    assert {key: event.value for key, event in ended.items() if key != "f"} == {f"d{i}": 2 * (i / 3) for i in range(5)}
    failure = ended["f"].failure
    message, _, place = failure.message.partition(" (")
    assert (failure.type, message, failure.attempts) == ("ValueError", "7 is no good", 1)
    assert "fake_cells.py, line 104: raise ValueError" in place
    assert "fake_cells.py" in failure.traceback
    assert sorted(event.key for event in events if event.kind == "started") == sorted(ended)
    assert made.cpu_seconds >= 0


@pytest.mark.long
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
        assert "fewer workers take less" in failure.message
        assert "my last words" in failure.message


def test_the_pool_keeps_its_processes_and_gives_each_one_thread():
    made, events = run("pool", [job(f"p{i}", "process") for i in range(6)])
    values = [event.value for event in finished(events).values()]
    assert len({value["pid"] for value in values} - {os.getpid()}) <= 2
    assert {value["threads"] for value in values} == {"1"}
    assert made.cpu_seconds > 0


@pytest.mark.parametrize("engine", MORE_THAN_ONE)
def test_a_value_that_is_no_json_fails_its_job(engine):
    ended = finished(run(engine, [job("n", "no_json"), job("d", "double", number=1)], workers=1)[1])
    assert ended["n"].failure.type == "TypeError"
    assert ended["d"].value == 2


def test_jobs_start_in_their_order_and_closing_stops_them():
    made = make_engine("pool", 1)
    events = made.run([job(f"d{i}", "double", number=i) for i in range(3)])
    assert [next(events).key for _ in range(3)] == ["d0", "d0", "d1"]
    events.close()
    assert made.cpu_seconds > 0


@pytest.mark.parametrize("name", ["serial", "pool", RAY])
def test_a_job_is_chosen_when_a_worker_is_free_for_it(name):
    engine, known = make_engine(name, None if name == "serial" else 2), []

    def jobs():
        for number in range(5):
            yield job(str(number), "double", number=len(known))

    values = []
    for event in engine.run(jobs()):
        if event.kind == "finished":
            known.append(event.key)
            values.append(event.value)
    # Job n was made when n jobs, or all but those that ran, were known to have finished.
    assert sorted(known) == list("01234")
    assert sorted(values) == [2 * max(number + 1 - engine.workers, 0) for number in range(5)]


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


@pytest.fixture
def hostile(monkeypatch, tmp_path):
    """A current folder with another textgym and modules that nobody may import; beside it one on the path."""
    folder, beside = tmp_path / "here", tmp_path / "a:b"
    (folder / "textgym").mkdir(parents=True)
    for name in ("textgym/__init__", "textgym_benchmarks", "random", "json", "socket"):
        (folder / f"{name}.py").write_text("raise SystemExit('taken from the current folder')")
    beside.mkdir()
    (beside / "colon_cells.py").write_text("from fake_cells import sources as where")
    monkeypatch.syspath_prepend(beside)
    monkeypatch.chdir(folder)
    return beside


def test_workers_run_the_code_of_whoever_starts_them(hostile):
    events = run("pool", [Job("w", "colon_cells:where", {})], workers=1)[1]
    assert finished(events)["w"].value == sources()


def test_a_fresh_interpreter_finds_the_same_modules(hostile):
    code = "import json, colon_cells; print(json.dumps(colon_cells.where()))"
    done = subprocess.run(fresh_python(code), check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == sources()


def test_workers_of_ray_run_the_code_of_whoever_starts_them(hostile):
    cloudpickle = pytest.importorskip("cloudpickle")
    # As Ray does it: the current folder comes right after the script's, and the task as bytes.
    code = (
        "import sys, os, cloudpickle\n"
        "sys.path.insert(1, os.getcwd())\n"
        "task = cloudpickle.loads(sys.stdin.buffer.read())\n"
        "print(task('colon_cells:where', '{}'))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        input=cloudpickle.dumps(_task(search_path())),
        check=True,
        capture_output=True,
    )
    assert json.loads(done.stdout)["value"] == sources()


def test_workers_are_interrupted_where_ctrl_c_is_ignored(monkeypatch, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        events = make_engine("pool", 1).run([job("w", "wait", flag=str(tmp_path / "interrupted"))])
        assert next(events).kind == "started"
        while not (tmp_path / "interrupted.begun").exists():
            time.sleep(0.02)
        events.close()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "interrupted").exists()


def test_a_worker_without_memory_names_a_remedy():
    ended = finished(run("serial", [job("m", "no_memory")])[1])
    assert "out of memory: a smaller batch" in ended["m"].failure.message


class RayError(Exception):
    """Stands for Ray's own."""


class WorkerCrashedError(RayError):
    """One of those that mean a dead worker."""


class LocalRayletDiedError(RayError):
    """One of those that mean that Ray is lost."""


def fake_ray(outcomes):
    """What the engine uses of Ray; a reference is a place in `outcomes`, which has what is returned or raised."""

    def get(reference):
        if isinstance(outcomes[reference], Exception):
            raise outcomes[reference]
        return outcomes[reference]

    numbers = iter(range(len(outcomes)))
    errors = SimpleNamespace(
        RayError=RayError,
        WorkerCrashedError=WorkerCrashedError,
        OutOfMemoryError=type("OutOfMemoryError", (RayError,), {}),
        NodeDiedError=type("NodeDiedError", (RayError,), {}),
    )
    return SimpleNamespace(
        init=lambda *_, **__: None,
        shutdown=lambda: None,
        remote=lambda **_: lambda _: SimpleNamespace(remote=lambda *_: next(numbers)),
        wait=lambda references, num_returns: (references[:num_returns], references[num_returns:]),
        get=get,
        exceptions=errors,
    )


def test_a_lost_cluster_fails_no_job(monkeypatch):
    good = reply_line(call("fake_cells:double", {"number": 1}))
    lost = LocalRayletDiedError("the raylet is gone")
    monkeypatch.setitem(sys.modules, "ray", fake_ray([good, WorkerCrashedError("killed"), lost, good]))
    events = []
    with pytest.raises(RuntimeError, match="no job is to blame: LocalRayletDiedError: the raylet is gone"):
        events.extend(Ray(2).run([job(key, "double", number=1) for key in "abcd"]))  # keeps those before the error
    ended = finished(events)
    assert list(ended) == ["a", "b"]
    assert ended["a"].value == 2
    assert (ended["b"].failure.type, ended["b"].failure.message) == (
        "WorkerDied",
        "WorkerCrashedError: killed",
    )


def test_what_is_no_json_is_an_error_of_the_job():
    reply = json.loads(reply_line(call("fake_cells:no_json", {})))
    assert reply["error"]["type"] == "TypeError"
    assert reply["cpu"] >= 0
