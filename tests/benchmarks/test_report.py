"""The folder of a report: its numbers, links and texts, and what it never does. tests/browser opens it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from benchmarks.synthetic import make_results, write_suite_folder
from cli_tools import run
from hypothesis import given, settings
from hypothesis import strategies as st
from textgym_benchmarks.pages import embed, fixed, number, places, visible, visible_values
from textgym_benchmarks.report import Report, build_report, draw_curve
from textgym_benchmarks.report.sections import charts
from textgym_benchmarks.report.tables import agent_styles, bar_scale, draw_bar, timed
from textgym_benchmarks.results.store import Result, export_results, load_results
from textgym_benchmarks.statistics import Interval
from textgym_benchmarks.summaries import summarise

AGENTS = ("lm-ppo", "rloo", "random", "reference", "sb3-ddpg")
TASKS = ("textgym/Copy-v0", "textgym/Bandit-v0", "textgym/DeepSea-v0", "textgym/Helpful-v0")
OPAQUE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e]")


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the rows of its tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[tuple[str, list[str]]] = []
        self.table, self.cell, self.data, self.in_data = "", False, "", False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.elements.append((tag, found))
        if tag == "table":
            self.table = found.get("class") or ""
        elif tag == "tr":
            self.rows.append((self.table, []))
        elif tag in ("td", "th"):
            self.rows[-1][1].append("")
            self.cell = True
        elif tag == "script":
            self.in_data = found.get("type") == "application/json"

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")
        self.in_data = self.in_data and tag != "script"

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][1][-1] += data
        if self.in_data:
            self.data += data

    def attributes(self, name: str) -> list[str]:
        return [found[name] or "" for _, found in self.elements if name in found]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    values = make_results(AGENTS, TASKS, 2, rewards=("default", "model"), failed=0.1, missing=0.1)
    return write_suite_folder(tmp_path_factory.mktemp("runs") / "a suite", values)


@pytest.fixture(scope="module")
def results(suite):
    return load_results(suite)


@pytest.fixture(scope="module")
def summary(results):
    return summarise(results)


@pytest.fixture(scope="module")
def report(suite):
    build_report([suite], suite / "report")
    return suite / "report"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    values = make_results(("lm-ppo", "rloo"), TASKS[:1], 1, failed=0.0, missing=0.0)
    return write_suite_folder(tmp_path_factory.mktemp("small"), values)


@pytest.fixture(scope="module")
def index(report):
    return Page(report / "index.html")


@pytest.mark.long
def test_the_folder_holds_all_that_its_pages_name(report, results, index):
    pages = {f"{result.cell.key}.html" for result in results}
    assert {path.name for path in (report / "cells").iterdir()} == pages
    for page in (index, Page(report / "cells" / min(pages))):
        base = report if page is index else report / "cells"
        for address in page.attributes("src") + page.attributes("href"):
            assert not re.match(r"(https?:)?//", address)
            target = unquote(address.partition("#")[0])
            assert not target or target == "data:," or (base / target).exists(), address


@pytest.mark.slow
def test_the_leaderboard_says_what_the_summary_says(index, summary):
    rows = [cells for kind, cells in index.rows if "leaderboard" in kind]
    first = rows[1 : 1 + len(AGENTS)]
    for shown, row in zip(first, summary.leaderboard, strict=True):
        assert shown[0].strip() == row.agent
        value = number(row.iqm.value, 2)
        assert shown[1].startswith(value) or row.iqm.value is None
        assert f"{row.counts.done} of {row.counts.planned}" in shown
    assert "Failed" in rows[0]


def test_every_cell_has_a_row_with_its_page_and_its_run(index, results, report):
    rows = {cells[0] + cells[1] + cells[2]: cells for kind, cells in index.rows if kind == "cells"}
    assert len(rows) == len(results) + 1  # the head
    links = {unquote(address) for address in index.attributes("href")}
    for result in results:
        assert f"cells/{result.cell.key}.html" in links
        assert f"../cells/{result.cell.key}/run/" in links
        assert (report / ".." / "cells" / result.cell.key / "run").is_dir()


def test_failed_and_missing_cells_are_told(index, results, report):
    fates = [result.status for result in results]
    assert fates.count("failed") > 2
    assert fates.count("missing") > 2
    assert f"{fates.count('failed')} cells failed" in index.source
    assert index.source.count("RuntimeError: the reward gave nan") >= fates.count("failed")
    shown = [cells[3] for kind, cells in index.rows if kind == "cells"]
    assert [shown.count(fate) for fate in ("done", "failed", "missing")] == [
        fates.count(fate) for fate in ("done", "failed", "missing")
    ]
    failed = next(result for result in results if result.status == "failed")
    page = (report / "cells" / f"{failed.cell.key}.html").read_text()
    assert "3 attempts" in page
    assert "Traceback" in page


@pytest.mark.slow
def test_hostile_texts_stay_texts(report, index):
    for page in (index, *(Page(path) for path in (report / "cells").iterdir())):
        assert not OPAQUE.search(page.source)
        scripts = [found for tag, found in page.elements if tag == "script"]
        assert all(found.keys() <= {"src", "async", "type", "id"} for found in scripts)
        assert {found["src"] for found in scripts if "src" in found} <= {
            *("theme.js", "report.js", "figures.js", "charts.js", "plotly.min.js", "../theme.js")
        }
        assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "link=http:")]
        assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    assert "&lt;script&gt;alert(3)&lt;/script&gt; \\x1b[31m" in index.source


def test_the_data_of_the_charts_is_that_of_the_summary(index, results, summary):
    data = json.loads(index.data)
    agents = {agent["name"]: place for place, agent in enumerate(data["agents"])}
    assert [data["agents"][place]["name"] for place in data["order"]] == list(summary.agents)
    for curve in summary.curves:
        (entry,) = [each for each in data["curves"][curve.problem] if each["agent"] == agents[curve.agent]]
        assert entry["episodes"] == list(curve.episodes)
        assert entry["reward"]["mean"] == pytest.approx(list(curve.reward.mean), rel=1e-4)
        assert ("optimality" in entry) == (curve.agent != "sb3-ddpg")
    optimum = next(r.measures["optimum"] for r in results if r.measures and r.cell.id == TASKS[0])
    problem = next(each for each in data["problems"] if each["label"].startswith("Copy"))
    assert problem["optimum"] == {"value": optimum["value"]["mean"], "beta": optimum["beta"]}
    by_key = {result.cell.key: result for result in results}
    for entry in data["samples"]:
        source = by_key[Path(entry["href"]).stem].measures["samples"][0]
        assert entry["samples"][0]["after"]["completion"] == visible(source["after"]["completion"])


def test_a_folder_that_is_no_report_is_left_alone(suite, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="it holds files and is no report"):
        build_report([suite], tmp_path)
    (tmp_path / "index.html").write_text('<!doctype html><meta name="generator" content="textgym microscope">')
    with pytest.raises(FileExistsError, match="is no report"):
        build_report([suite], tmp_path)
    with pytest.raises(FileExistsError, match="it is a file"):
        build_report([suite], tmp_path / "thesis.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "thesis.txt"]


@pytest.mark.slow
def test_large_numbers_have_keys_of_their_own_to_be_sorted_by(tmp_path):
    values = make_results(("lm-ppo",), TASKS[:1], (1_000_000, 1_000_001, 2**31 - 1), failed=0.0, missing=0.0)
    for value, tokens in zip(values, (1_234_567, 1_234_571, 1_234_569), strict=True):
        value["measures"]["tokens"] = tokens
    build_report([write_suite_folder(tmp_path / "suite", values)], tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    for key in (1_234_567, 1_234_571, 1_234_569, 1_000_000, 1_000_001, 2**31 - 1):
        assert f'data-sort="{key}"' in text


def test_exported_results_have_no_run_to_link_to(small, tmp_path):
    export_results(load_results(small), tmp_path / "core.json", {"name": "core", "started": "2026-11-21"})
    build_report([tmp_path / "core.json"], tmp_path / "report")
    page = Page(tmp_path / "report" / "index.html")
    assert ">core</h1>" in page.source
    assert {cells[-1] for kind, cells in page.rows if kind == "cells"} == {"Run", "\u2013"}


def test_the_command(capsys, small, tmp_path):
    code, out, error = run(capsys, "report", str(small), str(small), "--out", str(tmp_path / "r"))
    assert code == 0
    assert "report:" in out
    assert (tmp_path / "r" / "index.html").exists()
    assert "cells are in several of the runs" in error
    code, _, error = run(capsys, "report")
    assert (code, error) == (
        2,
        "textgym: error: RUN: nothing given; allowed is at least one folder or file of results\n",
    )
    code, _, error = run(capsys, "report", str(tmp_path / "nothing"))
    assert code == 2
    assert "nothing" in error


@pytest.mark.long
def test_a_run_of_textgym_train_has_a_report(capsys, tmp_path):
    folder = tmp_path / "bandit"
    options = ("--agent", "lm-ppo", "--episodes", "512", "--eval-every", "2", "--out", str(folder))
    code, _, error = run(capsys, "train", "Bandit-v0", *options)
    assert code == 0, error
    build_report([folder], tmp_path / "report")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    [result] = load_results(folder)
    assert result.measures["tokens"] == rows[-1]["learning/tokens"] > 0
    for name in ("seconds", "cpu_seconds"):
        assert result.timing[f"learning_{name}"] == rows[-1][f"learning/{name}"]
    speed = rows[-1]["learning/tokens"] / rows[-1]["learning/cpu_seconds"]
    page = (tmp_path / "report" / "cells" / f"{result.cell.key}.html").read_text()
    assert f"{number(speed, 0)} tokens per CPU second of learning" in page
    assert summarise([result]).leaderboard[0].tokens_per_cpu_second == pytest.approx(speed)


@pytest.mark.parametrize("timing", [{}, {"seconds": None}, {"seconds": 1.0, "curve_seconds": []}])
def test_times_that_nobody_took_are_left_out(tmp_path, timing):
    [made] = make_results(("lm-ppo",), TASKS[:1], 1, failed=0.0, missing=0.0)
    folder = write_suite_folder(tmp_path / "suite", [made | {"timing": timing}])
    build_report([folder], tmp_path / "report")
    page = (tmp_path / "report" / "cells" / f"{made['cell']['key']}.html").read_text()
    assert "Throughput" not in page
    assert ("<dt>Time</dt><dd>1.0 s</dd>" in page) == (timing.get("seconds") == 1.0)


@pytest.mark.slow
def test_a_place_on_the_leaderboard_says_how_many_runs_it_stands_on(tmp_path):
    values = make_results(("lm-ppo", "rloo"), TASKS[:2], 3, failed=0.0, missing=0.0)
    values[1] |= {"status": "missing", "measures": None, "timing": None}
    for value, mean in ((values[2], -2.0), (values[3], 1.5)):
        value["measures"]["after"]["optimality"] = {"mean": mean, "low": mean, "high": mean}
    values[4]["measures"]["after"]["optimality"] = None
    folder = write_suite_folder(tmp_path / "suite", values)
    build_report([folder], tmp_path / "report")
    rows = [cells for kind, cells in Page(tmp_path / "report" / "index.html").rows if "leaderboard" in kind]
    for table, runs in ((rows[1:3], "4 of 6 runs"), (rows[4:6], "2 of 3 runs"), (rows[7:9], "2 of 3 runs")):
        marked = {cells[0].strip(): re.search(r"\d of \d runs|$", cells[1])[0] for cells in table}
        assert marked == {"lm-ppo": runs, "rloo": ""}
    note = re.search(r'<p class="soft note">(Left out.*?)</p>', (tmp_path / "report" / "index.html").read_text())[1]
    assert note.split(". ")[:2] == ["Left out of the means: 1 missing run", "1 run below \u22121 counts as \u22121"]
    assert "1 run has no optimality: " in note
    assert note.endswith(". 1 run scores above 1, as estimates can.")


def test_the_interval_of_a_single_run_is_not_called_one_over_seeds():
    (value,) = make_results(("lm-ppo",), TASKS[:1], 1, failed=0.0, missing=0.0)
    value["measures"]["after"]["optimality"] = {"mean": 0.5, "low": 0.4, "high": 0.6}
    board = Report([Result.from_json(value)], {}, None).index().partition('id="leaderboard"')[2]
    assert "[0.40, 0.60]" in board
    assert "or of a single run over the answers that it was evaluated on" in board.partition("</p>")[0]


def test_a_task_on_which_no_run_has_a_score_is_not_called_missing():
    values = make_results(("lm-ppo", "rloo"), TASKS[:2], 1, failed=0.0, missing=0.0)
    for value in values:
        if value["cell"]["id"] == TASKS[1]:
            value["measures"]["after"]["optimality"] = None
    page = Report([Result.from_json(value) for value in values], {}, None).index()
    assert "Where no run has a score the means stand on fewer: 1 at least. 2 runs have no optimality" in page
    assert "missing" not in re.search(r'<p class="soft note">(.*?)</p>', page)[1]


def test_a_cell_without_optimality_says_neither_that_nor_of_tokens_what_counts_words():
    (value,) = make_results(("sb3-ddpg",), TASKS[:1], 1, failed=0.0, missing=0.0)
    value["measures"]["after"] |= {"distinct_1": 0.25, "distinct_2": 0.5}
    result = Result.from_json(value)
    page = Report([result], {}, None).cell(result.cell.key)
    for level in ("0.5", "0.9"):
        assert f"<dt>Optimality {level}</dt><dd>\u2013</dd>" in page.replace("\n", "")
    assert "not reached" not in page
    assert "Distinct words, share" in page
    assert "Distinct word pairs, share" in page


def test_styles_tell_many_agents_apart():
    styles = agent_styles([*(f"agent {i}" for i in range(28)), "reference", "random"])
    assert len({(style.colour, style.dash, style.symbol) for style in styles}) == 30
    assert len({(style.colour, style.symbol) for style in styles}) == 30  # where there are no lines
    assert {style.colour for style in styles[-2:]} == {8}


def test_gold_is_drawn_where_the_reward_is_a_proxy(summary):
    found = {chart.id: chart for chart in charts(summary, dict.fromkeys(summary.agents, 0))}
    assert {problem.reward for problem in found["gold"].problems} == {"model"}
    assert {problem.reward for problem in found["frontier"].problems} == {"default", "model"}
    assert {row[1].text for row in found["frontier"].table.rows} == {*AGENTS} - {"sb3-ddpg"}  # it has no KL


def test_bars_match_hand_arithmetic():
    outside = Interval(-3.0, None, None)
    scale = bar_scale([Interval(0.5, 0.25, 0.75), outside, None])
    assert scale == (-0.5, 1.0)
    # On [-0.5, 1]: 0.25 lies at 50%, 0.75 at 83.3%, 0 at 33.3%.
    found = draw_bar(Interval(0.25, 0.25, 0.75), scale)
    assert '<i class="unit" style="left:33.3%;width:66.7%"></i>' in found
    assert '<i class="range" style="left:50.0%;width:33.3%"></i><i class="mid" style="left:50.0%"></i>' in found
    assert 'class="interval beyond-low"' in draw_bar(outside, scale)


def test_a_drawn_curve_matches_hand_arithmetic():
    point = {"optimality_low": None, "optimality_high": None}
    drawing = draw_curve([{"episode": 0, "optimality": 0.0, **point}, {"episode": 10, "optimality": 0.5, **point}])
    # x from 44 to 628, y from 208 (score 0) to 24 (score 1): 0.5 is at 116.
    assert drawing.path == "M44,208L628,116"
    assert drawing.band == ""
    assert draw_curve([{"episode": 0, "optimality": 0.0, **point}]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\u2013"),
        (0.5, "0.500"),
        (-0.0004, "0.000"),
        (-1.5, "\u22121.500"),
        (12345.6, "12,346"),
        (7, "7"),
    ],
)
def test_numbers_for_people(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "\u2013"), (0.0, "0.0"), (0.0123, "0.012"), (0.25, "0.25"), (1.26, "1.3"), (71.04, "71.0")],
)
def test_short_times_have_two_digits(seconds, text):
    assert timed(seconds).text == fixed(seconds, places(seconds)) == text
    assert places(seconds) == places(-(seconds or 0))  # as a clock that was set back leaves it


TEXTS = st.text(max_size=6)
JSON = st.recursive(
    st.none() | st.integers(-9, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_embedded_json_is_the_same_value_and_cannot_end_its_element(value):
    text = str(embed(value))
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == visible_values(value)


def test_numbers_that_json_does_not_know_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        embed([float("nan")])
