"""Compare the results of two versions: `python -m textgym_benchmarks.results.compare OLD NEW`.

An agent's runs on a problem are compared by their mean J, or their mean reward where J is not known. The exit code is 1
if the versions differ by more than chance explains (`faults`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import tyro
from tyro.conf import Positional

from textgym.checks import Floats
from textgym.commands import console
from textgym_benchmarks.results.store import Result, load_results
from textgym_benchmarks.statistics import CONFIDENCE, leads
from textgym_benchmarks.summaries.grid import finals, make_grid

SAME: Final = 1e-5
"""A difference of means up to this, or up to this share of a mean above 1, is rounding."""
CHANCE: Final = 0.025
"""Probability that a rule of `faults` speaks where nothing has changed, at most."""


class Change(NamedTuple):
    """Final scores of an agent on a problem. Args: old, new: (S,) and (S',) those of two runs at least."""

    agent: str
    problem: str
    old: Floats
    new: Floats

    @property
    def varies(self) -> bool:
        """Whether the runs of one of the versions differ."""
        return bool(max(np.ptp(self.old), np.ptp(self.new)) > SAME)

    def outside(self, confidence: float = CONFIDENCE) -> bool:
        """Return whether Welch's interval of the difference of means leaves 0 out. Runs that never vary have none."""
        ahead, low, high = leads(self.new[:, None], self.old[:, None], confidence)[:, 0]
        return not low <= 0 <= high and abs(ahead) > SAME * max(1.0, abs(self.old.mean()))


def changes(old: Sequence[Result], new: Sequence[Result]) -> tuple[list[Change], int]:
    """Return what can be compared, and how many pairs of agent and problem cannot: they lack two runs on a side."""
    sides = [{each.cell.key: each for each in results} for results in (old, new)]
    grid, found = make_grid([*(sides[0] | sides[1]).values()]), []
    for (agent, index), runs in grid.runs.items():
        both = [[side[run.cell.key] for run in runs if run.cell.key in side] for side in sides]
        for measure in ("objective", "reward"):
            before, after = (np.array(finals(each, measure)) for each in both)
            if min(len(before), len(after)) > 1:
                found.append(Change(agent, grid.problems[index].label, before, after))
                break
    return found, len(grid.runs) - len(found)


def faults(old: Sequence[Result], new: Sequence[Result], found: Sequence[Change]) -> list[str]:
    """Return in what two versions differ by more than chance explains; [] for nothing.

    A run that fails now; a difference outside an interval of confidence 1 - CHANCE / comparisons (Bonferroni, which
    speaks exactly where Holm does); so many outside of their 95% intervals that the binomial distribution gives these
    or more less than CHANCE.
    """
    from scipy.stats import binom  # type: ignore[import-untyped]  # slow to import

    failed = {each.cell.key for each in new if each.status == "failed"}
    failed -= {each.cell.key for each in old if each.status == "failed"}
    far = [f"{each.agent} on {each.problem}" for each in found if each.outside(1 - CHANCE / len(found))]
    varying = [each.outside() for each in found if each.varies]
    many = binom.sf(sum(varying) - 1, len(varying), 1 - CONFIDENCE) < CHANCE
    said = [f"failed now: {', '.join(sorted(failed))}"] if failed else []
    said += [f"too far to be chance among {len(found)}: {', '.join(far)}"] if far else []
    return said + ([f"too many to be chance: {sum(varying)} of {len(varying)} that vary"] if many else [])


def compare(old: Positional[Path], new: Positional[Path]) -> None:
    """Print which means have left their 95% intervals; the exit code is 1 if that is more than chance explains.

    Args:
        old: a file of results, or a suite's folder.
        new: the same of the other version.
    """
    before, after = load_results(old), load_results(new)
    found, left_out = changes(before, after)
    shown = console.table("agent", "problem", *map(console.number, ("old", "new", "difference [95%]")))
    for each in (outside := [each for each in found if each.outside()]):
        ahead, low, high = leads(each.new[:, None], each.old[:, None])[:, 0]
        means = (f"{each.old.mean():.4f}", f"{each.new.mean():.4f}", f"{ahead:+.4f} [{low:+.4f}, {high:+.4f}]")
        shown.add_row(console.untrusted(each.agent), console.untrusted(each.problem), *means)
    if outside:
        console.output().print(shown)
    chance = (1 - CONFIDENCE) * sum(each.varies for each in found)
    print(f"{len(outside)} of {len(found)} outside of their 95% intervals; by chance {chance:.1f}")
    if left_out:
        print(f"{left_out} not compared: fewer than two runs in one of the versions")
    if said := faults(before, after, found):
        raise SystemExit("\n".join(said))


if __name__ == "__main__":
    console.script(lambda: tyro.cli(compare))
