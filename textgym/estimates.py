"""Estimates with intervals: the bootstrap, and importance sampling of an optimum that cannot be enumerated."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from textgym.checks import Bools, Floats, Ints, JsonObject
from textgym.files import check_file, reading, write_bytes
from textgym.lm.reference import Reference
from textgym.rewards.compose import NOISE
from textgym.sampling import Policy, PromptEpisodes, play
from textgym.task import Task

RESAMPLES = 1000
_FORMAT = 1
_OWN_STREAM = 1_000_003
# The 97.5% quantiles of Student's t with 20/k degrees of freedom, k = 0..20, of which the first is the normal one.
_STUDENT: Final = (
    1.959964, 2.085963, 2.228139, 2.388804, 2.570582, 2.776445, 3.009769, 3.274387, 3.574655, 3.915529, 4.302653,
    4.742454, 5.242265, 5.810456, 6.456586, 7.191585, 8.027951, 8.979991, 10.06408, 11.29899, 12.70620,
)  # fmt: skip
_NEVER = -1e30  # nats, for what the reference never writes: of weight 0, and a number in a file
_LEAST = -345.0  # nats below the greatest weight; what weighs less counts as this


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval, from resampling completions within every prompt; without width where it is exact."""

    mean: float
    low: float
    high: float

    @property
    def exact(self) -> bool:
        """Whether the interval has no width."""
        return self.low == self.mean == self.high

    def __str__(self) -> str:
        mean, low, high = (f"{value:z.3f}" for value in (self.mean, self.low, self.high))
        return mean if self.exact else f"{mean} [{low}, {high}]"


def widen(estimates: Floats, replicates: Floats, count: int, freedom: Floats | float = math.inf) -> Floats:
    """Return replicates (R, K) whose deviations are centred on the estimates (K,) and have their unbiased size.

    Resampling n completions shrinks a variance by (n - 1) / n, and doubles the bias of a biased statistic.
    With one completion nothing is known of the spread: the result is NaN.
    Args: freedom: degrees of freedom of each spread (K,), for Student's t in place of the normal.
    """
    if count < 2:
        return np.full_like(replicates, np.nan)
    with np.errstate(invalid="ignore"):  # what is infinite has no interval
        deviations = replicates - replicates.mean(0)
        return np.asarray(estimates + deviations * np.sqrt(count / (count - 1)) * _student(freedom + 1.0))


def degrees_of_freedom(columns: Floats, weights: Floats) -> Floats:
    """Return those of the weighted means over prompts (K,): infinite where nothing varies.

    Args: columns: (K, P, n), as of `resampled_means`. weights: (P,).
    Source: Welch (1947), The generalization of Student's problem, eq. 28; Satterthwaite (1946).
    """
    count = columns.shape[2]
    if count < 2:
        return np.full(len(columns), np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):  # what is infinite has no interval
        parts = weights**2 * columns.var(-1, ddof=1)
        found = np.square(parts.sum(-1)) / np.square(parts).sum(-1) * (count - 1)
    return np.where(np.isnan(found), np.inf, found)


def interval(mean: float, replicates: Floats) -> Estimate:
    """Return the percentile interval of bootstrap replicates (R,) around an estimate."""
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(replicates, [0.025, 0.975])
    return Estimate(mean, float(low), float(high))


def resampled_means(columns: Floats, seed: int) -> Floats:
    """Return means of every column over completions drawn with replacement within every prompt.

    Args:
        columns: (K, P, n): K measures of n completions of P prompts; drawn together.
    Returns: (R, K, P) with R = `RESAMPLES`.
    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 8.
    """
    generator, count = np.random.default_rng([seed, 4]), columns.shape[2]
    # With counts every mean is one matrix product.
    with np.errstate(invalid="ignore"):  # an infinite KL has no interval
        means = [resampled_counts(generator, count) @ own.T / count for own in columns.swapaxes(0, 1)]
    return np.stack(means, axis=2)


def resampled_counts(generator: np.random.Generator, count: int) -> Ints:
    """Return how often each of `count` completions is drawn, with replacement, in each of R resamples: (R, count)."""
    drawn = generator.integers(count, size=(RESAMPLES, count), dtype=np.int32)
    places = (np.arange(RESAMPLES)[:, None] * count + drawn).ravel()
    return np.bincount(places, minlength=RESAMPLES * count).reshape(RESAMPLES, count)


