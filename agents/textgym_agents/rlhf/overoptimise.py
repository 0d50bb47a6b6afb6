"""Reward hacking one can see: proxies of several strengths, optimised ever harder, and what the gold reward says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from textgym.evaluate import evaluate
from textgym.files import make_folder, plain, read_json, replaced, write_json
from textgym.preferences import collect, read_rankings, write_rankings
from textgym.rewards import make_reward
from textgym.task import Task, make_reference, reference_model
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import versions
from textgym_agents.registry import make_env
from textgym_agents.rlhf.comparison import best_of_n_curve, draw_samples, overrated, shifted
from textgym_agents.rlhf.models import resize_model
from textgym_agents.rlhf.reward_model import train_reward_model
from textgym_agents.rlhf.session import Stage, begin, check_folder, run_stages
from textgym_agents.rlhf.settings import OveroptimiseSettings, RewardModelSettings
from textgym_agents.training.loop import Watcher

_TITLES = {"best-of-n": "best-of-n", "ppo": "PPO, falling KL penalty"}


def draw_overoptimisation(curves: Sequence[Mapping[str, Any]], target: Path, title: str) -> None:
    """Writes a picture: a panel for each method and size of the reward model, a colour for each number of pairs.

    Solid lines are the gold reward, dashed ones the proxy that is optimised; bands are 95% intervals.

    Args:
        curves: of the result of `run_overoptimise`.
    Raises: ModuleNotFoundError without matplotlib (extra `report`).
    """
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(curve["method"] for curve in curves))
    sizes = sorted({curve["layers"] for curve in curves})
    amounts = sorted({curve["pairs"] for curve in curves})
    figure = Figure(figsize=(5 * len(methods), 3.4 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), len(methods), squeeze=False, sharey=True)
    colours = {pairs: f"C{number}" for number, pairs in enumerate(amounts)}
    for curve in curves:
        panel = panels[sizes.index(curve["layers"])][methods.index(curve["method"])]
        _draw_curve(panel, curve, colours[curve["pairs"]])
    for row, layers in zip(panels, sizes, strict=True):
        row[0].set_ylabel("reward, gold units")
        for panel, method in zip(row, methods, strict=True):
            panel.set_title(
                f"{_TITLES[method]}; reward model of {layers} layer{'s' * (layers > 1)}", fontsize=9
            )
            panel.set_xlabel("square root of KL, nats")
            panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    with replaced(target) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _draw_curve(panel: Any, curve: Mapping[str, Any], colour: str) -> None:
    points = sorted(curve["points"], key=lambda point: point["kl"]["mean"])
    roots = [math.sqrt(max(point["kl"]["mean"], 0.0)) for point in points]
    for name, style in (("gold", "-"), ("proxy", "--")):
        means, lows, highs = ([point[name][end] for point in points] for end in ("mean", "low", "high"))
        label = f"{curve['pairs']:,} pairs, {name} ({curve['accuracy']:.2f} right)"
        panel.plot(roots, means, style, color=colour, label=label, marker=".", markersize=4)
        panel.fill_between(roots, lows, highs, color=colour, alpha=0.15, linewidth=0)


Work = Callable[[Path, bool, int, int], None]
_DRAWN = 1.6  # prompts for each ranking wanted; some give none


def run_overoptimise(
    env_id: str, settings: OveroptimiseSettings, out: str | Path, watcher: Watcher, env: Mapping[str, Any]
) -> dict[str, Any]:
    """Runs whatever is not complete in `out`.

    Args:
        env_id: of an environment whose task has a gold reward and a language model as reference.
        settings: what to run. out: a new folder, or one in which the same was begun.
        watcher: is told what happens. env: options of the environment, JSON values.
    Returns: result.json: `curves`, each with `pairs`, `layers`, `accuracy`, `method` and `points`, and `hacked`.
    Raises: ValueError if `out` holds something else, or the task has no gold reward.
    Source: Gao et al. (2022), arXiv:2210.10760, section 3.
    """
    return Overoptimisation(env_id, settings, Path(out), watcher, env).run()


class Overoptimisation:
    """One experiment in its folder. Making it checks what can be checked and touches no file."""

    def __init__(
        self,
        env_id: str,
        settings: OveroptimiseSettings,
        out: Path,
        watcher: Watcher,
        env: Mapping[str, Any],
    ) -> None:
        self.env_id, self.settings, self.out, self.watcher = env_id, settings, out.resolve(), watcher
        self.env_options = dict(env)
        self._stored = plain(
            {"command": "overoptimise", "id": env_id, "env": self.env_options} | asdict(settings)
        )
        check_folder(out, self._stored)
        self.task = self._make_task({})
        if self.task.gold is None:
            raise ValueError(f"{env_id}: the task has no gold reward, which a proxy could be held against")
        self.base = str(reference_model(self.task))
        self._sizes = [(layers, pairs) for layers in settings.layers for pairs in settings.pairs]

    def run(self) -> dict[str, Any]:
        """See `run_overoptimise`."""
        begin(self.out, self._stored)
        stages = [
            Stage("preferences", "preferences", self._collect),
            *(self._stage("reward-model", "reward model of", self._fit, *size) for size in self._sizes),
            Stage("best-of-n", "best-of-n", self._best_of_n),
            *(self._stage("ppo", "PPO against", self._optimise, *size) for size in self._sizes),
        ]
        run_stages(self.out, stages, self.watcher)
        result = self._result()
        write_json(self.out / "result.json", result)
        return result

    # Stages

    @staticmethod
    def _stage(name: str, title: str, work: Work, layers: int, pairs: int) -> Stage:
        """A stage for one reward model."""

        def run(folder: Path, resume: bool) -> None:
            work(folder, resume, layers, pairs)

        return Stage(f"{name}-{layers}-{pairs}", f"{title} {layers} layers, {pairs} pairs", run)

    def _collect(self, folder: Path, resume: bool) -> None:
        del resume
        make_folder(folder)
        self.watcher.stage("sampling candidates")
        wanted, path = max(self.settings.pairs), folder / "preferences.jsonl"
        policy = make_reference(self.task)
        drawn = round(wanted * _DRAWN)
        seed = self.settings.ppo.seed
        found = collect(self.task, policy, n=drawn, noise=self.settings.noise, seed=seed).rankings
        if len(found) < wanted:
            raise ValueError(f"pairs={wanted}: {drawn} prompts gave only {len(found)} rankings")
        path.unlink(missing_ok=True)
        write_rankings(path, found[:wanted], "trl")
        write_json(folder / "result.json", {"rankings": wanted})

    def _fit(self, folder: Path, resume: bool, layers: int, pairs: int) -> None:
        base = self.out / "bases" / f"{layers}-layers"
        if not base.exists():
            resize_model(self.base, layers, base)
        data = self.out / "preferences" / f"first-{pairs}.jsonl"
        if not data.exists():
            rows = read_rankings(self.out / "preferences" / "preferences.jsonl").rows
            write_rankings(data, rows[:pairs], "trl")
        settings = RewardModelSettings(
            data=str(data),
            base=str(base),
            epochs=self.settings.reward_model_epochs[self.settings.pairs.index(pairs)],
            seed=self.settings.ppo.seed,
        )
        train_reward_model(settings, folder, self.watcher, resume)

    def _best_of_n(self, folder: Path, resume: bool) -> None:
        """Samples the reference once, and lets every proxy choose; the samples bring proxies to gold units."""
        del resume
        make_folder(folder)
        plan, curves = self.settings, {}
        self.watcher.stage("sampling the reference")
        samples = draw_samples(self.task, plan.prompts, plan.samples, plan.ppo.seed)
        for layers, pairs in self._sizes:
            self.watcher.stage(f"best-of-n by {layers} layers, {pairs} pairs")
            stop_ids = self.task.vocabulary.stop_ids
            raw = samples.scores(make_reward(self._spec(layers, pairs)), stop_ids)
            curves[f"{layers}-{pairs}"] = best_of_n_curve(raw, samples)
        write_json(folder / "result.json", plain(curves))

    def _optimise(self, folder: Path, resume: bool, layers: int, pairs: int) -> None:
        """PPO whose penalty falls: the policy goes on from where the last penalty left it."""
        del resume
        make_folder(folder)
        plan, calibration = self.settings, self._calibration(layers, pairs)
        spec = {"model": self._spec(layers, pairs)}
        reward = {"name": "weighted", "rewards": spec, "weights": {"model": calibration["scale"]}}
        env = make_env(self.env_id, plan.ppo.batch, **{**self.env_options, "reward": reward})
        agent = LMPPO(env.unwrapped.task, plan.ppo)
        points: list[dict[str, Any]] = []
        for beta in plan.betas:
            self.watcher.stage(f"PPO against {layers} layers, {pairs} pairs, beta {beta:g}")
            agent.controller.beta = beta
            agent.learn(env, plan.episodes)
            found = evaluate(
                agent,
                env.unwrapped.task,
                make_reference(self.task),
                beta=0.0,
                per_prompt=plan.per_prompt,
                seed=plan.ppo.seed,
            )
            assert found.kl is not None
            assert found.gold is not None
            proxy = shifted(found.reward, calibration["offset"])
            measured = {"kl": found.kl, "gold": found.gold, "proxy": proxy}
            points.append({"beta": beta} | {name: asdict(value) for name, value in measured.items()})
            self.watcher.note(f"  KL {found.kl.mean:.2f}  proxy {proxy.mean:.3f}  gold {found.gold.mean:.3f}")
        hacked = overrated(found.episodes, calibration["offset"])
        write_json(folder / "result.json", plain({"points": points, "hacked": hacked}))

    # Parts

    def _spec(self, layers: int, pairs: int) -> dict[str, Any]:
        folder = self.out / f"reward-model-{layers}-{pairs}" / "model"
        stop_ids = list(self.task.vocabulary.stop_ids) or None
        return {"name": "reward_model", "model": str(folder), "stop_ids": stop_ids}

    def _calibration(self, layers: int, pairs: int) -> dict[str, float]:
        found: dict[str, float] = read_json(self.out / "best-of-n" / "result.json")[f"{layers}-{pairs}"]
        return found

    def _make_task(self, options: Mapping[str, Any]) -> Task:
        task: Task = make_env(self.env_id, 1, **{**self.env_options, **options}).unwrapped.task
        return task

    def _result(self) -> dict[str, Any]:
        chosen = read_json(self.out / "best-of-n" / "result.json")
        curves, hacked = [], {}
        for layers, pairs in self._sizes:
            key = f"{layers}-{pairs}"
            trained = read_json(self.out / f"ppo-{key}" / "result.json")
            size = {"layers": layers, "pairs": pairs, "accuracy": chosen[key]["accuracy"]}
            curves.append(size | {"method": "best-of-n", "points": chosen[key]["points"]})
            curves.append(size | {"method": "ppo", "points": trained["points"]})
            hacked[key] = trained["hacked"]
        return {"curves": curves, "hacked": hacked, "versions": versions()}
