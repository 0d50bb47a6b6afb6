"""Every option of every task takes a value of any kind or refuses it by name."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from textgym.registry import REWARDS, TASKS
from textgym.rewards import Scorer, make_reward, reward_names
from textgym.rewards.deadline import MOST_SECONDS, Deadline
from textgym.task import make_task, task_names
from textgym.vocab import MOST_TOKENS, load_vocabulary

HUGE = st.integers(min_value=400, max_value=4200).map(lambda digits: 10**digits)
ODD = st.one_of(
    HUGE,
    HUGE.map(lambda value: -value),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from([None, True, b"x", object(), np.zeros(3), np.zeros((2, 2)), np.int64(-3), len]),
    st.lists(st.integers() | st.text(max_size=2), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
OPTIONS = [(name, option) for name in task_names() for option in inspect.signature(TASKS.load(name)).parameters]
# Huge as they are, these are sizes of arrays that fit into memory; what they cost is the caller's.
SIZES = {"max_new_tokens", "max_prompt_tokens", "vocab_size"}


def kind(value: Any) -> str:
    """For pytest, which cannot print the greatest integers."""
    return type(value).__name__


@pytest.mark.slow
@settings(max_examples=150, deadline=10_000)
@given(st.sampled_from(OPTIONS), ODD)
def test_an_option_is_taken_or_refused_by_name(asked: tuple[str, str], value: Any) -> None:
    _ask(*asked, value)


@pytest.mark.sweep
@settings(max_examples=5000, deadline=10_000)
@given(st.sampled_from(OPTIONS), ODD)
def test_five_thousand_options(asked: tuple[str, str], value: Any) -> None:
    _ask(*asked, value)


def _ask(name: str, option: str, value: Any) -> None:
    if option in SIZES and isinstance(value, int) and 10**5 < value < 2**23:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            make_task(name, **{option: value})
        except (ValueError, TypeError, FileNotFoundError) as error:
            # A prompt that does not fit its tokenizer is named by its split and its place.
            names = (option, "prompt") if option == "tokenizer" or "prompts" in option else (option,)
            if not any(each in str(error) for each in names):
                raise AssertionError(f"{name}, {option}: {error}") from error


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000, True, "1", None, float("inf"), np.ones(2)], ids=kind)
def test_numbers_that_no_float_holds_are_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match="penalty="):
        Scorer("length", penalty=value)
    with pytest.raises(ValueError, match="timeout="):
        Deadline(make_reward("length"), value)
    with pytest.raises(ValueError, match=r"weights\['a'\]="):
        make_reward({"name": "weighted", "rewards": {"a": "length"}, "weights": {"a": value}})
    with pytest.raises(ValueError, match="low="):
        make_reward({"name": "clipped", "reward": "length", "low": value})


def test_a_limit_ends_where_systems_stop_waiting() -> None:
    assert Deadline(make_reward("length"), MOST_SECONDS).seconds == 1e6
    with pytest.raises(ValueError, match=r"timeout=1000000\.1: .* at most 1000000"):
        Deadline(make_reward("length"), 1000000.1)


PARAMETERS = [
    (name, parameter)
    for name in reward_names()
    for parameter in inspect.signature(REWARDS.load(name)).parameters
    if parameter != "name" and name != "reward_model"  # which looks for its model on the network
]
GIVEN: dict[str, Any] = {
    "rewards": {"a": "length"},
    "reward": "length",
    "words": ["a"],
    "limit": 3,
    "stop_ids": [1],
    "deviation": 1.0,
    "of": "words",
    "case": "lower",
    "start": "a",
}


@settings(max_examples=200, deadline=10_000)
@given(st.sampled_from(PARAMETERS), ODD)
def test_a_parameter_of_a_reward_is_taken_or_refused_by_name(asked: tuple[str, str], value: Any) -> None:
    name, parameter = asked
    needed = {key: each for key, each in GIVEN.items() if (name, key) in PARAMETERS}
    try:
        make_reward({"name": name, **needed, parameter: value})
    except (ValueError, TypeError) as error:
        if parameter.removesuffix("s") not in str(error) or "0" * 100 in str(error):
            raise AssertionError(f"{name}, {parameter}: {error}") from error


@pytest.mark.parametrize("weights", [10**400, [1, 2], "ab", True, 0, []], ids=kind)
def test_weights_are_a_mapping(weights: Any) -> None:
    with pytest.raises(ValueError, match=r"^weights=.*: None, a number for each of 1 rewards, or a mapping"):
        make_reward({"name": "weighted", "rewards": {"a": "length"}, "weights": weights})


@pytest.mark.parametrize("size", [2**31, 10**400, 10**5000, MOST_TOKENS + 1, 0, True, 3.0, "9"], ids=kind)
def test_a_vocabulary_is_no_larger_than_can_be_walked_through(size: Any) -> None:
    with pytest.raises(ValueError, match=r"vocab_size=.*allowed is an integer in 2\.\.4194304"):
        load_vocabulary(["a", "b"], vocab_size=size)


def test_a_token_id_that_no_table_reaches_is_refused_at_once() -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 2**31}, unk_token="a"))
    with pytest.raises(ValueError, match="it has the token id 2147483648; allowed are ids below 4194304"):
        load_vocabulary(tokenizer)


@pytest.mark.parametrize("option", ["prompts", "eval_prompts", "tune_prompts"])
@pytest.mark.parametrize("task", ["Text", "Json"])
@pytest.mark.parametrize(
    "value", [{"train": ["a"], "test": None}, {"a": 1}.keys(), {"a"}, frozenset("ab"), b"a", bytearray(b"a")]
)
def test_prompts_are_a_list_and_no_dict_or_set(task: str, option: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{option}=.*: allowed are a list of texts, the path"):
        make_task(task, **{"prompts": ["a"], option: value})


@pytest.mark.parametrize("value", [{"a": 1}, {"a"}, b"a"])
def test_a_column_is_a_list_and_no_dict_or_set(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^columns: 'answer' must be a list"):
        make_task("Text", prompts=["a"], columns={"answer": value})


def test_prompts_may_come_from_anything_that_has_an_order() -> None:
    for prompts in (("a", "b"), (text for text in "ab"), np.array(["a", "b"])):
        assert make_task("Text", prompts=prompts).prompt_set("train").texts == ("a", "b")


def test_arguments_that_are_no_prompts_or_no_reference() -> None:
    for prompts in (None, 5, [], [3], np.zeros(2), {1: 2}):
        with pytest.raises((TypeError, ValueError), match=r"^prompts"):
            make_task("Text", prompts=prompts)
    for name in ("Text", "TwoModes", "Helpful"):
        with pytest.raises(TypeError, match=r"^reference=array\(\[0\., 0\.\]\): allowed are 'builtin'"):
            make_task(name, reference=np.zeros(2))
