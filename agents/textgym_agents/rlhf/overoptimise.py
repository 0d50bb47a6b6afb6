"""Reward hacking: optimise proxies of several strengths ever harder, and measure the gold reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from textgym.best_of_n import FEWEST, best_of_n
from textgym.checks import Bools, Floats, JsonObject
from textgym.evaluate import evaluate
from textgym.files import make_folder, read_json, replaced, write_json
from textgym.preferences import read_rankings, write_rankings
from textgym.rewards import Reward, make_reward
from textgym.sampling import PromptEpisodes, play
from textgym.sources import versions
from textgym.task import Task, make_reference, reference_model
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.registry import batch_of, make_env
from textgym_agents.rlhf.inputs import noisy_pairs, resize_model
from textgym_agents.rlhf.ranking import calibrate, score_answers, shifted
from textgym_agents.rlhf.reward_model import train_reward_model
from textgym_agents.rlhf.runs import Stage, StagedRun
from textgym_agents.rlhf.settings import OveroptimiseSettings, RewardModelSettings
from textgym_agents.training.curves import HUES
from textgym_agents.training.measures import prompts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {"best-of-n": "best-of-n", "ppo": "PPO, falling KL penalty"}
_DRAWN = 1.6  # prompts for each ranking wanted; some give none


class Overoptimisation(StagedRun[OveroptimiseSettings]):
    """Proxies and their optimisation in one folder.

    result.json has `curves`, each with `pairs`, `layers`, `accuracy` (null where no answers that are compared differ in
    gold), `method` and `points`, and `hacked`, the answers that each proxy overrates. The task needs a gold reward and
    a language model as reference. Args: see `StagedRun`.
    Source: Gao et al. (2022), arXiv:2210.10760, section 3.
    """

    command = "overoptimise"

    def prepare(self) -> None:
        """See `StagedRun.prepare`: the task needs a gold reward."""
        self.task = self.make_task()
        if self.task.gold is None:
            raise ValueError(f"{self.env_id}: the task has no gold reward, which a proxy could be held against")
        self.base = str(reference_model(self.task))
        sizes = self.settings
        self._sizes = [(layers, pairs) for layers in sizes.layers for pairs in sizes.pairs]

    def stages(self) -> list[Stage]:
        """See `StagedRun.stages`."""
        return [
            Stage("preferences", "preferences", self._collect),
            *(self._stage("reward-model", "reward model of", self._fit, *size) for size in self._sizes),
            Stage("best-of-n", "best-of-n", self._best_of_n),
            *(self._stage("ppo", "PPO against", self._optimise, *size) for size in self._sizes),
        ]

    @staticmethod
    def _stage(name: str, title: str, run: Callable[[int, int, Path, bool], None], layers: int, pairs: int) -> Stage:
        """Return the stage of one reward model."""
        title = f"{title} {layers} layers, {pairs} pairs"
        return Stage(f"{name}-{layers}-{pairs}", title, partial(run, layers, pairs))

    def _collect(self, folder: Path, resume: bool) -> None:
        del resume
        make_folder(folder)
        self.watcher.stage("sampling candidates")
        plan, path = self.settings, folder / "preferences.jsonl"
        policy, wanted = make_reference(self.task), max(plan.pairs)
        rankings = noisy_pairs(self.task, policy, wanted, plan.noise, plan.ppo.seed, _DRAWN, "pairs")
        path.unlink(missing_ok=True)
        write_rankings(path, rankings, "trl")
        write_json(folder / "result.json", {"rankings": wanted})

    def _fit(self, layers: int, pairs: int, folder: Path, resume: bool) -> None:
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
            device=self.settings.ppo.device,
            seed=self.settings.ppo.seed,
        )
        train_reward_model(settings, folder, self.watcher, resume)

    def _best_of_n(self, folder: Path, resume: bool) -> None:
        """Sample the reference once, and let every proxy choose; the samples bring proxies to gold units."""
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
        write_json(folder / "result.json", curves)

    def _optimise(self, layers: int, pairs: int, folder: Path, resume: bool) -> None:
        """Run PPO with one penalty after the other; each one starts from the policy of the one before."""
        del resume
        make_folder(folder)
        plan, calibration = self.settings, self._calibration(layers, pairs)
        spec = {"model": self._spec(layers, pairs)}
        reward = {"name": "weighted", "rewards": spec, "weights": {"model": calibration["scale"]}}
        env = make_env(
            self.env_id, batch_of(plan.ppo, plan.episodes * len(plan.betas)), **{**self.env_options, "reward": reward}
        )
        agent = LMPPO(env.unwrapped.task, plan.ppo)
        points: list[JsonObject] = []
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
            self.watcher.note(f"  KL {found.kl.mean:z.2f}  proxy {proxy.mean:.3f}  gold {found.gold.mean:.3f}")
        hacked = overrated(found.episodes, calibration["offset"])
        write_json(folder / "result.json", {"points": points, "hacked": hacked})

    def _spec(self, layers: int, pairs: int) -> JsonObject:
        folder = self.out / f"reward-model-{layers}-{pairs}" / "model"
        stop_ids, device = list(self.task.vocabulary.stop_ids) or None, self.settings.ppo.device
        return {"name": "reward_model", "model": str(folder), "stop_ids": stop_ids, "device": device}

    def _calibration(self, layers: int, pairs: int) -> dict[str, float]:
        found: dict[str, float] = read_json(self.out / "best-of-n" / "result.json")[f"{layers}-{pairs}"]
        return found

    def result(self) -> JsonObject:
        """Return the curves of all proxies, and the answers that each overrates."""
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


@dataclass(frozen=True)
class ReferenceAnswers:
    """N answers of the reference to each of P prompts.

    Attributes:
        prompts: P texts. completions: (P, N) texts. ended: (P, N), by a stop id.
        gold: (P, N), reward units. weights: (P,), summing to 1.
    """

    prompts: tuple[str, ...]
    completions: NDArray[np.object_]
    ended: Bools
    gold: Floats
    weights: Floats

    def scores(self, reward: Reward, stop_ids: Sequence[int]) -> Floats:
        """Return a reward model's scores of all answers, (P, N)."""
        shape = self.completions.shape
        prompts = np.repeat(np.array(self.prompts, dtype=object), shape[1]).tolist()
        answers = zip(prompts, self.completions.ravel().tolist(), self.ended.ravel().tolist(), strict=True)
        return score_answers(reward, answers, stop_ids).reshape(shape)


