"""Rewards by name: round trips through JSON, messages, your own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from faulty_rewards import Faulty
from test_rewards_trl import COLUMNS
from test_rewards_trl import SPECS as TRIED

from textgym.registry import REWARDS
from textgym.rewards import (
    ContainsAll,
    Length,
    Scorer,
    describe_reward,
    make_reward,
    register_reward,
    reward_names,
)

SPECS: list[Any] = [
    "charset",
    {"name": "charset", "characters": "xyz"},
    {"name": "clipped", "reward": "length", "low": 0.2, "high": 0.6},
    {"name": "contains_all", "words": ["cat"], "ignore_case": True},
    {"name": "dense", "reward": {"name": "length", "target": 2}},
    {"name": "grouped", "reward": "length"},
    {"name": "length", "target": 5, "unit": "characters", "width": 3},
    {"name": "length_penalty", "limit": 1},
    {"name": "missing_stop", "stop_ids": [2, 3]},
    {"name": "running_norm", "reward": "length"},
    {"name": "shaped", "reward": {"name": "contains_all", "words": ["a"]}, "gamma": 0.5},
    {"name": "blurred", "reward": "charset", "deviation": 0.5},
    {"name": "weighted", "rewards": {"a": "charset", "b": {"name": "length"}}, "weights": {"a": 2}},
    {"name": "weighted", "rewards": {"in": {"name": "weighted", "rewards": {"x": "length"}}}},
    ["charset", {"name": "length", "target": 2}, "charset"],
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_spec_that_went_through_json_scores_the_same(spec: Any) -> None:
    texts = ["a cat", "", "axe and cat and more words"]
    columns = {"completion_ids": [[1, 2], [3], [4, 5, 6]], "episode_seeds": [7, 8, 9]}
    first = Scorer(spec).score(["p"] * 3, texts, columns)
    again = Scorer(json.loads(json.dumps(spec))).score(["p"] * 3, texts, columns)
    assert first.total.tolist() == again.total.tolist()
    assert list(first.terms) == list(again.terms)
    assert any(first.total)


@pytest.mark.parametrize("name", TRIED)
def test_every_named_reward_survives_json(name: str) -> None:
    spec = json.loads(json.dumps(TRIED[name]))
    rows = (["p"] * 2, ["a red hat", "7"], COLUMNS)
    first, again = Scorer(TRIED[name]).score(*rows), Scorer(spec).score(*rows)
    np.testing.assert_array_equal(first.total, again.total)
    assert list(first.terms) == list(again.terms)
    for line in describe_reward(name).splitlines():
        assert line.startswith(f"{name}(") or line.startswith("    ")
        assert 8 < len(line.rstrip()) <= 140


def test_a_description_of_a_reward_that_is_none() -> None:
    with pytest.raises(ValueError, match="Did you mean 'length'"):
        describe_reward("lenght")


def test_every_built_in_reward_is_in_the_round_trip() -> None:
    built_in = {name for name in REWARDS if str(REWARDS.entry(name).target).startswith("textgym.rewards.")}
    tried = (
        {spec["name"] if isinstance(spec, dict) else str(spec) for spec in SPECS}
        | set(TRIED)
        | {"to_messages", "concurrent", "judge", "math_verify", "per_token"}
    )
    assert built_in <= tried
    assert built_in <= set(reward_names())


def test_a_spec_is_not_changed_and_a_callable_is_itself() -> None:
    spec = {"name": "length", "target": 3}
    assert make_reward(spec) == Length(3)
    assert spec == {"name": "length", "target": 3}
    reward = Length(2)
    assert make_reward(reward) is reward


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("lenght", "'lenght'.*Did you mean 'length'"),
        ({"name": "lenght"}, "Did you mean 'length'"),
        ({"target": 3}, "the key 'name'"),
        ({"name": 3}, "the key 'name'"),
        ({"name": "length", "taget": 3}, "Did you mean 'target'"),
        ("contains_all", "missing a required argument: 'words'"),
        ({"name": "length", "target": "3"}, "target='3'"),
        ({"name": "clipped", "reward": "lenght"}, "Did you mean 'length'"),
        ("no_such_module_here:reward", "cannot be imported"),
        ("faulty_rewards:nothing", "has no 'nothing'"),
        ({"name": "faulty_rewards:change_everything", "a": 1}, "takes no parameters"),
        ({"name": "faulty_rewards:Faulty", "fautl": "none"}, "Did you mean 'fault'"),
    ],
)
def test_messages(spec: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_reward(spec)


@pytest.mark.parametrize("spec", [Length, 3, None, [3]])
def test_things_that_are_no_spec(spec: Any) -> None:
    with pytest.raises(TypeError, match="allowed"):
        make_reward(spec)


def test_your_own_by_module_and_attribute() -> None:
    assert make_reward({"name": "faulty_rewards:Faulty", "fault": "nan"}) == Faulty("nan")
    assert make_reward("faulty_rewards:change_everything").__name__ == "change_everything"


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REWARDS, "_entries", dict(REWARDS._entries))
    register_reward("mine", lambda word="x": ContainsAll([word]))
    assert make_reward({"name": "mine", "word": "y"}) == ContainsAll(["y"])
    register_reward("lazy", "faulty_rewards:Faulty")
    register_reward("lazy", "faulty_rewards:Faulty")  # the same again is fine
    assert make_reward({"name": "lazy", "fault": "inf"}) == Faulty("inf")
    with pytest.raises(ValueError, match="taken already"):
        register_reward("length", ContainsAll)
    for name, factory in (("", Length), ("a:b", Length), ("good", 3), ("good", "no_colon")):
        with pytest.raises(ValueError, match="allowed"):
            register_reward(name, factory)  # type: ignore[arg-type]


@pytest.mark.slow
def test_rewards_import_nothing_heavy() -> None:
    heavy = "('torch', 'transformers', 'textgym.rewards.deadline')"
    code = f"import sys, textgym.rewards; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
