"""What the solver says of chance, and what a policy can know of what is hidden."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from turn_tools import Echo, ragged

from textgym import TokenEnv, make_task
from textgym.evaluate import evaluate
from textgym.lm.reference import UniformReference
from textgym.optimum import optimum_of
from textgym.planning import Tree
from textgym.sampling import play
from textgym.solver import UnsolvableError, policy_values, prefix_tree, solve
from textgym.state import TokenState
from textgym.turns import Reply, Turns, written_by


def soft(values, beta):
    """beta log of the mean of exp(v / beta): a state's value under a uniform reference."""
    values = np.array(values)
    return values.max() + beta * np.log(np.mean(np.exp((values - values.max()) / beta)))


def test_what_is_known_of_the_number_is_bayes_rule():
    task = make_task("TwentyQuestions", difficulty=3)
    turns, env = task.turns, TokenEnv(task)
    env.reset(seed=0)
    assert turns.beliefs(env.get_state()) == pytest.approx(np.full(8, 1 / 8))
    hidden = env.get_state().hidden
    env.step(3)  # <4
    env.step(5)  # <6
    state = env.get_state()
    possible = [k for k in range(8) if (k < 4) == (hidden < 4) and (k < 6) == (hidden < 6)]
    assert turns.beliefs(state) == pytest.approx([(k in possible) / len(possible) for k in range(8)])
    generator = np.random.default_rng(0)
    drawn = [turns.redraw(state, generator) for _ in range(400)]
    assert {each.hidden for each in drawn} == set(possible)
    assert {replace(each, hidden=None) for each in drawn} == {replace(state, hidden=None)}
    with pytest.raises(ValueError, match="does not write what stands"):
        turns.beliefs(replace(state, completion=(3, 15, 5, 0)))


def test_the_smallest_game_by_hand():
    beta, cost = 0.05, 0.05
    solution = solve(make_task("TwentyQuestions", difficulty=1))
    # The words are <1, 0 and 1. In the second turn the number is known; asking again ends it unanswered.
    second = soft([-2 * cost, 1 - cost, -cost], beta)
    by_hand = soft([second, 0.5, 0.5], beta)
    assert solution.objective == pytest.approx(by_hand, abs=1e-12)
    reference = ((-2 * cost + (1 - cost) - cost) / 3 + 0.5 + 0.5) / 3
    assert solution.reference_objective == pytest.approx(reference, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("difficulty", "greatest"), [(1, 0.95), (2, 0.90), (3, 0.85)])
def test_halving_is_the_best_without_a_price_of_kl(difficulty, greatest):
    task = make_task("TwentyQuestions", difficulty=difficulty)
    assert solve(task, beta=0.0).objective == pytest.approx(greatest, abs=1e-12)


def test_asking_pays_where_the_best_guess_is_worse_than_its_price():
    task = make_task("Clarify", difficulty=3, cost=0.2)
    values = dict(zip([p.text for p in task.encoded("train")], solve(task, beta=0.0).prompt_values, strict=True))
    assert values["paint any"] == pytest.approx(0.8)
    assert values["paint red"] == pytest.approx(1.0)
    assert values["paint mostly red"] == pytest.approx(0.9)  # guessing beats asking: 0.8
    dear = solve(make_task("Clarify", difficulty=3, cost=0.8), beta=0.0)
    assert dear.prompt_values[0] == pytest.approx(1 / 3)


def test_the_formula_over_whole_episodes_is_too_high_where_chance_has_a_say():
    for task, equal in ((make_task("TwentyQuestions", difficulty=2), False), (ragged(most=2, tokens=1), True)):
        solution = solve(task, beta=0.3)
        every = solution.reference.trajectories
        formula = 0.3 * np.log(
            np.bincount(every.prompt, every.probability * np.exp(every.returns / 0.3)) / solution.tree.weights
        )
        gap = formula - solution.prompt_values
        assert (gap > 1e-3).all() if not equal else gap == pytest.approx(0.0, abs=1e-9)


def test_probabilities_of_all_conversations_sum_to_one():
    solution = solve(make_task("Clarify"))
    for values in (solution.optimal, solution.reference):
        assert values.trajectories.probability.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
def test_exact_values_are_those_of_play():
    task = make_task("TwentyQuestions", difficulty=2, beta=0.2)
    solution = solve(task)
    episodes = play(solution, task, reference=UniformReference(task.vocabulary.allowed), per_prompt=4000, seed=1)
    for sampled, exact in (
        (episodes.returns, solution.optimal.expected_return),
        (episodes.kl, solution.optimal.kl),
        (episodes.entropy, solution.optimal.entropy),
        (episodes.lengths, solution.optimal.length),
    ):
        error = sampled.std() / np.sqrt(sampled.size)
        assert abs(sampled.mean() - exact) < 4 * error + 1e-9
    found = evaluate(solution, task, optimum=optimum_of(task))
    assert found.optimality.mean == pytest.approx(1.0)


