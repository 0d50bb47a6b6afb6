"""Runs that are written step by step, as a training writes them, and a server that shows them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from textgym_agents.config import TrainSettings
from textgym_agents.training.folder import RunFolder
from textgym_benchmarks.commands.report import LiveServer

from textgym.checks import JsonObject


def begin(path: Path, episodes: int = 400, agent: str = "lm-ppo", **config: object) -> RunFolder:
    """A run of Copy that has only begun."""
    settings = TrainSettings("textgym/Copy-v0", agent, episodes, {"seed": 0, **config}, {})
    return RunFolder.create(path, vars(settings) | {"versions": {"python": "3.11", "machine": "a machine"}})


def row(iteration: int, j: float | None, seconds: float = 0.0) -> JsonObject:
    """The metrics of an iteration of 100 episodes, with an evaluation where J is told: reward J + 0.1, KL 1."""
    found: JsonObject = {"iteration": iteration, "episode": 100 * iteration, "seconds": seconds}
    found |= {"learning/tokens": 300 * iteration, "learning/seconds": seconds, "learning/cpu_seconds": seconds}
    if j is None:
        return found
    means = {"objective": j, "reward": j + 0.1, "kl": 1.0, "entropy": 5 - j, "length": 3.0, "optimality": j / 0.5}
    for name, mean in means.items():
        found |= {f"eval/{name}": mean, f"eval/{name}_low": mean - 0.02, f"eval/{name}_high": mean + 0.02}
    return found | {"eval/stop_rate": 0.5, "eval/distinct_1": 0.5, "eval/distinct_2": 0.5}


def learn(run: RunFolder, iteration: int, j: float | None, text: str = "words", seconds: float = 0.0) -> None:
    """Log an iteration, with an answer where it is evaluated."""
    if j is not None:
        terms = {"right_words": j}
        run.sample(
            [{"iteration": iteration, "prompt": "copy a b c :", "completion": text, "reward": j, "terms": terms}]
        )
    run.log(row(iteration, j, seconds))


def end(run: RunFolder, j: float) -> None:
    """Finish a run of 400 episodes."""
    learn(run, 4, j, "at last")
    rows = run.metrics()
    before, after = ({name: value for name, value in each.items() if "eval/" in name} for each in (rows[0], rows[-1]))
    value = {"mean": 0.5, "low": None, "high": None}
    optimum = {
        "value": value,
        "reference": value | {"mean": 0.0},
        "effective_samples": None,
        "beta": 0.1,
        "exact": True,
    }
    run.finish(
        {"before": before, "after": after, "optimum": optimum, "iterations": 4, "episodes": 400, "seconds": 40.0}
    )


@contextmanager
def served(*runs: Path, port: int = 18_765) -> Iterator[LiveServer]:
    """A server that reads its runs whenever it is asked."""
    with LiveServer(runs, port) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()
