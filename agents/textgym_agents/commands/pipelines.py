"""Run whole pipelines: RLHF from end to end (`rlhf`), and over-optimisation of reward models (`overoptimise`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.table import Column, Table

from textgym.checks import JsonObject
from textgym.commands.console import folded, note, number, output, table, untrusted
from textgym.commands.flags import EnvId, EnvOptions, env_options, find_id, parse_pair
from textgym.interrupts import disk_full_at
from textgym_agents.commands.running import FitDisplay, watched_run
from textgym_agents.rlhf.settings import OveroptimiseSettings, RLHFSettings
from textgym_agents.training.loop import Watcher

if TYPE_CHECKING:
    from textgym_agents.rlhf.runs import StagedRun

Settings = TypeVar("Settings", RLHFSettings, OveroptimiseSettings)
_RLHF = """Run RLHF in four stages, each in its own folder: supervised fine-tuning on demonstrations, preferences
between answers of the fine-tuned model, a reward model of these preferences, and PPO against it with a KL penalty to
the fine-tuned model. Finally compare base, SFT, PPO and best-of-n by gold reward and proxy reward.

The same command with the same --out resumes an interrupted run.

Example: textgym rlhf Helpful-v0 --out runs/rlhf"""
_OVEROPTIMISE = """\
Over-optimise reward models: train small and large ones on few and many preferences, optimise each by best-of-n and
by PPO with a falling KL penalty, and measure the results by the gold reward.

Writes result.json and a picture, and lists answers that the weakest proxy overrates. The same command with the same
--out resumes an interrupted run.

Example: textgym overoptimise Helpful-v0 --out runs/hacking"""
_LEGEND = (
    "Held-out prompts, 95% intervals. KL in nats per answer to the fine-tuned model; optimality of gold reward - beta "
    "KL: 0 is the fine-tuned model, 1 the best that any policy can do."
)
_PROMPTS, _HACKED = 4, 6  # answers that are shown


@dataclass(frozen=True)
class PipelineFlags:
    """The task to align on and the output folder."""

    id: EnvId
    """Id of the environment, as in `textgym list`; its gold reward judges, and its reference is the base model."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; values are JSON or text."""
    out: Path | None = None
    """The output folder; by default the next free runs/NAME-COMMAND-N. The same command continues an existing run."""


def rlhf(arguments: list[str]) -> None:
    """Run `textgym rlhf`."""
    flags, settings = parse_pair(PipelineFlags, RLHFSettings, arguments, "rlhf", _RLHF)
    from textgym_agents.rlhf.pipeline import Pipeline

    def show(result: JsonObject, out: Path) -> None:
        console = output()
        console.print(_answers(result["rows"]))
        console.print(comparison_table(result["rows"]))
        console.print(_LEGEND, markup=False)

    _run(flags, settings, "rlhf", Pipeline, show)


def overoptimise(arguments: list[str]) -> None:
    """Run `textgym overoptimise`."""
    flags, settings = parse_pair(PipelineFlags, OveroptimiseSettings, arguments, "overoptimise", _OVEROPTIMISE)
    from textgym_agents.rlhf.overoptimise import Overoptimisation, draw_overoptimisation

    def show(result: JsonObject, out: Path) -> None:
        console = output()
        console.print(_curves(result["curves"]))
        weakest = f"{min(settings.layers)}-{min(settings.pairs)}"
        console.print(_hacked(result["hacked"][weakest]))
        try:
            draw_overoptimisation(result["curves"], out / "overoptimisation.png", find_id(flags.id))
        except ModuleNotFoundError:
            note('no overoptimisation.png is drawn: pip install "textgym[report]"')

    _run(flags, settings, "overoptimise", Overoptimisation, show)


def _run(
    flags: PipelineFlags,
    settings: Settings,
    command: str,
    pipeline: Callable[[str, Settings, Path, Watcher, JsonObject], StagedRun[Settings]],
    show: Callable[[JsonObject, Path], None],
) -> None:
    """Run a pipeline in its folder and show its result."""
    env_id = find_id(flags.id)
    name = f"{env_id.rpartition('/')[2].lower()}-{command}"
    started = time.monotonic()
    display = FitDisplay(settings.episodes)
    with (
        watched_run(flags.out, name, display) as out,
        disk_full_at(out, "run the same command again to continue"),
    ):
        result = pipeline(env_id, settings, out, display, env_options(flags.env)).run()
    show(result, out)
    output().print(untrusted(f"{time.monotonic() - started:.0f} seconds; run folder: {out}"))


def comparison_table(rows: list[JsonObject]) -> Table:
    """Return a row per policy: gold reward, proxy, KL and optimality, with intervals."""
    headings = ("gold reward", "proxy reward", "KL", "optimality")
    found = table(Column("policy", no_wrap=True), *map(number, headings), collapse_padding=True)
    for row in rows:
        gold, proxy, optimality = (_cell(row[name]) for name in ("gold", "proxy", "optimality"))
        found.add_row(row["policy"], gold, proxy, f"{row['kl']['mean']:z.2f}", optimality)
    return found


def _cell(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return "-"
    text = f"{estimate['mean']:.2f}"
    if estimate["low"] != estimate["high"]:
        text += f" [{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return text.replace("-0.00", "0.00")


def _answers(rows: list[JsonObject]) -> Table:
    """Return answers to a few held-out prompts by every policy that was sampled."""
    shown = [row for row in rows if row["answers"]]
    prompts = list(shown[0]["answers"])
    step = max(1, len(prompts) // _PROMPTS)
    found = table(folded("prompt", ratio=3), *(folded(row["policy"], ratio=4) for row in shown))
    for prompt in prompts[step // 2 :: step][:_PROMPTS]:
        found.add_row(untrusted(prompt), *(untrusted(row["answers"][prompt]) for row in shown))
    return found


def _curves(curves: list[JsonObject]) -> Table:
    """Return a row per reward model and method: where gold is highest, and where the proxy is."""
    headings = ("layers", "pairs", "right", "by", "best gold", "at KL", "last gold", "proxy", "at KL")
    columns = [folded(name, justify="left" if name == "by" else "right") for name in headings]
    found = table(*columns, collapse_padding=True)
    for curve in curves:
        points = curve["points"]
        best, last = max(points, key=lambda point: point["gold"]["mean"]), points[-1]
        numbers = [best["gold"], best["kl"], last["gold"], last["proxy"], last["kl"]]
        right = "-" if curve["accuracy"] is None else f"{curve['accuracy']:.2f}"
        size = [str(curve["layers"]), f"{curve['pairs']:,}", right, curve["method"]]
        found.add_row(*size, *(f"{number['mean']:.2f}" for number in numbers))
    return found


def _hacked(rows: list[JsonObject]) -> Table:
    title = "Answers that the weakest reward model overrates most, at the end of PPO"
    columns = (folded("prompt", ratio=3), folded("answer", ratio=5), number("proxy"), number("gold"))
    found = table(*columns, title=title)
    for row in rows[:_HACKED]:
        texts = (untrusted(row["prompt"]), untrusted(row["completion"]))
        found.add_row(*texts, f"{row['proxy']:.2f}", f"{row['gold']:.2f}")
    return found
