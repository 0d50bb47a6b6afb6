"""A run's folder does not choose what code is called."""

from __future__ import annotations

import sys

import pytest
from textgym_agents.commands.policies import run_options
from textgym_agents.saving import FORMAT
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.trust import check_trusted

from textgym.files import write_json

MODULE = """
from subprocess import Popen
class Own:
    def __call__(self, prompts, completions, **columns):
        return [0.0] * len(prompts)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The user's folder with a module, a package that a stranger has packed, and a run in each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "trust_mine", raising=False)
    (tmp_path / "trust_mine.py").write_text(MODULE)
    for run in ("runs/mine", "trust_theirs/run"):
        (tmp_path / run / "checkpoint").mkdir(parents=True)
    (tmp_path / "trust_theirs/__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "trust_theirs/run/evil.py").write_text("raise SystemExit('imported')")
    return tmp_path


@pytest.mark.parametrize(
    "reward",
    [
        "rules",
        "trust_mine:Own",
        {"name": "weighted", "rewards": {"a": {"name": "trust_mine:Own"}}},
        "textgym.rewards.numbers:Arithmetic",
    ],
)
def test_ones_own_and_registered_rewards_are_taken_from_the_run(here, reward):
    check_trusted(here / "runs/mine", {"reward": reward, "max_new_tokens": 4})


@pytest.mark.parametrize(
    "reward",
    [
        "subprocess:Popen",
        {"name": "subprocess:Popen", "args": ["true"]},
        {"name": "weighted", "rewards": [{"a": {"name": "os:system"}}]},
        {"trust_mine:Popen": 1},
        "textgym.files:write_text",
        "trust_theirs:X",
        "trust_theirs.run.evil:X",
        "trust_absent:X",
    ],
)
def test_a_stranger_s_code_is_not_imported(here, reward):
    with pytest.raises(ValueError, match=r"env names the code .* --env 'reward="):
        check_trusted(here / "trust_theirs/run", {"reward": reward})


def test_the_folder_that_one_stands_in_may_not_be_the_run(here, monkeypatch):
    monkeypatch.chdir(here / "trust_theirs/run")
    with pytest.raises(ValueError, match="evil:X"):
        check_trusted(here / "trust_theirs/run", {"reward": "evil:X"})


def test_every_command_that_reads_a_run_asks(here):
    write_json(here / "runs/mine/config.json", {"format": FORMAT, "env": {"reward": "subprocess:Popen"}})
    with pytest.raises(ValueError, match="subprocess:Popen"):
        run_options(here / "runs/mine")
    for checkpoint in ("checkpoint", "checkpoints/3"):
        with pytest.raises(ValueError, match="subprocess:Popen"):
            run_options(here / "runs/mine" / checkpoint)


def test_resuming_asks_unless_the_options_are_typed(here):
    from textgym_agents.commands.train import _stored_settings
    from textgym_agents.config import TrainSettings

    env = {"reward": "subprocess:Popen"}
    folder = RunFolder(here / "runs/mine")
    write_json(folder.path / "config.json", {"format": FORMAT, "id": "a", "agent": "random", "episodes": 1, "env": env})
    with pytest.raises(ValueError, match="subprocess:Popen"):
        _stored_settings(folder, TrainSettings("a", "random", 10_000), {}, set())
    made = TrainSettings("a", "random", 10_000, env={"reference": "model"})  # options come of --model, too
    with pytest.raises(ValueError, match="subprocess:Popen"):
        _stored_settings(folder, made, {"model": "model"}, {"model"})
    typed = TrainSettings("a", "random", 10_000, env=env)
    assert _stored_settings(folder, typed, {}, {"id", "env"}).env == env


def test_texts_of_prompts_and_of_data_are_no_code(here):
    options = {"prompts": ["12:30", "Q:hello"], "eval_columns": {"answer": ["os:system"]}}
    check_trusted(here / "trust_theirs/run", options)
