"""One cell of a benchmark: its numbers, that it can be repeated and gone on with, and what it counts."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textgym_agents.registry import agent_class, agent_names, make_env
from textgym_agents.training.folder import RunFolder
from textgym_benchmarks.results.format import check_result
from textgym_benchmarks.run import cell as cells
from textgym_benchmarks.run import optima
from textgym_benchmarks.run.cell import plan_of, reopened, run_cell
from textgym_benchmarks.run.optima import shared_optimum
from textgym_benchmarks.suite import Cell, Evaluation

from textgym import make_task
from textgym.solver import policy_values, solve
from textgym.task import make_reference

SMALL = Evaluation(points=2, per_prompt=2, final_per_prompt=4, optimum_per_prompt=8, samples=3)
AT_THE_END = 64
SB3 = {"batch": 8, "width": 8}
# Four iterations each: the point of the curve, with its checkpoint, is after the second.
CELLS = {
    "lm-ppo": Cell("textgym/Bandit-v0", "lm-ppo", 64, 3, config={"batch": 16, "epochs": 1}),
    "q-learning": Cell("textgym/Copy-v0", "q-learning", 64, 3, config={"batch": 16}),
    "sb3-ppo": Cell("textgym/Bandit-v0", "sb3-ppo", 32, 3, config=SB3),
    "sb3-sac": Cell("textgym/Bandit-v0", "sb3-sac", 32, 3, config=SB3 | {"learning_starts": 8}),
    "mcts": Cell("textgym/Delayed-v0", "mcts", 16, 3, config={"batch": 4, "simulations": 4}),
    "best-of-n": Cell("textgym/Stop-v0", "best-of-n", 32, 3, config={"n": 2}),
    "random": Cell("textgym/Stop-v0", "random", 32, 3),
    "user": Cell("textgym/Bandit-v0", "benchmarks.quiet_agent:QuietAgent", 256, 3),
}
OTHERS = sorted(set(agent_names()) - set(CELLS) - {"behaviour-cloning", "value-guided", "distill"})
FIRST = {"alphazero", "dpo", "reference", "rloo", "sarsa", "sb3-dqn", "sb3-recurrent-ppo", "soft-q", "vine-ppo"}
"""One of each way in which a state is kept; the sweep has all."""


class Killed(BaseException):
    """Stands for the end of a worker: nothing of the cell catches it."""


class Killer:
    """Ends the worker at an iteration; at 0 where learning begins."""

    def __init__(self, at: int) -> None:
        self._at = at

    def stage(self, text: str) -> None:
        if text == "learning" and not self._at:
            raise Killed

    def note(self, text: str) -> None:
        """Nothing."""

    def iteration(self, row: dict[str, Any]) -> None:
        if row["iteration"] == self._at:
            raise Killed


@pytest.fixture(autouse=True)
def few_completions(monkeypatch):
    for name, count in (("ON_THE_WAY", 16), ("AT_THE_END", AT_THE_END), ("OF_THE_REFERENCE", 64)):
        monkeypatch.setattr(cells, name, count)


def whole_and_broken(cell, tmp_path):
    at = 3 if getattr(agent_class(cell.agent), "learns", True) else 0
    whole = run_cell(cell, SMALL, tmp_path / "whole", tmp_path / "optima", counted=True)
    with pytest.raises(Killed):
        run_cell(cell, SMALL, tmp_path / "broken", tmp_path / "other-optima", watcher=Killer(at))
    return whole, run_cell(cell, SMALL, tmp_path / "broken", tmp_path / "other-optima", counted=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name == "mcts" else []) for name in CELLS]
)
def test_a_cell_that_was_killed_and_gone_on_with_gives_the_same_numbers(name, tmp_path):
    whole, broken = whole_and_broken(CELLS[name], tmp_path)
    check_result(json.loads(json.dumps(whole, allow_nan=False)))
    assert whole["measures"] == broken["measures"]
    assert whole["measures"]["before"]["length"] is not None


@pytest.mark.long
def test_what_a_search_has_scored_counts_before_a_run_is_broken_off_and_after_it(tmp_path):
    cell = Cell("textgym/Bandit-v0", "alphazero", 64, 3, config={"batch": 16, "simulations": 4})
    whole, broken = (each["measures"] for each in whole_and_broken(cell, tmp_path))
    # Each of 4 iterations plays 16 answers and tries 4 in a search of the one state that there is.
    assert (whole["scored"], whole["episodes"]) == (4 * (16 + 4), 64)
    assert broken["scored"] == whole["scored"]


@pytest.mark.parametrize(
    ("agent", "config", "batch"),
    [
        ("dpo", {}, 64),
        ("rloo", {}, 64),
        ("rloo", {"batch": 256}, 64),
        ("rloo", {"batch": None}, 64),
        ("rloo", {"batch": 240, "group": 24}, 48),
        ("rloo", {"batch": 8, "minibatches": 1}, 8),
    ],
)
def test_a_batch_is_no_larger_than_the_budget(tmp_path, agent, config, batch):
    cell = Cell("textgym/Bandit-v0", agent, 64, 3, config=config)
    assert plan_of(cell, SMALL, make_task("Bandit")).config["batch"] == batch
    if agent == "dpo":
        measures = run_cell(cell, SMALL, tmp_path / "cell", tmp_path / "optima", counted=True)["measures"]
        assert (measures["scored"], measures["episodes"]) == (64, 64)
    short = replace(cell, episodes=42, config={} if agent == "rloo" else config)
    assert plan_of(short, SMALL, make_task("Bandit")).config["batch"] == (40 if agent == "rloo" else 42)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FIRST else [pytest.mark.sweep]) for name in OTHERS]
)
def test_every_agent_goes_on_bit_for_bit(name, tmp_path):
    rows = {"batch": 16} if name not in ("reference", "random", "best-of-n") else {}
    episodes = 192 if name == "vine-ppo" else 64 if rows else 16  # whose rollouts count as episodes
    whole, broken = whole_and_broken(Cell("textgym/Bandit-v0", name, episodes, 1, config=rows), tmp_path)
    assert agent_class(name).resumes
    assert whole["measures"] == broken["measures"]


@pytest.mark.slow
def test_a_run_is_gone_on_with_from_its_checkpoint(tmp_path):
    cell = CELLS["q-learning"]
    with pytest.raises(Killed):
        run_cell(cell, SMALL, tmp_path / "cell", tmp_path / "optima", watcher=Killer(3))
    run = RunFolder(tmp_path / "cell" / "run")
    assert [row["iteration"] for row in run.metrics()] == [0, 1, 2, 3]
    before = [row["seconds"] for row in run.metrics()[:3]]
    run_cell(cell, SMALL, tmp_path / "cell", tmp_path / "optima")
    assert [row["seconds"] for row in run.metrics()[:3]] == before  # not learned again
    assert len(run.metrics()) == 5


def test_a_run_of_other_settings_or_of_an_unknown_agent_starts_over(tmp_path):
    cell, run = CELLS["q-learning"], tmp_path / "cell" / "run"
    task = make_task("Copy")
    with pytest.raises(Killed):
        run_cell(cell, SMALL, tmp_path / "cell", tmp_path / "optima", watcher=Killer(3))
    assert reopened(run, plan_of(cell, SMALL, task), task) is not None
    assert reopened(run, plan_of(cell, replace(SMALL, points=4), task), task) is None
    assert not run.exists()
    (run / "half").mkdir(parents=True)  # a run that died before it had a config
    assert reopened(run, plan_of(cell, SMALL, task), task) is None
    assert not run.exists()
    assert not agent_class("benchmarks.quiet_agent:QuietAgent").resumes


@pytest.mark.slow
def test_a_run_that_ended_before_its_result_was_handed_over_is_not_learned_again(tmp_path):
    cell = CELLS["q-learning"]
    first = run_cell(cell, SMALL, tmp_path / "cell", tmp_path / "optima", save=True)
    assert (tmp_path / "cell" / "run" / "checkpoint").is_dir()
    started = time.monotonic()
    again = run_cell(cell, SMALL, tmp_path / "cell", tmp_path / "optima")
    assert again["measures"] == first["measures"]
    assert again["timing"]["learning_seconds"] == first["timing"]["learning_seconds"]
    assert again["timing"]["seconds"] > time.monotonic() - started
    assert not (tmp_path / "cell" / "run" / "checkpoint").exists()


@pytest.mark.slow
def test_measures_against_the_exact_solver(tmp_path):
    cell = Cell("textgym/Copy-v0", "q-learning", 64, 3, config={"batch": 16})
    measures = run_cell(cell, SMALL, tmp_path / "cell", tmp_path / "optima")["measures"]
    task = make_task("Copy")
    best, base = solve(task, split="eval").objective, policy_values(task, make_reference(task), split="eval")
    assert measures["optimum"]["exact"]
    assert measures["optimum"]["value"] == {"mean": best, "low": best, "high": best}
    assert measures["optimum"]["reference"]["mean"] == pytest.approx(base.objective)
    after = measures["after"]
    want = (after["objective"]["mean"] - base.objective) / (best - base.objective)
    assert after["optimality"]["mean"] == pytest.approx(want)
    # 54 held-out prompts: 2 completions of each are enough for 64.
    assert [point["episode"] for point in measures["curve"]] == [0, 32, 64]
    assert [point["tokens"] for point in measures["curve"]] == [0, 3 * 32, 3 * 64]
    assert (measures["episodes"], measures["tokens"], measures["iterations"]) == (64, 192, 4)
    assert [sample["prompt"] for sample in measures["samples"]] == sorted(
        {sample["prompt"] for sample in measures["samples"]}, key=task.prompt_set("eval").texts.index
    )
    assert all(set(s["before"]) == {"completion", "reward", "terms", "gold"} for s in measures["samples"])


def test_few_prompts_are_answered_more_often(monkeypatch):
    monkeypatch.undo()
    plan = plan_of(CELLS["lm-ppo"], Evaluation(), make_task("Bandit"))
    counts = (plan.eval_per_prompt, plan.final_per_prompt, plan.optimum_per_prompt)
    assert counts == (256, 1024, 4096)  # Bandit has one prompt
    plan = plan_of(replace(CELLS["lm-ppo"], id="textgym/Recall-v0"), Evaluation(), make_task("Recall"))
    assert (plan.eval_per_prompt, plan.final_per_prompt, plan.optimum_per_prompt) == (
        4,
        16,
        128,
    )  # it has 191


def test_the_beta_of_the_task_is_what_is_measured_with(tmp_path):
    config = {"batch": 16, "beta": 5.0}
    result = run_cell(Cell("textgym/Copy-v0", "q-learning", 16, 0, config=config), SMALL, tmp_path, tmp_path)
    assert result["measures"]["optimum"]["beta"] == make_task("Copy").beta == 0.1


def test_what_an_agent_cannot_say_is_null(tmp_path):
    measures = run_cell(CELLS["user"], SMALL, tmp_path / "cell", tmp_path / "optima")["measures"]
    for name in ("kl", "objective", "optimality", "entropy"):
        assert measures["before"][name] is measures["after"][name] is None
    assert measures["to_half"] is measures["to_nine_tenths"] is None
    assert measures["after"]["reward"]["mean"] >= 0
    assert measures["tokens"] == 256


@pytest.mark.slow
def test_an_agent_that_learns_nothing_has_a_level_curve(tmp_path):
    measures = run_cell(CELLS["best-of-n"], SMALL, tmp_path / "cell", tmp_path / "optima")["measures"]
    assert measures["before"] == measures["after"]
    assert [point["episode"] for point in measures["curve"]] == [0, 32]
    assert (measures["episodes"], measures["tokens"]) == (0, 0)


@pytest.mark.long
def test_what_a_search_has_scored_counts(tmp_path):
    cell = CELLS["mcts"]
    measures = run_cell(cell, SMALL, tmp_path / "cell", tmp_path / "optima")["measures"]
    # Every completion of Delayed has as many tokens; the search itself counts those that it had scored.
    length = make_task("Delayed").max_new_tokens
    searched = RunFolder(tmp_path / "cell" / "run").metrics()[-1]["scored"]
    assert searched > cell.episodes
    assert measures["tokens"] == length * (cell.episodes + searched)
    assert [point["tokens"] for point in measures["curve"]][-1] == measures["tokens"]
    assert measures["after"]["answer_tokens"] > 0
    assert measures["after"]["answer_tokens"] * AT_THE_END % length == 0


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "config", "tokens"), [("best-of-n", {"n": 5}, 15), ("random", {}, 0)])
def test_what_is_scored_for_an_answer_is_shown_apart(agent, config, tokens, tmp_path):
    # Completions of Copy have three tokens: best of five has fifteen of them scored, and then its answer, as any agent.
    cell = Cell("textgym/Copy-v0", agent, 32, 3, config=config)
    measures = run_cell(cell, SMALL, tmp_path / "cell", tmp_path / "optima")["measures"]
    assert (measures["tokens"], measures["after"]["answer_tokens"]) == (0, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q-learning", "lm-ppo"])
def test_a_learner_pays_for_what_it_wrote_and_answers_for_nothing(name, tmp_path):
    measures = run_cell(CELLS[name], SMALL, tmp_path / "cell", tmp_path / "optima")["measures"]
    length = make_task(CELLS[name].id.split("/")[1].split("-")[0]).max_new_tokens
    assert measures["tokens"] == length * CELLS[name].episodes
    assert measures["after"]["answer_tokens"] == 0


@pytest.mark.slow
def test_on_the_split_tune_prompts_and_seeds_are_others(tmp_path):
    cell = Cell("textgym/Distractor-v0", "q-learning", 64, 3, config={"batch": 16})
    tune = replace(SMALL, split="tune")
    results = [run_cell(cell, settings, tmp_path / settings.split, tmp_path) for settings in (SMALL, tune)]
    task = make_task("Distractor")
    for split, result in zip(("eval", "tune"), results, strict=True):
        measures = result["measures"]
        assert {each["prompt"] for each in measures["samples"]} <= set(task.prompt_set(split).texts)
        assert measures["optimum"]["value"]["mean"] == pytest.approx(solve(task, split=split).objective)
    seeds = [RunFolder(tmp_path / split / "run").config()["config"]["seed"] for split in ("eval", "tune")]
    assert seeds == [3, 3 + cells.TUNE_SEEDS]
    with pytest.raises(ValueError, match="split 'test': not one of eval, tune"):
        Evaluation(split="test")


@pytest.mark.slow
def test_texts_that_are_read_count_as_tokens(tmp_path):
    data = tmp_path / "data.jsonl"
    task = make_task("Copy")
    (letters,) = task.vocabulary.decode([np.flatnonzero(task.vocabulary.allowed)[:2].tolist()])
    rows = [{"prompt": prompt, "completion": letters} for prompt in task.prompt_set("train").texts[:4]]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cell = Cell("textgym/Copy-v0", "behaviour-cloning", 8, 0, config={"data": str(data), "batch": 4})
    measures = run_cell(cell, SMALL, tmp_path / "cell", tmp_path / "optima")["measures"]
    assert measures["episodes"] == 8
    assert measures["tokens"] in (8 * 2, 8 * 3)  # with a stop token, where there is one


def test_what_has_ended_is_counted_once_and_what_runs_not_yet():
    env = make_env("textgym/Stop-v0", 3)
    env.reset(seed=0)
    task = env.unwrapped.task
    stop = task.vocabulary.stop_ids[0]
    other = int(np.setdiff1d(np.flatnonzero(task.vocabulary.allowed), [stop])[0])
    counted = []
    for actions in ([stop, other, other], [other, stop, other], [other, other, stop]):
        env.step(np.array(actions))
        counted.append(task.scorer.tokens)
    assert counted == [1, 1 + 2, 1 + 2 + 3]


@pytest.mark.slow
def test_a_sampled_optimum_is_drawn_once_and_read_back(tmp_path, monkeypatch):
    own = make_task("Text", prompts=["a", "b"], reward={"name": "length", "target": 3}, beta=1.0)
    arguments = (tmp_path, {"id": "own"}, own, None, own.beta, 16)
    made, read = shared_optimum(*arguments), shared_optimum(*arguments)
    assert (made.value, made.reference) == (read.value, read.reference)
    assert made.value is not None
    assert len(list(tmp_path.iterdir())) == 1
    # Another version of TextGym draws its own.
    monkeypatch.setattr(optima, "versions", lambda: {"textgym": "0.0.0"})
    shared_optimum(*arguments)
    assert len(list(tmp_path.iterdir())) == 2
    # At beta = 0 the optimum is the greatest reward, which samples cannot tell.
    assert shared_optimum(tmp_path, {"id": "none"}, own, None, 0.0, 8).value is None


def test_what_can_be_solved_is_solved_and_not_kept(tmp_path):
    task = make_task("Bandit")
    assert shared_optimum(tmp_path, {}, task, None, task.beta, 8).exact
    assert shared_optimum(tmp_path, {}, task, None, 0.0, 8).value.mean == pytest.approx(1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_kill_while_the_checkpoint_is_removed_costs_no_result(tmp_path, monkeypatch):
    cell, settings = Cell("textgym/Stop-v0", "rloo", 64, 0, config={"batch": 32}), Evaluation(2, 1, 1, samples=0)
    whole = run_cell(cell, settings, tmp_path / "whole", tmp_path / "optima")
    remove = shutil.rmtree

    def killed(path, **options):
        if not Path(path).name.endswith("-old") and (Path(path) / "model").exists():  # and no more
            remove(Path(path) / "model")
            raise SystemExit(9)
        remove(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            run_cell(cell, settings, tmp_path / "cut", tmp_path / "optima")
    again = run_cell(cell, settings, tmp_path / "cut", tmp_path / "optima")
    assert again["measures"] == whole["measures"]
    assert not [path for path in (tmp_path / "cut" / "run").iterdir() if "checkpoint" in path.name]
