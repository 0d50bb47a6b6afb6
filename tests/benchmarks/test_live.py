"""The live report: what it reads of a run that is not finished, what it serves and to whom, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from benchmarks.live_runs import begin, end, learn, served
from cli_tools import assert_one_line, run, started
from textgym_agents.training.folder import RunFolder
from textgym_benchmarks.results.store import load_results, read_sources
from textgym_benchmarks.summaries import summarise

from textgym.files import read_lines


def get(server, path="/", method="GET", **headers):
    """Status, headers and body; `Host` stands for itself."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read().decode("utf-8", "replace")
    connection.close()
    return found


def page(server, path="/"):
    server._due = 0.0  # as if a second had gone by
    status, _, text = get(server, path)
    assert status == 200
    return text


def data_of(text):
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


@pytest.fixture
def begun(tmp_path):
    learned = begin(tmp_path / "run")
    learn(learned, 0, 0.0, "before", seconds=10.0)
    learn(learned, 1, 0.25, "now", seconds=30.0)
    learn(learned, 2, None, seconds=50.0)
    return learned


def test_an_unfinished_run_tells_how_far_it_is(begun):
    os.utime(begun.path / "metrics.jsonl", (time.time() - 15,) * 2)
    with begun.writing(events=False):
        (result,) = load_results(begun.path)
    # 20 s for 100 episodes: 40 s for the 200 that are left, of which 15 have gone by.
    assert result.so_far["seconds_left"] == pytest.approx(25.0, abs=2.0)
    assert (result.status, result.state, result.so_far["episodes"]) == ("missing", "running", 200)
    assert result.known["after"]["objective"] == {"mean": 0.25, "low": 0.23, "high": 0.27}
    assert [point["episode"] for point in result.known["curve"]] == [0, 100]
    assert [side["completion"] for side in (result.known["samples"][0][when] for when in ("before", "after"))] == [
        "before",
        "now",
    ]
    (result,) = load_results(begun.path)
    assert (result.state, result.so_far["seconds_left"], result.measures) == ("interrupted", None, None)
    assert "so_far" not in result.to_json()


def test_an_unfinished_run_has_a_curve_and_no_score(begun, tmp_path):
    other = begin(tmp_path / "other", learning_rate=0.1)
    learn(other, 0, 0.0)
    end(other, 0.5)
    summary = summarise(read_sources([begun.path, other.path]).results)
    first, second = sorted(summary.curves, key=lambda curve: curve.run, reverse=True)
    # Told apart by what differs among their settings, and nothing else.
    assert (first.name, second.name) == ("lm-ppo {}, seed 0, interrupted", 'lm-ppo {"learning_rate":0.1}')
    assert (first.objective.mean, first.objective.low, first.entropy.mean) == ((0.0, 0.25), (-0.02, 0.23), (5.0, 4.75))
    assert second.episodes == (0, 400)
    scores = {entry.agent: entry.optimality.value for entry in summary.entries}
    assert scores == {"lm-ppo {}": None, 'lm-ppo {"learning_rate":0.1}': 1.0}
    assert (summary.counts.done, summary.counts.missing) == (1, 1)


def test_a_run_that_has_only_begun_has_no_numbers(tmp_path):
    begin(tmp_path / "run")
    (result,) = load_results(tmp_path / "run")
    assert (result.state, result.known, result.so_far["episodes"]) == ("interrupted", {}, 0)


