"""The part of the index about rewards: every agent under each, orders that turn, texts that they disagree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from textgym_benchmarks.report.sections import agent_column, is_proxy
from textgym_benchmarks.report.tables import Column, ColumnOf, ReportTable, Value, estimate, figure, make_table
from textgym_benchmarks.summaries import Summary
from textgym_benchmarks.summaries.by_reward import AcrossRewards, TurnedOrder
from textgym_benchmarks.summaries.charts import Curve
from textgym_benchmarks.summaries.entries import AgentScores, best_first
from textgym_benchmarks.summaries.grid import RankedTask


@dataclass(frozen=True)
class RewardSection:
    """One task under several rewards.

    Args:
        task: its words and numbers.
        scores: a row for each reward and agent.
        turns: of pairs of rewards, all pairs of agents together. each: of every pair of agents.
        charts: reward against gold, where they differ, and the numbers of each.
    """

    task: AcrossRewards
    scores: ReportTable
    turns: ReportTable
    each: ReportTable
    charts: tuple[tuple[RankedTask, ReportTable], ...]


def reward_sections(summary: Summary, agents: Mapping[str, int]) -> list[RewardSection]:
    """Return a section for each task that agents learned under several rewards. Args: agents: name -> its style."""
    return [_section(summary, task, agents) for task in summary.across]


def _section(summary: Summary, task: AcrossRewards, agents: Mapping[str, int]) -> RewardSection:
    by_problem = {i: best_first(entry for entry in summary.entries if entry.problem == i) for i in task.problems}
    rows = [entry for entries in by_problem.values() for entry in entries]
    return RewardSection(
        task=task,
        scores=make_table(rows, _score_columns(summary, task, agents), sortable=True),
        turns=make_table([turn for turn in task.turns if _is_first(task, turn)], _turn_columns(summary)),
        each=make_table([turn for turn in task.turns if not _is_first(task, turn)], _each_columns(summary)),
        charts=tuple(
            (summary.problems[i], _curve_table([curve for curve in summary.curves if curve.problem == i], agents))
            for i, entries in by_problem.items()
            if any(map(is_proxy, entries))
        ),
    )


def _is_first(task: AcrossRewards, turn: TurnedOrder) -> bool:
    """Return whether a turn is the first of its pair of rewards: that of all pairs of agents."""
    return turn is next(each for each in task.turns if each.rewards == turn.rewards)


def _score_columns(summary: Summary, task: AcrossRewards, agents: Mapping[str, int]) -> list[ColumnOf[AgentScores]]:
    ranks = dict(zip(task.problems, task.ranks, strict=True))
    return [
        (Column("Reward", numeric=False, descending=False), lambda row: Value(summary.problems[row.problem].reward)),
        agent_column(agents, descending=False),
        (Column("Rank", "By J, under this reward", descending=False), lambda row: _rank(ranks[row.problem], row.agent)),
        (Column("J", "Own reward less beta times KL"), lambda row: estimate(row.objective)),
        (Column("Own reward", "What the agent was paid, in units of this reward"), lambda row: estimate(row.reward)),
        (Column("Gold", "The reward that the task is really about"), lambda row: estimate(row.gold)),
        (Column("KL", "To the reference, nats an answer", descending=False), lambda row: estimate(row.kl)),
        (Column("Optimality"), lambda row: estimate(row.optimality, 2)),
        (Column("Runs"), lambda row: Value(f"{row.counts.done} of {row.counts.planned}", sort=row.counts.done)),
    ]


def _rank(ranks: Mapping[str, int], agent: str) -> Value:
    return Value(f"{ranks[agent]} of {len(ranks)}", sort=ranks[agent]) if agent in ranks else figure(None)


def _turn_columns(summary: Summary) -> list[ColumnOf[TurnedOrder]]:
    return [
        (
            Column("Rewards", numeric=False),
            lambda turn: Value(" / ".join(summary.problems[index].reward for index in turn.rewards)),
        ),
        (Column("Orders turned", "By means over seeds"), lambda turn: Value(f"{turn.turned} of {len(turn.agents)}")),
        (Column("Probability", "That two runs each are in another order"), lambda turn: estimate(turn, 2)),
    ]


def _each_columns(summary: Summary) -> list[ColumnOf[TurnedOrder]]:
    rewards, *others = _turn_columns(summary)
    return [
        rewards,
        (Column("Agents", numeric=False), lambda turn: Value(" over ".join(turn.agents[0]))),
        (Column("Under the first", "P(first agent over second)"), lambda turn: figure(turn.over[0][0], 2)),
        (Column("Under the second", "P(first agent over second)"), lambda turn: figure(turn.over[0][1], 2)),
        *others,
    ]


def _curve_table(curves: list[Curve], agents: Mapping[str, int]) -> ReportTable:
    return make_table(
        [(curve, place) for curve in curves for place in range(len(curve.episodes))],
        [
            (Column("Agent", numeric=False), lambda at: Value(at[0].agent, agent=agents[at[0].agent])),
            (Column("Episodes"), lambda at: figure(at[0].episodes[at[1]], 0)),
            (Column("Own reward"), lambda at: figure(at[0].reward.mean[at[1]])),
            (Column("Gold"), lambda at: figure(at[0].gold.mean[at[1]])),
        ],
    )
