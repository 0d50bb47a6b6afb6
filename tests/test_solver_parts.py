"""The steps of the solver on one level written by hand, and what a tree says of its own states."""

import math
from dataclasses import replace

import numpy as np
import pytest
from core_tools import word_task
from solver_tools import Table, bigram, completions, small_task
from turn_tools import ragged

from textgym import TokenEnv, make_task
from textgym.evaluate import evaluate
from textgym.lm.reference import NGramReference
from textgym.solver import policy_values, prefix_tree, solve, trajectory_probabilities
from textgym.solver.build import legal_tokens
from textgym.solver.solution import Lookup, hard_backup, soft_backup
from textgym.solver.tree import Level, count_states, log_sum, normalised, per_edge, per_state
from textgym.state import TokenState

INF = np.inf


def level_of(*children):
    """A level whose states have so many children; those with none have ended."""
    counts, none = np.array(children), np.zeros(len(children), dtype=np.int64)
    return Level(none, none, counts == 0, np.cumsum([0, *counts]), np.zeros(len(children)))


def test_states_are_counted_level_by_level():
    # 2 prompts; 2 * (3 + 1) after a token; 6 of them go on: 6 * 4.
    assert count_states(2, 3, 1, 0) == 2
    assert count_states(2, 3, 1, 1) == 10
    assert count_states(2, 3, 1, 2) == 34
    assert count_states(2, 0, 2, 5) == 6


def test_sums_of_the_edges_of_running_states():
    level = level_of(2, 0, 1)
    assert level.running.tolist() == [0, 2]
    assert per_state(np.array([1.0, 4.0, 8.0]), level, np.add).tolist() == [5.0, 8.0]
    assert per_state(np.array([1.0, 4.0, 8.0]), level, np.maximum).tolist() == [4.0, 8.0]
    assert per_edge(np.array([3.0, 7.0]), level).tolist() == [3.0, 3.0, 7.0]
    np.testing.assert_allclose(log_sum(np.log([1.0, 3.0, 0.5]), level), np.log([4.0, 0.5]))
    np.testing.assert_allclose(log_sum(np.log([1.0, 3.0, 0.5]) - 2000, level), np.log([4.0, 0.5]) - 2000)
    assert log_sum(np.array([-INF, -INF, 0.0]), level).tolist() == [-INF, 0.0]
    np.testing.assert_allclose(normalised(np.log([1.0, 3.0, 0.5]), level), np.log([0.25, 0.75, 1.0]))
    assert normalised(np.array([-INF, -INF, 5.0]), level).tolist() == [-INF, -INF, 0.0]


def test_a_soft_step_by_hand():
    # ref 1/4 and 3/4, Q 2 and 0, beta 2: Z = e / 4 + 3 / 4; behind the second state there is no way on.
    level, logs = level_of(2, 2, 1), np.log([0.25, 0.75, 0.5, 0.5, 1.0])
    values, policy = soft_backup(np.array([2.0, 0.0, -INF, -INF, -3.0]), logs, level, 2.0)
    total = math.e / 4 + 3 / 4
    np.testing.assert_allclose(values, [2 * math.log(total), -INF, -3.0])
    np.testing.assert_allclose(policy, np.log([math.e / 4 / total, 0.75 / total, 0.5, 0.5, 1.0]))


