"""Tasks, rewards and agents of one's own, in commands that start in a fresh folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import COMMAND, ROOT, environment, run

from textgym.checks import users_line

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "own_task.md").read_text(encoding="utf-8")
MODULE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
COMMANDS, PROJECT = (block.splitlines() for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
# Runs the lines of a shell that are read, one after the other, and prints the output of each as JSON.
SESSION = """
import contextlib, io, json, shlex, sys
from textgym.cli import main
lines, sys.stdin = sys.stdin, io.StringIO()
for line in lines:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(line)[1:])
    sys.__stdout__.write(json.dumps([code, out.getvalue(), err.getvalue()]) + "\\n")
    sys.__stdout__.flush()
"""


class Fresh:
    """A folder with the page's module and one with faults, and a process in it that starts as `textgym` does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        texts = {"salt": MODULE, "faulty": FAULTY, "unfinished": "x = (\n", "lacking": "import no_such_package\n"}
        for name, text in texts.items():
            (folder / f"{name}.py").write_text(text, encoding="utf-8")
        words, variables = [sys.executable, "-P", "-c", SESSION], environment() | {"COLUMNS": "200"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, cwd=folder, env=variables, stdin=pipe, stdout=pipe, text=True)

    def session(self, *lines: str) -> list[list]:
        """Code, output and errors of command lines, one after the other."""
        self.process.stdin.write("".join(f"{line}\n" for line in lines))
        self.process.stdin.flush()
        return [json.loads(self.process.stdout.readline()) for _ in lines]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    started = Fresh(tmp_path_factory.mktemp("fresh"))
    yield started
    started.process.communicate(timeout=60)
    assert started.process.returncode == 0


@pytest.mark.long
def test_the_page_s_task_is_fifteen_lines_and_taken_by_every_command(fresh):
    assert len([line for line in MODULE.splitlines() if line]) <= 15
    short = [line.replace("--episodes 2048", "--episodes 64 --batch 32 --minibatches 2") for line in COMMANDS]
    preferences = "textgym preferences salt:mine/Ask-v0 --policy runs/ask --out p.jsonl"
    found = fresh.session(*short, preferences, "textgym play salt:mine/Ask-v0 --prompt-index 0")
    assert [(code, err) for code, _, err in found if code] == []
    said = ["mine/Ask-v0", "J* 0.8", "optimality", "mine/Ask-v0", "mine/Ask-v0", "100 episodes"]
    for (_, out, _), text in zip(found, said, strict=False):
        assert text in out
    assert (fresh.folder / "recordings/ask-v0/data").is_dir()
    assert json.loads((fresh.folder / "runs/ask/config.json").read_text())["id"] == "mine/Ask-v0"
    assert len((fresh.folder / "p.jsonl").read_text().splitlines()) > 0


