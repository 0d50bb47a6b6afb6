"""SIGTERM, as batch systems send it, and rewards that exit: what was learned is saved; one line says how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_tools import run, started, until
from textgym_agents.training.folder import RunFolder

from textgym.interrupts import Terminated, first_interrupt, sigterm_raises

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGTERM is a POSIX signal here")
LONG = ("--episodes", "100000000", "--eval-every", "0", "--save-every", "0", "--final-per-prompt", "1")
REWARD = '''
import pathlib

class Ends:
    """Pays 1 until it has scored 40 completions with the file `armed` there; then it raises."""

    def __init__(self, error):
        self.error, self.seen = error, 0

    def __call__(self, prompts, completions, **columns):
        self.seen += len(completions)
        if self.seen > 40 and pathlib.Path("armed").exists():
            raise {"exit": SystemExit(0), "interrupt": KeyboardInterrupt()}[self.error]
        return [1.0] * len(completions)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]
'''


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def terminated(there: Callable[[], object], *words: str) -> str:
    """Sends SIGTERM once something is there. Returns: the last line of the standard error."""
    with started(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until(lambda: there() or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def _rows(log: Path) -> int:
    return log.read_text().count("\n")


@pytest.mark.slow
def test_a_training_is_saved() -> None:
    log = Path("run/metrics.jsonl")
    words = ("train", "Bandit-v0", "--agent", "q-learning", "--out", "run", *LONG)
    said = terminated(lambda: log.exists() and _rows(log) > 3, *words)
    assert said.startswith("textgym: interrupted: after ")
    assert said.endswith("; go on with: textgym train textgym/Bandit-v0 --agent q-learning --out run --resume")
    folder = RunFolder.reopen("run")
    assert folder.marked() == folder.metrics()[-1]["iteration"] > 2  # what was learned last is in the checkpoint


@pytest.mark.long
@pytest.mark.slow
def test_a_bench_and_its_workers_are_saved() -> None:
    words = ("bench", "--tasks", "Bandit-v0", "--agents", "q-learning", "--episodes", "100000000", "--seeds", "1")
    words += ("--workers", "1", "--out", "bench")
    # Its first row is of the agent before it learns, when there is nothing to save.
    logs = "cells/*/run/metrics.jsonl"
    said = terminated(lambda: any(_rows(log) > 1 for log in Path("bench").glob(logs)), *words)
    assert "cells are done; the same command with the same folder (bench) goes on" in said
    [folder] = Path("bench").glob("cells/*/run")
    assert RunFolder(folder).state() == "interrupted"
    assert (folder / "checkpoint" / "agent.json").exists()


@pytest.mark.sweep
def test_rlhf_is_saved_in_the_middle_of_a_stage() -> None:
    log = Path("rlhf/1-sft/metrics.jsonl")
    said = terminated(lambda: log.exists() and _rows(log) > 1, "rlhf", "Helpful-v0", "--out", "rlhf")
    assert "in the stage supervised fine-tuning; the same command with --out " in said
    assert Path("rlhf/1-sft/checkpoints/model/agent.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("error", "code"), [("exit", 2), ("interrupt", 130)])
def test_a_reward_that_exits_ends_no_run_as_if_all_was_well(
    error: str, code: int, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ends", raising=False)
    Path("ends.py").write_text(REWARD)
    Path("armed").touch()
    reward = f'reward={{"name": "ends:Ends", "error": "{error}"}}'
    words = (
        "train",
        "Text-v0",
        "--agent",
        "q-learning",
        "--batch",
        "4",
        "--episodes",
        "64",
        "--eval-every",
        "0",
    )
    words += ("--env", reward, "max_new_tokens=2", "reference=uniform", "--out", "run", "--save-every", "1")
    words += ("--final-per-prompt", "1", "--optimum-per-prompt", "2")
    found, _, err = run(capsys, *words)
    assert found == code
    said = err.splitlines()[-1]
    assert ("reward 'Ends' raised SystemExit: 0" in said) if error == "exit" else ("go on with: textgym" in said)
    Path("armed").unlink()
    assert run(capsys, "train", "Text-v0", "--out", "run", "--resume", "--agent", "q-learning")[0] == 0
    assert RunFolder(Path("run")).state() == "finished"


def test_the_second_signal_does_what_it_did_before() -> None:
    def twice() -> None:
        with sigterm_raises(), first_interrupt(lambda: None) as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked()
            assert isinstance(asked.error(), Terminated)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        twice()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_handler_of_the_programs_own_is_left_alone() -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with sigterm_raises(), first_interrupt(lambda: None) as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not asked()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
