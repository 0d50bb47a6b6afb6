"""RESULTS.md: the committed one is what its results make, and hostile names and errors stay text in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from synthetic import make_results
from textgym_benchmarks.pages import fixed, text
from textgym_benchmarks.results.page import results_page
from textgym_benchmarks.results.store import Result, export_results, load_results
from textgym_benchmarks.summaries import summarise

ROOT = Path(__file__).parents[2] / "benchmarks"
RESULTS, PAGE = ROOT / "results" / "core.json", ROOT / "RESULTS.md"
HOSTILE = "evil|<script>alert(1)</script>\n\x1b[31m`x` [a](b) **c** ${d} &amp;"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file of results with failures, gaps, an agent without a KL and one with a hostile name."""
    data = make_results(
        ["lm-ppo", "sb3-ddpg", HOSTILE],
        ["textgym/Copy-v0", "textgym/Helpful-v0"],
        3,
        failed=0.2,
        missing=0.1,
        samples=0,
    )
    file = tmp_path_factory.mktemp("results") / "made.json"
    suite = {"name": "made", "description": "Made | up <b>", "started": "2026-11-21"}
    export_results([Result.from_json(each) for each in data], file, suite)
    return file


@pytest.mark.slow
def test_the_committed_page_is_made_from_the_committed_results():
    if not RESULTS.exists() and not PAGE.exists():
        pytest.skip("neither benchmarks/results/core.json nor benchmarks/RESULTS.md is there yet")
    assert results_page(RESULTS) == PAGE.read_text(encoding="utf-8")


def test_the_page_is_the_same_every_time_and_shows_the_summary(path):
    page = results_page(path)
    assert page == results_page(path)
    summary = summarise(load_results(path))
    best = summary.leaderboard[0]
    assert best.agent == "lm-ppo"
    shown = f"{fixed(best.common.value)} [{fixed(best.common.low)}, {fixed(best.common.high)}]"
    assert best.common.runs < best.common.of_runs  # the rank says so
    assert f"| lm-ppo | 1 ({best.common.runs} of {best.common.of_runs} runs) | {shown} |" in page
    counts = summary.counts
    assert f"| cells | {counts.planned}: {counts.done} done, {counts.failed} failed" in page
    assert counts.failed > 0
    assert counts.missing > 0
    assert f"- Runs that failed ({counts.failed}):" in page
    assert "no optimality, reward 0." in page
    assert "textgym bench --suite made" in page
    assert "2 cores, a processor that does not exist" in page


def test_every_table_is_a_table_and_hostile_text_is_text(path):
    page = results_page(path)
    assert "<script" not in page.replace("\\<script", "")
    assert "\x1b" not in page
    assert "\\[31m" in page
    tables = re.findall(r"(?:^\|.*\|$\n)+", page, re.MULTILINE)
    assert len(tables) >= 6
    for found in tables:
        rows = found.splitlines()
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(widths) == 1, rows[0]
    assert "Made \\| up \\<b\\>" in page


def test_remarks_by_hand_are_included(path, tmp_path):
    assert "## Remarks" not in results_page(path)
    remarks = tmp_path / "remarks.md"
    remarks.write_text("Written by hand: *as it is*.\n")
    assert "## Remarks\n\nWritten by hand: *as it is*.\n" in results_page(path, remarks)
    with pytest.raises(ValueError, match="there is no such file"):
        results_page(path, tmp_path / "none.md")


def test_cpu_seconds_of_short_runs_are_told(tmp_path):
    cells = make_results(["lm-ppo"], ["textgym/Copy-v0"], 1, failed=0.0, missing=0.0, samples=0)
    cells[0]["timing"] |= {"learning_cpu_seconds": 0.0423, "cpu_seconds": 36.0}
    export_results([Result.from_json(each) for each in cells], tmp_path / "short.json")
    page = results_page(tmp_path / "short.json")
    assert "| CPU time of all cells | 0.010 hours |" in page
    assert " | 0.042 | 1 |" in page


def test_a_mean_over_some_of_the_runs_says_how_many_there_are(tmp_path):
    cells = make_results(["lm-ppo"], ["textgym/Copy-v0"], 3, failed=0.0, missing=0.0, samples=0)
    for cell, mean in zip(cells, (0.5, None, None), strict=True):
        cell["measures"]["after"]["optimality"] = mean and {"mean": mean, "low": None, "high": None}
    export_results([Result.from_json(each) for each in cells], tmp_path / "some.json")
    assert "| Copy-v0 | 0.50 (1 of 3) |" in results_page(tmp_path / "some.json")


def test_numbers_do_not_hang_on_the_last_bits():
    assert fixed(0.1 + 0.2 + 0.125 - 0.3) == fixed(0.125) == "0.12"
    assert fixed(0.135 + 1e-16, 2) == fixed(0.135 - 1e-16, 2)
    assert (fixed(-0.001), fixed(None), fixed(12345.6, 0), fixed(-30.26)) == (
        "0.00",
        "\u2013",
        "12,346",
        "-30.26",
    )
    assert text("a|b\n<i>") == "a\\|b\\\\n\\<i\\>"


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        results_page(tmp_path)
