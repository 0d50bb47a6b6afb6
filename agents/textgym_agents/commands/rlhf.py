"""Runs RLHF from end to end: fine-tuning, preferences, a reward model, PPO, and a comparison."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from textgym.commands.console import output, untrusted
from textgym.commands.flags import EnvId, EnvOptions, env_options, find_id, parse
from textgym.interrupts import disk_full_at

_TEXT = """RLHF in four stages, each in a folder of its own: supervised fine-tuning on demonstrations, preferences
between answers of the fine-tuned model, a reward model of these preferences, and PPO against it with a KL penalty to
the fine-tuned model. Ends with base, SFT, PPO and best-of-n side by side, under the gold reward and its proxy.

The same command with the same --out goes on where it was interrupted."""
_LEGEND = (
    "Held-out prompts, 95% intervals. KL in nats per answer to the fine-tuned model; optimality of gold reward - beta "
    "KL: 0 is the fine-tuned model, 1 the best that any policy can do."
)
_SHOWN = 4


@dataclass(frozen=True)
class RLHFFlags:
    """What is aligned, and where it is written."""

    id: EnvId
    """The environment, as `textgym list` shows it: its gold reward judges, its reference is the base model."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; values are JSON or text."""
    out: Path | None = None
    """The folder; by default the next free runs/NAME-rlhf-N. The same command goes on with what is there."""


def main(arguments: list[str]) -> None:
    """Runs the command."""
    from textgym.commands.console import use_all_cores
    from textgym_agents.commands.running import PipelineDisplay
    from textgym_agents.rlhf.pipeline import Pipeline
    from textgym_agents.rlhf.settings import RLHFSettings
    from textgym_agents.training.folder import run_folder

    settings_type = Annotated[RLHFSettings, arg(name="")]
    parts: list[Any] = [("flags", RLHFFlags), ("settings", settings_type, field(default=RLHFSettings()))]
    combined = make_dataclass("RLHF", parts, frozen=True)
    combined.__doc__ = _TEXT
    given: Any = parse(combined, arguments, "rlhf")
    env_id, settings = find_id(given.flags.id), given.settings
    name = f"{env_id.rpartition('/')[2].lower()}-rlhf"
    use_all_cores()
    started = time.monotonic()
    with (
        run_folder(given.flags.out, name) as out,
        disk_full_at(out, "run the same command again, which goes on"),
        PipelineDisplay(settings.episodes) as display,
    ):
        result = Pipeline(env_id, settings, out, display, env_options(given.flags.env)).run()
    console = output()
    console.print(_answers(result["rows"]))
    console.print(comparison_table(result["rows"]))
    console.print(_LEGEND, markup=False)
    console.print(untrusted(f"{time.monotonic() - started:.0f} seconds; run folder: {out}"))


def comparison_table(rows: list[dict[str, Any]]) -> Any:
    """A row per policy: gold reward, proxy, KL and optimality, with intervals."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    table.add_column("policy", no_wrap=True)
    for name in ("gold reward", "proxy reward", "KL", "optimality"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [_cell(row[name]) for name in ("gold", "proxy", "optimality")]
        table.add_row(row["policy"], *cells[:2], f"{row['kl']['mean']:.2f}", cells[2])
    return table


def _cell(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return "-"
    if estimate["low"] == estimate["high"]:
        return f"{estimate['mean']:.2f}".replace("-0.00", "0.00")
    return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]".replace("-0.00", "0.00")


def _answers(rows: list[dict[str, Any]]) -> Any:
    """Answers to a few held-out prompts by every policy that was sampled."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = [row for row in rows if row["answers"]]
    prompts = list(shown[0]["answers"])
    step = max(1, len(prompts) // _SHOWN)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("prompt", ratio=3, overflow="fold")
    for row in shown:
        table.add_column(row["policy"], ratio=4, overflow="fold")
    for prompt in prompts[step // 2 :: step][:_SHOWN]:
        table.add_row(untrusted(prompt), *(untrusted(row["answers"][prompt]) for row in shown))
    return table
