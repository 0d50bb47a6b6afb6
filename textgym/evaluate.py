"""Evaluate a policy: reward, KL, the objective J and its optimality, exact or with bootstrap intervals."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from textgym.checks import Floats, Ints, JsonObject, check_count
from textgym.estimates import (
    RESAMPLES,
    Estimate,
    degrees_of_freedom,
    expected_returns,
    greatest_return,
    interval,
    jackknife,
    majority_ways,
    resampled_means,
    widen,
)
from textgym.lm.reference import Reference, said_by
from textgym.optimum import Optimum, check_task, optimality_of, optimum_of
from textgym.render import html_table
from textgym.rewards import TextGymWarning
from textgym.rewards.answers import vote
from textgym.sampling import Policy, PromptEpisodes, SearchingPolicy, WholePolicy, play
from textgym.solver import PolicyValues, PrefixTree, Solution, edge_log_probs, evaluate_edges
from textgym.solver.tree import normalised, per_edge, per_state
from textgym.task import Task, make_reference

MAX_RUNNING = 100_000
"""Maximum number of running states for exact J and KL of a policy, if the task can be solved."""
MAX_SEARCHED = 5_000
"""The same for agents that search before they act."""


MEASURES: Final = {
    "reward": "reward",
    "gold": "gold reward",
    "kl": "KL to the reference, nats",
    "objective": "objective J",
    "optimality": "optimality",
    "entropy": "entropy, nats",
    "length": "length, tokens",
    "stop_rate": "ended by itself",
    "distinct_1": "distinct words",
    "distinct_2": "distinct word pairs",
}
"""Labels of the measures in tables; shares are from 0 to 1."""


@dataclass(frozen=True)
class EvaluationResult:
    """The measures of a policy on held-out prompts.

    Rewards are in reward units, `kl` and `entropy` in nats per sequence, `length` in tokens. `objective` is J = E[R] -
    beta E[KL]; `optimality` is (J - J_ref) / (J* - J_ref). Entries are None if the task or the policy does not allow
    them to be computed. `exact` says that reward, KL, J, entropy, length and stop rate are expectations by enumeration:
    their intervals have no width, and only the shown completions and the counts in them are sampled. `distinct_n` is
    the share of different n-grams among all words. `reward_terms` are means over the completions that have the term, of
    its value at the last step. `failures` are completions for which the reward failed, by kind.
    """

    reward: Estimate
    gold: Estimate | None
    kl: Estimate | None
    objective: Estimate | None
    optimality: Estimate | None
    entropy: Estimate | None
    length: Estimate
    stop_rate: float
    distinct_1: float
    distinct_2: float
    reward_terms: dict[str, float]
    failures: dict[str, int]
    episodes: PromptEpisodes = field(repr=False)  # thousands of numbers
    exact: bool = False

    def summary(self) -> JsonObject:
        """Return everything except the episodes, as JSON values."""
        return {
            name: asdict(value) if isinstance(value, Estimate) else value
            for name, value in self.__dict__.items()
            if name != "episodes"
        }

    def _repr_html_(self) -> str:
        found = [(label, getattr(self, name)) for name, label in MEASURES.items()]
        found += [(f"term {name}", value) for name, value in self.reward_terms.items()]
        rows = [(label, f"{value:z.3f}" if isinstance(value, float) else value) for label, value in found]
        failures = [(f"failures: {kind}", many) for kind, many in self.failures.items()]
        return html_table(*(row for row in rows if row[1] is not None), *failures)


def evaluate(
    policy: Policy,
    task: Task,
    reference: Reference | None = None,
    optimum: Optimum | None = None,
    *,
    beta: float | None = None,
    split: str = "eval",
    per_prompt: int = 16,
    seed: int = 0,
    deterministic: bool = False,
    keep: Path | None = None,
) -> EvaluationResult:
    """Evaluate a policy on a split's prompts, by enumeration if the task can be solved, else by sampling.

    J and KL are exact if the optimum is and the task has at most 100,000 running states, or 5,000 for an agent that
    searches (`plans`), of which a copy is used; `EvaluationResult.exact` says so.

    Args:
        policy: an agent, or any object with `log_probs(observation)` or `act(observation, deterministic)`; it may also
            be a `SearchingPolicy` or a `WholePolicy`.
        reference: pi_ref; None takes the task's.
        optimum: result of `optimum_of` with the same split and beta; None: it is computed.
        split: split of the prompts. per_prompt: completions per prompt.
        seed: seed of the sampling.
        deterministic: whether to take the most likely token instead of sampling.
        keep: a folder for what it has played, see `textgym.sampling.play`.
    Returns: reward, gold, KL, J and optimality with their intervals.
    Raises: TypeError for what is no task, or a policy that neither acts nor has log-probabilities; ValueError for an
        optimum of another beta or split, or of another reference if it is exact.
    Warns: TextGymWarning if J exceeds J* by more than both intervals: the estimate of J* was then too low.
    """
    check_task(task)
    beta = (task.beta if optimum is None else optimum.beta) if beta is None else beta
    if optimum is not None and (optimum.beta, optimum.split) != (beta, split):
        raise ValueError(
            f"optimum: it is of beta={optimum.beta} on {optimum.split!r}, allowed is beta={beta} on {split!r}"
        )
    if optimum is None:
        optimum = optimum_of(task, reference=reference, beta=beta, split=split, seed=seed, keep=keep)
    reference = make_reference(task) if reference is None else reference
    if optimum.solution is not None:
        _check_reference(reference, optimum.solution)
    known = None if optimum.solution is None else exact_values(policy, optimum.solution, deterministic)
    sampled = partial(play, split=split, per_prompt=per_prompt, seed=seed, deterministic=deterministic)
    episodes = sampled(policy, task, reference=reference, keep=keep)
    measured = _sampled(policy, task, episodes, beta, split, seed)
    if known is not None:
        measured |= _enumerated(task, known)
    objective = measured.get("objective")
    if objective is not None:
        _compare(objective[0], optimum, task)
    estimates = {name: estimate for name, (estimate, _) in measured.items()}
    return EvaluationResult(
        reward=estimates["reward"],
        gold=estimates.get("gold"),
        kl=estimates.get("kl"),
        objective=estimates.get("objective"),
        optimality=None if objective is None else optimality_of(objective[0].mean, objective[1], optimum),
        entropy=estimates.get("entropy"),
        length=estimates["length"],
        stop_rate=_stop_rate(task, episodes, known),
        distinct_1=distinct(episodes.written, 1),
        distinct_2=distinct(episodes.written, 2),
        reward_terms={name: _mean_term(episodes.weights, v) for name, v in episodes.terms.items()},
        failures=episodes.failures,
        episodes=episodes,
        exact=known is not None,
    )


def exact_values(policy: Policy, solution: Solution, deterministic: bool = False) -> PolicyValues | None:
    """Return the exact values of a policy on a solved task; None for too many states or unknown probabilities.

    Args:
        policy: an object with `log_probs(observation)`, or a `WholePolicy`.
        deterministic: whether the policy takes its most likely token everywhere.
    """
    tree, searches = solution.tree, isinstance(policy, SearchingPolicy) and policy.plans
    running = sum(len(level.running) for level in tree.levels)
    if running > (MAX_SEARCHED if searches else MAX_RUNNING):
        return None
    logs = policy.edge_log_probs(tree, solution.log_reference) if isinstance(policy, WholePolicy) else None
    if logs is None:
        first = tree.observations(0, tree.levels[0].running[:1])
        if said_by(copy.deepcopy(policy) if searches else policy, first) is None:
            return None
        logs = edge_log_probs(tree, copy.deepcopy(policy) if searches else policy)
        logs = tuple(_played(own, tree, depth, deterministic) for depth, own in enumerate(logs))
    return evaluate_edges(tree, logs, solution.log_reference, solution.beta, solution.gamma)


def _check_reference(reference: Reference, solution: Solution) -> None:
    """Raise ValueError unless a reference gives the first tokens the probabilities that a solution was found with."""
    tree = solution.tree
    level, rows = tree.levels[0], tree.levels[0].running
    where, place = tree.edges(0, rows)
    table = np.asarray(reference.log_probs(tree.observations(0, rows)), dtype=np.float64)
    own = normalised(table[place, tree.levels[1].action[where]], level)
    if not np.allclose(np.exp(own), np.exp(solution.log_reference[0]), atol=1e-3):
        raise ValueError("optimum: it is of another reference; allowed is one that optimum_of found with this one")


def _played(logs: Floats, tree: PrefixTree, depth: int, deterministic: bool) -> Floats:
    """Return the log-probabilities of a level's edges as `play` draws from them."""
    level = tree.levels[depth]
    top = per_edge(per_state(logs, level, np.maximum), level)
    # A state whose every legal token has probability 0 is played uniformly, as `restricted` has it.
    logs = normalised(np.where(np.isneginf(top), 0.0, logs), level)
    if not deterministic:
        return logs
    best = np.flatnonzero(logs == per_edge(per_state(logs, level, np.maximum), level))
    first = best[np.unique(tree.levels[depth + 1].parent[best], return_index=True)[1]]
    taken = np.full(len(logs), -np.inf)
    taken[first] = 0.0
    chance = tree.levels[depth + 1].chance
    return taken if chance is None else np.where(np.isnan(chance), taken, chance)


