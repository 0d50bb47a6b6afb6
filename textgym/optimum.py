"""The optimum of any task: solved, read from the committed samples, or estimated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from textgym.checks import Floats, JsonObject, check_count, shown
from textgym.estimates import RESAMPLES, Estimate, Samples, Tilt, draw_samples, interval, read_samples, tilt
from textgym.lm.reference import Reference
from textgym.render import html_table
from textgym.rewards.scorer import scorers_restored
from textgym.sampling import Policy
from textgym.solver import MAX_STATES, Solution, UnsolvableError, prefix_tree, solve
from textgym.solver.build import check_beta
from textgym.task import Task, has_language_model, make_reference, reference_model

FOLDER: Final = Path(__file__).parent / "tasks" / "optima"
"""The folder of `NAME.SPLIT.safetensors`, written by `python -m textgym_benchmarks.run.optima`."""
ENOUGH = 10
"""Minimum number of effective samples per prompt for an estimate of J* to be shown."""
WELL_KNOWN = 30
"""Number of effective samples per prompt below which an estimate of J* is reported as based on few."""
MAX_MASKED = 50_000
"""Maximum number of states of a task with a mask to solve here: the mask is called in each of them."""
UNSEEN = 0.1
"""The greatest share of prompts of which no completion was rewarded above the others."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """J* of a task and J of its reference, the ends of the scale on which policies are measured.

    Attributes:
        value: J*, reward units; None if it is not known. Its interval refers to what the samples found: completions
            that no policy drew can raise J* above it, unless the reward declares its `maximum`.
        reference: J of the reference; None if nothing was sampled.
        beta: reward units per nat. split: split of the prompts.
        replicates: (R, 2) bootstrap replicates of the reference's J and of J*, drawn together; all the same if they are
            exact, NaN if J* is not known.
        effective_samples: weighted harmonic mean over prompts of the number of effective samples; None if J* is exact.
        unknown: why J* is not known; "" if it is.
        solution: V*, Q* and pi*, if the task was solved. samples: those that J* was estimated from.
        committed: whether these samples are part of the package.
        room: how much higher J* may be, with 95%, because of completions that the reference did not draw; reward units,
            included in the interval.
    """

    value: Estimate | None
    reference: Estimate | None
    beta: float
    split: str
    replicates: Floats = field(default_factory=lambda: np.full((RESAMPLES, 2), np.nan), repr=False)
    effective_samples: float | None = None
    unknown: str = ""
    solution: Solution | None = field(default=None, repr=False)
    samples: Samples | None = field(default=None, repr=False)
    committed: bool = False
    room: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether it was solved rather than estimated."""
        return self.solution is not None

    @property
    def with_proposals(self) -> bool:
        """Whether samples of trained policies were also used for the estimate."""
        return self.samples is not None and self.samples.policies > 1

    @property
    def improvable(self) -> bool:
        """Whether a trained policy would tell more: the reference alone was sampled, and here.

        Effective samples know nothing of what was never drawn. The reward's maximum tells how much that may be. Without
        one, they have to be half of all samples: then the optimum is near the reference, and little can be missing.
        """
        if self.samples is None or self.committed or self.with_proposals:
            return False
        if self.value is None or self.reference is None or self.effective_samples is None:
            return True
        enough = max(WELL_KNOWN, self.samples.each / 2 if self.samples.maximum is None else 0)
        return self.effective_samples < enough or self.room > 0.1 * (self.value.mean - self.reference.mean)

    def _repr_html_(self) -> str:
        samples = "none: it is exact" if self.exact else f"{self.effective_samples or 0:.0f}"
        return html_table(
            ("J*", self.value or f"not known: {self.unknown}"),
            ("J of the reference", self.reference or "not known"),
            ("effective samples a prompt", samples),
            ("beta, reward units per nat", f"{self.beta:g}"),
            ("prompts", self.split),
        )

    def __str__(self) -> str:
        if self.value is None:
            return f"J* not known ({self.unknown})"
        samples = self.effective_samples or 0.0
        few = f", fewer than {WELL_KNOWN}" if samples < WELL_KNOWN else ""
        how = "exact" if self.exact else f"{samples:.0f} effective samples a prompt{few}"
        return f"J* = {self.value}, J of the reference = {self.reference}, at beta = {self.beta:g} ({how})"


