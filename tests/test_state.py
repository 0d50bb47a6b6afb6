"""The transition, checked by hand, and that one row and many rows go the same way."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from core_tools import word_task
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.env import TokenEnv
from textgym.state import RUNNING, UNSET, Prompt, TokenState, TokenStore

PROMPT = Prompt("two", (7, 8), 0)


def store(rows: int = 1) -> TokenStore:
    return TokenStore(rows, max_prompt_tokens=3, max_new_tokens=2, size=10, stop_ids=(4, 9), pad_id=9)


def test_an_episode_by_hand() -> None:
    one = store()
    assert one.finish.tolist() == [UNSET]
    one.load(0, PROMPT)
    assert one.ids.tolist() == [[7, 8, 9, 9, 9]]
    assert one.mask.tolist() == [[1, 1, 0, 0, 0]]
    assert one.append(0, 5) == RUNNING
    assert one.completion(0) == [5]
    assert one.finish_reason(0) is None
    assert one.append(0, 6) != RUNNING
    assert one.ids.tolist() == [[7, 8, 5, 6, 9]]
    assert one.mask.tolist() == [[1, 1, 1, 1, 0]]
    assert one.finish_reason(0) == "length"


@pytest.mark.parametrize(
    "tokens", [[4], [9], [1, 9]], ids=["stop", "stop that is the pad too", "stop as the last of the budget"]
)
def test_a_stop_id_ends_the_episode_and_stays_in_it(tokens: list[int]) -> None:
    one = store()
    one.load(0, PROMPT)
    codes = [int(one.append(0, token)) for token in tokens]
    assert [code != RUNNING for code in codes] == [False] * (len(tokens) - 1) + [True]
    assert one.finish_reason(0) == "stop"
    assert one.completion(0) == tokens
    assert one.mask[0].sum() == 2 + len(tokens)


def test_loading_again_leaves_nothing_of_the_old_episode() -> None:
    one, fresh = store(), store()
    one.load(0, Prompt("long", (1, 2, 3), None))
    one.append(0, 5)
    one.append(0, 6)
    one.load(0, PROMPT)
    fresh.load(0, PROMPT)
    for row in (one, fresh):
        row.append(0, 1)
    np.testing.assert_array_equal(one.ids, fresh.ids)
    np.testing.assert_array_equal(one.mask, fresh.mask)
    assert one.state(0) == fresh.state(0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6), st.integers(1, 3))
def test_many_rows_go_as_each_row_alone(steps: list[tuple[int, int]], length: int) -> None:
    both, alone = store(3), [store(), store()]
    prompts = [PROMPT, Prompt("p", tuple(range(length)), 1)]
    for row, prompt in zip((0, 2), prompts, strict=True):
        both.load(row, prompt)
        alone[row // 2].load(0, prompt)
    for tokens in steps:
        rows = [row for row in (0, 2) if both.finish[row] == RUNNING]
        if not rows:
            break
        codes = both.append(np.array(rows), np.array([tokens[row // 2] for row in rows]))
        assert codes.tolist() == [int(alone[row // 2].append(0, tokens[row // 2])) for row in rows]
    for row in (0, 2):
        assert both.state(row) == alone[row // 2].state(0)
        for name, values in alone[row // 2].observation(0).items():
            np.testing.assert_array_equal(both.observation(row)[name], values)
    assert both.finish[1] == UNSET
    assert not both.mask[1].any()


def test_restore_and_replay_is_bit_identical() -> None:
    one, two = store(), store()
    one.load(0, PROMPT)
    one.append(0, 3)
    state = one.state(0)
    assert state == TokenState(PROMPT, (3,))
    assert state.tokens == (7, 8, 3)
    assert len({state, pickle.loads(pickle.dumps(state))}) == 1
    two.load(0, Prompt("other", (1, 1, 1), None))
    two.append(0, 1)
    two.restore(0, state)
    for each in (one, two):
        each.append(0, 5)
    assert one.state(0) == two.state(0) == TokenState(PROMPT, (3, 5), "length")
    np.testing.assert_array_equal(one.ids, two.ids)
    np.testing.assert_array_equal(one.mask, two.mask)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            TokenState(Prompt("", (), 0)),
            r"state: prompt.ids=\(\) \(0 values\): allowed is a tuple of 1..3 integers in 0..9",
        ),
        (TokenState(Prompt("", (1,) * 4, 0)), r"prompt.ids=\(1, 1, 1, 1\) \(4 values\)"),
        (TokenState(Prompt("", (0.5,), 0)), r"prompt.ids=\(0.5,\)"),
        (TokenState(PROMPT, (1, 1, 1), "length"), r"completion=\(1, 1, 1\) \(3 values\): allowed is a tuple of 0..2"),
        (TokenState(PROMPT, (1, 1)), r"finish_reason=None with completion=\(1, 1\): allowed is 'length'"),
        (TokenState(PROMPT, (10,)), r"completion=\(10,\) .* in 0..9"),
        (TokenState(PROMPT, (-1,)), r"completion=\(-1,\)"),
        (TokenState(PROMPT, (True,)), r"completion=\(True,\)"),
        (TokenState(PROMPT, [1]), r"completion=\[1\] \(list\): allowed is a tuple"),
        (TokenState(PROMPT, None), r"completion=None \(NoneType\)"),
        (TokenState(PROMPT, (4, 1), "length"), r"goes on behind the id 4 at place 0; allowed is one that stops there"),
        (TokenState(PROMPT, (1, 2), "eos"), r"finish_reason='eos' with completion=\(1, 2\): allowed is 'length'"),
        (TokenState(PROMPT, (1, 2), []), r"finish_reason=\[\] with .*: allowed is 'length'"),
        (TokenState(PROMPT, (1, 2), "stop"), "finish_reason='stop' with .*: allowed is 'length'"),
        (TokenState(PROMPT, (4,)), r"finish_reason=None with completion=\(4,\): allowed is 'stop'"),
        (TokenState(PROMPT, (1, 4), "length"), "finish_reason='length' with .*: allowed is 'stop'"),
        (TokenState(PROMPT, (1,), "length"), "finish_reason='length' with .*: allowed is None"),
        (TokenState(PROMPT, (), "stop"), "finish_reason='stop' with .*: allowed is None"),
        (
            TokenState(PROMPT, (1,), environment=(0, 0)),
            r"environment=\(0, 0\): allowed is a tuple of places in 0..0, ascending",
        ),
        (TokenState(PROMPT, (1,), environment=[0]), r"environment=\[0\]"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state: TokenState, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store().check(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a b"}, "prompt='a b': allowed is a Prompt"),
        ({"prompt": Prompt("a b", [0, 2], None)}, r"prompt=Prompt\(.*\[0, 2\].*: allowed is a Prompt"),
        ({"prompt": Prompt("a b", (0, 2), 1.0)}, r"prompt.index=1.0: allowed is an integer in 0\.\.2"),
        ({"potential": float("nan")}, "potential=nan: allowed is a finite number"),
        ({"episode_seed": "a"}, "episode_seed='a': allowed is an integer >= 0"),
    ],
)
def test_a_state_of_other_types_is_refused_and_nothing_changes(changes: dict[str, Any], message: str) -> None:
    env = TokenEnv(word_task())
    env.reset(options={"prompt_index": 0})
    env.step(0)
    state = env.get_state()
    with pytest.raises((TypeError, ValueError), match=f"^state: {message}"):
        env.set_state(replace(state, **changes))
    assert env.get_state() == state
    assert env.step(0)[0]["input_ids"].tolist() == [0, 2, 0, 0, 4, 4, 4]


def test_a_pickled_store_goes_on_as_the_original_does() -> None:
    one = store()
    one.load(0, PROMPT)
    two = pickle.loads(pickle.dumps(one))
    for each in (one, two):
        each.append(0, 5)
    assert two.observation(0)["input_ids"].tolist() == one.observation(0)["input_ids"].tolist() == [7, 8, 5, 9, 9]
    assert two.ids.tolist() == one.ids.tolist()
    assert two.observation(0)["attention_mask"].tolist() == [1, 1, 1, 0, 0]


def test_observations_are_copies() -> None:
    one = store()
    one.load(0, PROMPT)
    for observation in (one.observation(0), one.observations()):
        for values in observation.values():
            values[...] = 3
    assert one.ids.tolist() == [[7, 8, 9, 9, 9]]
    assert one.mask.tolist() == [[1, 1, 0, 0, 0]]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=9), st.integers(0, 12))
def test_prompts_loaded_together_are_as_loaded_one_by_one(chosen: list[int], kept: int) -> None:
    prompts = [Prompt(str(i), tuple(range(1, 2 + i % 3)), i) for i in range(12)]
    together, alone = (TokenStore(9, 3, 2, 10, (4, 9), 9, prompts=count) for count in (kept, 0))
    rows = list(range(9))[: len(chosen)]
    for _ in range(2):  # the second time the prompts are there
        for one in (together, alone):
            one.append(np.array(rows), np.full(len(rows), 5)) if one.finish[0] == RUNNING else None
        together.load_rows(rows, [prompts[i] for i in chosen])
        for row, place in zip(rows, chosen, strict=True):
            alone.load(row, prompts[place])
        np.testing.assert_array_equal(together.ids, alone.ids)
        np.testing.assert_array_equal(together.mask, alone.mask)
        assert [together.state(row) for row in rows] == [alone.state(row) for row in rows]
    another = Prompt("another", (8,), chosen[0])  # of the same index: it is not what was kept
    together.load(0, another)
    assert together.ids[0, 0] == 8


def test_a_pickle_grows_with_the_rows_and_not_with_their_square() -> None:
    sizes = [len(pickle.dumps(TokenStore(1, 1, tokens, 3, (2,), 0))) for tokens in (1000, 4000)]
    assert sizes[1] < 5 * sizes[0] < 200_000
