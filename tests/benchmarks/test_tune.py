"""Trials: what is searched, what is kept, what goes on, and what is said about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from chat_tools import bare
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial
from test_conversation_folders import model_folder
from textgym_agents.registry import agent_class, make_config
from textgym_benchmarks.commands.tune import main, show, write_page
from textgym_benchmarks.engines import make_engine
from textgym_benchmarks.space import default_space, read_space
from textgym_benchmarks.suite_folder import read_suite
from textgym_benchmarks.tune import StudyPlan, TrialOutcome, Tuning, _Pruning

from textgym.commands.console import UsageError

PLAN = StudyPlan(
    "textgym/Bandit-v0", "monte-carlo", 128, space={"learning_rate": "0.01..1.0", "schedule": "linear,constant"}
)


def names(outcomes):
    return sorted(each.name for each in outcomes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder of three trials, and what was said on the way."""
    tuning = Tuning(PLAN, tmp_path_factory.mktemp("tune") / "study")
    return tuning, list(tuning.run(make_engine("serial"), 3))


def test_what_is_searched_is_read_from_words():
    words = {"a": "1..4", "b": "1e-4..1e-2", "c": "0.5..1", "d": "exact,k1", "e": "1,2", "f": "true,null"}
    assert read_space(words) == {
        "a": IntDistribution(1, 4),
        "b": FloatDistribution(1e-4, 1e-2, log=True),
        "c": FloatDistribution(0.5, 1.0),
        "d": CategoricalDistribution(("exact", "k1")),
        "e": CategoricalDistribution((1, 2)),
        "f": CategoricalDistribution((True, None)),
    }


@pytest.mark.parametrize("word", ["2..1", "1..", "a..b", "1,1", "1..1", "a,,b", "NaN..1"])
def test_a_space_that_is_none_is_refused(word):
    with pytest.raises(ValueError, match=r"x='.*': allowed is|allowed are"):
        read_space({"x": word})


def test_by_default_the_settings_are_searched_that_an_agent_has():
    assert set(default_space("rloo", {})) == {"learning_rate", "batch", "epochs", "minibatches", "group", "kl", "clip"}
    rate = default_space("sb3-a2c", {})["learning_rate"]
    assert (rate.low, rate.high, rate.log) == (pytest.approx(3e-4), pytest.approx(3e-2), True)
    with pytest.raises(ValueError, match="nothing of random is searched by default; name some of its settings"):
        default_space("random", {})


@pytest.mark.parametrize("agent", ["reinforce", "behaviour-cloning", "rloo", "grpo", "dpo", "awr", "alphazero"])
def test_by_default_nothing_is_searched_that_the_agent_refuses(agent):
    space = default_space(agent, {})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    configs = [make_config(agent_class(agent), dict(study.ask(space).params)) for _ in range(20)]
    assert len({getattr(config, next(iter(space))) for config in configs}) > 1


def test_a_setting_that_another_one_allows_is_searched_beside_it():
    assert "value_coefficient" not in default_space("reinforce", {})
    assert "value_coefficient" in default_space("reinforce", {"baseline": "value"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"learning_rat": "0.1..1.0"}}, "Did you mean 'learning_rate'"),
        ({"config": {"learning_rate": 0.1}}, "'learning_rate' is fixed and searched"),
        ({"config": {"batch": -1}}, "batch"),
        ({"episodes": 0}, "episodes=0"),
    ],
)
def test_bad_plans_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        StudyPlan(**{"id": PLAN.id, "agent": PLAN.agent, "space": PLAN.space, **changes})


