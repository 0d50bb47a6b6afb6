"""What looking one token ahead with the critic adds to a trained policy: `python -m textgym_benchmarks.guided`."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Column, Table
from textgym_agents.algorithms.fixed import reference_of
from textgym_agents.algorithms.value_guided import ValueGuided, ValueGuidedConfig
from textgym_agents.registry import agent_class, make_agent, make_config, make_env

from textgym.evaluate import evaluate
from textgym.optimum import Optimum, optimum_of
from textgym_benchmarks.rows import keep


@dataclass(frozen=True)
class Guided:
    """What to measure."""

    id: str = "textgym/Helpful-v0"
    """The environment."""
    agent: str = "lm-ppo"
    """Who is trained and then guided by its own critic."""
    episodes: tuple[int, ...] = (2560, 10_240)
    """Budgets of training."""
    seeds: int = 3
    """Runs of each budget."""
    k: tuple[int, ...] = (4, 16)
    """Tokens considered in a state."""
    prior: tuple[Literal["policy", "reference"], ...] = ("policy", "reference")
    """What is tilted."""
    temperature: tuple[float, ...] = (1.0, 4.0)
    """Temperatures, in multiples of the task's beta."""
    per_prompt: int = 8
    """Completions per held-out prompt that a policy is measured on."""
    optimum_per_prompt: int = 256
    """Completions per held-out prompt that J* is estimated from, once for all, where it is not solved."""
    out: Path | None = None
    """A file to which a JSON object is appended for every policy."""


def main() -> None:
    """Measures and prints."""
    settings = tyro.cli(Guided, description=__doc__)
    optimum = optimum_of(make_env(settings.id, 1).unwrapped.task, per_prompt=settings.optimum_per_prompt)
    rows: list[dict[str, Any]] = []
    for budget, seed in itertools.product(settings.episodes, range(settings.seeds)):
        for row in _measure(settings, budget, seed, optimum):
            rows.append(row)
            keep(row, settings.out)
    Console().print(_table(rows))


def _measure(settings: Guided, budget: int, seed: int, optimum: Optimum) -> list[dict[str, Any]]:
    """A policy after `budget` episodes by itself, and guided in every way asked for."""
    config = make_config(agent_class(settings.agent), {"seed": seed})
    env = make_env(settings.id, int(getattr(config, "batch", 64)))
    task = env.unwrapped.task
    agent = make_agent(settings.agent, env, config)
    agent.learn(env, budget)
    reference = reference_of(agent, task)
    policies: dict[str, Any] = {"unguided": agent}
    for k, prior, factor in itertools.product(settings.k, settings.prior, settings.temperature):
        chosen = ValueGuidedConfig(k=k, prior=prior, temperature=factor * task.beta, seed=seed)
        policies[f"k={k} {prior} {factor:g} beta"] = ValueGuided(task, chosen, agent)
    rows = []
    for name, policy in policies.items():
        found = evaluate(policy, task, reference, optimum, per_prompt=settings.per_prompt, seed=seed)
        values = {measure: asdict(getattr(found, measure)) for measure in ("optimality", "reward", "kl")}
        rows.append({"id": settings.id, "episodes": budget, "seed": seed, "decoding": name} | values)
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "episodes", Column("decoding", no_wrap=True), "optimality", "least", "greatest", "reward", "KL, nats"
    )
    for (budget, name), group in itertools.groupby(
        sorted(rows, key=lambda row: (row["episodes"], row["decoding"])),
        lambda row: (row["episodes"], row["decoding"]),
    ):
        runs = list(group)
        scores = [run["optimality"]["mean"] for run in runs]
        numbers = [mean(scores), min(scores), max(scores), mean(run["reward"]["mean"] for run in runs)]
        kl = mean(run["kl"]["mean"] for run in runs)
        table.add_row(f"{budget:,}", name, *(f"{number:.3f}" for number in numbers), f"{kl:.2f}")
    return table


if __name__ == "__main__":
    main()
