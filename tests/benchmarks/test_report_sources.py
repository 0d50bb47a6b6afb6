"""Which results a report takes, and what its folder holds when it is built again."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from benchmarks.live_runs import begin, row
from benchmarks.synthetic import make_results, write_suite_folder
from cli_tools import run
from test_report import Page
from textgym_agents.config import TrainSettings
from textgym_agents.training.folder import RunFolder
from textgym_benchmarks.report import build_report, read_sources
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.run.runner import run_suite
from textgym_benchmarks.suite import Cell, Evaluation, Suite
from textgym_benchmarks.suite_folder import cell_folder
from textgym_benchmarks.summaries import summarise

TASKS = ("textgym/Copy-v0", "textgym/Bandit-v0", "textgym/DeepSea-v0", "textgym/Helpful-v0")


def one_and_two_cells(path: Path) -> list[Path]:
    values = make_results(("lm-ppo", "rloo"), TASKS[:1], 1, failed=0.0, missing=0.0)
    return [
        write_suite_folder(path / name, rows, name=name) for name, rows in (("first", values[:1]), ("second", values))
    ]


@pytest.mark.slow
def test_a_report_is_built_anew_in_place(tmp_path):
    (first, second), out = one_and_two_cells(tmp_path), tmp_path / "out"
    build_report([first], out)
    build_report([second], out)
    assert ">second</h1>" in (out / "index.html").read_text()
    assert len(list((out / "cells").iterdir())) == 2
    assert not list(out.rglob("*.new"))


@pytest.mark.slow
def test_pages_of_cells_that_are_no_longer_shown_go_and_nothing_else(tmp_path):
    (first, second), out = one_and_two_cells(tmp_path), tmp_path / "out"
    build_report([second], out)
    mine = [out / "cells" / "mine.html", out / "cells" / "notes.txt", out / "mine.html", out / "other" / "index.html"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (out / "other" / "report.html").write_text((out / "index.html").read_text())  # of the same kind, elsewhere
    build_report([first], out)
    assert len(list((out / "cells").glob("*.html"))) == 2  # the cell of the first, and mine
    assert all(path.read_text() == "mine" for path in mine)
    assert (out / "other" / "report.html").exists()


def test_of_a_cell_in_two_places_the_finished_one_is_kept(tmp_path):
    done = make_results(("lm-ppo",), TASKS[:1], 2, failed=0.0, missing=0.0)
    missing = [{**result, "status": "missing", "measures": None, "timing": None} for result in done]
    paths = [write_suite_folder(tmp_path / name, rows) for name, rows in (("a", missing), ("b", done))]
    sources = read_sources(paths)
    assert [result.status for result in sources.results] == ["done", "done"]
    assert len(sources.repeated) == 2


def test_of_a_cell_in_two_places_the_one_that_has_come_furthest_is_kept(tmp_path):
    (done,) = make_results(("lm-ppo",), TASKS[:1], 1, failed=0.0, missing=0.0)
    nothing = {"measures": None, "timing": None}
    error = {"type": "RuntimeError", "message": "no", "traceback": "", "attempts": 1}
    results = {
        "missing": {**done, **nothing, "status": "missing"},
        "failed": {**done, **nothing, "status": "failed", "error": error},
        "done": done,
    }
    paths = {name: write_suite_folder(tmp_path / name, [row]) for name, row in results.items()}
    for order in itertools.permutations(paths):
        assert [each.status for each in read_sources([paths[name] for name in order]).results] == ["done"]
    for order in (("missing", "failed"), ("failed", "missing")):
        assert [each.status for each in read_sources([paths[name] for name in order]).results] == ["failed"]


def test_the_command_tells_which_of_two_results_of_a_cell_it_shows(capsys, tmp_path):
    (done,) = make_results(("lm-ppo",), TASKS[:1], 1, failed=0.0, missing=0.0)
    error = {"type": "RuntimeError", "message": "no", "traceback": "", "attempts": 1}
    failed = {**done, "status": "failed", "error": error, "measures": None, "timing": None}
    paths = [write_suite_folder(tmp_path / name, [failed]) for name in ("one", "two")]
    code, out, said = run(capsys, "report", *map(str, paths), "--out", str(tmp_path / "out"))
    assert (code, out.splitlines()[0]) == (0, "cells: 1 failed")
    assert "1 cell is in several of the runs; shown is the first that is finished, else that failed" in said


def test_results_of_two_splits_are_no_one_report(tmp_path):
    rows = make_results(("lm-ppo",), TASKS[:1], 2, failed=0.0, missing=0.0)
    one, other = write_suite_folder(tmp_path / "one", rows), write_suite_folder(tmp_path / "other", rows)
    data = json.loads((other / "suite.json").read_text())
    data["evaluation"]["split"] = "tune"
    (other / "suite.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"other: measured on the split tune, and what stands before it on eval"):
        read_sources([one, other])
    patient = read_sources([one, other], patient=True)
    assert len(patient.results) == 2
    assert "on the split tune" in patient.unread[0]


def test_a_cell_is_of_the_split_that_its_run_is_of(tmp_path):
    cell = Cell("textgym/Bandit-v0", "random", 64, 0)
    suite = Suite("tuned", (cell,), evaluation=Evaluation(1, 2, 2, 2, 1))
    run_suite(suite, tmp_path / "suite", engine="serial", split="tune")
    folder = cell_folder(tmp_path / "suite", cell)
    for places in ([tmp_path / "suite", folder], [folder, folder / "run"]):
        assert read_sources(places).results  # of one split
    eval_suite = write_suite_folder(tmp_path / "eval", make_results(("lm-ppo",), TASKS[:1], 1, failed=0.0, missing=0.0))
    with pytest.raises(ValueError, match="measured on the split tune"):
        read_sources([eval_suite, folder])


def test_a_cell_whose_run_is_finished_without_a_result_of_its_own_is_interrupted(tmp_path):
    cell = Cell("textgym/Bandit-v0", "random", 64, 0)
    run_suite(Suite("one", (cell,), evaluation=Evaluation(1, 2, 2, 2, 1)), tmp_path / "suite", engine="serial")
    (cell_folder(tmp_path / "suite", cell) / "result.json").unlink()
    (result,) = build_report([tmp_path / "suite"], tmp_path / "out").results
    assert (result.status, result.state) == ("missing", "interrupted")
    assert "<b>1</b> interrupted" in (tmp_path / "out" / "index.html").read_text()


def test_runs_that_are_measured_at_another_beta_are_of_another_problem():
    def at(beta, agent, status="done", own=None, episodes=512):
        (value,) = make_results((agent,), TASKS[:1], 1, failed=0.0, missing=0.0)
        cell = {name: part for name, part in value["cell"].items() if name != "key"}
        cell |= {"config": {} if own is None else {"beta": own}, "episodes": episodes}
        value["cell"] = Cell.from_json(cell).to_json()
        if status == "done":
            value["measures"]["optimum"]["beta"] = beta
            return Result.from_json(value)
        error = {"type": "RuntimeError", "message": "no", "traceback": "", "attempts": 1}
        return Result.from_json(value | {"status": status, "error": error, "measures": None, "timing": None})

    runs = [at(0.01, "rloo", own=0.01), at(1.0, "rloo", own=1.0), at(1.0, "lm-ppo", own=1.0)]
    failed = [at(None, "grpo", "failed", own=1.0), at(None, "dpo", "failed", own=7.0)]
    summary = summarise([*runs, *failed])
    assert [problem.label for problem in summary.problems] == ["Copy-v0, beta 0.01", "Copy-v0, beta 1"]
    assert [problem.beta for problem in summary.problems] == [0.01, 1.0]
    # The failed cells are with those of their own setting, or with the first.
    places = {(entry.problem, entry.agent) for entry in summary.entries}
    assert places == {(0, "rloo"), (1, "rloo"), (1, "lm-ppo"), (1, "grpo"), (0, "dpo")}
    # Of one beta there is one problem, whatever the agents learned with, and its label says nothing of it.
    summary = summarise([at(0.1, "rloo", own=0.01), at(0.1, "lm-ppo"), *failed])
    assert [problem.label for problem in summary.problems] == ["Copy-v0"]
    # A budget that has no result yet differs by its episodes.
    summary = summarise([at(0.1, "rloo"), at(None, "rloo", "failed", episodes=64)])
    assert [problem.label for problem in summary.problems] == ["Copy-v0, 512 episodes", "Copy-v0, 64 episodes"]


def test_a_run_that_is_not_finished_is_of_the_beta_of_its_settings(tmp_path):
    paths = [tmp_path / "low", tmp_path / "high"]
    for path, beta in zip(paths, (0.01, 1.0), strict=True):
        with begin(path, beta=beta).writing(events=False):
            RunFolder.log(RunFolder(path), row(0, 0.0))
    summary = summarise(read_sources(paths).results)
    assert [problem.label for problem in summary.problems] == ["Copy-v0, beta 0.01", "Copy-v0, beta 1"]


def test_runs_that_draw_their_prompts_in_other_ways_are_two(tmp_path):
    for name in ("uniform", "difficulty"):
        plan = TrainSettings(id="textgym/Bandit-v0", agent="random", episodes=8, config={}, curriculum=name)
        RunFolder.create(tmp_path / name, asdict(plan))
    found = read_sources([tmp_path / "uniform", tmp_path / "difficulty"])
    assert not found.repeated
    assert [each.cell.config for each in found.results] == [{}, {"curriculum": "difficulty"}]


def test_a_run_is_named_after_its_reward_and_has_its_machine_once(tmp_path):
    rewards = {"one": ["mine:polite", {"name": "length", "target": 4}], "two": {"name": "length"}, "own": None}
    for name, reward in rewards.items():
        env = {} if reward is None else {"reward": reward}
        plan = TrainSettings(id="textgym/Text-v0", agent="random", episodes=8, config={}, env=env)
        RunFolder.create(tmp_path / name, asdict(plan) | {"versions": {"python": "3.11", "machine": "a machine"}})
    sources = read_sources([tmp_path / name for name in rewards])
    assert [each.cell.reward for each in sources.results] == [*rewards.values()]
    assert [(each.machine, each.versions) for each in sources.results] == [("a machine", {"python": "3.11"})] * 3
    labels = [problem.label for problem in summarise(sources.results).problems]
    assert labels == ["Text-v0, polite + length", "Text-v0, length", "Text-v0"]
    assert sources.suite["name"] == "one, two and own"


def test_an_agent_of_several_settings_in_one_family_has_one_name_in_all(tmp_path):
    rows = make_results(("rloo",), ("textgym/Copy-v0", "textgym/Helpful-v0"), 1, failed=0.0, missing=0.0)

    def with_rate(row, rate):
        cell = {name: value for name, value in row["cell"].items() if name != "key"} | {
            "config": {"learning_rate": rate}
        }
        return {**row, "cell": Cell.from_json(cell).to_json()}

    one = write_suite_folder(tmp_path / "one", [with_rate(row, 0.01) for row in rows])
    two = write_suite_folder(tmp_path / "two", [with_rate(rows[0], 0.02)])
    build_report([one, two], tmp_path / "report")
    tables = Page(tmp_path / "report" / "index.html").rows
    names = {cell for _, row in tables for cell in row if cell.startswith("rloo")}
    assert names == {'rloo {"learning_rate":0.01}', 'rloo {"learning_rate":0.02}'}