@pytest.mark.slow
def test_a_study_holds_its_trials_and_the_defaults(study):
    tuning, said = study
    ended = [each for each in said if isinstance(each, TrialOutcome)]
    assert names(ended) == ["defaults", "trial 0", "trial 1", "trial 2"]
    assert names(tuning.outcomes()) == ["trial 0", "trial 1", "trial 2"]
    suite = read_suite(tuning.out / "suite")
    assert suite.evaluation.split == "tune"
    for each in [*tuning.outcomes(), tuning.defaults()]:
        if each.state == "done":
            # The score is the J that the cell itself holds.
            cell = next(cell for cell in suite.cells if cell.name in (each.name, "monte-carlo" * (not each.settings)))
            assert cell.config == each.settings
            result = json.loads((tuning.out / "suite" / "cells" / cell.key / "result.json").read_text())
            assert result["measures"]["after"]["objective"]["mean"] == pytest.approx(each.objective)
    scores = [each.objective for each in tuning.outcomes() if each.state == "done"]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_more_trials_go_on_from_there_and_another_plan_is_refused(study):
    before = {each.name: each for each in study[0].outcomes()}
    tuning = Tuning(PLAN, study[0].out)
    said = [each for each in tuning.run(make_engine("serial"), 4) if isinstance(each, TrialOutcome)]
    assert names(said) == ["trial 3"]
    after = {each.name: each for each in tuning.outcomes()}
    assert {name: after[name] for name in before} == before
    assert not list(tuning.run(make_engine("serial"), 4))
    with pytest.raises(ValueError, match="holds a study with episodes=128, not 64"):
        Tuning(StudyPlan(**{**vars(PLAN), "episodes": 64}), study[0].out)


@pytest.mark.slow
def test_a_trial_that_was_broken_off_is_taken_up_with_its_settings(tmp_path):
    tuning = Tuning(PLAN, tmp_path / "study")
    events = tuning.run(make_engine("serial"), 1)
    while next(events) != "trial 0":
        pass
    events.close()  # as by a kill: the trial is left as running
    (broken,) = tuning.study.trials
    assert broken.state == optuna.trial.TrialState.RUNNING
    again = Tuning(PLAN, tmp_path / "study")
    (ended,) = [each for each in again.run(make_engine("serial"), 1) if isinstance(each, TrialOutcome)]
    assert (ended.name, ended.settings) == ("trial 0", broken.params)
    assert names(again.outcomes()) == ["trial 0"]


@pytest.mark.slow
def test_a_trial_that_was_broken_off_while_it_was_taken_up_is_taken_up_once(tmp_path):
    tuning = Tuning(PLAN, tmp_path / "study")
    events = tuning.run(make_engine("serial"), 1)
    while next(events) != "trial 0":
        pass
    events.close()
    (broken,) = tuning.study.trials
    tuning.study.enqueue_trial(broken.params, user_attrs={"label": "trial 0"})  # and here was another kill
    again = Tuning(PLAN, tmp_path / "study")
    ended = [each.name for each in again.run(make_engine("serial"), 2) if isinstance(each, TrialOutcome)]
    assert sorted(ended) == sorted(names(again.outcomes()))
    assert (len(ended), ended.count("trial 0")) == (2, 1)


def test_settings_that_the_agent_refuses_are_a_failed_trial(tmp_path):
    tuning = Tuning(StudyPlan("textgym/Bandit-v0", "monte-carlo", 64, space={"batch": "-2,-1"}), tmp_path / "study")
    list(tuning.run(make_engine("serial"), 2))
    assert [each.state for each in tuning.outcomes()] == ["failed", "failed"]
    assert "batch" in tuning.outcomes()[0].error


def test_a_training_behind_half_of_the_others_is_broken_off():
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(2, 2))
    for height in (1.0, 2.0, 3.0):
        trial = study.ask()
        for step in range(1, 5):
            trial.report(height, step)
        study.tell(trial, height)
    slow, fast = (_Pruning(study.ask(), 0, 4, 100) for _ in range(2))
    rows = [{"episode": episode, "iteration": 1} for episode in (0, 25, 50, 75, 100)]
    for row in rows:
        fast.iteration({**row, "eval/objective": 2.5})
        fast.iteration(row)  # without an evaluation
    slow.iteration({**rows[1], "eval/objective": 0.0})  # the first point is too early to tell
    with pytest.raises(optuna.TrialPruned):
        slow.iteration({**rows[2], "eval/objective": 1.9})
    late = _Pruning(study.ask(), 0, 4, 100)
    late.iteration({**rows[4], "eval/objective": 0.0})  # there is nothing to save any more


