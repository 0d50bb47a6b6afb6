"""Results that no run made: a seeded generator of result.json values, hostile text, failures and gaps included.

The truth behind them is known: every agent has a skill, every task a difficulty, and the final optimality of a run is
skill - difficulty plus noise, so that tests can ask whether a summary orders the agents as they were made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from textgym_benchmarks.statistics import Strata, strata_of
from textgym_benchmarks.suite import Cell, Evaluation, Suite

FAMILIES = {
    "diagnostics": (
        *("Bandit", "Scale", "Noisy", "BetaSweep", "Delayed", "Stop", "TwoModes"),
        *("Distractor", "BigVocab", "DeepSea", "Deceptive", "Copy", "Reverse", "Recall"),
    ),
    "alignment": ("Helpful", "Harmless", "Honest", "HHH"),
    "verifiable": ("Arithmetic", "Json", "Keywords", "Pattern", "Format"),
    "style": ("Sentiment", "Brief", "NoRepeat"),
}
FAMILY = {f"textgym/{name}-v0": family for family, names in FAMILIES.items() for name in names}
TASKS = tuple(FAMILY)
AGENTS = (
    "reference",
    "random",
    "lm-ppo",
    "rloo",
    "grpo",
    "dpo",
    "best-of-n",
    "mcts",
    "sb3-ddpg",
    "q-learning",
    "my_module:MyAgent",
)
SKILL = {"reference": 0.0, "random": -2.0, "lm-ppo": 0.95, "rloo": 0.9, "mcts": -30.0, "q-learning": 0.4}
"""Optimality on the easiest task, where it is told; others draw theirs from [0.2, 0.9]."""
NO_KL = ("sb3-ddpg",)
"""Agents with neither log-probabilities nor a KL: kl, objective and optimality are null."""
FIXED = ("reference", "random")
"""Agents that learn nothing: their curves are flat."""
HOSTILE = (
    "<script>alert(1)</script>",
    "\x1b[31mred\x1b[0m and \x1b]0;title\x07",
    "[red]markup[/red] [link=http://example.com]here[/link]",
    "w" * 300,
    "first line\nsecond line\r\n\ttabbed",
    "smile \U0001f600 and family \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "a | b || c \\| d",
    "</td></tr></table><img src=x onerror=alert(2)>",
    "{{ 7 * 7 }} ${7 * 7} `backticks` **bold**",
    "\u202eright to left\u202c and a null \x00 inside",
    "",
)
POINTS = 8
VERSIONS = {"textgym": "0.1.0", "python": "3.11.2", "numpy": "2.4.6", "torch": "2.13.0"}
MACHINE = "2 cores, a processor that does not exist"


def make_results(
    agents: int | Sequence[str] = AGENTS,
    tasks: int | Sequence[str] = TASKS,
    seeds: int | Sequence[int] = 3,
    seed: int = 0,
    *,
    rewards: Sequence[str] = ("default",),
    failed: float = 0.03,
    missing: float = 0.02,
    samples: int = 3,
) -> list[dict[str, Any]]:
    """Values of result.json for the cross product of agents, tasks, rewards and seeds, in this order.

    Args:
        agents, tasks: names, or how many (the first of the lists above, then made-up ones).
        seeds: of the runs, or how many.
        rewards: labels; other than "default" they are proxies: their gold differs from their reward.
        failed, missing: shares of the cells. A missing one has status "missing" and null measures, and no file.
        samples: prompts with completions before and after, per cell.
    """
    names = _take(agents, AGENTS, "agent-{}")
    ids = _take(tasks, TASKS, "textgym/Made{}-v0")
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    skill = {name: SKILL.get(name, float(_generator(seed, name).uniform(0.2, 0.9))) for name in names}
    results = []
    for agent in names:
        for task in ids:
            for reward in rewards:
                for number in numbers:
                    generator = _generator(seed, agent, task, reward, number)
                    cell = make_cell(agent, task, reward, number)
                    fate = generator.random()
                    status = "failed" if fate < failed else "missing" if fate < failed + missing else "done"
                    results.append(_result(cell, status, skill[agent], seed, samples, generator))
    return results


def make_cell(agent: str, task: str, reward: str = "default", number: int = 0) -> dict[str, Any]:
    """A cell with its key."""
    cell = Cell(
        id=task,
        agent=agent,
        episodes=20_000 if FAMILY.get(task) == "diagnostics" else 8_000,
        seed=number,
        reward=None if reward == "default" else reward,
        reward_name=reward,
    )
    return cell.to_json()


def write_suite_folder(path: str | Path, results: Sequence[dict[str, Any]], name: str = "synthetic") -> Path:
    """A suite's folder with suite.json and the result.json of every cell that is not missing; the folder."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    cells = tuple(Cell.from_json(result["cell"]) for result in results)
    suite = Suite(name, cells, "Made up by tests/benchmarks/synthetic.py.", Evaluation(points=POINTS)).to_json()
    suite |= {"format": 2, "versions": VERSIONS, "machine": MACHINE, "started": "2026-11-21"}
    (folder / "suite.json").write_text(json.dumps(suite, indent=1))
    for result in results:
        cell = folder / "cells" / result["cell"]["key"]
        run = cell / "run"
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps({"agent": result["cell"]["agent"]}))
        if result["status"] != "missing":
            (cell / "result.json").write_text(json.dumps(result))
    return folder


