"""The pages of algorithms: the table has every agent and its true defaults; the reader's own algorithm works."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import fields, replace
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cli_tools import run
from textgym_agents import agent_names, load_agent, make_agent, make_env
from textgym_agents.conformance import FAILS, NOT_ASKED, check, check_names
from textgym_agents.protocol import METHODS, Agent, as_agent
from textgym_agents.registry import agent_class, config_class
from textgym_benchmarks import suites

from textgym.evaluate import evaluate
from textgym.registry import AGENTS, Entry
from textgym.solver import policy_values, solve

DOCS = Path(__file__).parents[1] / "docs"
NAME = "my_reinforce:MyReinforce"


def table():
    """Name of an agent -> its other cells, by the table's head."""
    lines = (DOCS / "algorithms.md").read_text(encoding="utf-8").splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    lines = list(takewhile(lambda line: line.startswith("|"), lines[first:]))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def own_agents():
    """The names that the package itself registers, and not a test."""
    targets = {name: AGENTS.entry(name).target for name in agent_names()}
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


def unnamed(source, docstring):
    """Papers of a cell of the table, by number or by first author and year, that a docstring does not name."""
    papers = re.findall(r"\[(\d{4}\.\d{5})\]", source) + re.findall(r"doi\.org/([^)]+)", source)
    papers += re.findall(r"\w+ (?:and \w+ )?\(\d{4}\)", re.sub(r"\[.*?\)(?=,|$)", "", source))
    return [paper for paper in papers if paper not in docstring]


@pytest.mark.parametrize("name", sorted(own_agents() - {"reference", "random"}))
def test_its_class_names_the_sources_of_the_table(name):
    if name.startswith("sb3-"):
        pytest.importorskip("stable_baselines3")
        pytest.importorskip("sb3_contrib")
    text = agent_class(name).__doc__
    assert "Source: " in text
    assert not unnamed(table()[name]["Source"], text)


def test_a_source_that_a_class_does_not_name_is_found():
    cell = "Rummery and Niranjan (1994), [1805.00909](https://arxiv.org/abs/1805.00909), [M (2015)](https://doi.org/10.1/x)"
    assert unnamed(cell, "Source: Levine (2018), arXiv:1805.0090.") == [
        "1805.00909",
        "10.1/x",
        "Rummery and Niranjan (1994)",
    ]
    assert unnamed(cell, "Source: Rummery and Niranjan (1994); arXiv:1805.00909; doi:10.1/x.") == []


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
    monkeypatch.setattr(AGENTS, "_entries", dict(AGENTS._entries))
    yield tmp_path
    sys.modules.pop("my_reinforce", None)


def test_the_page_has_one_file_its_commands_and_one_line():
    assert [language for language, _ in blocks()] == ["python", "sh", "python", "python", "python"]
    assert len(blocks()[0][1].splitlines()) <= 45


def test_the_page_shows_what_libraries_read(capsys):
    text = (DOCS / "custom_algorithm.md").read_text(encoding="utf-8")
    exec(compile(blocks()[-1][1], "custom_algorithm.md", "exec"), {})
    assert capsys.readouterr().out == text.rpartition("```text\n")[2].partition("```")[0]


def test_the_page_has_every_default_of_an_agent():
    text = (DOCS / "custom_algorithm.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", text, re.MULTILINE)
    given = {name: value.strip("`") for name, value in rows}
    assert set(given) == {name for name in vars(Agent) if not name.startswith("_")} - set(METHODS)
    values = {name: getattr(Agent, name) for name in given}
    assert {name: repr(value) for name, value in values.items() if not callable(value)} == {
        name: given[name].replace('"', "'") for name, value in values.items() if not callable(value)
    }


class Bare:
    """Five methods, and nothing else."""

    def learn(self, env, episodes, callback=None):
        """Learn nothing."""

    def act(self, observation, deterministic=False):
        return np.zeros(len(observation["input_ids"]), dtype=np.int64)

    def log_probs(self, observation):
        return None

    def save(self, path):
        """Save nothing."""

    @classmethod
    def load(cls, path, env):
        return cls()


class Valued(Bare):
    def values(self, observation):
        return np.full(len(observation["input_ids"]), 2.0)


def test_a_class_with_five_methods_gets_the_defaults_where_it_is_met(monkeypatch):
    monkeypatch.setitem(AGENTS._entries, "bare", Entry("bare", Bare))
    env = make_env("textgym/Copy-v0", 2)
    seen = env.reset(seed=0)[0]
    bare = make_agent("bare", env)
    assert type(bare) is Bare
    assert isinstance(bare, Agent)
    assert (bare.learns, bare.plans, bare.critic, bare.group, bare.own_reference()) == (
        True,
        False,
        False,
        1,
        None,
    )
    assert bare.conformance_hooks() == {}
    with pytest.raises(ValueError, match="has no critic"):
        bare.values(seen)
    valued = as_agent(Valued())
    assert valued.critic
    assert valued.values(seen).tolist() == [2.0, 2.0]
    assert not Agent.critic


def test_what_a_class_says_of_itself_is_kept():
    class Planner(Bare):
        plans = True
        config = "settings"

        def own_reference(self):
            return "its own"

    agent = as_agent(Planner())
    assert (agent.plans, agent.config, agent.own_reference(), agent.learns) == (
        True,
        "settings",
        "its own",
        True,
    )


def test_the_line_registers_it(folder):
    names = {}
    exec(compile(blocks()[2][1], "page", "exec"), names)
    assert type(names["agent"]).__name__ == "MyReinforce"
    assert names["agent"].config.learning_rate == 0.01


