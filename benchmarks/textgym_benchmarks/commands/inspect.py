"""Inspects one episode: every token with policy, reference, KL, V, advantage and regret.

In the terminal, the episode is a table of tokens, and every state a table with bars.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text
from textgym_agents.commands.policies import open_policy, run_options

from textgym.commands.console import UsageError, folded, note, output, table, untrusted
from textgym.commands.flags import EnvId, EnvOptions, find_id, parse
from textgym.prompts import Split
from textgym.render import counted, escaped

if TYPE_CHECKING:
    from textgym_benchmarks.microscope.record import TraceRequest
    from textgym_benchmarks.microscope.trace import TokenStep, Trace

AgentNames = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
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


@dataclass(frozen=True)
class InspectFlags:
    """Inspect one episode of the MDP, token by token: as a page, in the terminal, or as JSON.

    Example: textgym inspect Copy-v0 --agent reference --terminal
    """

    id: EnvId
    """Id of the environment, as in `textgym list`."""
    agent: AgentNames = ()
    """A checkpoint or run folder, a Stable-Baselines3 .zip, reference, random, hf:MODEL, or module:Class; by default
    reference. If given twice, the two agents are shown side by side, with the same prompt and random numbers."""
    agent_class: str | None = None
    """module:Class of the agent in a folder, if it is not registered; for a .zip the agent's name, as in sb3-ppo."""
    trust_pickle: bool = False
    """Load a Stable-Baselines3 .zip, which runs any code in the file."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; by default those of the run, if --agent is one."""
    split: Split = "eval"
    """Split of the prompt: eval (held-out), train, or tune (for choosing settings)."""
    prompt: str | None = None
    """Start from this text instead of a drawn prompt."""
    prompt_index: int | None = None
    """Start from the prompt with this index in the split."""
    completion: str | None = None
    """Inspect this text instead of one written by the agent. The stop token is appended if there is room."""
    seed: int = 0
    """Seed of the prompt and the tokens."""
    deterministic: bool = False
    """Take the most likely token instead of sampling."""
    beta: float | None = None
    """Reward units per nat of KL; by default the task's."""
    top: int = 8
    """Number of the most likely tokens of policy and reference to show in every state."""
    max_states: int = 10_000
    """Solve the prompt exactly if its tree has at most this many states; 0: never."""
    terminal: bool = False
    """Show the episode in the terminal instead of writing a page."""
    step: tuple[int, ...] = ()
    """With --terminal: numbers of the states to show; by default all."""
    json: bool = False
    """Print the trace as JSON instead of writing a page."""
    out: Path | None = None
    """The page; by default inspect-NAME.html. Existing files are not replaced, except pages of this command."""

    def __post_init__(self) -> None:
        if len(self.agent) > 2:
            raise UsageError(f"--agent: given {len(self.agent)} times, allowed is once or twice")
        if sum((self.terminal, self.json, self.out is not None)) > 1:
            raise UsageError("--terminal, --json and --out exclude each other; allowed is one of them")
        if self.step and not self.terminal:
            raise UsageError("--step: it chooses what --terminal shows; allowed together with it only")


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(InspectFlags, arguments, "inspect")
    env_id = find_id(flags.id)
    from textgym_benchmarks.microscope.page import check_out, write_page
    from textgym_benchmarks.microscope.record import TraceRequest
    from textgym_benchmarks.microscope.trace import trace_json

    request = TraceRequest(**{each.name: getattr(flags, each.name) for each in fields(TraceRequest)})
    out = flags.out or Path(f"inspect-{env_id.rpartition('/')[2].lower()}.html")
    if not (flags.terminal or flags.json):
        check_out(out)
    traces = list(_traces(flags, env_id, request))
    if flags.json:
        print(json.dumps(trace_json(traces), indent=2, allow_nan=False))
    elif flags.terminal:
        _show(traces, flags.step)
    else:
        write_page(traces, out)
        output().print(untrusted(f"page: {out}"))


def _traces(flags: InspectFlags, env_id: str, request: TraceRequest) -> Iterator[Trace]:
    """Yield a trace of each agent, all of them on the task of the first."""
    from textgym_agents.algorithms.fixed import reference_of

    from textgym_benchmarks.microscope.record import record

    names = flags.agent or ("reference",)
    options = flags.env or _run_options(names)
    task = None
    for name in names:
        env, agent = open_policy(
            env_id, name, options, _class_of(name, flags.agent_class), "--agent", flags.trust_pickle, flags.split
        )
        task = env.unwrapped.task if task is None else task
        yield record(agent, task, reference_of(agent, task), request, env_id, name)


