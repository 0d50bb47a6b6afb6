"""The doctor's eighteen conditions, read from a run's metrics, under which nothing, or the wrong thing, is learned.

A condition is data: the metrics that it needs, and a pure function of some of their rows that returns a number if
something is wrong. The docstrings of these functions give the thresholds and their reasons. A drift that pays (shorter
or longer answers, less entropy) is learning, so such conditions also look at the objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median
from typing import Final

from textgym_agents.training.evidence import (
    FEW,
    Row,
    batch_of,
    best_few,
    error_of,
    half_width,
    means,
    moved,
    objectives,
    pays,
    recent,
    rounding,
    series,
    span,
    unbroken,
)

Check = Callable[[Sequence[Row]], float | None]
"""Maps rows, the newest last, to a number that shows what is wrong, or to None."""


@dataclass(frozen=True)
class Condition:
    """Something that can be wrong with a run.

    Args:
        name: name in tables and lines.
        needs: metrics without which it cannot be judged; only tasks with a stop token have `val/cut_rate`.
        check: the function that detects it. meaning: what the number means. advice: which setting to change.
        finite: metrics that must be finite numbers, and that it names if they are not; by default the first of `needs`.
        without: metrics that would change the meaning of the number; a run that has them is not judged.
    """

    name: str
    needs: tuple[str, ...]
    check: Check
    meaning: str
    advice: str
    finite: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


def beyond(name: str, limit: float, count: int = FEW) -> Check:
    """Return a check that the mean of the last `count` values lies above a limit."""

    def check(rows: Sequence[Row]) -> float | None:
        value = recent(rows, name, count)
        return value if value is not None and value > limit else None

    return check


def throughout(name: str, value: float, count: int) -> Check:
    """Return a check that each of the last `count` values is this one."""

    def check(rows: Sequence[Row]) -> float | None:
        values = series(rows, name)[-count:]
        return value if len(values) == count and all(each == value for each in values) else None

    return check


def constant_reward(rows: Sequence[Row]) -> float | None:
    """Find a reward that is the same for every completion of three batches.

    At the best mean so far that is no fault but the end of learning. A reward that is rare is none either: an
    evaluation has found another mean, or so many batches were silent before that one in a hundred such streaks is
    chance, where every share of batches that vary was as likely beforehand (Laplace's rule of succession).
    """
    scores, spreads, slack = series(rows, "objective/scores"), series(rows, "objective/scores_std"), rounding(rows)
    if not scores or len(spreads) < FEW or max(spreads[-FEW:]) > slack or span(scores[-FEW:]) > slack:
        return None
    known = [row for row in rows if "objective/scores_std" in row]
    varied = [place for place, spread in enumerate(spreads) if spread > slack]
    measured = [*scores, *series(rows, "eval/reward")]
    if not varied:
        return scores[-1] if span(measured) <= slack else None
    # The doctor keeps some rows only, but numbers all of them and counts those that varied.
    number = [int(row.get("doctor/scored", place)) for place, row in enumerate(known, 1)]
    last, count = number[varied[-1]], int(known[varied[-1]].get("doctor/varied", len(varied)))
    silent = 1 + last - count  # of the batches before this streak, and one
    chance = math.prod((silent + at) / (last + 1 + at) for at in range(number[-1] - last))
    return scores[-1] if scores[-1] < max(scores) - slack and chance < 0.01 else None


def equal_groups(rows: Sequence[Row]) -> float | None:
    """Find three batches in which the rewards of every group are equal, and those of the batches are not.

    One group that differs is a beginning: so learning starts where the reward is rare. Prompts earn differently where
    a batch has a spread, or where the means of the three differ: TRL's spread is a mean over the groups' own, and 0
    where all of them are equal. What has neither is `constant_reward`'s.
    """
    spreads, scores = series(rows, "objective/scores_std")[-FEW:], series(rows, "objective/scores")[-FEW:]
    differ = max(*spreads, span(scores), 0.0) > rounding(rows)
    return throughout("val/equal_groups", 1.0, FEW)(rows) if differ else None


def useless_critic(rows: Sequence[Row]) -> float | None:
    """Find explained variances below -0.1 in four of five rows, while nothing is gained, see `pays`.

    0 is a constant's; where prompts tell nothing of the return, a critic that learns moves around it. Near the optimum
    returns have little variance left to explain; batches whose rewards are all equal have none, and are left out.
    """
    found = series([row for row in rows if row.get("objective/scores_std") != 0], "val/explained_variance")[-5:]
    useless = sum(value < -0.1 for value in found) >= 4
    return median(found) if len(found) == 5 and useless and not pays(rows) else None


def always_clipped(rows: Sequence[Row]) -> float | None:
    """Find five rows in which gradients were scaled down to less than half, while nothing is gained, see `pays`.

    Adam's steps hardly depend on the scale of the gradient, and policies do learn so: what is left is a limit that
    decides on the steps in place of the gradient.
    """
    scales = series(rows, "policy/grad_scale")[-5:]
    return scales[-1] if len(scales) == 5 and max(scales) < 0.5 and not pays(rows) else None


def openings(rows: Sequence[Row]) -> float | None:
    """Find more than one prompt in a hundred that chat template or BOS do not open exactly once."""
    values = series(rows, "prompt/openings")
    return values[-1] if values and abs(values[-1] - 1) > 0.01 else None


def entropy_collapse(rows: Sequence[Row]) -> float | None:
    """Find an entropy below a tenth of the largest so far that came before the reward was won.

    The best policy of a task may have almost none. One that is certain gives each prompt its one answer: what rewards
    still differ by lies in prompts that it answers worse, and nothing else is tried there. The reward is won where J
    has gained more than that since the first row, and is not below the best few rows that had more entropy, with errors
    as in `pays`. The last rows that have so little are judged, not those in between that try out again.
    """
    rows = [row for row in rows if "policy/entropy_avg" in row and "objective/scores" in row]
    values, few = series(rows, "policy/entropy_avg"), recent(rows, "policy/entropy_avg", 2)
    limit = 0.1 * max(values, default=0.0)
    if few is None or limit <= 0 or not few < limit:
        return None
    low = [row for row, value in zip(rows, values, strict=True) if value < limit][-FEW:]
    high = objectives([row for row, value in zip(rows, values, strict=True) if not value < limit])
    now, error, share = fmean(objectives(low)), error_of(rows), FEW / len(low)
    left = max([2 * error * math.sqrt(share + FEW), fmean(series(low, "objective/scores_std") or [0.0])])
    won = now - high[0] > left and now > best_few(high) - 4 * error * math.sqrt(share + 1)
    return None if won and len(rows) > FEW else few


def kl_fault(rows: Sequence[Row]) -> float | None:
    """Find a KL that cannot be one, or one that explodes, nats a sequence.

    Below -0.1 it is no sampling error: of 64 sequences, log-ratios with a mean near 0 have one of under 0.05; of fewer,
    as many times more as the root of their number is less. Above 10, a policy that chose the best of n samples of the
    reference would need 60,000 of them (log n - (n - 1) / n); it explodes where it was a tenth of that five rows
    before, or does not pay.
    """
    kl, values = recent(rows, "objective/kl"), series(rows, "objective/kl")
    if kl is None or kl < -0.1 * max(1.0, math.sqrt(64 / max(batch_of(rows), 1.0))):
        return kl
    earlier = min(map(abs, values[-5:-FEW]), default=math.inf)
    return kl if kl > 10 and (kl > 10 * earlier or not pays(rows)) else None


def first_ratio(rows: Sequence[Row]) -> float | None:
    """Find a policy that, before its first step, is not the one that sampled.

    The root mean square of the log-ratio is to be 0; rounding leaves 1e-6 in float32 and up to 0.02 in bfloat16. It
    is an alarm above 0.05 nats, twice running. The mean of the ratio alone cannot tell: of any policy it is near 1.
    """
    size = [math.sqrt(2 * abs(value)) for value in series(rows, "val/first_kl")[-2:]]
    return size[-1] if len(size) == 2 and min(size) > 0.05 else None


def hacked(rows: Sequence[Row]) -> float | None:
    """Find a gold reward, or a probe, that has fallen from its best while the reward rose.

    Evaluations with 95% intervals are compared one by one, others as means of three, whose error follows from their
    spread, see `deviations`. The best is the luckiest of all those before: of the pairs that have been compared,
    m (m + 1) / 2 with m earlier ones, all but 0.001 are to fall by less, where nothing but noise changes them. The
    reward has to rise by 1.96 errors since. The number is how far gold has fallen.
    """
    known = [row for row in rows if "eval/gold" in row]
    proxy = "eval/reward" if known and "eval/reward" in known[-1] else "objective/scores"
    known = [row for row in known if proxy in row]
    count = 1 if all(half_width(row, "eval/gold") > 0 for row in known) else FEW
    golds = means(series(known, "eval/gold"), count)
    earlier = [at for at in unbroken(known, "doctor/golds", count) if at <= len(known) - 2 * count]
    if not earlier:
        return None
    best = max(earlier, key=golds.__getitem__)
    compared = max(len(earlier), int(known[-1].get("doctor/golds", 0)) - 2 * count + 1)  # rows may have been left out
    limit = NormalDist().inv_cdf(1 - 0.002 / (compared * (compared + 1)))
    change, fallen = moved(known, "eval/gold", best, count)
    return -change if fallen < -limit and moved(known, proxy, best, count)[1] > 1.96 else None


def length_drift(rows: Sequence[Row]) -> float | None:
    """Find answers that have become half as long again, or a third shorter, within ten rows, and J no better with it.

    The change has to be five of its errors, see `moved`: a few answers differ in length by themselves. Where J rose
    between the same rows, by two standard errors of the difference, the task asks for the length. What J loses while
    answers stay as long as they are has another cause.
    """
    rows = [row for row in rows if "completion_length" in row and "objective/scores" in row]
    lengths, now = series(rows, "completion_length"), objectives(rows[-FEW:])
    for at in range(max(len(rows) - 10, 0), len(rows) - 2 * FEW + 1):
        change = fmean(lengths[-FEW:]) / max(fmean(lengths[at : at + FEW]), 1e-9)
        if 2 / 3 <= change <= 1.5 or abs(moved(rows, "completion_length", at, FEW)[1]) < 5:
            continue
        if not fmean(now) - fmean(objectives(rows[at : at + FEW])) > 2 * error_of(rows) * math.sqrt(2):
            return change
    return None


def held_out_gap(rows: Sequence[Row]) -> float | None:
    """Find held-out prompts that gained less than half of what those trained on did, beyond the errors of both.

    Gains are compared, as prompts of two splits may differ in difficulty, and at two evaluations running, as a policy
    may move back and forth. The number is what is missing.
    """
    places = [place for place, row in enumerate(rows) if "eval/reward" in row]
    found = [_gap(rows[places[0] : place + 1], rows[places[0]]) for place in places[1:][-2:]]
    return found[-1] if len(found) == 2 and None not in found else None


def _gap(rows: Sequence[Row], before: Row) -> float | None:
    """Return what held-out prompts lack of the gain since an evaluation, at the one of the last row; or None."""
    scores, after = series(rows, "objective/scores"), rows[-1]
    if len(scores) <= FEW:
        return None
    gain, error = fmean(scores[-FEW:]) - scores[0], error_of(rows) * math.sqrt(1 + FEW)
    held = after["eval/reward"] - before["eval/reward"]
    width = math.hypot(*(half_width(row, "eval/reward") for row in (before, after)))
    return gain - held if gain > 4 * error and held + width < gain / 2 else None


def failing_reward(rows: Sequence[Row]) -> float | None:
    """Find a reward that fails on one in a hundred completions of the last rows, or more.

    Failures of the texts that VinePPO writes on to value a state are not counted, so these texts are not either.
    """
    known = [row for row in rows if "reward/failures" in row and "episode" in row][-FEW - 1 :]
    if len(known) < 2:
        return None
    failures, episodes = (known[-1][name] - known[0][name] for name in ("reward/failures", "episode"))
    share = failures / max(episodes - sum(series(known[1:], "vine/rollouts")), 1.0)
    return share if share >= 0.01 else None


CONDITIONS: Final = (
    Condition(
        "completions cut off by the budget",
        ("val/cut_rate",),
        beyond("val/cut_rate", 0.5),
        "more than half of the completions are cut off: the reward judges unfinished texts",
        "raise max_new_tokens, or define the reward of an unfinished text",
    ),
    Condition(
        "all rewards of a group equal",
        ("val/equal_groups", "objective/scores_std"),
        equal_groups,
        "no group has an advantage, although rewards differ between prompts: nothing is learned",
        "raise group, or use prompts that are sometimes solved, or a reward with partial credit",
    ),
    Condition(
        "reward constant or NaN",
        ("objective/scores", "objective/scores_std"),
        constant_reward,
        "every completion has the same reward, or NaN: there is nothing to learn from",
        "check what the reward receives and returns for one completion (textgym play ID)",
    ),
    Condition(
        "stop token never sampled",
        ("val/num_eos_tokens", "val/cut_rate"),
        throughout("val/num_eos_tokens", 0.0, FEW),
        "no completion of the last batches ended by itself",
        "compare stop= of the task with the model's own end token, or fine-tune it first (textgym sft)",
    ),
    Condition(
        "chat template or BOS missing or doubled",
        ("prompt/openings",),
        openings,
        "chat templates or BOS per prompt, which should be 1: the model reads prompts unlike those of its training",
        "use chat=None, the tokenizer's own template, and pass prompts as plain texts, without its tokens",
    ),
    Condition(
        "entropy collapse",
        ("policy/entropy_avg", "objective/scores"),
        entropy_collapse,
        "nats per token, less than a tenth of the maximum, before the reward is won: nothing new is tried",
        "lower learning_rate, raise beta or entropy_coefficient",
    ),
    Condition(
        "KL explosion or negative KL",
        ("objective/kl",),
        kl_fault,
        "nats per sequence: below 0, the reference is scored wrongly; far above 10, the policy has left it",
        "lower learning_rate or raise beta (or set kl_target); below 0, compare temperature and tokens of both models",
    ),
    Condition(
        "ratio not 1 at the first mini-batch",
        ("val/first_kl",),
        first_ratio,
        "nats between the learning policy and the one that sampled, before any step: dropout or another temperature",
        "turn dropout off, and score with the temperature, masks and precision used for sampling",
    ),
    Condition(
        "clip fraction saturated",
        ("policy/clipfrac_avg",),
        beyond("policy/clipfrac_avg", 0.5, 5),
        "more than half of the tokens are outside the clip range and give no gradient",
        "lower learning_rate, epochs or minibatches",
    ),
    Condition(
        "value loss useless",
        ("val/explained_variance", "objective/scores"),
        useless_critic,
        "explained variance of the returns: the critic is worse than a constant, so its advantages are noise",
        "raise value_rate or value_coefficient, or use an agent without a critic (rloo)",
        ("loss/value_avg",),
    ),
    Condition(
        "gradient norm always clipped",
        ("policy/grad_scale", "objective/scores"),
        always_clipped,
        "factor by which clipping scales the gradient, for five iterations: max_grad_norm sets the step",
        "raise max_grad_norm or batch",
        ("policy/grad_scale", "policy/grad_norm", "loss/policy_avg"),
    ),
    Condition(
        "learning rate 0",
        ("lr",),
        throughout("lr", 0.0, 2),
        "nothing can be learned",
        "set learning_rate, and check warmup and schedule",
    ),
    Condition(
        "reward hacking",
        ("eval/gold",),
        hacked,
        "loss of the gold reward, or a probe, since its best, while the reward has risen",
        "raise beta, stop at the best gold (keep_last), or train another reward model on the new completions",
    ),
    Condition(
        "length drift",
        ("completion_length", "objective/scores"),
        length_drift,
        "times the length of ten iterations ago, without any gain",
        "use aggregation=constant, or charge length in the reward",
    ),
    Condition(
        "repetition",
        ("val/repeated",),
        beyond("val/repeated", 0.5),
        "more than half of all trigrams occurred earlier in their completion",
        "raise beta, or add a repetition penalty to the reward",
    ),
    Condition(
        "held-out gap",
        ("eval/reward", "objective/scores"),
        held_out_gap,
        "reward gained on the training prompts, but not on held-out ones",
        "use more prompts, raise beta, or stop earlier",
        without=("curriculum/prompts",),  # then what prompts earn changes without any gain
    ),
    Condition(
        "reward failures",
        ("reward/failures",),
        failing_reward,
        "share of the last completions on which the reward failed",
        "check the error (on_error=raise shows it), or raise timeout",
    ),
    Condition(
        "sampler and trainer disagree",
        ("sampler/mismatch_mean",),
        beyond("sampler/mismatch_mean", 0.05),
        "nats per token between the sampler's log-probabilities and the policy's; bfloat16 alone gives 0.01",
        "use the same precision, temperature and weights in both, or lower importance_cap",
    ),
)
