"""`textgym inspect` on trained runs: the task that a run was trained on is the one it is shown on."""

from __future__ import annotations

import json

import pytest
from cli_tools import assert_one_line, run


@pytest.fixture
def train(capsys, tmp_path):
    def trained(name, *options):
        folder = tmp_path / name
        words = [word for option in options for word in ("--env", option)]
        code, _, err = run(
            capsys,
            "train",
            "Stop-v0",
            "--agent",
            "q-learning",
            "--episodes",
            "64",
            *words,
            "--out",
            str(folder),
        )
        assert code == 0, err
        return str(folder)

    return trained


def shown(capsys, *words):
    code, out, err = run(capsys, "inspect", "Stop-v0", *words, "--prompt-index", "0", "--json")
    return code, json.loads(out)["traces"] if code == 0 else None, err


@pytest.mark.slow
def test_a_run_is_shown_on_its_own_task(train, capsys):
    folder = train("short", "difficulty=2")
    _, (trace,), _ = shown(capsys, "--agent", folder, "--completion", "word word word word")
    assert [step["text"] for step in trace["steps"]] == ["word"] * 4  # its budget is difficulty + 2
    _, (trace,), _ = shown(capsys, "--agent", folder, "--env", "difficulty=5", "--completion", "word word word word")
    assert [step["text"] for step in trace["steps"]] == ["word"] * 4 + ["<end>"]


@pytest.mark.long
def test_two_runs_need_one_task(train, capsys):
    short, long, alike = train("short", "difficulty=2"), train("long"), train("alike", "difficulty=2")
    _, traces, _ = shown(capsys, "--agent", short, "--agent", alike)
    assert [trace["agent"] for trace in traces] == [short, alike]
    code, _, err = shown(capsys, "--agent", short, "--agent", long)
    assert_one_line(code, err, short, '{"difficulty": 2}', long, "{}", "--env NAME=VALUE")
    code, _, err = shown(capsys, "--agent", short, "--agent", long, "--env", "difficulty=3")
    assert code == 0, err


@pytest.mark.slow
def test_a_damaged_config_is_named(train, capsys, tmp_path):
    folder = train("run")
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"env": 3}))
    code, _, err = shown(capsys, "--agent", folder)
    assert_one_line(code, err, "config.json: env=3, allowed is a JSON object of options")
