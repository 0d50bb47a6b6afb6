"""A page for each cell: its measures, curve, samples, settings and versions, and links to the files of its run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment

from textgym_benchmarks.pages.html import number
from textgym_benchmarks.report.drawing import Mark, draw_curve
from textgym_benchmarks.report.tables import Column, Table, Value, estimate, figure, words
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.summaries.grid import learning_time
from textgym_benchmarks.summaries.leaderboard import tokens_per_cpu_second

FILES = ("config.json", "metrics.jsonl", "samples.jsonl", "curve.png", "tensorboard", "checkpoint")
_MEASURES = {
    "reward": "Reward",
    "gold": "Gold reward",
    "kl": "KL to the reference, nats",
    "objective": "Objective J",
    "optimality": "Optimality",
    "entropy": "Entropy, nats an answer",
    "length": "Length, tokens",
    "stop_rate": "Share that stop",
    "distinct_1": "Distinct tokens, share",
    "distinct_2": "Distinct pairs, share",
}
_POINT = {
    "optimality": "Optimality",
    "reward": "Reward",
    "gold": "Gold",
    "kl": "KL",
    "objective": "J",
}


def cell_page(
    templates: Environment, result: Result, task: str, mark: Mark, folder: Path, samples: int
) -> str:
    """The page of one cell.

    Args:
        task: its label. mark: of its agent.
        folder: where the page will lie; files of the run are linked from there.
        samples: at most so many are shown.
    """
    measures = result.measures or {}
    shown = list(measures.get("samples") or [])
    curve = measures.get("curve") or []
    html: str = templates.get_template("cell.html").render(
        cell=_head(result, task, mark),
        measures=measures_table(measures) if measures else None,
        optimum=optimum_text(measures.get("optimum")),
        curve=_curve_table(curve) if curve else None,
        drawing=draw_curve(curve),
        samples=shown[:samples],
        left_out=max(len(shown) - samples, 0),
        facts=_facts(result),
        links=run_links(result, folder),
    )
    return html


def status_text(result: Result) -> str:
    """What became of a cell, in words."""
    texts = {"done": "Done.", "failed": "Failed.", "missing": "Not run yet, or still running."}
    return texts.get(result.status, result.status)


def run_links(result: Result, folder: Path) -> list[tuple[str, str]]:
    """Names and relative addresses of the files of a run that exist, seen from a folder."""
    run = run_folder(result)
    if result.folder is None or run is None:
        return []
    places = [("run", run), ("result.json", result.folder / "result.json")]
    places += [(name, run / name) for name in FILES]
    return [(name, relative_address(path, folder)) for name, path in places if path.exists()]


def run_folder(result: Result) -> Path | None:
    """The folder of the training run: beside the result of a cell, or what was read itself; None if it is gone."""
    if result.folder is None:
        return None
    beside = result.folder / "run"
    if beside.is_dir():
        return beside
    return result.folder if (result.folder / "config.json").is_file() else None


def relative_address(path: Path, folder: Path) -> str:
    """The address of a file or folder in a page that lies in `folder`; a folder's ends in a slash."""
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return quote(Path(relative).as_posix()) + ("/" if path.is_dir() else "")


def measures_table(measures: Mapping[str, Any]) -> Table:
    """What was measured before and after learning."""
    before, after = measures.get("before") or {}, measures.get("after") or {}
    rows = [
        (words(label), _measure(before.get(name)), _measure(after.get(name)))
        for name, label in _MEASURES.items()
        if before.get(name) is not None or after.get(name) is not None
    ]
    return Table((Column("", numeric=False), Column("Before"), Column("After")), tuple(rows))


