"""Policies and proxies side by side under the gold reward: reward, KL, optimality, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.best_of_n import FEWEST, best_of_n
from textgym.estimates import Estimate
from textgym.evaluate import EvaluationResult, evaluate
from textgym.lm.reference import Reference
from textgym.optimum import Optimum, optimality_of, optimum_of
from textgym.sampling import PromptEpisodes, play
from textgym.task import Task, make_reference
from textgym_agents.training.measures import spread

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """N answers of the reference to each of P prompts.

    Attributes:
        prompts: P texts. completions: (P, N) texts. ended: (P, N), by a stop id.
        gold: (P, N), reward units. weights: (P,), summing to 1.
    """

    prompts: tuple[str, ...]
    completions: NDArray[np.object_]
    ended: NDArray[np.bool_]
    gold: Floats
    weights: Floats

    def scores(self, reward: Any, stop_ids: Sequence[int]) -> Floats:
        """What a reward model says of all answers, (P, N)."""
        shape = self.completions.shape
        prompts = np.repeat(np.array(self.prompts, dtype=object), shape[1]).tolist()
        stop = list(stop_ids[:1])
        ids = [stop if ended else [] for ended in self.ended.ravel().tolist()]
        values = reward(prompts, self.completions.ravel().tolist(), completion_ids=ids)
        return np.array(values, dtype=np.float64).reshape(shape)


def draw_samples(task: Task, prompts: int, per_prompt: int, seed: int) -> Samples:
    """Answers of a task's reference to held-out prompts, spread over their distribution."""
    chosen = np.array(spread(np.asarray(task.prompt_set("eval").weights), prompts))
    episodes = play(make_reference(task), task, prompt_index=chosen, per_prompt=per_prompt, seed=seed)
    weights = np.asarray(task.prompt_set("eval").weights)[chosen]
    return Samples(
        prompts=episodes.prompts,
        completions=episodes.completions,
        ended=episodes.stopped,
        gold=episodes.gold,
        weights=weights / weights.sum(),
    )


def calibrate(proxy: Floats, gold: Floats) -> dict[str, float]:
    """`scale` and `offset` with which offset + scale * proxy has the mean and spread of gold.

    A Bradley-Terry model knows differences only, in units of its annotator's noise.
    """
    scale = float(gold.std() / proxy.std()) if proxy.std() > 0 else 1.0
    return {"scale": scale, "offset": float(gold.mean() - scale * proxy.mean())}