def optimum_of(
    task: Task,
    proposals: Sequence[Policy] = (),
    reference: Reference | None = None,
    *,
    beta: float | None = None,
    split: str = "eval",
    per_prompt: int = 128,
    seed: int = 0,
    keep: Path | None = None,
) -> Optimum:
    """Return J* and J of the reference, solved if possible, else estimated.

    For a shipped task with committed samples, these are used at any beta, so that everybody gets the same J*. A
    `solvable` task is solved. Any other is estimated by importance sampling from a mixture of the reference and the
    proposals. Nothing is trained here.

    Args:
        proposals: trained policies with `log_probs(observation)`, which find completions that the reference rarely
            writes. They change the precision of J*, not its value.
        reference: pi_ref; None takes the task's.
        beta: >= 0, reward units per nat; None takes the task's.
        per_prompt: completions of the reference and of each proposal per prompt, if J* is estimated; 0: no estimate.
        seed: seed of the sampling. keep: a folder for what it has played, see `textgym.sampling.play`.
    Returns: J* is "not known" (`value` None) at beta = 0 without a solution, without samples, below 10 effective
    samples per prompt, and if for some prompts no completion was paid more than the others and either the reward
    declares no `maximum`, or these prompts weigh more than a tenth.
    Raises: TypeError for what is no task; ValueError for a number out of range or a proposal without log-probabilities.
    """
    check_task(task)
    beta = check_beta(task, beta)
    check_count("seed", seed, 0)
    check_count("per_prompt", per_prompt, 0)
    samples = None if reference is not None or not beta else committed_samples(task, split)
    if samples is not None:
        return replace(estimated(samples, beta, split), committed=True)
    try:
        return solved(solve(task, reference, beta=beta, split=split, max_states=_most_states(task)))
    except UnsolvableError:
        if task.turns is not None and task.turns.random(task.encoded(split)):
            reason = "the environment draws what it writes, which samples of whole episodes overstate; it is not solved"
            return Optimum(None, None, beta, split, unknown=reason)
        if task.scorer.pay == "together":
            reason = "the reward compares completions, so that no text has a value of its own"
            return Optimum(None, None, beta, split, unknown=reason)
        if not beta:
            reason = "at beta = 0 it is the greatest reward, which samples cannot tell, and this task is not solved"
            return Optimum(None, None, beta, split, unknown=reason)
    if per_prompt == 0:
        return Optimum(None, None, beta, split, unknown="0 completions a prompt were asked for to estimate it")
    policy = make_reference(task) if reference is None else reference
    drawn = draw_samples(task, policy, proposals, split=split, each=per_prompt, seed=seed, keep=keep)
    return estimated(drawn, beta, split, seed)


def check_task(task: object) -> None:
    """Raise TypeError for what is no task, as its name or an environment."""
    if not isinstance(task, Task):
        raise TypeError(
            f"task={shown(task)}: allowed is a textgym.Task, as make_task(NAME) gives it and env.unwrapped.task is one"
        )


def solvable(task: Task, split: str = "eval") -> bool:
    """Return whether `optimum_of` solves a task: its prefix tree is small enough, and every text has a value."""
    try:
        prefix_tree(task, split, _most_states(task))
    except UnsolvableError:
        return False
    return True


def _most_states(task: Task) -> int:
    return MAX_MASKED if task.mask else MAX_STATES


def solved(solution: Solution) -> Optimum:
    """Return the scale of a task that was solved: nothing on it has an interval."""
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
    """Return the scale that samples tell of at one beta > 0; see `optimum_of` for when J* is not known."""
    found = tilt(samples, beta, seed)
    seen = np.where(found.unseen, 0.0, samples.weights)
    effective = float(seen.sum() / np.sum(seen / found.effective_samples)) if seen.any() else 0.0
    reference = interval(float(samples.weights @ found.references), found.replicates[:, 0])
    unseen = float(samples.weights[found.unseen].sum())
    same = f"all completions of a prompt earned the same (share of the prompts: {unseen:.2f})"
    if unseen and samples.maximum is None:
        reason = f"{same}, and the reward declares no `maximum`"
    elif unseen > UNSEEN:
        reason = same
    elif effective < ENOUGH:
        reason = f"{effective:.1f} effective samples a prompt, {ENOUGH} are needed"
    else:
        room, replicates = _room(samples, found, beta), found.replicates
        replicates[1::2, 1] += room
        value = interval(float(samples.weights @ found.values), replicates[:, 1])
        return Optimum(value, reference, beta, split, replicates, effective, samples=samples, room=room)
    return Optimum(None, reference, beta, split, effective_samples=effective, unknown=reason, samples=samples)


def _room(samples: Samples, found: Tilt, beta: float) -> float:
    """Return how much higher J* may be, with 95%, where all that the reference has not drawn earns the maximum.

    n completions of each prompt leave undrawn, with 95%, no more probability than 3 / n of all prompts together, m_p of
    prompt p. Where the sum of w_p beta log(E_p + m_p) is greatest, E_p = exp((V_p - maximum) / beta), all prompts with
    any have the same (E_p + m_p) / w_p, a level, but for those that all earn the maximum, E_p + m_p = 1. Nobody knows
    without a `maximum`, or with proposals: 0. What `Tilt.unseen` counts is in its replicates.
    """
    known = ~found.unseen & (samples.weights > 0)
    if samples.maximum is None or samples.policies > 1:
        return 0.0
    weights, values = samples.weights[known], found.values[known]
    low = np.exp(np.minimum(values - samples.maximum, 0.0) / beta)
    reached, free = low, np.ones(len(low), dtype=bool)
    while free.any():
        level = _level(low[free], weights[free], 3.0 / samples.each - np.sum(1.0 - low[~free]))
        reached = np.where(free, np.maximum(weights * level, low), 1.0)
        if reached.max() <= 1.0:
            break
        free &= reached <= 1.0  # the others earn the maximum: what they cannot take is left to these
    with np.errstate(divide="ignore"):
        raised = samples.maximum + beta * np.log(np.minimum(reached, 1.0))
    return float(weights @ np.maximum(raised - values, 0.0))


