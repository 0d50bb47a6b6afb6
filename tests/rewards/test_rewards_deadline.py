"""Deadline: the child process lives on, is replaced, keeps the reward's state, and goes away."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_rewards import BrokenPickle, Counting, Faulty

import textgym.rewards
from textgym.rewards import Clipped, RewardError, Scorer
from textgym.rewards.deadline import Deadline


def alive(scorer: Scorer) -> int:
    """Return the id of the child process, which has to run."""
    process = scorer._deadline._process  # type: ignore[union-attr]
    assert process.is_alive()
    return int(process.pid)


@pytest.fixture
def others() -> set[BaseProcess]:
    """Return the children of earlier tests, whose scorers are garbage that was not collected yet."""
    return set(multiprocessing.active_children())


def environment(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Pays for the names of variables that are set."""
    return [float(name in os.environ) for name in prompts]


@pytest.mark.slow
def test_one_process_serves_many_calls_and_a_hang_costs_no_state(others: set[BaseProcess]) -> None:
    reward = Counting()
    scorer = Scorer(reward, "skip", timeout=0.5)
    first = scorer.score(["p"] * 2, ["a", "b"], {"completion_ids": [[1], [2]]})
    np.testing.assert_array_equal(first.total, [2, 2])
    pid = alive(scorer)
    assert pid != os.getpid()
    assert scorer.score(["p"], ["a"]).total[0] == 3
    assert alive(scorer) == pid
    assert reward.seen == 3  # the caller's object knows what the child counted
    with pytest.warns(UserWarning, match=r"longer than 0\.5 s"):
        np.testing.assert_array_equal(scorer.score(["p"] * 2, ["a", "bad"]).total, [0, 0])
    assert scorer.failures == {"timeout": 2}
    assert others.issuperset(multiprocessing.active_children())
    assert scorer.score(["p"], ["a"]).total[0] == 4
    assert alive(scorer) != pid
    reward.seen = 10  # a restored checkpoint reaches the child too
    assert scorer.score(["p"], ["a"]).total[0] == 11
    with pytest.warns(UserWarning, match="raised KeyError: 'lost'"):
        scorer.score(["p"], ["clash"])
    twins = [copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))]
    assert all(twin._deadline._process is None for twin in twins)  # type: ignore[union-attr]
    scorer.close()
    assert others.issuperset(multiprocessing.active_children())


@pytest.mark.slow
def test_a_child_that_dies_is_counted_and_replaced() -> None:
    scorer = Scorer(Clipped(Faulty("dies"), 0.0, 4.0), "penalty", penalty=-1.0, timeout=20.0)
    with pytest.warns(UserWarning, match="died"):
        np.testing.assert_array_equal(scorer.score(["p"], ["bad"]).total, [-1])
    np.testing.assert_array_equal(scorer.score(["p"] * 2, ["a", "longer"]).total, [1, 4])
    os.kill(alive(scorer), 9)  # between two calls, which is no completion's fault
    scorer._deadline._process.join()  # type: ignore[union-attr]
    np.testing.assert_array_equal(scorer.score(["p"], ["abc"]).total, [3])
    assert scorer.failures == {"dies": 1}
    scorer.close()


@pytest.mark.slow
def test_what_the_reward_raised_is_told_with_its_traceback() -> None:
    deadline = Deadline(Clipped(Faulty("wrong_length")), 20.0)
    arguments = {"prompts": ["p", "q"], "completions": ["bad", "b"]}
    with pytest.raises(RewardError, match="returned 1 values for 2") as caught:
        deadline.call("__call__", arguments)
    assert caught.value.kind == "wrong_length"
    assert "in clipped" not in str(caught.value)
    assert "Traceback" in str(caught.value.__cause__)
    deadline.close()


@pytest.mark.slow
def test_a_reward_that_cannot_be_loaded_stops_the_run_whatever_on_error_says(
    others: set[BaseProcess],
) -> None:
    scorer = Scorer(BrokenPickle(), "skip", timeout=0.5)
    with pytest.raises(RuntimeError, match="could not be started: ValueError: invalid literal"):
        scorer.score(["p"], ["a"])
    assert others.issuperset(multiprocessing.active_children())


def from_a_daemon(queue: Any) -> None:
    try:
        Scorer(Counting(), timeout=0.5).score(["p"], ["a"])
    except RuntimeError as error:
        queue.put(str(error))


@pytest.mark.slow
def test_modules_in_the_current_folder_are_not_taken_for_pythons_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("socket", "pickle", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the current folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    deadline = Deadline(environment, 20.0)
    assert deadline.call("__call__", {"prompts": ["PYTHONSAFEPATH"], "completions": [""]}) == [0.0]
    assert "PYTHONSAFEPATH" not in os.environ
    deadline.close()


def test_a_daemonic_process_says_what_to_do() -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=from_a_daemon, args=(queue,), daemon=True)
    process.start()
    assert "daemon=False" in queue.get(timeout=30)
    process.join()


def in_a_fork(scorer: Scorer, queue: Any) -> None:
    queue.put(float(scorer.score(["p"], ["a"]).total[0]))
    scorer.close()


@pytest.mark.slow
def test_a_forked_copy_leaves_its_parents_child_alone() -> None:
    scorer = Scorer(Counting(), timeout=20.0)
    scorer.score(["p"], ["a"])
    pid = alive(scorer)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=in_a_fork, args=(scorer, queue))
    process.start()
    assert queue.get(timeout=30) == 2.0
    process.join()
    assert alive(scorer) == pid
    assert scorer.score(["p"], ["a"]).total[0] == 2.0
    scorer.close()


@pytest.mark.slow
def test_a_script_ends_and_leaves_no_process_behind(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os
        from textgym.rewards import Scorer

        def shout(prompts, completions, **columns):
            print("from the child")
            os.write(1, b"past Python")
            return [float(len(text)) for text in completions]

        if __name__ == "__main__":
            scorer = Scorer(shout, timeout=30)
            print(scorer.score(["p"], ["abc"]).total[0], scorer._deadline._process.pid)
        """)
    )
    root = str(Path(textgym.rewards.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
    assert "from the child" in done.stderr
    assert "past Python" in done.stderr
    value, pid = done.stdout.split()
    assert value == "3.0"
    assert not Path(f"/proc/{pid}").exists()
