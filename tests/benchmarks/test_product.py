"""Products of tasks, rewards and agents: from flags, a file and Python; what does not exist is left out by name."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import date
from functools import partial

import gymnasium as gym
import pytest
import textgym_benchmarks.commands.bench as command
from fake_cells import tiny_suite, value_of
from textgym_benchmarks.run.cell import probe_cell
from textgym_benchmarks.run.runner import run_suite, score_samples
from textgym_benchmarks.selection import Product, full_id, make_suite, named_rewards, select, suite_file
from textgym_benchmarks.suite import Cell, Evaluation, Suite, from_fields
from textgym_benchmarks.suite_folder import read_suite
from textgym_benchmarks.suites import misfit, rows

from textgym.cli import main
from textgym.registry import TASKS

MODULE = '''
"""A task, rewards and an agent, as a user writes them."""
import gymnasium as gym
from textgym import Task, register_task
from textgym.prompts import prompt_set
from textgym.rewards import make_reward
from textgym.vocab import load_vocabulary
from textgym_agents.algorithms.fixed import RandomAgent


def vowels(prompts, completions, **columns):
    return [float(text[:1] in ("a", "e")) for text in completions]


def brief(prompts, completions, **columns):
    return [1 / (1 + len(text.split())) for text in completions]


def broken(prompts, completions, **columns):
    raise KeyError("no luck")


def task(reward="rules"):
    prompts = prompt_set(["a", "b"])
    paid = vowels if reward == "rules" else make_reward(reward)
    return Task(name="Own", prompts={"train": prompts, "eval": prompts}, vocabulary=load_vocabulary([*"abcde"]),
                reward=paid, gold=vowels, max_new_tokens=2)


class Picky(RandomAgent):
    def __init__(self, task, config=None):
        if task.reward is not task.gold:
            raise ValueError("reward: this agent takes the rules alone")
        super().__init__(task)


register_task("Own", task)
gym.register("mine/Own-v0", entry_point="textgym.env:TokenEnv",
             vector_entry_point="textgym.vector:TokenVectorEnv", kwargs={"task": "Own-v0"})
'''


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A module in the current folder, which no test before has imported; its name."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(TASKS, "_entries", {**TASKS._entries})
    before = dict(gym.registry)
    yield name
    gym.registry.clear()
    gym.registry.update(before)


def made(**data):
    return from_fields(Product, data).suite()


def test_a_product_has_a_cell_for_each_combination(own):
    suite, left_out = made(
        tasks=["mine/Own-v0", "Helpful"],
        rewards=["rules", "no_repeat", f"{own}:brief"],
        agents=["rloo", "q-learning"],
        episodes=64,
        seeds=2,
        settings={"rloo": {"learning_rate": 1e-3}},
    )
    # 3 rewards x 2 seeds: both agents on the own task, rloo alone on Helpful, which has too many states for a table.
    assert len(suite.cells) == 3 * 2 * 2 + 3 * 2
    assert suite.name == "own-helpful"
    cell = suite.cells[0]
    assert (cell.id, cell.task, cell.reward) == (f"{own}:mine/Own-v0", "mine/Own-v0 rules", "rules")
    assert {each.reward_name for each in suite.cells} == {"rules", "no_repeat", "brief"}
    assert {each.agent: each.config.get("learning_rate") for each in suite.cells} == {"rloo": 1e-3, "q-learning": None}
    (reason,) = left_out
    assert "too many" in reason
    assert left_out[reason] == [f"q-learning on Helpful under {name}" for name in ("rules", "no_repeat", "brief")]


def test_a_file_says_what_flags_say(own, tmp_path):
    (tmp_path / "my-own.toml").write_text(
        f'tasks = ["mine/Own-v0"]\nagents = ["rloo"]\nepisodes = 64\nseeds = 2\n[settings.rloo]\nlearning_rate = 1e-3\n'
        f'[rewards]\nrules = "rules"\nshort = "{own}:brief"\nten = {{ name = "length", target = 10 }}\n'
    )
    words = ["--rewards", "rules", f"short={own}:brief", 'ten={"name": "length", "target": 10}', "--episodes", "64"]
    words += ["--tasks", "mine/Own-v0", "--agents", "rloo", "--seeds", "2", "--set", "rloo.learning_rate=1e-3"]
    from_flags, _ = command.chosen_suite(command.parse(command.BenchFlags, words, "bench"))
    suite = make_suite("my-own.toml")
    assert suite.cells == from_flags.cells
    assert len(suite.cells) == 6
    assert suite.name == "my-own"
    # A flag stands in place of the file's line.
    words = ["--suite", "my-own.toml", "--seeds", "1"]
    changed, _ = command.chosen_suite(command.parse(command.BenchFlags, words, "bench"))
    assert changed.cells == tuple(cell for cell in suite.cells if cell.seed == 0)


def test_a_flag_of_an_agent_leaves_the_settings_of_the_others_in_a_file(own, tmp_path):
    (tmp_path / "my-own.toml").write_text(
        f'tasks = ["{own}:mine/Own-v0"]\nagents = ["rloo", "grpo"]\nepisodes = 64\nseeds = 1\n'
        "[settings.rloo]\ngroup = 8\nbatch = 32\n[evaluation]\nsplit = 'tune'\n"
    )
    words = ["--suite", "my-own.toml", "--set", "rloo.batch=64", "--set", "grpo.batch=16"]
    suite, _ = command.chosen_suite(command.parse(command.BenchFlags, words, "bench"))
    found = {cell.agent: cell.config for cell in suite.cells}
    assert found == {"rloo": {"group": 8, "batch": 64}, "grpo": {"batch": 16}}
    assert suite.evaluation.split == "tune"


def test_the_name_of_a_reward_is_its_own_unless_one_is_given():
    found = named_rewards(["default", "my_module:polite", {"name": "length", "target": 3}])
    assert found == {"default": None, "polite": "my_module:polite", "length": {"name": "length", "target": 3}}
    with pytest.raises(ValueError, match="two are called 'polite'; allowed are names of their own, as in NAME=REWARD"):
        named_rewards(["a:polite", "b:polite"])
    both = '["my_module:polite", {"name": "length", "target": 3}]'
    assert named_rewards([both]) == {"polite + length": ["my_module:polite", {"name": "length", "target": 3}]}


def test_an_unknown_task_and_reward_are_left_out(own):
    asked = {"tasks": ["Helpfull", f"{own}:mine/Own-v0"], "rewards": ["rules", "nonsense"], "agents": ["rloo"]}
    suite, left_out = made(**asked, seeds=1)
    assert [cell.task for cell in suite.cells] == ["mine/Own-v0 rules"]
    found = {tuple(those): reason for reason, those in left_out.items()}
    assert "Did you mean 'textgym/Helpful-v0'?" in found["Helpfull",]
    assert "reward 'nonsense': not one of" in found[f"{own}:mine/Own-v0 under nonsense",]
    with pytest.raises(ValueError, match="Helpfull: ID 'Helpfull': there is no such environment"):
        made(tasks=["Helpfull"])
    # A suite for Python is all that it says, or an error.
    with pytest.raises(FileNotFoundError):
        make_suite("nowhere.toml")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "tasks=(): allowed is a list of at least one name"),
        ({"tasks": "Helpful"}, "tasks='Helpful': allowed is a list"),
        ({"tasks": ["Helpful"], "reward": ["rules"]}, "Did you mean 'rewards'?"),
        ({"tasks": ["Helpful"], "rewards": []}, "rewards=(): allowed is at least one"),
        ({"tasks": ["Helpful"], "episodes": 0}, "episodes=0"),
        ({"tasks": ["Helpful"], "seeds": 0}, "seeds=0"),
        ({"tasks": ["Helpful"], "agents": ["rlo"]}, "Did you mean 'rloo'?"),
        (
            {"tasks": ["Helpful"], "agents": ["rloo"], "settings": {"lm-ppo": {}}},
            "settings: agent 'lm-ppo': not one of",
        ),
        ({"tasks": ["Helpful"], "agents": ["rloo"], "settings": {"rloo": {"learning": 1}}}, "not a setting of RLOO"),
        ({"tasks": ["Helpful"], "evaluation": {"point": 1}}, "Did you mean 'points'?"),
        ({"tasks": 5}, "tasks=5: allowed is a list"),
        ({"tasks": ["Helpful"], "rewards": 5}, "rewards=5: allowed is a list, or a table"),
        ({"tasks": ["Helpful"], "rewards": {"a": date(2020, 1, 1)}}, "rewards: datetime.date(2020, 1, 1): allowed is"),
        ({"tasks": ["Helpful"], "settings": 3}, "settings=3: allowed are settings by name"),
        ({"tasks": ["Helpful"], "settings": ["a"]}, "settings=['a']: allowed are settings by name"),
        ({"tasks": ["Helpful"], "settings": {"rloo": 3}}, "settings={'rloo': 3}: allowed are settings by name"),
        ({"tasks": ["Copy"], "agents": ["random"], "description": 5}, "description=5: allowed is a text"),
    ],
)
def test_bad_products_are_refused(data, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        made(**data)
    assert message in str(caught.value)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "x.toml").write_text("tasks = [")
    with pytest.raises(ValueError, match=r"x\.toml: it is no TOML"):
        suite_file(tmp_path / "x.toml")


def test_misfits():
    assert misfit("q-learning", "Helpful") == misfit("q-learning", "textgym/Helpful-v0") != ""
    assert misfit("q-learning", "Copy") == misfit("q-learning", "own:mine/Own-v0") == ""
    shaped = {"name": "shaped", "reward": "length"}
    assert "pays on the way" in misfit("dpo", "Helpful", shaped)
    assert misfit("rloo", "Helpful", shaped) == misfit("dpo", "Helpful", "rules") == ""


def test_rows_take_rewards_and_whole_ids():
    cells = rows(["Copy", "own:mine/Own-v0"], ["rloo"], 8, rewards={"default": None, "short": "own:brief"})
    assert [(cell.id, cell.reward_name, cell.reward) for cell in cells] == [
        ("textgym/Copy-v0", "default", None),
        ("textgym/Copy-v0", "short", "own:brief"),
        ("own:mine/Own-v0", "default", None),
        ("own:mine/Own-v0", "short", "own:brief"),
    ]


def test_episodes_and_settings_change_a_shipped_suite():
    suite = select(tiny_suite(), episodes=8, settings={"rloo": {"learning_rate": 0.5}})
    assert {cell.episodes for cell in suite.cells} == {8}
    assert [cell.config for cell in suite.cells] == [{}, {}, *[{"learning_rate": 0.5}] * 2]


def test_an_own_id_carries_its_module(own):
    assert full_id("mine/Own-v0", [own]) == full_id(f"{own}:mine/Own-v0") == f"{own}:mine/Own-v0"
    assert full_id("Copy", [own]) == "textgym/Copy-v0"


def fake(suite, out, function="quick"):
    return run_suite(suite, out, engine="serial", function=f"fake_cells:{function}")


def test_a_started_folder_takes_more_agents_and_seeds(tmp_path):
    first = fake(tiny_suite(("lm-ppo",)), tmp_path)
    results = fake(tiny_suite(("lm-ppo", "grpo"), 3), tmp_path)
    assert [result.cell for result in results] == list(tiny_suite(("lm-ppo", "grpo"), 3).cells)
    assert results[:2] == first
    assert [(tmp_path / "cells" / each.cell.key / "calls").read_text() for each in results] == ["x"] * 6
    assert [cell.agent for cell in read_suite(tmp_path).cells] == ["lm-ppo"] * 3 + ["grpo"] * 3
    # A smaller suite runs its own cells, and leaves the others there.
    (alone,) = fake(tiny_suite(("rloo",), 1), tmp_path)
    assert alone.measures["after"]["reward"]["mean"] == value_of(alone.cell)
    assert len(read_suite(tmp_path).cells) == 7


def bench(*words):
    return main(["bench", "--engine", "serial", *words])


@pytest.fixture
def fake_run(monkeypatch):
    monkeypatch.setattr(command, "run_suite", partial(run_suite, function="fake_cells:quick"))


def test_the_command_runs_a_product_and_says_what_is_left_out(own, fake_run, capsys, tmp_path):
    words = ["--tasks", "mine/Own-v0", "Helpfull", "--rewards", "rules", f"{own}:brief", "--agents", "rloo"]
    words += ["--seeds", "1"]
    assert bench(*words) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("tasks: 2, rewards: 2; looking at which go together\n")
    assert "2 of 2 done" in captured.out
    assert captured.err.count("left out") == 1
    assert "left out: Helpfull: ID 'Helpfull'" in captured.err
    assert (tmp_path / "runs" / "bench-own" / "suite.json").exists()
    # A flag that is given twice takes both values.
    assert bench(*words[:2], "--rewards", "rules", *words[6:], "--agents", "random", "--rewards", f"{own}:brief") == 0
    assert "4 of 4 done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rewards", "rules"], "--rewards: goes with --tasks"),
        (["--suite", "ci", "--tasks", "Copy"], "--tasks: goes with no --suite but a file's"),
        (["--tasks", "Copy", "--rewards", "{1}"], "rewards: {1}: not JSON"),
        (
            ["--tasks", "Copy", "--rewards", "a:f", "b:f"],
            "two are called 'f'; allowed are names of their own",
        ),
        (["--tasks", "Copy", "--set", "learning_rate=1"], "allowed is AGENT.SETTING=VALUE"),
        (["--tasks", "Copy", "--agents", "rloo", "--set", "rloo.x=1"], "'x' is not a setting of RLOO"),
        (["--suite", "nowhere.toml"], "nowhere.toml: No such file"),
    ],
)
def test_bad_flags_are_one_line(capsys, words, message):
    assert bench(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_what_fails_in_one_cell_leaves_the_others_unharmed_and_is_told_in_a_line(own, capsys):
    """Real cells: a reward that raises, and an agent that cannot take one."""
    words = ["--tasks", "mine/Own-v0", "--rewards", "rules", f"{own}:broken", "--seeds", "1", "--episodes", "64"]
    assert bench(*words, "--agents", "random", f"{own}:Picky", "--out", "out") == 1
    captured = capsys.readouterr()
    print(captured.out)
    table = [line.split() for line in captured.out.splitlines() if line.strip().startswith("mine/Own-v0")]
    assert table == [["mine/Own-v0,", "rules", "0.000", "0.000"], ["mine/Own-v0,", "broken", *["1", "failed"] * 2]]
    last = captured.err.strip().splitlines()[-1]
    assert last.count("textgym:") == 1
    assert "2 of 4 cells failed" in last
    assert "RewardError: reward 'broken' raised KeyError: 'no luck'" in last
    assert "ValueError: reward: this agent takes the rules alone" in last


@pytest.mark.slow
def test_samples_are_scored_under_every_reward_by_hand(own, tmp_path):
    rewards = {"rules": "rules", "brief": f"{own}:brief", "broken": f"{own}:broken"}
    tiny = Evaluation(points=1, samples=2)
    place = full_id("mine/Own-v0", [own])
    cells = [Cell(place, "random", 8, 0, rewards[name], name) for name in rewards]
    results = run_suite(Suite("scored", tuple(cells), evaluation=tiny), tmp_path / "out", engine="serial")
    assert [result.status for result in results] == ["done", "done", "failed"]
    for result in results[:2]:
        for sample in result.measures["samples"]:
            after = sample["after"]
            words = after["completion"].split()
            assert after["rewards"] == {
                "rules": float(words[:1] in (["a"], ["e"])),
                "brief": pytest.approx(1 / (1 + len(words))),
                "broken": None,
            }
            assert after["rewards"][result.cell.reward_name] == pytest.approx(after["reward"])
    before = {path: path.read_bytes() for path in tmp_path.glob("out/cells/*/result.json")}
    score_samples(tmp_path / "out", "eval")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("agent", ["random", "q-learning"])
def test_a_probe_tells_time_and_memory_and_writes_nothing(own, agent, tmp_path):
    files = sorted(tmp_path.rglob("*"))
    cell = Cell(full_id("mine/Own-v0", [own]), agent, 10_000, 0, "rules", "rules")
    found = probe_cell(cell.to_json(), asdict(Evaluation()))
    more = probe_cell(Cell(cell.id, agent, 10**9, 0, "rules", "rules").to_json(), asdict(Evaluation()))
    assert (found["learning"] > 0) == (agent != "random")
    assert more["learning"] >= 1000 * found["learning"]  # the same pace within a factor of 100
    assert found["measuring"] > 0
    assert 50 * 2**20 < found["peak"] < 2**36
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)] == [
        path for path in files if "__pycache__" not in str(path)
    ]


def test_the_dry_run_prints_kinds_of_cells_and_runs_none(own, capsys, tmp_path):
    words = ["--tasks", "mine/Own-v0", "--rewards", "rules", f"{own}:broken", "--agents", "random", "q-learning"]
    assert bench(*words, "--seeds", "2", "--dry-run") == 0
    captured = capsys.readouterr()
    assert "8 cells, 8 without a result" in captured.out
    table = [line.split() for line in captured.out.splitlines() if line.strip().startswith("mine/Own-v0")]
    assert [row[1:5] for row in table] == [
        [reward, agent, "4,096", "2"] for reward in ("rules", "broken") for agent in ("random", "q-learning")
    ]
    assert [row[5] == "fails" for row in table] == [False, False, True, True]
    assert "estimate" in captured.out
    assert captured.err.count("reward 'broken' raised KeyError") == 2
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_that_runs_failed_cells_again_counts_them(own, capsys):
    words = ["--tasks", "mine/Own-v0", "--rewards", f"{own}:broken", "--agents", "random", "--seeds", "1"]
    words += ["--episodes", "64", "--engine", "serial", "--out", "failing"]
    assert bench(*words) == 1
    assert bench(*words, "--dry-run") == 0
    assert "1 cells, 0 without a result" in capsys.readouterr().out
    assert bench(*words, "--dry-run", "--retry-failed") == 0
    assert "1 cells, 1 to run" in capsys.readouterr().out


def test_json_of_a_product_goes_through_json():
    data = {"tasks": ["Copy"], "agents": ["random"], "episodes": 8, "seeds": 1, "evaluation": {"points": 2}}
    suite, _ = made(**json.loads(json.dumps(data)))
    assert suite.evaluation == Evaluation(points=2)