@pytest.mark.slow
def test_what_memory_returns_is_there_after_an_interruption(folder):
    (folder / "my_baseline.py").write_text(blocks()[3][1], encoding="utf-8")
    env = make_env("textgym/Copy-v0", 32)
    agent = make_agent("my_baseline:MyBaseline", env)
    agent.learn(env, 64)
    agent.save(folder / "saved")
    again = load_agent(folder / "saved", env, "my_baseline:MyBaseline")
    assert 0 < float(agent.mean) < 1
    assert float(again.mean) == float(agent.mean)
    del sys.modules["my_baseline"]


@pytest.mark.long
@pytest.mark.slow
def test_it_passes_every_check_that_applies(folder):
    findings = check(NAME, [*check_names(slow=False), "gradient of J"], envs=32, iterations=2)
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
        "gradient of J",
    }


class Away(torch.Tensor):
    """Stands for a tensor on an accelerator: `numpy` wants `cpu` first, and numbers from the host are refused."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            tensors = [value for value in args if isinstance(value, torch.Tensor) and value.dim()]
        if function is torch.Tensor.numpy:
            raise TypeError("numpy: of a tensor on an accelerator")
        both = (torch.Tensor.mul, torch.Tensor.sub, torch.Tensor.__getitem__)
        if function in both and not all(isinstance(tensor, Away) for tensor in tensors):
            raise RuntimeError("tensors on two devices")
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else result


def away(value):
    return value.as_subclass(Away)


def test_it_runs_on_an_accelerator(folder, monkeypatch):
    """Everything that it works with is `Away`; what it makes from arrays is so if it names the policy's device."""
    env = make_env("textgym/Copy-v0", 8)
    agent = make_agent(NAME, env, batch=8)
    own, make, states = sys.modules["my_reinforce"], torch.tensor, agent.policy.states
    collect, score = own.collect, own.score_reference

    def made(*values, device=None, **more):
        return make(*values, **more) if device is None else away(make(*values, **more))

    def collected(*arguments):
        batch = collect(*arguments)
        moved = {name: away(value) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
        return replace(batch, **moved)

    def logits_of(input_ids, rows, columns, masks):
        assert isinstance(rows, Away)
        assert isinstance(columns, Away)
        with torch._C.DisableTorchFunctionSubclass():
            logits, values = states(input_ids, rows, columns, masks)
        return away(logits), values

    def scored(reference, batch, *rest):
        with torch._C.DisableTorchFunctionSubclass():
            return away(score(reference, batch, *rest))

    monkeypatch.setattr(own, "collect", collected)
    monkeypatch.setattr(own, "score_reference", scored)
    monkeypatch.setattr(agent.policy, "states", logits_of)
    monkeypatch.setattr(own, "torch", SimpleNamespace(tensor=made, float32=torch.float32))
    metrics = agent._iterate(env)
    assert set(metrics) == {"objective/scores", "objective/kl", "loss"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_runs_on_cuda(folder):
    env = make_env("textgym/Copy-v0", 8)
    agent = make_agent(NAME, env, batch=8, device="cuda")
    agent.learn(env, 8)
    assert (agent.episodes, agent.policy.device.type) == (8, "cuda")


@pytest.mark.slow
@pytest.mark.long
def test_it_learns_and_is_evaluated(folder):
    env = make_env("textgym/Copy-v0", 128)
    agent, task = make_agent(NAME, env), env.unwrapped.task
    agent.learn(env, 16_384)
    solution = solve(task)
    assert solution.optimality(policy_values(solution.tree, agent).objective) >= 0.95
    agent.save(folder / "saved")
    loaded = load_agent(folder / "saved", env, NAME)
    found = evaluate(loaded, task, split="train", per_prompt=4)
    assert found.exact
    assert found.optimality.mean >= 0.95


@pytest.mark.slow
@pytest.mark.long
def test_its_whole_check_runs_and_three_tasks_are_learned(folder, capsys):
    code, out, error = run(capsys, *blocks()[1][1].splitlines()[2].split()[1:], "--json")
    findings = json.loads(out)["findings"]
    assert code == 0, error
    assert {f["check"]: f["status"] for f in findings if f["check"].startswith("learns")} == {
        "learns Bandit": "holds",
        "learns Delayed": "holds",
        "learns Stop": "holds",
    }


@pytest.mark.slow
def test_its_commands_run(folder, capsys, monkeypatch):
    train, evaluate_it, _, bench_it = blocks()[1][1].splitlines()
    words = train.replace("--episodes 16384", "--episodes 512").split()
    assert words[0] == "textgym"
    assert run(capsys, *words[1:], "--eval-every", "0", "--final-per-prompt", "1")[0] == 0
    code, out, _ = run(capsys, *evaluate_it.split()[1:], "--per-prompt", "1", "--json")
    assert code == 0
    assert 0 <= json.loads(out)["reward"]["mean"] <= 1
    small = [replace(cell, episodes=128) for cell in suites.ci().cells if "Helpful" not in cell.id]
    short = replace(suites.ci(), cells=tuple(small))
    monkeypatch.setattr(suites, "ci", lambda: short)
    code, out, error = run(capsys, *bench_it.split()[1:], "--engine", "serial")
    assert code == 0, error
    assert "MyReinforce" in out
    results = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (folder / "runs/mine-bench/cells").glob("*/result.json")
    ]
    assert {(found["cell"]["id"], found["cell"]["agent"]) for found in results} == {
        ("textgym/Bandit-v0", NAME),
        ("textgym/Delayed-v0", NAME),
    }
    assert {found["status"] for found in results} == {"done"}
