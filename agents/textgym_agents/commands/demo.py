"""Aligns a small language model in about two minutes, and shows its answers before and after."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import arg

from textgym.commands.console import output, untrusted
from textgym.commands.flags import parse
from textgym_agents.config import LMPPOConfig, TrainSettings
from textgym_agents.training.loop import Training, TrainResult, Watcher
from textgym_agents.training.measures import spread

ENV_ID = "textgym/Helpful-v0"
PPO = LMPPOConfig()


@dataclass(frozen=True)
class DemoSettings:
    """LM PPO on the built-in world's Helpful task. The defaults take about two minutes on two cores."""

    config: LMPPOConfig = PPO
    episodes: int = 20_480
    """Episodes to learn from."""
    eval_every: int = 12
    """Iterations between evaluations on held-out prompts."""
    eval_per_prompt: int = 2
    """Completions per prompt of the evaluations on the way."""
    final_per_prompt: int = 16
    """Completions per prompt of the first and last evaluation."""
    optimum_per_prompt: int = 256
    """Completions per prompt that the optimum is estimated from."""
    prompts: int = 6
    """Prompts whose answers are shown."""

    def __post_init__(self) -> None:
        self.plan()

    def plan(self) -> TrainSettings:
        """The training that this is. Raises: ValueError for a number out of range."""
        return TrainSettings(
            id=ENV_ID,
            agent="lm-ppo",
            config=asdict(self.config),
            episodes=self.episodes,
            eval_every=self.eval_every,
            eval_per_prompt=self.eval_per_prompt,
            final_per_prompt=self.final_per_prompt,
            optimum_per_prompt=self.optimum_per_prompt,
        )


DEMO = DemoSettings()


@dataclass(frozen=True)
class Answers:
    """One prompt with the first answer sampled before and after learning, and what they earned."""

    prompt: str
    before: str
    before_reward: float
    after: str
    after_reward: float


def run_demo(settings: DemoSettings, out: str | Path, watcher: Watcher) -> tuple[TrainResult, list[Answers]]:
    """Trains, and picks answers to show. Args and Raises: see `Training.run`."""
    result = Training(settings.plan()).run(out, watcher)
    return result, pick_answers(result, settings.prompts)


def pick_answers(result: TrainResult, count: int) -> list[Answers]:
    """Answers to prompts spread over the held-out ones; sampled, not chosen by what they say."""
    assert result.first is not None
    first, last = result.first.episodes, result.last.episodes

    def answer(episodes: Any, index: int) -> tuple[str, float]:
        return str(episodes.completions[index, 0]), float(episodes.returns[index, 0])

    chosen = spread(np.asarray(last.weights), count)
    return [Answers(last.prompts[i], *answer(first, i), *answer(last, i)) for i in chosen]


_SHOWN = ["reward", "kl", "objective", "optimality", "length", "stop_rate"]


def main(arguments: list[str]) -> None:
    """Runs the command."""
    out_type = Annotated[Path | None, arg(help="The run's folder; by default the next free runs/demo-N.")]
    flags = make_dataclass(
        "Demo",
        [
            ("out", out_type, field(default=None)),
            ("settings", Annotated[DemoSettings, arg(name="")], field(default=DEMO)),
        ],
        frozen=True,
    )
    flags.__doc__ = (
        "Align the built-in world's language model by PPO, and show what it answers before and after."
    )
    given: Any = parse(flags, arguments, "demo")
    _run(given.settings, given.out)


def _run(settings: Any, given: Path | None) -> None:
    from textgym.commands.console import Display, use_all_cores
    from textgym_agents.commands.running import measures_table
    from textgym_agents.training.folder import RunFolder, run_folder

    started = time.monotonic()
    if given is not None:
        RunFolder.check_free(given)
    threads = use_all_cores()
    console = output()
    console.print(
        f"Learning {ENV_ID} by PPO, {settings.episodes} episodes on {threads} threads", markup=False
    )
    with run_folder(given, "demo") as out, Display(settings.episodes) as display:
        result, answers = run_demo(settings, out, display)
    console.print(_answers_table(answers))
    console.print(measures_table({"before": result.before, "after": result.after}, _SHOWN))
    console.print(
        "Optimality: 0 is the reference, 1 the best that any policy can do. 95% intervals.", markup=False
    )
    console.print(f"{time.monotonic() - started:.0f} seconds in all", markup=False)
    console.print(untrusted(f"run folder:     {out}"))
    if (out / "curve.png").exists():
        console.print(untrusted(f"learning curve: {out / 'curve.png'}"))


def _answers_table(answers: Any) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_lines=False)
    table.add_column("prompt", ratio=3, overflow="fold")
    table.add_column("answer before", ratio=4, overflow="fold")
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("answer after", ratio=4, overflow="fold")
    table.add_column("reward", justify="right", no_wrap=True)
    for row in answers:
        table.add_row(
            untrusted(row.prompt),
            untrusted(row.before),
            f"{row.before_reward:.2f}",
            untrusted(row.after, "bold"),
            f"{row.after_reward:.2f}",
            end_section=True,
        )
    return table
