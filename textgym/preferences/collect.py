"""Collect preferences: sample completions of a policy, and rank them as a noisy annotator would.

Source: Bradley and Terry, Biometrika 39 (1952), for two completions; Luce, Individual Choice Behavior (1959), and
Plackett, Applied Statistics 24 (1975), for orders of K; as annotators of K answers to a prompt: Ouyang et al.,
arXiv:2203.02155, section 3.5. Sampling by Gumbel noise: Yellott, Journal of Mathematical Psychology 15 (1977).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from textgym.checks import MOST_ROWS, Ints, check_count, check_number
from textgym.preferences.data import Ranking
from textgym.rewards.registry import RewardSpec, make_reward
from textgym.sampling import Policy, play
from textgym.task import Task, refuse_turns


def annotate(scores: ArrayLike, temperature: float, generator: np.random.Generator) -> Ints:
    """Draw orders of completions from the Plackett-Luce model with logits score / T.

    The best is drawn from softmax(scores / T), the next from the softmax over the rest, and so on. Of two
    completions a is put before b with probability sigmoid((score_a - score_b) / T).

    Args:
        scores: float64 (N, K), reward units, finite.
        temperature: T, reward units, finite and >= 0. At 0 there are no mistakes, and a fair coin breaks ties.
        generator: draws the same count of numbers at every temperature.
    Returns: int64 (N, K), places in `scores`, best first.
    Raises: ValueError for scores of another shape or not finite, or a temperature that is not allowed.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"scores: {array.shape} array, allowed are finite numbers of shape (N, K)")
    check_temperature(temperature)
    # The order of the logits plus Gumbel noise has the model's distribution. Multiplied by T it is the same order,
    # and nothing overflows where T is small.
    noise = temperature * generator.gumbel(size=array.shape)
    noisy = array - array.max(1, keepdims=True, initial=-np.inf) + noise
    return np.lexsort((generator.random(array.shape), -noisy), axis=1).astype(np.int64)


def check_temperature(temperature: float, name: str = "temperature") -> None:
    """Raise ValueError, which calls it by `name`, unless a temperature is a finite number >= 0."""
    check_number(name, temperature, 0, unit="reward units")


# Decimal places of a score: sums of the same rewards in another order are ties.
_DIGITS = 12
_REDRAWS = 8  # Further rounds in which the missing candidates of a prompt are drawn.


@dataclass(frozen=True)
class Collected:
    """Rankings, and counts of the prompts and completions left out.

    Args:
        rankings: at most one for each prompt drawn, in the order of drawing.
        prompts: drawn.
        short: rankings of fewer candidates than asked for.
        dropped: reason -> prompts without a ranking: "alike" where the policy gave no two different answers that
            are not empty and have a score, "tied" where their gold rewards were all equal.
        tied: candidates left out because another one of the prompt has the same gold reward.
        failures: kind -> completions that the ranking reward failed on; what they count is the task's `on_error`.
    """

    rankings: list[Ranking]
    prompts: int
    short: int
    dropped: dict[str, int]
    tied: int
    failures: dict[str, int]


class _Candidate(NamedTuple):
    text: str
    ended: bool
    gold: float


def collect(
    task: Task,
    policy: Policy,
    *,
    n: int,
    candidates: int = 2,
    noise: float = 0.0,
    split: str = "train",
    seed: int = 0,
    reward: RewardSpec | None = None,
    keep_ties: bool = False,
) -> Collected:
    """Draw prompts by the task's weights and different candidates for each, and rank them with an annotator.

    Candidates that repeat another one of their prompt, are empty or have no finite score are drawn again, a few
    times; a prompt may end with fewer than asked for, or with none. `ended` of a ranking says which were stopped by
    the policy itself; its scores are rounded to 12 decimal places.

    Args:
        n: prompts, >= 1. candidates: K for each, >= 2.
        noise: temperature of the annotator, reward units, see `annotate`.
        split: which prompts. seed: the same one gives the same rankings, where the policy gives log-probabilities.
        reward: what ranks; None: the task's gold reward, or its return where it has no gold.
        keep_ties: whether candidates of equal gold reward are ranked by a coin instead of keeping the first.
    Raises: ValueError for a value that is not allowed.
    """
    refuse_turns(task, "a collection of preferences")
    check_count("n", n, 1, MOST_ROWS)
    check_count("candidates", candidates, 2, MOST_ROWS)
    check_count("seed", seed, 0)
    check_temperature(noise)
    judged = task if reward is None else replace(task, gold=make_reward(reward))
    generator = np.random.default_rng([seed, 5])
    prompts = judged.prompt_set(split)
    drawn = generator.choice(len(prompts), size=n, p=prompts.weights)
    found, failures = _draw(judged, policy, drawn, candidates, split, generator)
    rankings: list[Ranking] = []
    dropped: Counter[str] = Counter()
    tied = 0
    for prompt, group in zip(drawn, found, strict=True):
        kept = group if keep_ties else list({each.gold: each for each in reversed(group)}.values())[::-1]
        tied += len(group) - len(kept)
        if len(kept) < 2:
            dropped["alike" if len(group) < 2 else "tied"] += 1
            continue
        best_first = annotate([[each.gold for each in kept]], noise, generator)[0]
        texts, ended, scores = zip(*(kept[i] for i in best_first), strict=True)
        rankings.append(Ranking(prompts.texts[prompt], texts, ended, scores=scores))
    short = sum(len(ranking.completions) < candidates for ranking in rankings)
    return Collected(rankings, int(n), short, dict(dropped), tied, dict(failures))


def _draw(
    task: Task, policy: Policy, drawn: Ints, candidates: int, split: str, generator: np.random.Generator
) -> tuple[list[list[_Candidate]], Counter[str]]:
    """Return up to `candidates` different ones for each drawn prompt, in the order of drawing; failures by kind."""
    gold = None if task.gold_scorer is task.scorer else task.gold_scorer
    failures: Counter[str] = Counter()
    before = Counter() if gold is None else Counter(gold.failures)
    found: list[dict[str, _Candidate]] = [{} for _ in drawn]
    for _ in range(1 + _REDRAWS):
        missing = np.array([candidates - len(group) for group in found])
        owners = np.repeat(np.arange(len(drawn)), missing)
        if not owners.size:
            break
        own_seed = int(generator.integers(2**31))
        played = play(policy, task, split=split, prompt_index=drawn[owners], per_prompt=1, seed=own_seed)
        failures.update(played.failures if gold is None else {})
        scores = played.returns if task.gold is None else played.gold
        for i, owner in enumerate(owners):
            text, score = str(played.completions[i, 0]), round(float(scores[i, 0]), _DIGITS)
            if text.strip() and math.isfinite(score):
                found[owner].setdefault(text, _Candidate(text, bool(played.stopped[i, 0]), score))
    if gold is not None:
        failures = gold.failures - before
    return [list(group.values()) for group in found], failures
