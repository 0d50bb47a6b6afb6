"""Train any agent in a run folder: learning, held-out evaluation, samples, checkpoints, resuming."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from textgym.evaluate import EvaluationResult, evaluate
from textgym.files import reading
from textgym.interrupts import TrainingInterrupted, disk_full_at, first_interrupt
from textgym.optimum import Optimum, optimum_of
from textgym.parts import kept_until_done
from textgym.sources import versions
from textgym_agents.algorithms.fixed import reference_of
from textgym_agents.config import TrainSettings
from textgym_agents.protocol import Agent, Metrics
from textgym_agents.registry import agent_class, batch_reason, load_agent, make_agent, make_config, make_env, with_batch
from textgym_agents.saving import count, number, task_signs
from textgym_agents.training.curriculum import refuse_own_prompts, set_curriculum
from textgym_agents.training.curves import draw_curves
from textgym_agents.training.doctor import Doctor, prompt_signs
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.measures import (
    LearningMeter,
    TrainResult,
    evaluation_row,
    keep_optimum,
    kept_optimum,
    optimum_summary,
    proposals_of,
    sample_rows,
    to_evaluate,
    unsettled,
)
from textgym_agents.training.ranks import Ranks, refuse_ranks, share, world


class Watcher(Protocol):
    """An object that is informed of a training's progress."""

    def stage(self, text: str) -> None:
        """Report that a new part of the work begins."""

    def note(self, text: str) -> None:
        """Report something worth a line."""

    def iteration(self, row: Metrics) -> None:
        """Report the metrics of an iteration, including those of an evaluation."""


class SilentWatcher:
    """A `Watcher` that prints nothing."""

    def stage(self, text: str) -> None:
        """See `Watcher.stage`."""

    def note(self, text: str) -> None:
        """See `Watcher.note`."""

    def iteration(self, row: Metrics) -> None:
        """See `Watcher.iteration`."""


class _OutputWatcher:
    """A watcher whose full output is told apart from a full folder. Args: advice: see `disk_full_at`."""

    def __init__(self, watcher: Watcher, advice: str) -> None:
        self._watcher, self._advice = watcher, advice

    def stage(self, text: str) -> None:
        with disk_full_at("standard output", self._advice):
            self._watcher.stage(text)

    def note(self, text: str) -> None:
        with disk_full_at("standard output", self._advice):
            self._watcher.note(text)

    def iteration(self, row: Metrics) -> None:
        with disk_full_at("standard output", self._advice):
            self._watcher.iteration(row)


