"""A full disk: its place is named; a cell that it stopped stays open, a report that it stopped is built anew."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from fake_cells import tiny_suite
from textgym_benchmarks.pages import check_folder, generator, write_folder
from textgym_benchmarks.run.runner import run_suite

from textgym.interrupts import DiskFullError, disk_full, disk_full_at

PAGE = f'<meta name="generator" content="{generator("report")}">'
FILES = {"index.html": PAGE, "base.css": "b", "cells/one.html": "c", "cells/two.html": b"d"}


def full_at(monkeypatch, write):
    """Every write from a number on finds the disk full, and leaves a part of its file."""
    writes = []
    whole = Path.write_bytes

    def write_bytes(path, content):
        writes.append(path)
        if len(writes) < write:
            return whole(path, content)
        whole(path, content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("write", range(1, len(FILES) + 2))
def test_a_report_that_a_full_disk_stopped_is_built_anew(monkeypatch, tmp_path, write):
    with monkeypatch.context() as patches:
        full_at(patches, write)
        with pytest.raises(DiskFullError, match=r"No space left on device; make space, then run it again: '.*out'"):
            write_folder(tmp_path / "out", FILES, "report")
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]  # nothing half written
    check_folder(tmp_path / "out", "report")
    write_folder(tmp_path / "out", FILES, "report")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*.*")}
    assert found == set(FILES)
    assert (tmp_path / "out" / "index.html").read_text() == PAGE


@pytest.mark.parametrize("write", [1, 3])
def test_a_report_that_is_there_stays_one(monkeypatch, tmp_path, write):
    write_folder(tmp_path / "out", FILES, "report")
    with monkeypatch.context() as patches:
        full_at(patches, write)
        with pytest.raises(DiskFullError):
            write_folder(tmp_path / "out", FILES | {"index.html": PAGE + "new"}, "report")
    assert (tmp_path / "out" / "index.html").read_text() == PAGE


def test_another_folder_is_no_report_for_all_that(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="no report"):
        write_folder(tmp_path, FILES, "report")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "pool"])
def test_a_cell_that_a_full_disk_stopped_stays_open(tmp_path, engine):
    flag = tmp_path / "suite" / "full"
    with pytest.raises(DiskFullError, match="run the same command again, which goes on") as raised:
        run_suite(tiny_suite(), flag.parent, None, engine, 1, function="fake_cells:until_there_is_space")
    assert raised.value.filename == str(flag.parent)
    assert not list(flag.parent.rglob("result.json"))
    (flag.parent / "space").touch()
    results = run_suite(tiny_suite(), flag.parent, None, engine, 1, function="fake_cells:until_there_is_space")
    assert [result.status for result in results] == ["done"] * 4


def test_a_full_disk_while_the_times_are_written_is_one_too(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("textgym_benchmarks.run.runner._write_timing", full)
    with pytest.raises(DiskFullError, match="Disk quota exceeded; make space"):
        run_suite(tiny_suite(), tmp_path / "suite", None, "serial", function="fake_cells:quick")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "a.json"),
        OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("File too large (os error 27)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    ],
)
def test_a_full_disk_is_found_in_what_libraries_make_of_it(error):
    wrapped = ValueError("the model could not be saved")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        assert disk_full(each) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        with pytest.raises(DiskFullError) as raised, disk_full_at("here", "go on"):
            raise each
        assert (raised.value.filename, raised.value.__cause__) == ("here", each)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("os error 2)"), KeyError(28)])
def test_another_error_is_none(error):
    with pytest.raises(type(error)) as raised, disk_full_at("here"):
        raise error
    assert raised.value is error


def test_the_place_that_was_found_first_is_named():
    with pytest.raises(DiskFullError, match="inner"), disk_full_at("outer"), disk_full_at("inner"):
        raise OSError(errno.ENOSPC, "No space left on device")
