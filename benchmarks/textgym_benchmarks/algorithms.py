"""Optimality of algorithms on one task with equal budgets of episodes: `python -m textgym_benchmarks.algorithms`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from textgym_agents.algorithms.fixed import reference_of
from textgym_agents.registry import agent_class, make_agent, make_config, make_env

from textgym.commands.flags import env_options
from textgym.evaluate import evaluate
from textgym.optimum import Optimum, optimum_of
from textgym_benchmarks.rows import keep


@dataclass(frozen=True)
class Algorithms:
    """What to measure."""

    id: str = "textgym/Helpful-v0"
    """The environment."""
    agents: tuple[str, ...] = ("lm-ppo", "rloo", "grpo", "best-of-n")
    """Registered names, or module:Class."""
    episodes: int = 20_480
    """Episodes of each run."""
    seeds: int = 5
    """Runs of each agent."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Settings of the agents, as in top_k=4; each agent has to have them."""
    per_prompt: int = 16
    """Completions per held-out prompt that a policy is measured on."""
    optimum_per_prompt: int = 256
    """Completions per held-out prompt that J* is estimated from, once for all, where it is not solved."""
    out: Path | None = None
    """A file to which a JSON object is appended for every run."""


def measure(settings: Algorithms, agent: str, seed: int, optimum: Optimum) -> dict[str, Any]:
    """Trains one agent and measures it on held-out prompts; `cpu_seconds` are those of learning."""
    kind = agent_class(agent)
    config = make_config(kind, {"seed": seed} | env_options(settings.set, "--set"))
    env = make_env(settings.id, int(getattr(config, "batch", 64)))
    task = env.unwrapped.task
    made = make_agent(agent, env, config)
    started = time.process_time()
    made.learn(env, settings.episodes)
    seconds = time.process_time() - started
    found = evaluate(made, task, reference_of(made, task), optimum, per_prompt=settings.per_prompt, seed=seed)
    measures = {name: getattr(found, name) for name in ("optimality", "reward", "kl")}
    row = {
        "id": settings.id,
        "agent": agent,
        "set": settings.set,
        "seed": seed,
        "episodes": settings.episodes,
    }
    values = {name: None if value is None else asdict(value) for name, value in measures.items()}
    return row | values | {"cpu_seconds": round(seconds, 1)}


def main() -> None:
    """Measures and prints."""
    settings = tyro.cli(Algorithms, description=__doc__)
    optimum = optimum_of(make_env(settings.id, 1).unwrapped.task, per_prompt=settings.optimum_per_prompt)
    table = Table("agent", "mean optimality", "least", "greatest", "spread", "KL, nats", "CPU s")
    for agent in settings.agents:
        rows = []
        for seed in range(settings.seeds):
            rows.append(measure(settings, agent, seed, optimum))
            keep(rows[-1], settings.out)
        scores = [row["optimality"]["mean"] for row in rows if row["optimality"] is not None]
        if not scores:
            table.add_row(agent, "none: no KL, or J* not known", "", "", "", "", "")
            continue
        spread = f"{stdev(scores):.3f}" if len(scores) > 1 else "-"
        numbers = [f"{value:.3f}" for value in (mean(scores), min(scores), max(scores))]
        means = [mean(row["kl"]["mean"] for row in rows), mean(row["cpu_seconds"] for row in rows)]
        table.add_row(agent, *numbers, spread, f"{means[0]:.2f}", f"{means[1]:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
