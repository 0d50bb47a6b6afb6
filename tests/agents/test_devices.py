"""Several devices: what two ranks learn is what one learns, whatever is split between them and however."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agents.rank_jobs import ADAPTED, SHARDED
from agents.ranks import finish, run_job, start
from golden.agent_records import stop_env
from safetensors.torch import load_file, save_file
from textgym_agents import make_agent, make_env
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.devices import ALONE, Devices
from textgym_agents.lm.parts import SHARDS, read_slices
from textgym_agents.lm.start import start_policies
from textgym_agents.training.ranks import Ranks, share

from agents import rank_jobs
from textgym import make_task

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
    for name in ("alphazero", "vine-ppo"):
        with pytest.raises(ValueError, match=f"agent '{name}' runs in one process"):
            make_agent(name, stop_env(2))


@pytest.mark.slow
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
    """Return the folders of one rank, and of two that hold all weights, or parts of them."""
    root = tmp_path_factory.mktemp("learned")
    folders = {name: root / name for name in ("alone", "ddp", "fsdp")}
    for folder in folders.values():
        rank_jobs.write_models(folder)
    rank_jobs.learn(folders["alone"], "fsdp", *rank_jobs.CASES)  # alone it says nothing
    run_job("learn_both_and_fit", root, *rank_jobs.CASES)
    return folders


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "case"), PAIRS)
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
        if "resampled" in case and name.startswith("completions"):  # each rank's rounds lie together
            tensor, two[name] = tensor.sort().values, two[name].sort().values
        if name.startswith("completions"):
            assert torch.equal(tensor, two[name]), name
        assert (tensor - two[name]).float().norm() <= 2e-4 * tensor.float().norm(), name
    assert len(found[0]["metrics"]) == 2 or "resampled" in case  # whose iterations play several batches
    for row, other in zip(found[0]["metrics"], found[1]["metrics"], strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("case", rank_jobs.READ_AGAIN)
def test_every_rank_writes_a_part_and_one_process_reads_all(learned: Mapping[str, Path], case: str) -> None:
    root = learned["fsdp"]
    folder, gathered = root / case, load_file(root / f"{case}.gathered.safetensors")
    assert json.loads((root / f"{case}.json").read_text())["unlike"] == []  # of what two ranks read again
    files = sorted((folder / SHARDS).glob("*.safetensors"))
    assert [each.name for each in files] == ["shard-0.safetensors", "shard-1.safetensors"]
    sizes = [{name: each.numel() for name, each in load_file(file).items()} for file in files]
    assert sum(sizes[1].values()) == pytest.approx(sum(sizes[0].values()), rel=0.25)  # 3 rows are 2 and 1
    whole = {name for name in sizes[0] if name not in sizes[1]}
    assert all(name.endswith(".step") for name in whole)
    assert not list(folder.rglob("model*.safetensors")), "weights that were gathered"
    read = LMPPO.load(folder, stop_env(24))
    found = rank_jobs.held(read)
    assert found.keys() == gathered.keys()
    for name, tensor in gathered.items():
        assert torch.equal(found[name], tensor), name
    assert read.episodes == rank_jobs.EPISODES
    before = found["policy.value_head.weight"].clone()
    read.learn(stop_env(24), 24)  # one goes on from what two have written
    assert not torch.equal(before, read.policy.value_head.weight)


@pytest.mark.long
@pytest.mark.slow
def test_a_shard_that_is_damaged_is_named(learned: Mapping[str, Path], tmp_path: Path) -> None:
    saved = learned["fsdp"] / "lm-ppo"

    def refused(name: str, damage: Callable[[Path], object], problem: str) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(saved, folder)
        damage(folder / SHARDS / name)
        with pytest.raises(ValueError, match=f"{re.escape(str(folder / SHARDS / name))}: {problem}"):
            LMPPO.load(folder, stop_env(24))

    def shorten(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-4])

    def change(path: Path) -> None:
        tensors = load_file(path)
        first = next(name for name, each in tensors.items() if each.ndim == 2)
        save_file(tensors | {first: tensors[first][1:]}, path)

    def leave_out(path: Path) -> None:
        tensors = load_file(path)
        save_file({name: tensors[name] for name in sorted(tensors)[1:]}, path)

    refused("shard-1.safetensors", Path.unlink, "there is no such file")
    refused("shard-0.safetensors", shorten, "the shard is damaged .*not fully covered")
    refused("shard-1.safetensors", change, "the shard does not fit here, or is damaged .*is F32")
    refused("shard-1.safetensors", leave_out, "the shard is damaged .*does not contain tensor")
    refused("shards.json", Path.unlink, "there is no such file")
    refused("shards.json", lambda path: path.write_text("{"), "no JSON can be read there")
    refused("shards.json", lambda path: path.write_text('{"world": 2}'), "the list of tensors is damaged")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("case", ADAPTED)
def test_a_sharded_adapter_is_saved_as_one_process_saves_it(learned: Mapping[str, Path], case: str) -> None:
    one, two = (learned[name] / case for name in ("alone", "fsdp"))
    files = [path.relative_to(one) for path in one.rglob("*.safetensors") if path.parent != one]
    named = case != "adapter folder"  # its merged base is in no other place
    assert {str(each.parent) for each in files} == ({"model"} if named else {"model", "base"})
    slices = read_slices(two / SHARDS)
    for file in files:
        expected = load_file(one / file)
        base = {key.removeprefix("base."): each.read() for key, each in slices.items() if key.startswith("base.")}
        found = base if str(file.parent) == "base" else load_file(two / file)
        assert {key: each.shape for key, each in expected.items()} == {key: each.shape for key, each in found.items()}
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=2e-3 if str(file.parent) == "model" else 0)
    states = [json.loads((folder / "agent.json").read_text())["state"] for folder in (one, two)]
    assert states[0]["start"] == states[1]["start"]
    assert [("base" in each, "reference" in each) for each in states] == 2 * [(named, not named)]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_fit_what_one_fits(learned: Mapping[str, Path], tmp_path: Path, parallel: str) -> None:
    rank_jobs.fit(tmp_path / "one", parallel)
    if parallel == "fsdp":
        shutil.copytree(learned["fsdp"].parent / "fitted", tmp_path / "two")
    else:
        run_job("fit", tmp_path / "two", parallel)
    for name in ("sft", "lora", "reward"):
        one, two = (load_file(tmp_path / each / name / "parameters.safetensors") for each in ("one", "two"))
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=2e-5)
        first, second = (json.loads((tmp_path / each / name / "metrics.json").read_text()) for each in ("one", "two"))
        assert second["sharded"] == (parallel == "fsdp")
        for row, other in zip(first["metrics"], second["metrics"], strict=True):
            assert row == pytest.approx(other, rel=1e-4)
        tensors = load_file(tmp_path / "one" / name / "checkpoint/tensors.safetensors")
        slices = read_slices(tmp_path / "two" / name / "checkpoint" / SHARDS)
        assert bool(slices) == (parallel == "fsdp")
        found = slices or load_file(tmp_path / "two" / name / "checkpoint/tensors.safetensors")
        assert {key: each.shape for key, each in tensors.items()} == {key: each.shape for key, each in found.items()}
    shutil.copytree(tmp_path / "two", tmp_path / "read")
    rank_jobs.fit(tmp_path / "read", parallel)  # by one process, which has no step left to take
    for name in ("sft", "lora", "reward"):
        files = [tmp_path / each / name / "parameters.safetensors" for each in ("two", "read")]
        one, two = map(load_file, files)
        assert json.loads(files[1].with_name("metrics.json").read_text())["metrics"] == []
        for key, tensor in one.items():  # an adapter is merged part by part
            torch.testing.assert_close(two[key], tensor, rtol=0, atol=1e-6 if name == "lora" else 0)


def words(out: Path, *more: str) -> list[str]:
    settings = ["--batch", "24", "--save-every", "2", "--eval-every", "3", "--device", "cpu"]
    return ["-m", "textgym", "train", "textgym/Stop-v0", "--episodes", "168", *settings, "--out", str(out), *more]


def rows(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
@pytest.mark.long
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
    assert len(names) == (3 if adapter or parallel == "ddp" else 2)  # a shard of each, and the adapter
    for name in names:
        one, two = (load_file(folder / name) for folder in (whole, cut))
        assert all(torch.equal(one[key], two[key]) for key in one.keys() | two.keys()), name
    env = make_env("textgym/Stop-v0", 4)
    loaded = LMPPO.load(cut / "checkpoint", env)  # by one process, whatever wrote it
    assert loaded.episodes == 168
