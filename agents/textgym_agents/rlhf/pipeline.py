"""RLHF from end to end: fine-tuning, preferences, a reward model, PPO, and a comparison of the policies."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from textgym.best_of_n import FEWEST, best_of_n
from textgym.checks import JsonObject, not_one_of
from textgym.estimates import Estimate
from textgym.evaluate import EvaluationResult, evaluate
from textgym.files import make_folder, plain, read_json, write_json
from textgym.lm.reference import Reference
from textgym.optimum import Optimum, optimality_of, optimum_of
from textgym.preferences import collect, disagreement, read_rankings, write_rankings
from textgym.rewards import make_reward
from textgym.sources import versions
from textgym.task import Task, load_reference, make_reference, reference_model
from textgym.world.prompts import TASK_SHARES
from textgym_agents.config import TrainSettings
from textgym_agents.protocol import Agent
from textgym_agents.registry import load_agent, make_env
from textgym_agents.rlhf.ranking import calibrate, score_answers, shifted
from textgym_agents.rlhf.reward_model import train_reward_model
from textgym_agents.rlhf.runs import Stage, StagedRun
from textgym_agents.rlhf.settings import RewardModelSettings, RLHFSettings, SFTSettings
from textgym_agents.rlhf.sft import train_sft
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.loop import Training
from textgym_agents.training.measures import optimum_summary

SFT, PREFERENCES, REWARD_MODEL, PPO = "1-sft", "2-preferences", "3-reward-model", "4-ppo"


class Pipeline(StagedRun[RLHFSettings]):
    """The RLHF pipeline in one folder; result.json has the comparison of the policies and the reports of the stages.

    The environment's gold reward judges answers, and its reference is the base model. Args: see `StagedRun`.
    """

    command = "rlhf"

    def prepare(self) -> None:
        """See `StagedRun.prepare`: the task needs a gold reward, and demonstrations of the world or in a file."""
        self.base_task = self.make_task()
        self.base = reference_model(self.base_task)
        file = self.settings.demonstrations
        if self.base_task.gold is None and self.env_options.get("reward") is None:
            raise ValueError(f"{self.env_id}: the task has no gold reward; pass env option gold or reward")
        if file is None and self.base_task.name not in TASK_SHARES:
            raise ValueError(
                f"demonstrations: {not_one_of('task with demonstrations', self.base_task.name, TASK_SHARES)} "
                "For another task, name a file"
            )
        if file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"demonstrations={file!r}: there is no such file")

    def stages(self) -> list[Stage]:
        """See `StagedRun.stages`."""
        return [
            Stage(SFT, "supervised fine-tuning", self._fine_tune),
            Stage(PREFERENCES, "preferences", self._collect),
            Stage(REWARD_MODEL, "reward model", self._fit_reward_model),
            Stage(PPO, "PPO", self._train),
        ]

    def _fine_tune(self, folder: Path, resume: bool) -> None:
        plan = self.settings
        settings = SFTSettings(
            data=plan.demonstrations or f"world:{self.base_task.name}",
            base=str(self.base),
            demonstrations=SFTSettings.demonstrations if plan.demonstrations else plan.demonstration_count,
            epochs=plan.sft_epochs,
            chat=self.env_options.get("chat"),
            device=plan.ppo.device,
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
        write_json(folder / "result.json", report)

    def _fit_reward_model(self, folder: Path, resume: bool) -> None:
        plan = self.settings
        settings = RewardModelSettings(
            data=str(self.out / PREFERENCES / "preferences.jsonl"),
            base=str(self.out / SFT / "model"),
            epochs=plan.reward_model_epochs,
            members=plan.members,
            device=plan.ppo.device,
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
        """Return the task with its gold reward as reward, and the fine-tuned model as reference."""
        task = self.make_task(reference=str(self.out / SFT / "model"))
        if task.gold is None or task.gold is task.reward:
            return task
        return replace(task, reward=task.gold, noisy=task.noisy and not getattr(task.reward, "noisy", False))

    def fine_tuned(self, task: Task) -> Reference:
        """Return the fine-tuned model as a policy."""
        return load_reference(self.out / SFT / "model", task)

    def proxy_options(self) -> JsonObject:
        """Return the environment's options with the reward model, in units of the gold reward, as reward."""
        options: JsonObject = self.env_options | {"reference": str(self.out / SFT / "model")}
        if self.base_task.gold is None:
            options["gold"] = self.env_options["reward"]
        spec, scale = self._reward_spec(), self._calibration()["scale"]
        return options | {"reward": {"name": "weighted", "rewards": {"model": spec}, "weights": {"model": scale}}}

    def _reward_spec(self) -> JsonObject:
        models = sorted(str(path) for path in (self.out / REWARD_MODEL).glob("model*") if path.is_dir())
        stop_ids, device = list(self.base_task.vocabulary.stop_ids), self.settings.ppo.device
        return {"name": "reward_model", "model": models, "stop_ids": stop_ids or None, "device": device}

    def _calibration(self) -> dict[str, float]:
        """Return what gives the proxy the mean and spread of gold over the answers that were ranked."""
        path = self.out / REWARD_MODEL / "calibration.json"
        if not path.exists():
            rows = read_rankings(self.out / PREFERENCES / "preferences.jsonl").rows
            answers = [
                (row.prompt, text, ended)
                for row in rows
                for text, ended in zip(row.completions, row.ended or (), strict=True)
            ]
            gold = np.array([score for row in rows for score in row.scores or ()])
            stop_ids = self.base_task.vocabulary.stop_ids
            proxy = score_answers(make_reward(self._reward_spec()), answers, stop_ids)
            if not proxy.std() > 0:
                raise ValueError(
                    f"reward model: it gives all {len(proxy)} answers the same score; "
                    f"preferences={self.settings.preferences} or reward_model_epochs are too few"
                )
            write_json(path, calibrate(proxy, gold))
        return read_json(path)

    # Comparison

    def result(self) -> JsonObject:
        """Return the comparison of base, SFT, PPO and best-of-n."""
        plan = self.settings
        self.watcher.stage("comparing")
        gold_task = self.gold_task()
        env = make_env(self.env_id, 1, **self.proxy_options())
        contest = Contest(gold_task, env.unwrapped.task, self.fine_tuned(gold_task), per_prompt=plan.per_prompt)
        agent = load_agent(self.out / PPO, env)
        optimum = optimum_of(gold_task, [agent], contest.reference, per_prompt=plan.optimum_per_prompt)
        rows = [
            contest.row("base", make_reference(self.base_task), optimum),
            contest.row("SFT", contest.reference, optimum),
            contest.row("PPO", agent, optimum),
            contest.best_of(plan.best_of, optimum, samples=4 * plan.best_of),
        ]
        offset = self._calibration()["offset"]
        result: JsonObject = plain(
            {
                "rows": [asdict(row) | {"proxy": asdict(shifted(row.proxy, offset))} for row in rows],
                "beta": gold_task.beta,
                "optimum": optimum_summary(optimum),
                "reward_model": read_json(self.out / REWARD_MODEL / "result.json"),
                "versions": versions(),
            }
        )
        return result


