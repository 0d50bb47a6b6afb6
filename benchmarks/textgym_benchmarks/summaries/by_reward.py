"""Agents across the rewards of one task: ranks, orders that one reward turns, and texts on which rewards disagree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from textgym.checks import Floats
from textgym_benchmarks.statistics import COMPARED_REPLICATES, Interval, percentile_interval, run_counts, strata_of
from textgym_benchmarks.suite import canonical
from textgym_benchmarks.summaries.grid import Grid, RankedTask, at, finals, finite, generator_of

DIGITS = 9
"""Decimals of J that count: exact values that are equal differ by rounding."""
SHOWN = 8
"""Completions of a task on which rewards disagree most."""


@dataclass(frozen=True)
class TurnedOrder(Interval):
    """How likely one reward orders agents the other way round than another reward does.

    Attributes:
        value: P(the agent with the higher J under one reward has the lower one under the other), each of the four runs
            drawn by itself, ties counted half: p (1 - q) + q (1 - p). Two agents that no reward tells apart have 0.5.
            Of several pairs of agents, the mean.
        low, high: by bootstrap over the runs; None where an agent has a single run.
        rewards: indices of the two problems. agents: the pairs.
        over: of each pair p and q, P(the first agent has the higher J) under each reward.
        turned: pairs whose means over runs are in another order.
    """

    rewards: tuple[int, int]
    agents: tuple[tuple[str, str], ...]
    over: tuple[tuple[float, float], ...]
    turned: int


@dataclass(frozen=True)
class Disagreement:
    """A completion on which the rewards of a task disagree.

    Attributes:
        prompt, completion: texts. key: of the cell whose agent wrote it, after learning.
        scores: reward -> what it pays. shares: reward -> share of the other completions that it pays less, ties half.
        spread: the greatest less the least of the shares.
    """

    prompt: str
    completion: str
    key: str
    scores: Mapping[str, float]
    shares: Mapping[str, float]
    spread: float


@dataclass(frozen=True)
class AcrossRewards:
    """A task that agents learned under several rewards.

    Attributes:
        label: of the task. problems: indices, one for each reward.
        ranks: of each problem, agent -> rank by mean J, from 1; agents without a J have none.
        turns: for every pair of rewards, of all pairs of agents that have a J under both, and then of each alone.
        disagreements: the most first. pool: completions that they are chosen from.
    """

    label: str
    problems: tuple[int, ...]
    ranks: tuple[Mapping[str, int], ...]
    turns: tuple[TurnedOrder, ...]
    disagreements: tuple[Disagreement, ...]
    pool: int


def across_rewards(grid: Grid, seed: int) -> list[AcrossRewards]:
    """Return one for each task, with its options, budget and beta, that has several rewards.

    A problem whose beta is not known yet belongs to the first one that is.
    """
    groups: dict[str, dict[float | None, list[RankedTask]]] = {}
    for problem in grid.problems:
        task = canonical([problem.id, dict(problem.env), problem.episodes])
        groups.setdefault(task, {}).setdefault(problem.beta, []).append(problem)
    found = []
    for betas in groups.values():
        unknown = betas.pop(None, [])
        first, *others = betas.values() or ([],)
        found += [sorted([*first, *unknown], key=lambda problem: problem.index), *others]
    return [_across(grid, problems, seed) for problems in found if len(problems) > 1]


def _across(grid: Grid, problems: Sequence[RankedTask], seed: int) -> AcrossRewards:
    runs = [
        {
            agent: np.round(js, DIGITS)
            for agent in grid.agents
            if (js := finals(grid.of(agent, each.index), "objective"))
        }
        for each in problems
    ]
    over = {each.index: _over(found, each.index, seed) for each, found in zip(problems, runs, strict=True)}
    pool = _pool(grid, problems)
    name = problems[0].id.rpartition(":")[2].removeprefix("textgym/")
    return AcrossRewards(
        label=", ".join([name, *(f"{option} {canonical(value)}" for option, value in problems[0].env.items())]),
        problems=tuple(over),
        ranks=tuple(_ranks(found) for found in runs),
        turns=tuple(turn for pair in combinations(over, 2) for turn in _turns(over, pair)),
        disagreements=tuple(_most(pool)),
        pool=len(pool),
    )


def _ranks(runs: Mapping[str, Floats]) -> dict[str, int]:
    """Return agent -> 1 + how many have a greater mean: equal means share a rank."""
    means = {agent: round(float(values.mean()), DIGITS) for agent, values in runs.items()}
    return {agent: 1 + sum(other > mean for other in means.values()) for agent, mean in means.items()}


Over = Mapping[tuple[str, str], tuple[Floats, float]]
"""Two agents -> P(a run of the first has the higher J), then its replicates (1 + B,), none of single runs; and the
difference of their means."""


def _over(runs: Mapping[str, Floats], problem: int, seed: int) -> Over:
    counts = {
        agent: run_counts(
            strata_of([found.tolist()]), COMPARED_REPLICATES, generator_of(seed, "turn", str(problem), agent)
        )[0]
        for agent, found in runs.items()
    }  # (B, R) each
    over = {}
    for first, second in combinations(runs, 2):
        a, b = runs[first], runs[second]
        won = (a[:, None] > b) + 0.5 * (a[:, None] == b)  # (R, S)
        drawn = np.einsum("br,rs,bs->b", counts[first], won, counts[second]) / won.size
        several = len(a) > 1 and len(b) > 1
        over[first, second] = (
            np.array([won.mean(), *(drawn if several else ())]),
            round(float(a.mean() - b.mean()), DIGITS),
        )
    return over


def _turns(over: Mapping[int, Over], rewards: tuple[int, int]) -> list[TurnedOrder]:
    """Return the turn of all pairs of agents that are ordered under both rewards, then that of each."""
    one, two = (over[reward] for reward in rewards)
    found = {}
    for pair in one.keys() & two.keys():
        (p, gap), (q, other_gap) = one[pair], two[pair]
        shared = min(len(p), len(q))
        found[pair] = p[:shared] * (1.0 - q[:shared]) + q[:shared] * (1.0 - p[:shared]), gap * other_gap < 0

    def turn(pairs: Sequence[tuple[str, str]]) -> TurnedOrder:
        shared = min(len(found[pair][0]) for pair in pairs)
        value, *drawn = np.mean([found[pair][0][:shared] for pair in pairs], axis=0)
        low, high = map(float, percentile_interval(np.array(drawn))) if drawn else (None, None)
        both = tuple((float(one[pair][0][0]), float(two[pair][0][0])) for pair in pairs)
        return TurnedOrder(float(value), low, high, rewards, tuple(pairs), both, sum(found[pair][1] for pair in pairs))

    pairs = [pair for pair in one if pair in found]
    return [turn(each) for each in ([pairs] if pairs else []) + [[pair] for pair in pairs]]


def _pool(grid: Grid, problems: Sequence[RankedTask]) -> list[tuple[str, str, str, dict[str, float]]]:
    """Return prompt, completion, cell and scores of the different completions that all rewards have scored.

    A reward that has scored none, as it always fails, is left out.
    """
    samples = [
        (run.cell.key, sample)
        for problem in problems
        for agent in grid.agents
        for run in grid.of(agent, problem.index)
        for sample in at(run.measures, "samples") or ()
    ]
    names = [problem.reward for problem in problems]
    scores = [{name: finite(at(sample, "after", "rewards", name)) for name in names} for _, sample in samples]
    names = [
        name for name in names if any(row[name] is not None for row in scores)
    ]  # one that always fails says nothing
    found: dict[tuple[str, str], tuple[str, str, str, dict[str, float]]] = {}
    for (key, sample), row in zip(samples, scores, strict=True):
        known = {name: score for name in names if (score := row[name]) is not None}
        if len(known) == len(names) > 1:
            texts = sample["prompt"], sample["after"]["completion"]
            found.setdefault(texts, (*texts, key, known))
    return list(found.values())


def _most(pool: Sequence[tuple[str, str, str, dict[str, float]]]) -> Iterable[Disagreement]:
    """Return the completions of a pool with the greatest spread of shares, a quarter of them at most."""
    if len(pool) < 2:
        return []
    shares: list[dict[str, float]] = [{} for _ in pool]
    for name in pool[0][-1]:
        values = np.array([scores[name] for *_, scores in pool])
        less = (values[None] < values[:, None]).sum(1) + 0.5 * ((values[None] == values[:, None]).sum(1) - 1)
        for share, place in zip(shares, less / (len(pool) - 1), strict=True):
            share[name] = float(place)
    found = [
        Disagreement(*row, share, max(share.values()) - min(share.values()))
        for row, share in zip(pool, shares, strict=True)
    ]
    return sorted(found, key=lambda each: -each.spread)[: min(SHOWN, -(-len(pool) // 4))]
