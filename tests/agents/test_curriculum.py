"""Curricula: which prompts a training draws, by what they have earned so far; evaluations draw theirs as ever."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agents.test_training import Watcher, without_time
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from textgym_agents.config import MeasureSettings, TrainSettings
from textgym_agents.registry import make_env
from textgym_agents.training.curriculum import Curriculum, CurriculumSettings, set_curriculum
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.loop import Training
from textgym_benchmarks.run.cell import plan_of
from textgym_benchmarks.suite import Cell, Evaluation

from textgym.files import read_json, read_lines, write_text
from textgym.interrupts import TrainingInterrupted
from textgym.play import play_batch, reset_groups

RHO = np.array([0.1, 0.2, 0.3, 0.4])
PROMPTS = ["a", "b", "a a", "b b"]
TASK = {
    "tokenizer": ["<end>", "a", "b"],
    "stop": "<end>",
    "reference": "uniform",
    "prompts": PROMPTS,
    "weights": RHO.tolist(),
    "max_new_tokens": 3,
    "reward": {"name": "length", "target": 2, "unit": "tokens"},
}


def made(**settings: Any) -> Curriculum:
    return Curriculum(CurriculumSettings(**settings), RHO)


def tell(curriculum, returns):
    """One batch: prompt -> the returns of its episodes."""
    rows = [(prompt, value) for prompt, values in returns.items() for value in values]
    for row in range(len(rows)):
        curriculum.begin(row)
    prompts, values = [prompt for prompt, _ in rows], np.array([value for _, value in rows])
    curriculum.see(range(len(rows)), prompts, values, np.ones(len(rows), dtype=bool))
    return curriculum.update(1)


def test_difficulty_by_hand():
    curriculum = made(curriculum="difficulty", curriculum_target=0.5, curriculum_width=0.25, curriculum_rate=0.5)
    np.testing.assert_allclose(curriculum.weights, RHO)  # nothing is known yet
    row = tell(curriculum, {0: [1.0, 0.0], 2: [0.0], 3: [1.0, 1.0]})
    assert row["prompts"] == [0, 2, 3]
    assert row["episodes"] == [2, 1, 2]
    assert row["returns"] == [0.5, 0.0, 1.0]
    assert row["weights"] == RHO[[0, 2, 3]].tolist()  # those that they were drawn with
    # Prompt 0 is at the target, 2 and 3 are two widths away, 1 is not known and comes first.
    own = RHO * [1.0, 1.0, np.exp(-2), np.exp(-2)]
    np.testing.assert_allclose(curriculum.weights, 0.25 * RHO + 0.75 * own / own.sum())
    tell(curriculum, {3: [0.0]})
    np.testing.assert_allclose(curriculum.means, [0.5, np.nan, 0.0, 0.5])  # 1 + 0.5 (0 - 1)
    own = RHO * [1.0, 1.0, np.exp(-2), 1.0]
    np.testing.assert_allclose(curriculum.weights, 0.25 * RHO + 0.75 * own / own.sum())


def test_progress_by_hand():
    curriculum = made(curriculum="progress", curriculum_rate=0.5, curriculum_share=0.1)
    tell(curriculum, {0: [1.0], 1: [0.0], 2: [0.0]})
    np.testing.assert_allclose(curriculum.weights, RHO)
    tell(curriculum, {0: [0.0], 1: [1.0], 2: [0.0]})
    np.testing.assert_allclose(curriculum.means, [0.5, 0.5, 0.0, np.nan])
    np.testing.assert_allclose(curriculum.progress, [-0.5, 0.5, 0.0, np.nan])
    own = RHO * [0.5, 0.5, 0.0, 0.5]  # falling counts as rising does; what is not known counts as the most
    np.testing.assert_allclose(curriculum.weights, 0.1 * RHO + 0.9 * own / own.sum())
    tell(curriculum, {0: [1.0]})  # the mean rises by 0.25: the running change is -0.5 + 0.5 (0.25 + 0.5)
    np.testing.assert_allclose(curriculum.progress[0], -0.125)


def test_where_nothing_changes_draws_are_as_the_split_s_weights_say():
    curriculum = made(curriculum="progress")
    for _ in range(2):
        tell(curriculum, {prompt: [1.0] for prompt in range(4)})
    np.testing.assert_allclose(curriculum.weights, RHO)


@pytest.mark.parametrize("kind", ["difficulty", "progress"])
def test_draws_follow_the_weights(kind):
    env = make_env("textgym/Text-v0", 4000, **TASK)
    curriculum = set_curriculum(CurriculumSettings(curriculum=kind), env)
    for prompt, returns in enumerate(([0.0, 0.5], [0.3, 0.4], [1.0, 1.0], [0.2, 0.6])):
        for value in returns:
            tell(curriculum, {prompt: [value]})
    assert np.abs(curriculum.weights - RHO).max() > 0.1
    drawn = np.bincount(env.reset(seed=3)[1]["prompt_index"], minlength=4)
    assert stats.chisquare(drawn, 4000 * curriculum.weights).pvalue > 0.001
    assert stats.chisquare(drawn, 4000 * RHO).pvalue < 1e-6
    again = env.reset(seed=3)[1]["prompt_index"]
    assert np.bincount(again, minlength=4).tolist() == drawn.tolist()


@pytest.mark.parametrize("reward", [TASK["reward"], {"name": "shaped", "reward": TASK["reward"]}])
@pytest.mark.parametrize("group", [1, 4])
def test_what_is_seen_is_what_episodes_were_paid(reward, group):
    env = make_env("textgym/Text-v0", 64, **{**TASK, "reward": reward})
    curriculum = set_curriculum(CurriculumSettings(curriculum="difficulty"), env)
    generator = np.random.default_rng(0)
    observation, infos = reset_groups(env, 5, group)
    played = play_batch(env, observation, lambda turn: generator.integers(3, size=len(turn.rows)))
    row, paid = curriculum.update(7), played.returns(1.0)
    index = infos["prompt_index"]
    assert row["iteration"] == 7
    assert row["prompts"] == np.unique(index).tolist()
    assert row["episodes"] == np.bincount(index, minlength=4)[row["prompts"]].tolist()
    np.testing.assert_allclose(row["returns"], [paid[index == prompt].mean() for prompt in row["prompts"]])
    assert np.unique(paid).size > 1


def test_an_episode_that_was_left_tells_nothing_of_the_next_one():
    curriculum = made(curriculum="difficulty")
    curriculum.begin(0)
    curriculum.see([0], [0], np.array([5.0]), np.array([False]))
    curriculum.begin(0)
    curriculum.see([0], [1], np.array([1.0]), np.array([True]))
    assert curriculum.update(1)["returns"] == [1.0]


def plan(agent="rloo", kind="difficulty", **changes: Any) -> TrainSettings:
    config = {"batch": 16, "device": "cpu", "learning_rate": 0.01} if agent in ("rloo", "lm-ppo", "dpo") else {}
    values: dict[str, Any] = {
        "id": "textgym/Text-v0",
        "agent": agent,
        "env": TASK,
        "config": config,
        "episodes": 64,
        "eval_every": 2,
        "save_every": 1,
        "optimum_per_prompt": 0,
        "final_per_prompt": 2,
        "track": "",
        "curriculum": kind,
    }
    return TrainSettings(**values | changes)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["difficulty", "progress"])
def test_a_resumed_run_draws_as_the_whole_one(tmp_path, kind):
    Training(plan(kind=kind), pictures=False).run(tmp_path / "whole", Watcher())
    with pytest.raises(TrainingInterrupted):
        Training(plan(kind=kind), pictures=False).run(tmp_path / "run", Watcher(interrupt_at=2))
    folder = RunFolder.reopen(tmp_path / "run")
    Training(plan(kind=kind), folder, pictures=False).run(tmp_path / "run", Watcher())
    whole = RunFolder(tmp_path / "whole")
    assert [row["iteration"] for row in whole.prompts()] == [1, 2, 3, 4]
    assert folder.prompts() == whole.prompts()
    assert without_time(folder.metrics()) == without_time(whole.metrics())
    assert {"curriculum/prompts", "curriculum/seen"} <= folder.metrics()[-1].keys()


@pytest.mark.slow
def test_a_log_with_a_row_less_is_not_resumed(tmp_path):
    with pytest.raises(TrainingInterrupted):
        Training(plan(), pictures=False).run(tmp_path / "run", Watcher(interrupt_at=2))
    log = tmp_path / "run" / "curriculum.jsonl"
    write_text(log, log.read_text().splitlines(keepends=True)[1])
    folder = RunFolder.reopen(tmp_path / "run")
    with pytest.raises(ValueError, match=r"curriculum\.jsonl: the log"):
        Training(plan(), folder, pictures=False).run(tmp_path / "run", Watcher())


@pytest.mark.slow
def test_evaluations_are_of_the_same_prompts(tmp_path):
    few = {"agent": "rloo", "samples": 4, "split": "eval"}
    for kind in ("uniform", "progress"):
        Training(plan(kind=kind, **few), pictures=False).run(tmp_path / kind, Watcher())
    same, other = (read_lines(tmp_path / kind / "samples.jsonl") for kind in ("uniform", "progress"))
    assert [(row["iteration"], row["prompt"]) for row in same] == [(row["iteration"], row["prompt"]) for row in other]
    first, second = (read_json(tmp_path / kind / "result.json")["before"] for kind in ("uniform", "progress"))
    assert first == second
    assert not (tmp_path / "uniform" / "curriculum.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["lm-ppo", "dpo", "q-learning", "sb3-ppo", "alphazero"])
def test_every_agent_that_plays_draws_by_it(tmp_path, agent):
    pytest.importorskip("stable_baselines3" if agent.startswith("sb3") else "numpy")
    few = {} if agent in ("lm-ppo", "dpo") else {"config": {"batch": 16}}
    Training(plan(agent, **few), pictures=False).run(tmp_path / "run", Watcher())
    rows = read_lines(tmp_path / "run" / "curriculum.jsonl")
    assert sum(sum(row["episodes"]) for row in rows) >= 32
    if agent != "alphazero":  # whose returns are all the highest at once
        assert rows[-1]["weights"] != RHO[rows[-1]["prompts"]].tolist()


@pytest.mark.parametrize(
    ("agent", "config", "named"),
    [
        ("behaviour-cloning", {}, "data=None"),
        ("dpo", {"data": "pairs.jsonl"}, "data='pairs.jsonl'"),
        ("dpo", {"pairs": 64}, "pairs=64"),
        ("awr", {"data": "log.jsonl"}, "data='log.jsonl'"),
        ("ilql", {"logged": 64}, "logged=64"),
    ],
)
def test_an_agent_with_prompts_of_its_own_is_refused_before_anything_is_made(monkeypatch, agent, config, named):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr("textgym_agents.training.loop.make_env", never)
    with pytest.raises(ValueError, match=f"^curriculum='difficulty': with {named} the agent learns from the prompts"):
        Training(plan(agent, config=config), pictures=False)


@pytest.mark.parametrize("agent", ["dpo", "ilql", "cql", "mc-values", "awr"])
def test_an_offline_agent_whose_reference_writes_anew_draws_by_it(agent):
    training = Training(plan(agent, config={"batch": 16}), pictures=False)
    assert training._curriculum is not None


def test_an_agent_that_draws_no_prompt_is_refused_after_its_first_batch():
    with pytest.raises(ValueError, match="curriculum='progress': this agent draws no prompt from its environment"):
        Curriculum(CurriculumSettings(curriculum="progress"), np.ones(3) / 3).update(1)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="curriculum='progress'"):
        set_curriculum(CurriculumSettings(curriculum="progress"), make_env("textgym/Text-v0", 2, **TASK))


bad = st.one_of(st.none(), st.booleans(), st.text(max_size=3), st.just(float("nan")), st.just(float("inf")))


@given(
    name=st.sampled_from(["curriculum_target", "curriculum_width", "curriculum_share", "curriculum_rate"]),
    value=bad,
)
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        MeasureSettings(curriculum="difficulty", **{name: value})


@given(
    st.one_of(
        st.tuples(st.just("curriculum_share"), st.floats(-1e9, -1e-9) | st.floats(1.0001, 1e9)),
        st.tuples(st.just("curriculum_rate"), st.floats(-1e9, 0) | st.floats(1.0001, 1e9)),
        st.tuples(st.just("curriculum_width"), st.floats(-1e9, 0)),
    )
)
def test_what_is_out_of_range_is_refused(setting):
    with pytest.raises(ValueError, match=f"^{setting[0]}="):
        MeasureSettings(curriculum="difficulty", **dict([setting]))


@given(st.text(max_size=12).filter(lambda text: text not in ("uniform", "difficulty", "progress")))
def test_an_unknown_curriculum_is_refused(kind):
    with pytest.raises(ValueError, match=r"^curriculum="):
        MeasureSettings(curriculum=kind)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curriculum_share": 0.5}, "curriculum_share=0.5: allowed is 0.25 without curriculum='difficulty' or"),
        ({"curriculum": "progress", "curriculum_target": 0.7}, "curriculum_target=0.7: allowed is 0.5 without"),
    ],
)
def test_settings_without_use_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MeasureSettings(**settings)


def test_a_cell_of_a_suite_has_the_settings_of_a_curriculum_beside_its_agent_s():
    task = make_env("textgym/Copy-v0", 1).unwrapped.task
    config = {"curriculum": "difficulty", "curriculum_target": 0.7, "clip": 0.1}
    made = plan_of(Cell("textgym/Copy-v0", "rloo", 512, 3, config=config), Evaluation(), task)
    assert (made.curriculum, made.curriculum_target, made.curriculum_share) == ("difficulty", 0.7, 0.25)
    assert made.config == {"clip": 0.1, "seed": 3, "batch": 64}


def test_a_log_of_more_prompts_than_there_are_says_that_they_have_changed():
    row = tell(made(curriculum="progress"), {0: [1.0], 3: [0.0]})
    fewer = Curriculum(CurriculumSettings(curriculum="progress"), RHO[:3] / RHO[:3].sum())
    with pytest.raises(ValueError, match="prompt 3: the split has 3, so its prompts have changed"):
        fewer.replay(row, 1)
