"""The part of the index about rewards: every agent under each, orders that turn, texts that they disagree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from textgym_benchmarks.report.sections import SAME, agent_column
from textgym_benchmarks.report.tables import (
    Column,
    ColumnOf,
    ReportTable,
    Value,
    estimate,
    figure,
    make_table,
)
from textgym_benchmarks.summaries import Summary
from textgym_benchmarks.summaries.by_reward import AcrossRewards, RewardPair, Turn
from textgym_benchmarks.summaries.charts import Curve
from textgym_benchmarks.summaries.entries import AgentScores, best_first
from textgym_benchmarks.summaries.grid import RankedTask


@dataclass(frozen=True)
class RewardChart:
    """Reward against gold on one problem, and its numbers."""

    problem: RankedTask
    table: ReportTable


@dataclass(frozen=True)
class RewardSection:
    """One task under several rewards.

    Args:
        task: its words and numbers.
        scores: a row for each agent and reward. ranks: agents by rewards.
        pairs: of rewards, with the orders that they turn; turns: the same for every pair of agents. No rows where
            fewer than two agents have a J.
        charts: of the rewards that have a gold reward beside them.
    """

    task: AcrossRewards
    scores: ReportTable
    ranks: ReportTable
    pairs: ReportTable
    turns: ReportTable
    charts: tuple[RewardChart, ...]


def reward_sections(summary: Summary, agents: Mapping[str, int]) -> list[RewardSection]:
    """Return a section for each task that agents learned under several rewards.

    Args:
        agents: name -> index of its style.
    """
    return [_section(summary, task, agents) for task in summary.across]


def _section(summary: Summary, task: AcrossRewards, agents: Mapping[str, int]) -> RewardSection:
    names = {index: summary.problems[index].reward for index in task.problems}
    entries = [entry for index in task.problems for entry in best_first(_of(summary, index))]
    there = [agent for agent in summary.agents if any(entry.agent == agent for entry in entries)]
    return RewardSection(
        task=task,
        scores=_scores(task, entries, names, agents),
        ranks=make_table(
            there,
            [
                (Column("Agent", numeric=False, descending=False), lambda agent: Value(agent, agent=agents[agent])),
                *((Column(names[i], descending=False), partial(_rank, task, i)) for i in task.problems),
            ],
            sortable=True,
        ),
        pairs=make_table(task.pairs, _pair_columns(names)),
        turns=make_table(task.turns, _turn_columns(names)),
        charts=tuple(_charts(summary, task, agents)),
    )


def _of(summary: Summary, problem: int) -> list[AgentScores]:
    return [entry for entry in summary.entries if entry.problem == problem]


def _rank(task: AcrossRewards, problem: int, agent: str) -> Value:
    ranks = task.ranks[task.problems.index(problem)]
    return figure(ranks.get(agent), 0)


def _scores(
    task: AcrossRewards, entries: Sequence[AgentScores], names: Mapping[int, str], agents: Mapping[str, int]
) -> ReportTable:
    columns: list[ColumnOf[AgentScores]] = [
        (Column("Reward", numeric=False, descending=False), lambda entry: Value(names[entry.problem])),
        agent_column(agents, descending=False),
        (
            Column("Own reward", "What the agent was paid; its unit is the reward's"),
            lambda entry: estimate(entry.reward),
        ),
        (Column("Gold", "The reward that the task is really about"), lambda entry: estimate(entry.gold)),
        (Column("J", "Own reward less beta times KL"), lambda entry: estimate(entry.objective)),
        (Column("KL", "To the reference, nats an answer", descending=False), lambda entry: estimate(entry.kl)),
        (Column("Optimality"), lambda entry: estimate(entry.optimality, 2)),
        (Column("Rank", "By J, under this reward", descending=False), lambda e: _rank(task, e.problem, e.agent)),
        (
            Column("Runs"),
            lambda entry: Value(f"{entry.counts.done} of {entry.counts.planned}", sort=entry.counts.done),
        ),
    ]
    return make_table(entries, columns, sortable=True)


def _pair_columns(names: Mapping[int, str]) -> list[ColumnOf[RewardPair]]:
    return [
        (Column("Rewards", numeric=False), lambda pair: Value(_both(names, pair.rewards))),
        (Column("Orders turned", "Pairs of agents whose mean J are in another order"), _count),
        (Column("Probability", "That two runs are in another order, mean over pairs of agents"), estimate),
    ]


def _count(pair: RewardPair) -> Value:
    return Value(f"{pair.turned} of {pair.of}", sort=pair.turned / pair.of)


def _turn_columns(names: Mapping[int, str]) -> list[ColumnOf[Turn]]:
    return [
        (Column("Rewards", numeric=False), lambda turn: Value(_both(names, turn.rewards))),
        (Column("Agents", numeric=False), lambda turn: Value(" over ".join(turn.agents))),
        (Column("Under the first", "P(first agent over second)"), lambda turn: figure(turn.over[0], 2)),
        (Column("Under the second", "P(first agent over second)"), lambda turn: figure(turn.over[1], 2)),
        (Column("Means turned", numeric=False), lambda turn: Value("yes" if turn.turned else "no")),
        (Column("Probability"), lambda turn: estimate(turn, 2)),
    ]


def _both(names: Mapping[int, str], rewards: tuple[int, int]) -> str:
    return f"{names[rewards[0]]} / {names[rewards[1]]}"


def _charts(summary: Summary, task: AcrossRewards, agents: Mapping[str, int]) -> list[RewardChart]:
    found = []
    for index in task.problems:
        curves = [
            each for each in summary.curves if each.problem == index and any(v is not None for v in each.gold.mean)
        ]
        proxy = any(
            entry.gold.value is not None and abs(entry.gold.value - (entry.reward.value or 0.0)) > SAME
            for entry in _of(summary, index)
        )
        if curves and proxy:
            found.append(RewardChart(summary.problems[index], _curve_table(curves, agents)))
    return found


def _curve_table(curves: Sequence[Curve], agents: Mapping[str, int]) -> ReportTable:
    points = [(curve, place) for curve in curves for place in range(len(curve.episodes))]
    return make_table(
        points,
        [
            (Column("Agent", numeric=False), lambda at: Value(at[0].agent, agent=agents[at[0].agent])),
            (Column("Episodes"), lambda at: figure(at[0].episodes[at[1]], 0)),
            (Column("Own reward"), lambda at: figure(at[0].reward.mean[at[1]])),
            (Column("Gold"), lambda at: figure(at[0].gold.mean[at[1]])),
        ],
    )
