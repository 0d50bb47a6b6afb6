"""`textgym train`, `eval` and `demo`, end to end with tiny budgets."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from cli_tools import RUN_FILES, assert_one_line, environment, metrics, run, started, until
from textgym_agents.commands import policies, train
from textgym_agents.config import TrainSettings
from textgym_agents.saving import FORMAT, task_changes, task_signs
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.loop import SilentWatcher, Training

from textgym import make_task
from textgym.estimates import Estimate
from textgym.interrupts import TrainingInterrupted

TINY = ("--batch", "16", "--optimum-per-prompt", "4", "--final-per-prompt", "1", "--eval-per-prompt", "1")
AGENT = '''
import numpy as np

class Lazy:
    """Writes the first allowed token."""

    def __init__(self, task):
        self.task = task

    def learn(self, env, episodes, callback=None):
        callback({"objective/scores": 0.5})

    def act(self, observation, deterministic=False):
        return np.full(len(observation["input_ids"]), np.flatnonzero(self.task.vocabulary.allowed)[0])

    def log_probs(self, observation):
        return None

    def save(self, path):
        path.mkdir(exist_ok=True)

    @classmethod
    def load(cls, path, env):
        return cls(env.unwrapped.task)
'''


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.slow
def test_train_then_evaluate(capsys):
    code, out, _ = run(capsys, "train", "Helpful-v0", "--episodes", "48", *TINY, "--eval-every", "2", "--seed", "4")
    assert code == 0
    folder = "runs/helpful-v0-lm-ppo-1"
    assert f"run folder: {folder}" in out
    assert "episode 48" in out
    assert "optimality" in out
    assert all((Path(folder) / name).exists() for name in RUN_FILES)
    config = json.loads((Path(folder) / "config.json").read_text())
    assert (config["config"]["batch"], config["config"]["seed"], config["episodes"]) == (16, 4, 48)
    rows = metrics(folder)
    assert [row["episode"] for row in rows] == [0, 16, 32, 48]
    assert {"objective/kl", "val/ratio", "policy/clipfrac_avg", "eval/optimality"} <= set(rows[-1])

    words = (
        "eval",
        "Helpful-v0",
        "--agent",
        folder,
        "--optimum-per-prompt",
        "4",
        "--per-prompt",
        "1",
        "--seed",
        "4",
    )
    code, out, _ = run(capsys, *words, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["reward"]["mean"] == pytest.approx(rows[-1]["eval/reward"], abs=1e-9)
    assert report["kl"]["mean"] == pytest.approx(rows[-1]["eval/kl"], abs=1e-6)
    code, out, _ = run(capsys, *words)
    assert "KL to the reference" in out
    assert "term courtesy" in out

    assert_one_line(*run(capsys, "train", "Helpful-v0", "--out", folder)[::2], "finished run", "never overwritten")
    assert_one_line(*run(capsys, "train", "Helpful-v0", "--out", folder, "--resume")[::2], "nothing to resume")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a POSIX signal here")
def test_ctrl_c_leaves_a_run_that_can_go_on(capsys):
    words = ["train", "Bandit-v0", "--agent", "q-learning", "--episodes", "9600", *TINY, "--eval-every", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "textgym.cli", *words, "--out", "cut"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "episode 16" in line:
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].endswith("textgym train textgym/Bandit-v0 --agent q-learning --out cut --resume")
    assert len(metrics("cut")) < 601
    resume = ("train", "Bandit-v0", "--agent", "q-learning", "--out", "cut", "--resume")
    assert_one_line(*run(capsys, *resume, "--batch", "8")[::2], "--batch 8", "started with 16")
    assert_one_line(*run(capsys, *resume, "--episodes", "8")[::2], "--episodes 8", "started with 9600")
    assert_one_line(*run(capsys, "train", "Text-v0", *resume[2:])[::2], "ID 'textgym/Text-v0'")
    assert_one_line(*run(capsys, *words, "--out", "cut")[::2], "interrupted run", "resume")
    assert run(capsys, *resume)[0] == 0
    assert run(capsys, *words, "--out", "whole")[0] == 0
    assert metrics("cut") == metrics("whole")


@pytest.mark.slow
def test_the_demo_writes_everything(capsys):
    code, out, _ = run(capsys, "demo", "--episodes", "32", *TINY, "--final-per-prompt", "2", "--seed", "1")
    assert code == 0
    assert all((Path("runs/demo-1") / name).exists() for name in RUN_FILES)
    for words in ("answer before", "answer after", "optimality", "runs/demo-1/curve.png", "runs/demo-1\n"):
        assert words in out
    row = next(line for line in out.splitlines() if line.strip().startswith("optimality"))
    assert row.count("[") == 2  # an interval before and after
    config = json.loads(Path("runs/demo-1/config.json").read_text())
    assert config["config"]["seed"] == 1


@pytest.mark.slow
def test_a_class_from_the_current_folder(capsys):
    Path("lazy_agent.py").write_text(AGENT)
    env = ("--env", "reference=uniform", "beta=1.0")
    budget = ("--optimum-per-prompt", "2", "--final-per-prompt", "1")
    code, out, _ = run(
        capsys,
        "train",
        "Text-v0",
        "--agent",
        "lazy_agent:Lazy",
        "--episodes",
        "8",
        *env,
        *budget,
        "--out",
        "lazy",
    )
    assert code == 0
    assert "run folder: lazy" in out
    assert metrics("lazy")[1]["objective/scores"] == 0.5
    words = ("eval", "Text-v0", "--optimum-per-prompt", "2", "--per-prompt", "1", "--json")
    named = run(capsys, *words, "--agent", "lazy_agent:Lazy", *env)
    saved = run(capsys, *words, "--agent", "lazy", "--agent-class", "lazy_agent:Lazy")
    assert named[0] == saved[0] == 0
    reports = [json.loads(result[1]) for result in (named, saved)]
    assert reports[0]["reward"] == reports[1]["reward"]
    assert reports[0]["optimum"] == reports[1]["optimum"]  # the run's environment options are used again
    assert reports[0]["kl"] is None


@pytest.mark.slow
def test_to_resume_needs_neither_id_nor_agent(capsys):
    Path("cut").mkdir()
    started = {"id": "textgym/Bandit-v0", "agent": "q-learning", "episodes": 32, "final_per_prompt": 1}
    Path("cut/config.json").write_text(json.dumps({"format": FORMAT, **started, "config": {"batch": 16, "seed": 5}}))
    resume = ("train", "--out", "cut", "--resume")
    other = ("--agent rloo: the run in cut was started with --agent q-learning",)
    assert_one_line(*run(capsys, *resume, "--agent", "rloo")[::2], *other)
    assert_one_line(*run(capsys, *resume, "--batch", "8")[::2], "--batch 8", "started with 16")
    assert_one_line(*run(capsys, *resume[:1], "Copy-v0", *resume[1:])[::2], "ID 'textgym/Copy-v0'", "textgym/Bandit-v0")
    assert_one_line(*run(capsys, "train", "--out", "cut")[::2], "ID")
    assert run(capsys, *resume)[0] == 0
    assert len(metrics("cut")) == 3


@pytest.mark.slow
def test_a_setting_that_depends_on_another_is_compared_with_that_of_the_run(capsys):
    Path("cut").mkdir()
    started = {"id": "textgym/Bandit-v0", "agent": "q-learning", "episodes": 16, "final_per_prompt": 1}
    started |= {"curriculum": "difficulty", "curriculum_target": 0.7, "config": {"batch": 16}}
    Path("cut/config.json").write_text(json.dumps({"format": FORMAT, **started}))
    resume = ("train", "--out", "cut", "--resume", "--curriculum-target")
    assert_one_line(*run(capsys, *resume, "0.6")[::2], "--curriculum-target 0.6: the run in cut was started with 0.7")
    assert run(capsys, *resume, "0.7")[0] == 0


@pytest.mark.slow
def test_the_model_of_a_run_gives_the_reference_again_when_its_options_are_typed(capsys, monkeypatch):
    monkeypatch.setattr("textgym.codecs.sources.model_tokenizer", lambda model: object())
    Path("cut").mkdir()
    started = {"id": "textgym/Text-v0", "agent": "rloo", "episodes": 16, "config": {"model": "mine", "seed": 5}}
    started["env"] = {"max_new_tokens": 2, "reference": "mine"}
    Path("cut/config.json").write_text(json.dumps({"format": FORMAT, **started}))
    resume = ("train", "--out", "cut", "--resume", "--seed", "6", "--env")
    assert_one_line(*run(capsys, *resume, "max_new_tokens=2")[::2], "--seed 6: the run in cut was started with 5")
    assert_one_line(*run(capsys, *resume, "max_new_tokens=3")[::2], "--env {", "was started with {'max_new_tokens': 2")


@pytest.mark.parametrize(("changed", "split"), [("p.txt", "train"), ("e.txt", "eval")])
def test_a_run_goes_on_with_the_prompts_that_it_was_started_on(changed, split):
    env = {"prompts": "p.txt", "eval_prompts": "e.txt", "max_new_tokens": 2, "reference": "uniform"}
    settings = TrainSettings("textgym/Text-v0", "random", 8, env=env, optimum_per_prompt=0, final_per_prompt=1)
    for name in ("p.txt", "e.txt"):
        Path(name).write_text("one two\nthree\n")

    class Stopping(SilentWatcher):
        def stage(self, text: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted):
        Training(settings, pictures=False).run("cut", Stopping())
    Training(settings, RunFolder.reopen("cut"))
    Path(changed).write_text("one four\nthree\n")
    told = rf"cut: this run was started on another task, which differs in prompts \(split {split}\): restore"
    with pytest.raises(ValueError, match=told):
        Training(settings, RunFolder.reopen("cut"))
    held = json.loads(Path("cut/config.json").read_text())
    Path("cut/config.json").write_text(json.dumps(held | {"task": 3}))
    with pytest.raises(ValueError, match="another task, which differs in name"):
        Training(settings, RunFolder.reopen("cut"))


def test_beta_and_a_reward_s_own_name_tell_a_task_too():
    def first(prompts, completions, **columns):
        return [0.0] * len(completions)

    def second(prompts, completions, **columns):
        return [1.0] * len(completions)

    task = replace(make_task("Stop"), reward=first, reward_name="", beta=0.5)
    now = task_signs(replace(task, reward=second, beta=2.0), "eval")
    for split, signs in task_signs(task, "eval").items():
        assert task_changes(signs, now[split]) == ["reward ('first', now 'second')", "beta (0.5, now 2.0)"]


def test_a_data_set_that_is_nowhere_is_refused_before_torch_is_imported(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(train, "use_all_cores", lambda: pytest.fail("torch is imported"))
    with pytest.raises(FileNotFoundError, match=r"no/where: .*no such data set in the cache"):
        train.main(["Text-v0", "--env", "prompts=no/where#rows=3"])


def test_a_run_folder_never_chooses_what_is_imported(capsys):
    Path("evil_agent.py").write_text("raise SystemExit('imported')")
    Path("theirs").mkdir()
    config = {"format": 2, "id": "textgym/Text-v0", "agent": "evil_agent:Evil", "episodes": 8}
    Path("theirs/config.json").write_text(json.dumps(config))
    words = ("train", "Text-v0", "--resume", "--out", "theirs")
    assert_one_line(*run(capsys, *words)[::2], "--agent evil_agent:Evil")
    assert "evil_agent" not in sys.modules


@pytest.mark.parametrize(
    ("per_prompt", "said"),
    [("1", "there is no lower bound of J* either: J has no interval"), ("2", "J* is at least 0.")],
)
def test_a_policy_without_an_interval_bounds_nothing(capsys, per_prompt, said):
    words = ("eval", "Text-v0", "--agent", "random", "--per-prompt", per_prompt, "--optimum-per-prompt", "2")
    code, out, _ = run(capsys, *words, "--env", "reference=uniform", "beta=1.0", "max_new_tokens=2")
    assert code == 0
    assert "J* not known" in out
    assert said in out
    assert "nan" not in out
    (stops,) = (line for line in out.splitlines() if "ended by itself" in line)
    assert "[" not in stops
    legend = " ".join(out.split())
    assert "entropy and length have 95% intervals, except with one completion per prompt" in legend
    assert "and where all completions of a prompt agree. The other numbers have none." in legend


def test_what_a_policy_says_of_the_optimum():
    found = policies._bound(Estimate(0.5, 0.4, 0.6))  # the low end of an interval, which the true J may lie below
    assert found == "J* is at least 0.400 (with 95%), which this policy reaches"
    nothing = policies._bound(Estimate(-math.inf, math.nan, math.nan))
    assert nothing == "there is no lower bound of J* either: the KL of this policy is infinite, so J is, too"


@pytest.mark.slow
def test_a_random_policy_needs_no_torch(capsys):
    words = (
        "--env",
        "reference=uniform",
        "beta=1.0",
        "--per-prompt",
        "50",
        "--optimum-per-prompt",
        "50",
        "--json",
    )
    code, out, _ = run(capsys, "eval", "Text-v0", "--agent", "random", *words)
    report = json.loads(out)
    assert code == 0
    assert report["kl"]["mean"] == pytest.approx(0, abs=1e-9)
    assert report["optimality"]["low"] <= 0 <= report["optimality"]["high"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
@pytest.mark.long
def test_a_training_serves_its_report_until_it_ends(number, code):
    words = ("train", "Bandit-v0", "--agent", "q-learning", "--episodes", "100000000", "--out", "run", "--live")
    with started(*words, stderr=subprocess.PIPE) as process:
        said = next(line for line in process.stderr if "live report" in line)
        assert re.fullmatch(r"textgym: live report: http://127\.0\.0\.1:\d+/\n", said)
        address = said.split()[-1]
        until(lambda: "of 100,000,000" in urlopen(address, timeout=10).read().decode())
        process.send_signal(number)
        assert process.wait(60) == code
    until(lambda: refused(address))


def refused(address: str) -> bool:
    try:
        urlopen(address, timeout=10).close()
    except URLError as error:
        return isinstance(error.reason, ConnectionRefusedError)
    except ConnectionError:  # it ended at this moment
        return False
    return False


def interrupted(folder, **settings):
    Path(folder).mkdir()
    started = {"id": "textgym/Bandit-v0", "agent": "q-learning", "episodes": 64, "final_per_prompt": 1} | settings
    Path(folder, "config.json").write_text(json.dumps({"format": FORMAT, **started}))


def test_a_default_that_is_typed_asks_for_it(capsys):
    interrupted("cut", config={"batch": 16, "seed": 5})
    resume = ("train", "--out", "cut", "--resume")
    assert_one_line(*run(capsys, *resume, "--episodes", "10000")[::2], "--episodes 10000", "started with 64")
    assert_one_line(*run(capsys, *resume, "--batch", "64")[::2], "--batch 64", "started with 16")
    assert run(capsys, *resume, "--episodes", "64", "--batch", "16")[0] == 0


@pytest.mark.slow
def test_a_batch_that_is_left_to_the_budget_is_the_one_that_it_came_to(capsys):
    interrupted("cut", agent="rloo", config={"batch": 64, "device": "cpu"})
    assert run(capsys, "train", "--out", "cut", "--resume", "--batch", "None")[0] == 0


def test_a_run_that_was_started_with_few_settings_has_the_others_as_they_come(capsys):
    interrupted("cut", config={"batch": 16})
    resume = ("train", "--out", "cut", "--resume")
    assert_one_line(*run(capsys, *resume, "--seed", "3")[::2], "--seed 3", "started with 0")
    assert run(capsys, *resume, "--seed", "0")[0] == 0


def test_what_a_resumed_run_needs_in_memory_is_asked_with_its_settings(capsys):
    interrupted("cut", id="textgym/Helpful-v0", agent="lm-ppo", config={})
    words = ("train", "--out", "cut", "--resume", "--dry-run")
    assert_one_line(*run(capsys, *words)[::2], "--dry-run: allowed without --resume")


def test_the_command_that_goes_on_names_the_module_of_a_task_of_ones_own(tmp_path):
    plan = TrainSettings(id="textgym/Bandit-v0", agent="q-learning", episodes=8, config={"batch": 4})
    training = Training(plan, typed="my_file:Bandit-v0")
    folder = RunFolder.create(tmp_path / "run", {})
    assert training._command(folder).startswith("textgym train my_file:Bandit-v0 --agent q-learning --out ")