@pytest.mark.long
def test_a_suite_of_one_s_own_runs_one_s_own_id_in_processes(fresh):
    (fresh.folder / "mine.py").write_text(
        "from textgym_benchmarks.suite import Cell, Evaluation, Suite\n"
        "def suite():\n"
        "    measured = Evaluation(points=1, per_prompt=1, final_per_prompt=2)\n"
        '    return Suite("own", (Cell("salt:mine/Ask-v0", "random", 8, 0),), evaluation=measured)\n'
    )
    done = subprocess.run(
        [*COMMAND, "bench", "--suite", "mine:suite", "--workers", "1"],
        cwd=fresh.folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 1 done" in done.stdout


def test_the_page_s_project_lines_are_those_that_new_prints(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = {line.strip().partition(" --episodes")[0] for line in run(capsys, "new", "my-task")[1].splitlines()}
    assert {line.partition(" --episodes")[0] for line in PROJECT[1:]} <= printed


FAULTY = '''
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    rate: float = 0.25
    """How fast it would learn."""

class Agent:
    config_type = Settings

    def __init__(self, task, config=None):
        self.config = config or Settings()

    def learn(self, env, episodes, callback=None):
        raise KeyError("learning " + str(self.config.rate))

    def act(self, observation, deterministic=False):
        return [1] * len(observation["input_ids"])

    def log_probs(self, observation):
        return None

    def save(self, path):
        """Save nothing."""

    @classmethod
    def load(cls, path, env):
        return cls(None)

class Untaken(Agent):
    def __init__(self, task):
        super().__init__(task)

class Lost(Agent):
    @classmethod
    def load(cls, path, env):
        """Forget to return it."""

def reward(prompts, completions, **columns):
    return [1 / 0 for _ in prompts]

def fine(prompts, completions, **columns):
    return [0.5 for _ in prompts]

def short(prompts, completions, **columns):
    return [1.0]
'''


@pytest.mark.long
def test_errors_of_the_user_s_own_code_show_the_user_s_line(fresh):
    place = "(faulty.py, line 41: return [1 / 0 for _ in prompts])"
    division = f"reward 'reward' raised ZeroDivisionError: division by zero {place}"
    key = """KeyError: 'learning 0.5' (faulty.py, line 16: raise KeyError("learning " + str(self.config.rate)))"""
    train = "textgym train Copy-v0 --episodes 8 --agent"
    text = "textgym train Text-v0 --episodes 8 --agent random --env max_new_tokens=4 reward="
    expected = {
        f"{text}faulty:reward": division,
        f"{text}faulty:reward timeout=9": division,
        f"{text}faulty:short": "for 256 completions (faulty.py, line 46: def short(prompts, completions, **columns):)",
        "textgym solve yours/Copy-v0": "The module that registers it goes before it, as in my_file:yours/Copy-v0",
        "textgym solve faulty:textgym/Copi-v0": "Did you mean 'textgym/Copy-v0'?",
        f"{text}faulty:rewards": "module 'faulty' has no 'rewards'. Did you mean 'reward'?",
        f"{text}lacking:reward": "No module named 'no_such_package' (lacking.py, line 1: import no_such_package)",
        f"{text}nowhere:reward": "module 'nowhere': neither in the current folder nor installed",
        f"{train} faulty:Agent --rate 0.5": key,
        f"{train} faulty:Untaken": "agent Untaken: config_type=<class 'faulty.Settings'>; allowed is a dataclass that",
        f"{train} faulty:Lost": "agent 'faulty:Lost': its load returned None; allowed is an agent",
        f"{train} unfinished:Agent": "SyntaxError: '(' was never closed (unfinished.py, line 1: x = ()",
        f"{train} nowhere:Agent": "module 'nowhere': neither in the current folder nor installed",
        "textgym solve nowhere:Copy-v0": "module 'nowhere': neither in the current folder nor installed",
    }
    for words, (code, _, err) in zip(expected, fresh.session(*expected), strict=True):
        *_, last = err.splitlines()
        assert (code, last.startswith("textgym: error: ")) == (2, True), words
        assert expected[words] in last, words
        assert last.count("faulty.py") <= 1


@pytest.mark.long
def test_a_warning_and_a_finding_show_the_user_s_line_too(fresh):
    skipped = (
        "textgym eval Text-v0 --agent random --per-prompt 2 --env max_new_tokens=4 on_error=skip reward=faulty:reward"
    )
    checked = "textgym check faulty:Agent --only 13 --json"
    (code, _, err), (_, out, _) = fresh.session(skipped, checked)
    assert code == 0
    assert "textgym: warning: reward 'reward' raised ZeroDivisionError: division by zero (faulty.py, line 41:" in err
    assert {finding["found"] for finding in json.loads(out)["findings"]} == {
        """KeyError: 'learning 0.25' (faulty.py, line 16: raise KeyError("learning " + str(self.config.rate)))"""
    }


def test_users_line_is_that_of_the_first_error_and_of_no_package():
    try:
        try:
            json.loads("{")
        except ValueError as error:
            raise RuntimeError("later") from error
    except RuntimeError as error:
        place = users_line(error)
    assert place.startswith(" (")
    assert place.endswith('json.loads("{"))')
    assert users_line(ValueError("was never raised")) == ""


def test_a_reward_of_the_current_folder_trains(fresh):
    line = "textgym train Text-v0 --agent random --episodes 8 --env max_new_tokens=4 reward=faulty:fine --out r"
    ((code, _, err),) = fresh.session(line)
    assert (code, err) == (0, "")
    assert json.loads((fresh.folder / "r/result.json").read_text())["before"]["eval/reward"] == 0.5


def test_python_m_textgym_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "textgym", "--version"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.startswith("textgym ")) == (0, True)


def test_train_s_help_shows_its_own_flags_first_and_names_the_agents(fresh):
    plain, own = fresh.session("textgym train --help", "textgym train --agent faulty:Agent --help")
    listed = plain[1].partition("positional arguments")[2]  # behind the example
    order = [
        listed.index(flag) for flag in (" ID ", "--agent", "--episodes", "--eval-every", "lm-ppo options", "--lora")
    ]
    assert order == sorted(order)
    assert "One of a2c, alphazero," in plain[1]
    assert re.search(
        r"faulty:Agent options.*--rate FLOAT +How fast it would learn\. \(default: 0\.25\)", own[1], re.DOTALL
    )


def test_agents_and_rewards_are_listed(capsys):
    code, out, err = run(capsys, "agents", "--json")
    found = {row["agent"]: row for row in json.loads(out)}
    assert (code, err) == (0, "")
    assert found["rloo"]["summary"] == "REINFORCE leave-one-out on a causal LM."
    assert found["rloo"]["from"].endswith("(textgym_agents.algorithms.rloo:RLOO)")
    code, out, err = run(capsys, "rewards", "--json")
    found = {row["reward"]: row for row in json.loads(out)}
    assert (code, err) == (0, "")
    assert found["length"]["parameters"] == "target=8, unit='words', width=None"
    assert found["clipped"]["parameters"] == "reward, low=-1.0, high=1.0"
    assert all(row["summary"] for row in found.values())
    for command, words in (("agents", "my_file:MyAgent"), ("rewards", "reward=my_file:function")):
        code, out, _ = run(capsys, command)
        assert code == 0
        assert words in " ".join(out.split())


@pytest.mark.long
def test_a_namespace_is_part_of_an_id_and_textgym_s_is_taken():
    from textgym.registry import TaskEntry

    assert TaskEntry.read("mine/Ask-v2", "a:b").id == "mine/Ask-v2"
    assert TaskEntry.read("Ask-v2", "a:b").id == "textgym/Ask-v2"
    for name in ("textgym/Ask", "a/b/c", "/Ask"):
        with pytest.raises(ValueError, match="before them a namespace, as in mine/Ask"):
            TaskEntry(name, "a:b")
