"""Tabular control's parts: values and policies of rows by hand, schedules, step sizes, the table of states."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textgym_agents.tabular.config import TabularConfig
from textgym_agents.tabular.policies import (
    UNKNOWN,
    StateTable,
    boltzmann,
    draw,
    greedy,
    hard_values,
    log_ratios,
    mixed,
    normalised,
    rows_in_memory,
    scheduled,
    soft_values,
    state_keys,
    update_weight,
)

REFERENCE = np.log(np.array([[0.5, 0.3, 0.2]]))
VALUES = np.array([[1.0, 2.0, 4.0]])
ALL = np.ones((1, 3), dtype=bool)
GREEDY = {"exploration": "epsilon-greedy"}


def test_the_soft_value_by_hand():
    want = 2.0 * np.log(0.5 * np.exp(0.5) + 0.3 * np.exp(1.0) + 0.2 * np.exp(2.0))
    assert soft_values(VALUES, ALL, REFERENCE, 2.0) == pytest.approx(want)


def test_actions_that_are_not_known_leave_the_soft_value_and_keep_the_references_share():
    known = np.array([[True, True, False]])
    want = 2.0 * np.log((0.5 * np.exp(0.5) + 0.3 * np.exp(1.0)) / 0.8)
    assert soft_values(VALUES, known, REFERENCE, 2.0) == pytest.approx(want)
    tilted = np.array([0.5 * np.exp((1 - want) / 2), 0.3 * np.exp((2 - want) / 2), 0.2])
    np.testing.assert_allclose(np.exp(boltzmann(VALUES, known, REFERENCE, 2.0))[0], tilted / tilted.sum())
    assert np.exp(boltzmann(VALUES, known, REFERENCE, 2.0))[0, 2] == pytest.approx(0.2)


def test_where_nothing_is_known_the_policy_is_the_reference():
    none = np.zeros((1, 3), dtype=bool)
    np.testing.assert_allclose(boltzmann(VALUES, none, REFERENCE, 2.0), REFERENCE)
    np.testing.assert_allclose(greedy(VALUES, none, REFERENCE), REFERENCE)
    assert np.isnan(soft_values(VALUES, none, REFERENCE, 2.0)).all()
    assert np.isnan(hard_values(VALUES, none)).all()


def test_what_the_reference_never_takes_has_no_part_in_the_soft_value():
    with np.errstate(divide="ignore"):
        reference = np.log(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    values = np.array([[0.5, 1000.0, 1e6], [0.5, 1000.0, 1e6]])
    known = np.array([[True, True, False], [True, False, False]])
    found = soft_values(values, known, reference, 1.0)
    assert found[0] == 0.5
    assert np.isnan(found[1])  # all that is known is never taken
    np.testing.assert_array_equal(boltzmann(values, known, reference, 1.0), reference)


def test_ratios_of_what_was_taken_by_hand():
    with np.errstate(divide="ignore"):
        policy, reference = np.log([[0.2, 0.8], [0.5, 0.5]]), np.log([[0.4, 0.6], [1.0, 0.0]])
    assert log_ratios(policy, reference, np.array([0, 1])).tolist() == pytest.approx([np.log(0.5), 0.0])


def test_log_probabilities_of_any_size_are_normalised():
    found = normalised(np.array([[1000.0, 1000.0], [-1000.0, -1000.0 + np.log(3)]]))
    np.testing.assert_allclose(np.exp(found), [[0.5, 0.5], [0.25, 0.75]])


def test_draws_come_as_often_as_their_probability():
    logs = np.repeat(np.log([[0.7, 0.2, 0.1]]), 20_000, axis=0)
    counts = np.bincount(draw(logs, np.random.default_rng(0))) / 20_000
    np.testing.assert_allclose(counts, [0.7, 0.2, 0.1], atol=0.01)


def test_values_that_differ_by_rounding_alone_are_equally_good():
    values = np.array([[1e6, 1e6 - 1e-7, 0.0], [1.0, 1.0 - 5e-13, 0.0], [1.0, 1.0 - 1e-9, 0.0]])
    found = np.exp(greedy(values, np.ones((3, 3), dtype=bool), np.repeat(REFERENCE, 3, axis=0)))
    np.testing.assert_allclose(found, [[0.625, 0.375, 0], [0.625, 0.375, 0], [1, 0, 0]])


def test_greedy_shares_ties_as_the_reference_does():
    values = np.array([[3.0, 3.0, 1.0], [1.0, 2.0, 9.0]])
    known = np.array([[True, True, True], [True, True, False]])
    with np.errstate(divide="ignore"):
        got = np.exp(greedy(values, known, np.repeat(REFERENCE, 2, axis=0)))
    np.testing.assert_allclose(got, [[0.625, 0.375, 0.0], [0.0, 1.0, 0.0]])
    assert hard_values(values, known).tolist() == [3.0, 2.0]


def test_greedy_takes_what_the_reference_never_does():
    reference = np.log(np.array([[0.5, 0.5, 1e-300]]))
    reference[0, 2] = -np.inf
    np.testing.assert_allclose(np.exp(greedy(VALUES, ALL, reference))[0], [0.0, 0.0, 1.0])
    # The soft value has no such action.
    assert soft_values(VALUES, ALL, reference, 1.0) == pytest.approx(np.log((np.e + np.e**2) / 2))


def test_exploration_spreads_epsilon_over_the_support():
    support = np.array([[True, True, False]])
    policy = np.log(np.array([[1.0, 1e-300, 1e-300]]))
    np.testing.assert_allclose(np.exp(mixed(policy, support, 0.3)), [[0.85, 0.15, 0.0]], atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "progress", "want"),
    [("constant", 0.5, 0.8), ("linear", 0.25, 0.65), ("exponential", 0.5, 0.4), ("linear", 7.0, 0.2)],
)
def test_schedules_by_hand(kind, progress, want):
    assert scheduled(kind, 0.8, 0.2, progress) == pytest.approx(want)


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["constant", "harmonic"]),
    st.floats(0.01, 1.0),
    st.integers(0, 20),
    st.integers(1, 20),
    st.floats(-5, 5),
    st.floats(-5, 5),
)
def test_one_weighted_update_equals_as_many_single_ones(kind, rate, before, repeats, value, target):
    by_one = value
    for k in range(before, before + repeats):
        by_one += (rate if kind == "constant" else 1 / (k + 1)) * (target - by_one)
    weight = update_weight(kind, rate, np.array([before]), np.array([repeats]))
    assert (value + weight * (target - value))[0] == pytest.approx(by_one, abs=1e-9)


def test_a_state_is_its_tokens_and_never_its_padding():
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 0]], dtype=np.int8)
    one = state_keys({"input_ids": np.array([[1, 2, 0], [1, 2, 0], [1, 2, 9]]), "attention_mask": mask})
    assert one[0] == one[2] != one[1]
    wider = np.array([[1, 2, 0, 0]])
    assert state_keys({"input_ids": wider, "attention_mask": np.array([[1, 1, 0, 0]], dtype=np.int8)}) == one[:1]


def test_the_table_grows_and_refuses_when_it_is_full():
    table = StateTable(2, 3000, initial=0.5)
    keys = [b"%d" % i for i in range(3002)]
    first = table.add(keys[:1500])
    table.update(np.array([first[7] * 2 + 1]), np.array([9.0]), np.array([4]))
    rows = table.add([*keys, keys[0]])
    assert rows[:3000].tolist() == list(range(3000))
    assert rows[3000:].tolist() == [UNKNOWN, UNKNOWN, 0]
    assert (len(table), table.refused) == (3000, 2)
    assert table.find([keys[3001], keys[2999]]).tolist() == [UNKNOWN, 2999]
    assert table.values[7].tolist() == [0.5, 9.0]
    assert table.values[2999].tolist() == [0.5, 0.5]
    assert table.counts[7].tolist() == [0, 4]


def test_memory_bounds_the_rows():
    assert rows_in_memory(4, 1) == 2**20 // 64
    with pytest.raises(ValueError, match=r"memory=1 MiB: one state of 100000 actions takes 1\.5 MiB"):
        rows_in_memory(100_000, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backup": "both"}, "backup='both': allowed is 'soft' or 'hard'"),
        ({"epsilon": 1.5}, "epsilon=1.5"),
        ({"epsilon_end": -0.1, **GREEDY}, "epsilon_end=-0.1: .* in \\[0, 1\\]"),
        ({"schedule": "exponential", "epsilon_end": 0.0, **GREEDY}, "epsilon_end=0.0: .* with schedule"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"initial": float("nan")}, "initial=nan"),
        ({"max_states": 0}, "max_states=0"),
        ({"batch": 0}, "batch=0"),
        ({"epsilon": 0.3}, "epsilon=0.3: allowed is 0.1 without exploration='epsilon-greedy'"),
        ({"epsilon_end": 0.0}, "epsilon_end=0.0: allowed is None without exploration='epsilon-greedy'"),
        ({"temperature": 1.0, **GREEDY}, "temperature=1.0: allowed is None without exploration='boltzmann'"),
        ({"temperature_end": 0.1, **GREEDY}, "temperature_end=0.1: .* exploration='boltzmann'"),
        ({"temperature_end": 0.1, "schedule": "constant"}, "temperature_end=0.1: .* schedule='linear'"),
        ({"epsilon_end": 0.2, "schedule": "constant", **GREEDY}, "epsilon_end=0.2: .* schedule='linear'"),
        ({"schedule": "exponential"}, "schedule='exponential': .* epsilon_end or temperature_end"),
        ({"schedule_share": 0.5}, "schedule_share=0.5: allowed is 1.0 without epsilon_end"),
        ({"learning_rate": 1.0, "step_size": "harmonic"}, "learning_rate=1.0: .* step_size='constant'"),
    ],
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        TabularConfig(**given)


def test_settings_that_something_uses_are_taken():
    greedy = TabularConfig(epsilon=0.5, epsilon_end=0.1, schedule="exponential", schedule_share=0.5, **GREEDY)
    assert (greedy.epsilon, greedy.epsilon_end, greedy.schedule_share) == (0.5, 0.1, 0.5)
    cooling = TabularConfig(temperature=1.0, temperature_end=0.1, learning_rate=1.0)
    assert (cooling.temperature, cooling.temperature_end, cooling.learning_rate) == (1.0, 0.1, 1.0)
    harmonic = TabularConfig(schedule="constant", step_size="harmonic", temperature=2.0)
    assert (harmonic.step_size, harmonic.temperature) == ("harmonic", 2.0)