Measured = dict[str, tuple[Estimate, Floats]]


def _sampled(policy: Policy, task: Task, episodes: PromptEpisodes, beta: float, split: str, seed: int) -> Measured:
    """Return every measure that the episodes have, with its bootstrap replicates (R,)."""
    returns = expected_returns(task, episodes)
    measures = {
        "reward": returns,
        "gold": episodes.gold,
        "kl": episodes.kl,
        "objective": returns - beta * episodes.kl if beta else returns,
        "entropy": episodes.entropy,
        "length": episodes.lengths.astype(np.float64),
    }
    asked = episodes.weights > 0  # an infinite KL to a prompt that is never drawn counts nothing
    columns, weights = np.stack(list(measures.values()))[:, asked], episodes.weights[asked]
    means = columns.mean(-1) @ weights
    per_prompt = episodes.returns.shape[1]
    freedom = degrees_of_freedom(columns, weights)
    replicates = widen(means, resampled_means(columns, seed) @ weights, per_prompt, freedom)  # (R, K)
    found = {
        name: (interval(float(means[column]), replicates[:, column]), replicates[:, column])
        for column, name in enumerate(measures)
        if not np.isnan(means[column])
    }
    known = policy.sequence_kl(task, split, seed) if "kl" not in found and isinstance(policy, WholePolicy) else None
    if known is not None:
        mean, spread = float(episodes.weights @ known[0]), known[1] @ episodes.weights
        found["kl"] = interval(mean, spread), spread
        if beta:
            worth, objectives = found["reward"][0].mean - beta * mean, found["reward"][1] - beta * spread
            found["objective"] = interval(worth, objectives), objectives
    return found


