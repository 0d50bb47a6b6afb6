"""Puts one episode under the microscope: every token with policy, reference, KL, V, advantage and regret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from textgym_agents.commands.policies import open_policy, run_options

from textgym.commands.console import UsageError, note, output, untrusted
from textgym.commands.flags import EnvId, EnvOptions, find_id, parse
from textgym.prompts import Split

if TYPE_CHECKING:
    from textgym_benchmarks.microscope.record import Request
    from textgym_benchmarks.microscope.trace import Trace

AgentNames = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class InspectFlags:
    """Look at one episode as the MDP sees it, token by token: as a page, in the terminal, or as JSON."""

    id: EnvId
    """The environment, as `textgym list` shows it."""
    agent: AgentNames = ()
    """A checkpoint or run folder, a Stable-Baselines3 .zip, reference, random, or module:Class; by default reference.
    Given twice, two agents are shown side by side: same prompt, same random numbers."""
    agent_class: str | None = None
    """module:Class of the agent in a folder, where it is no registered one; the agent of a .zip, as sb3-ppo."""
    trust_pickle: bool = False
    """Read a .zip of Stable-Baselines3, which runs whatever code is in the file."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; by default those of --agent, where it is a run."""
    split: Split = "eval"
    """Where the prompt is from: held-out ones, those of training, or those to choose settings on."""
    prompt: str | None = None
    """Start from this text instead of a prompt that is drawn."""
    prompt_index: int | None = None
    """Start from this prompt of the split."""
    completion: str | None = None
    """Look at this text instead of one that the agent writes. The stop token follows where there is room."""
    seed: int = 0
    """Seeds the draw of the prompt and of the tokens."""
    deterministic: bool = False
    """Take the likeliest token instead of drawing."""
    beta: float | None = None
    """Reward units per nat of KL; by default the task's."""
    top: int = 8
    """How many of the likeliest tokens of policy and reference are shown in every state."""
    max_states: int = 10_000
    """Solve the prompt exactly where its tree has at most so many states; 0: do not."""
    terminal: bool = False
    """Show it here instead of writing a page."""
    step: tuple[int, ...] = ()
    """With --terminal: the states to show, by number; by default all of them."""
    json: bool = False
    """Print the trace as JSON instead of writing a page."""
    out: Path | None = None
    """The page; by default inspect-NAME.html. A page of the microscope is replaced, no other file is."""

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
    from textgym_benchmarks.microscope.record import Request
    from textgym_benchmarks.microscope.trace import trace_json

    request = Request(**{each.name: getattr(flags, each.name) for each in fields(Request)})
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


def _traces(flags: InspectFlags, env_id: str, request: Request) -> Iterator[Trace]:
    """Yield a trace of each agent, all of them on the task of the first."""
    from textgym_agents.algorithms.fixed import reference_of

    from textgym_benchmarks.microscope.record import record

    names = flags.agent or ("reference",)
    options = flags.env or _run_options(names)
    task = None
    for name in names:
        env, agent = open_policy(
            env_id, name, options, _class_of(name, flags.agent_class), trust_pickle=flags.trust_pickle
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
    from textgym_benchmarks.microscope.terminal import render
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
        note("both wrote the same tokens" if at is None else f"the two episodes part at token {at}")
