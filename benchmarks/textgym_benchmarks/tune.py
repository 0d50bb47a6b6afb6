"""Choose settings of an agent by trials: Optuna proposes, cells of a suite on the split "tune" answer.

A study's folder holds `tune.json`, what is tuned; `trials.jsonl`, Optuna's journal; `suite/`, the finished trials as
cells, which `textgym report` takes; and `page/`, what mattered.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Final, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState
from textgym_agents.protocol import Metrics
from textgym_agents.registry import agent_class, config_class, make_config
from textgym_agents.saving import FORMAT, check_format
from textgym_agents.training.loop import SilentWatcher

from textgym.checks import JsonObject, not_one_of
from textgym.files import make_folder, read_json, write_json
from textgym.interrupts import disk_full_at
from textgym.sources import versions
from textgym_benchmarks.engines import Engine, Event, Job
from textgym_benchmarks.space import default_space, read_space
from textgym_benchmarks.suite import Cell, Evaluation, Suite, check_integer
from textgym_benchmarks.suite_folder import RUN_CELL, hold, open_suite, run_one

RUN_TRIAL: Final = "textgym_benchmarks.tune:run_trial"
DEFAULTS: Final = "defaults"
"""Key of the job that runs the default settings, which no trial is."""
ENOUGH: Final = 8
"""The fewest finished trials from which it is said what mattered."""
_RANDOM = 8  # trials that are drawn at random before Optuna's model proposes


@dataclass(frozen=True)
class StudyPlan:
    """What is tuned, JSON values.

    Args:
        id: of the environment. env: its options. agent: a name or "module:Class". config: settings of all trials.
        episodes: the budget of a training. seeds: trainings of a trial, whose mean J is its score.
        space: setting -> what is searched, as `read_space` takes it; empty for the agent's `default_space`.
        seed: of the proposals.
    Raises: ValueError or TypeError for a value that is not allowed.
    """

    id: str
    agent: str
    episodes: int = 4096
    seeds: int = 1
    config: JsonObject = field(default_factory=dict)
    env: JsonObject = field(default_factory=dict)
    space: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("episodes", self.episodes, 1)
        check_integer("seeds", self.seeds, 1)
        check_integer("seed", self.seed, 0)
        make_config(agent_class(self.agent), self.config)
        kind = config_class(agent_class(self.agent))
        known = [] if kind is None else [each.name for each in fields(kind)]
        for name in self.space:
            if name not in known:
                raise ValueError(not_one_of(f"space: setting of {self.agent}", name, known))
        if both := sorted({*self.config} & {*self.distributions}):
            raise ValueError(f"space: {both[0]!r} is fixed and searched; allowed is one of the two")

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Return what is searched; a setting of `config` is not where nobody asks for it."""
        if self.space:
            return read_space(self.space)
        return default_space(self.agent, self.config)

    def cells(self, label: str, found: JsonObject) -> list[Cell]:
        """Return the cells of a trial, one for each seed. Raises: ValueError or TypeError for bad settings."""
        config = {**self.config, **found}
        make_config(agent_class(self.agent), config)
        env = {name: value for name, value in self.env.items() if name != "reward"}
        cell = Cell(self.id, self.agent, self.episodes, 0, self.env.get("reward"), env=env, config=config, label=label)
        return [replace(cell, seed=seed) for seed in range(self.seeds)]


