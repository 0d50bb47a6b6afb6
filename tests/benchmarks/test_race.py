"""The race: who runs with which settings, what is kept, and by how much one leads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from core_tools import STORIES
from textgym_agents.registry import agent_class, make_config
from textgym_benchmarks import race
from textgym_benchmarks.race import (
    Clock,
    RaceFlags,
    Racer,
    RaceResult,
    own_settings,
    race_entries,
    trial_settings,
)
from textgym_benchmarks.statistics import leads


def test_the_best_trial_of_each_reward_races_and_an_agent_without_one_as_it_comes() -> None:
    settings = trial_settings(4)
    assert [each["learning_rate"] for each in settings] == [3e-5, 9.65e-5, 3.11e-4, 1e-3]
    assert settings == trial_settings(4)
    small = {"epochs": 1, "batch": 64}
    assert own_settings(2) == [{"epochs": 1}, small | {"minibatches": 1, "group": 8}]
    assert own_settings(4)[2:] == [
        small | {"minibatches": 2, "update_kl": 3.0, "group": 8},
        small | {"minibatches": 2, "update_kl": 6.0},
    ]
    assert [each.get("update_kl") for each in own_settings(6)[4:]] == pytest.approx([0.4, 8.0])
    flags = RaceFlags(Path("model"), rewards=("speech", "sentiment"), seeds=2)
    trials = [
        RaceResult(Racer(who, reward, settings[number], 1000, (1, 2), "model"), np.array(curve), 0.0)
        for who, reward, number, curve in (
            ("trl-rloo", "speech", 0, [0.0, 0.9]),
            ("trl-rloo", "speech", 1, [0.5, 0.5]),
            ("trl-rloo", "sentiment", 2, [0.1, 0.1]),
            ("trl-grpo", "speech", 3, [0.1, 0.1]),
            ("rloo", "speech", 2, [0.1, 0.1]),
        )
    ]
    found = [(each.who, each.reward, each.settings, each.seed) for each in race_entries(flags, trials)]
    assert found == [
        (who, reward, given, seed)
        for reward, theirs in (
            ("speech", {"trl-rloo": settings[1], "trl-grpo": settings[3]}),
            ("sentiment", {"trl-rloo": settings[2]}),
        )
        for seed in (0, 1)
        for who, given in ({"rloo": settings[2] if reward == "speech" else {}} | theirs).items()
    ]


def test_a_lead_has_welch_s_interval() -> None:
    own, other = np.array([[1.0], [2.0], [3.0]]), np.array([[0.0], [0.0], [0.6]])
    # Variances 1 and 0.12, three seeds each: error sqrt(1.12 / 3), 2.47 degrees of freedom, whose quantile is 3.606.
    mean, low, high = leads(own, other)[:, 0]
    assert mean == pytest.approx(1.8)
    assert (high - low) / 2 == pytest.approx(3.606 * (1.12 / 3) ** 0.5, rel=1e-3)
    assert (high + low) / 2 == pytest.approx(1.8)


def test_evaluations_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(race.time, "process_time", lambda: now.seconds)

    def measure(policy: Any) -> dict[str, Any]:
        now.seconds += 100
        return {"J": policy}

    clock = Clock((10, 20), measure)
    clock.start()
    stopped = []
    for step in range(4):
        now.seconds += 7
        stopped.append(clock.iteration(lambda step=step: step, 64 * step))
    assert stopped == [False, False, True, True]
    assert clock.rows == [
        {"mark": 10, "seconds": 14, "episodes": 64, "J": 1},
        {"mark": 20, "seconds": 21, "episodes": 128, "J": 2},
    ]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not STORIES.is_dir(), reason="the model is not here")
def test_a_training_is_written_once_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"batch": 8, "minibatches": 1, "epochs": 1}
    entries = [Racer("rloo", "speech", settings, seed, (1, 2), str(STORIES)) for seed in (0, 1)]
    race.run_all(entries, tmp_path, 2)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {path.name for path in files} == {entry.file for entry in entries}
    race.run_all(entries, tmp_path, 2)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    found = race.results(entries, tmp_path)
    assert found[0].reference == found[1].reference
    assert [each.curve.shape for each in found] == [(2,), (2,)]
    capsys.readouterr()
    race.print_table("speech", found)
    printed = capsys.readouterr().out
    assert f"J of the reference: {found[0].reference:.3f}; seeds: rloo 2" in printed
    assert f"{(found[0].curve[0] + found[1].curve[0]) / 2:.3f}" in printed


def test_a_result_is_of_its_model() -> None:
    one, other = (Racer("rloo", "speech", {}, 0, (1, 2), model) for model in ("15M", "42M"))
    assert one.file != other.file
    assert one.file == Racer("rloo", "speech", {}, 0, (1, 2), "15M").file


@pytest.mark.parametrize("agent", ["rloo", "lm-ppo", "reinforce", "dpo"])
def test_every_agent_has_trials_that_it_takes(agent: str) -> None:
    found = race.own_settings(6, agent)
    assert len({str(each) for each in found}) == len(found)
    for settings in found:
        make_config(agent_class(agent), settings)


def test_a_level_is_reached_on_the_line_between_two_marks() -> None:
    curve = [0.1, 0.2, 0.2, 0.4]
    assert race.seconds_until(0.15, (10, 20, 40), curve) == pytest.approx(5)
    assert race.seconds_until(0.3, (10, 20, 40), curve) == pytest.approx(30)
    assert race.seconds_until(0.1, (10, 20, 40), curve) == 0
    assert race.seconds_until(0.41, (10, 20, 40), curve) is None
    assert race.seconds_until(0.1, (10, 20), [0.1, 0.0, 0.0]) == 0


def test_one_seed_is_printed_without_a_lead(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        race.RaceResult(Racer(who, "speech", {}, 0, (10, 20), "m"), np.array(curve), 0.1)
        for who, curve in (("rloo", [0.5, 0.25]), ("trl-rloo", [0.2, 0.3]))
    ]
    race.print_table("speech", found)
    shown = capsys.readouterr().out
    assert "0.250" in shown
    assert "rloo - trl-rloo" not in shown
    assert "rloo reaches the last J of trl-rloo, 0.300, after 5 s" in shown