def test_the_reference_costs_no_kl_whatever_the_environment_writes():
    task = make_task("Clarify")
    values = policy_values(task, UniformReference(task.vocabulary.allowed))
    assert values.kl == pytest.approx(0, abs=1e-12)
    # A turn is one of 4 words: log 4 nats each, and which ends no episode.
    assert values.entropy == pytest.approx(np.log(4) * (1 + 1 / 4), abs=1e-12)
    assert values.length == pytest.approx(1 + 1 / 4, abs=1e-12)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 2), st.integers(1, 3), st.integers(1, 3))
def test_every_state_of_play_stands_in_the_tree(tokens, hidden, most, budget):
    task = ragged(Echo(mark=2, weights=(0.5, 0.25, 0.25)), most=most, tokens=min(budget, 4 - most))
    env, tree = TokenEnv(task, segments=True), _tree(task)
    env.reset(options={"prompt_index": 0})
    env.set_state(replace(env.get_state(), hidden=hidden))
    for token in tokens:
        observation, reward, ended, *_ = env.step(token)
        state = env.get_state()
        depth = len(written_moves(state))
        level = tree.levels[depth]
        texts, places = tree.written(depth, np.arange(len(level.parent)))
        found = [
            row
            for row, (text, place) in enumerate(zip(texts, places, strict=True))
            if tuple(text) == state.completion and place == state.environment and tree.prompt_of[depth][row] == 0
        ]
        assert len(found) == 1
        assert level.finished[found[0]] == ended
        seen = tree.observations(depth, np.array(found))
        assert all((seen[name][0] == array).all() for name, array in observation.items())
        if ended:
            assert level.reward[found[0]] == reward
            break


TREES = {}


def _tree(task):
    key = (task.turns.most, task.turns.tokens)
    if key not in TREES:
        TREES[key] = prefix_tree(replace(task, prompts={"train": _one(task), "eval": _one(task)}))
    return TREES[key]


def _one(task):
    from textgym.prompts import prompt_set

    return prompt_set(task.prompts["train"].texts[:1])


def written_moves(state: TokenState) -> list[object]:
    """The tokens of the policy and the replies of the environment, each one move."""
    moves = []
    for author, ids in written_by(state.completion, state.environment):
        moves += [ids] if author == "environment" else list(ids)
    return moves


def test_what_would_have_ended_the_episode_is_not_believed():
    class Ends(Echo):
        def replies(self, states):
            return [Reply((2,), ends=state.hidden == 1) for state in states]

    env = TokenEnv(ragged(Ends(weights=(0.5, 0.5))))
    env.reset(options={"prompt_index": 0})
    env.set_state(replace(env.get_state(), hidden=0))
    env.step(5)
    assert env.task.turns.beliefs(env.get_state()).tolist() == [1.0, 0.0]


def test_a_conversation_that_is_too_large_is_refused_before_it_is_built():
    task = ragged(most=1, tokens=8)
    # Of six words one ends a turn: 9 prompts, then 9 x 6, 9 x 5 x 6, ... 9 x 5^7 x 6 states.
    least = len(task.encoded("train")) * (1 + sum(6 * 5**k for k in range(8)))
    with pytest.raises(UnsolvableError, match=f"at least {least:,} states"):
        prefix_tree(task, max_states=least - 1)


def test_a_seed_can_be_played_and_neither_solved_nor_searched():
    task = ragged(Echo(weights=None))
    env = TokenEnv(replace(task, turns=replace(task.turns, responder=Seeded())))
    env.reset(seed=0)
    env.step(5)
    with pytest.raises(ValueError, match="what is hidden is a seed"):
        env.task.turns.redraw(env.get_state(), np.random.default_rng(0))
    with pytest.raises(UnsolvableError, match="what its environment hides is a seed"):
        solve(env.task)
    assert optimum_of(env.task).value is None
    assert "overstate" in str(optimum_of(env.task))
    with pytest.raises(ValueError, match="a search takes episodes of one turn"):
        Tree(env)


class Seeded(Echo):
    """Says one of two things by the hidden seed and the number of the turn."""

    def weights(self, prompt):
        return None

    def replies(self, states):
        return [Reply((int(np.random.default_rng([state.hidden, state.replies]).integers(2)),)) for state in states]


