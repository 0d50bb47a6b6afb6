"""Our statistics are rliable's, where definitions agree: on a fixed table, and from the same resamples."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rliable_numbers import DATA, REPLICATES, SEED, SHAPES, compute, make_table
from synthetic import strata_of_matrix
from textgym_benchmarks.statistics import (
    improvement_of_counts,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    percentile_interval,
    performance_profile,
    probability_of_improvement,
    share_above,
    task_means,
)

STATED = json.loads(DATA.read_text(encoding="utf-8"))
NUMBERS = STATED["rliable"]
THRESHOLDS = np.array(STATED["thresholds"])
TABLE = {agent: np.array(scores) for agent, scores in STATED["table"].items()}
STATISTICS = {"iqm": interquartile_mean, "mean": mean, "median": median, "optimality_gap": optimality_gap}
CLOSE = 1e-6


def drawn_by_rliable(*agents: str) -> list[np.ndarray]:
    """Runs that rliable's bootstrap draws after the global seed, agent by agent: (B, T, R) each."""
    state = np.random.RandomState(SEED)
    draws: list[list[np.ndarray]] = [[] for _ in agents]
    for _ in range(REPLICATES):
        for agent, mine in zip(agents, draws, strict=True):
            mine.append(state.choice(SHAPES[agent][0], SHAPES[agent]).T)
    return [np.array(mine) for mine in draws]


def resampled(agent: str) -> np.ndarray:
    """(B, N) scores, runs in the order of their tasks."""
    (runs,) = drawn_by_rliable(agent)
    tasks = np.arange(SHAPES[agent][1])[None, :, None]
    return TABLE[agent][runs, tasks].reshape(REPLICATES, -1)


def counts(runs: np.ndarray, most: int) -> np.ndarray:
    """(T, B, R) how often each run was drawn."""
    return (runs[..., None] == np.arange(most)).sum(2).transpose(1, 0, 2).astype(np.float32)


def test_the_committed_table_is_the_one_that_the_script_makes():
    assert {agent: scores.tolist() for agent, scores in make_table().items()} == STATED["table"]
    assert (STATED["seed"], STATED["replicates"]) == (SEED, REPLICATES)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("agent", SHAPES)
def test_points_and_interval_ends_are_those_of_rliable(agent, name):
    strata, statistic = strata_of_matrix(TABLE[agent]), STATISTICS[name]
    assert float(statistic(strata.values, strata)) == pytest.approx(NUMBERS["point"][agent][name], abs=CLOSE)
    ends = percentile_interval(statistic(resampled(agent), strata))
    np.testing.assert_allclose(ends, NUMBERS["interval"][agent][name], atol=CLOSE)


@pytest.mark.parametrize("agent", SHAPES)
def test_profiles_and_their_bands_are_those_of_rliable(agent):
    strata = strata_of_matrix(TABLE[agent])
    share, low, high = performance_profile(strata, THRESHOLDS, np.random.default_rng(0))
    np.testing.assert_allclose(share, NUMBERS["profile"][agent], atol=CLOSE)
    band = percentile_interval(share_above(resampled(agent), strata, THRESHOLDS))
    np.testing.assert_allclose(band, NUMBERS["band"][agent], atol=CLOSE)
    # Our own draws give another band, by no more than their noise: half a width at each of the thresholds.
    width = band[1] - band[0]
    assert (np.abs(low - band[0]) <= 0.5 * width + 0.02).all()
    assert (np.abs(high - band[1]) <= 0.5 * width + 0.02).all()


@pytest.mark.parametrize("pair", NUMBERS["improvement"])
def test_the_probability_of_improvement_is_that_of_rliable(pair):
    first, second = (strata_of_matrix(TABLE[agent]) for agent in pair.split(" over "))
    found = probability_of_improvement(first, second, np.random.default_rng(0), replicates=10)
    assert found.value == pytest.approx(NUMBERS["improvement"][pair], abs=CLOSE)
    assert found.tasks == found.of_tasks == 12


@pytest.mark.parametrize("pair", NUMBERS["improvement_interval"])
def test_the_interval_of_the_improvement_is_that_of_rliable(pair):
    agents = pair.split(" over ")
    strata = [strata_of_matrix(TABLE[agent]) for agent in agents]
    times = [counts(runs, SHAPES[agent][0]) for runs, agent in zip(drawn_by_rliable(*agents), agents, strict=True)]
    found = improvement_of_counts(*strata, *times)
    np.testing.assert_allclose([found.low, found.high], NUMBERS["improvement_interval"][pair], atol=CLOSE)


def test_the_interquartile_mean_is_the_trimmed_mean_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    generator = np.random.default_rng(1)
    for shape in ((1, 1), (1, 3), (2, 3), (3, 7), (5, 26)):
        scores = generator.normal(size=shape)
        strata = strata_of_matrix(scores)
        expected = stats.trim_mean(scores, 0.25, axis=None)
        assert float(interquartile_mean(strata.values, strata)) == pytest.approx(expected, abs=1e-12)
        np.testing.assert_allclose(task_means(strata.values, strata), scores.mean(0))


@pytest.mark.slow
def test_rliable_still_computes_the_committed_numbers():
    try:
        import rliable.library  # noqa: F401
    except Exception as error:  # arch 7.2, which it needs, breaks on import with pandas 3
        pytest.skip(f"rliable cannot be imported ({type(error).__name__}): pip install rliable 'pandas<3' to compare")
    found = compute(make_table())
    assert found.keys() == NUMBERS.keys()
    for kind, stated in NUMBERS.items():
        for name, value in stated.items():
            assert _rounded(found[kind][name]) == _rounded(value), (kind, name)


def _rounded(value):
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 9)