def best_of_n_curve(raw: Floats, samples: Samples) -> dict[str, Any]:
    """A proxy on samples of the reference, as JSON values.

    Args:
        raw: (P, N) its scores, in its own units.
    Returns: `scale` and `offset` (see `calibrate`), `accuracy` (of pairs of answers to one prompt that differ in gold,
        how many it orders rightly), and `points` for n = 1, 2, 4, ... N / 4: n, kl (nats), gold, proxy. More than N / 4
        would say too little of the KL.
    """
    calibration = calibrate(raw, samples.gold)
    proxy = calibration["offset"] + calibration["scale"] * raw
    points: list[dict[str, Any]] = []
    for power in range(max(proxy.shape[1] // FEWEST, 1).bit_length()):
        best = best_of_n(proxy, samples.gold, samples.weights, 2**power)
        assert best.kl is not None
        measured = {"kl": best.kl, "gold": best.gold, "proxy": best.proxy}
        points.append({"n": best.n} | {name: asdict(value) for name, value in measured.items()})
    return calibration | {"accuracy": pair_accuracy(proxy, samples.gold), "points": points}


def pair_accuracy(proxy: Floats, gold: Floats) -> float:
    """Of neighbouring answers (P, N) that differ in gold, the share that the proxy orders alike; a tie is half."""
    margins = np.diff(proxy, axis=1) * np.sign(np.diff(gold, axis=1))
    differ = np.abs(np.diff(gold, axis=1)) > 1e-9
    return float(np.mean((np.sign(margins[differ]) + 1) / 2)) if differ.any() else float("nan")


def overrated(episodes: PromptEpisodes, offset: float, count: int = 10) -> list[dict[str, Any]]:
    """The answers whose proxy reward exceeds their gold reward most, each text once.

    Args:
        episodes: of a policy, with the proxy as reward. offset: added to the proxy.
    """
    proxy, gold = episodes.returns.ravel() + offset, episodes.gold.ravel()
    prompts = np.repeat(np.array(episodes.prompts, dtype=object), episodes.returns.shape[1])
    rows: dict[str, dict[str, Any]] = {}
    for i in np.argsort(gold - proxy, kind="stable"):
        text = str(episodes.completions.ravel()[i])
        row = {"prompt": prompts[i], "completion": text, "proxy": float(proxy[i]), "gold": float(gold[i])}
        rows.setdefault(text, row)
        if len(rows) == count:
            break
    return list(rows.values())


@dataclass(frozen=True)
class Row:
    """One policy.

    Attributes:
        policy: what it is called.
        gold, proxy: expected rewards on held-out prompts, reward units.
        kl: nats per answer to the reference; of best-of-n from the levels of the proxy, see `textgym.best_of_n`.
        optimality: of J = gold reward - beta KL: 0 is the reference, 1 the best that any policy can do.
        answers: prompt -> its first sampled answer; empty for best-of-n.
    """

    policy: str
    gold: Estimate
    proxy: Estimate
    kl: Estimate
    optimality: Estimate | None
    answers: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Contest:
    """What policies are compared under.

    Args:
        gold_task: its reward is the gold one.
        proxy_task: the same task with the proxy as reward, and gold as gold.
        reference: pi_ref, which KL is measured from.
        split: prompts to answer.
        per_prompt: answers to each.
        seed: of the sampling.
    """

    gold_task: Task
    proxy_task: Task
    reference: Reference
    split: str = "eval"
    per_prompt: int = 16
    seed: int = 0

    def optimum(self, proposals: Sequence[Any] = (), per_prompt: int = 128) -> Optimum:
        """J* under the gold reward, with trained policies as proposals."""
        return optimum_of(self.gold_task, proposals, self.reference, split=self.split, per_prompt=per_prompt)

    def row(self, name: str, policy: Any, optimum: Optimum | None, shown: int = 0) -> Row:
        """Measures one policy; `shown` of its answers are kept."""
        gold = self._evaluate(policy, self.gold_task, optimum, self.per_prompt)
        # The same seed, so that the very same answers are scored by the proxy.
        proxy = self._evaluate(policy, self.proxy_task, None, self.per_prompt)
        assert gold.kl is not None
        episodes = gold.episodes
        answers = {episodes.prompts[i]: str(episodes.completions[i, 0]) for i in range(len(episodes.prompts))}
        return Row(
            name, gold.reward, proxy.reward, gold.kl, gold.optimality, dict(list(answers.items())[:shown])
        )

    def best_of(self, n: int, optimum: Optimum | None, samples: int) -> Row:
        """Best-of-n of the reference by the proxy, from `samples` answers to each prompt: 4 n at least."""
        episodes = self._evaluate(self.reference, self.proxy_task, None, max(samples, FEWEST * n)).episodes
        best = best_of_n(episodes.returns, episodes.gold, episodes.weights, n, self.seed)
        assert best.kl is not None
        optimality = None
        if optimum is not None:
            objective = best.gold.mean - optimum.beta * best.kl.mean
            replicates = best.replicates[:, 1] - optimum.beta * best.replicates[:, 2]
            optimality = optimality_of(objective, replicates, optimum)
        return Row(f"best-of-{n}", best.gold, best.proxy, best.kl, optimality, {})

    def _evaluate(
        self, policy: Any, task: Task, optimum: Optimum | None, per_prompt: int
    ) -> EvaluationResult:
        beta = 0.0 if optimum is None else optimum.beta
        return evaluate(
            policy,
            task,
            self.reference,
            optimum,
            beta=beta,
            split=self.split,
            per_prompt=per_prompt,
            seed=self.seed,
        )


def shifted(estimate: Estimate, by: float) -> Estimate:
    """An estimate with a constant added."""
    return Estimate(estimate.mean + by, estimate.low + by, estimate.high + by)
