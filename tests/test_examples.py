"""The examples: they run with nothing of ours but the environments, and they learn."""

from __future__ import annotations

import ast
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from core_tools import load_script

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    return load_script(EXAMPLES / f"{name}.py")


def test_ppo_imports_gymnasium_torch_and_numpy_alone():
    tree = ast.parse((EXAMPLES / "cleanrl_ppo.py").read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    packages = {name.split(".")[0] for name in found}
    assert packages == {"__future__", "argparse", "typing", "gymnasium", "numpy", "torch"}


def test_what_is_no_text_is_never_read():
    observation = {
        "input_ids": np.array([[3, 1, 7], [2, 2, 2]]),
        "attention_mask": np.array([[1, 1, 0], [1, 0, 0]], dtype=np.int8),
    }
    assert load("cleanrl_ppo").tokens(observation, 9).tolist() == [[3, 1, 9], [2, 9, 9]]


def test_ppo_starts_at_chance_and_repeats_itself():
    words = ["--total-timesteps", "1536", "--num-envs", "64"]
    first, again = (load("cleanrl_ppo").main(words) for _ in range(2))
    assert first == again
    assert len(first) == 2
    # Two and a half hundred answers of three words, each right once in six times.
    assert first[0] == pytest.approx(1 / 6, abs=5 * math.sqrt(5 / 36 / 768))


@pytest.mark.long
@pytest.mark.parametrize(("task", "steps"), [("Bandit", 25_000), ("Copy", 40_000)])
def test_ppo_learns(task, steps):
    words = ["--env-id", f"textgym:textgym/{task}-v0", "--total-timesteps", str(steps)]
    history = load("cleanrl_ppo").main(words)
    assert history[0] < 0.6
    assert np.mean(history[-5:]) >= 0.9  # of an optimum of 1


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not limit the memory of a process")
def test_code_is_paid_for_what_it_answers_and_kept_within_limits(tmp_path):
    codes = {
        "def double(x): return 2 * x\nprint('hello')": 1.0,
        "def double(x): return x + 2": 1 / 3,
        "def double(x": 0.0,
        "double = '\0'": 0.0,
        "while True: pass": 0.0,
        "double = lambda x: 'x' * 2**34": 0.0,
        "open('here', 'w').write('x' * 2**22)\ndouble = lambda x: 2 * x": 0.0,
        f"open({str(tmp_path / 'there')!r}, 'w').write('x' * 9)\nimport os\nos._exit(0)": 0.0,
    }
    module = load("code_reward")
    module.SECONDS = 1
    tests = [["double(2)", 4], ["double(0)", 0], ["double(7)", 14]]
    reward = module.CodeReward()
    found = reward(prompts=["p"] * len(codes), completions=list(codes), tests=[tests] * len(codes), other=[])
    assert found == pytest.approx(list(codes.values()))
    assert (tmp_path / "there").exists()  # as its page says: no sandbox


def test_what_the_code_has_started_ends_with_it(tmp_path):
    fcntl, resource = pytest.importorskip("fcntl"), pytest.importorskip("resource")
    module = load("code_reward")
    module.PROCESSES = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    holds = f"import fcntl, time; file = open({str(tmp_path / 'lock')!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX)"
    waits = f"{holds}; print('held', flush=True); time.sleep(60)"
    code = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', {!r}], stdout=subprocess.PIPE)\n"
    assert module.answers(f"{code.format(waits)}held = child.stdout.readline().decode()", ["held"]) == ["held\n"]
    until = time.monotonic() + 20
    with (tmp_path / "lock").open("w") as file:
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < until
                time.sleep(0.05)


@pytest.mark.long
def test_the_notebook_reaches_the_optimum_that_it_prints(monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((EXAMPLES / "first_hour.ipynb").read_text(encoding="utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert codes.pop(0).startswith("%pip install")
    names = {}
    for code in codes:
        exec(code, names)
    # Three draws, each e^(1 / 0.3) times likelier a b than the reference's 1/4.
    best = 0.3 * math.log(0.75 + 0.25 * math.exp(1 / 0.3))
    assert names["solution"].objective == pytest.approx(best, abs=1e-6)
    assert 0.9 < names["optimality"] <= 1
    assert f"optimal J* {best:.3f}" in capsys.readouterr().out
