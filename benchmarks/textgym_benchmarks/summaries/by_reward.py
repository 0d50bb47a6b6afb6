"""Agents across the rewards of one task: ranks, orders that one reward turns, and texts on which rewards disagree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from textgym.checks import Floats
from textgym_benchmarks.statistics import (
    COMPARED_REPLICATES,
    Interval,
    percentile_interval,
    run_counts,
    strata_of,
)
from textgym_benchmarks.suite import canonical
from textgym_benchmarks.summaries.grid import Grid, RankedTask, at, finals, finite, generator_of

SHOWN = 8
"""Completions of a task on which rewards disagree most."""


@dataclass(frozen=True)
class Turn(Interval):
    """How likely one reward orders two agents the other way round than another reward does.

    Attributes:
        value: P(the agent with the higher J under one reward has the lower one under the other), each of the four runs
            drawn by itself, ties counted half: p (1 - q) + q (1 - p). Two agents that no reward tells apart have 0.5.
        low, high: by bootstrap over the runs; None where an agent has a single run.
        agents: their names. rewards: indices of the two problems.
        over: p and q, P(the first agent has the higher J) under each reward.
        turned: whether the means over runs are in another order.
    """

    agents: tuple[str, str]
    rewards: tuple[int, int]
    over: tuple[float, float]
    turned: bool


@dataclass(frozen=True)
class RewardPair(Interval):
    """Two rewards: the mean of `Turn.value` over all pairs of agents, and how many of them are turned.

    Attributes:
        rewards: indices of the two problems. turned, of: pairs of agents.
    """

    rewards: tuple[int, int]
    turned: int
    of: int


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
        turns: of every pair of rewards and pair of agents. pairs: of every pair of rewards.
        disagreements: the most first. pool: completions that they are chosen from.
    """

    label: str
    problems: tuple[int, ...]
    ranks: tuple[Mapping[str, int], ...]
    turns: tuple[Turn, ...]
    pairs: tuple[RewardPair, ...]
    disagreements: tuple[Disagreement, ...]
    pool: int


def across_rewards(grid: Grid, seed: int) -> list[AcrossRewards]:
    """Return one for each task, with its options and budget, that has several rewards."""
    groups: dict[str, list[RankedTask]] = {}
    for problem in grid.problems:
        groups.setdefault(canonical([problem.id, dict(problem.env), problem.episodes]), []).append(problem)
    return [_across(grid, problems, seed) for problems in groups.values() if len(problems) > 1]


def _across(grid: Grid, problems: Sequence[RankedTask], seed: int) -> AcrossRewards:
    runs: dict[int, dict[str, Floats]] = {}
    for problem in problems:
        found = {agent: finals(grid.of(agent, problem.index), "objective") for agent in grid.agents}
        runs[problem.index] = {agent: np.array(values) for agent, values in found.items() if values}
    turns: list[Turn] = []
    pairs: list[RewardPair] = []
    for first, second in combinations(runs, 2):
        compared, pair = _compare(runs, (first, second), seed)
        turns += compared
        pairs += [pair] if pair.of else []
    pool = _pool(grid, problems)
    name = problems[0].id.rpartition(":")[2].removeprefix("textgym/")
    options = [f"{option} {canonical(value)}" for option, value in problems[0].env.items()]
    return AcrossRewards(
        label=", ".join([name, *options]),
        problems=tuple(runs),
        ranks=tuple(_ranks(known) for known in runs.values()),
        turns=tuple(turns),
        pairs=tuple(pairs),
        disagreements=tuple(_most(pool)),
        pool=len(pool),
    )


def _ranks(runs: Mapping[str, Floats]) -> dict[str, int]:
    """Return agent -> 1 + how many have a greater mean: equal means share a rank."""
    means = {agent: float(values.mean()) for agent, values in runs.items()}
    return {agent: 1 + sum(other > mean for other in means.values()) for agent, mean in means.items()}


def _compare(
    runs: Mapping[int, Mapping[str, Floats]], rewards: tuple[int, int], seed: int
) -> tuple[list[Turn], RewardPair]:
    """Return the turns of all agents that have a J under both rewards, and their mean, from the same draws."""
    agents = [agent for agent in runs[rewards[0]] if agent in runs[rewards[1]]]
    drawn = {
        (reward, agent): run_counts(
            strata_of([runs[reward][agent].tolist()]),
            COMPARED_REPLICATES,
            generator_of(seed, "turn", str(reward), agent),
        )[0]
        for reward in rewards
        for agent in agents
    }
    turns: list[Turn] = []
    all_drawn: list[Floats] = []
    ends: Ends = (None, None)
    for pair in combinations(agents, 2):
        over, drawn_over, signs = [], [], []
        for reward in rewards:
            a, b = (runs[reward][agent] for agent in pair)
            won = (a[:, None] > b) + 0.5 * (a[:, None] == b)  # (R, S)
            over.append(float(won.mean()))
            counts = [drawn[reward, agent] for agent in pair]
            drawn_over.append(np.einsum("br,rs,bs->b", counts[0], won, counts[1]) / won.size)
            signs.append(np.sign(a.mean() - b.mean()))
        all_drawn.append(_turned(drawn_over[0], drawn_over[1]))
        several = all(len(runs[reward][agent]) > 1 for reward in rewards for agent in pair)
        ends = _ends(all_drawn[-1]) if several else (None, None)
        turned = bool(signs[0] * signs[1] < 0)
        value = float(_turned(np.array(over[0]), np.array(over[1])))
        turns.append(Turn(value, *ends, pair, rewards, (over[0], over[1]), turned))
    if not turns:
        return [], RewardPair(None, None, None, rewards, 0, 0)
    ends = _ends(np.mean(all_drawn, 0)) if all(turn.low is not None for turn in turns) else (None, None)
    mean = float(np.mean([turn.value for turn in turns]))
    return turns, RewardPair(mean, *ends, rewards, sum(turn.turned for turn in turns), len(turns))


def _turned(p: Floats, q: Floats) -> Floats:
    """Return the probability that of two independent events, of probability p and q, one happens and not the other."""
    return p * (1.0 - q) + q * (1.0 - p)


Ends = tuple[float | None, float | None]


def _ends(replicates: Floats) -> Ends:
    low, high = percentile_interval(replicates)
    return float(low), float(high)


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
