"""What the doctor makes of metrics: noise, numbers that are not finite, types of other libraries, and TRL's names."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from agents.test_doctor import HEALTHY, alarms, healthy
from cli_tools import run
from textgym_agents.training.conditions import CONDITIONS
from textgym_agents.training.doctor import Doctor, translated
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"


def hearing(rows):
    """The lines that a doctor says of rows."""
    doctor = Doctor()
    return [line for row in rows for line in doctor.see(row)]


# --- reward hacking ---------------------------------------------------------------------------------------------------


def noisy(seed, count, trend=0.0, intervals=False, names=("reward", "probe")):
    """Rows whose reward is 0.3 + 0.02 noise (and a trend), and whose probe is 0.5 + 0.03 noise."""
    noise, rows = np.random.default_rng(seed).standard_normal((count, 2)), []
    for at, (first, second) in enumerate(noise):
        row = {names[0]: 0.3 + trend * at + 0.02 * first, names[1]: 0.5 + 0.03 * second}
        deviation = dict(zip(names, (0.02, 0.03), strict=True)) if intervals else {}
        for name, size in deviation.items():
            row |= {f"{name}_low": row[name] - 1.96 * size, f"{name}_high": row[name] + 1.96 * size}
        rows.append(row)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "options"),
    [
        (50, {}),
        (50, {"trend": 0.01}),  # the reward does rise: what is left is the probe's noise
        (30, {"intervals": True, "names": ("eval/reward", "eval/gold")}),
        (30, {"intervals": True, "names": ("reward", "probe"), "trend": 0.01}),
    ],
)
def test_noise_is_no_reward_hacking(count, options):
    said = [bool(hearing(noisy(seed, count, **options))) for seed in range(120)]
    assert sum(said) <= 2  # under 2%


@pytest.mark.parametrize("names", [("reward", "probe"), ("eval/reward", "eval/gold")])
@pytest.mark.parametrize("intervals", [False, True])
def test_a_probe_that_falls_out_of_its_noise_is_named(names, intervals):
    named = 0
    for seed in range(20):
        rows = noisy(seed, 20, intervals=intervals, names=names)
        for k, row in enumerate(rows[-5:], 1):
            for end in ("", "_low", "_high"):
                if names[0] + end in row:
                    row[names[0] + end] += 0.06 * k
                    row[names[1] + end] -= 0.09 * k
        lines = hearing(rows)
        assert all(re.match(r"iteration (1[6-9]|20), reward hacking \(0\.\d+\)", line) for line in lines)
        named += len(lines)
    assert named == 20


def test_a_fall_that_no_single_evaluation_shows_is_named_by_its_mean():
    """Five deviations of the noise are few beside the difference of two evaluations, and many beside that of means."""
    named = 0
    for seed in range(20):
        rows = noisy(seed, 35)
        for row in rows[-10:]:
            row |= {"probe": row["probe"] - 0.15, "reward": row["reward"] + 0.1}
        named += bool(hearing(rows))
    assert named >= 18


def test_a_probe_that_falls_while_the_reward_does_not_rise_is_another_fault():
    for seed in range(20):
        rows = noisy(seed, 20)
        for k, row in enumerate(rows[-5:], 1):
            row |= {"probe": row["probe"] - 0.09 * k, "reward": row["reward"] - 0.06 * k}
        assert hearing(rows) == []


def test_a_thousandth_is_no_reward_hacking():
    assert hearing({"reward": 0.3 + 1e-5 * at, "probe": 0.5 - 1e-5 * at} for at in range(50)) == []


def test_intervals_of_a_probe_are_taken():
    """A fall by 0.1 after a rise by 0.1 is beyond intervals of 0.01, and within those of 0.1."""
    for half, said in ((0.01, 1), (0.1, 0)):
        rows = [{"reward": at, "probe": probe} for at, probe in ((0.1, 0.5), (0.2, 0.5), (0.3, 0.5), (0.4, 0.4))]
        rows = [row | {"probe_low": row["probe"] - half, "probe_high": row["probe"] + half} for row in rows]
        rows = [row | {"eval/reward": row["reward"]} for row in rows]
        rows = [row | {f"eval/reward{end}": row["reward"] for end in ("_low", "_high")} for row in rows]
        for row in rows:
            row["eval/reward_low"] -= 0.01
            row["eval/reward_high"] += 0.01
        assert len(hearing(rows)) == said


# --- numbers ----------------------------------------------------------------------------------------------------------


NUMBERS = {
    "float": float,
    "scalar": np.float32,
    "array": np.array,
    "array of one": lambda value: np.array([value]),
    "tensor": torch.tensor,
    "tensor of one": lambda value: torch.tensor([value], dtype=torch.bfloat16),
    "tensor with a gradient": lambda value: torch.tensor(value, requires_grad=True),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_whatever_converts_to_a_float_is_heard(number):
    (line,) = hearing([{"lr": number(0.0)}] * 9)
    assert line.startswith("iteration 2, learning rate 0 (0): ")
    (line,) = hearing([{"objective/scores": number(math.nan)}] * 9)
    assert line.startswith("iteration 1, reward constant or NaN (objective/scores is nan): ")


def test_what_is_no_number_is_left_out():
    strange = [
        "0.5",
        "text",
        np.array([1.0, 2.0]),
        torch.zeros(2),
        torch.empty((), device="meta"),
        1j,
        [],
        {},
        object(),
    ]
    assert translated({str(at): value for at, value in enumerate(strange)}) == {}


UNDEFINED = {
    "val/cut_rate": "completions cut off by the budget",
    "val/equal_groups": "all rewards of a group equal",
    "objective/scores": "reward constant or NaN",
    "val/num_eos_tokens": "stop token never sampled",
    "prompt/openings": "chat template or BOS missing or doubled",
    "policy/entropy_avg": "entropy collapse",
    "objective/kl": "KL explosion or negative KL",
    "val/first_kl": "ratio not 1 at the first mini-batch",
    "policy/clipfrac_avg": "clip fraction saturated",
    "loss/value_avg": "value loss useless",
    "policy/grad_scale": "gradient norm always clipped",
    "policy/grad_norm": "gradient norm always clipped",
    "loss/policy_avg": "gradient norm always clipped",
    "lr": "learning rate 0",
    "eval/gold": "reward hacking",
    "completion_length": "length drift",
    "val/repeated": "repetition",
    "eval/reward": "held-out gap",
    "reward/failures/error": "reward failures",
    "sampler/mismatch_mean": "sampler and trainer disagree",
    # TRL's
    "kl": "KL explosion or negative KL",
    "grad_norm": "gradient norm always clipped",
    "loss": "gradient norm always clipped",
    "reward": "reward constant or NaN",
    "completions/mean_length": "length drift",
    "completions/clipped_ratio": "completions cut off by the budget",
    # Stable-Baselines3's
    "sb3/train/value_loss": "value loss useless",
}


@pytest.mark.parametrize("value", [math.nan, None, -math.inf])
@pytest.mark.parametrize("name", UNDEFINED)
def test_a_number_that_is_not_finite_is_named_once_and_nothing_else(name, value):
    rows = [healthy(at) for at in range(1, HEALTHY + 1)]
    broken = [healthy(HEALTHY + k) | {name: value} for k in range(1, 10)]
    (line,) = hearing(rows + broken + [healthy(HEALTHY + 10)])
    number = math.nan if value is None else value
    metric = "reward/failures" if name.startswith("reward/failures") else name
    assert line.startswith(f"iteration 13, {UNDEFINED[name]} ({metric} is {number}): no finite number, so this cannot ")
    (alone,) = hearing([{name: value}] * 9)  # also where nothing else is known
    assert f", {UNDEFINED[name]} ({metric} is {number}): " in alone


def test_every_condition_can_name_a_number_that_is_not_finite():
    assert list(dict.fromkeys(UNDEFINED.values())) == [condition.name for condition in CONDITIONS]


def test_nothing_follows_from_a_number_that_is_not_finite():
    row = {"kl": 0.1, "completions/mean_length": math.nan, "objective/entropy": 2.0, "grad_norm": math.nan}
    found = translated(row | {"completions/clipped_ratio": math.nan}, max_grad_norm=1.0)
    assert found.keys() == {"completion_length", "objective/entropy", "policy/grad_norm", "val/cut_rate"}


def test_a_number_that_is_none_is_said_beside_an_alarm_that_lasts():
    rows = [healthy(1)] * 5 + [healthy(1) | {"objective/kl": -1.0}] * 3 + [healthy(1) | {"objective/kl": None}] * 3
    names = [re.sub(r".*?\((.*?)\).*", r"\1", line) for line in hearing(rows * 2)]
    assert names == ["-0.267", "objective/kl is nan"]


def test_an_explained_variance_without_returns_to_explain_is_no_fault():
    assert hearing(healthy(at) | {"val/explained_variance": math.nan} for at in range(1, 20)) == []


def test_a_run_with_a_number_that_is_not_finite_is_shown(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"format": 2, "config": {}}), encoding="utf-8")
    rows = [{"iteration": at, "lr": 0.1, "policy/grad_norm": None if at == 3 else 0.1} for at in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, out, err = run(capsys, "doctor", str(tmp_path))
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    assert "ALARM since iteration 3: policy/grad_norm is nan no finite number, so this cannot be judged; " in said
    assert "1 alarm, 1 ok, 16 not judged" in said
    code, out, err = run(capsys, "doctor", str(tmp_path), "--json")
    (found,) = [row for row in json.loads(out) if row["alarms"]]
    assert found["verdict"] == "alarm"
    assert found["alarms"] == [{"since": 3, "last": 3, "number": None, "broken": "policy/grad_norm"}]
    (tmp_path / "fine").mkdir()
    (tmp_path / "fine" / "config.json").write_text(json.dumps({"format": 2, "config": {}}), encoding="utf-8")
    code, out, err = run(capsys, "doctor", str(tmp_path), str(tmp_path / "fine"), "--strict")
    assert (code, "1 of 2 runs has alarms" in out) == (1, True)
    assert run(capsys, "doctor", str(tmp_path / "fine"), "--strict")[0] == 0


# --- onsets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 20, 500])
def test_an_onset_is_said_once_however_far_apart_rows_are(every):
    doctor = Doctor()
    zero = (*range(1, 11), *range(31, 35))  # 20 rows lie between
    lines = [
        line
        for row in range(1, 41)
        for line in doctor.see({"iteration": every * row, "lr": 0.0 if row in zero else 0.1})
    ]
    assert [line.split(",")[0] for line in lines] == [f"iteration {2 * every}", f"iteration {32 * every}"]
    (finding,) = [finding for finding in doctor.findings() if finding.alarms]
    assert finding.verdict == f"ALARM since iteration {32 * every}: 0"  # six rows ago
    for row in range(41, 50):
        doctor.see({"iteration": every * row, "lr": 0.1})
    (finding,) = [finding for finding in doctor.findings() if finding.alarms]
    assert finding.verdict == f"ok; ALARM in iterations {32 * every} to {34 * every}: 0"


# --- TRL --------------------------------------------------------------------------------------------------------------

TRL = """
    loss grad_norm learning_rate num_tokens step_time epoch
    completions/mean_length completions/min_length completions/max_length completions/clipped_ratio
    completions/mean_terminated_length completions/min_terminated_length completions/max_terminated_length
    rewards/accuracy/mean rewards/accuracy/std reward reward_std frac_reward_zero_std entropy kl
    clip_ratio/low_mean clip_ratio/low_min clip_ratio/high_mean clip_ratio/high_max clip_ratio/region_mean
    sampling/sampling_logp_difference/mean sampling/sampling_logp_difference/max eval_loss eval_reward eval_reward_std
