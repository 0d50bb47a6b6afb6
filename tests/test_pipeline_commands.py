"""`textgym rlhf` and `textgym overoptimise`: what they print, and what they refuse."""

from __future__ import annotations

import json

import pytest
from cli_tools import assert_one_line, child, run

TINY = ["--batch", "32", "--minibatches", "1", "--epochs", "1", "--episodes", "32"]


@pytest.mark.parametrize("command", ["rlhf", "overoptimise"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Nothing-v0"], "ID 'Nothing-v0': there is no such environment"),
        (["Helpful-v0", "--episodes", "0"], "episodes=0: allowed is an integer in 1..9007199254740992"),
        (["Helpful-v0", "--env", "max_new_tokens"], "--env 'max_new_tokens': allowed is NAME=VALUE"),
        (["Helpful-v0", "--env", "reference=uniform"], "is no language model"),
        (["Helpful-v0", "--noise", "-1"], "noise=-1.0: allowed is a finite number >= 0"),
        (["Helpful-v0", "--model", "gpt2"], "model"),
        (["Helpful-v0", "--seed", "4294967296"], "seed=4294967296: allowed is an integer in 0..4294967295"),
        (["Helpful-v0", "--env", "reward=nothing", "--env", "max_new_tokens=9"], "reward 'nothing'"),
    ],
)
def test_what_cannot_be_run_is_one_line(command, words, message, tmp_path, capsys):
    code, _, err = run(capsys, command, *words, "--out", str(tmp_path / "run"))
    assert_one_line(code, err, message)
    assert not (tmp_path / "run").exists()


def test_demonstrations_that_are_not_there_do_not_begin_a_run(tmp_path, capsys):
    words = ["--demonstrations", "none.jsonl", "--out", str(tmp_path / "run")]
    code, _, err = run(capsys, "rlhf", "Helpful-v0", *words)
    assert_one_line(code, err, "demonstrations='none.jsonl': there is no such file")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.long
def test_rlhf_ends_with_four_policies_side_by_side(tmp_path):
    words = ["--demonstration-count", "40", "--sft-epochs", "1", "--preferences", "60", "--best-of", "2"]
    words += ["--reward-model-epochs", "1", "--per-prompt", "2", "--optimum-per-prompt", "4"]
    run = ["rlhf", "Helpful-v0", *words, *TINY, "--env", "max_new_tokens=16", "--out", str(tmp_path / "run")]
    done = child(*run)
    assert done.returncode == 0, done.stderr
    for name in ("base", "SFT", "PPO", "best-of-2"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f" {name} ") and "[" in line]
        assert len(line) <= 80
        assert "…" not in line  # nothing is cut off
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [row["policy"] for row in result["rows"]] == ["base", "SFT", "PPO", "best-of-2"]
    again = child(*run)
    assert again.returncode == 0
    assert again.stderr.count("complete in") == 4
    other = child(*run, "--noise", "0.5")
    assert other.returncode == 2
    assert "noise=0.5: the run in" in other.stderr
