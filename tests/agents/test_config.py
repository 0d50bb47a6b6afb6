"""Settings of every agent: values of foreign types are refused by name, and what nothing uses is refused too."""

import typing
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textgym_agents import agent_names
from textgym_agents.algorithms.fixed import FixedConfig
from textgym_agents.config import LMConfig, LMPPOConfig, TrainSettings, check_types, only_with
from textgym_agents.registry import agent_class, config_class

from textgym.checks import MOST_ROWS, shown

FOREIGN = {
    int: st.floats() | st.text() | st.booleans() | st.lists(st.integers()),
    float: st.text() | st.booleans() | st.complex_numbers() | st.sampled_from([np.nan, np.inf, -np.inf, 10**400]),
    bool: st.integers() | st.floats() | st.sampled_from(["True", "False", ""]),
    str: st.integers() | st.floats() | st.booleans() | st.binary(),
}
NONE = type(None)


def settings_of_all_agents():
    """Every config class, its fields and what is foreign to each."""
    for kind in {config_class(agent_class(name)) for name in agent_names()}:
        hints = typing.get_type_hints(kind)
        for field in fields(kind):
            parts = [part for part in typing.get_args(hints[field.name]) if part is not NONE]
            optional = NONE in typing.get_args(hints[field.name])
            inner = parts[0] if optional else hints[field.name]
            if typing.get_origin(inner) is typing.Literal:
                members = typing.get_args(inner)
                foreign = st.integers() | st.lists(st.text()) | st.text().filter(lambda v, m=members: v not in m)
            else:
                foreign = FOREIGN[inner]
            yield kind, field.name, foreign if optional else foreign | st.none()


SETTINGS = sorted(settings_of_all_agents(), key=lambda setting: (setting[0].__name__, setting[1]))


# Nothing is done or held at once for these; a replay is held against the memory, or grows as it fills.
UNBOUNDED = {"seed", "kl_horizon", "replay", "target_update", "learning_starts", "max_states", "group"}
SIZES = [
    (kind, name)
    for kind, name, _ in SETTINGS
    if name not in UNBOUNDED and {int} & {(hint := typing.get_type_hints(kind)[name]), *typing.get_args(hint)}
]


@pytest.mark.parametrize("value", [MOST_ROWS + 1, 10**9, 10**400], ids=["next", "huge", "endless"])
def test_no_setting_keeps_a_machine_busy_before_anything_is_seen(value):
    assert {name for _, name in SIZES} >= {
        "batch",
        "micro_batch",
        "minibatches",
        "epochs",
        "n",
        "k",
        "simulations",
    }
    for kind, name in SIZES:
        with pytest.raises(ValueError) as caught:  # noqa: PT011  (the message is looked at below)
            kind(**{name: value})
        assert str(caught.value).startswith(f"{name}={shown(value)}: allowed is "), kind.__name__


def test_a_group_is_no_greater_than_the_batch():
    with pytest.raises(ValueError, match=r"group=1000000000: allowed is a divisor of 256 without a batch"):
        config_class(agent_class("rloo"))(group=10**9)


@pytest.mark.parametrize(
    ("name", "least"), [("eval_per_prompt", 1), ("final_per_prompt", 1), ("optimum_per_prompt", 0)]
)
def test_an_evaluation_has_no_more_completions_of_a_prompt_than_a_batch_may_have(name, least):
    with pytest.raises(ValueError, match=rf"^{name}=1048577: allowed is an integer in {least}\.\.1048576$"):
        TrainSettings("textgym/Bandit-v0", "reinforce", 8, **{name: MOST_ROWS + 1})


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(st.data())
def test_a_value_of_a_foreign_type_is_one_error_that_names_it(data):
    kind, name, foreign = data.draw(st.sampled_from(SETTINGS))
    value = data.draw(foreign)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the message is looked at below)
        kind(**{name: value})
    assert str(caught.value).startswith(f"{name}={shown(value)}: allowed is ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 1.5}, "epochs=1.5: allowed is an integer"),
        ({"batch": "64"}, "batch='64': allowed is None or an integer"),
        ({"seed": 0.5}, "seed=0.5: allowed is an integer"),
        ({"minibatches": True}, "minibatches=True: allowed is an integer"),
        ({"whiten": "False"}, "whiten='False': allowed is True or False"),
        ({"beta": np.inf}, "beta=inf: allowed is None or a finite number"),
        ({"clip": np.float32("inf")}, "clip=.*inf.*: allowed is a finite number"),
        ({"kl": "k9"}, "kl='k9': allowed is 'exact' or 'k1' or 'k2' or 'k3' or 'k3-ratio'"),
        ({"kl_horizon": 5}, "kl_horizon=5: allowed is 10000 without kl_target"),
    ],
)
def test_foreign_types_by_hand(given, message):
    with pytest.raises(ValueError, match=message):
        LMPPOConfig(**given)


def test_what_is_as_good_is_taken():
    config = LMPPOConfig(batch=np.int64(8), clip=1, beta=np.float32(0.5), model=Path("here"), kl_target=2, kl_horizon=5)
    assert (config.batch, config.clip, config.kl_horizon) == (8, 1, 5)


def test_an_agent_that_does_not_learn_checks_its_seed():
    for seed in (-1, 0.5, "1"):
        with pytest.raises(ValueError, match=f"seed={seed!r}: allowed is an integer"):
            FixedConfig(seed=seed)


def test_a_class_within_a_function_is_checked_as_far_as_its_names_are_known():
    here = typing.Literal["a"]

    @dataclass(frozen=True)
    class Config(LMConfig):
        own: "here" = "b"

    assert here is not None
    assert Config().own == "b"
    with pytest.raises(ValueError, match=r"batch=2\.5"):
        Config(batch=2.5)


def test_a_setting_that_nothing_uses_has_its_default_only():
    @dataclass(frozen=True)
    class Config:
        rate: float = 0.5

    check_types(Config(rate=0.1))
    only_with(Config(), "rate", False, "wheel=True")
    only_with(Config(rate=0.1), "rate", True, "wheel=True")
    with pytest.raises(ValueError, match=r"rate=0\.1: allowed is 0\.5 without wheel=True"):
        only_with(Config(rate=0.1), "rate", False, "wheel=True")
