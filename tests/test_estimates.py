"""What estimates are made of, against hand arithmetic and against loops that draw the same numbers."""

import hashlib
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t as student

from textgym import estimates, make_task
from textgym.estimates import (
    Estimate,
    Samples,
    degrees_of_freedom,
    draw_samples,
    expected_returns,
    greatest_return,
    interval,
    jackknife,
    majority_ways,
    resampled_means,
    tilt,
    widen,
)
from textgym.optimum import Optimum, estimated, fingerprint, optimality_of, optimum_of, pays_the_same, solvable
from textgym.rewards import RunningNorm
from textgym.task import make_reference


def samples_of(returns, log_weights=None, each=None, weights=None, maximum=None):
    returns = np.array(returns, dtype=float)
    each = each or returns.shape[1]
    logs = np.zeros_like(returns) if log_weights is None else np.array(log_weights, dtype=float)
    weights = np.full(len(returns), 1 / len(returns)) if weights is None else np.array(weights)
    tokens = np.zeros((len(returns), returns.shape[1] // each, 3), dtype=np.int32)
    return Samples(returns, logs, weights, each, maximum, tokens)


def test_replicates_are_widened_around_the_estimate():
    # Of 5 completions: the deviations -1 and 1 times sqrt(5 / 4), around 10.
    got = widen(np.array([10.0]), np.array([[1.0], [3.0]]), 5)
    np.testing.assert_allclose(got, [[10 - math.sqrt(1.25)], [10 + math.sqrt(1.25)]])
    assert widen(np.zeros(1), np.array([[1.0], [3.0]]), 2).std() == pytest.approx(math.sqrt(2))
    assert np.isnan(widen(np.zeros(1), np.ones((2, 1)), 1)).all()
    # The quantile of Student's t with two degrees of freedom, in closed form, over the normal one.
    student_2 = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / 1.959964
    np.testing.assert_allclose(
        widen(np.array([10.0]), np.array([[1.0], [3.0]]), 5, 2.0) - 10, student_2 * (got - 10), rtol=1e-6
    )


def test_an_interval_has_the_quantiles_of_its_replicates():
    found = interval(7.0, np.arange(1001.0))
    assert (found.mean, found.low, found.high) == (7.0, pytest.approx(25.0), pytest.approx(975.0))
    assert not found.exact
    assert str(found) == "7.000 [25.000, 975.000]"
    assert str(interval(2.0, np.full(3, 2.0))) == "2.000"


def test_a_resample_draws_all_columns_of_a_prompt_together():
    columns = np.random.default_rng(0).normal(size=(2, 3, 4))
    generator, want = np.random.default_rng([5, 4]), np.empty((estimates.RESAMPLES, 2, 3))
    for prompt in range(3):
        drawn = generator.integers(4, size=(estimates.RESAMPLES, 4), dtype=np.int32)
        want[:, :, prompt] = columns[:, prompt][:, drawn].mean(-1).T
    np.testing.assert_allclose(resampled_means(columns, 5), want)


def test_the_jackknife_of_a_mean_is_its_squared_standard_error():
    # Of 1, 2, 4: (9/9 + 1/9 + 25/9) ... = 7/3 over 3. Of 1, 1, 4, where two draws are equal: 3 over 3.
    assert jackknife(7 / 3, np.array([3.0, 2.5, 1.5]), np.array([1, 1, 1])) == (7 / 3, pytest.approx(7 / 9))
    assert jackknife(2.0, np.array([2.5, 1.0]), np.array([2, 1])) == (2.0, pytest.approx(1.0))
    assert jackknife(1.5, np.array([2.0, 1.0]), np.array([1, 1])) == (1.5, pytest.approx(0.25))
    assert math.isnan(jackknife(2.0, np.array([2.0]), np.array([1]))[1])


def test_majorities_by_hand():
    # Of a, a, b two are drawn: a a wins, the two ways of a b are ties. Of a, b, c one is: each has its own way.
    np.testing.assert_allclose(majority_ways(np.array([[2, 1], [3, 0]]), np.array([1.0, 0.0]), 2), [2.0, 3.0])
    counts = np.array([[2, 1]])
    np.testing.assert_allclose(majority_ways(counts, np.array([1.0, 0.0]), 2), [1 + 2 * 0.5])
    np.testing.assert_allclose(majority_ways(counts, np.array([0.0, 0.5]), 2), [2 * 0.25])
    np.testing.assert_allclose(majority_ways(np.array([[1, 1, 1]]), np.array([0.0, 1.0, 0.0]), 1), [1.0])


def test_moments_within_strata():
    # Strata 1, 3 and 2, 6: variances 2 and 8, the mean of four numbers has (2 + 8) / 2 / 4.
    mean, variance = estimates._moments(np.array([[1.0, 3.0, 2.0, 6.0]]), 2)
    assert (mean.tolist(), variance.tolist()) == ([3.0], [1.25])
    assert estimates._moments(np.array([[1.0, 3.0]]), 1)[1].tolist() == [0.0]


def test_the_log_of_a_mean_loses_its_leading_bias():
    got = estimates._soft_maximum(np.array([1.0]), np.array([4.0]), np.array([8.0]), 2.0)
    assert got == pytest.approx(2 * (1 + math.log(4) + 0.5 * 8 / 16))


def test_student_s_quantile_over_the_normal_one():
    # One and two degrees of freedom have closed forms; the others are those of scipy, between the table's too.
    closed = [math.tan(0.475 * math.pi), 0.95 * math.sqrt(2 / (1 - 0.95**2))]
    assert estimates._student(np.array([2.0, 3.0])) == pytest.approx(np.array(closed) / 1.959964, rel=1e-6)
    freedom = np.concatenate([1 / np.linspace(1.0, 0.01, 500), [1e6]])
    assert estimates._student(freedom + 1) == pytest.approx(student.ppf(0.975, freedom) / 1.959964, rel=5e-4)
    assert estimates._student(math.inf) == 1.0
    assert estimates._student(1.2) == estimates._student(2.0)  # one degree of freedom at least
    assert estimates._student(2.0) < estimates._student(1.0) * 1.000001


def test_a_tilt_by_hand():
    # Returns 0 and 1 at beta 1: weights 1/e and 1.
    found, w = tilt(samples_of([[0.0, 1.0]]), 1.0), math.exp(-1)
    mean, variance = (1 + w) / 2, (1 - w) ** 2 / 2 / 2
    assert found.values == pytest.approx(1 + math.log(mean) + 0.5 * variance / mean**2)
    assert found.references == pytest.approx(0.5)
    assert found.effective_samples == pytest.approx((1 + w) ** 2 / (1 + w**2))
    assert not found.unseen.any()
    np.testing.assert_allclose(found.replicates.mean(0), [0.5, found.values[0]], atol=1e-12)
    # At beta 2 with weights of a mixture: 1/2 e^0 and 2 e^(1/2), over the greater.
    found, w = tilt(samples_of([[0.0, 1.0]], [[math.log(0.5), math.log(2)]]), 2.0), 0.25 * math.exp(-0.5)
    mean, variance = (1 + w) / 2, (1 - w) ** 2 / 2 / 2
    assert found.values == pytest.approx(2 * (math.log(2) + 0.5 + math.log(mean) + 0.5 * variance / mean**2))


def by_loops(samples, beta, seed):
    """Replicates of J_ref and of J* of each prompt, (R, P): every stratum drawn by itself, every sum written out."""
    logs, each = samples.log_weights + samples.returns / beta, samples.each
    tilted = np.exp(logs - logs.max(1, keepdims=True))
    base, drawn = None, []
    for policy in range(samples.policies):
        generator = np.random.default_rng([seed + 1 + policy, 4])
        places = [generator.integers(each, size=(estimates.RESAMPLES, each), dtype=np.int32) for _ in tilted]
        drawn.append(np.stack([row[policy * each + at] for row, at in zip(tilted, places, strict=True)], 1))
        if policy == 0:
            base = np.stack([row[at].mean(1) for row, at in zip(samples.returns, places, strict=True)], 1)
    drawn = np.stack(drawn, 2)  # (R, P, K, each)
    mean, variance = drawn.mean((2, 3)), drawn.var(3, ddof=1).mean(2) / (each * samples.policies)
    return base, beta * (logs.max(1) + np.log(mean) + 0.5 * variance / mean**2)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_bootstrap_replicates_of_a_mixture(beta):
    generator = np.random.default_rng(1)
    returns, logs = generator.normal(size=(2, 3, 8))
    samples = samples_of(returns, 0.3 * logs, each=4, weights=[0.2, 0.3, 0.5])
    found = tilt(samples, beta, seed=9)
    base, best = (each @ samples.weights for each in by_loops(samples, beta, 9))
    spread = 1 / np.sum(samples.weights / found.effective_samples)
    estimated = samples.weights @ found.references, samples.weights @ found.values
    scale = math.sqrt(4 / 3)
    np.testing.assert_allclose(found.replicates[:, 0], estimated[0] + (base - base.mean()) * scale)
    wide = scale * estimates._student(spread)
    np.testing.assert_allclose(found.replicates[:, 1], estimated[1] + (best - best.mean()) * wide)
    np.testing.assert_allclose(found.references, returns[:, :4].mean(1))


def test_what_was_never_seen_to_pay_more():
    returns = [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, -1.0]]
    assert estimates._unseen(samples_of(returns, maximum=1.0)).tolist() == [True, False, False, True]
    assert estimates._unseen(samples_of(returns, maximum=0.0)).tolist() == [False, False, False, True]
    assert estimates._unseen(samples_of(returns)).tolist() == [True, True, False, True]
    large = [[1e6, 1e6 + 1e-4], [1e6, 1e6 + 1.0], [0.5, 0.5 + 1e-6], [1.0 - 1e-12, 1.0 - 1e-12]]
    assert estimates._unseen(samples_of(large)).tolist() == [True, False, False, True]
    assert not estimates._unseen(samples_of(large, maximum=1.0))[3]


def test_a_prompt_that_paid_nothing_widens_every_second_replicate():
    returns, weights = [[0.0, 1.0, 0.5], [0.25, 0.25, 0.25]], [0.9, 0.1]
    known = tilt(samples_of(returns, weights=weights, maximum=1.0), 0.5, seed=3)
    silent = tilt(samples_of(returns, weights=weights), 0.5, seed=3)
    assert known.unseen.tolist() == silent.unseen.tolist() == [False, True]
    assert known.values[1] == 0.25
    room = np.zeros_like(known.replicates)
    room[1::2, 1] = 0.1 * 0.75
    np.testing.assert_allclose(known.replicates - silent.replicates, room, atol=1e-14)


def test_a_prompt_that_paid_nothing_has_no_replicates():
    logs = 0.3 * np.random.default_rng(2).normal(size=(2, 4))
    samples = samples_of([[0.0, 1.0, 0.5, 0.2], [0.25] * 4], logs, each=2, weights=[0.9, 0.1])
    found = tilt(samples, 0.5, seed=3)
    assert found.values[1] == 0.25  # however the weights of its completions differ
    seen = 0.9 * by_loops(samples, 0.5, 3)[1][:, 0]
    wide = math.sqrt(2) * estimates._student(1 / np.sum(samples.weights / found.effective_samples))
    np.testing.assert_allclose(found.replicates[:, 1], samples.weights @ found.values + (seen - seen.mean()) * wide)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_kept_samples_are_paid_again_with_their_discount(gamma):
    settings = {"tokenizer": ["a", "b", "<end>"], "stop": "<end>", "max_new_tokens": 3, "gamma": gamma}
    task = make_task("Text", prompts=["a"], reward={"name": "length", "target": 2, "unit": "tokens"}, **settings)
    samples = draw_samples(task, make_reference(task), [make_reference(task)] * 3, each=2)
    assert pays_the_same(task, "eval", samples)
    assert not pays_the_same(task, "eval", replace(samples, returns=samples.returns + 0.1))
    for changes in (make_task("Noisy"), replace(task, reward=RunningNorm("length"))):
        assert pays_the_same(changes, "eval", samples)  # what it pays another time tells nothing


@pytest.mark.parametrize(
    "broken",
    [
        {"returns": np.zeros(4)},
        {"each": 3},
        {"each": 0},
        {"log_weights": np.zeros((2, 3))},
        {"weights": np.zeros(3)},
        {"tokens": np.zeros((2, 1, 3), dtype=np.int32)},
        {"tokens": np.zeros((2, 2), dtype=np.int32)},
        {"returns": np.zeros((2, 0)), "log_weights": np.zeros((2, 0)), "tokens": np.zeros((2, 0, 3), dtype=np.int32)},
    ],
)
def test_samples_of_other_shapes_are_refused(broken):
    fitting = samples_of(np.zeros((2, 4)), each=2)
    parts = {name: getattr(fitting, name) for name in fitting.__dataclass_fields__}
    assert Samples(**parts).policies == 2
    with pytest.raises(ValueError, match="shapes"):
        Samples(**(parts | broken))
    for name in ("returns", "log_weights", "weights"):
        one = parts[name].copy()
        one.flat[1] = np.nan
        with pytest.raises(ValueError, match="not finite"):
            Samples(**(parts | {name: one}))


def test_samples_that_a_prompt_left_unseen_carry_nothing():
    samples = samples_of([[0.0, 1.0, 0.5], [0.25] * 3], weights=[0.95, 0.05], maximum=1.0)
    assert estimated(samples, 0.5, "eval").effective_samples == pytest.approx(tilt(samples, 0.5).effective_samples[0])


def test_optimality_where_there_is_room():
    replicates = np.array([[0.0, 2.0], [1.0, 2.0]])
    scale = Optimum(Estimate(2.0, 2.0, 2.0), Estimate(0.5, 0.0, 1.0), 0.1, "eval", replicates)
    found = optimality_of(1.25, np.array([1.0, 1.5]), scale)
    assert (found.mean, found.low, found.high) == (0.5, pytest.approx(0.5), pytest.approx(0.5))
    wide = optimality_of(1.25, np.array([1.0, 1.0]), scale)  # 1/2 and 0
    assert (wide.low, wide.high) == (pytest.approx(0.0125), pytest.approx(0.4875))
    wide = optimality_of(1.25, np.array([2.0, 1.0]), scale)  # 1 and 0
    assert (wide.low, wide.high) == (pytest.approx(0.025), pytest.approx(0.975))
    assert optimality_of(math.nan, np.zeros(2), scale) is None
    for level in (2.0, 3.0):
        assert optimality_of(1.0, np.zeros(2), replace(scale, reference=Estimate(level, level, level))) is None
    assert optimality_of(1.0, np.zeros(2), replace(scale, value=None)) is None
    assert optimality_of(1.0, np.zeros(2), replace(scale, reference=None)) is None
    for best, base in ((0.0, 0.0), (1e6, math.nextafter(1e6, 0.0))):  # what rounding leaves is no room
        ends = {"value": Estimate(best, best, best), "reference": Estimate(base, base, base)}
        assert optimality_of(1.0, np.zeros(2), replace(scale, **ends)) is None


def test_an_infinite_loss_has_an_exact_optimality_without_a_warning(recwarn):
    scale = Optimum(Estimate(2.0, 2.0, 2.0), Estimate(0.5, 0.5, 0.5), 0.1, "eval", np.array([[0.5, 2.0]] * 3))
    found = optimality_of(-math.inf, np.full(3, -math.inf), scale)
    assert (found.mean, found.low, found.high) == (-math.inf,) * 3
    assert np.isnan(widen(np.array([-math.inf]), np.full((3, 1), -math.inf), 2)).all()
    assert not recwarn.list


def test_an_estimate_may_be_declined():
    task = make_task("Text", prompts=["a"], tokenizer=["a", "b", "<end>"], stop="<end>", max_new_tokens=40)
    assert optimum_of(task, per_prompt=0).unknown.startswith("0 completions a prompt")
    assert not optimum_of(task, per_prompt=1).unknown.startswith("0 completions a prompt")


def test_returns_without_their_noise():
    episodes = SimpleNamespace(
        returns=np.array([[1.0, 2.0]]),
        lengths=np.array([[1, 3]]),
        gold=np.array([[4.0, 8.0]]),
        terms={"noise": np.array([[0.5, np.nan]])},
    )
    task = SimpleNamespace(noisy=True, gamma=0.5, name="T")
    assert expected_returns(task, episodes).tolist() == [[0.5, 2.0]]
    episodes.terms = {"noise": np.array([[0.5, 4.0]])}
    assert expected_returns(task, episodes).tolist() == [[0.5, 1.0]]
    episodes.terms = {}
    assert expected_returns(task, episodes).tolist() == [[4.0, 2.0]]
    episodes.gold[0, 1] = np.nan
    with pytest.raises(ValueError, match="task 'T': its reward is noisy"):
        expected_returns(task, episodes)
    assert expected_returns(SimpleNamespace(noisy=False), episodes).tolist() == [[1.0, 2.0]]


class Odd:
    def __call__(self, states):
        return np.ones((len(states), 12), dtype=bool)


def test_a_mask_is_told_by_its_grammar_or_by_its_type():
    task = make_task("Stop")
    plain, odd = (fingerprint(replace(task, mask=mask), "eval")["mask"] for mask in (None, Odd()))
    assert (plain, odd) == (None, "Odd")
    ruled = Odd()
    ruled.grammar = "start: a"
    digest = hashlib.sha256(b"start: a").hexdigest()[:32]
    assert fingerprint(replace(task, mask=ruled), "eval")["mask"] == digest


def test_masks_have_a_limit_of_their_own(monkeypatch):
    task = make_task("Stop")
    ruled = replace(task, mask=lambda states: np.ones((len(states), task.vocabulary.size), dtype=bool))
    assert solvable(task)
    assert solvable(ruled)
    monkeypatch.setattr("textgym.optimum.MAX_MASKED", 3)
    assert solvable(task)
    assert not solvable(ruled)


class Silent:
    def log_probs(self, observation):
        return np.zeros((len(observation["input_ids"]), 12))


class Named(Silent):
    def __str__(self):
        return "by name"


class Shown(Silent):
    def __repr__(self):
        return "as shown"


@dataclass(frozen=True)
class Holding(Silent):
    function: object = Silent.log_probs


@pytest.mark.parametrize(
    ("reference", "want"),
    [(Silent(), "Silent"), (Named(), "by name"), (Shown(), "as shown"), (Holding(), "Holding")],
)
def test_a_reference_is_told_by_its_name_or_by_its_type(reference, want):
    assert fingerprint(replace(make_task("Stop"), reference=reference), "eval")["reference"] == want


def test_a_language_model_is_told_by_its_weights(tmp_path):
    task = replace(make_task("Stop"), reference=str(tmp_path))
    assert fingerprint(task, "eval")["reference"] == str(tmp_path)
    for name, weights in (("b", b"two"), ("a", b"one ")):
        (tmp_path / f"{name}.safetensors").write_bytes(weights)
    assert fingerprint(task, "eval")["reference"] == hashlib.sha256(b"one two").hexdigest()[:32]


class Greatest:
    def __init__(self, maximum, pay="end"):
        self.maximum, self.pay = maximum, pay

    def __call__(self, prompts, completions, **columns):
        return [0.0] * len(prompts)


@pytest.mark.parametrize(
    ("maximum", "pay", "options", "want"),
    [
        (2.0, "end", {}, 2.0),
        (2.0, "end", {"gamma": 0.5}, 2.0),
        (-2.0, "end", {}, -2.0),
        (-2.0, "end", {"gamma": 0.5}, 0.0),
        (-2.0, "end", {"on_error": "skip"}, 0.0),
        (-2.0, "end", {"on_error": "penalty", "penalty": -1.0}, -1.0),
        (2.0, "every", {}, None),
        (None, "end", {}, None),
    ],
)
def test_the_greatest_return(maximum, pay, options, want):
    task = make_task("Text", prompts=["a"], tokenizer=["a", "b", "<end>"], reward=Greatest(maximum, pay), **options)
    assert greatest_return(task) == want


@pytest.mark.parametrize(("prompts", "count"), [(1, 4), (2, 3), (40, 2)])
def test_an_interval_of_few_completions_covers(prompts, count):
    generator, held = np.random.default_rng(0), 0
    weights = np.full(prompts, 1 / prompts)
    for seed in range(300):
        columns = generator.standard_normal((1, prompts, count))
        mean = columns.mean(-1) @ weights
        freedom = degrees_of_freedom(columns, weights)
        drawn = widen(mean, resampled_means(columns, seed) @ weights, count, freedom)
        found = interval(float(mean[0]), drawn[:, 0])
        held += found.low <= 0 <= found.high
    assert held / 300 > 0.91  # two and a half standard errors below 0.95


def test_degrees_of_freedom_by_hand():
    columns = np.array([[[0.0, 2.0, 1.0], [5.0, 5.0, 5.0]], [[0.0, 2.0, 1.0], [1.0, 3.0, 2.0]], [[1.0] * 3, [2.0] * 3]])
    # One prompt alone varies: n - 1. Both alike: P (n - 1). None: nothing is to be widened.
    assert degrees_of_freedom(columns, np.array([0.5, 0.5])).tolist() == [2.0, 4.0, np.inf]
    # Variances go with the squares of the weights: 2 (9 + 1)^2 / (9^2 + 1^2).
    assert degrees_of_freedom(columns[1:2], np.array([0.75, 0.25])).tolist() == pytest.approx([200 / 82])
    assert degrees_of_freedom(columns[..., :1], np.array([0.5, 0.5])).tolist() == [np.inf] * 3
    assert degrees_of_freedom(columns[..., :2], np.array([0.5, 0.5])).tolist() == [1.0, 2.0, np.inf]
