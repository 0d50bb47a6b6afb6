"""Dashboards: what a run sends them, through accelerate's trackers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from textgym_agents.config import MeasureSettings
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.trackers import Trackers

from textgym.files import read_json

SAMPLES = [{"iteration": 1, "prompt": "a|b", "completion": "c\nd", "reward": 0.5, "terms": {"x": 1.0}}]
ROW = {"iteration": 1, "episode": 8, "objective/kl": 0.25, "eval/optimality": None}


def track(path, names):
    """Write two rows, of which the first has a sample, and return the run's folder."""
    folder = RunFolder.create(path, {"track": names, "config": {"seed": 3}})
    with folder.writing():
        folder.sample(SAMPLES)
        folder.log(ROW)
        folder.log(ROW | {"episode": 16})
    return folder.path


def test_tensorboard_shows_completions_as_a_table_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(track(tmp_path / "run", "tensorboard") / "tensorboard")).Reload()
    (table,) = events.Tensors("samples/text_summary")
    want = b"| prompt | completion | reward |\n| --- | --- | --- |\n| a\\|b | c<br>d | 0.5 |"
    assert (table.step, table.tensor_proto.string_val[0]) == (8, want)


def logged(data):
    """Yield the records of a log of blocks of 32 KiB, as LevelDB's are, behind a header of 7 bytes."""
    place, parts = 7, []
    while place < len(data):
        left = 2**15 - place % 2**15
        if left < 7:  # too little for a record: padding
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part; 2 and 3 are parts before it
            yield b"".join(parts)
            parts = []


@pytest.mark.long
def test_wandb_offline_holds_settings_numbers_and_a_table(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    path = track(tmp_path / "run", "wandb")
    wandb.teardown()  # waits for the service, which writes the file's end after `finish` has returned
    (file,) = path.glob("wandb/offline-run-*/*.wandb")
    history, config = [], {}
    for data in logged(file.read_bytes()):
        record = Record.FromString(data)
        config |= {item.key: item.value_json for item in record.config.update}
        if record.HasField("history"):
            history.append({item.key or ".".join(item.nested_key): item.value_json for item in record.history.item})
    assert [row["objective/kl"] for row in history] == ["0.25", "0.25"]
    assert [row["_step"] for row in history] == ["8", "16"]
    assert any(name.startswith("samples") for name in history[0])
    (table,) = path.rglob("*.table.json")
    assert read_json(table)["data"] == [["a|b", "c\nd", 0.5]]
    assert json.loads(config["config"]) == {"seed": 3}
    held = [each for each in path.rglob("*") if each.is_file()]
    assert not any(b"0123456789" * 4 in each.read_bytes() for each in held)


@pytest.mark.slow
def test_trackio_holds_settings_numbers_and_a_table(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (trackio, sqlite_storage, utils):
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    track(tmp_path / "run", "trackio")
    store = sqlite_storage.SQLiteStorage
    (name,) = store.get_runs("textgym")
    assert name.startswith("run-")
    logged = store.get_logs("textgym", name)
    assert [(row["step"], row["objective/kl"]) for row in logged] == [(8, 0.25), (16, 0.25)]
    assert logged[0]["samples"]["_value"] == [{"prompt": "a|b", "completion": "c\nd", "reward": 0.5}]
    assert "samples" not in logged[1]


def test_trackers_are_checked_before_a_run_has_a_folder(monkeypatch):
    with pytest.raises(ValueError, match=r"track 'tensorbord'.*Did you mean 'tensorboard'"):
        MeasureSettings(track="tensorbord")
    monkeypatch.setattr("textgym_agents.training.trackers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'wandb is not installed: pip install "textgym\[track\]"'):
        MeasureSettings(track="tensorboard,wandb")
    assert MeasureSettings().track == "tensorboard"  # which may be missing


def test_numbers_of_numpy_are_logged_and_a_track_that_is_no_text_is_named():
    logged = []
    trackers = Trackers.__new__(Trackers)
    trackers._open = [SimpleNamespace(name="wandb", log=lambda row, step: logged.append(row))]
    trackers.log({"a": np.float32(1.5), "b": np.int64(3), "c": 2.0, "d": "text", "e": None}, 1)
    assert logged == [{"a": 1.5, "b": 3, "c": 2.0}]
    with pytest.raises(ValueError, match="track=None: allowed is a text"):
        MeasureSettings(track=None)
