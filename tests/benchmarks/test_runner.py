"""The runner: nothing finished runs twice, nothing broken is lost, nothing failed is hidden."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from fake_cells import tiny_suite, value_of
from textgym_benchmarks.results.store import load_results
from textgym_benchmarks.run.runner import BenchInterrupted, BenchWatcher, Progress, busy_share, run_suite
from textgym_benchmarks.suite import Cell, Evaluation, Suite
from textgym_benchmarks.suite_folder import cell_folder, hold, open_suite
from textgym_benchmarks.suites import cost

SUITE = tiny_suite()


def run(out, function="quick", suite=SUITE, engine="serial", **more):
    return run_suite(suite, out, engine=engine, function=f"fake_cells:{function}", **more)


def calls(out, suite=SUITE):
    files = [cell_folder(out, cell) / "calls" for cell in suite.cells]
    return [len(file.read_text()) if file.exists() else 0 for file in files]


def scores(results):
    return [result.measures and result.measures["after"]["optimality"]["mean"] for result in results]


def test_a_rerun_skips_what_is_finished(tmp_path):
    first = run(tmp_path)
    assert scores(first) == [value_of(cell) for cell in SUITE.cells]
    assert [result.cell for result in first] == list(SUITE.cells)
    again = run(tmp_path)
    assert again == first == load_results(tmp_path)
    assert calls(tmp_path) == [1, 1, 1, 1]


def test_only_cells_without_a_result_run(tmp_path):
    run(tmp_path)
    (cell_folder(tmp_path, SUITE.cells[2]) / "result.json").unlink()
    run(tmp_path)
    assert calls(tmp_path) == [1, 1, 2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "pool"])
def test_a_failing_cell_is_recorded_and_stays_failed_until_asked_for(tmp_path, engine):
    results = run(tmp_path, "rloo_fails", engine=engine)
    assert [result.status for result in results] == ["done", "done", "failed", "failed"]
    error = results[2].error
    assert (error["type"], error["attempts"]) == ("RuntimeError", 1)
    assert error["message"].startswith("no\nluck (")  # and the line of the user's file
    assert "rloo_fails" in error["traceback"]
    assert results[2].family == "diagnostics"
    if engine == "pool":
        return
    assert [result.status for result in run(tmp_path)] == ["done", "done", "failed", "failed"]
    mended = run(tmp_path, retry_failed=True)
    assert scores(mended) == [value_of(cell) for cell in SUITE.cells]
    assert calls(tmp_path) == [1, 1, 1, 1]
    kept = json.loads((cell_folder(tmp_path, SUITE.cells[2]) / "failed-1.json").read_text())
    assert kept["error"]["message"] == error["message"]


@pytest.mark.slow
def test_killing_workers_of_the_pool_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # which would write out what a worker prints at once
    once = run(tmp_path / "once", "rloo_dies_once", engine="pool")
    assert scores(once) == scores(run(tmp_path / "serial"))
    always = run(tmp_path / "always", "rloo_dies", engine="pool")
    assert [result.status for result in always] == ["done", "done", "failed", "failed"]
    assert (always[2].error["type"], always[2].error["attempts"]) == ("WorkerDied", 3)
    assert "my last words" in always[2].error["message"]


def test_ctrl_c_leaves_what_can_be_gone_on_with(tmp_path):
    with pytest.raises(BenchInterrupted, match="2 of 4 cells are done; the same command"):
        run(tmp_path, "rloo_is_interrupted")
    assert [result.status for result in load_results(tmp_path)] == ["done", "done", "missing", "missing"]
    assert scores(run(tmp_path)) == [value_of(cell) for cell in SUITE.cells]
    assert calls(tmp_path) == [1, 1, 1, 1]


def test_ctrl_c_counts_what_a_worker_has_written_before_it_was_heard_of(tmp_path, monkeypatch):
    heard = Progress.finish

    def finish(progress, key, result):
        if progress.count("done"):
            raise KeyboardInterrupt
        heard(progress, key, result)

    monkeypatch.setattr(Progress, "finish", finish)
    with pytest.raises(BenchInterrupted, match="2 of 4 cells are done"):
        run(tmp_path)
    assert [result.status for result in load_results(tmp_path)] == ["done", "done", "missing", "missing"]


def test_ctrl_c_at_the_end_of_a_cell_keeps_the_cell_and_stops_the_others(tmp_path):
    with pytest.raises(BenchInterrupted, match="3 of 4 cells are done"):
        run(tmp_path, "rloo_is_asked_to_stop")
    assert [result.status for result in load_results(tmp_path)] == ["done", "done", "done", "missing"]


@pytest.mark.slow
def test_ctrl_c_ends_the_processes_of_the_pool(tmp_path):
    suite = tiny_suite(("lm-ppo",), 1)
    pid_file = cell_folder(tmp_path, suite.cells[0]) / "pid"

    def press():
        until = time.monotonic() + 60
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(BenchInterrupted):
        run(tmp_path, "hangs", suite, "pool")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert scores(run(tmp_path, suite=suite)) == [value_of(suite.cells[0])]


def test_a_cell_at_work_elsewhere_is_left_alone(tmp_path):
    run_suite(SUITE, tmp_path, engine="serial", function="fake_cells:rloo_fails")
    folder = cell_folder(tmp_path, SUITE.cells[0])
    (folder / "result.json").unlink()
    with hold(folder):
        results = run(tmp_path)
    assert [result.status for result in results] == ["missing", "done", "failed", "failed"]
    assert calls(tmp_path)[0] == 1


def test_a_folder_of_another_suite_is_refused_with_what_differs(tmp_path):
    run(tmp_path)
    before = (tmp_path / "suite.json").read_bytes()
    other = Suite("other", SUITE.cells[1:], evaluation=Evaluation(points=3, per_prompt=1))
    with pytest.raises(ValueError, match="holds another suite") as caught:
        run(tmp_path, suite=other)
    for part in ("name 'tiny', asked for is 'other'", "evaluation.points=1"):
        assert part in str(caught.value)
    assert (tmp_path / "suite.json").read_bytes() == before
    run(tmp_path, suite=replace(SUITE, description="told otherwise"))


def test_a_suite_of_another_format_is_refused_with_what_to_do(tmp_path):
    run(tmp_path)
    path = tmp_path / "suite.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    for read in (run, load_results):
        with pytest.raises(ValueError, match="holds a suite in format 1; allowed is format 2: start anew in another"):
            read(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"holds 'mine\.txt' but no suite"):
        run(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        run(tmp_path / "mine.txt")


def test_the_longest_cells_start_first_and_the_time_is_written_down(tmp_path):
    cells = tuple(Cell("textgym/Bandit-v0", "lm-ppo", episodes, 0) for episodes in (64, 64_000, 6_400))
    suite = Suite("lengths", cells)
    begun = []

    class Notes(BenchWatcher):
        def changed(self, key):
            begun.append(key)

    run(tmp_path, suite=suite, watcher=Notes())
    assert list(dict.fromkeys(begun)) == [cells[i].key for i in (1, 2, 0)]
    row = json.loads((tmp_path / "timing.json").read_text())["runs"][-1]
    assert row["cells"] == 3
    assert row["busy"] == pytest.approx(row["cpu_seconds"] / (row["wall_seconds"] * row["cores"]))
    assert busy_share(tmp_path) == row["busy"]


def test_time_left_by_hand():
    cells = [Cell("textgym/Bandit-v0", "lm-ppo", 1000 * n, 0) for n in (1, 2, 3, 4)]
    plan = [cost(cell) for cell in cells]
    progress = Progress(cells, workers=2)
    assert progress.time_left(0.0) is None
    progress.start(cells[0].key, 0.0)
    progress.start(cells[1].key, 0.0)
    progress.finish(cells[0].key, {"status": "done"}, 10 * plan[0])  # ten times as long as planned
    # Of the second, 10 (p1 - p0) seconds are left; two more wait; two workers share them.
    total = 10 * (plan[1] - plan[0]) + 10 * plan[2] + 10 * plan[3]
    expected = max(total / 2, 10 * plan[3])
    assert progress.time_left(10 * plan[0]) == pytest.approx(expected)


def test_the_end_of_a_cell_that_was_never_said_to_run_is_no_pace():
    cells = [Cell("textgym/Bandit-v0", "lm-ppo", 1000 * n, 0) for n in (1, 2)]
    progress = Progress(cells, workers=1)
    progress.finish(cells[0].key, {"status": "done"}, 5.0)
    assert progress.status[cells[0].key] == "done"
    assert progress.finished_now == [cells[0].key]
    assert progress.time_left(5.0) is None


@pytest.mark.slow
@pytest.mark.parametrize("save", [False, True])
def test_a_checkpoint_is_kept_where_it_is_asked_for(tmp_path, save):
    suite = Suite("one", (REAL.cells[0],), evaluation=REAL.evaluation)
    run_suite(suite, tmp_path, engine="serial", save=save)
    assert (cell_folder(tmp_path, suite.cells[0]) / "run" / "checkpoint").is_dir() == save


REAL = Suite(
    "real",
    (
        Cell("textgym/Bandit-v0", "lm-ppo", 128, 0),
        Cell("textgym/Delayed-v0", "rloo", 128, 1),
        Cell("textgym/Delayed-v0", "q-learning", 128, 0),
    ),
    evaluation=Evaluation(points=2, per_prompt=1, final_per_prompt=2, optimum_per_prompt=4, samples=1),
)


def numbers(results):
    """All that must not depend on where a cell ran."""
    assert [result.status for result in results] == ["done"] * len(results), [r.error for r in results]
    return [json.dumps([result.cell.key, result.family, result.measures]) for result in results]


@pytest.mark.long
@pytest.mark.slow
def test_serial_and_pool_agree_to_the_last_bit(tmp_path):
    assert numbers(run_suite(REAL, tmp_path / "serial", engine="serial")) == numbers(
        run_suite(REAL, tmp_path / "pool", engine="pool", workers=1)
    )


@pytest.mark.slow
def test_ray_agrees_to_the_last_bit_and_loses_nothing_when_a_worker_is_killed(tmp_path):
    pytest.importorskip("ray", reason='needs ray: pip install "textgym[dist]"')
    killed = run_suite(SUITE, tmp_path / "killed", engine="ray", workers=2, function="fake_cells:rloo_dies_once")
    assert scores(killed) == [value_of(cell) for cell in SUITE.cells]
    assert numbers(run_suite(REAL, tmp_path / "ray", engine="ray", workers=2)) == numbers(
        run_suite(REAL, tmp_path / "serial", engine="serial")
    )


def test_a_folder_that_becomes_a_suite_while_it_is_looked_at_is_one(monkeypatch, tmp_path):
    whole = type(tmp_path).iterdir

    def iterdir(path):
        with monkeypatch.context() as patches:
            patches.setattr(type(tmp_path), "iterdir", whole)
            open_suite(path, tiny_suite())
        return whole(path)

    monkeypatch.setattr(type(tmp_path), "iterdir", iterdir)
    assert open_suite(tmp_path, tiny_suite()) == tmp_path


@pytest.mark.slow
def test_runners_that_start_at_once_share_a_new_folder(tmp_path):
    for number in range(20):
        together = threading.Barrier(4)

        def start(folder, together=together):
            together.wait()
            return open_suite(folder, tiny_suite())

        with ThreadPoolExecutor(4) as threads:
            assert set(threads.map(start, [tmp_path / str(number)] * 4)) == {tmp_path / str(number)}
