"""Packages that are installed beside TextGym: used by name, named where they are broken or clash."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest
from cli_tools import COMMAND, ROOT, environment

pytestmark = pytest.mark.slow

GUIDE = ROOT / "CONTRIBUTING.md"
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
GROUPS = ("tasks", "rewards", "agents", "suites", "commands")
Points = Mapping[str, Mapping[str, str]]
"""Group -> name -> "module:attribute"."""


def guide() -> tuple[dict[str, str], Points]:
    """The modules of the guide's package, and its entry points."""
    files = dict(FILE.findall(GUIDE.read_text(encoding="utf-8")))
    return files, tomllib.loads(files.pop("pyproject.toml"))["project"]["entry-points"]


def install(site: Path, name: str, files: Mapping[str, str], points: Points) -> Path:
    """Build a wheel of version 1.0 by hand, and unpack it into a folder as installers do."""
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    sections = [
        "\n".join([f"[{group}]", *(f"{key} = {target}" for key, target in names.items())])
        for group, names in points.items()
    ]
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n\n".join(sections) + "\n",
    }
    rows = []
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        rows.append(f"{path},sha256={digest},{len(text.encode())}")
    content[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    site.mkdir(parents=True, exist_ok=True)
    wheel = site.parent / f"{info.removesuffix('.dist-info')}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return wheel


def every_group(module: str, **names: str) -> Points:
    """One entry point per group, of the same name or of those that are given."""
    return {f"textgym.{group}": {names.get(group, "mine"): f"{module}:{group}"} for group in GROUPS}


def key(group: str) -> str:
    """What a registry calls "mine"."""
    return "mine-v0" if group == "tasks" else "mine"


def run(site: Path, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that finds TextGym's source and the folder of installed packages."""
    variables = environment() | {"COLUMNS": "200"}
    variables["PYTHONPATH"] += f"{os.pathsep}{site}"
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False, cwd=cwd or site.parent)


def python(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    return run(site, sys.executable, "-c", code)


@pytest.fixture(scope="module")
def vowels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guide's package installed."""
    site = tmp_path_factory.mktemp("vowels") / "site"
    install(site, "textgym-vowels", *guide())
    return site


def test_the_guide_s_examples_are_short_and_compile() -> None:
    files, points = guide()
    assert set(points) == {f"textgym.{group}" for group in GROUPS}
    assert len(files) == len(GROUPS)
    for path, text in files.items():
        compile(text, path, "exec")
        assert len([line for line in text.splitlines() if line]) <= 40


USE = """
import json, sys
import gymnasium as gym
import textgym
imported = sorted(name for name in sys.modules if name.startswith("textgym_vowels"))
from textgym import make_task
from textgym.rewards import make_reward
from textgym_agents import load_agent, make_agent, make_env
from textgym_benchmarks.selection import make_suite

env = gym.make("textgym/Vowels-v0", length=2)
observation, info = env.reset(seed=0)
rewards = [env.step(token)[1] for token in (0, 1)]
task = make_task("Vowels", length=3)
vector = make_env("textgym/Vowels-v0", 64)
agent = make_agent("cross-entropy", vector)
scores = []
agent.learn(vector, 64 * 8, lambda metrics: scores.append(metrics["objective/scores"]))
agent.save("agent")
again = load_agent("agent", vector)
suite = make_suite("vowels")
print(json.dumps({
    "imported": imported, "rewards": rewards, "length": task.max_new_tokens,
    "reward": make_reward({"name": "vowels", "letters": "xy"})(prompts=[""], completions=["x-z"]),
    "scores": [scores[0], scores[-1]], "same": bool((again.probs == agent.probs).all()),
    "cells": [cell.agent for cell in suite.cells],
}))
"""


def test_the_guide_s_package_is_used_by_name(vowels: Path) -> None:
    done = python(vowels, USE)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    first, last = found.pop("scores")
    assert first < 0.5 < 0.9 < last
    assert found == {
        "imported": [],  # nothing is imported before it is asked for
        "rewards": [0.0, 0.5],
        "length": 3,
        "reward": [0.5],
        "same": True,
        "cells": ["random", "random", "cross-entropy", "cross-entropy"],
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("vowels", "--text", "Hello"), "0.40\n"),
        (("--help",), "Print the share of vowels among the letters of a text."),
        (("vowels", "--help"), "What to score."),
        (("list", "--json"), '"id": "textgym/Vowels-v0"'),
        (("bench", "--list"), "Vowels by cross-entropy."),
        pytest.param(
            ("bench", "--suite", "vowels", "--seeds", "1", "--engine", "serial"),
            "cross-entropy",
            marks=pytest.mark.long,
        ),
    ],
)
def test_the_guide_s_package_on_the_command_line(vowels: Path, words: tuple[str, ...], said: str) -> None:
    done = run(vowels, *COMMAND, *words)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


