"""Every family of agents is saved in one format, and what cannot be read is refused in one line."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textgym_agents import load_agent, make_agent, make_env
from textgym_agents.saving import read_saved, write_saved

from textgym import make_task
from textgym.checks import TextGymWarning
from textgym.optimum import fingerprint

STOP, BANDIT = "textgym/Stop-v0", "textgym/Bandit-v0"
LEARNED: dict[str, dict[str, Any]] = {
    "lm-ppo": {"device": "cpu"},
    "soft-q": {"device": "cpu"},
    "dpo": {"device": "cpu"},
    "q-learning": {},
    "mcts": {"simulations": 2},
    "alphazero": {"device": "cpu", "simulations": 2},
    "sb3-a2c": {},
    "sb3-dqn": {},
}
SETTINGS_ALONE: dict[str, dict[str, Any]] = {"random": {}, "reference": {}, "best-of-n": {"n": 2}}
AGENTS = LEARNED | SETTINGS_ALONE


def saved(name: str, folder: Path, task: str = STOP) -> dict[str, Any]:
    """Save an untrained agent; return its agent.json."""
    make_agent(name, make_env(task, 2), **AGENTS[name]).save(folder)
    head: dict[str, Any] = json.loads((folder / "agent.json").read_text())
    return head


@pytest.mark.parametrize("name", AGENTS)
def test_an_old_format_and_another_class_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    head = saved(name, tmp_path / "agent")
    assert head.keys() == {"format", "agent", "config", "state", "task", "scorer"}
    assert head["task"] == fingerprint(make_task("Stop"), "train")
    env = make_env(STOP, 2)
    for change, held in (
        ({"format": 1}, f"{name!r} in format 1"),
        ({"agent": "other"}, "'other' in format 2"),
    ):
        (tmp_path / "agent" / "agent.json").write_text(json.dumps(head | change))
        with pytest.raises(ValueError, match=re.escape(f"holds agent {held}; allowed is {name!r} in format 2")):
            load_agent(tmp_path / "agent", env, name)


@pytest.mark.parametrize("name", ["mcts", "lm-ppo", "sb3-a2c"])
def test_an_agent_of_another_task_says_so(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path / "agent")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with contextlib.suppress(ValueError):  # what does not fit at all is refused after it
            load_agent(tmp_path / "agent", make_env(BANDIT, 2))
    texts = [str(warning.message) for warning in found if warning.category is TextGymWarning]
    changed = "name ('Stop', now 'Bandit'), max_new_tokens"
    assert any(
        re.search(f"(of|on) task 'Stop'.* on task 'Bandit'.*; they differ in {re.escape(changed)}", t) for t in texts
    )


@pytest.mark.parametrize("name", ["q-learning", "mcts"])
def test_a_table_of_another_difficulty_says_what_is_other(name: str, tmp_path: Path) -> None:
    make_agent(name, make_env("textgym/Copy-v0", 2, difficulty=2), **AGENTS[name]).save(tmp_path / "agent")
    other = r"they differ in max_prompt_tokens \(4, now 5\), max_new_tokens \(2, now 3\), prompts$"
    with pytest.warns(TextGymWarning, match=other):
        load_agent(tmp_path / "agent", make_env("textgym/Copy-v0", 2, difficulty=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_agent(tmp_path / "agent", make_env("textgym/Copy-v0", 2, difficulty=2))


@pytest.mark.parametrize("name", SETTINGS_ALONE)
def test_an_agent_that_is_nothing_but_settings_serves_any_task(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path / "agent")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_agent(tmp_path / "agent", make_env(BANDIT, 2)).name == name


def test_the_state_of_a_reward_goes_along_where_task_and_reward_are_the_same(tmp_path: Path) -> None:
    running = {"reward": {"name": "running_norm", "reward": "length"}}
    text = {"prompts": ["a"], "max_new_tokens": 4}
    env = make_env("textgym/Text-v0", 4, **text, **running)
    agent = make_agent("random", env)
    env.reset(seed=0)
    env.step(np.full(4, env.unwrapped.task.vocabulary.stop_ids[0]))
    before = env.unwrapped.task.scorer.state_dict()
    agent.save(tmp_path / "agent")
    again = make_env("textgym/Text-v0", 4, **text, **running)
    assert again.unwrapped.task.scorer.state_dict() != before
    load_agent(tmp_path / "agent", again)
    assert again.unwrapped.task.scorer.state_dict() == before
    load_agent(tmp_path / "agent", make_env("textgym/Text-v0", 4, **text, reward="length"))


def test_tensors_of_numpy_and_of_torch_come_back(tmp_path: Path) -> None:
    import torch
    from textgym_agents.algorithms.fixed import FixedConfig

    arrays = {"a": np.arange(3), "b": np.zeros((0, 2), dtype=np.float32)}
    write_saved(tmp_path / "arrays", "mine", FixedConfig(), tensors=arrays, state={"x": [1]})
    found = read_saved(tmp_path / "arrays", "mine", lambda saved: (saved.arrays(), saved.state))
    assert found[1] == {"x": [1]}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[0][name], array)
    tensors = {"half": torch.ones(2, dtype=torch.bfloat16).expand(3, 2)}
    write_saved(tmp_path / "tensors", "mine", FixedConfig(), tensors=tensors)
    again = read_saved(tmp_path / "tensors", "mine", lambda saved: saved.tensors())
    torch.testing.assert_close(again["half"], tensors["half"])
    write_saved(tmp_path / "none", "mine", FixedConfig())
    assert read_saved(tmp_path / "none", "mine", lambda saved: saved.arrays()) == {}