def optimum_text(optimum: Mapping[str, Any] | None) -> str:
    """The optimum and the reference's objective in a sentence."""
    if not optimum:
        return ""
    if not optimum["value"]:
        return f"J* is not known: {optimum.get('unknown') or 'no sample tells it'}."
    value, reference = (_in_words(optimum[name]) for name in ("value", "reference"))
    how = "exact" if optimum.get("exact") else "estimated by importance sampling"
    samples = optimum.get("effective_samples")
    effective = "" if samples is None else f"; {number(samples, 0)} effective samples a prompt"
    beta = optimum["beta"]
    return f"Optimum J* = {value}, reference J = {reference}, at beta = {beta:g} a nat ({how}{effective})."


def _in_words(value: Mapping[str, Any]) -> str:
    shown = estimate(value)
    return f"{shown.text} {shown.note}".strip()


def _measure(value: Any) -> Value:
    return estimate(value) if isinstance(value, Mapping) else figure(value)


def _head(result: Result, task: str, mark: Mark) -> dict[str, Any]:
    return {
        "task": task,
        "agent": mark.name,
        "seed": result.cell.seed,
        "mark": mark,
        "status": result.status,
        "status_text": status_text(result),
        "error": result.error,
    }


def _curve_table(curve: Sequence[Mapping[str, Any]]) -> Table:
    shown = [name for name in _POINT if any(point.get(name) is not None for point in curve)]
    columns = [Column("Episodes"), Column("Tokens"), *(Column(_POINT[name]) for name in shown)]
    rows = []
    for point in curve:
        values = [figure(point["episode"], 0), figure(point["tokens"], 0)]
        for name in shown:
            ends = {"mean": point.get(name)}
            if name == "optimality":
                ends |= {"low": point.get("optimality_low"), "high": point.get("optimality_high")}
            values.append(estimate(ends))
        rows.append(tuple(values))
    return Table(tuple(columns), tuple(rows))


def _facts(result: Result) -> list[tuple[str, str]]:
    cell, timing, measures = result.cell, result.timing or {}, result.measures or {}
    facts = [
        ("Environment", cell.id),
        ("Reward", cell.reward_name if cell.reward is None else f"{cell.reward_name}: {_json(cell.reward)}"),
        ("Agent", cell.agent),
        ("Budget", f"{cell.episodes:,} episodes"),
    ]
    facts += [
        (name, _json(value)) for name, value in (("Options", cell.env), ("Settings", cell.config)) if value
    ]
    if measures:
        facts.append(("Used", f"{measures['episodes']:,} episodes, {measures['tokens']:,} tokens scored"))
        for name, share in (("to_half", "0.5"), ("to_nine_tenths", "0.9")):
            facts.append((f"Optimality {share}", _reached(measures.get(name), timing.get(f"seconds_{name}"))))
    facts += _times(result)
    facts += [("Machine", result.machine)] if result.machine else []
    facts += [
        ("Versions", ", ".join(f"{name} {version}" for name, version in (result.versions or {}).items()))
    ]
    return [*facts, ("Key", cell.key)]


def _times(result: Result) -> list[tuple[str, str]]:
    """The whole run's time, that of learning and its throughput, as far as they are known."""
    timing = result.timing or {}
    whole = _time(timing.get("seconds"), timing.get("cpu_seconds"))
    learning = _time(learning_time(result, "seconds"), learning_time(result, "cpu_seconds"))
    speed = tokens_per_cpu_second([result])
    found = [("Time", whole), ("Time of learning", learning)]
    found.append(
        ("Throughput", "" if speed is None else f"{number(speed, 0)} tokens per CPU second of learning")
    )
    return [(name, text) for name, text in found if text]


def _time(seconds: float | None, cpu_seconds: float | None) -> str:
    parts = [] if seconds is None else [f"{number(seconds, 1)} s"]
    if cpu_seconds is not None:
        parts.append(f"{number(cpu_seconds, 1)} s CPU")
    return ", of it ".join(parts)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _reached(crossing: Mapping[str, Any] | None, seconds: float | None) -> str:
    if not crossing:
        return "not reached"
    after = f"after {number(crossing['episodes'], 0)} episodes, {number(crossing['tokens'], 0)} tokens"
    return after if seconds is None else f"{after}, {number(seconds, 1)} s"
