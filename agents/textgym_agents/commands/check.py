"""Check an agent against the exact solver: what holds, what fails, and what could not be checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Column, Table

from textgym.checks import check_count
from textgym.commands.console import UsageError, folded, number, output, table, untrusted, use_all_cores
from textgym.commands.flags import env_options, parse

if TYPE_CHECKING:
    from textgym_agents.conformance import Finding

_STYLES = {"holds": "green", "FAILS": "bold red", "not asked": "dim"}


@dataclass(frozen=True)
class CheckFlags:
    """Check an agent: test the statements listed in docs/conformance.md against exact values.

    Example: textgym check my_module:MyAgent
    """

    agent: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="AGENT")]
    """module:Class, or the name of a registered agent."""
    only: tuple[str, ...] = ()
    """Checks to run, by name or statement number; by default all."""
    settings: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Settings of the agent, as in learning_rate=0.01."""
    episodes: int = 16384
    """Training episodes for each task that the agent must learn."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_count("episodes", self.episodes)


def main(arguments: list[str]) -> None:
    """Run the command. Raises: UsageError, after the table, if a check failed."""
    flags = parse(CheckFlags, arguments, "check")
    from textgym_agents.conformance import check
    from textgym_agents.conformance.behaviour import DEFAULT_TASKS
    from textgym_agents.conformance.run import REFERENCE
    from textgym_agents.registry import agent_class, agent_names

    if ":" not in flags.agent and flags.agent not in agent_names():
        raise UsageError(f"{flags.agent!r}: neither one of {', '.join(agent_names())} nor module:Class")
    agent_class(flags.agent)
    if "torch" in sys.modules:
        use_all_cores()
    findings = check(
        flags.agent,
        _chosen(flags.only),
        settings=env_options(flags.settings, "--settings", taken=()),
        learning_tasks={name: replace(task, episodes=flags.episodes) for name, task in DEFAULT_TASKS.items()},
    )
    if flags.json:
        print(json.dumps({"agent": flags.agent, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        console = output()
        console.print(_table(findings))
        counts = {status: sum(f.status == status for f in findings) for status in _STYLES}
        console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
        console.print(untrusted(f"no.: the statements listed in {REFERENCE}"))
        for finding in findings:
            if finding.status == "FAILS":
                console.print(untrusted(f"{finding.check}: {finding.asks}"))
    failed = [f.check for f in findings if f.status == "FAILS"]
    if failed:
        again = f"(once mended, ask again: --only {failed[0]!r})"
        raise UsageError(f"{flags.agent}: {len(failed)} of {len(findings)} checks failed: {', '.join(failed)} {again}")


def _chosen(words: Sequence[str]) -> list[str] | None:
    """Return the names of checks that words name; a number stands for all checks of that statement."""
    if not words:
        return None
    from textgym_agents.conformance.run import CHECKS

    chosen: list[str] = []
    for word in words:
        same = [entry.name for entry in CHECKS if word.isdecimal() and entry.statement == int(word)]
        chosen += same or [word]
    return chosen


def _table(findings: Sequence[Finding]) -> Table:
    found = table(folded("check"), number("no."), Column("", no_wrap=True), folded("found"), folded("expected"))
    for finding in findings:
        found.add_row(
            finding.check,
            str(finding.statement),
            untrusted(finding.status, _STYLES[finding.status]),
            untrusted(finding.found),
            untrusted(finding.expected),
        )
    return found