def _run_options(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the environment's options that the runs among the agents were trained with, as NAME=VALUE words.

    Raises: UsageError where two runs have different ones: then there is no task to compare them on.
    """
    found = [(name, options) for name in names if (options := run_options(Path(name))) is not None]
    if len(found) == 2 and found[0][1] != found[1][1]:
        (first, its), (second, other) = found
        raise UsageError(
            f"--agent {first} was trained with env {json.dumps(its)}, --agent {second} with env "
            f"{json.dumps(other)}: two agents are shown on one task; give its options as --env NAME=VALUE"
        )
    return tuple(f"{name}={json.dumps(value)}" for name, value in found[0][1].items()) if found else ()


def _class_of(name: str, asked: str | None) -> str | None:
    """Return the class to open a folder with: the one that is asked for, unless the folder names a registered agent."""
    from textgym_agents.registry import agent_names

    from textgym.files import read_json

    for file in (Path(name) / "agent.json", Path(name) / "checkpoint" / "agent.json"):
        if asked is not None and file.exists() and read_json(file).get("agent") in agent_names():
            return None
    return asked


def _show(traces: list[Trace], steps: tuple[int, ...]) -> None:
    from textgym_benchmarks.microscope.trace import parting

    longest = max(len(trace.steps) for trace in traces)
    for step in steps:
        if not 0 <= step < longest:
            raise UsageError(f"--step {step}: allowed is 0..{longest - 1}")
    console = output()
    try:
        blocks = bool("█▏".encode(console.encoding))
    except (UnicodeError, LookupError):
        blocks = False
    for trace in traces:
        for part in render(trace, list(steps) or None, console.width, blocks):
            console.print(part)
        console.print()
    if len(traces) == 2:
        at = parting(*traces)
        note("both episodes have the same tokens" if at is None else f"the episodes differ from token {at} on")


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
    head = Table.grid(padding=(0, 2))
    head.add_column(style="dim", no_wrap=True)
    head.add_column(overflow="fold")
    chosen = {"sampled": "sampled", "likeliest": "the likeliest ones", "given": "given"}[trace.chosen]
    head.add_row("task", Text(f"{escaped(trace.id)}, {trace.split} split, beta {trace.beta:g}, gamma {trace.gamma:g}"))
    head.add_row("agent", Text(f"{escaped(trace.agent)} against {escaped(trace.reference)}"))
    head.add_row("tokens", f"{chosen}, seed {trace.seed}")
    head.add_row("prompt", Text(escaped(trace.prompt)))
    head.add_row("completion", Text(escaped(trace.completion), style="bold"))
    head.add_row("ended by", f"{trace.finish_reason}, {counted(len(trace.steps), 'token')}")
    terms = "".join(f"  {escaped(name)} {number(value)}" for name, value in trace.reward_terms.items())
    head.add_row("return", Text(f"{number(trace.total_return)}{terms}"))
    if trace.gold is not None:
        head.add_row("gold", number(trace.gold))
    head.add_row("objective", f"{number(trace.objective)} = return - {trace.beta:g} x KL {number(trace.kl)} nats")
    if (known := trace.known) is not None:
        head.add_row(
            "exact",
            f"V* {number(known.optimum)}, V pi {number(known.policy)}, V ref {number(known.reference)} "
            f"at the prompt; {known.states:,} states",
        )
    return head


def _episode(trace: Trace, quantities: dict[str, tuple[str, bool]], probabilities: bool) -> Table:
    """Return a row for every token; quantities that are known nowhere have no column."""
    columns = {
        heading: quantity
        for heading, quantity in quantities.items()
        if any(getattr(step, quantity[0]) is not None for step in trace.steps)
    }
    headings = (*(("pi", "ref") if probabilities else ()), *columns)
    found = table(
        Column("t", justify="right", style="dim", no_wrap=True),
        folded("token"),
        *(folded(heading, justify="right") for heading in headings),
    )
    for step in trace.steps:
        own = None if step.log_prob is None else math.exp(step.log_prob)
        shares = (probability(own), probability(math.exp(step.log_reference))) if probabilities else ()
        found.add_row(
            str(step.step),
            _said(step),
            *shares,
            *(number(getattr(step, name), signed) for name, signed in columns.values()),
        )
    return found


def _state(trace: Trace, step: TokenStep, bars: Bars) -> Iterator[RenderableType]:
    title = Text(f"{step.step}  ", style="dim")
    title.append(_said(step))
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
    known = "  ".join(f"{name} {value}" for name, value in facts.items() if value != "?")
    yield Padding(Text(known, style="dim"), (0, 0, 0, 3))
    yield Padding(_candidates(trace, step, bars), (0, 0, 0, 1))


def _said(step: TokenStep) -> Text:
    """Return a token, and in brackets what the environment wrote behind it."""
    reply = f" [{''.join(map(visible_token, step.reply))}]" if step.reply else ""
    return Text.assemble((visible_token(step.text), "bold"), (reply, "dim"))


def _candidates(trace: Trace, step: TokenStep, bars: Bars) -> Table:
    exact = any(candidate.optimal is not None for candidate in step.candidates)
    found = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    found.add_column("", no_wrap=True)
    found.add_column("token", overflow="fold")
    for heading in ("pi", "ref"):
        found.add_column(heading, justify="right", overflow="fold")
        if bars.width:
            found.add_column("", no_wrap=True, min_width=bars.width)
    for heading in ("pi*", "Q*") if exact else ():
        found.add_column(heading, justify="right", overflow="fold")
    for candidate in step.candidates:
        taken = candidate.token == step.token
        cells = _shares(candidate.probability, candidate.reference, bars)
        if exact:
            cells += [probability(candidate.optimal), number(candidate.optimal_action_value)]
        name = Text(visible_token(candidate.text), style="bold" if taken else "")
        found.add_row(">" if taken else "", name, *cells)
    others = trace.vocabulary - len(step.candidates)
    if others and max(step.rest or 0.0, step.reference_rest) >= 0.0005:
        found.add_row("", f"{others:,} others", *_shares(step.rest, step.reference_rest, bars), style="dim")
    return found


def _shares(own: float | None, reference: float, bars: Bars) -> list[RenderableType]:
    cells: list[RenderableType] = []
    for share, colour in ((own, "blue"), (reference, "yellow")):
        cells += [probability(share), *([Text(bar(share, bars), style=colour)] if bars.width else [])]
    return cells