def _enumerated(task: Task, values: PolicyValues) -> Measured:
    """Return the measures that enumeration gives, without width."""
    found = {
        "reward": values.expected_return,
        "kl": values.kl,
        "objective": values.objective,
        "entropy": values.entropy,
        "length": values.length,
    }
    gold = task.gold is not None and task.gold in (task.reward, getattr(task.reward, "expected", None))
    if gold and task.gamma == 1 and task.scorer.pay == "end":
        found["gold"] = values.expected_return
    return {name: (Estimate(x, x, x), np.full(RESAMPLES, x)) for name, x in found.items()}


def _stop_rate(task: Task, episodes: PromptEpisodes, known: PolicyValues | None) -> float:
    """Return the probability that an answer ends by a stop id; in tasks with turns the share of the episodes."""
    if known is None or task.turns is not None:
        return float(episodes.weights @ episodes.stopped.mean(1))
    tree, total = known.tree, 0.0
    for depth in range(1, len(tree.levels)):
        level = tree.levels[depth]
        stopped = level.finished & np.isin(level.action, task.vocabulary.stop_ids)
        total += float((tree.weights[tree.prompt_of[depth]] * known.reach[depth])[stopped].sum())
    return total


def _compare(objective: Estimate, optimum: Optimum, task: Task) -> None:
    """Warn where a policy is better than the best that is possible."""
    if optimum.value is not None and not optimum.exact and objective.low > optimum.value.high:
        renew = f"python -m textgym_benchmarks.run.optima {task.name} --split {optimum.split} --proposals FOLDER"
        other = "give optimum_of this policy in `proposals`, or more samples (--optimum-per-prompt)"
        warnings.warn(
            f"J = {objective} of this policy lies above J* = {optimum.value}, which was estimated too low; "
            f"renew it: {renew if optimum.committed else other}",
            TextGymWarning,
            stacklevel=3,
        )


def _mean_term(weights: Floats, values: Floats) -> float:
    """Return the mean of a term (P, n) over the completions that have it; NaN where none has."""
    share = weights[:, None] * ~np.isnan(values)
    return float(np.nansum(share * values) / share.sum()) if share.any() else float("nan")


def distinct(completions: NDArray[np.object_], n: int) -> float:
    """Return the number of different word n-grams divided by the number of all; 0 if there are none.

    Source: Li et al. (2016), arXiv:1510.03055, section 5.
    """
    words = [text.split() for text in completions.ravel()]
    grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


MOST_K: Final = 100
"""Maximum number of answers that pass@k and majority@k draw."""


AtK = dict[str, dict[int, Estimate]]


