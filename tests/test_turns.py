"""Turns: who wrote what, what the solver says of chance, and what a policy can know of what is hidden."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from turn_tools import Echo, ragged

from textgym import TokenEnv, TokenVectorEnv, make_task
from textgym.evaluate import evaluate
from textgym.state import ENVIRONMENT, POLICY, PROMPT
from textgym.task import make_reference
from textgym.turns import Reply, written_by

TASKS = ("TwentyQuestions", "Clarify", "Calculator", "Lookup", "Persuade")


@pytest.mark.parametrize("name", TASKS)
def test_gymnasiums_checker_has_nothing_to_say(name, recwarn):
    check_env(gym.make(f"textgym/{name}-v0").unwrapped)
    assert not recwarn.list


def test_the_column_of_who_said_what_is_nobody_elses():
    script = {"name": "script", "texts": ["x"]}
    with pytest.raises(ValueError, match="columns: the name 'turns' is taken in a task with turns"):
        make_task("Text", prompts=["a", "b"], columns={"turns": [1, 2]}, responder=script, reward="length")
    task = make_task("Text", prompts=["a", "b"], columns={"turns": [1, 2]}, reward="length")
    assert task.prompts["train"].columns["turns"] == (1, 2)


def test_tokens_of_both_stand_in_the_state():
    env = TokenEnv(ragged(), segments=True)
    env.reset(options={"prompt_index": 0})
    prompt = len(env.get_state().prompt.ids)
    observation, reward, ended, _, info = env.step(0)
    assert (reward, ended, info) == (0.0, False, {})
    observation, *_ = env.step(5)  # ends the turn: the environment writes its mark and the turn
    assert observation["input_ids"][prompt : prompt + 5].tolist() == [0, 5, 5, 0, 5]
    segments = observation["segment_ids"].tolist()
    assert segments == [PROMPT] * prompt + [POLICY] * 2 + [ENVIRONMENT] * 3 + [0] * (len(segments) - prompt - 5)
    for token in (1, 2, 0):
        assert env.get_state().finish_reason is None
        observation, reward, ended, _, info = env.step(token)  # the budget ends this turn
    assert env.get_state().completion[5:] == (1, 2, 0, 5, 1, 2)
    assert (ended, env.get_state().replies) == (False, 2)
    for token in (0, 0, 5):
        observation, reward, ended, _, info = env.step(token)
    assert (ended, reward) == (True, 3 + 4)
    assert info["finish_reason"] == "stop"
    assert info["completion"].split() == list("affafbcafbcaaffaa")


def test_the_environment_closes_a_turn_that_its_budget_cut_off():
    env = TokenEnv(ragged(close=(4,)))
    env.reset(seed=0)
    for token in (0, 0, 0):
        env.step(token)
    assert env.get_state().completion[3:] == (4, 5, 0, 0)  # closed, then answered
    env.step(5)
    assert env.get_state().completion[7:] == (5, 5, 5)  # closed by itself


def test_an_environment_that_ends_an_episode_has_stopped_it():
    env = TokenEnv(ragged(Echo(ends_after=1)))
    env.reset(seed=0)
    results = [env.step(0) for _ in range(3)]
    assert [result[2] for result in results] == [False, False, True]
    assert results[-1][4]["finish_reason"] == "stop"


def test_every_turn_has_its_whole_budget():
    class Nods(Echo):
        def replies(self, states):
            return [Reply((2,)) for _ in states]

    env = TokenEnv(ragged(Nods(), tokens=4))
    env.reset(seed=0)
    env.step(5)  # ends its turn long before the budget
    for _ in range(4):
        assert env.get_state().replies == 1
        env.step(0)
    assert env.get_state().replies == 2


def test_turns_that_run_out_are_a_matter_of_length():
    env = TokenEnv(ragged(most=1))
    env.reset(seed=0)
    *_, last = [env.step(0) for _ in range(3)]
    assert last[2]
    assert last[4]["finish_reason"] == "length"


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("task", [*TASKS, "ragged"])
def test_one_at_a_time_and_side_by_side_are_the_same(task, mode):
    made = ragged(Echo(mark=2, weights=(0.3, 0.3, 0.4))) if task == "ragged" else make_task(task)
    vector = TokenVectorEnv(made, 5, autoreset_mode=mode, segments=True)
    apart = SyncVectorEnv([lambda: TokenEnv(made, segments=True)] * 5, autoreset_mode=mode)
    generator = np.random.default_rng(0)
    first, second = vector.reset(seed=3), apart.reset(seed=3)
    over = np.zeros(5, dtype=bool)
    for _ in range(120):
        for name, array in first[0].items():
            assert (array == second[0][name]).all()
        if mode is AutoresetMode.DISABLED and over.any():
            options = {"reset_mask": over}
            first, second = vector.reset(options=options), apart.reset(options=options)
            over = np.zeros(5, dtype=bool)
            continue
        actions = generator.choice(np.flatnonzero(made.vocabulary.allowed), 5)
        first, second = vector.step(actions), apart.step(actions)
        for one, other in zip(first[1:4], second[1:4], strict=True):
            assert (one == other).all()
        over = first[2].copy()


@pytest.mark.parametrize("hidden", [10**6, -1, 1.0, True])
def test_a_state_that_hides_what_cannot_be_is_refused(hidden):
    env = TokenEnv(make_task("TwentyQuestions", difficulty=3))
    env.reset(seed=7)
    state = env.get_state()
    with pytest.raises(ValueError, match=rf"state: hidden={hidden}: allowed is 0\.\.7"):
        env.set_state(replace(state, hidden=hidden))
    assert env.get_state() == state
    plain = TokenEnv("Copy")
    plain.reset(seed=0)
    with pytest.raises(ValueError, match="state: hidden=0: allowed is None"):
        plain.set_state(replace(plain.get_state(), hidden=0))


def test_a_state_with_all_replies_does_not_run_on():
    env = TokenEnv(make_task("TwentyQuestions", difficulty=3))
    env.reset(seed=7)
    while not env.step(3)[2]:
        pass
    state = env.get_state()
    assert state.replies == 4
    with pytest.raises(ValueError, match=r"state: finish_reason=None with .*: allowed is 'stop' or 'length'"):
        env.set_state(replace(state, finish_reason=None))
    short = replace(state, completion=(3, 16), environment=(1,), finish_reason=None)
    env.set_state(short)
    with pytest.raises(
        ValueError, match=r"state: environment=\(0, 2, 4, 6\): 4 replies, allowed are 0..3 while it runs"
    ):
        env.set_state(replace(short, completion=(16, 3) * 3 + (16,), environment=(0, 2, 4, 6)))
    assert env.get_state() == short


def test_how_many_ended_by_themselves_is_counted_in_turns():
    task = make_task("TwentyQuestions", difficulty=2)
    found = evaluate(make_reference(task), task, per_prompt=400)
    # Of seven words three are a question, of which the third in a row is answered without an end.
    assert found.exact
    assert found.stop_rate == pytest.approx(1 - (3 / 7) ** 3, abs=4 * (0.08 * 0.92 / 400) ** 0.5)


def test_set_state_goes_on_bit_for_bit_with_what_is_hidden():
    task = make_task("TwentyQuestions", difficulty=3)
    env, other = TokenEnv(task), TokenEnv(task)
    env.reset(seed=7)
    env.step(3)
    state = env.get_state()
    other.set_state(state)
    assert other.get_state() == state
    for token in (1, 5, 9):
        one, two = env.step(token), other.step(token)
        assert (one[0]["input_ids"] == two[0]["input_ids"]).all()
        assert one[1:3] == two[1:3]


def test_pieces_are_cut_where_the_author_changes():
    assert written_by([1, 2, 3, 4, 5], (1, 2, 4)) == [
        ("policy", [1]),
        ("environment", [2, 3]),
        ("policy", [4]),
        ("environment", [5]),
    ]
    assert written_by([1, 2], ()) == [("policy", [1, 2])]
    assert written_by([], ()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 0.9}, "gamma=0.9: in a task with turns allowed is 1"),
        ({"min_new_tokens": 1}, "min_new_tokens=1"),
    ],
)
def test_what_turns_do_not_go_with_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ragged(**options)


def test_a_budget_of_its_own_is_refused():
    task = ragged()
    with pytest.raises(ValueError, match="max_new_tokens=7: in a task with turns allowed is 18"):
        replace(task, max_new_tokens=7)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(()), "a reply of 0 tokens, allowed are 1 to reply_tokens=3"),
        (Reply((1, 2, 3, 4)), "a reply of 4 tokens"),
        (Reply((99,)), "a reply holds an id outside 0..7"),
        ((1, 2), "allowed is a textgym.turns.Reply"),
    ],
)
def test_a_reply_that_is_none_is_refused(reply, said):
    class Bad(Echo):
        def replies(self, states):
            return [reply for _ in states]

    env = TokenEnv(ragged(Bad()))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=said):
        env.step(5)


@pytest.mark.parametrize("weights", [(0.5, 0.6), (-0.5, 1.5), (), ((1.0,),)])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(
        ValueError, match=r"weights .* for the prompt 'copy .*; allowed are numbers >= 0 whose sum is 1"
    ):
        ragged(Echo(weights=weights))


def test_an_episode_whose_responder_failed_is_over():
    class Fails(Echo):
        def replies(self, states):
            raise RuntimeError("no line")

    env = TokenEnv(ragged(Fails()))
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="no line"):
        env.step(5)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    assert env.step(0)[2] is False
