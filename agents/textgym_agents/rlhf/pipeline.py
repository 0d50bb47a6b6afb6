"""RLHF from end to end: fine-tuning, preferences, a reward model, PPO, and a comparison of what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from textgym.checks import not_one_of
from textgym.files import make_folder, plain, read_json, write_json
from textgym.preferences import collect, disagreement, read_rankings, write_rankings
from textgym.rewards import make_reward
from textgym.task import Task, load_reference, make_reference, reference_model
from textgym.world.prompts import TASK_SHARES
from textgym_agents.config import TrainSettings, versions
from textgym_agents.registry import load_agent, make_env
from textgym_agents.rlhf.comparison import Contest, Row, calibrate, shifted
from textgym_agents.rlhf.reward_model import train_reward_model
from textgym_agents.rlhf.session import Stage, begin, check_folder, run_stages
from textgym_agents.rlhf.settings import RewardModelSettings, RLHFSettings, SFTSettings
from textgym_agents.rlhf.sft import train_sft
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.loop import Training, Watcher
from textgym_agents.training.measures import optimum_summary

SFT, PREFERENCES, REWARD_MODEL, PPO = "1-sft", "2-preferences", "3-reward-model", "4-ppo"


def run_rlhf(
    env_id: str,
    settings: RLHFSettings,
    out: str | Path,
    watcher: Watcher,
    env: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs whatever of the pipeline is not complete in `out`.

    Args:
        env_id: of the environment; its gold reward judges answers, and its reference is the base model.
        settings: what to run.
        out: a new folder, or one in which the same pipeline was begun.
        watcher: is told what happens.
        env: options of the environment, JSON values.
    Returns: result.json: the rows of the comparison and the reports of the stages.
    Raises: ValueError if `out` holds something else, or the task has no gold reward or no demonstrations;
        TrainingInterrupted after Ctrl-C.
    """
    return Pipeline(env_id, settings, Path(out), watcher, env).run()


