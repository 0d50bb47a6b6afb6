"""TurnEnv and AnswerEnv: the same task by tokens, by turns and by whole answers."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from turn_tools import Echo, ragged

from textgym import TokenEnv, make_task
from textgym.wrappers import AnswerEnv, ReferenceReward, TurnEnv

VIEWS = {"token": lambda env: env, "turn": TurnEnv, "answer": AnswerEnv}


TASKS = {
    "twenty questions": (lambda: make_task("TwentyQuestions", difficulty=1), None, ("token", "turn")),
    "clarify": (lambda: make_task("Clarify", difficulty=2), None, ("token", "turn")),
    "ragged": (lambda: ragged(most=2, tokens=2), (0, 1, 5), ("token", "turn", "answer")),
    "copy": (lambda: make_task("Copy", difficulty=2), None, ("token", "turn", "answer")),
}


def turns_of(task, ids):
    """Every turn over some ids: tokens up to one that ends it, or as many as the budget has."""
    turns = task.turns
    budget, ends = (task.max_new_tokens, task.vocabulary.stop_ids) if turns is None else (turns.tokens, turns.ends)
    for length in range(1, budget + 1):
        for before in itertools.product([i for i in ids if i not in ends], repeat=length - 1):
            last = ids if length == budget else [i for i in ids if i in ends]
            yield from ((*before, token) for token in last)


def actions_of(view, task, ids):
    """Every different action of a view, as lists of tokens."""
    if view == "token":
        return [(token,) for token in ids]
    turns = list(turns_of(task, ids))
    if view == "turn" or task.turns is None:
        return turns
    return [sum(parts, ()) for parts in itertools.product(turns, repeat=task.turns.most)]


def logits_in(parameters, state):
    """A policy by the last token and how much has been written: nothing in it knows what is hidden."""
    return parameters[state.tokens[-1]] + parameters[len(state.completion)].flip(0)


def enumerated(view, task, ids, parameters):
    """E[grad log pi(actions) x R] over all episodes of a view, and probability by return, by its own steps."""
    env, plain = VIEWS[view](TokenEnv(task)), TokenEnv(task)
    env.reset(seed=0)
    plain.reset(seed=0)
    start = env.get_wrapper_attr("get_state")()
    weights = np.ones(1) if task.turns is None else np.array(task.turns.responder.weights(start.prompt))
    others = torch.tensor([token not in ids for token in range(task.vocabulary.size)])
    found, loss, actions = {}, torch.zeros((), dtype=torch.float64), actions_of(view, task, ids)

    def log_prob(state, tokens):
        """Sum of log pi over the tokens of an action; it stands where the plain environment is."""
        plain.set_state(state)
        total = torch.zeros((), dtype=torch.float64)
        for token in tokens:
            here = logits_in(parameters, plain.get_state()).masked_fill(others, -torch.inf)
            total = total + torch.log_softmax(here, -1)[token]
            plain.step(token)
        return total

    def walk(state, mass, logs, paid):
        nonlocal loss
        for action in actions:
            env.get_wrapper_attr("set_state")(state)
            _, reward, ended, _, info = env.step(action[0] if view == "token" else np.array(action))
            there = env.get_wrapper_attr("get_state")()
            own = log_prob(state, action[: info.get("tokens", 1)])
            share = 1.0
            if view == "answer":  # what stands behind the end of the episode is ignored: count each answer once
                share = float(tuple(action[: info["tokens"]]) not in seen)
                seen.add(tuple(action[: info["tokens"]]))
            if not share:
                continue
            total, back = logs + own, paid + reward
            if ended:
                probability = mass * float(torch.exp(total.detach()))
                key = round(back, 9)
                found[key] = found.get(key, 0.0) + probability
                loss = loss + probability * back * total
            else:
                walk(there, mass, total, back)

    for hidden, weight in enumerate(weights):
        if weight:
            seen = set()
            walk(replace(start, hidden=None if task.turns is None else hidden), weight, torch.zeros(()), 0.0)
    (gradient,) = torch.autograd.grad(loss, parameters)
    return gradient, found


@pytest.mark.parametrize("name", TASKS)
def test_reinforce_and_the_returns_are_the_same_in_every_view(name):
    make, words, views = TASKS[name]
    task = make()
    ids = np.flatnonzero(task.vocabulary.allowed).tolist() if words is None else words
    generator = torch.Generator().manual_seed(1)
    size = task.vocabulary.size
    shape = (max(size, task.max_new_tokens) + 1, size)
    parameters = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    results = [enumerated(view, task, ids, parameters) for view in views]
    gradient, returns = results[0]
    assert sum(returns.values()) == pytest.approx(1.0, abs=1e-9)
    assert len(returns) > 1
    assert float(gradient.norm()) > 1e-3
    for other, levels in results[1:]:
        torch.testing.assert_close(other, gradient, rtol=1e-9, atol=1e-12)
        assert levels == pytest.approx(returns, abs=1e-12)


@pytest.mark.parametrize("view", [TurnEnv, AnswerEnv])
@pytest.mark.parametrize("task", ["TwentyQuestions", "Clarify", "Copy", "Stop", "Json"])
def test_gymnasium_finds_nothing(view, task):
    if view is AnswerEnv and task in ("TwentyQuestions", "Clarify"):
        with pytest.raises(ValueError, match=f"'{task}': chance has a say .* allowed is TurnEnv"):
            view(TokenEnv(task))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "(?s).*different from the unwrapped version")  # so of every wrapper
        check_env(view(TokenEnv(task)), skip_render_check=True)


def test_an_action_in_the_middle_of_a_turn_writes_the_rest():
    env = TurnEnv(TokenEnv(ragged(most=2, tokens=3)))
    env.reset(seed=0)
    env.env.step(1)
    _, _, ended, _, info = env.step(np.array([2, 3, 4]))
    state = env.get_wrapper_attr("get_state")()
    assert (info["tokens"], ended) == (2, False)
    assert (state.completion[:3], state.replies) == ((1, 2, 3), 1)


@pytest.mark.parametrize("action", [[1], [9] * 3, [0.5] * 3, [[0, 0, 0]], [0] * 4, [-1, 0, 0], []])
def test_what_is_no_turn_is_refused_and_changes_nothing(action):
    env = TurnEnv(TokenEnv(ragged(most=2, tokens=3)))
    with pytest.raises(ResetNeeded):
        env.step(np.array([0, 0, 0]))
    env.reset(seed=0)
    before = env.get_wrapper_attr("get_state")()
    with pytest.raises(InvalidAction, match=r"allowed are 1\.\.3 ids|before what it writes does"):
        env.step(np.array(action))
    assert env.get_wrapper_attr("get_state")() == before


def test_rewards_of_single_tokens_are_discounted_within_an_action():
    every = {"name": "dense", "reward": {"name": "length", "target": 1, "unit": "tokens"}}
    options = {"prompts": ["a"], "tokenizer": ["a", "b", "c"], "max_new_tokens": 3, "gamma": 0.5}
    task = make_task("Text", reward=every, **options)
    token, view = TokenEnv(task), AnswerEnv(TokenEnv(task))
    token.reset(seed=3)
    view.reset(seed=3)
    tokens = np.flatnonzero(task.vocabulary.allowed)[np.arange(task.max_new_tokens) % 2]
    expected = 0.0
    for time, each in enumerate(tokens):
        _, reward, ended, *_ = token.step(int(each))
        expected += 0.5**time * reward
        if ended:
            break
    _, paid, ended, _, info = view.step(tokens)
    assert (info["tokens"], ended) == (time + 1, True)
    assert time > 0
    assert paid == pytest.approx(expected, abs=1e-12)
    assert expected != pytest.approx(reward)


def test_what_a_reference_reward_has_discounted_is_added_up():
    options = {"prompts": ["a"], "tokenizer": ["a", "b", "c"], "max_new_tokens": 3, "gamma": 0.5, "beta": 1.0}
    task = make_task("Text", reward=lambda prompts, completions, **columns: [8.0] * len(prompts), **options)
    paid = []
    for wrap in (TurnEnv, AnswerEnv):
        env = wrap(ReferenceReward(TokenEnv(task)))
        env.reset(seed=0)
        paid.append(env.step(np.array([1, 2, 0]))[1])
    assert paid == pytest.approx([8 / 4 - 3 * np.log(3)] * 2)  # the reference is uniform


@pytest.mark.parametrize("view", [TurnEnv, AnswerEnv])
def test_a_turn_that_is_refused_is_no_step_for_the_wrappers_below(view):
    env = view(RecordEpisodeStatistics(TimeLimit(TokenEnv("Copy"), 4)))
    env.reset(seed=0)
    for _ in range(3):
        with pytest.raises(InvalidAction, match="ends after 2 tokens"):
            env.step(np.array([1, 2]))
    _, _, terminated, truncated, info = env.step(np.array([1, 2, 3]))
    assert (terminated, truncated, info["tokens"], info["episode"]["l"]) == (True, False, 3, 3)


@pytest.mark.parametrize(("most", "ends_after"), [(2, None), (3, 2)])
def test_an_answer_that_is_too_short_is_no_step_for_the_wrappers_below(most, ends_after):
    below = RecordEpisodeStatistics(TimeLimit(TokenEnv(ragged(Echo(ends_after=ends_after), most, tokens=2)), 5))
    env = AnswerEnv(below)
    env.reset(seed=0)
    before = env.get_wrapper_attr("get_state")()
    for short in ([1], [5], [1, 2], [1, 2, 3], [5, 1]):
        with pytest.raises(InvalidAction, match=f"ends after {len(short)} tokens, before what it writes does"):
            env.step(np.array(short))
        assert env.get_wrapper_attr("get_state")() == before
    # With the second turn the episode ends, after 1 2 and the 5 that ends a turn.
    _, _, terminated, truncated, info = env.step(np.array([1, 2, 5]))
    assert (terminated, truncated, info["tokens"], info["episode"]["l"]) == (True, False, 3, 3)
    with pytest.raises(ResetNeeded):
        env.step(np.array([1, 2, 5]))


def test_an_answer_from_the_middle_of_an_episode_is_the_rest_of_it():
    env = AnswerEnv(TokenEnv(ragged(most=2, tokens=2)))
    env.reset(seed=0)
    env.env.step(5)
    env.env.step(1)
    _, _, terminated, _, info = env.step(np.array([2]))
    assert (terminated, info["tokens"]) == (True, 1)
