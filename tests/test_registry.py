"""One registry: every name that ships leads somewhere, and every message names what is allowed."""

from __future__ import annotations

import tomllib

import pytest
from cli_tools import ROOT

from textgym.registry import (
    AGENTS,
    COMMANDS,
    RESPONDERS,
    REWARDS,
    SUITES,
    TASKS,
    Entry,
    Registry,
    TaskEntry,
    load_target,
)
from textgym.task import make_task

REGISTRIES = {registry.kind: registry for registry in (TASKS, REWARDS, RESPONDERS, AGENTS, SUITES, COMMANDS)}
TABLES = [
    ROOT / place / "builtin.toml" for place in ("textgym", "agents/textgym_agents", "benchmarks/textgym_benchmarks")
]
BUILT_IN = [
    (group.removesuffix("s"), key.partition("-v0")[0] if group == "tasks" else key)
    for table in TABLES
    for group, lines in tomllib.loads(table.read_text(encoding="utf-8")).items()
    for key in lines
]


def build() -> int:
    """Build a number.

    For tests.
    """
    return 3


def other() -> int:
    return 4


@pytest.fixture
def registry() -> Registry[TaskEntry]:
    """A registry of its own, which knows the tasks that ship."""
    return Registry("task", TaskEntry)


def test_all_kinds_have_names_that_ship() -> None:
    assert {kind for kind, _ in BUILT_IN} == set(REGISTRIES)
    assert len(BUILT_IN) == len(set(BUILT_IN)) > 90


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_every_name_that_ships_leads_somewhere(kind: str, name: str) -> None:
    if name.startswith("sb3-"):
        pytest.importorskip("stable_baselines3")
        pytest.importorskip("sb3_contrib")
    assert callable(REGISTRIES[kind].load(name))
    assert 8 < len(REGISTRIES[kind].summary(name)) <= 120


@pytest.mark.parametrize("name", [name for kind, name in BUILT_IN if kind == "task"])
def test_a_task_says_of_itself_what_its_line_says(name: str) -> None:
    entry, task = TASKS.entry(name), make_task(name)
    assert (entry.family, entry.name) == (task.family, task.name)
    facts = (task.reward_name, task.vocabulary.size, task.max_new_tokens)
    assert (entry.reward, entry.vocabulary, entry.horizon) == facts


@pytest.mark.parametrize("kind", REGISTRIES)
def test_an_unknown_name_suggests_the_nearest(kind: str) -> None:
    registry = REGISTRIES[kind]
    name = next(registry.entry(key).name for key in registry if len(key) > 7)
    for ask in (registry.entry, registry.load, registry.summary):
        with pytest.raises(ValueError, match=rf"{kind} '{name}x': not one of .* Did you mean '{name}'\?"):
            ask(f"{name}x")


def test_a_name_is_taken_once(registry: Registry[TaskEntry]) -> None:
    entry = TaskEntry("Mine", build)
    assert registry.add(entry) == registry.add(TaskEntry("Mine", build)) == entry
    assert registry.load("Mine") is build
    assert registry.summary("Mine") == "Build a number."
    for taken in (TaskEntry("Mine", other), TaskEntry("Bandit", build)):
        with pytest.raises(ValueError, match=f"task '{taken.key}' is taken already by .* claims it, too"):
            registry.add(taken)
    assert "Mine" in registry
    assert "Mine" not in TASKS


def test_versions_stand_side_by_side(registry: Registry[TaskEntry]) -> None:
    shipped = registry.load("Bandit")
    for version, builder in ((9, build), (10, other)):
        registry.add(TaskEntry("Bandit", builder, version=version))
    found = [registry.load(name) for name in ("Bandit-v0", "Bandit-v9", "Bandit-v10", "Bandit")]
    assert found == [shipped, build, other, other]
    assert [key for key in registry if registry.entry(key).name == "Bandit"] == ["Bandit-v0", "Bandit-v9", "Bandit-v10"]
    assert "Bandit-v1" not in registry
    with pytest.raises(ValueError, match=r"task 'Bandit-v1': not one of .*Did you mean 'Bandit'\?"):
        registry.entry("Bandit-v1")


@pytest.mark.parametrize(
    ("key", "id_"), [("Coin", "textgym/Coin-v0"), ("Coin-v0", "textgym/Coin-v0"), ("A-v12", "textgym/A-v12")]
)
def test_a_key_may_hold_the_version(key: str, id_: str) -> None:
    assert TaskEntry.read(key, "a:b").id == id_


@pytest.mark.parametrize(
    ("kind", "name", "target", "said"),
    [
        (Entry, "", build, "name='': allowed is a text without spaces"),
        (Entry, "a b", build, "name='a b'"),
        (Entry, "a:b", build, "name='a:b'"),
        (Entry, "a/b", build, "name='a/b'"),
        (Entry, 3, build, "name=3"),
        (TaskEntry, "a-b", build, "name='a-b': allowed are letters, digits and underscores"),
        (TaskEntry, "3", build, "not starting with a digit"),
        (Entry, "a", 3, "a=3: allowed is a function, a class or the text 'module:attribute'"),
        (Entry, "a", "no_colon", "a='no_colon'"),
        (Entry, "a", "module:", "a='module:'"),
    ],
)
def test_entries_of_another_form(kind: type[Entry], name: str, target: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(name, target)


def test_targets_that_lead_nowhere() -> None:
    assert load_target("textgym.task:Task", "task").__name__ == "Task"
    with pytest.raises(ValueError, match=r"module 'textgym.task' has no 'Tsk'. Did you mean 'Task'\?"):
        load_target("textgym.task:Tsk", "task")
    with pytest.raises(ValueError, match=r"task 'textgym.task:MOST_TOKENS': it is no class or function"):
        load_target("textgym.task:MOST_TOKENS", "task")
    with pytest.raises(ValueError, match="task 'textgym': allowed is module:attribute"):
        load_target("textgym", "task")
    with pytest.raises(ModuleNotFoundError):
        load_target("no_such_module:x", "task")


def test_what_is_added_at_run_time_is_made_like_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from textgym_benchmarks.selection import make_suite

    for registry in (TASKS, SUITES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    TASKS.add(TaskEntry("Number", build))
    SUITES.add(Entry("number", build))
    with pytest.raises(TypeError, match=r"task 'Number': its builder returned 3; allowed is a textgym.task.Task"):
        make_task("Number")
    with pytest.raises(TypeError, match="suite 'number': its function returned 3; allowed is a Suite"):
        make_suite("number")
