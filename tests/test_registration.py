"""Ids, specs that survive JSON, tasks of one's own, and what an import costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from core_tools import byte_level, gold_length, word_task
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import data_equivalence

import textgym
from textgym.registry import TASKS
from textgym.task import Task, make_task, task_entry, task_names


def test_every_task_has_its_id() -> None:
    assert {"Text", "Helpful"} <= set(task_names())
    for name in task_names():
        spec = gym.spec(task_entry(name).id)
        assert spec.id == f"textgym/{name}-v{task_entry(name).version}"
        assert spec.kwargs == {"task": task_entry(name).key}
        assert task_entry(name).summary


def test_a_spec_survives_json() -> None:
    settings: dict[str, Any] = {
        "prompts": ["Hello", "Bye"],
        "columns": {"answer": ["1", "2"]},
        "reward": {"name": "contains_all", "words": ["e"]},
        "gold": "charset",
        "stop": [7, "<|end|>"],
        "max_new_tokens": 4,
        "split": "eval",
        "segments": True,
    }
    env = gym.make("textgym/Text-v0", **settings)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))  # type: ignore[union-attr]
    assert json.loads(again.spec.to_json()) == json.loads(env.spec.to_json())  # type: ignore[union-attr]
    for each in (env, again):
        each.action_space.seed(0)
    assert data_equivalence(env.reset(seed=1), again.reset(seed=1), exact=True)
    for action in (30, 31, 32, 33):
        assert data_equivalence(env.step(action), again.step(action), exact=True)
    vector = gym.make_vec("textgym/Text-v0", num_envs=2, autoreset_mode="Disabled", **settings)
    assert vector.spec is not None
    assert gym.make_vec(EnvSpec.from_json(vector.spec.to_json())).metadata == vector.metadata


def test_python_objects_are_accepted_too() -> None:
    env = gym.make(
        "textgym/Text-v0", prompts=("the cat",), tokenizer=byte_level(), reward=gold_length, max_new_tokens=2
    )
    env.reset(seed=0)
    env.step(50)
    assert env.step(51)[1] == 2.0
    assert gym.make("textgym/Text-v0", task=word_task()).unwrapped.task.name == "Words"  # type: ignore[attr-defined]


def test_a_task_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))
    monkeypatch.setitem(gym.registry, "textgym/OwnWords-v3", None)
    del gym.registry["textgym/OwnWords-v3"]

    def build(words: int = 4) -> Task:
        return word_task(max_new_tokens=words)

    entry = textgym.register_task("OwnWords", build, version=3, summary="Words.")
    assert textgym.register_task("OwnWords", build, version=3, summary="Words.") == entry
    env = gym.make("textgym/OwnWords-v3", words=1)
    env.reset(seed=0)
    assert env.step(0)[2]
    with pytest.raises(ValueError, match="task 'OwnWords-v3' is taken already by"):
        textgym.register_task("OwnWords", lambda: word_task(), version=3)
    monkeypatch.setitem(gym.registry, "textgym/OwnWords-v4", None)
    del gym.registry["textgym/OwnWords-v4"]
    textgym.register_task("OwnWords", lambda: word_task(max_new_tokens=7), version=4)
    for name, tokens in (("OwnWords-v3", 4), ("OwnWords-v4", 7), ("OwnWords", 7)):
        assert make_task(name).max_new_tokens == tokens
    with pytest.warns(match="OwnWords-v3 is out of date"):  # Gymnasium's word on old versions
        old = gym.make("textgym/OwnWords-v3")
    assert old.unwrapped.task.max_new_tokens == 4  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="allowed are letters"):
        textgym.register_task("own words", build)
    with pytest.raises(TypeError, match=r"argument 'word'.* Did you mean 'words'"):
        make_task("OwnWords-v3", word=3)


def test_the_package_s_names() -> None:
    for name in textgym.__all__:
        assert getattr(textgym, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Taks'"):
        textgym.Taks  # noqa: B018


@pytest.mark.slow
def test_importing_is_light() -> None:
    loaded = "; print([name for name in ('torch', 'transformers', 'jinja2', 'PIL') if name in sys.modules])"
    code = f"import sys, textgym{loaded}; import gymnasium as gym; gym.make('textgym/Text-v0').reset(seed=0){loaded}"
    command, root = [sys.executable, "-c", code], Path(textgym.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_a_module_in_the_id_is_imported() -> None:
    env = gym.make("textgym:textgym/Text-v0", max_new_tokens=1)
    env.reset(seed=0)
    assert env.step(np.int64(9))[2]