def test_the_page_shows_all_trials_and_what_mattered(study, tmp_path):
    tuning = Tuning(PLAN, tmp_path / "study")
    rng = np.random.default_rng(0)
    for rate in rng.uniform(0.01, 1.0, 12):
        kind = str(rng.choice(["linear", "constant"]))
        trial = optuna.trial.create_trial(
            params={"learning_rate": rate, "schedule": kind}, distributions=PLAN.distributions, value=-abs(rate - 0.5)
        )
        tuning.study.add_trial(trial)
    shares = tuning.importance()
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["learning_rate"] > 0.8  # J does not depend on the other
    page = write_page(tuning).read_text()
    assert page.count('class="done"') == 24
    assert "What mattered" in page
    assert study[0].importance() == {}


@pytest.mark.slow
def test_the_command_shows_and_refuses(tmp_path, capsys):
    words = [
        "Bandit-v0",
        "--agent",
        "monte-carlo",
        "--episodes",
        "64",
        "--engine",
        "serial",
        "--out",
        str(tmp_path / "s"),
    ]
    main([*words, "--trials", "1", "--search", "learning_rate=0.1..0.9"])
    shown = capsys.readouterr().out
    assert "trial 0" in shown
    assert "textgym train textgym/Bandit-v0 --agent monte-carlo --episodes 64" in shown
    assert (tmp_path / "s" / "page" / "index.html").exists()
    for more in (["--trials", "0"], ["--search", "batch"]):
        with pytest.raises(Exception, match=r"--trials 0|--search 'batch': allowed is NAME=LOW..HIGH"):
            main([*words, *more])


def test_settings_that_fail_as_they_come_end_the_study_at_once(tmp_path):
    plan = StudyPlan("textgym/Bandit-v0", "monte-carlo", 64, env={"arm": 3}, space={"learning_rate": "0.1..0.9"})
    tuning, said = Tuning(plan, tmp_path / "study"), []
    with pytest.raises(RuntimeError, match=r"monte-carlo: what all trials vary fails: .*arm"):
        said.extend(tuning.run(make_engine("serial"), 20))
    assert not tuning.study.trials
    assert tuning.defaults() is None


def test_a_model_brings_its_tokenizer_along(tmp_path, monkeypatch):
    turn = bare("byte-level").token_to_id("<end_of_turn>")
    model = str(model_folder(tmp_path / "model", [turn]))
    plans = []

    class PlannedError(Exception):
        """The plan is made."""

    def tuning(plan, out):
        plans.append(plan)
        raise PlannedError

    monkeypatch.setattr("textgym_benchmarks.tune.Tuning", tuning)
    words = ["Text-v0", "--agent", "rloo", "--env", 'prompts=["a"]']
    for more in (["--model", model], ["--set", f"model={model}"], ["--set", f"model={model}", "--model", model]):
        with pytest.raises(PlannedError):
            main([*words, *more])
        assert plans[-1].config == {"model": model}
        assert plans[-1].env == {"prompts": ["a"], "reference": model}
    with pytest.raises(UsageError, match="--model 'x': --set has model='y'"):
        main([*words, "--model", "x", "--set", "model=y"])


def test_an_agent_without_j_is_told_from_one_with_bad_settings(tmp_path):
    pytest.importorskip("stable_baselines3")
    config = {"batch": 16, "learning_starts": 32, "gradient_steps": 1}
    plan = StudyPlan("textgym/Bandit-v0", "sb3-sac", 64, config=config, space={"learning_rate": "1e-4..1e-2"})
    with pytest.raises(RuntimeError, match=r"sb3-sac: .* trials are compared by J, which is not known"):
        list(Tuning(plan, tmp_path / "study").run(make_engine("serial"), 1))


