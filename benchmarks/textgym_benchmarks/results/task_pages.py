"""One page per family of tasks, made of the tasks' own docstrings and of measured results.

`python -m textgym_benchmarks.results.task_pages` writes docs/tasks/ from benchmarks/results/core.json.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import tyro

from textgym.commands.console import script
from textgym.files import make_folder, write_text
from textgym.registry import TASKS, TaskEntry
from textgym_benchmarks.pages import markdown
from textgym_benchmarks.results.store import Result, load_results
from textgym_benchmarks.statistics import Interval
from textgym_benchmarks.summaries import Summary, summarise
from textgym_benchmarks.summaries.entries import AgentScores
from textgym_benchmarks.summaries.grid import RankedTask, interval_of

TITLES: Final = {
    "alignment": "Alignment: answers about the built-in world",
    "verifiable": "Verifiable: answers that a program can check",
    "style": "Style: how, not what",
    "diagnostics": "Diagnostics: one capability each, solved exactly",
    "turns": "Turns: the environment answers",
    "text": "Your own prompts, tokenizer and reward",
}
"""Family -> the title of its page, in the order of the index."""
_SECTION = re.compile(r"^### (.+)$", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {4}(\S[^:]*): ", re.MULTILINE)


@dataclass(frozen=True)
class TaskPages:
    """Where results are read, and where pages are written."""

    results: Path = Path("benchmarks/results/core.json")
    """Results of a suite, as `textgym_benchmarks.results.store` reads them."""
    out: Path = Path("docs/tasks")
    """The folder of the pages."""


def sections(entry: TaskEntry) -> dict[str, str]:
    """Return the sections of a task's docstring, title -> text, in their order."""
    text = inspect.getdoc(TASKS.load(entry.key)) or ""
    parts = _SECTION.split(text)[1:]
    return {title: body.strip("\n") for title, body in zip(parts[::2], parts[1::2], strict=True)}


def task_pages(results: Iterable[Result]) -> dict[str, str]:
    """Return every page, file name -> Markdown.

    Args:
        results: of any suite; a task without results says so.
    """
    measured = list(results)
    summary = summarise(measured)
    entries = [TASKS.entry(key) for key in sorted(TASKS)]
    families = {
        family: (title, [entry for entry in entries if entry.family == family]) for family, title in TITLES.items()
    }
    page = partial(
        markdown("textgym_benchmarks.results", "family.md").render,
        summary=summary,
        sections=sections,
        facts=_facts,
        options=_options,
        ranked=partial(_ranked, summary),
        optimum=partial(_optimum, summary, measured),
        interval=_interval,
    )
    index = markdown("textgym_benchmarks.results", "tasks.md").render(families=families)
    return {"README.md": index} | {
        f"{family}.md": page(family=family, title=title, tasks=tasks) for family, (title, tasks) in families.items()
    }


def _facts(entry: TaskEntry) -> list[tuple[str, str]]:
    """Return the spaces of a task and its numbers."""
    env: Any = gym.make(entry.id)
    task, spaces = env.unwrapped.task, env.observation_space.spaces
    rows = [("action", f"`{env.action_space}`: the next token")]
    for name, space in spaces.items():
        low, high = space.low.flat[0], space.high.flat[0]
        rows.append((f"observation `{name}`", f"`Box({low}, {high}, {space.shape}, {space.dtype})`"))
    rows += [("longest answer, tokens", f"{task.max_new_tokens}")]
    rows += [(f"prompts, `{split}`", f"{len(task.prompt_set(split).texts):,}") for split in task.prompts]
    rows += [("beta", f"{task.beta:g} reward units per nat"), ("gamma", f"{task.gamma:g}")]
    env.close()
    return rows


def _options(text: str) -> list[tuple[str, str]]:
    """Return the names of arguments and what is said of each."""
    parts = _ARGUMENT.split("\n" + text)[1:]
    return [(name, " ".join(body.split())) for name, body in zip(parts[::2], parts[1::2], strict=True)]


def _ranked(summary: Summary, problem: RankedTask) -> list[AgentScores]:
    """Return the entries of a problem by their optimality, those without one by their reward."""

    def known(found: Interval) -> float:
        return float("-inf") if found.value is None else found.value

    mine = [entry for entry in summary.entries if entry.problem == problem.index]
    return sorted(mine, key=lambda entry: (-known(entry.optimality), -known(entry.reward)))


def _optimum(summary: Summary, results: Iterable[Result], problem: RankedTask) -> str:
    """Return what the first result says that knows the problem's J*."""
    keys = {run.key for entry in summary.entries if entry.problem == problem.index for run in entry.runs}
    for result in results:
        optimum = (result.measures or {}).get("optimum") if result.cell.key in keys else None
        if optimum is not None and optimum["value"] is not None:
            best, base = optimum["value"], optimum["reference"]
            if optimum["exact"]:
                return f"Exactly solved: J_ref = {base['mean']:.4f}, J* = {best['mean']:.4f}."
            best, base = (_interval(interval_of(found)) for found in (best, base))
            return (
                f"By importance sampling: J_ref = {base}, J* = {best}, "
                f"which rests on {optimum['effective_samples']:.0f} effective samples a prompt."
            )
    return "The optimum is not known."


def _interval(found: Interval) -> str:
    if found.value is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.value:z.3f}"
    return f"{found.value:z.3f} [{found.low:z.3f}, {found.high:z.3f}]"


def main() -> None:
    """Run `python -m textgym_benchmarks.results.task_pages`."""
    settings = tyro.cli(TaskPages, description=__doc__)
    make_folder(settings.out)
    for name, text in task_pages(load_results(settings.results)).items():
        write_text(settings.out / name, text)


if __name__ == "__main__":
    script(main)
