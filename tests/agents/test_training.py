"""The training loop around any agent: what is logged when, stopping, going on, and the picture."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cli_tools import RUN_FILES
from textgym_agents.config import TrainSettings
from textgym_agents.registry import batch_reason, make_env, with_batch
from textgym_agents.training.curves import _line, draw_curves
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.loop import Training
from textgym_agents.training.measures import evaluation_row, kept_optimum, sample_rows, spread

from textgym import optimum as optimum_module
from textgym.estimates import Estimate
from textgym.files import read_json, read_lines
from textgym.interrupts import TrainingInterrupted, first_interrupt

TASK = {
    "tokenizer": ["<end>", "a", "b"],
    "stop": "<end>",
    "reference": "uniform",
    "prompts": ["a", "b"],
    "max_new_tokens": 4,
    "reward": {"name": "length", "target": 2, "unit": "tokens"},
    "beta": 1.0,
}


def settings(**changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "id": "textgym/Text-v0",
        "agent": "agents.counting_agent:CountingAgent",
        "env": TASK,
        "config": {"batch": 4},
        "episodes": 24,
        "eval_every": 2,
        "save_every": 2,
        "optimum_per_prompt": 200,
        "samples": 2,
    }
    return TrainSettings(**values | changes)


class Watcher:
    """Remembers what it is told; at an iteration it may press Ctrl-C."""

    def __init__(self, interrupt_at: int | None = None, presses: int = 1) -> None:
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._at, self._presses = interrupt_at, presses

    def stage(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        self.notes.append(text)

    def iteration(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if row["iteration"] == self._at:
            for _ in range(self._presses):
                os.kill(os.getpid(), signal.SIGINT)


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    watcher = Watcher()
    return Training(settings()).run(out, watcher), watcher, RunFolder(out)


@pytest.mark.slow
def test_one_row_per_iteration_and_one_before(finished):
    _, watcher, folder = finished
    rows = folder.metrics()
    assert [(row["iteration"], row["episode"]) for row in rows] == [(i, 4 * i) for i in range(7)]
    assert [row.get("objective/scores") for row in rows] == [None, 1, 2, 3, 4, 5, 6]
    assert without_time(rows) == without_time(watcher.rows)


def test_evaluations_fall_where_they_were_asked_for(finished):
    rows = finished[2].metrics()
    assert [row["iteration"] for row in rows if "eval/optimality" in row] == [0, 2, 4, 6]
    samples = read_lines(finished[2].path / "samples.jsonl")
    assert [row["iteration"] for row in samples] == [0, 0, 2, 2, 4, 4, 6, 6]
    assert set(samples[0]) == {"iteration", "prompt", "completion", "reward", "terms"}


def test_the_result_is_the_first_and_the_last_evaluation(finished):
    result, _, folder = finished
    stored = read_json(folder.path / "result.json")
    rows = folder.metrics()
    for name in ("eval/kl", "eval/objective", "eval/optimality"):
        assert stored["before"][name] == rows[0][name]
        assert stored["after"][name] == rows[-1][name] == result.after[name]
    assert stored["episodes"] == 24
    assert stored["optimum"]["beta"] == 1.0
    # It starts as the uniform reference: no KL, and J is that of the reference within the noise.
    assert stored["before"]["eval/kl"] == pytest.approx(0, abs=1e-12)
    # The favourite of three tokens has logit 6 * 0.5 = 3 at the end; the KL per token is log 3 - H.
    p = np.array([np.exp(3), 1, 1]) / (np.exp(3) + 2)
    per_token = np.log(3) + (p * np.log(p)).sum()
    assert stored["after"]["eval/kl"] == pytest.approx(per_token * stored["after"]["eval/length"], rel=1e-6)


def test_the_folder_is_complete(finished):
    names = {path.name for path in finished[2].path.iterdir()}
    assert set(RUN_FILES) <= names
    config = finished[2].config()
    assert config["config"] == {"batch": 4}
    assert config["env"]["beta"] == 1.0
    assert "gymnasium" in config["versions"]


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2, 3])
def test_going_on_after_ctrl_c_gives_the_same_logs(finished, tmp_path, at):
    watcher = Watcher(interrupt_at=at)
    with pytest.raises(TrainingInterrupted, match=f"after {4 * at} of 24 episodes; .* --agent agents.counting_agent:"):
        Training(settings()).run(tmp_path / "run", watcher)
    assert any("Ctrl-C again" in note for note in watcher.notes)
    folder = RunFolder.reopen(tmp_path / "run")
    assert len(folder.metrics()) == at + 1
    result = Training(settings(), folder).run(tmp_path / "run", Watcher())
    assert without_time(folder.metrics()) == without_time(finished[2].metrics())
    assert read_lines(folder.path / "samples.jsonl") == read_lines(finished[2].path / "samples.jsonl")
    assert result.after == finished[0].after
    assert result.before == finished[0].before


@pytest.mark.slow
def test_going_on_after_a_crash_starts_from_the_last_checkpoint(finished, tmp_path):
    # The second press stops at once, in iteration 3; the last checkpoint is that of iteration 2.
    with pytest.raises(TrainingInterrupted):
        Training(settings()).run(tmp_path / "run", Watcher(interrupt_at=3, presses=2))
    folder = RunFolder.reopen(tmp_path / "run")
    assert len(folder.metrics()) == 4
    assert folder.marked() == 2
    Training(settings(), folder).run(tmp_path / "run", Watcher())
    assert without_time(folder.metrics()) == without_time(finished[2].metrics())


@pytest.mark.slow
def test_a_run_that_goes_on_is_paid_what_it_was_paid_before(tmp_path):
    reward = {"name": "concurrent", "score": "agents.counting_agent:luck", "cache": str(tmp_path / "scores")}
    plan = settings(env=TASK | {"reward": reward})
    with pytest.raises(TrainingInterrupted):
        Training(plan).run(tmp_path / "run", Watcher(interrupt_at=3, presses=2))
    folder = RunFolder.reopen(tmp_path / "run")
    before = folder.metrics()
    assert (before[-1]["iteration"], folder.marked()) == (3, 2)
    Training(plan, folder).run(tmp_path / "run", Watcher())
    after = folder.metrics()
    assert len(after) == 7
    assert "reward/spent/calls" in after[-1]
    for row, again in zip(before, after, strict=False):
        for name in ("eval/reward", "eval/objective"):
            assert row.get(name) == again.get(name)
    assert len({row["eval/reward"] for row in after if "eval/reward" in row}) > 1


class Crashes(Watcher):
    """Dies at a stage, or once an iteration is over, as a process that is killed."""

    def __init__(self, at: str | int) -> None:
        super().__init__()
        self._crash = at

    def stage(self, text: str) -> None:
        if text == self._crash:
            raise SystemExit(9)

    def iteration(self, row: dict[str, Any]) -> None:
        super().iteration(row)
        if row["iteration"] == self._crash:
            raise SystemExit(9)


# A reward that learns, whose J* is estimated; and one whose J* waits for what was learned.
LEARNS = TASK | {"reward": {"name": "running_norm", "reward": TASK["reward"]}}
LATE = TASK | {"max_new_tokens": 24, "beta": 0.1, "reward": {"name": "length", "target": 8, "unit": "tokens"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "crash", "agent"),
    [(LEARNS, 3, "q-learning"), (LATE, "evaluating after learning", "q-learning")],
)
def test_j_star_of_a_run_that_was_killed_is_that_of_the_whole_run(tmp_path, task, crash, agent):
    plan = settings(env=task, agent=agent, eval_every=1, save_every=2 if task is LEARNS else 100)
    Training(plan).run(tmp_path / "whole", Watcher())
    with pytest.raises(SystemExit):
        Training(plan).run(tmp_path / "run", Crashes(crash))
    folder = RunFolder.reopen(tmp_path / "run")
    Training(plan, folder).run(tmp_path / "run", Watcher())
    whole = RunFolder(tmp_path / "whole")
    assert without_time(folder.metrics()) == without_time(whole.metrics())
    found = [read_json(each.path / "result.json")["optimum"] for each in (folder, whole)]
    assert found[0] == found[1]
    assert found[0]["value"] is not None
    first, last = ([row.get("eval/optimality") is None for row in whole.metrics()][at] for at in (1, -1))
    assert (first, last) == (task is LATE, False)


@pytest.mark.slow
def test_an_agent_that_stops_by_itself_is_evaluated_and_finished(tmp_path):
    plan = settings(config={"batch": 4, "stop_after": 3})
    result = Training(plan).run(tmp_path / "run", Watcher())
    assert read_json(tmp_path / "run" / "result.json")["episodes"] == 12
    assert result.after["eval/kl"] > 0
    last = RunFolder(tmp_path / "run").metrics()[-1]
    assert (last["iteration"], last["episode"], last["eval/kl"]) == (4, 12, result.after["eval/kl"])
    after = [row["completion"] for row in read_lines(tmp_path / "run" / "samples.jsonl") if row["iteration"] == 4]
    assert after == [row["completion"] for row in sample_rows(result.last, len(after))]
    assert len(after) > 0
    assert read_json(tmp_path / "run" / "progress.json") == {"iteration": 3}  # and not 2, as save_every says
    assert read_json(tmp_path / "run" / "checkpoint" / "agent.json")["count"] == 3


@pytest.mark.slow
def test_an_agent_that_reports_nothing_has_used_its_budget(tmp_path):
    result = Training(settings(config={"batch": 4, "silent": True})).run(tmp_path / "run", Watcher())
    rows = RunFolder(tmp_path / "run").metrics()
    assert [(row["iteration"], row["episode"]) for row in rows] == [(0, 0), (1, 24)]
    assert rows[1]["eval/kl"] == result.after["eval/kl"] > rows[0]["eval/kl"]
    finished = read_json(tmp_path / "run" / "result.json")
    assert (finished["episodes"], finished["iterations"]) == (24, 0)
    samples = read_lines(tmp_path / "run" / "samples.jsonl")
    assert {row["iteration"] for row in samples} == {0, 1}


@pytest.mark.slow
def test_at_beta_0_the_optimum_is_the_greatest_reward_or_not_known(tmp_path):
    result = Training(settings(env=TASK | {"beta": 0.0}, episodes=4)).run(tmp_path / "run", Watcher())
    assert result.optimum.value.mean == 1.0
    assert result.after["eval/objective"] == result.after["eval/reward"]
    large = {"prompts": ["a"], "max_new_tokens": 4, "reward": {"name": "length", "target": 2}, "beta": 0.0}
    result = Training(settings(env=large, episodes=4)).run(tmp_path / "large", Watcher())
    assert result.optimum.value is None
    assert "eval/optimality" not in result.after
    assert "at beta = 0" in read_json(tmp_path / "large" / "result.json")["optimum"]["unknown"]
    assert (tmp_path / "large" / "curve.png").exists()


@pytest.mark.long
def test_a_sharp_optimum_is_worked_out_once_with_what_was_learned(tmp_path):
    """The reference's completions do not carry J*: evaluations have a J, and optimality comes with the last one."""
    words = ["a", *(f"w{i}q" for i in range(40))]
    env = {"prompts": ["a"], "tokenizer": words, "max_new_tokens": 5, "beta": 0.05}
    env |= {"reward": {"name": "contains_all", "words": ["w1q", "w2q", "w3q"]}}
    plan = settings(env=env, agent="rloo", config={"batch": 64}, episodes=512, optimum_per_prompt=64, eval_every=4)
    result = Training(plan).run(tmp_path / "run", Watcher())
    folder = RunFolder(tmp_path / "run")
    first, *_, last = [row for row in folder.metrics() if "eval/objective" in row]
    assert "eval/optimality" not in first
    assert result.optimum.samples.policies == 2
    assert (tmp_path / "run" / "optimum.safetensors").exists()
    task = make_env("textgym/Text-v0", 1, **env).unwrapped.task
    kept = kept_optimum(folder.path, task, "eval", 0.05)
    assert (kept.value, kept.reference, kept.unknown) == (
        result.optimum.value,
        result.optimum.reference,
        result.optimum.unknown,
    )
    assert ("eval/optimality" in last) == (result.optimum.value is not None)
    assert kept_optimum(folder.path, task, "train", 0.05) is None
    # A reward of the same name that pays something else.
    other = env | {"reward": {"name": "contains_all", "words": ["w4q"]}}
    assert kept_optimum(folder.path, make_env("textgym/Text-v0", 1, **other).unwrapped.task, "eval", 0.05) is None