def at_k(task: Task, episodes: PromptEpisodes, ks: Sequence[int], right: float | None = None) -> AtK:
    """Estimate avg@k, pass@k and majority@k without bias from n completions of every prompt.

    Each is an average over all ways to draw k of the n: of the share of right completions (the same for every k), of
    whether any is right, and of whether the most frequent answer is right, with ties broken at random. Answers are
    equal if they have the same marked final answer, compared as numbers if they are numbers. Intervals are normal ones,
    with the jackknife variance over the completions of each prompt; NaN for one completion. If that variance is 0, the
    rule of three replaces it, with 3 / n as the bound of a probability.

    Args:
        episodes: result of `play` or of an `EvaluationResult`; n completions per prompt.
        ks: values from 1 to n, at most 100.
        right: the lowest reward of a right completion, by the gold reward if there is one; None: the highest reward
            that can be paid, or 1 if that is not known.
    Returns: "avg", "pass" and "majority" -> k -> the estimate.
    Raises: ValueError for a k out of range.
    Source: Chen et al. (2021), arXiv:2107.03374, eq. 1 (pass@k); Wang et al. (2022), arXiv:2203.11171 (majority); Efron
        and Stein (1981), The jackknife estimate of variance.
    """
    count = episodes.returns.shape[1]
    ks = [check_count("k", k, 1, min(count, MOST_K), f"of {count} completions a prompt") for k in ks]
    golden = not np.isnan(episodes.gold).any()
    scores = episodes.gold if golden else expected_returns(task, episodes)
    most = getattr(task.gold, "maximum", None) if golden else greatest_return(task)
    if not golden and task.scorer.pay != "every" and task.gamma > 0:  # what was paid, not its worth at the start
        scores = scores / task.gamma ** (episodes.lengths - 1)
        most = getattr(task.reward, "maximum", None)
    least = right if right is not None else 1.0 if most is None else most
    correct = scores >= least - 1e-9  # (P, n)
    answers = [_answers(row, ok) for row, ok in zip(episodes.written, correct, strict=True)]
    found: AtK = {name: {} for name in ("avg", "pass", "majority")}
    unseen = 3.0 * episodes.weights.max() / count
    for k in ks:
        each = [[*_passes(ok, k), _votes(*own, k)] for ok, own in zip(correct, answers, strict=True)]
        table = np.array(each)  # (P, 3, 2): values and their variances
        means, widths = episodes.weights @ table[..., 0], 1.96 * np.sqrt(episodes.weights**2 @ table[..., 1])
        for name, mean, width in zip(found, means.tolist(), widths.tolist(), strict=True):
            ends = np.array([mean - width, mean + width])
            if width == 0:  # none of the ways to leave a completion out tells anything: the rule of three
                ends = np.array([mean - unseen, mean + unseen])
                if name == "pass":
                    shares = np.clip(correct.mean(1) + np.array([[-unseen], [unseen]]), 0.0, 1.0)  # (2, P)
                    ends = np.sort([mean, *(1.0 - (1.0 - shares) ** k) @ episodes.weights])[[0, -1]]
            found[name][k] = Estimate(mean, *np.clip(ends, 0.0, 1.0).tolist())
    return found


def _passes(correct: NDArray[np.bool_], k: int) -> list[tuple[float, float]]:
    """Return avg@k and pass@k of a prompt's completions (n,), each with its variance."""
    right, count = int(correct.sum()), len(correct)
    sizes, fewer = np.array([count - right, right]), max(count - 1, 1)
    hits = np.array([right, max(right - 1, 0)])  # without a wrong one, and without a right one
    few = min(k, fewer)
    missed = np.array([math.comb(max(fewer - each, 0), few) for each in hits.tolist()]) / math.comb(fewer, few)
    passed = 1.0 - math.comb(count - right, k) / math.comb(count, k)
    return [jackknife(right / count, hits / fewer, sizes), jackknife(passed, 1.0 - missed, sizes)]


def _votes(sizes: Ints, right: Floats, k: int) -> tuple[float, float]:
    """Return majority@k of a prompt, with its variance. Args: as what `_answers` returns."""
    count = int(sizes.sum())
    few = min(k, max(count - 1, 1))
    value = float(majority_ways(sizes[None], right, k)[0]) / math.comb(count, k)
    left = majority_ways(sizes - np.eye(len(sizes), dtype=np.int64), right, few) / math.comb(max(count - 1, 1), few)
    return jackknife(value, left, sizes)


def _answers(completions: NDArray[np.object_], correct: NDArray[np.bool_]) -> tuple[Ints, Floats]:
    """Return how often each of A answers is given (A,), and its share of right completions (A,)."""
    found: dict[object, list[bool]] = {}
    for text, right in zip(completions, correct.tolist(), strict=True):
        found.setdefault(vote(text), []).append(right)
    return np.array([*map(len, found.values())]), np.array([sum(own) / len(own) for own in found.values()])
