"""Every fault under every `on_error`, through the environments: the reward that is paid, and that it goes on."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from cli_tools import child
from faulty_rewards import Faulty
from gymnasium.vector import AutoresetMode
from test_rewards_faults import CELLS, PENALTY, Cell, cell_id

import textgym  # noqa: F401  (registers the ids)
from textgym.rewards import Dense, RewardError

pytestmark = pytest.mark.slow

WORDS = ["bad", "ok", "<end>"]
BAD, OK, END = range(3)
OPTIONS: dict[str, Any] = {
    "tokenizer": WORDS,
    "stop": "<end>",
    "prompts": ["ok"],
    "columns": {"answer": [["a", {"b": [1]}]]},
    "max_new_tokens": 2,
    "reference": "uniform",
    "penalty": PENALTY,
}


def options(cell: Cell, **changes: Any) -> dict[str, Any]:
    timeout = 0.5 if cell.fault == "hangs" else None
    return {**OPTIONS, "reward": Faulty(cell.fault), "on_error": cell.on_error, "timeout": timeout, **changes}


def bad_pay(cell: Cell) -> float:
    """What the table pays the bad completion, of three characters."""
    assert cell.total is not None
    return cell.total[1]


@pytest.mark.parametrize("cell", CELLS, ids=cell_id)
def test_the_environment_goes_on(cell: Cell) -> None:
    env = gym.make("textgym/Text-v0", **options(cell))
    scorer = env.unwrapped.task.scorer  # type: ignore[attr-defined]
    env.reset(seed=0)
    assert env.step(BAD)[1:4] == (0.0, False, False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if cell.total is None:
            with pytest.raises(RewardError):
                env.step(END)
        else:
            _, reward, terminated, truncated, info = env.step(END)
            assert (reward, terminated, truncated) == (bad_pay(cell), True, False)
            assert info["completion"] == "bad"
            abstained = np.isnan(info["reward_terms"]["Faulty"])
            assert abstained == (bool(cell.failures) or cell.fault == "none")
    # Alone, the bad completion is the whole batch.
    assert scorer.failures == dict.fromkeys(cell.failures, 1)
    assert len(caught) == (bool(cell.failures) and cell.total is not None)
    env.reset()
    env.step(OK)
    assert env.step(END)[1] == 2.0
    scorer.close()


@pytest.mark.parametrize("cell", CELLS, ids=cell_id)
def test_the_vector_environment_goes_on(cell: Cell) -> None:
    env = gym.make_vec(
        "textgym/Text-v0", 3, "vector_entry_point", None, None,
        autoreset_mode=AutoresetMode.DISABLED, **options(cell),
    )  # fmt: skip
    scorer = env.unwrapped.task.scorer  # type: ignore[attr-defined]
    env.reset(seed=0)
    env.step(np.array([OK, BAD, OK]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if cell.total is None:
            with pytest.raises(RewardError):
                env.step(np.array([END, END, OK]))
        else:
            _, rewards, terminated, _, infos = env.step(np.array([END, END, OK]))  # "ok", "bad", "ok ok"
            np.testing.assert_array_equal(rewards, cell.total)
            np.testing.assert_array_equal(infos["reward_terms"]["Faulty"], cell.term)
            assert terminated.all()
    assert scorer.failures == cell.failures
    env.reset()
    env.step(np.array([OK, OK, OK]))
    np.testing.assert_array_equal(env.step(np.array([END, END, OK]))[1], [2, 2, 5])
    assert scorer.failures == cell.failures
    scorer.close()


@pytest.mark.parametrize("cell", [c for c in CELLS if c.total is not None and c.fault != "hangs"], ids=cell_id)
def test_an_episode_survives_a_failure_in_its_middle(cell: Cell) -> None:
    env = gym.make("textgym/Text-v0", **options(cell, reward=Dense(Faulty(cell.fault)), max_new_tokens=3))
    env.reset(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = [env.step(token)[1:3] for token in (OK, BAD, END)]
    scores_bad = cell.fault in ("prints", "changes")
    bad = 6.0 if scores_bad else bad_pay(cell)  # "ok bad"
    assert steps == [(2.0, False), (bad, False), (bad, True)]


@pytest.mark.parametrize("timeout", ["null", "20"])
def test_what_a_reward_prints_does_not_spoil_json(timeout: str) -> None:
    words = ["eval", "Text-v0", "--agent", "random", "--per-prompt", "2", "--beta", "0", "--json", "--env"]
    flags = ['tokenizer=["a","b"]', 'prompts=["a"]', "reference=uniform", f"timeout={timeout}"]
    path = f"sys.path.insert(0, {str(Path(__file__).parent)!r})"
    done = child(*words, "reward=faulty_rewards:shouting", *flags, before=path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reward"]["mean"] > 0
    assert "a line from the reward" in done.stderr
