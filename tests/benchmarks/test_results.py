"""Results: read from every place where they are, refused where they are anything else."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from fake_cells import quick, tiny_suite
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_results, write_suite_folder
from textgym_benchmarks.results.store import (
    Result,
    export_results,
    load_results,
    main,
    suite_summary,
    updated,
)
from textgym_benchmarks.run.runner import run_suite
from textgym_benchmarks.suite import Cell

SOME = make_results(3, 3, 2, failed=0.2, missing=0.1)


@pytest.fixture
def folder(tmp_path):
    return write_suite_folder(tmp_path / "suite", SOME)


def test_a_suites_folder(folder):
    results = load_results(folder)
    assert [result.cell.to_json() for result in results] == [made["cell"] for made in SOME]
    for result, made in zip(results, SOME, strict=True):
        assert result.status == made["status"]
        assert result.status == "missing" or result.to_json() == made
    assert {"done", "failed", "missing"} == {result.status for result in results}
    assert all(result.folder == folder / "cells" / result.cell.key for result in results)


def test_a_cells_folder(folder):
    for result in load_results(folder):
        if result.status != "missing":
            assert load_results(str(result.folder)) == [result]


def test_names_in_tables_are_those_that_the_suite_has_now(folder):
    data = json.loads((folder / "suite.json").read_text())
    done = next(result for result in load_results(folder) if result.status == "done")
    place = next(i for i, cell in enumerate(data["cells"]) if Cell.from_json(cell) == done.cell)
    renamed = replace(done.cell, label=(done.cell.label or done.cell.agent).upper())
    if renamed.key != done.cell.key:
        pytest.fail("a key folds case")
    data["cells"][place] = renamed.to_json()
    (folder / "suite.json").write_text(json.dumps(data))
    assert load_results(folder)[place] == replace(done, cell=renamed)


def test_a_file_of_many_holds_the_same_to_six_digits(folder, tmp_path):
    results = load_results(folder)
    path = tmp_path / "core.json"
    export_results(results, path, suite_summary(folder))
    again = load_results(path)
    assert [(a.cell, a.status, a.family, a.folder) for a in again] == [
        (b.cell, b.status, b.family, None) for b in results
    ]
    assert json.loads(path.read_text())["suite"]["name"] == "synthetic"
    done = [(a, b) for a, b in zip(again, results, strict=True) if b.status == "done"]
    for after, before in done:
        short = after.measures["after"]["reward"]["mean"]
        assert short == pytest.approx(before.measures["after"]["reward"]["mean"], rel=1e-5)
        assert len(str(short).lstrip("-0.").replace(".", "")) <= 6
    failed = next(result for result in again if result.status == "failed")
    assert failed.error["traceback"] == ""
    export_results(again, tmp_path / "again.json", suite_summary(folder))
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_cells_that_were_run_again_replace_theirs(folder, tmp_path, monkeypatch):
    old, path = load_results(folder), tmp_path / "core.json"
    export_results(old, path, suite_summary(folder))
    ended = [result for result in old if result.status != "missing"]
    again = [replace(ended[1], machine="another"), replace(ended[0], status="missing", machine="another")]
    assert updated(old, again) == [again[0] if result is ended[1] else result for result in old]
    with pytest.raises(ValueError, match=f"cell {old[0].cell.key}: it is not among"):
        updated(old[1:], [old[0]])
    newer = write_suite_folder(tmp_path / "newer", [result.to_json() for result in again])
    monkeypatch.setattr("sys.argv", ["results", str(path), "--update", str(newer), "--out", str(path)])
    main()
    assert [result.machine == "another" for result in load_results(path)] == [result is ended[1] for result in old]
    assert suite_summary(path)["name"] == "synthetic"


def test_a_run_of_textgym_train(tmp_path):
    run = tmp_path / "demo-1"
    run.mkdir()
    config = {"format": 2, "id": "textgym/Bandit-v0", "agent": "lm-ppo", "episodes": 512, "env": {"difficulty": 1}}
    config |= {"config": {"seed": 7, "clip": 0.1}, "versions": {"python": "3", "machine": "2 cores"}}
    (run / "config.json").write_text(json.dumps(config))
    [missing] = load_results(run)
    assert (missing.status, missing.measures) == ("missing", None)
    before, after = _flat(0.0), _flat(1.0)
    rows = [
        {"iteration": 0, "episode": 0, "learning/tokens": 0, **before},
        {"iteration": 1, "episode": 256, "learning/tokens": 300},
        {"iteration": 2, "episode": 512, "learning/tokens": 600, **after},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"iteration": i, "prompt": "p", "completion": f"at {i}", "reward": 0.5, "terms": {}} for i in (0, 2)]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    finished = {
        "before": before,
        "after": after,
        "optimum": None,
        "iterations": 2,
        "episodes": 512,
        "seconds": 3.0,
    }
    (run / "result.json").write_text(json.dumps(finished))
    [result] = load_results(run)
    assert result.cell == Cell("textgym/Bandit-v0", "lm-ppo", 512, 7, env={"difficulty": 1}, config={"clip": 0.1})
    assert (result.status, result.family, result.machine) == ("done", "diagnostics", "2 cores")
    assert [point["episode"] for point in result.measures["curve"]] == [0, 512]
    # Optimality goes from 0 to 1 over 512 episodes and 600 tokens.
    assert result.measures["to_half"] == {"episodes": 256.0, "tokens": 300.0}
    assert result.measures["samples"][0]["after"]["completion"] == "at 2"
    assert result.measures["tokens"] == 600
    assert result.timing == {"seconds": 3.0}  # the run has logged no other time


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "IndexError"),
        ([{"iteration": 0, "episode": 0, "eval/reward": 0.5, "cpu_seconds": "1"}], "cpu_seconds='1'"),
        ([{"iteration": 0, "episode": 0, "eval/reward": 0.5, "learning/tokens": [1]}], "tokens=|TypeError"),
    ],
)
def test_a_run_with_wrong_logs_is_refused_by_name(tmp_path, rows, message):
    run = tmp_path / "demo-2"
    run.mkdir()
    config = {"format": 2, "id": "textgym/Bandit-v0", "agent": "lm-ppo", "episodes": 512, "env": {}, "config": {}}
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    finished = {"before": {}, "after": {}, "optimum": None, "iterations": 0, "episodes": 0, "seconds": 3.0}
    (run / "result.json").write_text(json.dumps(finished))
    with pytest.raises(ValueError, match=f"demo-2: .*(?:{message})"):
        load_results(run)


def _flat(score):
    row = {"eval/stop_rate": 1.0}
    for name in ("reward", "optimality"):
        row |= {f"eval/{name}{end}": score for end in ("", "_low", "_high")}
    return row


def test_what_is_no_result_is_refused_by_name(tmp_path, folder):
    with pytest.raises(ValueError, match="there is nothing; allowed is a suite's folder"):
        load_results(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: a folder without suite\.json"):
        load_results(tmp_path / "empty")
    other = tmp_path / "other.json"
    other.write_text('{"format": 2, "results": []}')
    with pytest.raises(ValueError, match=r"other\.json: no file of results"):
        load_results(other)
    first, second = [r.folder for r in load_results(folder) if r.status == "done"][:2]
    (first / "result.json").write_bytes((second / "result.json").read_bytes())
    with pytest.raises(ValueError, match="is of another cell"):
        load_results(folder)


def _good(folder):
    return json.dumps(quick(tiny_suite().cells[0], None, folder, folder))


@settings(max_examples=40)
@given(data=st.data())
def test_a_truncated_file_is_refused_by_name(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "truncated"
    folder.mkdir(exist_ok=True)
    text = _good(folder)
    (folder / "result.json").write_text(text[: data.draw(st.integers(0, len(text) - 1))])
    with pytest.raises(ValueError, match=r"truncated.result\.json"):
        load_results(folder)


def _places(value, path=()):
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from _places(inner, (*path, key))


odd = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from([10**400, 1e308])
    | st.text(max_size=3)
    | st.just([])
    | st.just({})
)


@pytest.mark.slow
@settings(max_examples=100)
@given(data=st.data())
def test_a_wrong_entry_is_refused_by_name_or_is_as_good_as_the_right_one(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "wrong"
    folder.mkdir(exist_ok=True)
    content = json.loads(_good(folder))
    place = data.draw(st.sampled_from(list(_places(content))[1:]))
    changed = copy.deepcopy(content)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = data.draw(odd)
    (folder / "result.json").write_text(json.dumps(changed))
    message = None
    try:
        [result] = load_results(folder)
    except ValueError as error:
        message = str(error)
    if message is None:
        assert Result.from_json(result.to_json()).to_json() == result.to_json()
    else:
        assert "wrong" in message
        assert "result.json" in message


LARGE = 10**400  # no float is as large
FIRST = {"episode": 0, "tokens": 0}
ESTIMATE = {"mean": 0.5, "low": None, "high": None}
OPTIMUM = {"value": ESTIMATE, "reference": ESTIMATE, "effective_samples": None, "beta": 0.1, "exact": True}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("curve", [{"episode": 0}], r"curve\[0\]: has no 'tokens'"),
        ("curve", [FIRST | {"tokens": None}], r"curve\[0\]\.tokens=None"),
        ("curve", [FIRST, FIRST | {"episode": 9}, FIRST | {"episode": 8}], r"curve\[2\]\.episode=8: .*>= 9"),
        ("curve", [FIRST | {"episode": -1}], r"curve\[0\]\.episode=-1"),
        ("curve", [FIRST | {"optimality": 0.5, "optimality_low": 0.1}], r"curve\[0\]\.optimality_high=None"),
        ("curve", [FIRST | {"optimality_high": 0.1}], r"curve\[0\]\.optimality_low=None: .*optimality_high"),
        ("curve", [FIRST | {"reward": LARGE}], r"curve\[0\]\.reward=1000"),
        ("tokens", LARGE, "tokens=1000"),
        ("tokens", 1e13, r"tokens=1e\+13|tokens=10000000000000"),
        ("after.kl", ESTIMATE | {"mean": -1.1e12}, r"after\.kl\.mean=-11000.*from -1e\+12 to 1e\+12"),
        ("after.reward", ESTIMATE | {"low": 0.1}, r"after\.reward\.high=None: .* a number where low is one"),
        ("before.gold", ESTIMATE | {"high": 0.1}, r"before\.gold\.low=None"),
        ("optimum", OPTIMUM | {"beta": None}, r"optimum\.beta=None"),
        ("optimum", OPTIMUM | {"value": ESTIMATE | {"low": 0.0}}, r"optimum\.value\.high=None"),
        ("timing", {"cpu_seconds": LARGE}, r"timing\.cpu_seconds=1000"),
        ("timing", {"curve_seconds": [LARGE]}, r"timing\.curve_seconds\[0\]=1000"),
    ],
)
def test_what_no_report_can_show_is_refused_by_file_and_entry(tmp_path, place, value, message):
    content = json.loads(_good(tmp_path))
    *way, last = ["timing"] if place == "timing" else ["measures", *place.split(".")]
    inner = content
    for key in way:
        inner = inner[key]
    inner[last] = value
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"result\.json: (?:" + message + ")"):
        load_results(tmp_path)


def test_the_largest_numbers_and_points_without_an_episode_between_are_read(tmp_path):
    content = json.loads(_good(tmp_path))
    content["measures"] |= {"tokens": 10**12, "curve": [FIRST, FIRST | {"optimality": -1e12}]}
    (tmp_path / "result.json").write_text(json.dumps(content))
    [result] = load_results(tmp_path)
    assert result.measures["tokens"] == 10**12


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ([], r"suite=\[\]: allowed is a JSON object"),
        ("core", "suite='core'"),
        (None, "suite=None"),
        ({"evaluation": "abc"}, r"suite\.evaluation='abc': allowed is a JSON object"),
        ({"settings": [1]}, r"suite\.settings=\[1\]"),
        ({"name": 3}, r"suite\.name=3: allowed is a text"),
    ],
)
def test_a_wrong_head_of_a_file_of_results_is_refused(tmp_path, suite, message):
    path = tmp_path / "core.json"
    result = json.loads(_good(tmp_path))
    path.write_text(json.dumps({"format": 1, "suite": suite, "results": [result]}))
    with pytest.raises(ValueError, match=r"core\.json: " + message):
        load_results(path)


@pytest.mark.parametrize("constant", ["NaN", "Infinity"])
def test_numbers_that_json_does_not_have_are_refused(tmp_path, constant):
    text = _good(tmp_path).replace('"tokens": 100', f'"tokens": {constant}')
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=f"{constant} is no JSON"):
        load_results(tmp_path)


def test_what_a_run_wrote_is_read_as_it_was_returned(tmp_path):
    returned = run_suite(tiny_suite(), tmp_path, engine="serial", function="fake_cells:quick")
    assert load_results(tmp_path) == returned