LIST = """
import warnings
import gymnasium as gym
import textgym
from textgym.registry import AGENTS, COMMANDS, REWARDS, SUITES, TASKS
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for registry in (TASKS, REWARDS, AGENTS, SUITES, COMMANDS) * 2:
        summaries = [registry.summary(name) for name in registry]
        assert summaries.count("(cannot be loaded)") == 1
for warning in caught:
    print(warning.category.__name__, warning.message)
gym.make("textgym/Bandit-v0").reset(seed=0)
try:
    gym.make("textgym/mine-v0")
except ImportError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.long
def test_a_broken_package_is_named_once_and_all_else_works(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "broken-kit", {"broken_kit.py": "import no_such_module\n"}, every_group("broken_kit"))
    done = python(site, LIST)
    assert done.stderr == ""
    *warned, raised = done.stdout.splitlines()
    fault = "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"
    assert warned == [
        f"TextGymWarning {group[:-1]} '{key(group)}' of broken-kit 1.0 (broken_kit:{group}) {fault}" for group in GROUPS
    ]
    assert raised.startswith(f"ImportError task 'mine-v0' of broken-kit 1.0 (broken_kit:tasks) {fault}")
    for words in (("--help",), ("list",)):
        shown = run(site, *COMMAND, *words)
        assert shown.returncode == 0
        assert shown.stderr.count("textgym: warning:") == shown.stderr.count("\n") == 1
        assert fault in shown.stderr
    suites = run(site, *COMMAND, "bench", "--list")
    assert suites.returncode == 0
    assert "suite 'mine' of broken-kit 1.0" in suites.stdout
    assert "full" in suites.stdout
    asked = run(site, *COMMAND, "mine")
    assert asked.returncode == 2
    assert f"command 'mine' of broken-kit 1.0 (broken_kit:commands) {fault}" in asked.stderr


LOAD = """
import gymnasium as gym
import textgym
from textgym.registry import AGENTS, COMMANDS, REWARDS, SUITES, TASKS
for registry in (TASKS, REWARDS, AGENTS, SUITES, COMMANDS):
    try:
        registry.load("mine")
    except ValueError as error:
        print(error)
for make in (lambda: gym.make("textgym/mine-v0"), lambda: gym.make("textgym/Bandit-v0")):
    try:
        make().reset(seed=0)
        print("works")
    except ValueError as error:
        print(str(error).partition(" was raised")[0])
"""


def test_a_name_taken_twice_is_an_error_that_names_both(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("first-kit", "second-kit"):
        module = name.replace("-", "_")
        functions = "".join(f"def {group}(*words):\n    pass\n" for group in GROUPS)
        install(site, name, {f"{module}.py": functions}, every_group(module))
    done = python(site, LOAD)
    assert done.stderr == ""
    *loaded, mine, other = done.stdout.splitlines()
    for group, message in zip(GROUPS, loaded, strict=True):
        first, second = (f"{word}-kit 1.0 ({word}_kit:{group})" for word in ("first", "second"))
        assert message.startswith(f"{group[:-1]} '{key(group)}' is taken already by ")
        assert first in message
        assert second in message
    assert (mine, other) == (loaded[0], "works")


def test_a_built_in_name_and_odd_entry_points(tmp_path: Path) -> None:
    site = tmp_path / "site"
    points = {
        "textgym.tasks": {"Bandit-v0": "odd_kit:build", "Bandit-v3": "odd_kit:build", "9-lives": "odd_kit:build"},
        "textgym.rewards": {"none": "odd_kit", "missing": "odd_kit:missing", "number": "odd_kit:NUMBER"},
    }
    install(site, "odd-kit", {"odd_kit.py": "NUMBER = 3\ndef build():\n    return 3\n"}, points)
    code = """
import textgym
from textgym.registry import REWARDS, TASKS
assert TASKS.load("Bandit") is TASKS.load("Bandit-v3")
for registry, name in ((TASKS, "Bandit-v0"), (REWARDS, "missing"), (REWARDS, "number")):
    try:
        registry.load(name)
    except (ImportError, ValueError) as error:
        print(error)
"""
    done = python(site, code)
    assert done.stdout.splitlines() == [
        f"task 'Bandit-v0' is taken already by textgym {version('textgym')} "
        "(textgym.tasks.diagnostics.exploration:bandit_task); odd-kit 1.0 (odd_kit:build) claims it, too; "
        "uninstall one of them",
        "reward 'missing' of odd-kit 1.0 (odd_kit:missing) cannot be loaded: ValueError: reward 'odd_kit:missing': "
        "module 'odd_kit' has no 'missing'.",
        "reward 'number' of odd-kit 1.0 (odd_kit:NUMBER) cannot be loaded: ValueError: reward 'odd_kit:NUMBER': "
        "it is no class or function",
    ]
    assert "entry point of odd-kit 1.0: name='9-lives': allowed are letters" in done.stderr
    assert "entry point of odd-kit 1.0: none='odd_kit': allowed is a function, a class or" in done.stderr
    listed = python(site, "from textgym.commands.list import main; main([])").stdout
    assert "textgym/Bandit-v0: task 'Bandit-v0' is taken already by" in listed
    assert "textgym/Bandit-v3: task 'Bandit-v3': its builder returned 3" in listed
