"""Several devices: what two ranks learn is what one learns, whatever is split between them and however."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agents.ranks import finish, run_job, start
from golden.agent_records import stop_env
from safetensors.torch import load_file
from textgym_agents import make_agent, make_env
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.devices import ALONE, Devices
from textgym_agents.lm.start import start_policies
from textgym_agents.training.ranks import Ranks, share

from agents import rank_jobs
from textgym import make_task

ADAPTED = ("lora", "lora, grpo", "lora, bfloat16", "adapter folder")
SHARDED = ("lm-ppo", "lm-ppo, grammar", "grpo", "dpo", "stored in bfloat16", *ADAPTED)
PAIRS = [("ddp", name) for name in rank_jobs.CASES] + [("fsdp", name) for name in SHARDED]


def test_ranks_own_what_they_have_played_and_are_dealt_the_rest() -> None:
    ranks = [Devices(0, 2), Devices(1, 2)]
    rows = np.array([5, 0, 3, 2])  # of 6: the first three are rank 0's
    assert [rank.own(rows, 6).tolist() for rank in ranks] == [[0, 2], [5, 3]]
    assert [rank.deal(rows)[0].tolist() for rank in ranks] == [[5, 3], [0, 2]]
    assert [rank.deal(rows[:1]) for rank in ranks] == [([5], 1.0), ([5], 0.0)]
    assert ALONE.own(rows, 6) is rows


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Devices(1, 2)
    two.check_task(make_task("Helpful", reward="model"))  # it remembers scores, which changes none
    with pytest.raises(ValueError, match="it changes as it scores, of which each of 2 devices"):
        two.check_task(make_task("Helpful", reward={"name": "running_norm", "reward": {"name": "length", "target": 8}}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert share("batch", 12, 3) == 6
    with pytest.raises(ValueError, match="batch=12: allowed is a multiple of the 2 processes, in whole groups of 4"):
        share("batch", 12, 4)
    with pytest.raises(ValueError, match="agent 'q-learning' runs in one process"):
        Ranks(make_agent("q-learning", stop_env(2)))
    with pytest.raises(ValueError, match="agent 'alphazero' runs in one process"):
        make_agent("alphazero", stop_env(2))


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}, {"lora_rank": 2, "precision": "bfloat16"}])
@pytest.mark.parametrize("name", ["base", "halves"])
def test_a_start_that_will_be_sharded_is_pages_of_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    rank_jobs.write_models(tmp_path)
    file = tmp_path / name / "model.safetensors"
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = LMPPOConfig(device="cpu", parallel="fsdp", model=str(file.parent), **settings)
    start = start_policies(stop_env(2).unwrapped.task, config)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    mapped = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    for policy in (start.policy, start.reference):
        for key, each in policy.model.named_parameters():
            assert "lora_" in key or any(low <= each.data_ptr() < high for low, high in mapped), key
            assert each.dtype == (torch.float32 if "lora_" in key or name == "base" else torch.bfloat16)
    assert start.policy.held == getattr(torch, config.precision)
    assert start.apart


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The folders of one rank, and of two that hold all weights, or parts of them."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("alone", "ddp", "fsdp")}
    for folder in folders.values():
        rank_jobs.write_models(folder)
    rank_jobs.learn(folders["alone"], "fsdp", *rank_jobs.CASES)  # alone it says nothing
    run_job("learn", folders["ddp"], "ddp", *rank_jobs.CASES)
    run_job("learn", folders["fsdp"], "fsdp", *SHARDED)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "case"), PAIRS, ids=[f"{name}, {parallel}" for parallel, name in PAIRS])
def test_two_ranks_learn_what_one_learns(learned: Mapping[str, Path], parallel: str, case: str) -> None:
    one, two = (load_file(learned[name] / f"{case}.safetensors") for name in ("alone", parallel))
    assert one.keys() == two.keys()
    for name, tensor in one.items():  # of a sharded policy the value head always has a gradient, here 0
        assert not two[name][len(tensor) :].any()
        two[name] = two[name][: len(tensor)]
    assert one["gradient 0"].norm() > 1e-3
    # On the same rollout, and before rounding has made two policies of one.
    rounding = 5e-3 if "bfloat16" in case else 1e-6
    assert (one["gradient 0"] - two["gradient 0"]).norm() <= rounding * one["gradient 0"].norm()
    found = [json.loads((learned[name] / f"{case}.json").read_text()) for name in ("alone", parallel)]
    assert found[1]["sharded"] == (parallel == "fsdp")
    assert case not in ADAPTED or all(abs(each["metrics"][0]["objective/kl"]) < 1e-6 for each in found)
    if "bfloat16" in case:
        return
    for name, tensor in one.items():
        if name.startswith("completions"):
            assert torch.equal(tensor, two[name]), name
        assert (tensor - two[name]).float().norm() <= 2e-4 * tensor.float().norm(), name
    assert len(found[0]["metrics"]) == 3
    for row, other in zip(found[0]["metrics"], found[1]["metrics"], strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ADAPTED)
def test_a_sharded_adapter_is_saved_as_one_process_saves_it(learned: Mapping[str, Path], case: str) -> None:
    one, two = (learned[name] / case for name in ("alone", "fsdp"))
    files = [path.relative_to(one) for path in one.rglob("*.safetensors") if path.parent != one]
    named = case != "adapter folder"  # its merged base is in no other place
    assert {str(each.parent) for each in files} == ({"model"} if named else {"model", "reference", "base"})
    for file in files:
        expected, found = load_file(one / file), load_file(two / file)
        assert {key: each.shape for key, each in expected.items()} == {key: each.shape for key, each in found.items()}
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=2e-3 if str(file.parent) == "model" else 0)
    states = [json.loads((folder / "agent.json").read_text())["state"] for folder in (one, two)]
    assert states[0].get("start") == states[1].get("start")
    assert ("start" in states[0]) == named


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_fit_what_one_fits(tmp_path: Path, parallel: str) -> None:
    rank_jobs.fit(tmp_path / "one", parallel)
    run_job("fit", tmp_path / "two", parallel)
    for name in ("sft", "lora", "reward"):
        one, two = (load_file(tmp_path / each / name / "parameters.safetensors") for each in ("one", "two"))
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=2e-5)
        first, second = (json.loads((tmp_path / each / name / "metrics.json").read_text()) for each in ("one", "two"))
        assert second["sharded"] == (parallel == "fsdp")
        for row, other in zip(first["metrics"], second["metrics"], strict=True):
            assert row == pytest.approx(other, rel=1e-4)
        checkpoints = [load_file(tmp_path / each / name / "checkpoint/tensors.safetensors") for each in ("one", "two")]
        assert {k: v.shape for k, v in checkpoints[0].items()} == {k: v.shape for k, v in checkpoints[1].items()}


def words(out: Path, *more: str) -> list[str]:
    settings = ["--batch", "24", "--save-every", "2", "--eval-every", "3", "--device", "cpu"]
    return ["-m", "textgym", "train", "textgym/Stop-v0", "--episodes", "168", *settings, "--out", str(out), *more]


def rows(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
@pytest.mark.learning
@pytest.mark.parametrize("parallel", ["ddp", "fsdp", "fsdp, lora"])
def test_a_killed_rank_leaves_a_run_that_goes_on_bit_for_bit(tmp_path: Path, parallel: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    parallel, _, adapter = parallel.partition(", ")
    rank_jobs.write_models(tmp_path, 7)
    more = ["--parallel", parallel, *(["--model", str(tmp_path / "base"), "--lora-rank", "2"] if adapter else [])]
    texts = finish(start(words(whole, *more), 2))
    assert "run folder" in texts[0]
    assert texts[1] == ""  # one process prints
    ranks = start(words(cut, *more), 2)
    while len(rows(cut)) < 4 and ranks[1].poll() is None:
        time.sleep(0.01)
    ranks[1].send_signal(signal.SIGKILL)
    assert ranks[0].wait(timeout=60) != 0
    assert not (cut / "result.json").exists()
    finish(start(words(cut, *more, "--resume"), 2))
    for one, two in zip(rows(whole), rows(cut), strict=True):
        assert {k: v for k, v in one.items() if "seconds" not in k} == {
            k: v for k, v in two.items() if "seconds" not in k
        }
    names = [path.relative_to(whole) for path in (whole / "checkpoint").rglob("*.safetensors")]
    assert len(names) == (2 if adapter else 3)
    for name in names:
        one, two = (load_file(folder / name) for folder in (whole, cut))
        assert all(torch.equal(one[key], two[key]) for key in one.keys() | two.keys()), name
    env = make_env("textgym/Stop-v0", 4)
    loaded = LMPPO.load(cut / "checkpoint", env)  # by one process, whatever wrote it
    assert loaded.episodes == 168