def test_a_half_written_line_is_left_out_until_it_is_whole(begun):
    path = begun.path / "metrics.jsonl"
    before = path.read_text()
    path.write_text(before + '{"iteration": 3, "episode": 3')
    assert load_results(begun.path)[0].so_far["episodes"] == 200
    path.write_text(before + '{"iteration": 3, "episode": 3\n{"iteration": 4}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 4: not JSON"):
        load_results(begun.path)


def test_a_file_that_grows_while_it_is_read_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a"')
    read = Path.read_bytes

    def grow(self):
        with path.open("ab") as file:
            file.write(b": 2}\n")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", grow)
    assert read_lines(path) == [{"a": 1}, {"a": 2}]


def test_who_looks_at_a_run_leaves_its_checkpoint_to_who_writes_it(begun):
    old = begun.path / ".checkpoint-old"  # as between the two renames that replace a checkpoint
    with begun.writing(events=False):
        old.mkdir()
        load_results(begun.path)
        assert old.exists()
    RunFolder(begun.path)
    assert not old.exists()


@pytest.mark.slow
def test_the_page_follows_a_run_from_before_it_begins_to_its_end(tmp_path):
    with served(tmp_path / "run") as server:
        waiting = page(server)
        assert "Waiting for a run" in waiting
        assert f"{tmp_path / 'run'}: no run there yet" in waiting
        (tmp_path / "run").mkdir()
        assert "no run there yet" in page(server)
        learned = begin(tmp_path / "run")
        assert "0 of 400" in page(server)
        learn(learned, 0, 0.0, "<b>before</b>")
        learn(learned, 1, 0.25, "now")
        text = page(server)
        assert "100 of 400" in text
        assert "0.250 <small>[0.230, 0.270]</small>" in text
        assert 'id="leaderboard"' not in text  # nothing is finished
        data = data_of(text)
        assert data["curves"][0][0]["objective"] == {"mean": [0, 0.25], "low": [-0.02, 0.23], "high": [0.02, 0.27]}
        assert [data["samples"][0]["samples"][0][when]["completion"] for when in ("before", "after")] == [
            "<b>before</b>",
            "now",
        ]
        assert "<b>before" not in text
        (key,) = [result.cell.key for result in load_results(tmp_path / "run")]
        cell = page(server, f"/cells/{key}.html")
        assert "Interrupted, or running on another machine." in cell
        end(learned, 0.5)
        text = page(server)
        assert 'id="leaderboard"' in text
        assert "400 of 400" in text
        assert data_of(text)["curves"][0][0]["run"] == ""


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_shown(begun, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with served(begun.path, tmp_path / "broken", tmp_path / "later") as server:
        text = page(server)
    assert "broken/config.json: no JSON can be read there" in text
    assert "later: no run there yet" in text
    assert "200 of 400" in text


def test_nothing_is_answered_but_get_and_head_of_the_page_and_its_files(begun):
    with served(begun.path) as server:
        status, headers, text = get(server)
        assert (status, headers["Content-Type"], headers["Cache-Control"]) == (
            200,
            "text/html; charset=utf-8",
            "no-cache",
        )
        assert "connect-src 'self'; base-uri 'none'" in text
        assert get(server, method="HEAD")[::2] == (200, "")
        assert get(server, If_None_Match=headers["ETag"])[::2] == (304, "")
        for name in ("base.css", "theme.js", "report.css", "report.js", "figures.js", "charts.js", "live.js"):
            assert get(server, f"/{name}")[0] == 200
        run_name = begun.path.name
        for path in (
            "/config.json",
            f"/../{run_name}/config.json",
            f"/{run_name}/metrics.jsonl",
            "//etc/passwd",
            "/%2e%2e/",
        ):
            assert get(server, path)[0] == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert get(server, method=method)[0] == 501


def test_only_requests_to_this_machine_are_answered(begun):
    with served(begun.path) as server:
        for name in ("localhost", "127.0.0.1", "localhost:9000"):  # a port that is forwarded here
            assert get(server, Host=name)[0] == 200
        for name in ("evil.example", "evil.example:18765", "127.0.0.1.evil.example", "localhost@evil.example", ""):
            status, _, text = get(server, Host=name)
            assert status == 403
            assert "copy" not in text
        assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_passed_over(begun):
    with served(begun.path) as first, served(begun.path, port=first.server_port) as second:
        assert first.server_port < second.server_port < first.server_port + 100
        assert get(second)[0] == 200


def test_what_cannot_be_served_is_refused(capsys, tmp_path):
    for words, said in (
        ((), "textgym report runs/demo-1 --live"),
        (("run", "--out", "x"), "--live writes nothing"),
        (("run", "--port", "70000"), "allowed is 1 to 65535"),
    ):
        code, _, err = run(capsys, "report", "--live", *words)
        assert_one_line(code, err, said)


def test_a_server_that_waits_is_no_stage_of_the_work(begun, capsys, caplog, monkeypatch):
    monkeypatch.setattr("textgym_benchmarks.commands.report.LiveServer.serve_forever", lambda server: None)
    with caplog.at_level("INFO", "textgym_benchmarks"):
        assert run(capsys, "report", str(begun.path), "--live")[0] == 0
    assert caplog.messages[-1:] == [""]  # after which a status line is silent


@pytest.mark.long
def test_it_ends_with_the_program_that_started_it(begun):
    words = ("report", str(begun.path), "--live", "--port", "18800", "--until-eof")
    with started(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith("live report: http://127.0.0.1:188")
        process.stdin.close()
        assert process.wait(20) == 0


def test_the_report_that_is_written_has_unfinished_runs_too(begun, capsys, tmp_path):
    code, out, _ = run(capsys, "report", str(begun.path), "--out", str(tmp_path / "report"))
    assert (code, out.splitlines()[0]) == (0, "cells: 1 interrupted")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "live.js" not in text
    assert "connect-src" not in text
    assert data_of(text)["curves"][0][0]["kl"]["mean"] == [1, 1]
