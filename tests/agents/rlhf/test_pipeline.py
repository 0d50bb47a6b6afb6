"""The whole of RLHF, and over-optimisation, in small: every stage runs, is skipped when complete, and is resumed."""

import json
import math
import os
import re
import signal
from dataclasses import replace

import pytest
from textgym_agents.config import LMPPOConfig
from textgym_agents.rlhf.inputs import load_base_lm
from textgym_agents.rlhf.overoptimise import Overoptimisation, draw_overoptimisation
from textgym_agents.rlhf.pipeline import PPO, PREFERENCES, REWARD_MODEL, SFT, Pipeline
from textgym_agents.rlhf.runs import Stage, check_same, flags_of, run_stages
from textgym_agents.rlhf.settings import OveroptimiseSettings, RLHFSettings, SFTSettings

from textgym.commands.flags import parse
from textgym.interrupts import TrainingInterrupted, first_interrupt
from textgym.world import MODEL_PATH

HELPFUL = "textgym/Helpful-v0"
PPO_CONFIG = LMPPOConfig(batch=32, minibatches=1, epochs=1, device="cpu")
SMALL = RLHFSettings(
    demonstration_count=40,
    sft_epochs=1,
    preferences=80,
    reward_model_epochs=1,
    episodes=64,
    ppo=PPO_CONFIG,
    best_of=2,
    per_prompt=2,
    optimum_per_prompt=4,
)


class Notes:
    def __init__(self):
        self.lines = []

    def stage(self, text):
        self.lines.append(text)

    note = stage

    def iteration(self, row):
        pass


def write(folder, text="{}"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(text)


def test_stages_are_run_resumed_or_skipped(tmp_path):
    seen = []

    def stage(name):
        return Stage(name, name.upper(), lambda folder, resume: (seen.append((name, resume)), write(folder)))

    write(tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "config.json").write_text("{}")
    notes = Notes()
    run_stages(tmp_path, [stage("one"), stage("two"), stage("three")], notes)
    assert seen == [("two", True), ("three", False)]
    assert [line.split(":")[0] for line in notes.lines] == ["ONE", "TWO", "THREE"]


def test_ctrl_c_at_the_end_of_a_stage_stops_those_behind_it(tmp_path):
    def late(folder, resume):
        with first_interrupt(lambda: None):
            os.kill(os.getpid(), signal.SIGINT)
            write(folder)

    stages = [Stage("one", "ONE", late), Stage("two", "TWO", lambda folder, resume: write(folder))]
    with pytest.raises(TrainingInterrupted, match=r"in the stage ONE; the same command with --out .* goes on"):
        run_stages(tmp_path, stages, Notes())
    assert not (tmp_path / "two").exists()
    run_stages(tmp_path, stages, notes := Notes())
    assert [line.partition(" in ")[0] for line in notes.lines] == ["ONE: complete", "TWO: writing"]


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.long
def test_the_pipeline_goes_from_demonstrations_to_the_comparison(tmp_path):
    result = Pipeline(HELPFUL, SMALL, tmp_path / "run", Notes(), {"max_new_tokens": 24}).run()
    rows = {row["policy"]: row for row in result["rows"]}
    assert list(rows) == ["base", "SFT", "PPO", "best-of-2"]
    assert rows["SFT"]["kl"]["mean"] == pytest.approx(0.0, abs=1e-6)
    assert rows["base"]["kl"]["mean"] > 0
    kl = rows["best-of-2"]["kl"]
    assert 0 < kl["low"] <= kl["mean"] <= kl["high"]
    assert kl["mean"] < 0.1932  # log 2 - 1/2, if no two answers were alike
    for name in (SFT, PREFERENCES, REWARD_MODEL, PPO):
        assert (tmp_path / "run" / name / "result.json").exists()
    rates = [json.loads(line).get("lr") for line in (tmp_path / "run" / SFT / "metrics.jsonl").open()]
    assert rates[0] is None
    assert min(rates[1:]) > 0  # no step is taken at a learning rate of 0, the first and the last included
    before = files_of(tmp_path / "run")
    assert Pipeline(HELPFUL, SMALL, tmp_path / "run", Notes(), {"max_new_tokens": 24}).run() == result
    assert files_of(tmp_path / "run") == before
    with pytest.raises(ValueError, match=r"noise=0\.7: the run in .* was started with 0\.1"):
        Pipeline(HELPFUL, replace(SMALL, noise=0.7), tmp_path / "run", Notes(), {"max_new_tokens": 24}).run()
    # A stage that is missing is done again, from the stages before it, with the same result.
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / PREFERENCES / "result.json").unlink()
    text = (tmp_path / "run" / PREFERENCES / "preferences.jsonl").read_text()
    assert Pipeline(HELPFUL, SMALL, tmp_path / "run", Notes(), {"max_new_tokens": 24}).run()["rows"] == result["rows"]
    assert (tmp_path / "run" / PREFERENCES / "preferences.jsonl").read_text() == text


