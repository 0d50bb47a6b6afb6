"""Calculator, Lookup and Persuade: their optimum by enumeration written here, and what can be known in them."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from textgym import TokenEnv, make_task
from textgym.solver import solve
from textgym.state import TokenState


def soft(values, beta):
    """beta log of the mean of exp(v / beta), the largest value at beta 0."""
    values = np.array(values)
    return values.max() + (beta and beta * np.log(np.mean(np.exp((values - values.max()) / beta))))


def best(worlds, actions, reply, turns, cost, beta, asked=0):
    """The value of a state in which each of `worlds` (world -> weight) may be true: plain backward induction.

    `reply(action, world)` is a word; "right" and "wrong" end it, and every other word costs.
    """
    if asked == turns:
        return -cost * asked
    values = []
    for action in actions:
        groups = {}
        for world, weight in worlds.items():
            groups.setdefault(reply(action, world), {})[world] = weight
        value = 0.0
        for word, group in groups.items():
            share = sum(group.values()) / sum(worlds.values())
            if word in ("right", "wrong"):
                value += share * ((word == "right") - cost * asked)
            else:
                value += share * best(group, actions, reply, turns, cost, beta, asked + 1)
        values.append(value)
    return soft(values, beta)


def sell(belief, things, change, turns, cost, beta, asked=0):
    """The same for Persuade, over beliefs about what is wanted now, which a change of mind moves on."""
    if asked == turns:
        return -cost * asked

    def later(seen):
        seen = np.array(seen) / sum(seen)
        moved = seen * (1 - change) + (1 - seen) * change / (things - 1)
        return sell(moved, things, change, turns, cost, beta, asked + 1)

    known = np.eye(things)
    values = [sum(belief[thing] * later(known[thing]) for thing in range(things) if belief[thing])]
    for thing in range(things):
        others = belief * (1 - known[thing])
        refused = others.sum()
        values.append(belief[thing] * (1 - cost * asked) + (refused * later(others) if refused > 1e-15 else 0.0))
    return soft(values, beta)


@pytest.mark.parametrize("difficulty", [1, 2, 3])
@pytest.mark.parametrize("beta", [0.0, 0.05, 0.3])
def test_the_optimum_of_calculator_is_that_of_an_enumeration(difficulty, beta):
    every = [*product(range(1, difficulty + 1), repeat=2)]
    actions = ["calc", *{one * two for one, two in every}]

    def reply(action, world):
        right = world[0] * world[1]
        return right if action == "calc" else "right" if action == right else "wrong"

    values = []
    for largest in range(1, difficulty + 1):
        worlds = {pair: 1.0 for pair in every if max(pair) <= largest}
        values.append(best(worlds, actions, reply, 2, 0.55, beta))
    solution = solve(make_task("Calculator", difficulty=difficulty), beta=beta)
    assert solution.prompt_values == pytest.approx(values, abs=1e-12)
    assert solution.objective == pytest.approx(np.mean(values), abs=1e-12)


def test_the_tool_pays_beyond_some_size():
    values = solve(make_task("Calculator", difficulty=5), beta=0.0).prompt_values
    # The likeliest product of two numbers up to 1, 2, 3: 1 in 1, 2 in 4, 2 in 9; the tool pays 1 - 0.55.
    assert values == pytest.approx([1.0, 0.5, 0.45, 0.45, 0.45])
    assert solve(make_task("Calculator", difficulty=3, cost=0.8), beta=0.0).prompt_values[2] == pytest.approx(2 / 9)


@pytest.mark.parametrize("difficulty", [1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.05, 0.3])
def test_the_optimum_of_lookup_is_that_of_an_enumeration(difficulty, beta):
    actions = [*range(difficulty), "red", "blue"]
    worlds = dict.fromkeys(product(("red", "blue"), repeat=difficulty), 1.0)
    values = []
    for door in range(difficulty):

        def reply(action, world, door=door):
            return f"it is {world[action]}" if action in range(difficulty) else _said(action == world[door])

        values.append(best(worlds, actions, reply, 3, 0.1, beta))
    solution = solve(make_task("Lookup", difficulty=difficulty), beta=beta)
    assert solution.prompt_values == pytest.approx(values, abs=1e-12)


def _said(right):
    return "right" if right else "wrong"


@pytest.mark.parametrize(("cost", "value"), [(0.1, 0.9), (0.49, 0.51), (0.6, 0.5)])
def test_looking_up_pays_where_it_costs_less_than_a_half(cost, value):
    assert solve(make_task("Lookup", difficulty=3, cost=cost), beta=0.0).objective == pytest.approx(value)


def test_a_distractor_says_nothing():
    task = make_task("Lookup", difficulty=2)
    word = {task.vocabulary.token_text(i): i for i in range(task.vocabulary.size)}
    state = TokenState(task.encoded("train")[0], (word["get2"], word["red"]), environment=(1,))
    beliefs = task.turns.beliefs(state).reshape(2, 2, 2)  # the door asked for, the colours of both
    assert beliefs[0, :, 0] == pytest.approx([0.5, 0.5])
    assert beliefs.sum() == pytest.approx(beliefs[0, :, 0].sum())


@pytest.mark.parametrize("difficulty", [2, 3, 4])
@pytest.mark.parametrize("change", [0.0, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_the_optimum_of_persuade_is_that_of_beliefs_moved_on(difficulty, change, beta):
    solution = solve(make_task("Persuade", difficulty=difficulty, change=change), beta=beta)
    start = np.full(difficulty, 1 / difficulty)
    assert solution.objective == pytest.approx(sell(start, difficulty, change, 3, 0.1, beta), abs=1e-12)


def test_numbers_of_persuade_by_hand():
    def value(difficulty, change):
        return solve(make_task("Persuade", difficulty=difficulty, change=change), beta=0.0).objective

    assert value(2, 0.0) == pytest.approx(0.95)  # one thing, else the other
    assert value(2, 1.0) == pytest.approx(0.95)  # one thing, and again: who refused it wants it now
    assert value(3, 0.0) == pytest.approx(0.9)  # one after the other, or ask
    # Which is wanted at 0.2 after a refusal of the other with probability 0.8: 1/2 + 0.8 (1/2) 0.9 + ...
    third = 0.2 * 0.5 * (0.8 * 0.8 - 0.2 * 0.3)
    assert value(2, 0.2) == pytest.approx(0.5 + 0.5 * 0.8 * 0.9 + third)


def test_the_best_seller_listens():
    things, change = 4, 0.2
    wishes = [*product(range(things), repeat=3)]
    weights = [np.prod([0.8 if a == b else 0.2 / 3 for a, b in pairwise(w)]) / things for w in wishes]

    def plan_pays(plan):
        sold = [next((turn for turn in range(3) if plan[turn] == wish[turn]), None) for wish in wishes]
        return sum(w * (-0.3 if turn is None else 1 - 0.1 * turn) for w, turn in zip(weights, sold, strict=True))

    deaf = max(plan_pays(plan) for plan in product([*range(things), "ask"], repeat=3))
    heard = solve(make_task("Persuade", difficulty=things, change=change), beta=0.0).objective
    assert heard > deaf + 0.19


def test_what_is_known_of_a_wish_moves_on():
    task = make_task("Persuade", difficulty=2, change=0.3)
    word = {task.vocabulary.token_text(i): i for i in range(task.vocabulary.size)}
    state = TokenState(task.encoded("train")[0], (word["ask"], word["milk"]), environment=(1,))
    beliefs = task.turns.beliefs(state).reshape(2, 2, 2)  # what is wanted in each of three turns
    assert beliefs.sum((1, 2)) == pytest.approx([0.0, 1.0])
    assert beliefs.sum((0, 2)) == pytest.approx([0.3, 0.7])
    assert beliefs.sum((0, 1)) == pytest.approx([0.3 * 0.7 * 2, 1 - 0.3 * 0.7 * 2])


def test_a_sale_ends_the_episode():
    env = TokenEnv("Persuade", difficulty=2, change=0.0)
    env.reset(seed=0)
    first = env.step(1)
    if not first[2]:
        first = env.step(2)
    assert first[2]
    assert first[1] in (1.0, 0.9)
    assert first[4]["completion"].endswith("right")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Calculator", {"difficulty": 6}, "difficulty=6"),
        ("Lookup", {"difficulty": 0}, "difficulty=0"),
        ("Persuade", {"difficulty": 1}, "difficulty=1"),
        ("Persuade", {"change": 1.5}, "change=1.5"),
    ],
)
def test_what_is_out_of_range_is_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        make_task(name, **options)
