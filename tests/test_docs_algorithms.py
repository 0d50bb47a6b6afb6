"""The pages of algorithms: the table has every agent and its true defaults; the reader's own algorithm works."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from cli_tools import run
from textgym_agents import agent_names, load_agent, make_agent, make_env, registry
from textgym_agents.conformance import FAILS, NOT_ASKED, check, check_names
from textgym_agents.registry import agent_class, config_class

from textgym.evaluate import estimate_optimum, evaluate
from textgym.solve import policy_values, solve

DOCS = Path(__file__).parents[1] / "docs"
NAME = "my_reinforce:MyReinforce"


def table():
    """Name of an agent -> its other cells, by the table's head."""
    lines = (DOCS / "algorithms.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0].strip("`"): dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def own_agents():
    """The names that the package itself registers, and not a test."""
    targets = {name: registry._entries[name].target for name in agent_names()}
    return {name for name, target in targets.items() if str(target).startswith("textgym_agents.")}


def test_every_agent_is_in_the_table_once():
    text = (DOCS / "algorithms.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\| `", text, re.MULTILINE)) == len(table())
    assert set(table()) == own_agents()


@pytest.mark.parametrize("name", sorted(own_agents()))
def test_its_defaults_are_those_of_the_config(name):
    if name.startswith("sb3-"):
        pytest.importorskip("stable_baselines3")
    if name in ("sb3-maskable-ppo", "sb3-qrdqn", "sb3-recurrent-ppo", "sb3-trpo"):
        pytest.importorskip("sb3_contrib")
    kind = config_class(agent_class(name))
    defaults = {field.name: field.default for field in fields(kind)}
    shown = re.findall(r"`(\w+)=([^`]+)`", table()[name]["Defaults"])
    assert shown or name in ("reference", "random")
    assert {setting: json.loads(value) for setting, value in shown} == {
        setting: defaults[setting] for setting, _ in shown
    }


def blocks():
    text = (DOCS / "custom_algorithm.md").read_text(encoding="utf-8")
    return re.findall(r"```(python|sh)\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's file, in which the user stands."""
    (tmp_path / "my_reinforce.py").write_text(blocks()[0][1], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    yield tmp_path
    sys.modules.pop("my_reinforce", None)


def test_the_page_has_one_file_its_commands_and_one_line():
    assert [language for language, _ in blocks()] == ["python", "sh", "python"]
    assert len(blocks()[0][1].splitlines()) <= 45


def test_the_line_registers_it(folder):
    names = {}
    exec(compile(blocks()[2][1], "page", "exec"), names)
    assert type(names["agent"]).__name__ == "MyReinforce"
    assert names["agent"].config.learning_rate == 0.01


def test_it_passes_every_check_that_applies(folder):
    untrained = [name for name in check_names() if not name.startswith("learns")]
    findings = check(NAME, untrained, envs=32)
    assert not {f.check: f.found for f in findings if f.status == FAILS}
    held = {f.check for f in findings if f.status != NOT_ASKED}
    assert held >= {
        "log-probs sum to one",
        "act draws from log-probs",
        "starts at the reference",
        "padding columns",
        "logged KL",
        "logged scores",
        "mask obedience",
        "same seed, same policy",
        "global random numbers",
        "saved and loaded",
        "resumed",
    }


@pytest.mark.slow
def test_it_learns_and_is_evaluated(folder):
    env = make_env("textgym/Copy-v0", 128)
    agent, task = make_agent(NAME, env), env.unwrapped.task
    agent.learn(env, 16_384)
    solution = solve(task)
    assert solution.optimality(policy_values(solution.tree, agent).objective) >= 0.95
    agent.save(folder / "saved")
    loaded = load_agent(folder / "saved", env, NAME)
    optimum = estimate_optimum(task, split="train", per_prompt=4096)
    found = evaluate(loaded, task, optimum=optimum, split="train", per_prompt=4)
    assert found.reward.mean == pytest.approx(solution.optimal.expected_return, abs=0.03)
    assert found.optimality.mean >= 0.9


@pytest.mark.slow
def test_its_commands_run(folder, capsys):
    train, evaluate_it, check_it = blocks()[1][1].splitlines()
    words = train.replace("--episodes 16384", "--episodes 512").split()
    assert words[0] == "textgym"
    assert run(capsys, *words[1:], "--eval-every", "0", "--final-per-prompt", "1")[0] == 0
    code, out, _ = run(capsys, *evaluate_it.split()[1:], "--per-prompt", "1", "--json")
    assert code == 0
    assert 0 <= json.loads(out)["reward"]["mean"] <= 1
    # The whole check, the three tasks that are to be learned among it.
    code, out, error = run(capsys, *check_it.split()[1:], "--json")
    findings = json.loads(out)["findings"]
    assert code == 0, error
    assert {f["check"]: f["status"] for f in findings if f["check"].startswith("learns")} == {
        "learns Bandit": "holds",
        "learns Delayed": "holds",
        "learns Stop": "holds",
    }
