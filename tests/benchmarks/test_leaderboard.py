"""The leaderboard: what an entry is, what it comes to, and what a rerun refuses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmarks.entry_tools import Write, attempt_of, entry_writer
from scipy.stats import t
from textgym_benchmarks.leaderboard import (
    CHECK_SEED,
    HELPFUL,
    Challenge,
    EntryFlags,
    SeedOutcome,
    check,
    faults,
    main,
    outcome,
    page,
    read_claim,
    run,
    seconds_shown,
    time_shown,
)
from textgym_benchmarks.results.rows import settled
from textgym_benchmarks.selection import read_entrant
from textgym_benchmarks.statistics import leads
from textgym_benchmarks.suite import Cell, Evaluation

ROOT = Path(__file__).parents[2]
TINY = Challenge(
    "textgym/Bandit-v0",
    256,
    unit="benchmarks.fake_entries:Steady",
    unit_settings={"strength": 0.9},
    seeds=2,
    evaluation=Evaluation(4, 1, 1, optimum_per_prompt=0, samples=0),
)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    yield from entry_writer(tmp_path, monkeypatch)


def flags(path: Path, seeds: int = 2) -> EntryFlags:
    return EntryFlags(path, seeds, out=path.parent / "out", challenge=TINY, engine="serial")


def optimality(strength: float) -> float:
    """That of exp(strength r / beta) on Bandit: 32 arms that pay 0 to 1, a uniform reference, beta 0.1."""
    rewards = np.arange(32) / 31

    def objective(scale: float) -> float:
        probs = np.exp(scale * rewards / 0.1)
        probs /= probs.sum()
        return float(probs @ rewards - 0.1 * probs @ np.log(32 * probs))

    return (objective(strength) - objective(0)) / (objective(1) - objective(0))


def test_a_level_is_reached_at_the_first_of_two_marks_in_a_row() -> None:
    seconds = [0.0, 10.0, 20.0, 30.0, 40.0]
    # From 0.8 to 1.0 half of the way, between 20 and 30; the lone mark at 10 does not count.
    assert settled(seconds, [0.0, 0.95, 0.8, 1.0, 0.9], 0.9) == pytest.approx(25.0)
    assert settled(seconds, [0.0, 0.9, 0.9, 0.1, 0.1], 0.9) == 10.0
    assert settled(seconds, [0.95, 0.95, 0.0, 0.0, 0.0], 0.9) == 0.0
    assert settled(seconds, [0.0, 0.95, 0.8, 0.89, 0.99], 0.9) is None


def test_an_entry_that_is_at_the_level_before_it_learns_has_no_time() -> None:
    after = {"answer_tokens": 0, "optimality": {"mean": 0.97}}

    def outcome_of(*scores: float) -> SeedOutcome:
        measures = {"scored": 8, "episodes": 8, "after": after, "curve": [{"optimality": score} for score in scores]}
        ran: Any = SimpleNamespace(cell=Cell("textgym/Bandit-v0", "own", 8, 3), measures=measures, error=None)
        ran.timing = {"curve_cpu_seconds": [0.0, 1.0, 2.0][: len(scores)]}
        return outcome(ran, TINY)

    assert outcome_of(0.5, 0.95, 0.97).seconds == pytest.approx(8 / 9)
    assert outcome_of(0.95, 0.5, 0.97).seconds is None
    with pytest.raises(ValueError, match="own, seed 3: is at the level before it learns"):
        outcome_of(0.95, 0.96, 0.97)


def test_the_ratio_is_paired_and_a_seed_that_never_got_there_is_told() -> None:
    # Times vary a hundredfold between seeds, their ratio does not.
    even = attempt_of([0.9, 0.9], [1.0, 100.0], [0.5, 50.0])
    assert asdict(even.ratio) == pytest.approx({"value": 2.0, "low": 2.0, "high": 2.0})
    # Of two seeds a resample has either one twice with probability 1/4: the interval is the range of 2 and 8.
    uneven = attempt_of([0.9, 0.9], [2.0, 8.0], [1.0, 1.0])
    assert asdict(uneven.ratio) == pytest.approx({"value": 4.0, "low": 2.0, "high": 8.0})
    assert time_shown(uneven) == "4.00 [2.00, 8.00]"
    missed = attempt_of([0.9, 0.5, 0.9], [2.0, None, 8.0], [1.0, 1.0, None])
    assert missed.ratio.value is None
    assert missed.missed == 1
    assert time_shown(missed) == "not reached 1 of 3, unit not reached 1 of 3"


def test_seconds_to_the_level_are_told_seed_by_seed_with_their_median() -> None:
    ran = attempt_of([0.9] * 3, [20.04, 10.0, 33.0], first=1000)
    assert seconds_shown(ran) == "1000: 20.0, 1001: 10.0, 1002: 33.0; median 20.0"
    before = attempt_of([0.9] * 3, [30.0, None, 40.0])
    shown = "0: 30.0, 1: never, 2: 40.0, 1000: 20.0, 1001: 10.0, 1002: 33.0; median 31.5"
    assert seconds_shown(ran, before) == shown  # (30 + 33) / 2
    for place in ({"machine": "another"}, {"versions": {"source": "of another day"}}):
        assert seconds_shown(ran, replace(before, **place)) == seconds_shown(ran)
    assert seconds_shown(attempt_of([0.9] * 3, [None, 1.0, None])).endswith("; median never")


def test_a_rerun_that_is_worse_by_more_than_chance_is_refused() -> None:
    claimed = [0.95, 0.97, 0.96]
    times: list[float | None] = [10.0, 10.0, 10.0]
    # Both variances are 1e-4: error sqrt(2e-4 / 3), 4 degrees of freedom, whose quantile is 2.776: half width 0.0227.
    half = t.ppf(0.975, 4) * (2e-4 / 3) ** 0.5
    assert half == pytest.approx(0.0227, abs=1e-4)
    for drop, refused in ((half - 1e-4, False), (half + 1e-4, True), (-0.1, False)):
        found = faults(attempt_of(claimed, times), attempt_of([score - drop for score in claimed], times, first=1000))
        assert bool(found) == refused
    assert faults(attempt_of(claimed, times), attempt_of([0.91, 0.93, 0.92], times)) == [
        "optimality: claimed 0.960, rerun 0.920, 0.040 [0.017, 0.063] lower"
    ]
    # Logarithms of the ratios: 0 and 0.2, and both later by 1; errors sqrt(0.02 / 2 * 2), 2 degrees of freedom.
    early, late = (attempt_of([0.9, 0.9], [10 * np.exp(x), 10 * np.exp(x + 0.2)]) for x in (0.0, 1.0))
    half = t.ppf(0.975, 2) * 0.02**0.5
    assert half == pytest.approx(0.608, abs=1e-3)
    ends = f"{np.e:.2f} [{np.exp(1 - half):.2f}, {np.exp(1 + half):.2f}]"
    assert faults(early, late) == [f"time: claimed 1.11 of the unit's, rerun 3.00, {ends} times as long"]
    assert faults(late, early) == []


def test_a_rerun_may_miss_the_level_in_one_seed_more() -> None:
    scores = [0.9, 0.9, 0.9]
    claimed = attempt_of(scores, [9.0, 10.0, 11.0])
    assert faults(claimed, attempt_of(scores, [9.0, None, 11.0])) == []
    assert faults(claimed, attempt_of(scores, [None, None, 11.0])) == [
        "level: claimed to be missed in 0 of 3 seeds, rerun in 2 of 3 seeds"
    ]
    many = attempt_of([0.9] * 6, [9.0, None, 11.0, 9.0, None, 11.0])
    assert faults(attempt_of([0.9] * 6, [9.0, 10.0, 11.0] * 2), claimed) == []  # all seeds of each
    assert faults(many, attempt_of(scores, [None, None, 11.0])) == []  # a third of three, and one more
    assert faults(many, attempt_of(scores, [None, None, None]))
    # A claim without a ratio is asked for its seeds alone.
    assert faults(attempt_of(scores, [9.0, None, 11.0]), attempt_of(scores, [90.0, None, None])) == []
    unit_missed = attempt_of(scores, [9.0, 10.0, 11.0], [None, None, 10.0])
    assert faults(claimed, unit_missed) == ["time: fewer than two seeds of the rerun have a ratio; more seeds may tell"]


def test_runs_that_never_vary_have_an_interval_without_width() -> None:
    assert leads(np.ones((3, 1)), np.ones((2, 1))).tolist() == [[0.0], [0.0], [0.0]]
    assert leads(np.ones((3, 1)), np.zeros((2, 1))).tolist() == [[1.0], [1.0], [1.0]]


@pytest.mark.slow
def test_an_entry_runs_claims_and_reproduces(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    entry = write("steady_entry", settings={"strength": 0.8})
    run(flags(entry))
    found = read_claim(entry, TINY)
    assert [each.seed for each in found.claim.entry] == [0, 1]
    assert found.claim.optimality == pytest.approx([optimality(0.8), optimality(0.8 * 0.99)])
    assert [each.optimality for each in found.claim.unit] == pytest.approx([optimality(0.9), optimality(0.9 * 0.99)])
    shown = capsys.readouterr().out
    assert f"optimality {found.claim.score.value:.3f} [" in shown
    assert f"CPU seconds to 0.9 by seed: {seconds_shown(found.claim)}\n" in shown
    # Its marks are at a quarter, a half, three quarters and all of its strength.
    marks = [optimality(0.8 * share) for share in (0, 0.25, 0.5, 0.75, 1)]
    cells = [json.loads(path.read_text()) for path in (entry.parent / "out").glob("cells/*own*/result.json")]
    (first,) = (each for each in cells if each["cell"]["seed"] == 0)
    assert [point["optimality"] for point in first["measures"]["curve"]] == pytest.approx(marks)
    assert first["measures"]["scored"] == 256
    clock = first["timing"]["curve_cpu_seconds"]
    expected = np.interp(0.9, marks[2:4], clock[2:4])
    assert marks[2] < 0.9 < marks[3]
    assert found.claim.entry[0].seconds == pytest.approx(expected)
    written = {path: path.stat().st_mtime_ns for path in entry.parent.glob("out/cells/*/result.json")}
    assert len(written) == 4
    run(flags(entry))
    assert written == {path: path.stat().st_mtime_ns for path in entry.parent.glob("out/cells/*/result.json")}
    for path in written:
        os.utime(path, (0, datetime(2026, 1, 5, tzinfo=UTC).timestamp()))
    run(flags(entry))
    assert read_claim(entry, TINY).claim.started == "2026-01-05"
    other = next(path for path in written if '"seed": 1' in path.read_text())
    text = other.read_text()
    other.write_text(json.dumps({**json.loads(text), "machine": "another"}))
    with pytest.raises(ValueError, match="holds runs of several sources or machines; allowed is a new folder"):
        run(flags(entry))
    other.write_text(text)
    with pytest.raises(ValueError, match="the claim has seed 1, too"):
        check(replace(flags(entry), first_seed=1))
    # The clock of so short a training tells nothing.
    claim = replace(found.claim, entry=tuple(replace(each, seconds=each.seconds and 1e9) for each in found.claim.entry))
    entry.with_suffix(".json").write_text(json.dumps({"format": 1, **asdict(replace(found, claim=claim))}))
    check(flags(entry))
    rerun = read_claim(entry, TINY).rerun
    assert rerun is not None
    assert [each.seed for each in rerun.entry] == [CHECK_SEED, CHECK_SEED + 1]
    assert rerun.optimality == pytest.approx(found.claim.optimality)
    assert f"CPU seconds to 0.9 by seed: {seconds_shown(rerun, claim)}\n" in capsys.readouterr().out
    with entry.open("a") as file:
        file.write("# another version\n")
    with pytest.raises(ValueError, match=r"steady_entry\.json: is of another version of steady_entry\.py"):
        check(flags(entry))
    with pytest.raises(ValueError, match="holds another suite, which is never overwritten"):
        run(flags(entry))


@pytest.mark.long
def test_an_entry_that_was_lucky_is_refused(write: Write) -> None:
    entry = write("lucky_entry", settings={"luck": 0.6})
    run(replace(flags(entry), engine="pool", workers=1))
    before = entry.with_suffix(".json").read_text()
    with pytest.raises(ValueError, match=r"lucky_entry:Own: does not reproduce: optimality: claimed 1\.000, rerun 0\."):
        check(flags(entry))
    assert entry.with_suffix(".json").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("breaking_entry", {"breaks": 1}, "breaking_entry:Own, seed 1: RuntimeError: a fault of the entry's own"),
        ("greedy_entry", {"extra": 1}, "seed 0: 288 completions were scored while it learned; allowed 256"),
        ("late_entry", {"late": 2}, "seed 0: 320 completions were scored while it learned; allowed 256"),
        ("searching_entry", {"searches": True}, "seed 0: it had other texts scored to find an answer"),
    ],
)
def test_an_entry_that_breaks_a_rule_has_no_claim(
    write: Write, name: str, settings: dict[str, object], message: str
) -> None:
    entry = write(name, settings=settings)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        run(flags(entry))
    assert len(str(caught.value).splitlines()) == 1
    assert not entry.with_suffix(".json").exists()


@pytest.mark.parametrize(
    ("name", "code", "entry", "message"),
    [
        ("entry_1", "", {"settings": {"strenght": 1}}, "'strenght' is not a setting of Own.*strength"),
        (
            "entry_2",
            "",
            {"settings": {"seed": 1}},
            "settings={'seed': 1}: allowed are JSON values by name, and no seed",
        ),
        ("entry_3", "", {"agent": "lm-pop"}, "agent 'lm-pop': not one of .*Did you mean 'lm-ppo'"),
        ("entry_10", "", {"agent": "other:Class"}, "agent='other:Class': allowed is a registered name, or a class"),
        ("entry_4", "", {"autor": "Ada"}, "'autor' is not one of .*author"),
        ("entry_5", "", {"date": "27.11.2026"}, "date='27.11.2026': allowed is a date"),
        ("entry_6", "", {"author": "Ada\nBea"}, "author='Ada.*nBea': allowed is a text of one line"),
        ("entry_7", "x = 1\n", {}, "entrant: holds a NoneType, allowed is a JSON object"),
        ("entry_8", "1 / 0\n", {}, "ZeroDivisionError: division by zero"),
        ("entry_9", f"x = '{'x' * 100_000}'\n", {}, r"has 100,\d\d\d bytes; allowed are 100,000"),
        ("json", "", {}, "there is another module 'json'"),
        ("no-word", "", {}, r"allowed is a file NAME\.py"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(
    write: Write, name: str, code: str, entry: dict[str, object], message: str
) -> None:
    path = write(name, code, **entry)
    with pytest.raises(ValueError, match=message) as caught:
        run(flags(path))
    assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (path.parent / "out").exists()


def test_the_command_ends_with_one_line_and_code_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for words, message in (
        (["run", str(tmp_path / "none.py")], r"none\.py: allowed is a file NAME\.py that is there"),
        (["check", str(tmp_path / "none.py")], r"none\.json: is not there; `run` writes it"),
    ):
        monkeypatch.setattr(sys, "argv", ["leaderboard", *words])
        with pytest.raises(SystemExit, match=message) as caught:
            main()
        assert isinstance(caught.value.code, str)  # Python prints it to the standard error and exits with 1
        assert "\n" not in caught.value.code
    monkeypatch.setattr(sys, "argv", ["leaderboard", "run", "--help"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert "--seeds" in shown
    assert "--challenge" not in shown


def test_too_few_seeds_and_a_folder_without_entries_are_refused(write: Write, tmp_path: Path) -> None:
    path = write("lonely_entry")
    with pytest.raises(ValueError, match="seeds=4: allowed is an integer >= 5"):
        run(replace(flags(path, 4), challenge=HELPFUL))
    challenge, source = json.loads(json.dumps(asdict(HELPFUL))), hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    claim = asdict(attempt_of([0.9] * 5, [1.0] * 5))
    entries = {"entrant": asdict(read_entrant(path)), "source": source, "challenge": challenge, "rerun": None}
    for attempt, message in (
        ({**claim, "entry": claim["entry"][:4], "unit": claim["unit"][:4]}, r"seeds=4: allowed is an integer >= 5"),
        ({**claim, "unit": claim["unit"][::-1]}, r"entry: has the seeds \[0, 1, 2, 3, 4\]; allowed are different ones"),
    ):
        path.with_suffix(".json").write_text(json.dumps({"format": 1, **entries, "claim": attempt}))
        with pytest.raises(ValueError, match=rf"lonely_entry\.json.*{message}"):
            read_claim(path)
    with pytest.raises(ValueError, match="holds no entry"):
        page(tmp_path / "none")
