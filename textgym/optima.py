"""J*, the best that any policy can do at a price of KL: solved where a task can be solved, else sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from textgym.bootstrap import RESAMPLES, Estimate, Floats, interval
from textgym.committed import committed_samples
from textgym.importance import Samples, draw_samples, tilt
from textgym.lm.reference import Reference
from textgym.references import make_reference
from textgym.solve import MAX_STATES, Solution, UnsolvableError, solve
from textgym.solver.settings import check_beta
from textgym.task import Task

ENOUGH = 10
"""Effective samples a prompt below which an estimate of J* is not shown."""
WELL_KNOWN = 30
"""Effective samples a prompt from which trained policies need not be sampled as well."""
MAX_MASKED = 50_000
"""States up to which a task with a mask is solved here: it has to be asked in every one of them."""
UNSEEN = 0.1
"""The greatest share of prompts of which no completion was rewarded above the others."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """The ends of the scale that policies are measured on: J* of a task, and J of its reference.

    Attributes:
        value: J*, reward units; None where it is not known.
        reference: J of the reference; None where nothing was sampled.
        beta: reward units per nat. split: whose prompts.
        replicates: (R, 2) bootstrap replicates of the reference's J and of J*, drawn together; all the same where
            they are exact, NaN where J* is not known.
        effective_samples: weighted harmonic mean over prompts of the number of samples that carry the estimate; None
            where J* is exact.
        unknown: why J* is not known; "" where it is.
        solution: V*, Q* and pi*, where the task was solved. samples: what J* was estimated from.
        committed: whether these samples came with the package.
    """

    value: Estimate | None
    reference: Estimate | None
    beta: float
    split: str
    replicates: Floats = field(repr=False)
    effective_samples: float | None = None
    unknown: str = ""
    solution: Solution | None = field(default=None, repr=False)
    samples: Samples | None = field(default=None, repr=False)
    committed: bool = False

    @property
    def exact(self) -> bool:
        """Whether it was solved, not estimated."""
        return self.solution is not None

    def __str__(self) -> str:
        if self.value is None:
            return f"J* not known ({self.unknown})"
        samples = self.effective_samples or 0.0
        few = f", fewer than {WELL_KNOWN}" if samples < WELL_KNOWN else ""
        how = "exact" if self.exact else f"{samples:.0f} effective samples a prompt{few}"
        return f"J* = {self.value}, J of the reference = {self.reference}, at beta = {self.beta:g} ({how})"


def optimum_of(
    task: Task,
    proposals: Sequence[Any] = (),
    reference: Reference | None = None,
    *,
    beta: float | None = None,
    split: str = "eval",
    per_prompt: int = 128,
    seed: int = 0,
) -> Optimum:
    """Return J* and J of the reference: solved where that can be done, else estimated.

    For a shipped task whose samples are committed these serve, at any beta, so that everybody has the same J*. A task
    that can be solved is solved. Any other is estimated by importance sampling from a mixture of the reference and the
    proposals. Nothing is trained here.

    Args:
        proposals: policies that somebody has trained, with `log_probs(observation)`: they find what the reference
            seldom writes. They change how sure J* is, not what it is.
        reference: pi_ref; None takes the task's.
        beta: >= 0, reward units per nat; None takes the task's.
        per_prompt: completions that the reference and each proposal write to a prompt, where J* is estimated.
        seed: of the sampling.
    Returns: J* is "not known" (`value` None) at beta = 0 without a solution, below 10 effective samples a prompt, and
        where no completion of some prompts was paid more than the others: if the reward declares no `maximum`, or they
        weigh more than a tenth.
    Raises: ValueError for a beta out of range or a proposal without log-probabilities.
    """
    beta = check_beta(task, beta)
    samples = None if reference is not None or not beta else committed_samples(task, split)
    if samples is None:
        try:
            limit = MAX_MASKED if task.mask else MAX_STATES
            return solved(solve(task, reference, beta=beta, split=split, max_states=limit))
        except UnsolvableError:
            if task.scorer.pay == "together":
                reason = "the reward compares completions, so that no text has a value of its own"
                return _unknown(None, beta, split, reason)
            if not beta:
                reason = "at beta = 0 it is the greatest reward, which samples cannot tell, and this task is not solved"
                return _unknown(None, beta, split, reason)
    if samples is not None:
        return replace(estimated(samples, beta, split), committed=True)
    policy = make_reference(task) if reference is None else reference
    drawn = draw_samples(task, policy, proposals, split=split, each=per_prompt, seed=seed)
    return estimated(drawn, beta, split, seed)


def solved(solution: Solution) -> Optimum:
    """The scale of a task that was solved: nothing on it has an interval."""
    best, base = solution.objective, solution.reference_objective
    return Optimum(
        value=Estimate(best, best, best),
        reference=Estimate(base, base, base),
        beta=solution.beta,
        split=solution.tree.split,
        replicates=np.tile([base, best], (RESAMPLES, 1)),
        solution=solution,
    )


def estimated(samples: Samples, beta: float, split: str, seed: int = 0) -> Optimum:
    """The scale that samples tell of at one beta > 0; see `optimum_of` for when J* is not known."""
    found = tilt(samples, beta, seed)
    seen = np.where(found.unseen, 0.0, samples.weights)
    effective = float(seen.sum() / np.sum(seen / found.effective_samples)) if seen.any() else 0.0
    reference = interval(float(samples.weights @ found.references), found.replicates[:, 0])
    unseen = float(samples.weights[found.unseen].sum())
    reason = ""
    if unseen and samples.maximum is None:
        reason = (
            f"all completions of {unseen:.0%} of the prompts earned the same, "
            "and the reward declares no `maximum`"
        )
    elif unseen > UNSEEN:
        reason = f"all completions of {unseen:.0%} of the prompts earned the same"
    elif effective < ENOUGH:
        reason = f"{effective:.1f} effective samples a prompt, {ENOUGH} are needed"
    if reason:
        return _unknown(reference, beta, split, reason, effective, samples)
    value = interval(float(samples.weights @ found.values), found.replicates[:, 1])
    return Optimum(value, reference, beta, split, found.replicates, effective, samples=samples)


def optimality_of(objective: float, replicates: Floats, optimum: Optimum) -> Estimate | None:
    """Return (J - J_ref) / (J* - J_ref) with its interval; None where J* is not known or the reference attains it.

    Args:
        objective: J, reward units. replicates: (R,) bootstrap replicates of it; all the same where it is exact.
    """
    if optimum.value is None or optimum.reference is None:
        return None
    room = optimum.value.mean - optimum.reference.mean
    if not room > 0 or np.isnan(objective):
        return None
    base, best = optimum.replicates.T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (replicates - base) / (best - base)
    score = (objective - optimum.reference.mean) / room
    return Estimate(score, score, score) if np.ptp(ratios) == 0 else interval(score, ratios)


def _unknown(
    reference: Estimate | None,
    beta: float,
    split: str,
    reason: str,
    effective: float | None = None,
    samples: Samples | None = None,
) -> Optimum:
    nothing = np.full((RESAMPLES, 2), np.nan)
    return Optimum(None, reference, beta, split, nothing, effective, reason, samples=samples)