def _result(
    cell: dict[str, Any], status: str, skill: float, seed: int, samples: int, generator: np.random.Generator
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "format": 1,
        "cell": cell,
        "family": FAMILY.get(cell["id"], "text"),
        "status": status,
        "error": None,
        "measures": None,
        "timing": None,
        "versions": VERSIONS,
        "machine": MACHINE,
    }
    if status == "failed":
        result["error"] = {
            "type": "RuntimeError",
            "message": "the reward gave nan for <script>alert(3)</script> \x1b[31m[bold]it[/bold]",
            "traceback": 'Traceback (most recent call last):\n  File "<reward>", line 1\nRuntimeError: ...',
            "attempts": 3,
        }
    elif status == "done":
        result["measures"], result["timing"] = _measures(cell, skill, seed, samples, generator)
    return result


def _measures(
    cell: dict[str, Any], skill: float, seed: int, samples: int, generator: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measures and timing of a run whose optimality rises as 1 - exp(-t) to skill - difficulty + noise."""
    task = _generator(seed, cell["id"])
    difficulty = 0.0 if cell["agent"] in FIXED else float(task.uniform(0.0, 0.3))
    reference, optimum = float(task.uniform(0.1, 0.3)), float(task.uniform(0.7, 0.95))
    tokens_each, beta = float(task.uniform(2.0, 20.0)), 0.1
    exact = FAMILY.get(cell["id"]) == "diagnostics"
    known, proxy = cell["agent"] not in NO_KL, cell["reward_name"] != "default"
    noise = 0.0 if cell["agent"] in FIXED else float(generator.normal(0.0, 0.03))
    final = skill - difficulty + noise
    progress = 1.0 - np.exp(-np.linspace(0.0, 5.0, POINTS + 1))
    scores = np.full(POINTS + 1, final) if cell["agent"] in FIXED else final * progress / progress[-1]
    half = 0.0 if exact else 0.02
    has_gold = FAMILY.get(cell["id"]) == "alignment" or proxy

    def at(score: float) -> dict[str, Any]:
        kl = 0.0 if cell["agent"] == "reference" else 2.0 * abs(score)
        objective = reference + score * (optimum - reference)
        reward = objective + beta * kl
        gold = reward - (0.1 * kl if proxy else 0.0) if has_gold else None
        return {
            "reward": _estimate(reward, half),
            "gold": None if gold is None else _estimate(gold, half),
            "kl": _estimate(kl, half) if known else None,
            "objective": _estimate(objective, half) if known else None,
            "optimality": _estimate(score, half) if known else None,
            "entropy": _estimate(1.0, half) if known else None,
            "length": _estimate(tokens_each, half),
            "stop_rate": 0.9,
            "distinct_1": 0.5,
            "distinct_2": 0.75,
        }

    points = [at(float(score)) for score in scores]
    episodes = np.linspace(0, cell["episodes"], POINTS + 1).round().astype(int).tolist()
    tokens = [round(count * tokens_each) for count in episodes]
    seconds = float(generator.uniform(20.0, 60.0))
    clock = np.linspace(0.0, seconds, POINTS + 1)
    crossings = {name: _crossing(scores, level) if known else None for name, level in _LEVELS.items()}
    measures = {
        "before": points[0],
        "after": points[-1],
        "optimum": {
            "value": _estimate(optimum, half),
            "reference": _estimate(reference, half),
            "effective_samples": None if exact else 61.2,
            "beta": beta,
            "exact": exact,
        },
        "curve": [_curve_row(count, token, p) for count, token, p in zip(episodes, tokens, points, strict=True)],
        **{
            name: None
            if place is None
            else {"episodes": place * episodes[-1] / POINTS, "tokens": place * tokens[-1] / POINTS}
            for name, place in crossings.items()
        },
        "episodes": cell["episodes"],
        "tokens": tokens[-1],
        "iterations": cell["episodes"] // 256,
        "samples": [_sample(generator, has_gold) for _ in range(samples)],
    }
    timing = {
        "seconds": seconds,
        "cpu_seconds": 0.95 * seconds,
        "tokens_per_second": tokens[-1] / seconds,
        "seconds_to_half": _seconds(crossings["to_half"], seconds),
        "seconds_to_nine_tenths": _seconds(crossings["to_nine_tenths"], seconds),
        "curve_seconds": clock.tolist(),
    }
    return measures, timing


_LEVELS = {"to_half": 0.5, "to_nine_tenths": 0.9}


def _curve_row(episode: int, tokens: int, point: dict[str, Any]) -> dict[str, Any]:
    means = {
        name: None if point[name] is None else point[name]["mean"] for name in ("reward", "gold", "kl", "objective")
    }
    score = point["optimality"] or {"mean": None, "low": None, "high": None}
    return {
        "episode": episode,
        "tokens": tokens,
        "optimality": score["mean"],
        "optimality_low": score["low"],
        "optimality_high": score["high"],
        **means,
    }


def _crossing(scores: Any, level: float) -> float | None:
    """Where the curve first reaches the level, in points, linearly between them; None: never."""
    above = np.flatnonzero(scores >= level)
    if not above.size:
        return None
    i = int(above[0])
    return 0.0 if i == 0 else float(i - 1 + (level - scores[i - 1]) / (scores[i] - scores[i - 1]))


def _seconds(place: float | None, seconds: float) -> float | None:
    return None if place is None else place * seconds / POINTS


def _estimate(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _sample(generator: np.random.Generator, has_gold: bool) -> dict[str, Any]:
    prompt, before, after = (HOSTILE[i] for i in generator.integers(len(HOSTILE), size=3))

    def side(text: str) -> dict[str, Any]:
        reward = float(generator.uniform())
        side = {
            "completion": text,
            "reward": reward,
            "terms": {"right": reward, "<b>polite</b>": 0.0},
        }
        return side | {"gold": reward / 2} if has_gold else side

    return {"prompt": f"What is {prompt}?", "before": side(before), "after": side(after)}


def _take(given: int | Sequence[str], names: Sequence[str], made: str) -> list[str]:
    if not isinstance(given, int):
        return list(given)
    return [*names[:given], *(made.format(i) for i in range(len(names), given))]


def _generator(*key: object) -> np.random.Generator:
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def strata_of_matrix(scores: ArrayLike) -> Strata:
    """Scores (R, T) as rliable takes them: runs by tasks, NaN where a run has no score."""
    matrix = np.asarray(scores, dtype=np.float64)
    groups = [column[~np.isnan(column)].tolist() for column in matrix.T]
    return strata_of(groups, expected=[len(matrix)] * len(groups))
