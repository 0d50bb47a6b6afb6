"""The tree view: its states, rewards and values against the environment and the solver, and what it leaves alone."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from solver_tools import Answers, Paid, bigram, completions, odd_grammar, score, small_task

from textgym import TokenEnv, make_task, task_names
from textgym.lm.reference import UniformReference
from textgym.planning import Tree
from textgym.solver import solve
from textgym.task import task_entry


def walk(node):
    for child in node.children:
        yield child
        yield from walk(child)


def test_the_leaves_are_all_completions_with_their_scores():
    task = small_task(gamma=0.5)
    env = TokenEnv(task)
    env.reset(options={"prompt_index": 1})
    leaves = {node.state.completion: node.ret for node in walk(Tree(env).root) if node.finished}
    assert leaves == pytest.approx({y: score(task, task.encoded("train")[1], y) for y in completions()})


@pytest.mark.parametrize("pay", ["end", "every", "difference"])
@pytest.mark.parametrize("mask", [None, odd_grammar])
def test_every_move_is_a_step_of_the_environment(pay, mask):
    task = small_task(reward=Paid(pay), mask=mask)
    env, other = TokenEnv(task), TokenEnv(task)
    env.reset(options={"prompt_index": 0})
    for node in walk(Tree(env).root):
        other.reset(options={"prompt_index": 0})
        for token in node.state.completion:
            assert other.action_masks()[token]
            _, reward, terminated, _, _ = other.step(token)
        assert node.token == node.state.completion[-1]
        assert (other.get_state(), reward, terminated) == (node.state, node.reward, node.finished)


def test_it_disturbs_nothing():
    task = small_task(gold="length")
    env = TokenEnv(task)
    env.reset(seed=3)
    env.step(1)
    before = (env.get_state(), env.np_random.bit_generator.state, task.scorer.state_dict())
    root = Tree(env).root
    assert len(list(walk(root))) == 4 + 3 * 4
    assert (env.get_state(), env.np_random.bit_generator.state, task.scorer.state_dict()) == before
    _, reward, _, _, _ = env.step(3)
    assert reward == root.child(3).reward


def test_a_failing_reward_leaves_the_episode_and_the_counts_alone():
    def fails(prompts, completions, **columns):
        raise RuntimeError("no")

    env = TokenEnv(small_task(reward=fails))
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(Exception, match="no"):
        _ = Tree(env).root.children
    assert env.get_state() == before
    assert env.task.scorer.scored == 0


def test_best_by_the_solver_is_the_greedy_optimum():
    task, reference = small_task(), bigram()
    env = TokenEnv(task)
    solution = solve(env, reference, beta=0.0)
    for index in (0, 1):
        env.reset(options={"prompt_index": index})
        node = Tree(env).root
        while not node.finished:
            node, value = node.best(1, solution)[0]
            assert value == pytest.approx(solution.prompt_values[index])
        assert node.ret == pytest.approx(solution.prompt_values[index])


def test_best_by_log_probs_and_by_a_function():
    env = TokenEnv(small_task())
    env.reset(options={"prompt_index": 0})
    env.step(2)
    root, reference = Tree(env).root, bigram()
    found = root.best(4, reference)
    ids = np.array([root.state.tokens])
    row = reference.log_probs({"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    assert [node.token for node, _ in found] == np.argsort(-row).tolist()
    assert [value for _, value in found] == pytest.approx(np.sort(row)[::-1].tolist())
    assert [node.token for node, _ in root.best(2, lambda nodes: [n.token % 3 for n in nodes])] == [2, 1]


@pytest.mark.parametrize("mask", [None, odd_grammar])
def test_best_leaves_are_exact_where_nothing_is_cut(mask):
    task, reference = small_task(mask=mask), bigram()
    env = TokenEnv(task)
    env.reset(options={"prompt_index": 0})
    root = Tree(env).root
    if mask is None:
        want = sorted((score(task, root.state.prompt, y) for y in completions()), reverse=True)[:5]
        assert [value for _, value in root.best_leaves(5, width=1000)] == pytest.approx(want)
    likeliest = solve(task, reference).reference.trajectories.likeliest(0, 5)
    found = root.best_leaves(5, reference, width=1000)
    assert [node.state.completion for node, _ in found] == [item.tokens for item in likeliest]
    assert np.exp([value for _, value in found]) == pytest.approx([item.probability for item in likeliest])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in task_names() if task_entry(name).family != "turns"])
def test_any_registered_task(name):
    options = {"prompts": ["Hello."], "reward": "length", "max_new_tokens": 3} if name == "Text" else {}
    env = gym.make(f"textgym/{name}-v0", **options)
    env.reset(seed=0)
    tree = Tree(env)
    task, root = tree.task, tree.root
    assert [node.token for node in root.children] == np.flatnonzero(env.unwrapped.action_masks()).tolist()
    leaf, _ = root.best_leaves(1, UniformReference(task.vocabulary.allowed), width=2)[0]
    total, done = 0.0, False
    for token in leaf.state.completion:
        assert not done
        _, reward, done, _, _ = env.step(token)
        total += reward
    assert done
    assert leaf.ret == pytest.approx(total)


def test_more_children_than_are_paid_at_once():
    env = gym.make("textgym/Bandit-v0", difficulty=10)
    env.reset(seed=0)
    root = Tree(env).root
    assert [node.reward for node in root.children] == pytest.approx([i / 1023 for i in range(1024)])
    assert [node.token for node, _ in root.best(2)] == [1023, 1022]


def test_a_narrow_beam_cuts():
    """`near` pays at once and hides the single string that pays more: the width decides whether it is found."""
    env = gym.make("textgym/Deceptive-v0", difficulty=4)
    env.reset(seed=0)
    root = Tree(env).root

    def nears(nodes):
        return [node.ret if node.finished else node.text.split().count("near") for node in nodes]

    assert root.best_leaves(1, nears, width=1)[0][1] == 0.5
    assert root.best_leaves(1, nears, width=16)[0][1] == 1.0


def test_bad_arguments_say_so():
    env = TokenEnv(small_task())
    with pytest.raises(ResetNeeded):
        _ = Tree(env).root
    env.reset(seed=0)
    root = Tree(env).root
    with pytest.raises(TypeError, match="env="):
        Tree(gym.make_vec("textgym/Bandit-v0", num_envs=2))
    with pytest.raises(TypeError, match="by=3"):
        root.best(1, 3)
    with pytest.raises(ValueError, match="count=0"):
        root.best(0)
    with pytest.raises(ValueError, match="width=2"):
        root.best_leaves(3, width=2)
    with pytest.raises(ValueError, match="allowed are 4 numbers"):
        root.best(1, lambda nodes: [0.0])
    with pytest.raises(ValueError, match="token=77"):
        root.child(77)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (None, TypeError, "by=.*gives no log-probabilities"),
        (np.zeros((1, 2)), ValueError, r"by: log_probs returned shape \(1, 2\), allowed is \(1, "),
        (np.full((1, 4), np.nan), ValueError, "by: log_probs holds NaN"),
        (np.full((1, 4), np.inf), ValueError, "by: log_probs holds NaN or \\+inf"),
    ],
)
def test_bad_log_probabilities_say_so(table, error, message):
    env = TokenEnv(small_task())
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        Tree(env).root.best(1, Answers(table))


def test_a_solution_of_another_split_knows_no_prompt_of_this_one():
    env = TokenEnv(make_task("Copy", difficulty=2))  # of the split "train"
    solution = solve(env.task, split="eval")
    for index in (3, 20):  # the second is behind the last prompt of "eval"
        env.reset(options={"prompt_index": index})
        with pytest.raises(ValueError, match="by: the solution does not know prompt 'copy"):
            Tree(env).root.best(1, solution)


@pytest.mark.parametrize("value", [3.0, -np.log(7), -800.0, 0])
def test_a_plan_normalises_over_the_legal_tokens_as_sampling_and_the_solver_do(value):
    env = TokenEnv("Stop")  # 7 ids, of which 3 are ever legal
    env.reset(seed=0)
    policy = Answers(np.full((1, 7), value))
    (best,) = Tree(env).root.best_leaves(1, policy)
    assert best[1] == pytest.approx(-np.log(3))
