"""The optimum of diagnostic tasks, by listing every completion and by formula."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from textgym.lm.reference import Reference
from textgym.solver import solve
from textgym.task import Task, make_reference, make_task

SMALL = [
    ("Bandit", {"difficulty": 2}),
    ("BetaSweep", {"difficulty": 0}),
    ("BetaSweep", {"difficulty": 6}),
    ("BigVocab", {"difficulty": 0}),
    ("Copy", {"difficulty": 2}),
    ("Deceptive", {"difficulty": 4}),
    ("DeepSea", {"difficulty": 4}),
    ("Delayed", {"difficulty": 3}),
    ("Distractor", {"difficulty": 2}),
    ("Noisy", {"difficulty": 4}),
    ("Recall", {"difficulty": 1}),
    ("Reverse", {"difficulty": 2}),
    ("Scale", {"difficulty": 3}),
    ("Stop", {"difficulty": 2}),
    ("TwoModes", {"difficulty": 3}),
]


def completions(task: Task) -> list[tuple[int, ...]]:
    """Every completion: up to a stop token, or as long as the budget."""
    allowed, stops = np.flatnonzero(task.vocabulary.allowed).tolist(), task.vocabulary.stop_ids
    result = []
    for length in range(1, task.max_new_tokens + 1):
        for ids in itertools.product(allowed, repeat=length):
            ended = length == task.max_new_tokens or ids[-1] in stops
            if ended and not set(ids[:-1]) & set(stops):
                result.append(ids)
    return result


def log_probability(reference: Reference, prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    total = 0.0
    for place, token in enumerate(completion):
        ids = np.array([prompt + completion[:place]])
        total += float(reference.log_probs({"input_ids": ids, "attention_mask": np.ones_like(ids)})[0, token])
    return total


def by_enumeration(task: Task, split: str) -> tuple[float, float]:
    """J* = sum_x rho(x) beta log sum_y ref(y given x) exp(R(y) / beta), and J of the reference."""
    reference, every = make_reference(task), completions(task)
    reward = task.gold if task.noisy else task.reward
    best = base = 0.0
    for prompt, weight in zip(task.encoded(split), task.prompt_set(split).weights, strict=True):
        columns: dict[str, Any] = {
            name: [values[prompt.index]] * len(every) for name, values in task.prompt_set(split).columns.items()
        }
        ids = [list(completion) for completion in every]
        paid = reward([prompt.text] * len(every), task.vocabulary.decode(ids), completion_ids=ids, **columns)
        logs = [log_probability(reference, prompt.ids, completion) for completion in every]
        assert sum(map(math.exp, logs)) == pytest.approx(1.0)
        top = max(paid)
        mean = sum(math.exp(log + (r - top) / task.beta) for log, r in zip(logs, paid, strict=True))
        best += weight * (top + task.beta * math.log(mean))
        base += weight * sum(math.exp(log) * r for log, r in zip(logs, paid, strict=True))
    return best, base


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_the_solver_finds_what_listing_every_completion_finds(name: str, options: dict[str, Any]) -> None:
    best, base = by_enumeration(make_task(name, **options), "eval")
    known = solve(make_task(name, **options), split="eval")
    assert known.objective == pytest.approx(best, rel=1e-10)
    assert known.reference_objective == pytest.approx(base, rel=1e-10)
    assert known.optimality(base) == pytest.approx(0.0, abs=1e-9)
    assert known.optimality(best) == pytest.approx(1.0, abs=1e-9)


def one_of(share: float, beta: float) -> float:
    """J* of a task that pays 1 with this probability under the reference, else 0."""
    return beta * math.log(share * math.exp(1 / beta) + 1 - share)


@pytest.mark.parametrize(
    ("name", "share", "beta"),
    [
        ("DeepSea", 2**-10, 0.05),
        ("Delayed", 1 / 3, 0.1),
        ("Distractor", 1 / 4, 0.1),
        ("Recall", 1 / 4, 0.1),
        ("BigVocab", 1 / 16, 0.1),
        ("TwoModes", 0.5**3 + 0.25 * 0.5**2, 0.2),
    ],
)
def test_default_difficulties_by_formula(name: str, share: float, beta: float) -> None:
    known = solve(make_task(name), split="eval")
    assert known.objective == pytest.approx(one_of(share, beta), rel=1e-10)
    assert known.reference_objective == pytest.approx(share, rel=1e-10)
    assert known.beta == beta


def test_words_that_are_paid_one_by_one_add_up() -> None:
    # Each of three words earns 1/3 with probability 1/6, apart from the others.
    word = 0.1 * math.log((math.exp(1 / 0.3) + 5) / 6)
    for name in ("Copy", "Reverse"):
        assert solve(make_task(name), split="train").objective == pytest.approx(3 * word, rel=1e-10)
    spelt = 0.1 * math.log((math.exp(1 / 0.3) + 3) / 4)
    assert solve(make_task("Noisy"), split="eval").objective == pytest.approx(3 * spelt, rel=1e-10)
    for difficulty, scale in enumerate((1.0, 10.0, 0.1, 100.0, 0.01)):
        known = solve(make_task("Scale", difficulty=difficulty), split="eval")
        assert known.objective == pytest.approx(3 * spelt * scale, rel=1e-10)


def test_big_vocab_has_one_optimum_for_every_v() -> None:
    values = [solve(make_task("BigVocab", difficulty=difficulty), split="eval").objective for difficulty in range(7)]
    assert values[:6] == pytest.approx([values[0]] * 6, rel=1e-10)
    assert values[6] == pytest.approx(one_of(3142 / 50257, 0.1), rel=1e-10)


def test_the_optimum_of_two_modes_keeps_both_in_the_reference_s_proportions() -> None:
    solution = solve(make_task("TwoModes"))
    top = solution.likeliest(0, 2)
    assert [completion.text for completion in top] == ["a a a", "b b b"]
    assert top[0].probability == pytest.approx(2 * top[1].probability, rel=1e-10)
    assert top[0].probability + top[1].probability > 0.9


def test_deceptive_s_optimum_is_far_and_its_bait_is_near() -> None:
    solution = solve(make_task("Deceptive"))
    assert solution.likeliest(0, 1)[0].text == " ".join(["far"] * 8)
    # From the first word on, a policy that follows the reference afterwards gains more by going near.
    values = solution.reference.action_values[0]
    assert values[0] - values[1] == pytest.approx(0.5 / 8 - 2**-7, abs=1e-12)
