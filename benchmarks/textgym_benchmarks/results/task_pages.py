"""One page per family of tasks, made of the tasks' own docstrings and of measured results.

`python -m textgym_benchmarks.results.task_pages` writes docs/tasks/ from benchmarks/results/core.json.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import tyro

from textgym.files import make_folder, write_text
from textgym.registry import TASKS, TaskEntry
from textgym.task import task_entry, task_names
from textgym_benchmarks.results.store import Result, load_results
from textgym_benchmarks.summaries.entries import Entry
from textgym_benchmarks.summaries.grid import Problem, Spread
from textgym_benchmarks.summary import Summary, summarise

TITLES: Final = {
    "alignment": "Alignment: answers about the built-in world",
    "verifiable": "Verifiable: answers that a program can check",
    "style": "Style: how, not what",
    "diagnostics": "Diagnostics: one capability each, solved exactly",
    "text": "Your own prompts, tokenizer and reward",
}
"""Family -> the title of its page, in the order of the index."""
SPLITS = """\
Every task has three splits of prompts: agents learn from `train`, are reported on `eval`, and their settings are chosen
on `tune`. Tasks of the built-in world ask on `tune` about the things of `eval` in the phrasings of `train`; diagnostics
take prompts that neither has, or, where too few are left, those of `eval`: there it is other seeds that settings are
chosen on. A task of your own may leave `tune` out.
"""
_SECTION = re.compile(r"^### (.+)$", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {4}(\S[^:]*): ", re.MULTILINE)


@dataclass(frozen=True)
class TaskPages:
    """What is written, and from what."""

    results: Path = Path("benchmarks/results/core.json")
    """Results of a suite, as `textgym_benchmarks.results.store` reads them."""
    out: Path = Path("docs/tasks")
    """The folder of the pages."""


def sections(entry: TaskEntry) -> dict[str, str]:
    """The sections of a task's docstring, title -> text, in their order."""
    text = inspect.getdoc(TASKS.load(entry.name)) or ""
    parts = _SECTION.split(text)[1:]
    return {title: body.strip("\n") for title, body in zip(parts[::2], parts[1::2], strict=True)}


def task_pages(results: Iterable[Result]) -> dict[str, str]:
    """Every page, file name -> Markdown.

    Args:
        results: of any suite; a task without results says so.
    """
    measured = list(results)
    scores = _Scores(measured, summarise(measured))
    entries = [task_entry(name) for name in task_names()]
    pages = {"README.md": _index(entries)}
    for family, title in TITLES.items():
        mine = [entry for entry in entries if entry.family == family]
        blocks = [_task(entry, scores) for entry in mine]
        pages[f"{family}.md"] = "\n".join([f"# {title}\n", _contents(mine), *blocks])
    return pages


def _index(entries: list[TaskEntry]) -> str:
    lines = [
        "# Tasks\n",
        "Made of the tasks' own docstrings by `python -m textgym_benchmarks.results.task_pages`.\n",
        SPLITS,
    ]
    for family, title in TITLES.items():
        lines += [f"## [{title}]({family}.md)\n", _contents([e for e in entries if e.family == family])]
    return "\n".join(lines)


def _contents(entries: list[TaskEntry]) -> str:
    lines = [f"- [`{entry.id}`]({entry.family}.md#{_anchor(entry)}): {entry.summary}" for entry in entries]
    return "\n".join(lines) + "\n"


def _anchor(entry: TaskEntry) -> str:
    """What GitHub makes of the heading."""
    return entry.id.lower().replace("/", "")


def _task(entry: TaskEntry, scores: _Scores) -> str:
    found = sections(entry)
    history = found.pop("Version History")
    arguments = found.pop("Arguments")
    for title in ("Action Space", "Observation Space"):
        found.pop(title)
    parts = [f"## {entry.id}\n", found.pop("Description") + "\n", _spaces(entry)]
    parts += [f"**{title}.** {text}\n" for title, text in found.items()]
    parts += ["**Options.**\n", _options(arguments), scores.of(entry), f"**Version history.**\n\n{history}\n"]
    return "\n".join(parts)