@dataclass(frozen=True)
class PolicyRow:
    """One policy of a comparison.

    Attributes:
        policy: its name.
        gold, proxy: expected rewards on held-out prompts, reward units.
        kl: nats per answer to the reference; for best-of-n from the levels of the proxy, see `textgym.best_of_n`.
        optimality: relative to J = gold reward - beta KL: 0 is the reference, 1 the optimum.
        answers: prompt -> its first sampled answer; empty for best-of-n.
    """

    policy: str
    gold: Estimate
    proxy: Estimate
    kl: Estimate
    optimality: Estimate | None
    answers: dict[str, str]


@dataclass(frozen=True)
class Contest:
    """The conditions under which policies are compared.

    Args:
        gold_task: a task whose reward is the gold one.
        proxy_task: the same task with the proxy as reward, and gold as gold.
        reference: pi_ref, the reference of the KL.
        per_prompt: answers to each held-out prompt.
    """

    gold_task: Task
    proxy_task: Task
    reference: Reference
    per_prompt: int = 16

    def row(self, name: str, policy: Agent | Reference, optimum: Optimum | None) -> PolicyRow:
        """Measure one policy, and keep its first answer to every prompt."""
        gold = self._evaluate(policy, self.gold_task, optimum, self.per_prompt)
        # The same seed, so that the very same answers are scored by the proxy.
        proxy = self._evaluate(policy, self.proxy_task, None, self.per_prompt)
        assert gold.kl is not None
        episodes = gold.episodes
        answers = {prompt: str(episodes.completions[i, 0]) for i, prompt in enumerate(episodes.prompts)}
        return PolicyRow(name, gold.reward, proxy.reward, gold.kl, gold.optimality, answers)

    def best_of(self, n: int, optimum: Optimum | None, samples: int) -> PolicyRow:
        """Measure best-of-n of the reference by the proxy, from `samples` answers to each prompt: 4 n at least."""
        episodes = self._evaluate(self.reference, self.proxy_task, None, max(samples, FEWEST * n)).episodes
        best = best_of_n(episodes.returns, episodes.gold, episodes.weights, n)
        assert best.kl is not None
        optimality = None
        if optimum is not None:
            objective = best.gold.mean - optimum.beta * best.kl.mean
            replicates = best.replicates[:, 1] - optimum.beta * best.replicates[:, 2]
            optimality = optimality_of(objective, replicates, optimum)
        return PolicyRow(f"best-of-{n}", best.gold, best.proxy, best.kl, optimality, {})

    def _evaluate(
        self, policy: Agent | Reference, task: Task, optimum: Optimum | None, per_prompt: int
    ) -> EvaluationResult:
        beta = 0.0 if optimum is None else optimum.beta
        return evaluate(policy, task, self.reference, optimum, beta=beta, per_prompt=per_prompt)