class Always:
    """Writes one token, whatever it sees, with a probability of nearly 1."""

    def __init__(self, token, size):
        self._row = np.full(size, -40.0)
        self._row[token] = 0.0

    def log_probs(self, observation):
        return np.tile(self._row, (len(observation["input_ids"]), 1))


def test_a_deterministic_policy_leaves_its_chance_to_the_environment():
    task = make_task("Calculator", difficulty=3)
    names = [task.vocabulary.token_text(token) for token in range(task.vocabulary.size)]
    policy = Always(names.index("6"), len(names))
    drawn, greedy = (evaluate(policy, task, per_prompt=4, deterministic=each) for each in (False, True))
    assert drawn.exact
    assert greedy.exact
    assert drawn.reward.mean == pytest.approx(2 / 27)  # 6 is the sum or the product of two of 27 pairs
    assert greedy.reward.mean == pytest.approx(drawn.reward.mean)


class Repeats:
    """Answers "b" to everything; whether the episode ends with it is hidden."""

    def __init__(self, ends):
        self._ends = ends

    def weights(self, prompt):
        return (0.5, 0.5)

    def replies(self, states):
        return [Reply((1,), ends=state.hidden == self._ends) for state in states]


@pytest.mark.parametrize("ends", [0, 1])
def test_a_state_in_which_the_policy_moves_is_told_from_one_that_has_ended(ends):
    options = {"prompts": ["a"], "tokenizer": ["a", "b", "<end>"], "stop": "<end>", "turns": 2, "turn_tokens": 1}
    counts = lambda prompts, completions, **columns: [float(len(each)) for each in completions]  # noqa: E731
    task = make_task("Text", responder=lambda asked: ["b"] * len(asked), reply_tokens=1, reward=counts, **options)
    task = replace(task, turns=replace(task.turns, responder=Repeats(ends)))
    seen = {"input_ids": np.array([[0, 0, 1]]), "attention_mask": np.ones((1, 3), dtype=np.int8)}
    found = solve(task, beta=0.1).log_probs(seen)[0]
    assert np.exp(found[:2]) == pytest.approx([0.5, 0.5], abs=1e-3)  # one more letter, whichever it is


class StaysOrLeaves:
    """Says c either way; with 0 hidden it is gone then."""

    def weights(self, prompt):
        return (0.5, 0.5)

    def replies(self, states):
        return [Reply((2,), ends=state.hidden == 0) for state in states]


def hidden_task(responder, most, pay):
    base = make_task(
        "Text", prompts=["a"], tokenizer=["a", "b", "c", "<end>"], stop="<end>", max_new_tokens=2, reward="length"
    )
    turns = Turns(responder, most=most, tokens=1, reply_tokens=1, farewell=False)
    return replace(base, turns=turns, max_new_tokens=turns.room, reward=pay, gold=None)


def test_a_reply_that_may_end_or_not_leads_where_it_goes_on():
    def pay(prompts, completions, **columns):
        return [float(text.split().count("b")) for text in completions]

    task = hidden_task(StaysOrLeaves(), 2, pay)
    solution, env = solve(task), TokenEnv(task)
    for seed in range(20):
        env.reset(seed=seed)
        if not env.step(0)[2]:
            break
    state = env.get_state()
    depth, row = solution.tree.find(0, state.completion, state.environment)
    assert not solution.tree.levels[depth].finished[row]
    shown = {name: each[None] for name, each in env.set_state(state).items()}
    assert solution.values[depth][row] == pytest.approx(solution.state_values(shown)[0])
    env.step(1)
    state = env.get_state()
    solution.tree.find(0, state.completion, state.environment)


class Luck:
    """Answers a with a or b by chance, and all else with c."""

    def weights(self, prompt):
        return (0.5, 0.5)

    def replies(self, states):
        return [Reply(((0, 1)[state.hidden] if state.turn[0] == 0 else 2,)) for state in states]


def test_at_beta_0_chance_averages_what_the_reference_gets_wrong_as_in_the_limit():
    # After a and the reply b only a is right, of three words and the stop token; else everything is.
    def pay(prompts, completions, turns, **columns):
        words = [[text.strip() for _, text in said] for said in turns]
        return [float(len(own) > 2 and own[0] in ("a", "b") and (own[1] != "b" or own[2] == "a")) for own in words]

    task = hidden_task(Luck(), 2, pay)
    found = {beta: np.exp(solve(task, beta=beta).log_policy[0][:2]) for beta in (0.0, 1e-4)}
    # V_beta = 1 + beta E[log mass]: log 1/4 half of the time, so that a weighs sqrt(1/4) of b.
    np.testing.assert_allclose(found[0.0], [1 / 3, 2 / 3], atol=1e-12)
    np.testing.assert_allclose(found[1e-4], found[0.0], atol=1e-9)
