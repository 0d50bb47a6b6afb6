"""An estimated optimum: intervals, what may be hidden, whether more samples would tell more; by hand and by search."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from textgym import make_task
from textgym.checks import Floats
from textgym.estimates import Estimate, Samples, draw_samples, read_samples, tilt, write_samples
from textgym.lm.reference import NGramReference
from textgym.optimum import FOLDER, Optimum, estimated, fingerprint, optimum_of, samples_path
from textgym.sampling import play
from textgym.task import make_reference


def drawn(returns: Floats, weights: list[float], maximum: float | None) -> Samples:
    """Samples of the reference alone with returns (P, n)."""
    tokens = np.zeros((len(returns), 1, 1), np.int32)
    return Samples(returns, np.zeros_like(returns), np.array(weights), returns.shape[1], maximum, tokens)


def test_samples_are_not_what_an_evaluation_of_the_same_seed_draws() -> None:
    task = make_task("Stop")
    reference = make_reference(task)
    samples, played = draw_samples(task, reference, each=64, seed=3), play(reference, task, per_prompt=64, seed=3)
    assert (samples.returns != played.returns).any()


def test_the_interval_of_the_reference_is_that_of_its_mean() -> None:
    # Of 0 and 1 in equal parts: n - 1 of n draws tell of a variance of 1/4.
    optimum = estimated(drawn(np.array([[0.0, 1.0] * 100]), [1.0], 1.0), 1.0, "eval")
    half = 1.96 * math.sqrt(0.25 / 199)
    assert optimum.reference is not None
    assert optimum.reference.mean == 0.5
    assert [optimum.reference.low, optimum.reference.high] == pytest.approx([0.5 - half, 0.5 + half], abs=0.1 * half)


@pytest.mark.parametrize(
    ("silent", "maximum", "unknown"),
    [
        ([0.1, 0.0], 1.0, ""),
        ([0.06, 0.06], 1.0, "earned the same (share of the prompts: 0.12)"),
        ([0.05, 0.0], None, "earned the same (share of the prompts: 0.05), and the reward declares no `maximum`"),
        ([0.0, 0.0], None, ""),
        ([0.5, 0.5], 1.0, "earned the same (share of the prompts: 1.00)"),
    ],
)
def test_prompts_that_pay_nothing_may_weigh_a_tenth(silent: list[float], maximum: float | None, unknown: str) -> None:
    samples = drawn(np.array([[0.0, 1.0] * 20, [0.0] * 40, [0.0] * 40]), [1 - sum(silent), *silent], maximum)
    found = estimated(samples, 1.0, "eval")
    assert (found.value is None) == bool(unknown)
    assert found.unknown.endswith(unknown)
    assert (found.effective_samples == 0) == (sum(silent) == 1)


@pytest.mark.parametrize(("count", "known"), [(9, False), (10, True)])
def test_ten_effective_samples_are_enough(count: int, known: bool) -> None:
    # So many of 20 completions carry all the weight.
    returns = np.where(np.arange(20) < count, 1.0, -1e4)[None]
    found = estimated(drawn(returns, [1.0], 1.0), 1.0, "eval")
    assert found.effective_samples == count
    assert (found.value is not None) == known


def most_that_is_hidden(values: Floats, weights: Floats, hidden: float, beta: float) -> float:
    """The greatest gain in J* where `hidden` of the probability, shared among the prompts, earns the maximum of 1."""
    low = np.exp((values - 1) / beta)

    def loss(more: Floats) -> float:
        return -float(weights @ np.log(1 + more * hidden / low))

    whole = {"type": "ineq", "fun": lambda more: 1 - more.sum()}
    bounds = [(0.0, most) for most in (1 - low) / hidden]
    found = minimize(loss, np.zeros(len(low)), bounds=bounds, constraints=whole, tol=1e-12)
    assert found.success
    return -beta * float(found.fun)


@pytest.mark.parametrize(
    ("level", "weights"),
    [
        ([0.6, 0.1, 0.45, 0.3, 0.25], [0.2, 0.2, 0.2, 0.2, 0.2]),
        ([0.6, 0.1, 0.45, 0.3, 0.25], [0.5, 0.05, 0.15, 0.05, 0.25]),
        ([0.99, 0.8, 0.9, 0.95, 0.7], [0.8, 0.05, 0.05, 0.05, 0.05]),  # the first has little more to get
        ([0.99, 0.99, 0.99, 0.99, 0.99], [0.2, 0.3, 0.1, 0.2, 0.2]),  # all may earn the maximum
    ],
)
def test_what_was_not_drawn_is_shared_among_prompts_as_a_search_finds_it(
    level: list[float], weights: list[float]
) -> None:
    returns = np.array(level)[:, None] + np.random.default_rng(0).uniform(-0.01, 0.01, (5, 64))
    # A prompt that pays the same throughout, and one that is never asked, are left out.
    also = np.concatenate([returns, np.full((1, 64), -1.0), returns[:1]])
    for samples in (drawn(returns, weights, 1.0), drawn(also, [*(0.95 * each for each in weights), 0.05, 0.0], 1.0)):
        want = most_that_is_hidden(tilt(samples, 0.25).values[:5], samples.weights[:5], 3 / 64, 0.25)
        with np.errstate(divide="raise", invalid="raise"):
            found = estimated(samples, 0.25, "eval")
        assert found.room == pytest.approx(want, rel=1e-4)
        # It is in every second replicate, and so in the interval.
        added = np.zeros_like(found.replicates)
        added[1::2, 1] = found.room
        np.testing.assert_allclose(found.replicates - tilt(samples, 0.25).replicates, added, atol=1e-12)


def test_what_rounding_put_above_the_maximum_counts_as_the_maximum() -> None:
    # By hand: all of 3 / n goes to the second prompt, of which E = exp((V - maximum) / beta) is known.
    for top in (1.0, 1.02):
        samples = drawn(np.stack([np.full(64, top), np.tile([0.6, 0.7], 32)]), [0.9, 0.1], 1.0)
        low = math.exp((tilt(samples, 0.25).values[1] - 1) / 0.25)
        assert estimated(samples, 0.25, "eval").room == pytest.approx(0.1 * 0.25 * math.log(1 + 3 / 64 / low))


def test_committed_samples_serve_the_reference_of_the_task_at_any_beta_above_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textgym.optimum.FOLDER", tmp_path)
    task = make_task("Stop")
    kept = draw_samples(task, make_reference(task), each=256)
    write_samples(kept, samples_path(task, "eval"), fingerprint(task, "eval"))
    assert optimum_of(task).committed
    assert optimum_of(task, beta=0.0).exact
    assert optimum_of(task, reference=make_reference(task)).exact


def test_the_reference_that_is_given_is_sampled() -> None:
    def share(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        return [text.split().count("a") / 40 for text in completions]

    task = make_task("Text", prompts=["a"], tokenizer=["a", "b", "c"], reward=share, max_new_tokens=40, beta=0.5)
    found = optimum_of(task, reference=NGramReference(np.array([0.5, 0.3, 0.2])))
    assert found.reference is not None
    assert found.reference.mean == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(40 * 128))


def test_every_committed_file_is_read_and_names_its_task() -> None:
    paths = sorted(FOLDER.glob("*.safetensors"))
    assert paths
    for path in paths:
        _, key = read_samples(path)
        assert path.name == f"{key['name']}.{key['split']}.safetensors".lower()


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, False),
        ({"room": 0.06}, True),  # more than a tenth of what the optimum is above the reference
        ({"room": 0.04}, False),
        ({"value": Estimate(1.0, 1.0, 1.0)}, False),  # nothing to gain, and nothing hidden
        ({"effective_samples": 29.0}, True),
        ({"effective_samples": 30.0}, False),
        ({"value": None}, True),
        ({"room": 0.06, "samples": None}, False),
        ({"room": 0.06, "committed": True}, False),
        ({"room": 0.06, "each": 64}, False),  # a second policy was asked
        ({"maximum": None, "effective_samples": 63.0}, True),  # half of 128
        ({"maximum": None, "effective_samples": 64.0}, False),
    ],
)
def test_when_a_trained_policy_would_tell_more(changed: dict[str, Any], want: bool) -> None:
    changed = dict(changed)
    each, maximum = changed.pop("each", 128), changed.pop("maximum", 2.0)
    samples = drawn(np.zeros((1, 128)), [1.0], 2.0)
    samples = replace(samples, each=each, maximum=maximum, tokens=np.zeros((1, 128 // each, 1), np.int32))
    best, base = Estimate(1.5, 1.5, 1.5), Estimate(1.0, 1.0, 1.0)
    optimum = Optimum(best, base, 0.1, "eval", effective_samples=40.0, samples=samples)
    assert replace(optimum, **changed).improvable is want