class Pipeline:
    """One pipeline in its folder. Making it checks what can be checked and touches no file."""

    def __init__(
        self,
        env_id: str,
        settings: RLHFSettings,
        out: Path,
        watcher: Watcher,
        env: Mapping[str, Any] | None = None,
    ) -> None:
        self.env_id, self.settings, self.out, self.watcher = env_id, settings, out.resolve(), watcher
        self.env_options = dict(env or {})
        self._stored = plain({"command": "rlhf", "id": env_id, "env": self.env_options} | asdict(settings))
        check_folder(out, self._stored)
        self.base_task = self._make_task({})
        self.base = reference_model(self.base_task)
        if self.base_task.gold is None and self.env_options.get("reward") is None:
            raise ValueError(f"{env_id}: the task has no gold reward; pass env option gold or reward")
        if settings.demonstrations is None and self.base_task.name not in TASK_SHARES:
            raise ValueError(
                f"demonstrations: {not_one_of('task with demonstrations', self.base_task.name, TASK_SHARES)} "
                "For another task, name a file"
            )
        if settings.demonstrations is not None and not Path(settings.demonstrations).is_file():
            raise FileNotFoundError(f"demonstrations={settings.demonstrations!r}: there is no such file")

    def run(self) -> dict[str, Any]:
        """See `run_rlhf`."""
        begin(self.out, self._stored)
        stages = [
            Stage(SFT, "supervised fine-tuning", self._fine_tune),
            Stage(PREFERENCES, "preferences", self._collect),
            Stage(REWARD_MODEL, "reward model", self._fit_reward_model),
            Stage(PPO, "PPO", self._train),
        ]
        run_stages(self.out, stages, self.watcher)
        result = self.out / "result.json"
        if not result.exists():
            write_json(result, plain(self._compare()))
        return read_json(result)

    # Stages

    def _fine_tune(self, folder: Path, resume: bool) -> None:
        plan = self.settings
        data = plan.demonstrations or f"world:{self.base_task.name}"
        settings = SFTSettings(
            data=data,
            base=str(self.base),
            demonstrations=plan.demonstration_count,
            epochs=plan.sft_epochs,
            seed=plan.ppo.seed,
        )
        train_sft(settings, folder, self.watcher, resume)

    def _collect(self, folder: Path, resume: bool) -> None:
        del resume  # nothing is kept of an interrupted collection
        plan, path = self.settings, folder / "preferences.jsonl"
        make_folder(folder)
        path.unlink(missing_ok=True)
        self.watcher.stage("sampling candidates")
        task = self.gold_task()
        collected = collect(
            task,
            self.fine_tuned(task),
            n=plan.preferences,
            candidates=plan.candidates,
            noise=plan.noise,
            seed=plan.ppo.seed,
        )
        rows = write_rankings(path, collected.rankings, "rankings")
        report = {
            "rankings": rows,
            "prompts": collected.prompts,
            "dropped": collected.dropped,
            "tied": collected.tied,
            "short": collected.short,
            "failures": collected.failures,
            "disagreement": disagreement(collected.rankings),
        }
        write_json(folder / "result.json", plain(report))

    def _fit_reward_model(self, folder: Path, resume: bool) -> None:
        plan = self.settings
        settings = RewardModelSettings(
            data=str(self.out / PREFERENCES / "preferences.jsonl"),
            base=str(self.out / SFT / "model"),
            epochs=plan.reward_model_epochs,
            members=plan.members,
            seed=plan.ppo.seed,
        )
        train_reward_model(settings, folder, self.watcher, resume)

    def _train(self, folder: Path, resume: bool) -> None:
        plan = self.settings
        settings = TrainSettings(
            id=self.env_id,
            agent="lm-ppo",
            episodes=plan.episodes,
            config=asdict(plan.ppo),
            env=self.proxy_options(),
            final_per_prompt=plan.per_prompt,
            optimum_per_prompt=min(plan.optimum_per_prompt, 64),
        )
        Training(settings, RunFolder.reopen(folder) if resume else None).run(folder, self.watcher)

    # Tasks and policies

    def gold_task(self) -> Task:
        """The task with its gold reward as reward, and the fine-tuned model as reference."""
        return self._make_task({"reference": str(self.out / SFT / "model")})

    def fine_tuned(self, task: Task) -> Any:
        """The fine-tuned model as a policy."""
        return load_reference(self.out / SFT / "model", task)

    def proxy_options(self) -> dict[str, Any]:
        """The environment's options with the reward model, in units of the gold reward, as reward."""
        options = self.env_options | {"reference": str(self.out / SFT / "model")}
        if self.base_task.gold is None:
            options["gold"] = self.env_options["reward"]
        spec = self._reward_spec()
        scale = self._calibration(spec)["scale"]
        return options | {
            "reward": {"name": "weighted", "rewards": {"model": spec}, "weights": {"model": scale}}
        }

    def _reward_spec(self) -> dict[str, Any]:
        models = sorted(str(path) for path in (self.out / REWARD_MODEL).glob("model*") if path.is_dir())
        stop_ids = list(self.base_task.vocabulary.stop_ids)
        return {"name": "reward_model", "model": models, "stop_ids": stop_ids or None}

    def _calibration(self, spec: Mapping[str, Any]) -> dict[str, float]:
        """What gives the proxy the mean and spread of gold over the answers that were ranked, see `calibrate`."""
        path = self.out / REWARD_MODEL / "calibration.json"
        if not path.exists():
            rows = read_rankings(self.out / PREFERENCES / "preferences.jsonl").rows
            answers = [
                (row.prompt, text, ended, score)
                for row in rows
                for text, ended, score in zip(row.completions, row.ended or (), row.scores or (), strict=True)
            ]
            stop_ids = self.base_task.vocabulary.stop_ids
            ids = [[stop_ids[0]] if stop_ids and ended else [] for _, _, ended, _ in answers]
            reward = make_reward(spec)
            proxy = np.array(
                reward([row[0] for row in answers], [row[1] for row in answers], completion_ids=ids)
            )
            gold = np.array([row[3] for row in answers])
            if not proxy.std() > 0:
                raise ValueError(
                    f"reward model: it gives all {len(proxy)} answers the same score; "
                    f"preferences={self.settings.preferences} or reward_model_epochs are too few"
                )
            write_json(path, calibrate(proxy, gold))
        return read_json(path)

    def _make_task(self, options: Mapping[str, Any]) -> Task:
        env = make_env(self.env_id, 1, **{**self.env_options, **options})
        task: Task = env.unwrapped.task
        return task

    # Comparison

    def _compare(self) -> dict[str, Any]:
        plan = self.settings
        self.watcher.stage("comparing")
        gold_task = self.gold_task()
        env = make_env(self.env_id, 1, **self.proxy_options())
        contest = Contest(
            gold_task, env.unwrapped.task, self.fine_tuned(gold_task), per_prompt=plan.per_prompt
        )
        agent = load_agent(self.out / PPO, env)
        optimum = contest.optimum([agent], plan.optimum_per_prompt)
        shown = len(gold_task.prompt_set("eval").texts)
        rows = [
            contest.row("base", make_reference(self.base_task), optimum, shown),
            contest.row("SFT", contest.reference, optimum, shown),
            contest.row("PPO", agent, optimum, shown),
            contest.best_of(plan.best_of, optimum, samples=4 * plan.best_of),
        ]
        offset = self._calibration(self._reward_spec())["offset"]
        return {
            "rows": [_report(row, offset) for row in rows],
            "beta": gold_task.beta,
            "optimum": optimum_summary(optimum),
            "reward_model": read_json(self.out / REWARD_MODEL / "result.json"),
            "versions": versions(),
        }


def _report(row: Row, offset: float) -> dict[str, Any]:
    return row.summary() | {"proxy": asdict(shifted(row.proxy, offset))}
