"""Two versions compared: which means have moved, and when that is more than chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import make_results
from textgym_benchmarks.results.compare import Change, changes, compare, faults
from textgym_benchmarks.results.store import Result, export_results

OLD = np.array([0.95, 0.97, 0.96])


def lower(drop: float) -> Change:
    return Change("rloo", "Copy-v0", OLD, OLD - drop)


def made(**options) -> list[Result]:
    data = make_results(["lm-ppo", "sb3-ddpg"], ["textgym/Copy-v0", "textgym/Helpful-v0"], samples=0, **options)
    return [Result.from_json(each) for each in data]


def test_an_interval_by_hand():
    # Both variances are 1e-4: error sqrt(2e-4 / 3) = 0.008165, and 4 degrees of freedom, whose quantile is 2.776 at
    # 97.5% and 4.604 at 99.5%: half widths 0.02267 and 0.03759.
    assert [lower(drop).outside() for drop in (0.0226, 0.0227, -0.0226, -0.0227)] == [False, True, False, True]
    assert [lower(drop).outside(0.99) for drop in (0.0375, 0.0377)] == [False, True]


@pytest.mark.parametrize(
    ("old", "new", "outside"), [(0.5, 0.500009, False), (0.5, 0.50002, True), (-100, -100.0009, False)]
)
def test_runs_that_never_vary_differ_beyond_rounding_or_not_at_all(old, new, outside):
    change = Change("random", "Copy-v0", np.full(3, old), np.full(3, new))
    assert change.outside() == change.outside(1 - 1e-9) == outside
    assert not change.varies
    assert lower(0).varies


def test_what_is_more_than_chance():
    # Of three, none or one outside of its 95% interval has a probability of 0.993, two or more 0.007.
    assert faults([], [], [lower(0.03), lower(0), lower(0)]) == []
    assert faults([], [], [lower(0.03), lower(0.03), lower(0)]) == ["too many to be chance: 2 of 3 that vary"]
    # 1 - 0.025 / 3 has the quantile 4.85 at 4 degrees of freedom: half width 0.0396.
    assert faults([], [], [lower(0.0394), lower(0), lower(0)]) == []
    far = "too far to be chance among 3: rloo on Copy-v0"
    assert faults([], [], [lower(0.0399), lower(0), lower(0)]) == [far]
    assert faults([], [], []) == []


def test_a_run_that_fails_now_is_a_fault_and_one_that_always_did_is_none():
    old = made(failed=0, missing=0)
    error = {"type": "ValueError", "message": "no", "traceback": "", "attempts": 1}
    new = [replace(old[0], status="failed", error=error, measures=None), *old[1:]]
    assert faults(old, new, []) == [f"failed now: {old[0].cell.key}"]
    assert faults(new, new, []) == faults(new, old, []) == []


def test_j_is_compared_or_the_reward_without_it_and_two_runs_are_needed():
    old = made(failed=0, missing=0)
    found, left_out = changes(old, [*made(failed=0, missing=0, seed=1)[:9], *old[11:]])
    assert left_out == 1  # the last pair has one run of the new version
    assert [(each.agent, each.problem) for each in found] == [
        ("lm-ppo", "Copy-v0"),
        ("lm-ppo", "Helpful-v0"),
        ("sb3-ddpg", "Copy-v0"),
    ]
    for each, measure, start in zip(found, ("objective", "objective", "reward"), (0, 3, 6), strict=True):
        values = [result.measures["after"][measure]["mean"] for result in old[start : start + 3]]
        assert each.old.tolist() == values
    assert changes(old, old[1:])[0][0].new.tolist() == changes(old, old)[0][0].new.tolist()[1:]


def test_the_command_prints_what_has_moved_and_says_by_its_code_whether_that_is_chance(tmp_path, capsys):
    old = made(failed=0, missing=0)
    export_results(old, tmp_path / "old.json")
    compare(tmp_path / "old.json", tmp_path / "old.json")
    said = capsys.readouterr().out
    assert said == "0 of 4 outside of their 95% intervals; by chance 0.2\n"  # 5% of four that vary
    new = old[:3]
    for place, result in enumerate(old[:3]):
        after = result.measures["after"]
        moved = {"mean": 100.0 + place / 10, "low": None, "high": None}
        new[place] = replace(result, measures=result.measures | {"after": after | {"objective": moved}})
    export_results([*new, *old[3:-2]], tmp_path / "new.json")
    with pytest.raises(SystemExit, match=r"^too far to be chance among 3: lm-ppo on Copy-v0$"):
        compare(tmp_path / "old.json", tmp_path / "new.json")
    printed = capsys.readouterr().out
    assert "100.1000" in printed
    assert "1 of 3 outside of their 95% intervals; by chance 0.2\n1 not compared: fewer than two runs" in printed
