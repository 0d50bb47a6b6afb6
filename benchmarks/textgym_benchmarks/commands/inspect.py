"""Puts one episode under the microscope: every token with policy, reference, KL, V, advantage and regret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from textgym_agents.commands.policies import open_policy, run_options

from textgym.commands.console import UsageError, note, output, untrusted
from textgym.commands.flags import EnvId, EnvOptions, find_id, parse
from textgym.prompts import Split

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
    """Runs the command."""
    flags = parse(InspectFlags, arguments, "inspect")
    env_id = find_id(flags.id)
    from textgym_benchmarks.microscope.record import Request
    from textgym_benchmarks.microscope.trace import trace_json

    request = Request(
        prompt=flags.prompt,
        prompt_index=flags.prompt_index,
        split=flags.split,
        seed=flags.seed,
        deterministic=flags.deterministic,
        completion=flags.completion,
        beta=flags.beta,
        top=flags.top,
        max_states=flags.max_states,
    )
    out = flags.out or Path(f"inspect-{env_id.rpartition('/')[2].lower()}.html")
    writes_page = not (flags.terminal or flags.json)
    if writes_page:
        from textgym_benchmarks.microscope.page import check_out, write_page

        check_out(out)
    traces = list(_traces(flags, env_id, request))
    if flags.json:
        print(json.dumps(trace_json(traces), indent=2, allow_nan=False))
    elif flags.terminal:
        _show(traces, flags.step)
    else:
        write_page(traces, out)
        output().print(untrusted(f"page: {out}"))


def _traces(flags: InspectFlags, env_id: str, request: Any) -> Iterator[Any]:
    """A trace of each agent, all of them on the task of the first."""
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
    """The options of the environment that the runs among the agents were trained in, as NAME=VALUE words.

    Raises: UsageError where two runs have different ones: then there is no task to compare them on.
    """
    trained = {name: run_options(Path(name)) for name in names}
    runs = {name: values for name, values in trained.items() if values is not None}
    if not runs:
        return ()
    (first, values), *others = runs.items()
    for other, differing in others:
        if differing != values:
            raise UsageError(
                f"--agent {first} was trained with env {json.dumps(values)}, --agent {other} with env "
                f"{json.dumps(differing)}: two agents are shown on one task; give its options as --env NAME=VALUE"
            )
    return tuple(f"{name}={json.dumps(value)}" for name, value in values.items())


def _class_of(name: str, given: str | None) -> str | None:
    """The class that a folder is opened with: the one given, unless the folder names a registered agent."""
    from textgym_agents.registry import agent_names

    from textgym.files import read_json

    for file in (Path(name) / "agent.json", Path(name) / "checkpoint" / "agent.json"):
        if given is not None and file.exists() and read_json(file).get("agent") in agent_names():
            return None
    return given


def _show(traces: list[Any], steps: tuple[int, ...]) -> None:
    from textgym_benchmarks.microscope.terminal import render
    from textgym_benchmarks.microscope.trace import parting

    for step in steps:
        if not 0 <= step < max(len(trace.steps) for trace in traces):
            raise UsageError(f"--step {step}: allowed is 0..{max(len(t.steps) for t in traces) - 1}")
    console = output()
    blocks = _can_show("█▏", console.encoding)
    for trace in traces:
        for part in render(trace, list(steps) or None, console.width, blocks):
            console.print(part)
        console.print()
    if len(traces) == 2:
        at = parting(*traces)
        note("both wrote the same tokens" if at is None else f"the two episodes part at token {at}")


def _can_show(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True
