"""Shows reward hacking: reward models of several strengths, optimised ever harder, against the gold reward."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from textgym.commands.console import note, output, untrusted
from textgym.commands.flags import EnvId, EnvOptions, env_options, find_id, parse
from textgym.interrupts import disk_full_at

_TEXT = """Over-optimisation of reward models: several are trained, on few and on many preferences, small and large;
each is optimised by best-of-n and by PPO with a falling KL penalty, and the gold reward says what that is worth.

Writes result.json and a picture, and lists answers that the weakest proxy overrates. The same command with the same
--out goes on where it was interrupted."""
_SHOWN = 6


@dataclass(frozen=True)
class OveroptimiseFlags:
    """What is optimised, and where it is written."""

    id: EnvId
    """The environment, as `textgym list` shows it; its task needs a gold reward."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; values are JSON or text."""
    out: Path | None = None
    """The folder; by default the next free runs/NAME-overoptimise-N. The same command goes on with what is there."""


def main(arguments: list[str]) -> None:
    """Runs the command."""
    from textgym.commands.console import use_all_cores
    from textgym_agents.commands.running import PipelineDisplay
    from textgym_agents.rlhf.overoptimise import Overoptimisation
    from textgym_agents.rlhf.settings import OveroptimiseSettings
    from textgym_agents.training.folder import run_folder

    kind = Annotated[OveroptimiseSettings, arg(name="")]
    parts: list[Any] = [
        ("flags", OveroptimiseFlags),
        ("settings", kind, field(default=OveroptimiseSettings())),
    ]
    combined = make_dataclass("Overoptimise", parts, frozen=True)
    combined.__doc__ = _TEXT
    given: Any = parse(combined, arguments, "overoptimise")
    env_id, settings = find_id(given.flags.id), given.settings
    name = f"{env_id.rpartition('/')[2].lower()}-overoptimise"
    use_all_cores()
    started = time.monotonic()
    with (
        run_folder(given.flags.out, name) as out,
        disk_full_at(out, "run the same command again, which goes on"),
        PipelineDisplay(settings.episodes) as display,
    ):
        result = Overoptimisation(env_id, settings, out, display, env_options(given.flags.env)).run()
    console = output()
    console.print(_table(result["curves"]))
    weakest = f"{min(settings.layers)}-{min(settings.pairs)}"
    console.print(_hacked(result["hacked"][weakest]))
    _draw(result, out, env_id)
    console.print(untrusted(f"{time.monotonic() - started:.0f} seconds; run folder: {out}"))


def _draw(result: dict[str, Any], out: Path, env_id: str) -> None:
    from textgym_agents.rlhf.overoptimise import draw_overoptimisation

    try:
        draw_overoptimisation(result["curves"], out / "overoptimisation.png", env_id)
    except ModuleNotFoundError:
        note('no overoptimisation.png is drawn: pip install "textgym[report]"')


def _table(curves: list[dict[str, Any]]) -> Any:
    """A row per reward model and method: where gold is highest, and where the proxy is."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for name in ("layers", "pairs", "right", "by", "best gold", "at KL", "last gold", "proxy", "at KL"):
        table.add_column(name, justify="left" if name == "by" else "right", overflow="fold")
    for curve in curves:
        points = curve["points"]
        best, last = max(points, key=lambda point: point["gold"]["mean"]), points[-1]
        numbers = [best["gold"], best["kl"], last["gold"], last["proxy"], last["kl"]]
        size = [str(curve["layers"]), f"{curve['pairs']:,}", f"{curve['accuracy']:.2f}", curve["method"]]
        table.add_row(*size, *(f"{number['mean']:.2f}" for number in numbers))
    return table


def _hacked(rows: list[dict[str, Any]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = "Answers that the weakest reward model overrates most, at the end of PPO"
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title=title)
    table.add_column("prompt", ratio=3, overflow="fold")
    table.add_column("answer", ratio=5, overflow="fold")
    table.add_column("proxy", justify="right")
    table.add_column("gold", justify="right")
    for row in rows[:_SHOWN]:
        cells = (untrusted(row["prompt"]), untrusted(row["completion"]))
        table.add_row(*cells, f"{row['proxy']:.2f}", f"{row['gold']:.2f}")
    return table