def draw_samples(task: Task, prompts: int, per_prompt: int, seed: int) -> ReferenceAnswers:
    """Draw answers of a task's reference to held-out prompts, spread over their distribution."""
    chosen, weights = prompts_of(np.asarray(task.prompt_set("eval").weights), prompts)
    episodes = play(make_reference(task), task, prompt_index=chosen, per_prompt=per_prompt, seed=seed)
    return ReferenceAnswers(
        prompts=episodes.prompts,
        completions=episodes.completions,
        ended=episodes.stopped,
        gold=episodes.gold,
        weights=weights,
    )


def best_of_n_curve(raw: Floats, samples: ReferenceAnswers) -> JsonObject:
    """Return how a proxy does on samples of the reference, as JSON values.

    Args:
        raw: (P, N) its scores, in its own units.
    Returns: `scale` and `offset` (see `calibrate`), `accuracy` (of pairs of answers to one prompt that differ in gold,
        how many it orders rightly), and `points` for n = 1, 2, 4, ... N / 4: n, kl (nats), gold, proxy. More than N / 4
        would say too little of the KL.
    """
    calibration = calibrate(raw, samples.gold)
    proxy = calibration["offset"] + calibration["scale"] * raw
    points: list[JsonObject] = []
    for power in range(max(proxy.shape[1] // FEWEST, 1).bit_length()):
        best = best_of_n(proxy, samples.gold, samples.weights, 2**power)
        assert best.kl is not None
        measured = {"kl": best.kl, "gold": best.gold, "proxy": best.proxy}
        points.append({"n": best.n} | {name: asdict(value) for name, value in measured.items()})
    return calibration | {"accuracy": pair_accuracy(proxy, samples.gold), "points": points}


def pair_accuracy(proxy: Floats, gold: Floats) -> float:
    """Return the share of neighbours (P, N) of different gold that the proxy orders alike; a tie is half."""
    margins = np.diff(proxy, axis=1) * np.sign(np.diff(gold, axis=1))
    differ = np.abs(np.diff(gold, axis=1)) > 1e-9
    return float(np.mean((np.sign(margins[differ]) + 1) / 2)) if differ.any() else float("nan")


def overrated(episodes: PromptEpisodes, offset: float, count: int = 10) -> list[JsonObject]:
    """Return the answers whose proxy reward exceeds their gold reward most, each text once.

    Args:
        episodes: of a policy, with the proxy as reward. offset: added to the proxy.
    """
    proxy, gold = episodes.returns.ravel() + offset, episodes.gold.ravel()
    prompts = np.repeat(np.array(episodes.prompts, dtype=object), episodes.returns.shape[1])
    rows: dict[str, JsonObject] = {}
    for i in np.argsort(gold - proxy, kind="stable"):
        text = str(episodes.completions.ravel()[i])
        row = {"prompt": prompts[i], "completion": text, "proxy": float(proxy[i]), "gold": float(gold[i])}
        rows.setdefault(text, row)
        if len(rows) == count:
            break
    return list(rows.values())


def draw_overoptimisation(curves: Sequence[JsonObject], target: Path, title: str) -> None:
    """Write a picture: a panel for each method and size of the reward model, a colour for each number of pairs.

    Solid lines are the gold reward, dashed ones the proxy that is optimised; bands are 95% intervals.

    Args:
        curves: of result.json.
    Raises: ModuleNotFoundError without matplotlib (extra `report`).
    """
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(curve["method"] for curve in curves))
    sizes = sorted({curve["layers"] for curve in curves})
    amounts = sorted({curve["pairs"] for curve in curves})
    figure = Figure(figsize=(5 * len(methods), 3.4 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), len(methods), squeeze=False, sharey=True)
    colours = {pairs: HUES[number % len(HUES)] for number, pairs in enumerate(amounts)}
    for curve in curves:
        panel = panels[sizes.index(curve["layers"])][methods.index(curve["method"])]
        _draw_curve(panel, curve, colours[curve["pairs"]])
    for row, layers in zip(panels, sizes, strict=True):
        row[0].set_ylabel("reward, gold units")
        for panel, method in zip(row, methods, strict=True):
            panel.set_title(f"{_TITLES[method]}; reward model of {layers} layer{'s' * (layers > 1)}", fontsize=9)
            panel.set_xlabel("square root of KL, nats")
            panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    with replaced(target) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _draw_curve(panel: Axes, curve: JsonObject, colour: str) -> None:
    points = sorted(curve["points"], key=lambda point: point["kl"]["mean"])
    roots = [math.sqrt(max(point["kl"]["mean"], 0.0)) for point in points]
    for name, style in (("gold", "-"), ("proxy", "--")):
        means, lows, highs = ([point[name][end] for point in points] for end in ("mean", "low", "high"))
        right = "" if curve["accuracy"] is None else f" ({curve['accuracy']:.2f} right)"
        label = f"{curve['pairs']:,} pairs, {name}{right}"
        panel.plot(roots, means, style, color=colour, label=label, marker=".", markersize=4)
        panel.fill_between(roots, lows, highs, color=colour, alpha=0.15, linewidth=0)
