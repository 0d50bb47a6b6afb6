"""List registered names: environments (`list`), agents (`agents`) and rewards (`rewards`)."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.table import Column

from textgym.checks import JsonObject
from textgym.commands.console import folded, number, one_line, output, table, untrusted
from textgym.commands.flags import parse
from textgym.registry import AGENTS, REWARDS, TASKS, Entry, Registry, import_user_module

_WIDE = 100  # Columns from which there is room for the summaries.


@dataclass(frozen=True)
class ListFlags:
    """List the environments with their ids, families, rewards, vocabulary sizes and horizons.

    Example: textgym list --json
    """

    modules: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODULE")] = ()
    """Modules of your own that register tasks, to include in the list."""
    json: bool = False
    """Print JSON: one object per environment, with all its metadata."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(ListFlags, arguments, "list")
    for module in flags.modules:
        import_user_module(module)
    if flags.json:
        print(json.dumps([_describe(name) for name in sorted(TASKS)], indent=2))
    else:
        _print_table([_row(name) for name in sorted(TASKS)])


@dataclass(frozen=True)
class NamesFlags:
    """How to list names."""

    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class AgentsFlags(NamesFlags):
    """List the registered agents: those of TextGym, installed packages and the current folder.

    Example: textgym agents
    """


def agents(arguments: list[str]) -> None:
    """List the agents that have a name."""
    _print_names(AGENTS, parse(AgentsFlags, arguments, "agents").json)


@dataclass(frozen=True)
class RewardsFlags(NamesFlags):
    """List the registered rewards and their parameters: those of TextGym, installed packages and the current folder.

    Example: textgym rewards --json
    """


def rewards(arguments: list[str]) -> None:
    """List the rewards that have a name, with their parameters."""
    _print_names(REWARDS, parse(RewardsFlags, arguments, "rewards").json)


_NEXT = {
    "agent": "textgym train Helpful-v0 --agent NAME --help shows an agent's settings. Your own agent: my_file:MyAgent",
    "reward": 'Usage: --env reward=length, or with parameters --env \'reward={"name": "length", "target": 5}\'. Your '
    "own reward: --env reward=my_file:function",
}


def _print_names(registry: Registry[Entry], as_json: bool) -> None:
    kind, rows = registry.kind, []
    for name in sorted(registry):
        row = {kind: name} | ({"parameters": _parameters(name)} if registry is REWARDS else {})
        rows.append(row | {"summary": registry.summary(name), "from": registry.entry(name).origin})
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    *columns, _ = rows[0]
    found = table(Column(kind, no_wrap=True, style="bold"), *map(folded, columns[1:]))
    for row in rows:
        found.add_row(*(untrusted(row[heading]) for heading in columns))
    console = output()
    console.print(found)
    console.print(_NEXT[kind], markup=False)


def _parameters(name: str) -> str:
    """Return the parameters of a reward with their defaults, as in "target=8, unit='words'"; "?" where it has none."""
    try:
        signature = inspect.signature(REWARDS.load(name))
    except (ImportError, TypeError, ValueError):
        return "?"
    plain = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return ", ".join(str(parameter).replace(" = ", "=") for parameter in plain)


def _row(name: str) -> JsonObject:
    """Return what the table shows of a task, which is built only where its entry does not say it, or it may fail."""
    entry = TASKS.entry(name)
    if not entry.horizon or TASKS.clash(name) or not all(map(_installed, entry.needs)):
        return _describe(name)
    row: JsonObject = {"id": entry.id, "family": entry.family, "summary": TASKS.summary(name)}
    return row | {"reward": entry.reward, "vocabulary": entry.vocabulary, "horizon": entry.horizon}


def _installed(module: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(module) is not None
    return False


def _describe(name: str) -> JsonObject:
    """Return what is known of a task; its sizes are left out where it cannot be built with its defaults."""
    from textgym.task import make_task

    entry = TASKS.entry(name)
    row: JsonObject = {"id": entry.id, "family": entry.family, "summary": TASKS.summary(name)}
    try:
        task = make_task(name)
    except Exception as error:  # One broken task must not hide the others.
        return row | {"error": one_line(error)}
    return row | {
        "reward": task.reward_name,
        "gold": task.gold is not None,
        "vocabulary": task.vocabulary.size,
        "horizon": task.max_new_tokens,
        "max_prompt_tokens": task.max_prompt_tokens,
        "prompts": {split: len(prompts) for split, prompts in task.prompts.items()},
        "reference": str(task.reference),
        "beta": task.beta,
        "gamma": task.gamma,
    }


def _print_table(rows: list[JsonObject]) -> None:
    console = output()
    wide = console.width >= _WIDE
    found = table(
        Column("id", no_wrap=True, style="bold"),
        Column("family", no_wrap=True),
        folded("reward"),
        number("vocabulary" if wide else "V", no_wrap=True),
        number("horizon" if wide else "T", no_wrap=True),
        *(["what it asks for"] if wide else []),
    )
    for row in rows:
        cells = [row["id"], row["family"], row.get("reward", "cannot be built")]
        cells += [str(row.get(name, "-")) for name in ("vocabulary", "horizon")]
        found.add_row(*map(untrusted, [*cells, *([row["summary"]] if wide else [])]))
    console.print(found)
    for row in rows:
        if "error" in row:
            console.print(untrusted(f"{row['id']}: {row['error']}"), soft_wrap=True)
    if not wide:
        console.print("V: vocabulary size; T: maximum answer length, tokens", style="dim")