def jackknife(value: float, left: Floats, sizes: Ints) -> tuple[float, float]:
    """Return a statistic of n draws with the jackknife's variance, NaN for one draw.

    Args:
        value: the statistic. left: (G,), what it is without one draw of each of G groups of equal draws.
        sizes: (G,), of the groups; they sum to n.
    Source: Efron and Stein (1981), The jackknife estimate of variance, eq. 1.3.
    """
    count = int(sizes.sum())
    spread = sizes @ (left - sizes @ left / count) ** 2 * (count - 1) / count
    return value, float(spread) if count > 1 else math.nan


def majority_ways(counts: Ints, right: Floats, k: int) -> Floats:
    """Return how many of the ways to draw k of n answers have a right one as the most frequent; ties count in parts.

    Args:
        counts: (R, A) integers, how often each of A answers is among the n.
        right: (A,), how right each is, in [0, 1].
        k: from 1 to n.
    Returns: (R,), at most C(n, k).
    """
    ways = _chosen(counts, k)  # (k + 1, R, A)
    total = np.zeros(len(counts))
    for own in np.flatnonzero(right).tolist():
        for votes in range(1, min(k, int(counts[:, own].max())) + 1):
            # [ties, drawn]: the ways in which the other answers so far get `drawn` votes, none more than `votes`.
            others = np.zeros((k // votes, k - votes + 1, len(counts)))
            others[0, 0] = 1.0
            for other in range(len(right)):
                if other != own:
                    others = _with_votes(others, ways[: votes + 1, :, other])
            ties = np.arange(1, len(others) + 1)[:, None]
            total += right[own] * ways[votes, :, own] * (others[:, -1] / ties).sum(0)
    return total


def _chosen(counts: Ints, most: int) -> Floats:
    """Return C(c, j) of every count c for j = 0..most, (most + 1, ...)."""
    table = [[math.comb(c, j) for c in range(int(counts.max()) + 1)] for j in range(most + 1)]
    return np.asarray(np.array(table, np.float64)[:, counts])


def _with_votes(others: Floats, ways: Floats) -> Floats:
    """Add an answer that gets 0..votes votes in `ways` (votes + 1, R), and ties where it gets the most."""
    found = others.copy()  # there is one way to draw none of its votes
    votes, room = len(ways) - 1, others.shape[1]
    for got in range(1, min(votes, room)):
        if ways[got].any():
            found[:, got:] += others[:, : room - got] * ways[got]
    if votes < room and ways[votes].any():
        found[1:, votes:] += others[:-1, : room - votes] * ways[votes]
    return found


@dataclass(frozen=True, eq=False)
class Samples:
    """Completions of P prompts, as many from each of K policies, of which the reference is the first.

    Attributes:
        returns: (P, n) expected discounted returns, reward units; n = K * each.
        log_weights: (P, n) log(pi_ref(y) / q(y)), q being the mixture of the K policies in equal parts; 0 where K = 1.
        weights: (P,) probabilities of the prompts.
        each: completions that each policy wrote to a prompt; those of policy k are columns k * each to (k + 1) * each.
        maximum: the greatest return that the reward can pay, reward units; None where it does not say.
        tokens: (P, K, T) int32, the first completion of each policy, -1 behind its end.
    """

    returns: Floats
    log_weights: Floats
    weights: Floats
    each: int
    maximum: float | None
    tokens: NDArray[np.int32] = field(repr=False)

    def __post_init__(self) -> None:
        shape = self.returns.shape
        fits = len(shape) == 2 and self.each >= 1 and shape[1] and shape[1] % self.each == 0
        fits = fits and self.log_weights.shape == shape and self.weights.shape == shape[:1]
        if not fits or self.tokens.ndim != 3 or self.tokens.shape[:2] != (shape[0], shape[1] // self.each):
            shapes = {name: getattr(self, name).shape for name in ("returns", "log_weights", "weights", "tokens")}
            raise ValueError(
                f"each={self.each!r:.80}, shapes {shapes}: allowed are (P, n), (P, n), (P,), (P, n / each, T)"
            )
        if not all(np.isfinite(getattr(self, name)).all() for name in ("returns", "log_weights", "weights")):
            raise ValueError("returns, log_weights or weights: they hold a number that is not finite")

    @property
    def policies(self) -> int:
        """K."""
        return int(self.returns.shape[1]) // self.each


@dataclass(frozen=True, eq=False)
class Tilt:
    """J* and J_ref as samples tell them at one beta.

    Attributes:
        values, references: (P,) of each prompt, reward units.
        replicates: (R, 2) of J_ref and J*, averaged over the prompts, drawn together.
        effective_samples: (P,) (sum v)^2 / sum v^2 with v = exp(R / beta) pi_ref / q.
        unseen: (P,) whether all completions of a prompt earned the same, and less than the reward can pay.
    """

    values: Floats
    references: Floats
    replicates: Floats
    effective_samples: Floats
    unseen: Bools


def draw_samples(
    task: Task,
    reference: Reference,
    proposals: Sequence[Policy] = (),
    *,
    split: str = "eval",
    each: int = 128,
    seed: int = 0,
    keep: Path | None = None,
) -> Samples:
    """Play the reference and every proposal, and score each completion under all of them.

    Args:
        proposals: trained policies with `log_probs(observation)`.
        each: completions that each policy writes to a prompt of `split`. keep: see `play`.
    Raises: ValueError if a proposal has no log-probabilities.
    """
    own = seed + _OWN_STREAM  # not the completions that an evaluation of the same seed draws
    episodes = play(reference, task, split=split, per_prompt=each, seed=own, others=proposals, keep=keep)
    logs = episodes.log_probs  # (P, n, K)
    mixture = np.logaddexp.reduce(logs, axis=-1) - math.log(1 + len(proposals))
    weights = np.maximum(logs[..., 0] - mixture, _NEVER) if proposals else np.zeros_like(episodes.returns)
    return Samples(
        returns=_single(expected_returns(task, episodes)),
        log_weights=_single(weights),
        weights=episodes.weights,
        each=each,
        maximum=greatest_return(task),
        tokens=episodes.tokens[:, ::each].astype(np.int32),
    )


def tilt(samples: Samples, beta: float, seed: int = 0) -> Tilt:
    """Estimate J* = E_x[beta log E_{y ~ q} (pi_ref / q) exp(R / beta)] and J_ref, with bootstrap replicates.

    A log of a mean is biased low; the leading bias is taken out. The completions of each policy are one stratum of the
    variance and of the bootstrap. J_ref is the mean of the reference's own completions.

    Args:
        beta: > 0, reward units per nat.
    Source: Korbak et al. (2022), arXiv:2205.11275, section 3; Owen and Zhou (2000), Safe and effective importance
        sampling, section 3 (the mixture).
    """
    logs = samples.log_weights + samples.returns / beta
    top = logs.max(1, keepdims=True)
    # (P, n); the squares of what is left of the smallest are numbers still, in replicates without the greatest, too.
    tilted = np.exp(np.maximum(logs - top, _LEAST))
    effective = tilted.sum(1) ** 2 / np.square(tilted).sum(1)
    values = _soft_maximum(top[:, 0], *_moments(tilted, samples.each), beta)
    references = samples.returns[:, : samples.each].mean(1)
    base, best = _replicates(samples, tilted, top[:, 0], beta, seed)
    unseen = _unseen(samples)
    values = np.where(unseen, samples.returns[:, 0], values)
    estimates = np.array([samples.weights @ references, samples.weights @ values])
    drawn = np.stack([base @ samples.weights, best @ np.where(unseen, 0.0, samples.weights)], axis=1)
    drawn = widen(estimates, drawn, samples.each)
    # Few effective samples know little of their own spread: Student's t in place of the normal.
    drawn[:, 1] = estimates[1] + (drawn[:, 1] - estimates[1]) * _student(1.0 / np.sum(samples.weights / effective))
    if unseen.any() and samples.maximum is not None:
        # Where nothing better was found, J* lies anywhere from what was seen to the greatest return.
        room = samples.weights[unseen] @ (samples.maximum - values[unseen])
        drawn[1::2, 1] += room
    return Tilt(values, references, drawn, effective, unseen)


def expected_returns(task: Task, episodes: PromptEpisodes) -> Floats:
    """Return the returns (P, n) without the reward's noise: exp(R / beta) of a noisy R would reward luck.

    A noisy reward names its noise by a term `noise`; without one, the gold reward counts as its expectation.

    Raises: ValueError for a noisy task that has neither.
    """
    if not task.noisy:
        return episodes.returns
    if NOISE in episodes.terms:
        noise = np.nan_to_num(episodes.terms[NOISE])  # none was paid where the reward abstained or failed
        return np.asarray(episodes.returns - noise * task.gamma ** (episodes.lengths - 1))
    if np.isnan(episodes.gold).any():
        raise ValueError(
            f"task {task.name!r}: its reward is noisy; allowed is one with a term {NOISE!r}, or with gold as its mean"
        )
    return np.asarray(episodes.gold * task.gamma ** (episodes.lengths - 1))


def greatest_return(task: Task) -> float | None:
    """Return the greatest discounted return that the task's reward declares (`maximum`); None where it does not say."""
    maximum = getattr(task.reward, "maximum", None)
    if maximum is None or task.scorer.pay == "every":
        return None
    failed = {"penalty": task.penalty, "skip": 0.0}.get(task.on_error, float(maximum))
    return max(float(maximum), failed, 0.0 if task.gamma < 1 else failed)


def write_samples(samples: Samples, path: Path, key: JsonObject) -> None:
    """Write samples and the key of the task that they belong to as one safetensors file, atomically."""
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {
        "returns": samples.returns.astype(np.float32),
        "log_weights": samples.log_weights.astype(np.float32),
        "weights": samples.weights,
        "tokens": samples.tokens,
    }
    facts = {"format": _FORMAT, "each": samples.each, "maximum": samples.maximum, "key": key}
    write_bytes(path, save(arrays, metadata={"samples": json.dumps(facts, sort_keys=True)}))


def read_samples(path: Path) -> tuple[Samples, JsonObject]:
    """Read the samples and the key that `write_samples` wrote.

    Raises: ValueError naming the file if it holds none.
    """
    from safetensors import safe_open

    with reading(path, "the file of samples"):
        check_file(path)
        with safe_open(path, "numpy") as file:
            facts = json.loads((file.metadata() or {})["samples"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']!r:.80}, allowed is {_FORMAT}")
        samples = Samples(
            returns=arrays["returns"].astype(np.float64),
            log_weights=arrays["log_weights"].astype(np.float64),
            weights=arrays["weights"],
            each=int(facts["each"]),
            maximum=facts["maximum"],
            tokens=arrays["tokens"],
        )
        return samples, facts["key"]


def _single(values: Floats) -> Floats:
    """Round to the precision of a file, so that samples that were read back say the same."""
    return values.astype(np.float32).astype(np.float64)


def _moments(tilted: Floats, each: int) -> tuple[Floats, Floats]:
    """Return the mean (P,) of rows (P, n) made of strata of `each` columns, and the variance of that mean."""
    strata = tilted.reshape(len(tilted), -1, each)
    spread = strata.var(-1, ddof=1) if each > 1 else np.zeros(strata.shape[:2])
    return tilted.mean(1), np.asarray(spread.mean(1) / tilted.shape[1])


def _soft_maximum(top: Floats, mean: Floats, variance: Floats, beta: float) -> Floats:
    """Return beta (top + log mean) without its leading bias, -variance / (2 mean^2) in the log."""
    return np.asarray(beta * (top + np.log(mean) + 0.5 * variance / np.square(mean)))


def _replicates(samples: Samples, tilted: Floats, top: Floats, beta: float, seed: int) -> tuple[Floats, Floats]:
    """Return bootstrap replicates (R, P) of each prompt's J_ref and J*, drawn together, each stratum on its own."""
    each, count = samples.each, samples.policies
    base: Floats | None = None
    mean = square = inner = 0.0
    for policy in range(count):
        own = tilted[:, policy * each : (policy + 1) * each]
        columns = np.stack([samples.returns[:, :each], own, np.square(own)])
        returns, means, squares = resampled_means(columns, seed + 1 + policy).swapaxes(0, 1)
        base = returns if base is None else base
        mean, square, inner = mean + means / count, square + squares / count, inner + means**2 / count
    assert base is not None
    # As `_moments`: the unbiased variance within strata, over all n columns.
    within = (square - inner) * each / max(each - 1, 1)
    variance = within / tilted.shape[1]
    return base, _soft_maximum(top, np.asarray(mean), np.asarray(variance), beta)


def _unseen(samples: Samples) -> Bools:
    lowest, highest = samples.returns.min(1), samples.returns.max(1)
    same = highest - lowest <= 1e-9 * np.maximum(1.0, np.abs(highest))
    if samples.maximum is None:
        return np.asarray(same)
    return np.asarray(same & (highest < samples.maximum - 1e-6 * max(1.0, abs(samples.maximum))))  # float32 in a file


def _student(samples: Floats | float) -> Floats:
    """Return Student's t over the normal quantile, at 97.5%, to 0.05%; of one degree of freedom at least."""
    parts = 1.0 / np.maximum(np.asarray(samples, dtype=np.float64) - 1.0, 1.0)
    return np.asarray(np.exp(np.interp(parts, np.linspace(0.0, 1.0, 21), np.log(np.array(_STUDENT) / _STUDENT[0]))))