"""
"""What TRL's GRPOTrainer logs, with beta > 0, vLLM and a data set to evaluate on."""


def test_the_page_lists_what_trl_can_feed():
    found = translated(dict.fromkeys(TRL.split(), 0.5), max_grad_norm=1.0)
    fed = [condition.name for condition in CONDITIONS if not set(condition.needs) - found.keys()]
    text = PAGE.read_text(encoding="utf-8")
    section = text.partition("\n## In a trainer of TRL\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| ([^|]+) \| `[a-z]", section, re.MULTILINE) == fed
    assert f"{len(fed)} of the eighteen" in section
    others = [condition.name for condition in CONDITIONS if condition.name not in fed]
    assert re.findall(r"^- ([^:]+): ", section, re.MULTILINE) == others
    for condition, names in re.findall(r"^\| ([^|]+) \| (`[a-z].*?) \|$", section, re.MULTILINE):
        used = re.findall(r"`([^`]+)`", names)
        assert set(used) <= set(TRL.split()) | {"max_grad_norm"}, condition
        for name in set(used) - {"max_grad_norm"}:  # each is needed
            left = translated({key: 0.5 for key in used if key != name}, max_grad_norm=1.0)
            assert set(CONDITIONS[[each.name for each in CONDITIONS].index(condition)].needs) - left.keys(), name
        left = translated(dict.fromkeys(used, 0.5), max_grad_norm=1.0)
        assert not set(CONDITIONS[[each.name for each in CONDITIONS].index(condition)].needs) - left.keys()