def _level(low: Floats, weights: Floats, mass: float) -> float:
    """Return the level for which the sum of max(w_p * level - E_p, 0) is `mass`."""
    order = np.argsort(low / weights)
    levels = (max(mass, 0.0) + np.cumsum(low[order])) / np.cumsum(weights[order])
    return float(levels[np.flatnonzero(levels >= (low / weights)[order])[-1]])


def optimality_of(objective: float, replicates: Floats, optimum: Optimum) -> Estimate | None:
    """Return (J - J_ref) / (J* - J_ref) with its interval; None if J* is not known or the reference attains it.

    Args:
        objective: J, reward units. replicates: (R,) bootstrap replicates of it; all the same if it is exact.
    """
    if optimum.value is None or optimum.reference is None:
        return None
    room = optimum.value.mean - optimum.reference.mean
    if not room > 1e-12 * abs(optimum.value.mean) or np.isnan(
        objective
    ):  # two ways to add the same up round differently
        return None
    base, best = optimum.replicates.T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (replicates - base) / (best - base)
    score = (objective - optimum.reference.mean) / room
    return Estimate(score, score, score) if (ratios == ratios[0]).all() else interval(score, ratios)


# Samples that are kept, and the task that they belong to


def committed_samples(task: Task, split: str) -> Samples | None:
    """Return the committed samples of a task; None where there are none, or they are of another task."""
    path = samples_path(task, split)
    if task.noisy or not path.is_file():
        return None
    samples, key = _read(path)
    return samples if belongs(samples, key, task, split) else None


def belongs(samples: Samples, key: JsonObject, task: Task, split: str) -> bool:
    """Return whether samples are of this task: its fingerprint is their key, and its reward pays them the same."""
    return key == fingerprint(task, split) and pays_the_same(task, split, samples)


def pays_the_same(task: Task, split: str, samples: Samples) -> bool:
    """Return whether the task's reward pays the kept completions as it did when they were drawn.

    What a noisy reward pays, or one that learns, cannot be compared: True.
    """
    if task.noisy or not task.scorer.one_by_one:
        return True
    count = samples.tokens.shape[1]
    rows = samples.tokens.reshape(-1, samples.tokens.shape[2])
    ids = [row[row >= 0].tolist() for row in rows]
    prompts = [prompt for prompt in task.encoded(split) for _ in range(count)]
    with scorers_restored(task.scorer):
        judged = task.judge(split, prompts, ids)
    returns = judged.total * task.gamma ** (np.array([len(row) for row in ids]) - 1)
    return bool(np.allclose(returns, samples.returns[:, :: samples.each].ravel(), rtol=1e-5, atol=1e-6))


def samples_path(task: Task, split: str) -> Path:
    """Return where a task's committed samples are, whether or not they are there."""
    return FOLDER / f"{task.name.lower()}.{split}.safetensors"


def fingerprint(task: Task, split: str) -> JsonObject:
    """Return what tells one task from another, as JSON values: prompts, limits, gamma, reward, mask, reference.

    beta is not in it: samples are good for any.
    """
    weights = task.prompt_set(split).weights.tolist()
    prompts = [[prompt.text, list(prompt.ids)] for prompt in task.encoded(split)]
    vocabulary = [task.vocabulary.stop_ids, task.vocabulary.allowed.tolist()]
    plain = {name: getattr(task, name) for name in ("name", "max_prompt_tokens", "max_new_tokens", "gamma")}
    return {
        **plain,
        "prompts": _digest(json.dumps([prompts, weights]).encode()),
        "vocabulary": _digest(json.dumps(vocabulary).encode()),
        "reference": _reference(task),
        "split": split,
        "reward": task.reward_name,
        "mask": _mask(task),
    }


def _mask(task: Task) -> str | None:
    """Return the digest of the task's grammar, or the type of a mask that has none."""
    if task.mask is None:
        return None
    grammar = getattr(task.mask, "grammar", None)
    return type(task.mask).__qualname__ if grammar is None else _digest(_text(grammar).encode())


def _reference(task: Task) -> str:
    """Return the digest of the reference's weights; else its name, or its class's where it has none."""
    if not has_language_model(task):
        return _text(task.reference)
    weights = sorted(Path(reference_model(task)).glob("*.safetensors"))
    return _digest_of_files(tuple(weights)) if weights else str(task.reference)


def _text(value: object) -> str:
    """Return an object's text; its class's name where that has an address in it, which other processes do not have."""
    text = str(value)
    return type(value).__qualname__ if " at 0x" in text else text


@lru_cache(maxsize=8)
def _digest_of_files(paths: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 20):  # a model may be larger than the memory
                digest.update(part)
    return digest.hexdigest()[:32]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


_read = lru_cache(maxsize=16)(read_samples)
