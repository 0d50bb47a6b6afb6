"""Align a small language model in about two minutes, and show its answers before and after."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from textgym.commands.console import folded, number, output, table, untrusted, use_all_cores
from textgym.commands.flags import parse_pair
from textgym.evaluate import EvaluationResult
from textgym_agents.commands.running import TrainDisplay, measures_table, watched_run
from textgym_agents.config import LMPPOConfig, TrainSettings, integer
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.loop import Training
from textgym_agents.training.measures import spread

ENV_ID = "textgym/Helpful-v0"


@dataclass(frozen=True)
class DemoSettings:
    """LM PPO on the Helpful task of the built-in world. The defaults take about two minutes on two cores."""

    # The rate that was found for this task, with which the README's numbers were measured.
    config: LMPPOConfig = field(default_factory=lambda: LMPPOConfig(learning_rate=5e-4))
    episodes: int = 20_480
    """Number of training episodes."""
    eval_every: int = 12
    """Iterations between evaluations on held-out prompts."""
    eval_per_prompt: int = 2
    """Completions per prompt in the evaluations during training."""
    final_per_prompt: int = 16
    """Completions per prompt in the first and the last evaluation."""
    optimum_per_prompt: int = 256
    """Completions per prompt for the estimate of the optimum."""
    prompts: int = 6
    """Number of prompts whose answers are shown."""

    def __post_init__(self) -> None:
        integer(self, "prompts", 0)
        self.plan()

    def plan(self) -> TrainSettings:
        """Return the training that this is. Raises: ValueError for a number out of range."""
        values = asdict(self)
        values.pop("prompts")
        return TrainSettings(id=ENV_ID, agent="lm-ppo", **values)


_TEXT = """Align the built-in world's language model with PPO, and show its answers before and after.

Example: textgym demo --episodes 2048 --out runs/short"""
_SHOWN = ["reward", "kl", "objective", "optimality", "length", "stop_rate"]


@dataclass(frozen=True)
class OutFlag:
    """Where to write the run."""

    out: Path | None = None
    """The run folder; by default the next free runs/demo-N."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags, settings = parse_pair(OutFlag, DemoSettings, arguments, "demo", _TEXT)
    started = time.monotonic()
    if flags.out is not None:
        RunFolder.check_free(flags.out)
    threads = use_all_cores()
    console, display = output(), TrainDisplay(settings.episodes)
    console.print(f"Training on {ENV_ID} with PPO: {settings.episodes} episodes, {threads} threads", markup=False)
    with watched_run(flags.out, "demo", display) as out:
        result = Training(settings.plan()).run(out, display)
    assert result.first is not None
    console.print(_answers_table(result.first, result.last, settings.prompts))
    console.print(measures_table({"before": result.before, "after": result.after}, _SHOWN))
    console.print("Optimality: 0 is the reference, 1 the best that any policy can do. 95% intervals.", markup=False)
    console.print(f"{time.monotonic() - started:.0f} seconds in total", markup=False)
    console.print(untrusted(f"run folder:     {out}"))
    if (out / "curve.png").exists():
        console.print(untrusted(f"learning curve: {out / 'curve.png'}"))


def _answers_table(before: EvaluationResult, after: EvaluationResult, count: int) -> Table:
    """Return the first answers to prompts spread over the held-out ones; sampled, not chosen by what they say."""
    columns = (
        folded("prompt", ratio=3),
        folded("answer before", ratio=4),
        number("reward", no_wrap=True),
        folded("answer after", ratio=4),
        number("reward", no_wrap=True),
    )
    found = table(*columns)
    first, last = before.episodes, after.episodes
    for index in spread(last.weights, count):
        found.add_row(
            untrusted(last.prompts[index]),
            untrusted(str(first.completions[index, 0])),
            f"{first.returns[index, 0]:.2f}",
            untrusted(str(last.completions[index, 0]), "bold"),
            f"{last.returns[index, 0]:.2f}",
            end_section=True,
        )
    return found