class Training:
    """A training, ready to run. Creating it checks all settings and touches no file.

    Args:
        folder: the folder of an interrupted run to resume; None for a new run.
        beta: reward units per nat, for measuring J; None takes the agent's own, or the task's.
        seed: seed of the evaluations; None takes the agent's own.
        pictures: whether to write TensorBoard events and curve.png, if the required packages are installed.
        typed: the ID as it was typed, for the command that resumes the run.

    Attributes:
        task: the task to learn. beta: reward units per nat.
        reference: the reference of the KL; has_own_reference: whether it is the agent's, not the task's.
    """

    def __init__(
        self,
        settings: TrainSettings,
        folder: RunFolder | None = None,
        *,
        beta: float | None = None,
        seed: int | None = None,
        pictures: bool = True,
        typed: str = "",
    ) -> None:
        self._why_batch, settings = batch_reason(settings, world()), with_batch(settings, world())
        self._settings, self._folder, self._pictures, self._typed = settings, folder, pictures, typed or settings.id
        config = make_config(agent_class(settings.agent), settings.config)
        refuse_own_prompts(settings, config)
        self._seed = int(getattr(config, "seed", 0)) if seed is None else seed
        rows = share("batch", int(getattr(config, "batch", 64)), int(getattr(config, "group", 1)))
        self._env = make_env(settings.id, rows, **settings.env)
        self.task = self._env.unwrapped.task
        self.task.prompt_set(settings.split)
        if folder is not None:
            folder.check_task(task_signs(self.task, settings.split))
        own_beta = getattr(config, "beta", None) if beta is None else beta
        self.beta = float(self.task.beta if own_beta is None else own_beta)
        self._agent: Agent = (
            load_agent(folder.checkpoint, self._env, settings.agent)
            if folder is not None and folder.checkpoint.is_dir()
            else make_agent(settings.agent, self._env, config)
        )
        if int(getattr(self._agent, "episodes", 0)) < settings.episodes:
            self._agent.check_learning(self._env)
        self.reference = reference_of(self._agent, self.task)
        self.has_own_reference = self._agent.own_reference() is not None
        self._optimum: Optimum | None = None
        self._unsettled = False
        self._ranks, self._curriculum = Ranks(self._agent), set_curriculum(settings, self._env)
        self._counts: Mapping[str, float] = self.task.scorer.counts()
        self._meter = LearningMeter(self._env, self._ranks)
        self._doctor = Doctor(max_grad_norm=getattr(config, "max_grad_norm", None))
        self._started, self._cpu_started = time.monotonic(), time.process_time()
        self._first: EvaluationResult | None = None
        self._last: EvaluationResult | None = None
        self._iterations = self._episodes = 0

    def run(self, out: str | Path, watcher: Watcher, optimum: Optimum | None = None) -> TrainResult:
        """Learn, and write the run's folder.

        Args:
            out: a new folder; ignored in a run that is resumed.
            optimum: J* on the held-out prompts at this reference and beta; None: it is computed. If samples of the
                reference are not enough, this happens after learning, with samples of the trained policy; evaluations
                before then have a J and no optimality.
        Raises: ValueError if `out` contains something already; TrainingInterrupted after Ctrl-C or SIGTERM;
            DiskFullError if nothing more can be written.
        """
        if not self.leads:
            refuse_ranks("Training.run")
        config = asdict(self._settings) | {"versions": versions(), "task": task_signs(self.task, self._settings.split)}
        rewind_to = None if self._folder is None else self._checkpoint_iteration()
        with disk_full_at(out):
            folder = self._folder or RunFolder.create(out, config)
        self._folder, self._optimum = folder, optimum
        advice = f"go on with: {self._command(folder)}"
        watcher = _OutputWatcher(watcher, advice)
        try:
            with disk_full_at(folder.path, advice), folder.writing(rewind_to, self._pictures) as has_events:
                if self._pictures and not has_events and "tensorboard" in self._settings.track:
                    watcher.note('no TensorBoard events are written: pip install "textgym[lm,report]"')
                self._catch_up(folder)
                return self._run(folder, watcher)
        except KeyboardInterrupt as interrupt:
            reached = f"{self._episodes} of {self._settings.episodes} episodes"
            raise TrainingInterrupted(f"after {reached}; {advice}") from interrupt

    @property
    def leads(self) -> bool:
        """Whether this process should `run`; in a group of processes, the others should `follow`."""
        return self._ranks.leads

    def follow(self) -> None:
        """Learn beside the process that runs this training, which alone evaluates, prints and writes."""
        self._iterations, self._episodes = self._agent.iteration or 0, int(getattr(self._agent, "episodes", 0))
        if self._episodes < self._settings.episodes:
            self._learn(None, SilentWatcher())
        self._ranks.part()

    def _command(self, folder: RunFolder) -> str:
        """Return the command line that resumes this run."""
        agent = [] if self._settings.agent == "lm-ppo" else ["--agent", self._settings.agent]  # decides on the flags
        return shlex.join(["textgym", "train", self._typed, *agent, "--out", str(folder.path), "--resume"])

    def _run(self, folder: RunFolder, watcher: Watcher) -> TrainResult:
        settings = self._settings
        if self._optimum is None:
            watcher.stage("computing the optimum")
            kept = kept_optimum(folder.path, self.task, settings.split, self.beta)
            killed = kept is not None and kept.with_proposals and self._episodes < settings.episodes  # at its end
            self._optimum = self._work_out() if kept is None or killed else kept
            self._unsettled = self._optimum.improvable and bool(proposals_of(self._agent, self.task))
            if not self._unsettled:
                keep_optimum(folder.path, self.task, self._optimum)
        if not folder.metrics():
            watcher.stage("evaluating before learning")
            self._first = self._evaluate(settings.final_per_prompt)
            start = {"iteration": 0, "episode": 0} | prompt_signs(self.task)
            self._record(folder, watcher, start, self._first)
        watcher.stage("learning")
        if self._episodes < settings.episodes:
            self._learn(folder, watcher)
        if self._last is None and not self._agent.learns:
            self._last = self._first  # what cannot learn is the same after it as before
        if self._last is None:  # it has reported nothing, or stopped by itself
            self._last, rows = self._evaluate_last(folder, watcher), folder.metrics()
            if self._agent.learns and (len(rows) == 1 or "eval/reward" not in rows[-1]):
                self._episodes = self._episodes or settings.episodes * bool(self._meter.row()["learning/tokens"])
                end: Metrics = {"iteration": self._iterations + 1, "episode": self._episodes}
                self._record(folder, watcher, end, self._last)
        self._ranks.part()
        return self._finish(folder, watcher, self._last)

    def _learn(self, folder: RunFolder | None, watcher: Watcher) -> None:
        """Learn, and write to a folder; a process that follows has none."""
        settings = self._settings
        offset, stopped, known, saved = self._iterations, False, self._agent.chosen, -1

        def after_iteration(metrics: Metrics) -> bool:
            self._meter.stop(metrics)
            before = self._episodes
            self._iterations += 1
            self._episodes = int(metrics.get("episode", self._iterations * self._env.num_envs))
            row = {**metrics, "iteration": self._iterations, "episode": self._episodes}
            if self._curriculum is not None and folder is not None:
                folder.log_prompts(self._curriculum.update(self._iterations))
                row |= self._curriculum.metrics()
            done, due = self._episodes >= settings.episodes, self._is_due(before)
            self._counts = self._ranks.counts(self.task.scorer.counts())
            if folder is not None:
                self._measure(folder, watcher, row, done, due)
            nonlocal stopped, known, saved
            if known != (known := self._agent.chosen):
                watcher.note(known)
            stopped = self._ranks.any(interrupted())
            if done or stopped or (due and settings.eval_points > 0) or self._every(settings.save_every):
                self._save(folder)
                saved = self._iterations
            self._meter.start()
            return stopped

        if self._why_batch:
            watcher.note(self._why_batch)
        stopping = "stopping after this iteration; press Ctrl-C again to stop at once"
        with first_interrupt(lambda: watcher.note(stopping)) as interrupted:
            self._meter.start()
            self._agent.learn(self._env, settings.episodes - self._episodes, after_iteration)
            if stopped and self._episodes < settings.episodes:
                if folder is not None:
                    self._draw(folder, watcher)
                raise interrupted.error()
        if (late := self._meter.late()) or self._iterations == offset:
            self._meter.stop()
        if late or saved != self._iterations:  # it has learned on, or returned before its budget
            self._save(folder)

    def _measure(self, folder: RunFolder, watcher: Watcher, row: Metrics, done: bool, due: bool) -> None:
        """Write down an iteration, with an evaluation where learning is done or one is due."""
        evaluation = None
        if done:
            self._last = evaluation = self._evaluate_last(folder, watcher)
        elif due:
            evaluation = self._evaluate(self._settings.eval_per_prompt)
        self._record(folder, watcher, row, evaluation)

    def _is_due(self, before: int) -> bool:
        """Return whether an evaluation follows this iteration. Args: before: episodes before it."""
        if points := self._settings.eval_points:
            return self._episodes * points // self._settings.episodes > before * points // self._settings.episodes
        return self._every(self._settings.eval_every)

    def _every(self, iterations: int) -> bool:
        return iterations > 0 and self._iterations % iterations == 0

    def _finish(self, folder: RunFolder, watcher: Watcher, last: EvaluationResult) -> TrainResult:
        rows = folder.metrics()
        before = {name: value for name, value in rows[0].items() if name.startswith("eval/")}
        after = evaluation_row(last)
        if caveat := self._agent.caveat(self.task, self._settings.split):
            watcher.note(caveat)
        assert self._optimum is not None
        self._draw(folder, watcher)
        folder.finish(
            {
                "before": before,
                "after": after,
                "optimum": optimum_summary(self._optimum),
                "beta": self.beta,
                "iterations": self._iterations,
                "episodes": self._episodes,
                "seconds": (seconds := folder.seconds()),
                "versions": versions(),
            }
        )
        reached = self._meter.row(), self._iterations, self._episodes
        return TrainResult(before, after, self._first, last, self._optimum, seconds, *reached)

    def _work_out(self, proposals: Sequence[Agent] = ()) -> Optimum:
        # Always the same samples, so that every run of a task is measured against the same J*.
        split, each = self._settings.split, self._settings.optimum_per_prompt
        reference = self.reference if self.has_own_reference else None
        with kept_until_done(None if self._folder is None else self._folder.sampling) as keep:
            return optimum_of(self.task, proposals, reference, beta=self.beta, split=split, per_prompt=each, keep=keep)

    def _evaluate_last(self, folder: RunFolder, watcher: Watcher) -> EvaluationResult:
        if self._unsettled:
            watcher.stage("computing the optimum, using the trained policy")
            with to_evaluate(self._agent, self._settings.agent, self._env) as agent:
                self._optimum = self._work_out(proposals_of(agent, self.task))
            self._unsettled = False
            keep_optimum(folder.path, self.task, self._optimum)
        watcher.stage("evaluating after learning")
        return self._evaluate(self._settings.final_per_prompt)

    def _evaluate(self, per_prompt: int) -> EvaluationResult:
        assert self._optimum is not None
        optimum = unsettled(self._optimum) if self._unsettled else self._optimum
        keep = None if self._folder is None else self._folder.sampling
        with kept_until_done(keep), to_evaluate(self._agent, self._settings.agent, self._env) as agent:
            return evaluate(
                agent,
                self.task,
                self.reference,
                optimum,
                beta=self.beta,
                split=self._settings.split,
                per_prompt=per_prompt,
                seed=self._seed,
                keep=keep,
            )

    def _record(
        self, folder: RunFolder, watcher: Watcher, metrics: Metrics, evaluation: EvaluationResult | None
    ) -> None:
        # Of all episodes so far; those of evaluations are counted apart.
        row = {**metrics, **{f"reward/{name}": count for name, count in self._counts.items()}}
        if evaluation is not None:
            row |= evaluation_row(evaluation)
            rows = sample_rows(evaluation, self._settings.samples)
            folder.sample({"iteration": metrics["iteration"], **sample} for sample in rows)
        row |= self._meter.row()
        row |= {"seconds": time.monotonic() - self._started, "cpu_seconds": time.process_time() - self._cpu_started}
        folder.log(row)
        watcher.iteration(row)
        for line in self._doctor.see(row):
            watcher.note(line)

    def _save(self, folder: RunFolder | None) -> None:
        if folder is None:  # of one that follows nothing is written, but it may hold a part of the weights
            self._agent.save("")
            return
        folder.sync_logs()
        self._agent.save(folder.checkpoint)
        folder.mark(self._iterations)

    def _checkpoint_iteration(self) -> int:
        assert self._folder is not None
        # A crash may fall between writing the agent and the mark; an agent that counts for itself knows better.
        own = self._agent.iteration
        return self._folder.marked() if own is None else own

    def _catch_up(self, folder: RunFolder) -> None:
        """Take the counters from the logs, which end where the checkpoint was written."""
        rows = folder.metrics()
        if not rows:
            return
        if self._curriculum is not None:
            with reading(folder.path / "curriculum.jsonl", "the log"):
                for row, due in zip(folder.prompts(), rows[1:], strict=True):
                    self._curriculum.replay(row, due["iteration"])
        for row in rows:
            self._doctor.see(row)  # what was said before is not said again
        with reading(folder.path, "the log"):
            self._iterations = count(rows[-1], "iteration")
            self._episodes = [count(row, "episode") for row in rows][-1]  # curves need it of every row
            self._started -= number(rows[-1], "seconds")
            self._cpu_started -= float(rows[-1].get("cpu_seconds", 0.0))
            self._meter.restore(rows[-1])

    def _draw(self, folder: RunFolder, watcher: Watcher) -> None:
        if not self._pictures:
            return
        optimum, levels = self._optimum, None
        if optimum is not None and optimum.value is not None and optimum.reference is not None:
            levels = optimum.reference.mean, optimum.value.mean
        title = f"{self._settings.agent} on {self._settings.id}"
        try:
            draw_curves(folder.metrics(), folder.curve, title, levels, self.beta)
        except ModuleNotFoundError:
            watcher.note('no curve.png is drawn: pip install "textgym[report]"')