Fate = Literal["done", "pruned", "failed"]
_STATES: Final[Mapping[Fate, TrialState]] = {
    "done": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass(frozen=True)
class TrialOutcome:
    """What came of a trial.

    Args:
        name: "trial N", or `DEFAULTS`. settings: what was tried, over the agent's own.
        state: "done"; "pruned", broken off; or "failed". objective: its mean J, of a pruned one the last.
        optimality: where it is known. seconds: of CPU time. error: why it failed.
    """

    name: str
    settings: JsonObject
    state: Fate
    objective: float | None = None
    optimality: float | None = None
    seconds: float = 0.0
    error: str = ""


class Tuning:
    """A study in its folder: a new one, or one to go on with.

    Args:
        plan: what is tuned. out: the folder.

    Attributes:
        study: Optuna's.
    Raises: ValueError if the folder holds something else; CellBusyError where another process is at work there.
    """

    def __init__(self, plan: StudyPlan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.evaluation = Evaluation(split="tune")
        stored = out / "tune.json"
        data = {"format": FORMAT, **asdict(plan), "versions": versions()}
        if stored.exists():
            check_format(out, read_json(stored), "study")
            for name, value in json.loads(json.dumps(data)).items():
                if name != "versions" and (before := read_json(stored)[name]) != value:
                    raise ValueError(
                        f"out={str(out)!r}: holds a study with {name}={before!r}, not {value!r}; choose another"
                    )
        elif out.exists() and not (out.is_dir() and all(each.name.startswith(".tune.json.") for each in out.iterdir())):
            raise ValueError(f"out={str(out)!r}: holds no study; choose another folder")
        else:
            make_folder(out)
            write_json(stored, data)
        self.study = _study(out)
        self._check_space()
        self._asked: dict[str, Trial] = {}

    def _check_space(self) -> None:
        """Raise ValueError if trials have searched otherwise, as where what is searched by default was another then."""
        space = self.plan.distributions
        for name, had in [each for trial in self.study.trials for each in trial.distributions.items()]:
            if space.get(name) != had:
                now = f"in {space[name]}" if name in space else "fixed"
                raise ValueError(
                    f"out={str(self.out)!r}: holds a study with {name} in {had}, not {now}; choose another"
                )

    def run(self, engine: Engine, trials: int) -> Iterator[TrialOutcome | str]:
        """Run until there are so many trials, and yield the name of each that starts and what comes of it.

        A trial that was broken off is taken up again, with the same settings and the points of its curve. Those that
        the agent refuses fail.

        Raises: RuntimeError at once if the agent's own settings fail, as where its model does not fit the task.
        """
        with hold(self.out), disk_full_at(self.out, "run the same command again, which goes on"):
            waiting = {_label(trial) for trial in self.study.get_trials(states=(TrialState.WAITING,))}
            for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
                # Without a label it has not all of its settings; with one that waits, this was broken off as well.
                if "label" in trial.user_attrs and _label(trial) not in waiting:
                    self.study.enqueue_trial(trial.params, user_attrs={"label": _label(trial)})
                Trial(self.study, trial._trial_id).set_user_attr("again", True)
                self.study.tell(trial.number, state=TrialState.FAIL)
            self._add(self.plan.cells(self.plan.agent, {}))
            for event in engine.run(self._jobs(trials)):
                if event.kind == "started":
                    yield event.key
                elif event.kind == "finished":
                    outcome = self._take(event)
                    if outcome.name == DEFAULTS and outcome.state == "failed":
                        raise RuntimeError(f"{self.plan.agent}: what all trials vary fails: {outcome.error}")
                    yield outcome

    def outcomes(self) -> list[TrialOutcome]:
        """Return the trials that have ended, the best first and those that failed last."""
        found = [_outcome(trial) for trial in self._ended()]
        order = list(_STATES)
        return sorted(found, key=lambda each: (order.index(each.state), -(each.objective or 0.0)))

    def defaults(self) -> TrialOutcome | None:
        """Return what the agent's default settings reach on the same seeds; None before it is known."""
        data = self.study.user_attrs.get(DEFAULTS)
        return None if data is None else TrialOutcome(DEFAULTS, {}, **data)

    def importance(self) -> dict[str, float]:
        """Return how much each setting says about which trials are among the best, shares; {} for too few trials.

        Source: PED-ANOVA (Watanabe, Bansal, Hutter 2023, arXiv:2304.10255), of the trials that were not broken off.
        """
        done = self.study.get_trials(states=(TrialState.COMPLETE,))
        if len(done) < ENOUGH:
            return {}
        judge = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(self.study, evaluator=judge)

    def _ended(self) -> list[FrozenTrial]:
        return [each for each in self.study.trials if each.state.is_finished() and "again" not in each.user_attrs]

    def _jobs(self, trials: int) -> Iterator[Job]:
        if self.defaults() is None:
            yield self._job(DEFAULTS, None, self.plan.cells(self.plan.agent, {}))
        while len(self._ended()) + len(self._asked) < trials:
            trial = self._ask()
            try:
                cells = self.plan.cells(_label(trial), dict(trial.params))
            except (TypeError, ValueError) as error:
                trial.set_user_attr("error", str(error))
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            self._asked[_label(trial)] = trial
            yield self._job(_label(trial), trial._trial_id, cells)

    def _ask(self) -> Trial:
        """Return a trial that waits, with the points of its curve, or a new one.

        What is proposed follows from the seed, the number of trials and what came of them, not from where the study
        was interrupted.
        """
        number = len(self._ended()) + len(self._asked)
        seed = int(np.random.default_rng([self.plan.seed, number]).integers(2**32))
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM, constant_liar=True)
        trial = self.study.ask(self.plan.distributions)
        trial.set_user_attr("label", trial.user_attrs.get("label", f"trial {number}"))
        before = [each for each in self.study.trials if "again" in each.user_attrs and _label(each) == _label(trial)]
        for step, value in {at: value for each in before for at, value in each.intermediate_values.items()}.items():
            trial.report(value, step)
        return trial

    def _job(self, key: str, trial: int | None, cells: Sequence[Cell]) -> Job:
        arguments = {"folder": str(self.out.resolve()), "trial": trial, "evaluation": asdict(self.evaluation)}
        return Job(key, RUN_TRIAL, arguments | {"cells": [cell.to_json() for cell in cells]})

    def _add(self, cells: Sequence[Cell]) -> None:
        open_suite(self.out / "suite", Suite("tune", tuple(cells), evaluation=self.evaluation))

    def _take(self, event: Event) -> TrialOutcome:
        """Tell the study what came of a trial, and return it."""
        found: JsonObject = event.value or {}  # type: ignore[assignment]
        if event.failure is not None:
            found = {"state": "failed", "error": f"{event.failure.type}: {event.failure.message}"}
        cells = [Cell.from_json(each) for each in found.pop("cells", ())]
        state = _STATES[found["state"]]
        if state is TrialState.COMPLETE:
            self._add(cells)
        if event.key == DEFAULTS:
            if state is TrialState.COMPLETE:
                self.study.set_user_attr(DEFAULTS, found)
            return TrialOutcome(DEFAULTS, {}, **found)
        trial = self._asked.pop(event.key)
        for name in ("optimality", "seconds", "error"):
            trial.set_user_attr(name, found.get(name))
        self.study.tell(trial, found.get("objective"), state)
        return _outcome(self.study.trials[trial.number])


def _study(folder: Path) -> optuna.Study:
    """Open the study of a folder. The end of its journal is dropped where a full disk or a crash has cut it off."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = folder / "trials.jsonl"
    # A file, not Optuna's usual link: where a link leads nowhere, as with a relative path, one that a killed process
    # has left is waited for without end.
    lock = JournalFileOpenLock(str(journal))
    backend = JournalFileBackend(str(journal), lock)
    if not journal.read_bytes().endswith(b"\n"):
        lock.acquire()  # nobody is writing then, so that a line without its end was cut off
        try:
            os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
        finally:
            lock.release()
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_RANDOM // 2, n_warmup_steps=2),
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
    )


def _label(trial: Trial | FrozenTrial) -> str:
    """Return the name of a trial; one that is taken up again keeps its own."""
    return str(trial.user_attrs.get("label", f"trial {trial.number}"))


def _outcome(trial: FrozenTrial) -> TrialOutcome:
    more = trial.user_attrs
    seconds, error = more.get("seconds") or 0.0, more.get("error") or ""
    state = next(fate for fate, state in _STATES.items() if state is trial.state)
    return TrialOutcome(_label(trial), dict(trial.params), state, trial.value, more.get("optimality"), seconds, error)


class _Pruning(SilentWatcher):
    """Reports the learning curve of a training to its trial, and breaks it off where half of the others were better.

    Args:
        before: points of the curves of the trial's earlier trainings. points, episodes: of this one.
    """

    def __init__(self, trial: Trial, before: int, points: int, episodes: int) -> None:
        self._trial, self._before, self._points, self._episodes = trial, before, points, episodes

    def iteration(self, row: Metrics) -> None:
        """See `Watcher.iteration`. Raises: TrialPruned."""
        share = float(row["episode"]) / self._episodes
        if not 0 < share < 1 or "eval/objective" not in row:
            return
        with warnings.catch_warnings(action="ignore"):  # of a point that was reported before the trial was broken off
            self._trial.report(float(row["eval/objective"]), self._before + round(share * self._points))
        if self._trial.should_prune():
            raise optuna.TrialPruned


def run_trial(folder: str, trial: int | None, cells: Sequence[JsonObject], evaluation: JsonObject) -> JsonObject:
    """Run the trainings of a trial one after the other, or go on with them: the job of a worker.

    Args:
        folder: of the study. trial: Optuna's id; None for one that is never broken off.
        cells, evaluation: as JSON.
    Returns: what `TrialOutcome` takes, and the cells.
    """
    out = Path(folder)
    asked = None if trial is None else Trial(_study(out), trial)
    results: list[JsonObject] = []
    try:
        for place, cell in enumerate(cells):
            begun = time.process_time()
            points, episodes = Evaluation.from_json(evaluation).points, Cell.from_json(cell).episodes
            watcher = None if asked is None else _Pruning(asked, place * points, points, episodes)
            results.append(run_one(cell, evaluation, str(out / "suite"), RUN_CELL, watcher=watcher))
    except optuna.TrialPruned:
        seconds = sum(each["timing"]["cpu_seconds"] for each in results) + time.process_time() - begun
        return {"state": "pruned", "seconds": seconds}
    ends = [each["measures"]["after"] for each in results]
    means = [each["objective"]["mean"] for each in ends if (each["objective"] or {}).get("mean") is not None]
    if len(means) < len(ends):
        raise ValueError("trials are compared by J, which is not known: without log-probabilities, or where it is -inf")
    scores = [each["optimality"]["mean"] for each in ends if each["optimality"] is not None]
    return {
        "state": "done",
        "objective": fmean(means),
        "optimality": fmean(scores) if len(scores) == len(ends) else None,
        "seconds": sum(each["timing"]["cpu_seconds"] for each in results),
        "cells": list(cells),
    }