def _spaces(entry: TaskEntry) -> str:
    env: Any = gym.make(entry.id)
    task, spaces = env.unwrapped.task, env.observation_space.spaces
    rows = [("action", f"`{env.action_space}`: the next token")]
    rows += [(f"observation `{name}`", f"`{_box(space)}`") for name, space in spaces.items()]
    rows += [("longest answer, tokens", f"{task.max_new_tokens}")]
    rows += [(f"prompts, `{split}`", f"{len(task.prompt_set(split).texts):,}") for split in task.prompts]
    rows += [("beta", f"{task.beta:g} reward units per nat"), ("gamma", f"{task.gamma:g}")]
    env.close()
    return _table(("", ""), rows)


def _box(space: Any) -> str:
    low, high = space.low.flat[0], space.high.flat[0]
    return f"Box({low}, {high}, {space.shape}, {space.dtype})"


def _options(text: str) -> str:
    parts = _ARGUMENT.split("\n" + text)[1:]
    described = ((name, " ".join(body.split())) for name, body in zip(parts[::2], parts[1::2], strict=True))
    return "\n".join(f"- `{name}`: {body}" for name, body in described) + "\n"


class _Scores:
    """What agents score on a task."""

    def __init__(self, results: list[Result], summary: Summary) -> None:
        self._results, self._summary = results, summary

    def of(self, entry: TaskEntry) -> str:
        """A block for every reward and budget that the task was measured with."""
        problems = [problem for problem in self._summary.problems if problem.id == entry.id]
        return "\n".join(map(self._problem, problems)) or "**Scores.** No agent has been measured on it.\n"

    def _problem(self, problem: Problem) -> str:
        mine = [entry for entry in self._summary.entries if entry.problem == problem.index]
        ranked = sorted(mine, key=lambda entry: (-_known(entry.optimality.mean), -_known(entry.reward.mean)))
        head = ("agent", "optimality", "reward", "KL, nats", "tokens scored", "runs")
        title = f"**Scores after {problem.episodes:,} episodes{self._named(problem)}.** {self._optimum(problem)}\n"
        return title + "\n" + _table(head, map(_scored, ranked))

    @staticmethod
    def _named(problem: Problem) -> str:
        parts = [f"reward `{problem.reward}`"] if problem.reward != "default" else []
        parts += [f"`{name}={value}`" for name, value in problem.env.items()]
        return "".join(f", {part}" for part in parts)

    def _optimum(self, problem: Problem) -> str:
        for result in self._results:
            same = (result.cell.id, result.cell.reward_name, result.cell.episodes, dict(result.cell.env)) == (
                problem.id,
                problem.reward,
                problem.episodes,
                dict(problem.env),
            )
            optimum = (result.measures or {}).get("optimum") if same else None
            if optimum is not None and optimum["value"] is not None:
                best, base = optimum["value"], optimum["reference"]
                if optimum["exact"]:
                    return f"Exactly solved: J_ref = {base['mean']:.4f}, J* = {best['mean']:.4f}."
                return (
                    f"By importance sampling: J_ref = {_interval(base)}, J* = {_interval(best)}, "
                    f"which rests on {optimum['effective_samples']:.0f} effective samples a prompt."
                )
        return "The optimum is not known."


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _known(value: float | None) -> float:
    return float("-inf") if value is None else value


def _scored(entry: Entry) -> list[str]:
    counts = entry.counts
    runs = f"{counts.done}" if counts.done == counts.planned else f"{counts.done} of {counts.planned}"
    tokens = "-" if entry.tokens is None else f"{entry.tokens:,.0f}"
    return [
        f"`{entry.agent}`",
        _spread(entry.optimality),
        _spread(entry.reward),
        _spread(entry.kl),
        tokens,
        runs,
    ]


def _spread(spread: Spread) -> str:
    if spread.mean is None:
        return "-"
    if spread.low is None or spread.high is None:
        return f"{spread.mean:.3f}"
    return f"{spread.mean:.3f} [{spread.low:.3f}, {spread.high:.3f}]"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def main() -> None:
    """Writes the pages."""
    settings = tyro.cli(TaskPages, description=__doc__)
    make_folder(settings.out)
    for name, text in task_pages(load_results(settings.results)).items():
        write_text(settings.out / name, text)


if __name__ == "__main__":
    main()
