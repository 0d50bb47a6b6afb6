"""A trace in the terminal: the episode as a table of tokens, and a table with bars for every state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from textgym.render import escaped
from textgym_benchmarks.microscope.trace import Step, Trace

_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
# Heading -> quantity, and whether its sign is shown. Two tables, so that both fit 80 columns.
_SEEN = {
    "log-ratio": ("log_ratio", True),
    "KL": ("kl", False),
    "reward": ("reward", False),
    "V": ("value", False),
    "advantage": ("advantage", True),
}
_EXACT = {
    "V*": ("optimal_value", False),
    "Q*": ("optimal_action_value", False),
    "regret": ("regret", True),
    "state regret": ("state_regret", False),
    "V pi": ("policy_value", False),
    "advantage": ("exact_advantage", True),
}


def visible_token(text: str) -> str:
    """Return a token with control characters written out and blanks as open boxes."""
    return escaped(text).replace(" ", "␣")


def number(value: float | None, signed: bool = False) -> str:
    """Return three digits after the point; "?" where nothing is known."""
    if value is None:
        return "?"
    if not math.isfinite(value):
        return str(value)
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return "0.000" if float(text) == 0 else text


def probability(value: float | None) -> str:
    """Return three digits after the point, or one digit and the power of ten of what is smaller."""
    if value is None:
        return "?"
    return f"{value:.3f}" if value >= 0.0005 or value == 0 else f"{value:.0e}".replace("e-0", "e-")


@dataclass(frozen=True)
class Bars:
    """How bars are drawn: `width` characters for a share of 1, of block characters or of number signs."""

    width: int = 12
    blocks: bool = True


def bar(share: float | None, bars: Bars) -> str:
    """Return a bar of a share in 0..1; of blocks to an eighth of a character."""
    if share is None:
        return ""
    if not bars.blocks:
        return "#" * round(share * bars.width)
    eighths = round(share * bars.width * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8]


def render(
    trace: Trace, steps: list[int] | None = None, width: int = 80, blocks: bool = True
) -> Iterator[RenderableType]:
    """Yield the episode, what is unknown, and every state.

    Args:
        steps: which states are shown; None: all.
        width: of the terminal, characters; where it is narrow, bars are short or left out.
        blocks: whether the terminal can show block characters.
    """
    bars = Bars(12 if width >= 76 else 6 if width >= 60 else 0, blocks)
    yield _head(trace)
    yield _episode(trace, _SEEN, probabilities=True)
    if trace.known is not None:
        yield Text("exactly, by the solver", style="dim")
        yield _episode(trace, _EXACT, probabilities=False)
    for reason in dict.fromkeys(trace.unknown.values()):
        names = ", ".join(name.replace("_", " ") for name, why in trace.unknown.items() if why == reason)
        yield Text(f"unknown: {names}: {escaped(reason)}", style="dim")
    for step in trace.steps:
        if steps is None or step.step in steps:
            yield Text("")
            yield from _state(trace, step, bars)


def _head(trace: Trace) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    chosen = {"sampled": "sampled", "likeliest": "the likeliest ones", "given": "given"}[trace.chosen]
    table.add_row("task", Text(f"{escaped(trace.id)}, {trace.split} split, beta {trace.beta:g}, gamma {trace.gamma:g}"))
    table.add_row("agent", Text(f"{escaped(trace.agent)} against {escaped(trace.reference)}"))
    table.add_row("tokens", f"{chosen}, seed {trace.seed}")
    table.add_row("prompt", Text(escaped(trace.prompt)))
    table.add_row("completion", Text(escaped(trace.completion), style="bold"))
    table.add_row("ended by", f"{trace.finish_reason}, {len(trace.steps)} tokens")
    terms = "".join(f"  {escaped(name)} {number(value)}" for name, value in trace.reward_terms.items())
    table.add_row("return", Text(f"{number(trace.total_return)}{terms}"))
    if trace.gold is not None:
        table.add_row("gold", number(trace.gold))
    table.add_row("objective", f"{number(trace.objective)} = return - {trace.beta:g} x KL {number(trace.kl)} nats")
    if trace.known is not None:
        known = trace.known
        table.add_row(
            "exact",
            f"V* {number(known.optimum)}, V pi {number(known.policy)}, V ref {number(known.reference)} "
            f"at the prompt; {known.states:,} states",
        )
    return table


def _episode(trace: Trace, quantities: dict[str, tuple[str, bool]], probabilities: bool) -> Table:
    """Return a row for every token; quantities that are known nowhere have no column."""
    columns = {
        heading: quantity
        for heading, quantity in quantities.items()
        if any(getattr(step, quantity[0]) is not None for step in trace.steps)
    }
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("t", justify="right", style="dim", no_wrap=True)
    table.add_column("token", overflow="fold")
    for heading in (*(("pi", "ref") if probabilities else ()), *columns):
        table.add_column(heading, justify="right", overflow="fold")
    for step in trace.steps:
        own = None if step.log_prob is None else math.exp(step.log_prob)
        shares = (probability(own), probability(math.exp(step.log_reference))) if probabilities else ()
        table.add_row(
            str(step.step),
            Text(visible_token(step.text), style="bold"),
            *shares,
            *(number(getattr(step, name), signed) for name, signed in columns.values()),
        )
    return table


def _state(trace: Trace, step: Step, bars: Bars) -> Iterator[RenderableType]:
    title = Text(f"{step.step}  ", style="dim")
    title.append(visible_token(step.text), style="bold")
    title.append(f"  after {escaped(step.written)!r}" if step.written else "  after the prompt", style="dim")
    yield title
    facts = {
        "KL": number(step.kl),
        "entropy": number(step.entropy),
        "V": number(step.value),
        "state regret": number(step.state_regret),
        "running KL": number(step.running_kl),
        "running return": number(step.running_return),
    }
    yield Padding(
        Text("  ".join(f"{name} {value}" for name, value in facts.items() if value != "?"), style="dim"),
        (0, 0, 0, 3),
    )
    yield Padding(_candidates(trace, step, bars), (0, 0, 0, 1))


def _candidates(trace: Trace, step: Step, bars: Bars) -> Table:
    exact = any(candidate.optimal is not None for candidate in step.candidates)
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("token", overflow="fold")
    for heading in ("pi", "ref"):
        table.add_column(heading, justify="right", overflow="fold")
        if bars.width:
            table.add_column("", no_wrap=True, min_width=bars.width)
    for heading in ("pi*", "Q*") if exact else ():
        table.add_column(heading, justify="right", overflow="fold")
    for candidate in step.candidates:
        taken = candidate.token == step.token
        cells = _shares(candidate.probability, candidate.reference, bars)
        if exact:
            cells += [probability(candidate.optimal), number(candidate.optimal_action_value)]
        name = Text(visible_token(candidate.text), style="bold" if taken else "")
        table.add_row(">" if taken else "", name, *cells)
    others = trace.vocabulary - len(step.candidates)
    if others and max(step.rest or 0.0, step.reference_rest) >= 0.0005:
        table.add_row("", f"{others:,} others", *_shares(step.rest, step.reference_rest, bars), style="dim")
    return table


def _shares(own: float | None, reference: float, bars: Bars) -> list[RenderableType]:
    cells: list[RenderableType] = []
    for share, colour in ((own, "blue"), (reference, "yellow")):
        cells += [probability(share), *([Text(bar(share, bars), style=colour)] if bars.width else [])]
    return cells