@pytest.mark.parametrize(
    ("own", "said", "flags"),
    [
        (0.4, "No trial is better than the default settings. To", ""),
        (0.3, "The best of many J overestimates", " --learning-rate 0.5"),
        (None, "The best of many J overestimates", " --learning-rate 0.5"),
    ],
)
def test_settings_that_lose_to_the_defaults_are_not_recommended(monkeypatch, capsys, own, said, flags):
    outcomes = [TrialOutcome("trial 0", {"learning_rate": 0.5}, "done", 0.35)]
    defaults = TrialOutcome("defaults", {}, "failed" if own is None else "done", own)
    tuning = SimpleNamespace(plan=PLAN, outcomes=lambda: outcomes, defaults=lambda: defaults, importance=dict)
    monkeypatch.setattr("textgym_benchmarks.commands.tune.write_page", lambda tuning: "page")
    show(tuning)
    shown = capsys.readouterr().out
    assert said in shown
    assert f"textgym train textgym/Bandit-v0 --agent monte-carlo --episodes 128{flags}\n" in shown


def test_a_study_that_has_searched_otherwise_is_refused_at_its_start(tmp_path):
    plan = StudyPlan(**{**vars(PLAN), "space": {}})
    for name, now in (("batch", r"in CategoricalDistribution\(choices=\(32, 64, 128, 256\)\)"), ("group", "fixed")):
        Tuning(plan, tmp_path / name).study.ask({name: CategoricalDistribution((8, 16))})
        was = rf"holds a study with {name} in CategoricalDistribution\(choices=\(8, 16\)\), not {now}; choose another"
        with pytest.raises(ValueError, match=was):
            Tuning(plan, tmp_path / name)


def test_a_start_that_was_killed_as_it_wrote_its_plan_is_no_other_study(tmp_path):
    (tmp_path / ".tune.json.123").write_text("{")
    assert Tuning(PLAN, tmp_path).outcomes() == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no study"):
        Tuning(PLAN, tmp_path / "other")


def test_a_study_goes_on_from_a_journal_whose_end_was_cut_off(tmp_path):
    found = Tuning(PLAN, tmp_path / "s").study
    found.set_user_attr("first", 1)
    found.set_user_attr("second", 2)
    journal = tmp_path / "s" / "trials.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])  # as a full disk leaves it
    Tuning(PLAN, tmp_path / "s").study.set_user_attr("third", 3)
    assert Tuning(PLAN, tmp_path / "s").study.user_attrs == {"first": 1, "third": 3}


def test_the_lock_of_a_killed_process_does_not_hold_up_a_study_for_ever(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Tuning(PLAN, Path("s")).study._storage._backend._lock.acquire()  # and here was a kill
    seconds = iter(range(1000))  # instead of waiting; the clock runs out where there is no end
    clock = SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda _: None)
    monkeypatch.setattr("optuna.storages.journal._file.time", clock)
    assert Tuning(PLAN, Path("s")).outcomes() == []


@pytest.mark.slow
def test_a_study_that_was_broken_off_again_and_again_is_the_one_that_was_not(tmp_path):
    plan, trials = replace(PLAN, episodes=256), 11
    whole = Tuning(plan, tmp_path / "whole")
    list(whole.run(make_engine("serial"), trials))
    for stop in ("trial 1", "trial 3", "trial 3", "trial 8", "trial 10"):
        tuning = Tuning(plan, tmp_path / "cut")
        events = tuning.run(make_engine("serial"), trials)
        while next(events) != stop:
            pass
        events.close()
    left = Trial(tuning.study, tuning.study.trials[-1]._trial_id)
    left.report(-1.0, 1)  # a point of its curve that a worker had reported
    tuning.study.ask({})  # and a trial that has no settings yet
    again = Tuning(plan, tmp_path / "cut")
    list(again.run(make_engine("serial"), trials))
    found, wanted = ({each.name: replace(each, seconds=0) for each in one.outcomes()} for one in (again, whole))
    assert found == wanted
    assert len(found) == trials
    (taken_up,) = [each for each in again._ended() if each.user_attrs["label"] == "trial 10"]
    assert taken_up.intermediate_values[1] == -1.0
