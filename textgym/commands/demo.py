"""Aligns a small language model in about two minutes, and shows its answers before and after."""

from __future__ import annotations

import time
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from textgym.commands._console import output, untrusted
from textgym.commands._flags import parse

_SHOWN = ["reward", "kl", "objective", "optimality", "length", "stop_rate"]


def main(arguments: list[str]) -> None:
    """Runs the command."""
    from textgym_agents.demo import DEMO, DemoSettings

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
    from textgym_agents.demo import ENV_ID, run_demo
    from textgym_agents.runs import RunFolder, run_folder

    from textgym.commands._live import Display
    from textgym.commands._summary import measures_table
    from textgym.commands._threads import use_all_cores

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