def test_a_soft_step_leaves_out_what_the_reference_never_does():
    with np.errstate(divide="ignore"):
        logs = np.log([0.0, 0.5, 0.5, 0.0, 0.0, 0.0])
    values, policy = soft_backup(np.array([1e300, 1.0, -INF, 1.0, 2.0, 3.0]), logs, level_of(3, 3), 0.5)
    np.testing.assert_allclose(values, [1.0 + 0.5 * math.log(0.5), -INF])
    np.testing.assert_allclose(np.exp(policy), [0.0, 1.0, 0.0, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("beta", [1e9, 1e12])
def test_a_large_beta_keeps_the_mean_of_the_reference(beta):
    # V = E[Q] + Var[Q] / (2 beta): the logs of Z are next to 0.
    # What the reference never does changes nothing, whatever it would bring.
    with np.errstate(divide="ignore"):
        logs = np.log([0.25, 0.75, 0.25, 0.75, 0.0])
    values, _ = soft_backup(np.array([2.0, 0.0, 2.0, 0.0, 1e20]), logs, level_of(2, 3), beta)
    np.testing.assert_allclose(values, [0.5, 0.5], atol=1e-6)


def test_a_soft_step_loses_what_leads_nowhere():
    # Half of the reference goes where nothing goes on: Z = e^(1 / beta) / 2.
    values, policy = soft_backup(np.array([1.0, -INF]), np.log([0.5, 0.5]), level_of(2), 0.5)
    assert values[0] == pytest.approx(1 + 0.5 * math.log(0.5), abs=1e-15)
    assert policy.tolist() == [0.0, -INF]


def test_a_small_beta_takes_the_greatest():
    values, policy = soft_backup(np.array([-4.0, 5.0]), np.log([0.999, 0.001]), level_of(2), 1e-3)
    assert values[0] == pytest.approx(5 + 1e-3 * math.log(0.001), abs=1e-12)
    np.testing.assert_allclose(np.exp(policy), [0, 1], atol=1e-300)


def test_a_hard_step_by_hand():
    # Equal best actions share as ref * mass: 0.2 * 1 and 0.3 * 0.5. A best one that ref never takes gets nothing.
    level = level_of(3, 2, 2)
    with np.errstate(divide="ignore"):
        logs = np.log([0.2, 0.3, 0.5, 0.0, 1.0, 0.0, 0.0])
    mass = np.log([1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0])
    with np.errstate(invalid="raise"):
        values, total, policy = hard_backup(np.array([4.0, 4.0, 3.0, 1.0, 1.0, 2.0, 2.0]), logs, mass, level)
    assert values.tolist() == [4.0, 1.0, 2.0]
    np.testing.assert_allclose(np.exp(total), [0.35, 1.0, 0.0])
    np.testing.assert_allclose(np.exp(policy), [0.2 / 0.35, 0.15 / 0.35, 0.0, 0.0, 1.0, 0.5, 0.5])
    # Where ref takes no best action, the worse one gets nothing either.
    _, _, policy = hard_backup(np.array([1.0, 0.0]), np.array([-INF, 0.0]), np.zeros(2), level_of(2))
    assert policy.tolist() == [0.0, -INF]


@pytest.mark.parametrize(
    ("size", "gap", "equal"),
    [(1.0, 5e-13, True), (1.0, 5e-12, False), (1e6, 5e-7, True), (1e-6, 5e-13, True), (1.0, 1e-12, True)],
)
def test_ties_are_told_by_the_size_of_the_values(size, gap, equal):
    _, _, policy = hard_backup(np.array([size, size - gap]), np.log([0.5, 0.5]), np.zeros(2), level_of(2))
    np.testing.assert_allclose(np.exp(policy), [0.5, 0.5] if equal else [1.0, 0.0])


def test_a_tree_knows_its_states():
    tree = prefix_tree(small_task())
    assert [len(level.parent) for level in tree.levels] == [2, 8, 24, 72]
    assert tree.states == 106
    for depth, level in enumerate(tree.levels):
        rows = np.arange(len(level.parent))
        for row, tokens in zip(rows, tree.completions(depth, rows), strict=True):
            assert tree.find(int(tree.prompt_of[depth][row]), tuple(tokens.tolist())) == (depth, row)
    assert tree.move_text(2) == "c"
    with pytest.raises(KeyError, match="move 1 is not legal"):
        tree.find(0, (3, 1))


def test_edges_of_some_rows_and_where_they_leave():
    tree = prefix_tree(small_task())
    where, place = tree.edges(1, np.array([1, 2, 4]))  # row 3 has ended
    assert (where.start, where.stop) == (4, 16)
    assert place.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [batch.tolist() for batch in tree.batches(1)] == [[0, 1, 2, 4, 5, 6]]


def test_batches_are_cut(monkeypatch):
    monkeypatch.setattr("textgym.solver.tree._ROWS_AT_ONCE", 4)
    tree = prefix_tree(small_task())
    assert [batch.tolist() for batch in tree.batches(1)] == [[0, 1, 2, 4], [5, 6]]
    whole = policy_values(small_task(), Table(1), bigram())
    assert policy_values(tree, Table(1), bigram()).objective == pytest.approx(whole.objective, abs=1e-14)


def test_observations_are_prompt_and_completion_and_nothing_behind():
    tree = prefix_tree(small_task())
    depth, row = tree.find(1, (1, 2))
    seen = tree.observations(depth, np.array([row]))
    pad = tree.task.vocabulary.pad_id
    assert seen["input_ids"].tolist() == [[1, 2, 1, 2, pad]]
    assert seen["attention_mask"].tolist() == [[1, 1, 1, 1, 0]]
    assert seen["segment_ids"].tolist()[0][:2] != seen["segment_ids"].tolist()[0][2:4]
    depths, rows = Lookup(tree).locate(seen)
    assert (depths.tolist(), rows.tolist()) == ([depth], [row])


def test_every_state_is_found_again_by_its_observation():
    tree = prefix_tree(small_task())
    lookup = Lookup(tree)
    for depth, level in enumerate(tree.levels):
        rows = np.arange(len(level.parent))
        depths, found = lookup.locate(tree.observations(depth, rows))
        assert (depths == depth).all()
        assert found.tolist() == rows.tolist()
    # Longer than any state of the tree, and of a prompt that there is not.
    for ids in ([0, 1, 1, 1, 1], [2, 1, 1, 1, 0]):
        with pytest.raises(ValueError, match="no state that legal actions reach"):
            lookup.locate({"input_ids": np.array([ids]), "attention_mask": np.ones((1, 5), dtype=np.int8)})


def test_advantages_where_the_policy_cannot_go_and_where_kl_is_infinite():
    only_a, never_a = (NGramReference(np.tile(row, (4, 1))) for row in ([1.0, 0, 0, 0], [0, 0.5, 0.3, 0.2]))
    values = policy_values(small_task(), only_a, never_a)
    assert np.isneginf(values.values[0]).all()
    assert np.isnan(values.advantages[0]).any()
    free = policy_values(small_task(), only_a, never_a, beta=0.0)
    assert np.isfinite(np.concatenate(free.advantages)).all()
    for depth, level in enumerate(free.tree.levels[:-1]):
        want = free.action_values[depth] - per_edge(free.values[depth][level.running], level)
        np.testing.assert_allclose(free.advantages[depth], want)
    # What the policy never does and the reference does would save it all the KL; what neither does has no worth.
    spared = policy_values(small_task(max_new_tokens=1), never_a, bigram())
    assert (spared.advantages[0][[0, 4]] == INF).all()
    assert np.isfinite(np.delete(spared.advantages[0], [0, 4])).all()
    both = policy_values(small_task(max_new_tokens=1), never_a, never_a)
    assert np.isneginf(both.advantages[0][[0, 4]]).all()


def test_a_policy_that_stops_on_the_way_is_refused_only_where_it_comes():
    class Stuck:
        def __init__(self, at):
            self.at = at

        def log_probs(self, observation):
            shown = observation["input_ids"][:, 1]
            long = (observation["attention_mask"].sum(1) == 2) & (observation["input_ids"][:, 0] == 0)
            table = np.tile(np.log([0.5, 1e-300, 0.3, 0.2]), (len(shown), 1))
            table[:, 1] = -INF  # it never says b
            table[long & (shown == self.at)] = -INF
            return table

    task = small_task(max_new_tokens=2)
    assert np.isfinite(policy_values(task, Stuck(1), bigram()).objective)
    with pytest.raises(ValueError, match=r"after the tokens \(0,\) it gives no legal action any probability"):
        policy_values(task, Stuck(0), bigram())


def test_arrays_of_values_can_be_changed_one_by_one():
    values = policy_values(small_task(), Table(1), bigram())
    arrays = values.prompt_returns, values.prompt_kl, values.prompt_entropy, values.prompt_lengths
    assert not any(
        np.shares_memory(one, other) for one in arrays for other in (*arrays, *values.values) if one is not other
    )


def test_trajectories_without_a_reference_have_no_ratio():
    every = trajectory_probabilities(small_task(gamma=0.5), Table(7))
    assert np.isnan(every.log_ratio).all()
    assert every.length.tolist() == sorted(every.length.tolist())
    assert len(every.likeliest(0, 100)) == len(list(completions()))
    assert len(every.likeliest(0, 3)) == 3


def test_the_optimality_of_a_solution():
    solution = solve(small_task(), bigram())
    best, base = solution.objective, solution.reference_objective
    assert solution.optimality(base + 0.25 * (best - base)) == pytest.approx(0.25)
    flat = solve(small_task(reward=lambda prompts, completions, **_: [1.0] * len(prompts)), bigram())
    assert math.isnan(flat.optimality(2.0)) or abs(flat.objective - flat.reference_objective) > 0


def test_a_word_task_of_one_token_has_two_levels():
    tree = prefix_tree(word_task(max_new_tokens=1))
    assert len(tree.levels) == 2
    assert tree.levels[1].finished.all()


def test_moves_of_the_environment_are_whole_replies():
    tree = prefix_tree(make_task("TwentyQuestions", difficulty=1))
    vocabulary = tree.task.vocabulary
    assert tree.replies
    for number, reply in enumerate(tree.replies):
        assert tree.move_text(vocabulary.size + number) == vocabulary.decode([list(reply)])[0]
    assert tree.move_text(vocabulary.size - 1) == vocabulary.token_text(vocabulary.size - 1)


def test_the_policy_of_a_conversation_earns_what_its_values_say():
    for beta in (0.05, 0.0):
        solution = solve(make_task("TwentyQuestions", difficulty=2), beta=beta)
        assert solution.optimal.objective == pytest.approx(solution.objective, abs=1e-12)
        assert solution.objective > solution.reference_objective + 0.1


def test_the_split_is_the_environment_s_where_none_is_named():
    env = TokenEnv(word_task(), split="eval")
    assert prefix_tree(env).split == "eval"
    assert prefix_tree(env, "train").split == "train"
    assert prefix_tree(word_task()).split == "train"
    assert prefix_tree(word_task(), "eval").split == "eval"


def test_two_prompts_of_which_one_begins_with_the_other():
    task = make_task("Text", prompts=["b", "b a"], tokenizer=["a", "b", "<end>"], stop="<end>", max_new_tokens=2)
    lookup = Lookup(prefix_tree(task))
    for ids in ([1, 0], [1, 0, 1]):
        with pytest.raises(ValueError, match="two states of this task look like it"):
            lookup.locate({"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), dtype=np.int8)})
    depths, rows = lookup.locate({"input_ids": np.array([[1, 1]]), "attention_mask": np.ones((1, 2), dtype=np.int8)})
    assert (depths.tolist(), rows.tolist()) == ([1], [1])


@pytest.mark.long
def test_the_policy_of_a_conversation_with_turns_of_any_length():
    solution = solve(ragged(most=2, tokens=2), beta=0.1)
    levels = [level for level in solution.tree.levels if level.environment is not None]
    assert any(not level.environment[level.running].all() for level in levels)
    assert solution.optimal.objective == pytest.approx(solution.objective, abs=1e-12)
    assert solution.objective > solution.reference_objective + 0.01


def test_a_mask_that_leaves_nothing_in_one_state_of_two():
    states = [TokenState(small_task().encoded("train")[row]) for row in (0, 1)]
    task = small_task(mask=lambda states: np.array([[row == 0] * 4 for row in range(len(states))]))
    assert legal_tokens(task, states[:1]).tolist() == [[True] * 4]
    with pytest.raises(ValueError, match="leaves no token at all"):
        legal_tokens(task, states)


def test_states_of_a_conversation_are_found_by_what_was_written():
    tree = prefix_tree(make_task("TwentyQuestions", difficulty=2))
    for depth, level in enumerate(tree.levels):
        rows = np.arange(len(level.parent))
        for row, tokens, places in zip(rows, *tree.written(depth, rows), strict=True):
            assert tree.find(int(tree.prompt_of[depth][row]), tuple(tokens), places) == (depth, row)


@pytest.mark.parametrize("turns", [None, 1])
def test_equal_prompts_with_other_data_look_alike_and_with_the_same_are_one(turns):
    options = {"prompts": ["a", "a"], "tokenizer": ["a", "b", "<end>"], "stop": "<end>", "max_new_tokens": 1}
    if turns is not None:
        options |= {"responder": lambda asked: ["b"] * len(asked), "turns": 1, "turn_tokens": 1, "reply_tokens": 1}
        del options["max_new_tokens"]
    seen = {"input_ids": np.array([[0]]), "attention_mask": np.ones((1, 1), dtype=np.int8)}
    for answers, alone in ((["a", "b"], False), (["b", "b"], True)):
        solution = solve(make_task("Text", columns={"answer": answers}, reward=right, **options), beta=0.1)
        if alone:
            assert solution.state_values(seen).shape == (1,)
            continue
        with pytest.raises(ValueError, match="is the same with other data"):
            solution.log_probs(seen)


def right(prompts, completions, answer, **columns):
    return [float(want in text) for want, text in zip(answer, completions, strict=True)]


def words_task(**options):
    return make_task(
        "Text", **{"tokenizer": ["a", "b", "<end>"], "stop": "<end>", "prompts": ["a"], "beta": 0.1} | options
    )


def test_rewards_that_the_discount_makes_small_are_no_ties():
    def last_is_b(prompts, completions, **columns):
        return [float(text.split()[11:] == ["b"]) for text in completions]

    solution = solve(words_task(max_new_tokens=12, reward=last_is_b, gamma=0.05), beta=0.0)
    assert solution.objective == pytest.approx(0.05**11, rel=1e-9)
    assert solution.optimal.objective == pytest.approx(solution.objective, rel=1e-9)
    np.testing.assert_allclose(np.exp(solution.log_policy[11][:3]), [0, 1, 0])


@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("row", [[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.34, 0.33, 0.33]])
def test_where_everything_is_paid_alike_there_is_no_optimality(tokens, row):
    reference, policy = (NGramReference(np.array([each] * 3)) for each in (row, [0.6, 0.2, 0.2]))
    task = words_task(
        max_new_tokens=tokens, reference=reference, reward=lambda prompts, completions, **columns: [0.1] * len(prompts)
    )
    solution = solve(task)
    assert math.isnan(solution.optimality(policy_values(task, policy).objective))
    assert evaluate(policy, task).optimality is None


@pytest.mark.parametrize("gap", [1.0, 1e-10])
def test_prompts_that_differ_in_an_entry_of_long_data_are_two(gap):
    def pay(prompts, completions, want, **columns):
        return [float(("b" if each[1500] else "a") in text) for each, text in zip(want, completions, strict=True)]

    want = [np.zeros(3000), np.zeros(3000)]
    want[1][1500] = gap
    task = words_task(prompts=["a", "a"], max_new_tokens=1, columns={"want": want}, reward=pay)
    seen = {"input_ids": np.array([[0]]), "attention_mask": np.ones((1, 1), dtype=np.int8)}
    with pytest.raises(ValueError, match="is the same with other data"):
        solve(task).log_probs(seen)


def test_an_observation_may_be_narrower_than_another_prompt():
    solution = solve(words_task(prompts=["a", "b a a"], max_new_tokens=2, reward="length"))
    found = []
    for width in (2, 3, 5):
        ids, mask = np.zeros((1, width), dtype=np.int64), np.zeros((1, width), dtype=np.int8)
        ids[0, :2], mask[0, :2] = (0, 1), 1
        found.append(solution.log_probs({"input_ids": ids, "attention_mask": mask}))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_a_reference_that_cannot_go_on_is_named_as_such():
    def mask(states):
        allowed = np.ones((len(states), 3), dtype=np.bool_)
        allowed[[state.tokens[-1:] == (1,) for state in states], :2] = False
        return allowed

    reference = NGramReference(np.array([[0.4, 0.4, 0.2], [0.5, 0.5, 0.0], [0.4, 0.4, 0.2]]))
    task = replace(words_task(max_new_tokens=2, reward="length", reference=reference), mask=mask)
    with pytest.raises(ValueError, match=r"^reference: after the tokens \(1,\)"):
        solve(task).optimality(0.0)


def test_a_prompt_that_the_reference_cannot_finish_is_named():
    reference = NGramReference(np.array([[0.4, 0.4, 0.2], [0.5, 0.5, 0.0], [0.4, 0.4, 0.2]]))
    task = words_task(prompts=["a", "b", "b a"], max_new_tokens=1, reward="length", reference=reference)
    task = replace(task, mask=lambda states: np.tile([False, False, True], (len(states), 1)))
    with pytest.raises(ValueError, match="every legal completion of prompt 'b' the probability 0"):
        solve(task)
