"""List the environments: id, family, reward, vocabulary and horizon."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rich.table import Column

from textgym.checks import JsonObject
from textgym.commands.console import folded, number, one_line, output, table, untrusted
from textgym.commands.flags import parse

_WIDE = 100  # Columns from which there is room for the summaries.


@dataclass(frozen=True)
class ListFlags:
    """List the environments: their ids, families, rewards, sizes of vocabulary and horizons.

    Example: textgym list --json
    """

    json: bool = False
    """Print JSON: one object per environment, with everything that is known of it."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(ListFlags, arguments, "list")
    rows = [_describe(name) for name in _names()]
    if flags.json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows)


def _names() -> list[str]:
    from textgym.registry import TASKS

    return sorted(TASKS)


def _describe(name: str) -> JsonObject:
    """Return what is known of a task; its sizes are left out where it cannot be built with its defaults."""
    from textgym.registry import TASKS
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
        console.print("V: tokens in the vocabulary; T: longest answer, tokens", style="dim")
