"""The microscope's page, terminal and command: what they show, escape and refuse."""

from __future__ import annotations

import json
import math
import re
from io import StringIO

import pytest
from benchmarks.microscope_tools import HOSTILE, Fixed, hostile_trace, letters, traced
from cli_tools import assert_one_line, run
from rich.console import Console
from solver_tools import Table, bigram, small_task
from textgym_benchmarks.commands.inspect import Bars, bar, number, probability, render, visible_token
from textgym_benchmarks.microscope.page import QUANTITIES, check_out, page_html, write_page
from textgym_benchmarks.microscope.trace import TokenStep, trace_json


@pytest.fixture(scope="module")
def trace():
    return traced(Table(1), small_task(), bigram(), prompt_index=0, completion="a b c")


def shown_in_terminal(trace, width=80, steps=None):
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    for part in render(trace, steps, width):
        console.print(part)
    return out.getvalue()


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_holds_the_trace(trace):
    data = embedded(page_html([trace]))
    assert {name: data[name] for name in ("format", "parting", "traces")} == trace_json([trace])
    assert {quantity["name"] for quantity in data["quantities"]} <= set(TokenStep.__annotations__)


def test_the_table_without_scripts_has_every_number(trace):
    page = page_html([trace]).replace("\u2212", "-")
    for step in trace.steps:
        for quantity in QUANTITIES:
            value = getattr(step, quantity.name)
            if value is not None:
                assert f">{value:.3f}<".replace(">-0.000<", ">0.000<") in page


def test_only_the_scripts_of_the_page_may_run(trace):
    page = page_html([trace])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert len(re.findall("'sha256-", policy)) == len(re.findall("<script>", page)) == 4
    assert not re.findall(r"""(?:src|href)=["'](?!data:,)""", page)


def test_what_models_write_is_text_in_the_page():
    page = page_html([hostile_trace()])
    assert page.count("<script>") == 4  # the page's own
    assert "<img/src" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "49" not in re.findall(r"<caption>(.*?)</caption>", page)[0]
    tokens = [step["text"] for step in embedded(page)["traces"][0]["steps"]]
    assert tokens == [*HOSTILE[:3], r"\x1b[31mred", HOSTILE[4], r"\u202egnihton", HOSTILE[6]]


def test_what_models_write_is_text_in_the_terminal():
    shown = shown_in_terminal(hostile_trace(), width=200)
    assert "\x1b[31m" not in shown
    assert "\u202e" not in shown
    for word in (r"\x1b[31mred", "[bold]loud[/bold]", HOSTILE[0]):
        assert word in shown


def test_two_episodes_in_one_page():
    task, even = letters(), Fixed(0.5, 0.5)
    one, other = (traced(even, task, even, completion=text) for text in ("a b", "a a"))
    page = page_html([one, other])
    assert embedded(page)["parting"] == 1
    assert page.count("<caption>") == 2


def test_a_page_replaces_a_page_and_nothing_else(trace, tmp_path):
    page, other = tmp_path / "new" / "page.html", tmp_path / "notes.html"
    write_page([trace], page)
    write_page([trace], page)
    assert [file.name for file in page.parent.iterdir()] == ["page.html"]
    other.write_text("<p>mine")
    for path, what in ((other, "another file"), (tmp_path, "a folder")):
        with pytest.raises(FileExistsError, match=f"there is {what}; allowed are a new name"):
            write_page([trace], path)
    assert other.read_text() == "<p>mine"
    check_out(page)


def test_the_terminal_shows_every_token(trace):
    shown = shown_in_terminal(trace)
    assert "…" not in shown
    step = trace.steps[0]
    for value in (step.kl, step.optimal_value, step.state_regret, step.policy_value):
        assert f"{value:.3f}" in shown
    assert f"{step.regret:+.3f}" in shown
    assert all(f"{candidate.probability:.3f}" in shown for candidate in step.candidates)
    assert f"objective   {number(trace.objective)} = return" in shown
    assert len(shown_in_terminal(trace, steps=[0])) < len(shown)


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_loses_no_digit(trace, width):
    shown = shown_in_terminal(trace, width)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width


def test_numbers_as_text():
    assert [number(x) for x in (None, -0.0004, math.inf, -1.23456)] == ["?", "0.000", "inf", "-1.235"]
    assert number(0.5, signed=True) == "+0.500"
    assert [probability(p) for p in (0, 1e-5, 0.25, None)] == ["0.000", "1e-5", "0.250", "?"]
    assert [len(bar(share, Bars())) for share in (0, 1 / 24, 1)] == [0, 1, 12]
    assert bar(0.5, Bars(12, blocks=False)) == "######"
    assert visible_token(" a\n") == "␣a\\n"


def test_the_command_prints_the_trace(capsys):
    words = ("inspect", "Stop-v0", "--agent", "random", "--agent", "reference", "--prompt", "2")
    code, out, _ = run(capsys, *words, "--completion", "word word", "--json", "--top", "2")
    report = json.loads(out)
    assert code == 0
    assert report["parting"] is None
    first, second = report["traces"]
    assert [first["agent"], second["agent"]] == ["random", "reference"]
    assert [step["text"] for step in first["steps"]] == ["word", "word", "<end>"]
    assert first["total_return"] == 1
    assert first["known"]["policy"] == pytest.approx(first["known"]["reference"])


def test_the_command_writes_a_page_or_shows_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "inspect", "Stop-v0", "--agent", "random")
    assert (code, out) == (0, "page: inspect-stop-v0.html\n")
    assert "Stop-v0" in (tmp_path / "inspect-stop-v0.html").read_text()
    code, out, err = run(capsys, "inspect", "Stop-v0", "--agent", "random", "--agent", "random", "--terminal")
    assert code == 0
    assert "exactly, by the solver" in out
    assert "both episodes have the same tokens" in err


def test_a_given_completion_may_end_with_any_stop_token(capsys):
    _, out, _ = run(capsys, "inspect", "Stop-v0", "--agent", "random", "--completion", "word <halt>", "--json")
    assert [step["text"] for step in json.loads(out)["traces"][0]["steps"]] == ["word", "<halt>"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--agent", "random"] * 3, "--agent: given 3 times"),
        (["--terminal", "--json"], "exclude each other"),
        (["--step", "0"], "--step"),
        (["--agent", "random", "--terminal", "--step", "99"], "--step 99"),
        (["--agent", "random", "--prompt-index", "99"], "prompt_index"),
        (["--agent", "nobody"], "nobody"),
        (["--seed", "-1"], "seed=-1"),
        (["--agent", "random", "--completion", "word,"], "'word,' is not a word"),
    ],
)
def test_bad_words_are_one_line(capsys, words, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "inspect", "Stop-v0", *words)
    assert_one_line(code, err, named)
    assert not list(tmp_path.iterdir())


def test_a_file_of_ones_own_is_kept(capsys, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("mine")
    code, _, err = run(capsys, "inspect", "Stop-v0", "--agent", "random", "--out", str(path))
    assert_one_line(code, err, "page.html", "allowed are a new name and a page of the microscope")
    assert path.read_text() == "mine"
