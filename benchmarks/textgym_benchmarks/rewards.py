"""Speed of the rewards on one core, alone and through the Scorer: `python -m textgym_benchmarks.rewards`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import textgym  # noqa: F401  (registers the rewards of the built-in world)
from textgym.rewards import Scorer, make_reward
from textgym_benchmarks.timing import time_once

GOAL = 200_000  # completions a second, for the rewards that are asked for it
TEXT = "the soup was good and hot in a town by lovely river awful bread I think it of people red 7 plus 12 is"

SPECS: dict[str, Any] = {
    "length": {"name": "length", "target": 8},
    "length, tokens": {"name": "length", "target": 8, "unit": "tokens"},
    "contains_all, 3 words": {"name": "contains_all", "words": ["soup", "river", "red"]},
    "keywords, 3 words": {"name": "keywords", "words": ["soup", "river", "red"]},
    "keywords, column": {"name": "keywords", "column": "words"},
    "pattern, full": {"name": "pattern", "pattern": "[a-zA-Z ]*[0-9]+ .*"},
    "pattern, search": {"name": "pattern", "pattern": r"\b[0-9]+ (is|was)\b", "mode": "search"},
    "format": {"name": "format", "template": "the {what} was {how}"},
    "arithmetic": "arithmetic",
    "json_schema": {"name": "json_schema", "schema": {"type": "object"}},
    "json_values": "json_values",
    "charset": "charset",
    "length_penalty": {"name": "length_penalty", "limit": 8},
    "missing_stop": {"name": "missing_stop", "stop_ids": [3]},
    "no_repeat, 2 words": "no_repeat",
    "sentiment": "sentiment",
    "bleu": "bleu",
    "chrf": "chrf",
    "rouge, rougeL": "rouge",
    "helpful_rules": "helpful_rules",
    "clipped, length": {"name": "clipped", "reward": "length"},
    "running_norm, length": {"name": "running_norm", "reward": "length"},
    "weighted, 3 terms": {
        "name": "weighted",
        "rewards": {
            "length": "length",
            "words": {"name": "contains_all", "words": ["soup", "river"]},
            "stop": {"name": "missing_stop", "stop_ids": [3]},
        },
    },
    "from_messages, length": {"name": "from_messages", "reward": "length"},
}
# The data column that a reward reads; every one gets `completion_ids` besides.
COLUMN = {
    "keywords, column": "words",
    "arithmetic": "answer",
    "json_values": "value",
    "bleu": "reference",
    "chrf": "reference",
    "rouge, rougeL": "reference",
    "helpful_rules": "item",
}
WITH_GOAL = ("length", "contains_all", "keywords", "pattern")


@dataclass(frozen=True)
class RewardSpeed:
    """What to measure."""

    only: tuple[str, ...] = ()
    """Rewards whose rows begin so; by default all."""
    batch: int = 1024
    """Completions a call."""
    characters: int = 40
    """Length of a completion, about."""
    rounds: int = 15
    """Measurements of each; the median is reported."""
    as_json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Row:
    """One reward: completions a second, called directly and through `Scorer.score`, in CPU time."""

    what: str
    alone: float
    scored: float
    goal: float | None


def make_batch(count: int, characters: int) -> tuple[list[str], list[str], dict[str, list[Any]]]:
    """Prompts, completions and columns, always the same ones."""
    generator = np.random.default_rng(0)
    vocabulary, texts = TEXT.split(), []
    for _ in range(count):
        words: list[str] = []
        while sum(map(len, words)) + len(words) < characters:
            words.append(vocabulary[generator.integers(len(vocabulary))])
        texts.append(" ".join(words))
    columns: dict[str, list[Any]] = {
        "completion_ids": [[*generator.integers(4, 1024, size=12).tolist(), 3] for _ in texts],
        "answer": [int(number) for number in generator.integers(1, 20, size=count)],
        "reference": texts[1:] + texts[:1],
        "value": [{"answer": 1}] * count,
        "words": [generator.choice(vocabulary[:12], 3, replace=False).tolist() for _ in texts],
        "item": ["sum:7+5"] * count,
    }
    return ["What is 7 plus 5?"] * count, texts, columns


def measure(settings: RewardSpeed) -> list[Row]:
    """Times every reward, alone and scored in turn."""
    prompts, texts, columns = make_batch(settings.batch, settings.characters)
    rows = []
    for what, spec in SPECS.items():
        if settings.only and not what.startswith(settings.only):
            continue
        own = {name: columns[name] for name in ("completion_ids", COLUMN.get(what)) if name is not None}
        alone = partial(make_reward(spec), prompts=prompts, completions=texts, **own)
        scored = partial(Scorer(spec).score, prompts, texts, own)
        rates = [settings.batch / seconds for seconds in median_seconds([alone, scored], settings.rounds)]
        goal = GOAL if what.startswith(WITH_GOAL) and "penalty" not in what else None
        rows.append(Row(what, rates[0], rates[1], goal))
    return rows


def median_seconds(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU seconds of each, run in turn, after one round that only warms up; short ones run repeatedly."""
    repeats = [max(1, int(0.01 / max(time_once(f, time.process_time), 1e-5))) for f in functions]
    samples: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, repeat, sample in zip(functions, repeats, samples, strict=True):
            start = time.process_time()
            for _ in range(repeat):
                function()
            sample.append((time.process_time() - start) / repeat)
    return [median(sample) for sample in samples]


def main() -> None:
    """Measures and prints."""
    settings = tyro.cli(RewardSpeed, description=__doc__)
    rows = measure(settings)
    if settings.as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    table = Table("reward", "alone, 1/s", "through the Scorer, 1/s", "goal", "")
    for row in rows:
        reached = "" if row.goal is None else "yes" if row.scored >= row.goal else "no"
        goal = "" if row.goal is None else f">= {row.goal:,.0f}"
        table.add_row(row.what, f"{row.alone:,.0f}", f"{row.scored:,.0f}", goal, reached)
    Console().print(table)


if __name__ == "__main__":
    main()
