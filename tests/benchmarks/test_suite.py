"""Suites: rows are what they say, survive JSON, and ask for what there is."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace

import gymnasium as gym
import pytest
from hypothesis import given
from hypothesis import strategies as st
from textgym_agents.registry import agent_class, agent_names, make_config
from textgym_agents.training.curriculum import CurriculumSettings
from textgym_benchmarks.selection import make_suite, select
from textgym_benchmarks.suite import LARGEST_SEED, Cell, Evaluation, Suite, parted
from textgym_benchmarks.suites import AGENTS, TASKS, cost, rows

from textgym.registry import SUITES

CELL = Cell("textgym/Copy-v0", "lm-ppo", 100, 0)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
options = st.dictionaries(st.text().filter(lambda name: name not in ("reward", "seed")), values, max_size=3)
cells = st.builds(
    Cell,
    id=st.text(min_size=1),
    agent=st.text(min_size=1),
    episodes=st.integers(1, 10**9),
    seed=st.integers(0, LARGEST_SEED),
    reward=st.none() | st.text() | st.dictionaries(st.text(), values, max_size=2),
    reward_name=st.text(min_size=1),
    env=options,
    config=options,
    label=st.text(),
)


@pytest.mark.slow
@given(cells)
def test_a_cell_survives_json(cell):
    again = Cell.from_json(json.loads(json.dumps(cell.to_json())))
    assert again == cell
    assert again.key == cell.key
    assert hash(again) == hash(cell)


@pytest.mark.slow
@given(cells)
def test_a_key_is_a_plain_name_of_a_folder(cell):
    assert set(cell.key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert len(cell.key) < 200
    assert not cell.key.startswith((".", "-"))


def test_the_key_is_stable_and_depends_on_all_that_changes_the_numbers():
    # sha256 of {"agent":"lm-ppo","config":{},"env":{},"episodes":100,"id":"textgym/Copy-v0","reward":null,"seed":0}
    assert CELL.key == "copy-v0.default.lm-ppo.s0.f1e493ed"
    changes = [
        {"id": "textgym/Stop-v0"},
        {"agent": "rloo"},
        {"episodes": 101},
        {"seed": 1},
        {"reward": "length"},
        {"env": {"difficulty": 1}},
        {"config": {"clip": 0.1}},
    ]
    hashes = {replace(CELL, **change).key.rpartition(".")[2] for change in changes}
    assert len(hashes | {CELL.key.rpartition(".")[2]}) == len(changes) + 1


def test_tuples_become_the_lists_that_json_has():
    assert Cell("a", "b", 1, 0, config={"sizes": (1, 2)}).config == {"sizes": [1, 2]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 0}, "episodes=0: allowed is an integer >= 1"),
        ({"episodes": True}, "episodes=True"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**31}, "from 0 to 2147483647"),
        ({"agent": ""}, "agent=''"),
        ({"reward": 3}, "reward=3"),
        ({"env": {"reward": "length"}}, "'reward' is a field of the cell"),
        ({"config": {"seed": 1}}, "'seed' is a field of the cell"),
        ({"config": {"rate": float("nan")}}, "allowed are JSON values"),
        ({"config": {"model": object()}}, "allowed are JSON values"),
        ({"env": [1]}, "env=.*mapping"),
    ],
)
def test_bad_cells(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CELL, **change)


def test_bad_json_of_cells_names_what_is_wrong():
    data = CELL.to_json()
    for bad, message in [
        ([], "holds a list"),
        ({**data, "episode": 3}, "Did you mean 'episodes'"),
        ({"id": "a"}, "missing"),
        ({**data, "key": "other"}, "its key is 'other'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Cell.from_json(bad)


def test_bad_suites():
    with pytest.raises(ValueError, match="stands there twice"):
        Suite("a", (CELL, CELL))
    with pytest.raises(ValueError, match="name='A b'"):
        Suite("A b", (CELL,))
    with pytest.raises(ValueError, match="at least one"):
        Suite("a", ())
    with pytest.raises(ValueError, match="points=0"):
        Evaluation(points=0)
    with pytest.raises(ValueError, match="Did you mean 'core'"):
        make_suite("cor")
    with pytest.raises(TypeError, match=r"returned \d+.*; allowed is a Suite"):
        make_suite("time:time")


@pytest.mark.parametrize("name", list(SUITES))
def test_the_suites_ask_for_what_there_is_with_equal_budgets(name):
    suite = make_suite(name)
    assert suite == make_suite(name)
    assert suite.name == name
    assert Suite.from_json(json.loads(json.dumps(suite.to_json()))) == suite
    budgets = defaultdict(set)
    for cell in suite.cells:
        assert cell.id in gym.registry
        assert cell.agent in agent_names()
        budgets[cell.id, cell.reward_name].add(cell.episodes)
    assert all(len(found) == 1 for found in budgets.values())
    for agent, config in {(cell.agent, json.dumps(cell.config)) for cell in suite.cells}:
        own, drawn = parted(json.loads(config))
        make_config(agent_class(agent), own)
        CurriculumSettings(**drawn)


def test_a_suite_of_ones_own():
    assert make_suite("fake_cells:tiny_suite").name == "tiny"


@pytest.mark.slow
def test_the_sizes_of_the_suites():
    hours = {name: sum(map(cost, make_suite(name).cells)) / 3600 for name in SUITES}
    assert hours["quick"] < 0.33  # CPU hours: 10 minutes on two cores
    assert hours["core"] < 4
    full = {(cell.id, cell.agent) for cell in make_suite("full").cells}
    assert {cell for cell, _ in full} == {f"textgym/{task}-v0" for task in TASKS}
    # The reference is the zero of every scale; value-guided decoding and distillation need the run of another agent.
    others = {"reference", "value-guided", "distill"}
    assert {agent for _, agent in full} == set(AGENTS) == set(agent_names()) - others


def test_the_rewards_suite_crosses_tasks_and_rewards():
    found = {(cell.id, cell.reward_name) for cell in make_suite("rewards").cells}
    tasks = ("Helpful", "Harmless", "Honest", "HHH")
    assert found >= {(f"textgym/{task}-v0", name) for task in tasks for name in ("rules", "model", "shaped")}


SMALL = Suite(
    "small",
    (
        *rows(["Bandit", "Copy"], ["lm-ppo", "q-learning"], 64, seeds=2),
        *rows(["Helpful"], ["lm-ppo"], 32, seeds=2, config={"clip": 0.1}),
    ),
)


def test_selecting_agents_of_the_suite():
    chosen = select(SMALL, ["q-learning"])
    assert chosen.cells == tuple(cell for cell in SMALL.cells if cell.agent == "q-learning")
    assert select(SMALL) == SMALL


def test_agents_without_rows_get_those_of_the_main_agent():
    for agent in ("rloo", "quiet_agent:QuietAgent"):
        cells = select(SMALL, ["q-learning", agent]).cells[4:]
        assert [(cell.id, cell.episodes, cell.seed) for cell in cells] == [
            (cell.id, cell.episodes, cell.seed) for cell in SMALL.cells if cell.agent == "lm-ppo"
        ]
        assert {(cell.agent, json.dumps(cell.config)) for cell in cells} == {(agent, "{}")}


def test_another_number_of_seeds():
    more = select(SMALL, ["lm-ppo"], seeds=3).cells
    assert [(cell.id, cell.seed) for cell in more] == [
        (f"textgym/{task}-v0", seed) for task in ("Bandit", "Copy", "Helpful") for seed in range(3)
    ]
    assert set(select(SMALL, seeds=1).cells) < set(SMALL.cells)


@pytest.mark.parametrize(
    ("agents", "seeds", "message"),
    [
        (["lm-pppo"], None, "Did you mean 'lm-ppo'"),
        ([], None, "at least one"),
        (["rloo", "rloo"], None, "stands there twice"),
        (["json:dumps"], None, "is no class"),
        (["lm-ppo"], 0, "seeds=0"),
    ],
)
def test_what_cannot_be_selected(agents, seeds, message):
    with pytest.raises(ValueError, match=message):
        select(SMALL, agents, seeds)


@pytest.mark.parametrize("agents", [["grpo", "DAPO"], ["DAPO", "grpo"]])
def test_an_agent_and_one_of_its_labels_are_taken_once(agents: list[str]) -> None:
    suite = make_suite("core")
    assert {*select(suite, agents).cells} == {*select(suite, ["grpo"]).cells}
    with pytest.raises(ValueError, match="'grpo' stands there twice"):
        select(suite, ["grpo", "grpo"])
