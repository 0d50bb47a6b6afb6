"""The command line on machines and in habits that are not the usual ones, as a user meets them."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from cli_tools import COMMAND, assert_one_line, child, environment, metrics, run, shell, until
from textgym_benchmarks.results.store import load_results

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, limits and rights of POSIX")
NOBODY = 65534
TINY = (
    "Bandit-v0",
    "--agent",
    "reinforce",
    "--episodes",
    "640",
    "--optimum-per-prompt",
    "1",
    "--final-per-prompt",
    "1",
)
PREFERENCES = ("preferences", "Bandit-v0", "--policy", "random", "--n", "8")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def background(*words, **options):
    """The command line in the background, as a shell's script starts it: it ignores Ctrl-C."""
    return subprocess.Popen(
        ["bash", "-c", '"$@" & wait $!', "bash", *COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        **options,
    )


@pytest.mark.long
def test_a_loop_over_seeds_in_the_background_has_a_folder_for_each():
    loop = 'for seed in 0 1; do "$@" & jobs="$jobs $!"; done; for job in $jobs; do wait $job || exit 1; done'
    done = shell(loop, "train", "Bandit-v0", "--agent", "random", "--episodes", "8", "--final-per-prompt", "1")
    assert (done.returncode, done.stderr) == (0, "")
    folders = sorted(Path("runs").iterdir())
    assert [folder.name for folder in folders] == [f"bandit-v0-random-{number}" for number in (1, 2)]
    assert all((folder / "result.json").exists() for folder in folders)


@pytest.mark.slow
def test_a_command_that_fails_gives_its_folder_back(capsys):
    assert_one_line(*run(capsys, "sft", "--data", "nothing.jsonl")[::2], "nothing.jsonl")
    assert not Path("runs").exists()
    Path("runs").mkdir()
    assert_one_line(*run(capsys, "sft", "--data", "nothing.jsonl")[::2], "nothing.jsonl")
    assert not list(Path("runs").iterdir())


@pytest.mark.long
def test_a_live_run_in_the_background(capsys):
    """It may be stopped and continued, is called what it is, ignores Ctrl-C, and can be read at any moment."""
    words = ("train", "Bandit-v0", "--agent", "reinforce", "--episodes", "3200", "--save-every", "0")
    words += ("--optimum-per-prompt", "1", "--final-per-prompt", "1")
    job = background(*words, "--out", "live")
    until(lambda: Path("live/metrics.jsonl").exists())
    os.killpg(job.pid, signal.SIGSTOP)
    assert_one_line(*run(capsys, *words, "--out", "live")[::2], "live: another process is at work on this run")
    os.killpg(job.pid, signal.SIGINT)
    os.killpg(job.pid, signal.SIGCONT)
    readings = []
    until(lambda: readings.append(load_results("live")[0].status) or readings[-1] == "done")
    assert set(readings) == {"missing", "done"}
    assert len(metrics("live")) == 3200 // 64 + 1


@pytest.mark.slow
def test_a_clock_that_jumps_makes_no_negative_times(capsys, monkeypatch):
    jumps = itertools.count(1e9, -86400.0)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    words = ("--agent", "random", "--episodes", "4", "--final-per-prompt", "1", "--out", "r")
    assert run(capsys, "train", "Bandit-v0", *words)[0] == 0
    rows = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    seconds = [0.0, *(row["seconds"] for row in rows)]
    assert seconds == sorted(seconds)


# No file may become longer than 40 KiB: what a full disk does, without one. Python 3.11 would cut its bytecode, too.
FULL_DISK = 'export PYTHONDONTWRITEBYTECODE=1; ulimit -f 40; "$@"'


@pytest.mark.long
def test_a_training_that_a_full_disk_stopped_goes_on_by_the_line_that_it_prints(capsys):
    done = shell(FULL_DISK, "train", *TINY, "--out", "my run")
    assert_one_line(done.returncode, done.stderr, "my run: File too large; make space, then go on with: textgym train")
    assert "SafetensorError" not in done.stderr
    resume = done.stderr.partition("go on with: textgym ")[2].strip()
    assert run(capsys, *shlex.split(resume))[0] == 0
    assert Path("my run/result.json").exists()


@pytest.mark.sweep  # tests/benchmarks/test_full_disk.py asks the same without processes
def test_a_suite_and_a_report_that_a_full_disk_stopped_go_on(capsys):
    bench = (
        "bench",
        "--suite",
        "ci",
        "--agents",
        "reinforce",
        "--seeds",
        "1",
        "--workers",
        "1",
        "--out",
        "b",
    )
    done = shell(FULL_DISK, *bench)
    assert_one_line(done.returncode, done.stderr, "b: ", "make space, then run the same command again, which goes on")
    assert not list(Path("b").glob("cells/*/result.json"))
    done = shell(FULL_DISK, "report", "b")
    assert_one_line(done.returncode, done.stderr, "b/report: File too large; make space, then run it again")
    assert "not written to their end" in Path("b/report/index.html").read_text()
    assert run(capsys, "report", "b")[0] == 0
    assert "not written to their end" not in Path("b/report/index.html").read_text()


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="root alone can become another user")
def test_a_user_without_rights_and_name(monkeypatch):
    become = f"""
import os
from textgym.cli import main
main({[*PREFERENCES, "--out", "mine.jsonl"]!r})
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.chdir(name)
        Path(name).chmod(0o755)
        for out in ("theirs.jsonl", "new/theirs.jsonl", "mine.jsonl"):
            done = child(*PREFERENCES, "--out", out, before=become)
            assert_one_line(done.returncode, done.stderr, out.partition("/")[0])
            Path("mine.jsonl").unlink()
        Path("ours").mkdir()
        Path("ours").chmod(0o777)
        done = child(*PREFERENCES, "--out", "ours/theirs.jsonl", before=become)
        assert (done.returncode, done.stderr) == (0, "")
        assert Path("ours/theirs.jsonl").stat().st_uid == NOBODY


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        'umask 277; "$@"',
        'umask 022; ulimit -n 24; "$@"',
        'umask 022; TMPDIR=/nowhere "$@"',
        'umask 022; HOME=/nowhere "$@"',
        'umask 022; LC_ALL=C PYTHONUTF8=0 "$@"',
    ],
)
def test_odd_settings_of_a_process(script):
    done = shell(script, *PREFERENCES, "--out", "p.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("p.jsonl").stat().st_mode & 0o777 == (0o400 if "277" in script else 0o644)
