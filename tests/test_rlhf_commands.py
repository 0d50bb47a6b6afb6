"""`textgym sft` and `textgym reward-model`, end to end: tables, errors of one line, kills and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from agents.rlhf.fit_tools import dropout_base, pair_file, rows_of, weights, write_rows
from cli_tools import assert_one_line, run, started, until

SHARED = Path(os.environ.get("TEXTGYM_SHARED", Path(__file__).parents[2] / "shared"))
BASE, DATA = SHARED / "models" / "stories260K", SHARED / "data" / "hh-harmless-1500.jsonl"
TINY = ("--batch", "8", "--micro-batches", "2", "--save-every", "3", "--device", "cpu")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    pair_file(tmp_path / "pairs.jsonl")


@pytest.mark.slow
def test_sft_from_preferences(capsys):
    with Path("pairs.jsonl").open("a") as file:
        file.write('{"prompt": "\\u001b[31m", "chosen": "a"}\n')
    code, out, err = run(capsys, "sft", "--data", "pairs.jsonl", "--epochs", "3", *TINY)
    assert code == 0
    assert "pairs.jsonl, line 41" in err
    assert "\x1b" not in err + out
    for words in (
        "loss, nats per token",
        "perplexity",
        "token accuracy",
        "36 training rows, 4 held out",
    ):
        assert words in out
    assert "model: runs/sft-1/model" in out
    assert "it/s" not in out + err  # no bars of libraries
    again = ("sft", "--data", "pairs.jsonl", "--out", "runs/sft-1")
    assert_one_line(*run(capsys, *again)[::2], "never overwritten")
    assert_one_line(*run(capsys, *again, "--resume")[::2], "nothing to resume")


@pytest.mark.long
def test_an_ensemble_of_reward_models(capsys):
    words = ("--data", "pairs.jsonl", "--members", "2", "--loss", "plackett_luce", "--centering", "0.01")
    code, out, _ = run(capsys, "reward-model", *words, *TINY, "--out", "rm")
    assert code == 0
    for text in (
        "accuracy, pairs",
        "log loss",
        "ECE",
        "longer is better",
        "model: rm/model-1",
        "reliability.png",
    ):
        assert text in out
    assert [name for name in ("model-0", "model-1") if Path("rm", name, "reward.json").exists()] == [
        "model-0",
        "model-1",
    ]


@pytest.mark.parametrize("command", ["sft", "reward-model"])
def test_errors_are_one_line(capsys, command):
    assert_one_line(*run(capsys, command)[::2], "--data")
    assert_one_line(*run(capsys, command, "--data", "none.jsonl")[::2], "none.jsonl")
    words = (command, "--data", "pairs.jsonl", "--device", "cpu")
    assert_one_line(*run(capsys, *words, "--base", "./nowhere")[::2], "./nowhere")
    assert_one_line(*run(capsys, *words, "--epoch", "3")[::2], "--epoch")
    assert_one_line(*run(capsys, *words, "--batch", "6")[::2], "micro_batches=4")
    assert_one_line(*run(capsys, *words, "--resume")[::2], "--out")
    assert_one_line(*run(capsys, *words, "--resume", "--out", "nothing")[::2], "holds no run")
    Path("other").mkdir()
    for config, held in (({"command": "rlhf"}, "rlhf"), ({}, "another command")):
        Path("other/config.json").write_text(json.dumps({"format": 2, **config}))
        other = run(capsys, *words, "--resume", "--out", "other")[::2]
        assert_one_line(*other, f"--resume: other holds a run of {held}, not of {command}")
        bare = run(capsys, command, "--resume", "--out", "other")[::2]
        assert_one_line(*bare, f"--resume: other holds a run of {held}, not of {command}")
    assert_one_line(*run(capsys, *words, "--seed", "99999999999999")[::2], "seed=99999999999999")
    write_rows(Path("broken.jsonl"), [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    stop = (command, "--data", "broken.jsonl", "--on-broken", "stop")
    assert_one_line(*run(capsys, *stop)[::2], "broken.jsonl, line 1", "identical")
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal")
@pytest.mark.parametrize(("command", "shown"), [("sft", "SIGINT"), ("reward-model", "SIGKILL")])
@pytest.mark.long
def test_a_run_that_was_ended_goes_on_to_the_same_result(capsys, command, shown):
    base = dropout_base(Path("base"))
    capsys.readouterr()  # the bar of saving it
    words = (command, "--data", "pairs.jsonl", "--base", base, "--epochs", "12", *TINY)
    with started(*words, "--out", "cut", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until(lambda: Path("cut/checkpoints/model").exists() or process.poll() is not None)
        process.send_signal(getattr(signal, shown))
        _, err = process.communicate(timeout=120)
    assert not Path("cut/result.json").exists()
    if shown == "SIGINT":
        assert process.returncode == 130
        assert "Traceback" not in err
        assert err.splitlines()[-1].endswith(
            "textgym sft --data pairs.jsonl --epochs 12 --batch 8 --micro-batches 2 --save-every 3 "
            f"--base {base} --device cpu --out cut --resume"
        )
    assert_one_line(*run(capsys, *words, "--out", "cut")[::2], "interrupted run", "resume")
    resume = (command, "--data", "pairs.jsonl", "--out", "cut", "--resume")
    assert_one_line(*run(capsys, *resume, "--epochs", "3")[::2], "--epochs 3", "started with 12")
    assert run(capsys, command, "--out", "cut", "--resume")[0] == 0  # the data, too, are those that it has begun with
    assert run(capsys, *words, "--out", "whole")[0] == 0
    assert weights(Path("cut/model")) == weights(Path("whole/model"))
    assert rows_of(Path("cut")) == rows_of(Path("whole"))
    assert not Path("cut/checkpoints").exists()


@pytest.mark.long
@pytest.mark.skipif(not (BASE.is_dir() and DATA.is_file()), reason=f"{SHARED} is missing (set TEXTGYM_SHARED)")
@pytest.mark.parametrize("command", ["sft", "reward-model"])
def test_real_transcripts_on_a_real_model(capsys, command):
    lines = DATA.read_text(encoding="utf-8").split("\n")[60:160]  # line 87 has an empty answer
    Path("hh.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = (
        "--data",
        "hh.jsonl",
        "--base",
        str(BASE),
        "--epochs",
        "1",
        "--max-length",
        "96",
        "--device",
        "cpu",
    )
    code, _, err = run(capsys, command, *words, "--out", "run")
    assert code == 0
    assert "hh.jsonl, line 27: the chosen answer is empty" in err
    assert "tokens were cut" in err
    result = json.loads(Path("run/result.json").read_text())
    assert result["data"]["broken_rows"] == 1
    assert result["data"]["train_rows"] + result["data"]["held_out_rows"] == 99
    if command == "sft":
        assert result["after"]["eval/loss"] < result["before"]["eval/loss"]
