"""The files of a run: never overwritten, never half written, put back to the checkpoint when a run goes on."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest
from textgym_agents.registry import load_agent, make_env
from textgym_agents.training.folder import RunFolder, run_folder, run_of

from textgym.files import plain, read_json, read_lines, write_json
from textgym.interrupts import first_interrupt


def test_json_is_plain_json():
    data = {
        "a": np.float64("nan"),
        "b": [math.inf, np.int64(3)],
        "c": np.array([1.5]),
        "d": Path("x"),
        4: True,
    }
    assert plain(data) == {"a": None, "b": [None, 3], "c": [1.5], "d": "x", "4": True}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_what_is_no_json_object_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"iteration": 0}\n{"iteration": 1}\n{"iterat')
    assert read_lines(tmp_path / "m.jsonl") == [{"iteration": 0}, {"iteration": 1}]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"iteration": 0}\nnonsense\n{"iteration": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_lines(tmp_path / "m.jsonl")


def test_a_run_is_none_then_interrupted_then_finished(tmp_path):
    path = tmp_path / "deep" / "run"
    assert RunFolder(path).state() == "none"
    with pytest.raises(ValueError, match="holds no run"):
        RunFolder.reopen(path)
    folder = RunFolder.create(path, {"id": "x"})
    assert folder.config() == {"format": 2, "id": "x"}
    assert folder.state() == "interrupted"
    with pytest.raises(ValueError, match="resume it"):
        RunFolder.create(path, {})
    assert RunFolder.reopen(path).config() == {"format": 2, "id": "x"}
    folder.finish({"after": 1})
    for start in (lambda: RunFolder.create(path, {}), lambda: RunFolder.reopen(path)):
        with pytest.raises(ValueError, match="finished run"):
            start()
    assert read_json(path / "result.json") == {"after": 1}


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty"):
        RunFolder.create(tmp_path, {})
    with pytest.raises(ValueError, match="not empty"):
        RunFolder.create(tmp_path / "thesis.txt", {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_start_that_was_killed_as_it_wrote_its_config_can_be_made_again(tmp_path):
    (tmp_path / ".config.json.123").write_text("{")
    (tmp_path / ".lock").touch()
    assert RunFolder.create(tmp_path, {}).state() == "interrupted"


def test_of_several_that_start_at_once_each_has_a_folder_of_its_own(tmp_path):
    together = Barrier(8)

    def start(_):
        together.wait()
        with run_folder(None, "demo", tmp_path / "runs") as path:
            RunFolder.create(path, {})
            return path

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(start, range(8)))) == 8


def test_of_several_that_start_in_one_folder_one_has_it(monkeypatch, tmp_path):
    together = Barrier(8)

    def slow_write(path, data):
        time.sleep(0.05)  # for others to find the folder free, if they could
        write_json(path, data)

    monkeypatch.setattr("textgym_agents.training.folder.write_json", slow_write)

    def start(number):
        together.wait()
        try:
            RunFolder.create(tmp_path / "run", {"number": number})
        except ValueError as error:
            return str(error)
        return number

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(start, range(8)))
    (winner,) = (outcome for outcome in outcomes if isinstance(outcome, int))
    assert RunFolder(tmp_path / "run").config()["number"] == winner
    assert all("run" in outcome for outcome in outcomes if outcome != winner)


def test_a_run_at_work_is_no_interrupted_one(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    with folder.writing():
        for look in (RunFolder.check_free, RunFolder.reopen):
            with pytest.raises(ValueError, match="another process is at work on this run"):
                look(tmp_path / "run")
        assert RunFolder(tmp_path / "run").state() == "running"
    assert RunFolder(tmp_path / "run").state() == "interrupted"


def test_asking_about_a_run_never_keeps_it_from_its_start(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    done = Event()

    def ask():
        while not done.is_set():
            RunFolder(tmp_path / "run").state()

    with ThreadPoolExecutor(4) as threads:
        askers = [threads.submit(ask) for _ in range(4)]
        try:
            for _ in range(50):
                with folder.writing(events=False):
                    pass
        finally:
            done.set()
        assert not any(asker.exception() for asker in askers)


def test_ctrl_c_that_a_process_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked = []
    try:
        with first_interrupt(lambda: asked.append(1)) as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert not interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert not asked


def test_rows_are_appended_at_once_and_are_strict_json(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    folder.log({"iteration": 1, "loss": float("nan")})
    folder.sample([{"iteration": 1, "completion": "a\nb\u2028\ud800"}])
    assert (folder.path / "metrics.jsonl").read_text() == '{"iteration": 1, "loss": null}\n'
    assert json.loads((folder.path / "samples.jsonl").read_text())["completion"] == "a\nb\u2028\ud800"


def test_going_on_drops_what_came_after_the_checkpoint(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    for iteration in range(5):
        folder.log({"iteration": iteration, "episode": 4 * iteration})
        folder.sample([{"iteration": iteration}] * 2)
    with folder.writing(rewind_to=2):
        assert [row["iteration"] for row in folder.metrics()] == [0, 1, 2]
        assert len(read_lines(folder.path / "samples.jsonl")) == 6


def test_one_process_writes_at_a_time(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    other = RunFolder.reopen(tmp_path / "run")
    with folder.writing(), pytest.raises(ValueError, match="another process"), other.writing():
        pass
    with other.writing():
        pass


def test_the_events_hold_the_metrics(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = RunFolder.create(tmp_path / "run", {})
    with folder.writing() as has_events:
        assert has_events
        folder.log({"iteration": 1, "episode": 8, "objective/kl": 0.25, "eval/optimality": None})
        folder.log({"iteration": 2, "episode": 16, "objective/kl": 0.5, "eval/optimality": 0.75})
    events = accumulator.EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("objective/kl")] == [(8, 0.25), (16, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("eval/optimality")] == [(16, 0.75)]


@pytest.mark.parametrize("held", [{}, {"format": 1}])
def test_a_run_of_another_format_is_refused_with_what_to_do(tmp_path, held):
    path = RunFolder.create(tmp_path / "run", {}).path
    (path / "config.json").write_text(json.dumps(held))
    for look in (RunFolder.reopen, lambda path: RunFolder(path).config()):
        with pytest.raises(ValueError, match=rf"run: holds a run in format {held.get('format')}; .*start anew in ano"):
            look(path)


def test_the_next_free_number(tmp_path):
    (tmp_path / "demo-1").mkdir()
    (tmp_path / "demo-2").touch()
    with run_folder(None, "demo", tmp_path) as path, run_folder(None, "demo", tmp_path) as other:
        assert (path, other) == (tmp_path / "demo-3", tmp_path / "demo-4")
        (path / "config.json").touch()
    assert path.is_dir()
    assert not other.exists()  # nothing was written to it
    with run_folder(tmp_path / "mine", "demo") as path:
        assert path == tmp_path / "mine"
        assert not path.exists()


def test_a_pipe_in_place_of_the_lock_is_refused_and_not_waited_for(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    (run.path / ".lock").unlink()
    os.mkfifo(run.path / ".lock")
    with pytest.raises(ValueError, match=r"\.lock: is no file"):
        run.state()


def test_a_log_without_seconds_is_named(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    assert run.seconds() == 0
    run.log({"iteration": 1})
    with pytest.raises(ValueError, match=r"metrics\.jsonl: the log .*seconds"):
        run.seconds()


def test_the_last_checkpoints_and_the_best_are_kept_and_share_their_files(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"keep_last": 2})
    folder.checkpoint.mkdir()
    for iteration, objective in enumerate((0.1, 0.4, 0.3, None, 0.2), start=1):
        (folder.checkpoint / "agent.json").unlink(missing_ok=True)  # as a save replaces it
        (folder.checkpoint / "agent.json").write_text(str(iteration))
        folder.log({"iteration": iteration, "eval/objective": objective})
        folder.mark(iteration)
    kept = {path.parent.name: path.read_text() for path in folder.path.glob("checkpoints/*/agent.json")}
    assert kept == {"2": "2", "4": "4", "5": "5"}
    assert read_json(folder.path / "checkpoints/best.json") == {"iteration": 2, "eval/objective": 0.4}
    assert (folder.checkpoint / "agent.json").samefile(folder.path / "checkpoints/5/agent.json")


def test_a_checkpoint_is_of_its_run_and_a_run_of_any_name_is_itself(tmp_path):
    for name in ("mine", "checkpoint", "checkpoints/7"):
        run = tmp_path / name
        (run / "checkpoint").mkdir(parents=True)
        (run / "config.json").write_text("{}")
        assert run_of(run) == run_of(run / "checkpoint") == run_of(run / "checkpoints" / "3") == run
    assert run_of(tmp_path) == tmp_path


@pytest.mark.parametrize("metrics", [None, ""])
def test_samples_of_a_row_that_was_not_written_are_dropped(tmp_path, metrics):
    folder = RunFolder.create(tmp_path / "run", {})
    folder.sample([{"iteration": 0}] * 2)  # and killed before the row
    if metrics is not None:
        (folder.path / "metrics.jsonl").write_text(metrics)
    with folder.writing(rewind_to=0):
        assert read_lines(folder.path / "samples.jsonl") == []


@pytest.mark.parametrize("marked", [1, 2])
def test_a_kill_between_a_checkpoint_and_its_mark_loses_no_checkpoint(tmp_path, marked):
    folder = RunFolder.create(tmp_path / "run", {"keep_last": 2})
    folder.checkpoint.mkdir()
    for iteration in (1, 2):
        (folder.checkpoint / "agent.json").unlink(missing_ok=True)
        (folder.checkpoint / "agent.json").write_text(str(iteration))
        folder.log({"iteration": iteration, "eval/objective": 0.1 * iteration})
        if iteration == 1:
            folder.mark(iteration)
    if marked == 2:  # killed behind the mark, before the link
        (folder.path / "progress.json").write_text('{"iteration": 2}')
    with folder.writing(rewind_to=2):
        assert folder.marked() == 2
    kept = {path.parent.name: path.read_text() for path in folder.path.glob("checkpoints/*/agent.json")}
    assert kept == {"1": "1", "2": "2"}
    assert read_json(folder.path / "checkpoints/best.json")["iteration"] == 2


def test_a_save_that_wrote_no_folder_is_no_checkpoint(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    for write in (lambda: None, lambda: folder.checkpoint.write_text("x")):
        write()
        with pytest.raises(ValueError, match=r"checkpoint: the agent's save wrote no folder there"):
            folder.mark(1)
    folder.log({"iteration": 0})
    with pytest.raises(ValueError, match="it is a run without a checkpoint"):
        load_agent(folder.path, make_env("textgym/Copy-v0", 2), "random")
