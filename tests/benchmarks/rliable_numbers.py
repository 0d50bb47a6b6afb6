"""A fixed table of scores, and what rliable computes from it: `python tests/benchmarks/rliable_numbers.py`.

It writes data/rliable.json. rliable draws from numpy's global generator whatever `random_state` it is given, so the
global one is seeded before each of its calls; the indices that it draws can then be drawn again.
"""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data" / "rliable.json"
SHAPES = {"steady": (5, 12), "patchy": (5, 12), "weak": (3, 12), "tied": (5, 12)}
"""Agent -> runs and tasks."""
SEED, REPLICATES = 7, 100
THRESHOLDS = [round(-0.5 + 0.1 * step, 2) for step in range(21)]
RESAMPLED_PAIRS = (("steady", "weak"), ("tied", "steady"))
"""Pairs whose probability of improvement gets an interval: rliable takes a second for each."""

Table = dict[str, NDArray[np.float64]]


def make_table() -> Table:
    """Scores with two digits, so that some are tied; agent -> (runs, tasks)."""
    generator = np.random.default_rng(20211122)
    levels = {"steady": (0.7, 0.1), "patchy": (0.6, 0.5), "weak": (0.2, 0.3), "tied": (0.7, 0.1)}
    table = {name: np.round(generator.normal(*levels[name], size=SHAPES[name]), 2) for name in SHAPES}
    table["tied"][:, :4] = table["steady"][:, :4]  # rliable treats equal columns apart
    return table


def compute(table: Table) -> dict[str, Any]:
    """rliable's numbers."""
    from rliable import library, metrics

    points = {
        "iqm": metrics.aggregate_iqm,
        "mean": metrics.aggregate_mean,
        "median": metrics.aggregate_median,
        "optimality_gap": metrics.aggregate_optimality_gap,
    }
    numbers: dict[str, Any] = {"point": {}, "interval": {}, "profile": {}, "band": {}, "improvement": {}}
    numbers["improvement_interval"] = {}
    for agent, scores in table.items():
        numbers["point"][agent] = {name: float(point(scores)) for name, point in points.items()}
        numbers["interval"][agent] = {}
        for name, point in points.items():
            np.random.seed(SEED)  # noqa: NPY002  (rliable reads no other)
            _, ends = library.get_interval_estimates(
                {agent: scores}, lambda x, point=point: np.array([point(x)]), reps=REPLICATES
            )
            numbers["interval"][agent][name] = ends[agent][:, 0].tolist()
        np.random.seed(SEED)  # noqa: NPY002
        shares, bands = library.create_performance_profile({agent: scores}, np.array(THRESHOLDS), reps=REPLICATES)
        numbers["profile"][agent], numbers["band"][agent] = shares[agent].tolist(), bands[agent].tolist()
    for first, second in permutations(table, 2):
        pair, scores_pair = f"{first} over {second}", [table[first], table[second]]
        numbers["improvement"][pair] = float(metrics.probability_of_improvement(*scores_pair))
        if (first, second) in RESAMPLED_PAIRS:
            np.random.seed(SEED)  # noqa: NPY002
            _, ends = library.get_interval_estimates(
                {pair: scores_pair},
                lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
                reps=REPLICATES,
            )
            numbers["improvement_interval"][pair] = ends[pair][:, 0].tolist()
    return numbers


def main() -> None:
    """Writes the table and the numbers."""
    table = make_table()
    data = {
        "made_by": "python tests/benchmarks/rliable_numbers.py",
        "seed": SEED,
        "replicates": REPLICATES,
        "thresholds": THRESHOLDS,
        "table": {agent: scores.tolist() for agent, scores in table.items()},
        "rliable": compute(table),
    }
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
