"""The page of the leaderboard, and what other pages say of its runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.entry_tools import Write, attempt_of, entry_writer
from textgym_benchmarks.leaderboard import HELPFUL, PAGE, Claimed, page, read_claim, seconds_shown
from textgym_benchmarks.selection import read_entrant

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    yield from entry_writer(tmp_path, monkeypatch)


def test_the_page_names_the_seconds_that_the_committed_runs_took() -> None:
    found = read_claim(ROOT / "benchmarks" / "entries" / "lm_ppo.py")
    assert found.rerun is not None
    seconds = [each.seconds or np.inf for ran in (found.claim, found.rerun) for each in ran.entry]
    assert seconds_shown(found.rerun, found.claim).endswith(f"; median {np.median(seconds):.1f}")
    said = (
        f"{min(seconds):.0f} to {max(seconds):.0f} s of CPU time. The median of ten seeds is {np.median(seconds):.0f} s"
    )
    assert said in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_the_committed_page_is_made_from_the_committed_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert page() == PAGE.read_text(encoding="utf-8")


def test_the_entries_and_the_page_s_example_can_be_read(write: Write) -> None:
    for name in ("lm_ppo", "rloo"):
        assert read_entrant(ROOT / "benchmarks" / "entries" / f"{name}.py").settings == HELPFUL.unit_settings
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / PAGE).read_text(encoding="utf-8"), re.DOTALL)
    assert read_entrant(write("one_pass", example)).agent == "one_pass:OnePass"


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("rerun", {"entry": {"optimality": 0.5}}, "does not reproduce: optimality: claimed 0.850, rerun 0.500"),
        ("rerun", {"entry": {"seed": 3}, "unit": {"seed": 3}}, "allowed are different ones"),
        ("rerun", None, "the claim has seed 0, too"),
        ("rerun", {"entry": {"seconds": -36.67}}, "seconds=-36.67: allowed is a finite number"),
        ("rerun", {"unit": {"seconds": 0}}, "seconds=0: allowed is a finite number"),
        ("claim", {"entry": {"optimality": None}}, "optimality=None: allowed is a finite number"),
        ("claim", {"entry": {"optimality": "0.9"}}, "optimality='0.9': allowed is a finite number"),
        ("claim", {"unit": {"seed": -1}}, "seed=-1: allowed is an integer >= 0"),
        ("claim", {"versions": {"python": "3.12"}}, "versions={'python': '3.12'}: allowed are texts"),
        ("claim", {"machine": 7}, "machine=7"),
        ("claim", {"started": 5}, "started=5: allowed is a date"),
    ],
)
def test_no_page_is_made_of_a_claim_that_check_would_refuse(
    write: Write, part: str, change: dict[str, Any] | None, message: str
) -> None:
    path = write("edited")
    source = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    claim, rerun = (attempt_of([0.85] * 5, [10.0] * 5, first=first) for first in (0, 1000))
    found = Claimed(read_entrant(path), source, json.loads(json.dumps(asdict(HELPFUL))), claim, rerun)
    data = json.loads(json.dumps({"format": 1, **asdict(found)}))
    for name, value in (change or {}).items():
        for row in data[part][name] if name in ("entry", "unit") else ():
            row |= value
        if name not in ("entry", "unit"):
            data[part][name] = value
    if change is None:
        data["rerun"] = data["claim"]
    path.with_suffix(".json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"edited\.json.*{re.escape(message)}"):
        page(path.parent)


def test_the_page_ranks_shows_who_missed_and_keeps_text_text(write: Write) -> None:
    modest = attempt_of([0.85] * 5, [25.0] * 5)
    reruns = {
        "slow": attempt_of([0.95] * 5, [20.0] * 5, first=1000),
        "fast": attempt_of([0.93] * 5, [5.0] * 5, first=1000),
        "short": attempt_of([0.91, 0.85, 0.88, 0.88, 0.88], [5.0, None, 5.0, 5.0, 5.0], first=1000),
        "unchecked": None,
    }
    for name, rerun in reruns.items():
        path = write(name, author="A|<b>")
        entrant = read_entrant(path)
        source = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        found = Claimed(entrant, source, json.loads(json.dumps(asdict(HELPFUL))), modest, rerun)
        path.with_suffix(".json").write_text(json.dumps({"format": 1, **asdict(found)}))
    write("waiting")
    shown = page(path.parent)
    by_time, by_score = (re.findall(r"^\| (\S+) \| \[`(\w+)`\].*$", part, re.MULTILINE) for part in halves(shown))
    assert by_time == [("1", "fast"), ("2", "slow"), ("\u2013", "short")]
    assert by_score == [("1", "slow"), ("2", "fast"), ("3", "short")]
    assert "| A\\|\\<b\\> | 2026-11-27 | 2.00 | 2.50 | A tilt |" in shown
    assert "| not reached 1 of 5 | 2.50 |" in shown
    assert re.search(r"\| 0\.880 \[0\.\d+, 0\.\d+\] \| 0\.850, 0\.910 \| 0\.850 \|", shown)
    assert re.search(r"let pass: \[`unchecked`\].*, \[`waiting`\]", shown)
    assert "No entry has a result yet" not in shown
    for table in re.findall(r"(?:^\|.*\|$\n)+", shown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def halves(shown: str) -> list[str]:
    return shown.split("## Optimality after")