def test_a_task_without_demonstrations_asks_for_a_file(tmp_path):
    options = {"prompts": ["Hello."], "reward": "length"}
    with pytest.raises(ValueError, match=r"demonstrations: .*'Text'"):
        Pipeline("textgym/Text-v0", SMALL, tmp_path / "run", Notes(), options).run()
    assert not (tmp_path / "run").exists()


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"episodes=0: allowed is an integer in 1\.\.9007199254740992"):
        RLHFSettings(episodes=0)
    with pytest.raises(ValueError, match=r"betas=\(\)"):
        OveroptimiseSettings(betas=())
    with pytest.raises(ValueError, match=r"epochs=\(1,\): allowed is .* for each of pairs=\(100, 1000, 10000\)"):
        OveroptimiseSettings(reward_model_epochs=(1,))
    with pytest.raises(ValueError, match=r"kl_target=0\.1: allowed is None: `betas` are the penalties"):
        OveroptimiseSettings(ppo=LMPPOConfig(kl_target=0.1))
    with pytest.raises(ValueError, match="demonstration_count=7: allowed is 500 without"):
        RLHFSettings(demonstrations="x.jsonl", demonstration_count=7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"betas": (0.1, math.nan)}, "betas=(0.1, nan): allowed is one or more different finite numbers >= 0"),
        ({"betas": (math.inf,)}, "betas=(inf,): allowed is"),
        ({"betas": (0.1, 0.1)}, "betas=(0.1, 0.1): allowed is"),
        ({"betas": (-0.1,)}, "betas=(-0.1,): allowed is"),
        ({"layers": (1.5,)}, "layers=(1.5,): allowed is one or more different integers in 1.."),
        ({"pairs": (100.5, 10), "reward_model_epochs": (1, 1)}, "pairs=(100.5, 10): allowed is"),
        ({"pairs": (10**12,), "reward_model_epochs": (1,)}, "pairs=(1000000000000,): allowed is"),
        ({"pairs": (10,), "reward_model_epochs": (1.5,)}, "reward_model_epochs=(1.5,): allowed is"),
    ],
)
def test_each_of_several_numbers_is_checked(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        OveroptimiseSettings(**given)


def test_every_stage_gets_the_device_and_reads_prompts_as_the_environment_shows_them(tmp_path, monkeypatch):
    rows = [{"prompt": f"What is {number}?", "completion": "It is."} for number in range(4)]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"prompts": [row["prompt"] for row in rows], "reference": str(MODEL_PATH), "reward": "length"}
    options |= {"chat": "Question: {prompt} Answer:", "max_new_tokens": 8}
    plan = replace(SMALL, demonstrations=str(tmp_path / "demos.jsonl"), demonstration_count=500, ppo=PPO_CONFIG)
    pipeline = Pipeline("textgym/Text-v0", plan, tmp_path / "run", Notes(), options)
    pipeline.prepare()
    seen = {}
    monkeypatch.setattr("textgym_agents.rlhf.pipeline.train_sft", lambda settings, *_: seen.update(sft=settings))
    monkeypatch.setattr(
        "textgym_agents.rlhf.pipeline.train_reward_model", lambda settings, *_: seen.update(rm=settings)
    )
    pipeline._fine_tune(tmp_path, False)
    pipeline._fit_reward_model(tmp_path, False)
    assert {seen["sft"].device, seen["rm"].device, pipeline._reward_spec()["device"]} == {"cpu"}
    _, vocabulary = load_base_lm(seen["sft"].base, seen["sft"].chat)
    prompt = rows[0]["prompt"]
    assert vocabulary.encode_prompt(prompt) == pipeline.base_task.vocabulary.encode_prompt(prompt)
    assert vocabulary.encode_prompt(prompt) != load_base_lm(seen["sft"].base)[1].encode_prompt(prompt)


@pytest.mark.slow
@pytest.mark.long
def test_overoptimisation_has_a_curve_for_every_proxy_and_method(tmp_path):
    settings = OveroptimiseSettings(
        pairs=(20, 40),
        reward_model_epochs=(2, 1),
        layers=(1,),
        betas=(0.1, 0.0),
        episodes=32,
        samples=16,
        prompts=4,
        per_prompt=2,
        ppo=PPO_CONFIG,
    )
    result = Overoptimisation(HELPFUL, settings, tmp_path / "run", Notes(), {"max_new_tokens": 24}).run()
    assert [(c["layers"], c["pairs"], c["method"]) for c in result["curves"]] == [
        (1, 20, "best-of-n"),
        (1, 20, "ppo"),
        (1, 40, "best-of-n"),
        (1, 40, "ppo"),
    ]
    assert [point["n"] for point in result["curves"][0]["points"]] == [1, 2, 4]
    assert [point["beta"] for point in result["curves"][1]["points"]] == [0.1, 0.0]
    assert set(result["hacked"]) == {"1-20", "1-40"}
    first = (tmp_path / "run" / "preferences" / "first-20.jsonl").read_text().splitlines()
    assert first == (tmp_path / "run" / "preferences" / "preferences.jsonl").read_text().splitlines()[:20]
    draw_overoptimisation(result["curves"], tmp_path / "picture.png", "title")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    again = Overoptimisation(HELPFUL, settings, tmp_path / "run", Notes(), {"max_new_tokens": 24}).run()
    assert json.dumps(again) == json.dumps(result)


def test_a_run_goes_on_elsewhere_and_whatever_counted_demonstrations_beside_a_file(tmp_path):
    def begun(name, **config):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"format": 2, **config}))
        return tmp_path / name

    check_same(begun("a", data="x.jsonl", demonstrations=500), {"data": "x.jsonl", "demonstrations": 2000})
    check_same(begun("b", device="auto"), {"device": "cpu"})
    own = {"demonstrations": "x.jsonl", "demonstration_count": 500}
    check_same(begun("c", **{**own, "demonstration_count": 100}), own)
    with pytest.raises(ValueError, match=r"demonstrations=2000: the run in .* was started with 500"):
        check_same(
            begun("d", data="world:Helpful", demonstrations=500), {"data": "world:Helpful", "demonstrations": 2000}
        )


@pytest.mark.parametrize("chat", [None, True, False, "Q: {prompt}"])
def test_the_command_that_goes_on_can_be_read(chat):
    settings = SFTSettings(data="x", chat=chat)
    assert parse(SFTSettings, flags_of(settings), "sft") == settings