def trl_says(rows, **settings):
    """The lines that a trainer of transformers, which logs every row, makes the doctor say."""
    said = []
    state, control = TrainerState(), TrainerControl()
    handler = CallbackHandler([Doctor(say=said.append)], None, None, None, None)
    for step, row in enumerate(rows, 1):
        state.global_step = 20 * step
        handler.on_log(type("Arguments", (), {"max_grad_norm": 1.0, **settings}), state, control, row)
    return said


def test_equal_groups_are_named_by_trls_metrics():
    """Its reward_std is the mean of the groups' own: 0 where every group is equal, whatever prompts earn."""
    noise = np.random.default_rng(0).random(30)
    equal = {"reward_std": 0.0, "frac_reward_zero_std": 1.0, "learning_rate": 1e-6, "grad_norm": 0.0}
    (line,) = trl_says(equal | {"reward": number} for number in noise)
    assert line.startswith("iteration 60, all rewards of a group equal (1): ")
    (line,) = trl_says(equal | {"reward": 0.25} for _ in noise)  # the same for all prompts
    assert line.startswith("iteration 60, reward constant or NaN (0.25): ")
    # 0.9 in float32 is the same reward, though a mean or a deviation may round.
    rounded = [
        equal | {"reward": float(np.float32(0.9) + at % 2 * np.float32(6e-8)), "reward_std": 3e-8} for at in range(9)
    ]
    assert [line[:30] for line in trl_says(rounded)] == ["iteration 60, reward constant "]
    # One group of four that differs gives an advantage.
    assert (
        trl_says(equal | {"reward": number, "frac_reward_zero_std": 0.75, "reward_std": 0.1} for number in noise) == []
    )
    # After groups that differed; a constant reward is not said beside it.
    live = {"reward_std": 0.1, "frac_reward_zero_std": 0.0, "learning_rate": 1e-6, "grad_norm": 0.5}
    rows = [live | {"reward": 0.8}] * 5 + [equal | {"reward": number / 2} for number in noise]
    assert [line.split(" (")[0] for line in trl_says(rows)] == ["iteration 160, all rewards of a group equal"]
    # Everything solved is the end of learning.
    assert trl_says([live | {"reward": 0.8}] * 5 + [equal | {"reward": 1.0}] * 20) == []


@pytest.mark.parametrize("limit", [1.0, 0.0, None])
def test_a_gradient_that_is_no_number_is_named_without_a_limit_too(limit):
    (line,) = trl_says([{"grad_norm": math.nan, "learning_rate": 1e-6}] * 9, max_grad_norm=limit)
    assert line.startswith("iteration 20, gradient norm always clipped (grad_norm is nan): ")


def test_a_doctor_hears_what_a_callback_after_it_hears():
    heard, said = [], []
    doctor = Doctor(say=said.append, then=heard.append)
    doctor(row := {"lr": np.float32(0.0)})
    doctor(row)
    assert heard == [row, row]
    assert list(alarms(doctor)) == ["learning rate 0"]
    assert len(said) == 1
