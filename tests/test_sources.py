"""Which sources run: one checkout, known by a digest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_tools import COMMAND, ROOT, assert_one_line, environment, run

import textgym.sources as sources

PACKAGES = ("textgym", "agents/textgym_agents", "benchmarks/textgym_benchmarks")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A checkout of a few lines in place of the installed one."""
    for place in PACKAGES:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "__init__.py").write_text("# one")
    folders = {Path(place).name: tmp_path / place for place in PACKAGES}
    monkeypatch.setattr(sources, "_packages", lambda: folders)
    return tmp_path


def test_the_digest_is_of_every_file(small):
    def digest():
        return sources.source_digest.__wrapped__()

    first = digest()
    assert re.fullmatch("[0-9a-f]{12}", first)
    (small / "textgym" / "__pycache__").mkdir()
    (small / "textgym" / "__pycache__" / "a.pyc").touch()
    (small / "README.md").touch()
    assert digest() == first
    seen = {first}
    for place in PACKAGES:
        (small / place / "__init__.py").write_text("# two")
        seen.add(digest())
    (small / "textgym" / "weights").write_bytes(b"\0")
    seen.add(digest())
    (small / "textgym" / "weights").rename(small / "textgym" / "other")
    assert len(seen | {digest()}) == 6


def test_all_of_them_come_from_one_folder(small):
    assert sources.source_folder() == small
    shutil.copytree(small / "textgym", small / "installed" / "textgym")
    sources._packages()["textgym"] = small / "installed" / "textgym"
    with pytest.raises(ValueError, match=r"two checkouts are mixed \(textgym from .*installed, textgym_agents from"):
        sources.source_folder()
    for place in PACKAGES[1:]:
        shutil.copytree(small / place, small / "installed" / Path(place).name)
        sources._packages()[Path(place).name] = small / "installed" / Path(place).name
    assert sources.source_folder() == small / "installed"  # as wheels are


def test_the_version_names_them(capsys):
    _, out, _ = run(capsys, "--version")
    assert out.endswith(f", source {sources.source_digest()} in {ROOT}\n")


@pytest.fixture
def other(tmp_path):
    """Another checkout, which does not work as this one; in its folder lies what nobody may import."""
    checkout = tmp_path / "other: checkout"
    for place in PACKAGES:
        # Bytecode is copied, too, as far as it is written: it is of these bytes and times.
        shutil.copytree(ROOT / place, checkout / place, ignore=shutil.ignore_patterns("*.pyc.*"))
    with (checkout / "textgym" / "tasks" / "__init__.py").open("a") as file:
        file.write("\n# not as it was")
    (checkout / "random.py").write_text("raise SystemExit('taken from the current folder')")
    return checkout


def started(command, folder, *words, path=None):
    return subprocess.run(
        [*command, *words],
        cwd=folder,
        env=environment() | ({} if path is None else {"PYTHONPATH": path}),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_python_m_in_another_checkout_is_refused_and_not_mixed(other):
    (other / "random.py").unlink()
    done = started([COMMAND[0], "-m", "textgym.cli"], other, "list")
    assert_one_line(done.returncode, done.stderr, "two checkouts are mixed", f"textgym from {other}", str(ROOT))
    assert not done.stdout


@pytest.mark.long
def test_two_checkouts_give_each_its_own_numbers(other, tmp_path):
    # A folder with a colon has no place in PYTHONPATH: the second checkout is named by a link.
    (tmp_path / "second").symlink_to(other)
    roots = ("", "agents", "benchmarks")
    theirs = os.pathsep.join(str(tmp_path / "second" / root) for root in roots)
    words = ("bench", "--tasks", "Bandit-v0", "--agents", "random", "--episodes", "8", "--seeds", "1", "--workers", "1")
    digests = []
    for name, path in (("ours", None), ("theirs", theirs)):
        done = started(COMMAND, other, *words, "--out", str(tmp_path / name), path=path)
        assert done.returncode == 0, done.stderr
        (other / "random.py").unlink(missing_ok=True)  # PYTHONPATH would name it, too
        shown = started(COMMAND, other, "--version", path=path).stdout
        found = {
            re.search(r'"source": "(\w+)"', file.read_text())[1]
            for pattern in ("suite.json", "cells/*/result.json", "cells/*/run/config.json")
            for file in (tmp_path / name).glob(pattern)
        }
        assert len(found) == 1
        assert f"source {min(found)} in {ROOT if name == 'ours' else other}" in shown
        digests += found
    assert len(set(digests)) == 2