@pytest.mark.long
def test_j_star_is_not_estimated_where_nobody_asks(tmp_path):
    """Evaluations have J and no optimality, and the run goes on as it began."""
    words = ["a", *(f"w{i}q" for i in range(40))]
    env = {"prompts": ["a"], "tokenizer": words, "max_new_tokens": 5, "beta": 0.05}
    env |= {"reward": {"name": "contains_all", "words": ["w1q", "w2q", "w3q"]}}
    plan = settings(env=env, agent="rloo", config={"batch": 4}, episodes=16, optimum_per_prompt=0)
    with pytest.raises(TrainingInterrupted):
        Training(plan).run(tmp_path / "run", Watcher(interrupt_at=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimum_module, "draw_samples", lambda *given, **named: pytest.fail("it is estimated"))
        result = Training(plan, RunFolder.reopen(tmp_path / "run")).run(tmp_path / "run", Watcher())
    assert str(result.optimum) == "J* not known (0 completions a prompt were asked for to estimate it)"
    rows = [row for row in RunFolder(tmp_path / "run").metrics() if "eval/objective" in row]
    assert [row["iteration"] for row in rows] == [0, 2, 4]
    assert not any(name.startswith("eval/optimality") for row in rows for name in row)
    assert not (tmp_path / "run" / "optimum.safetensors").exists()


def test_bad_settings_touch_no_file(tmp_path):
    with pytest.raises(TypeError, match="Did you mean 'batch'"):
        Training(settings(config={"bach": 4})).run(tmp_path / "run", Watcher())
    for name in ("episodes", "eval_every", "save_every", "final_per_prompt"):
        with pytest.raises(ValueError, match=f"{name}=-1"):
            settings(**{name: -1})
    assert not (tmp_path / "run").exists()


def test_the_second_ctrl_c_stops_at_once():
    asked: list[int] = []
    with first_interrupt(lambda: asked.append(1)) as pressed:
        os.kill(os.getpid(), signal.SIGINT)
        assert pressed()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert asked == [1]
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_prompts_are_spread_over_their_distribution():
    # Three quarters into 4 equal shares is 3/16, 7/16, 11/16, 15/16; the cumulative weights are 1/2, 3/4, 1.
    assert spread(np.array([0.5, 0.25, 0.25]), 4) == [0, 1, 2]
    assert spread(np.array([0.25] * 4), 2) == [1, 3]
    assert spread(np.array([1.0]), 3) == [0]
    assert spread(np.array([1.0]), 0) == []


def test_an_evaluation_as_a_flat_row(finished):
    last = finished[0].last
    row = evaluation_row(last)
    assert isinstance(last.reward, Estimate)
    assert last.exact
    assert row["eval/exact"] is True
    assert row["eval/reward"] == last.reward.mean
    assert "eval/reward_low" not in row  # what is exact has no interval
    sampled = evaluation_row(replace(last, reward=Estimate(0.5, 0.4, 0.6), exact=False))
    assert (sampled["eval/reward"], sampled["eval/reward_low"]) == (0.5, 0.4)
    assert row["eval/stop_rate"] == last.stop_rate
    assert "eval/gold" not in row  # this task has none


@pytest.mark.slow
def test_the_picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rows = [{"iteration": i, "episode": 10 * i, "objective/scores": 0.1 * i, "eval/objective": 0.2} for i in range(4)]
    draw_curves(rows, tmp_path / "curve.png", "a $title$ with_$", (0.1, 0.9), 0.05)
    picture = image.open(tmp_path / "curve.png")
    assert picture.size == (1040, 936)
    assert len(picture.getcolors(1 << 20)) > 50
    draw_curves([], tmp_path / "curve.png", "", None, 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_a_batch_is_drawn_where_its_policy_was():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    rows = [{"episode": 0}, {"episode": 10, "objective/kl": 0.0}, {"episode": 20, "objective/kl": 0.5}]
    _line(axes, rows, "objective/kl", "red", "")
    assert axes.lines[0].get_xydata().tolist() == [[0, 0.0], [10, 0.5]]


@pytest.mark.slow
def test_the_split_tune_is_evaluated_where_the_task_has_it(tmp_path: Any) -> None:
    own = TASK | {"eval_prompts": ["b", "a b"], "tune_prompts": ["b a"]}
    result = Training(settings(env=own, split="tune")).run(tmp_path / "tune", Watcher())
    assert result.last.episodes.prompts == ("b a",)
    assert result.optimum is not None
    assert {row["prompt"] for row in read_lines(tmp_path / "tune" / "samples.jsonl")} == {"b a"}
    assert Training(settings(env=own)).run(tmp_path / "eval", Watcher()).last.episodes.prompts == ("b", "a b")
    del own["tune_prompts"]
    with pytest.raises(ValueError, match="split 'tune': not one of eval, train"):
        Training(settings(env=own, split="tune"))
    with pytest.raises(ValueError, match="split 'train': not one of eval, tune"):
        settings(split="train")


@pytest.mark.slow
def test_an_agent_without_a_batch_of_its_own_plays_what_the_budget_gives(tmp_path):
    watcher = Watcher()
    Training(settings(agent="rloo", config={"device": "cpu"}, episodes=128, eval_every=0)).run(tmp_path / "a", watcher)
    assert [row["episode"] for row in watcher.rows] == [0, 64, 128]
    reason = "batch 64: the smallest of 64, 128 and 256 episodes, as none leaves 16 iterations in 128"
    assert [note for note in watcher.notes if note.startswith("batch ")] == [reason]
    assert RunFolder(tmp_path / "a").config()["config"] == {"device": "cpu", "batch": 64}
    assert with_batch(settings(agent="rloo", config={"group": 8}, episodes=128), 16).config["batch"] == 8 * 16
    for own in (settings(), settings(agent="a2c", config={}), settings(agent="reference", config={})):
        assert with_batch(own, 1) is own
        assert batch_reason(own, 1) == ""
