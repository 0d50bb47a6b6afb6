"""The optimum of small token MDPs, against listing every completion and against its own equations."""

import time

import gymnasium as gym
import numpy as np
import pytest
from core_tools import odd_after_even, seed_noise, word_task
from solver_tools import Paid, bigram, completions, log_probability, score, small_task, soft_optimum, uneven

from textgym import make_task
from textgym.env import TokenEnv
from textgym.lm.reference import NGramReference, UniformReference
from textgym.rewards import TextGymWarning
from textgym.rewards.compose import RunningNorm
from textgym.solver import UnsolvableError, build, policy_values, prefix_tree, solve, trajectory_probabilities


def probabilities(solution):
    """(prompt, tokens) -> probability under the optimum."""
    every = solution.optimal.trajectories
    return {(c.prompt, c.tokens): c.probability for p in (0, 1) for c in every.likeliest(p, len(every.prompt))}


@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("beta", [0.05, 0.4, 20.0])
def test_the_optimum_is_gibbs_with_the_discounted_return(beta, gamma):
    task, reference = small_task(gamma=gamma), bigram()
    solution = solve(task, reference, beta=beta)
    got, wanted_mean = probabilities(solution), 0.0
    for index, (prompt, weight) in enumerate(zip(task.encoded("train"), [0.25, 0.75], strict=True)):
        value, gibbs = soft_optimum(task, reference, prompt, beta)
        assert solution.prompt_values[index] == pytest.approx(value, abs=1e-12)
        for tokens, probability in gibbs.items():
            assert got[index, tokens] == pytest.approx(probability, abs=1e-12, rel=1e-10)
        wanted_mean += weight * value
    assert solution.objective == pytest.approx(wanted_mean, abs=1e-12)
    assert len(got) == 2 * len(list(completions()))


def test_hand_arithmetic():
    # One token of two, uniform, rewards 1 and 0, beta 0.5: V = 0.5 log((e^2 + 1) / 2), pi(a) = e^2 / (e^2 + 1).
    def first(prompts, completions, **columns):
        return [float(text == "a") for text in completions]

    task = small_task(reward=first, max_new_tokens=1)
    mask = np.array([True, True, False, False])
    solution = solve(task, UniformReference(mask), beta=0.5)
    assert solution.prompt_values[0] == pytest.approx(0.5 * np.log((np.exp(2) + 1) / 2), abs=1e-14)
    assert np.exp(solution.log_policy[0][0]) == pytest.approx(np.exp(2) / (np.exp(2) + 1), abs=1e-14)
    assert solution.reference_objective == pytest.approx(0.5)
    assert solve(task, UniformReference(mask), beta=0).objective == 1.0


@pytest.mark.parametrize("beta", [0.0, 1e-3, 0.4, 1e4])
def test_bellman_residual(beta):
    tree = prefix_tree(small_task(gamma=0.9))
    solution = solve(tree, bigram(1), beta=beta)
    for depth, level in enumerate(tree.levels[:-1]):
        below = tree.levels[depth + 1]
        for row in np.flatnonzero(~level.finished):
            edges = slice(level.first[row], level.first[row + 1])
            q = 0.9**depth * below.reward[edges] + solution.values[depth + 1][edges]
            np.testing.assert_allclose(solution.action_values[depth][edges], q, atol=1e-12)
            if beta == 0:
                value = q.max()
            else:
                reference = np.exp(solution.log_reference[depth][edges])
                value = q.max() + beta * np.log1p(reference @ np.expm1((q - q.max()) / beta))
            assert abs(solution.values[depth][row] - value) < 1e-12


def test_small_beta_recovers_argmax():
    task, reference = small_task(), bigram()
    best = [max(score(task, prompt, y) for y in completions()) for prompt in task.encoded("train")]
    hard, soft = solve(task, reference, beta=0), solve(task, reference, beta=1e-4)
    np.testing.assert_allclose(hard.prompt_values, best)
    # ref(best) exp(best / beta) <= Z <= exp(best / beta), and no best completion is rarer than exp(-20).
    np.testing.assert_allclose(soft.prompt_values, best, atol=20 * 1e-4)
    for own, other in zip(hard.log_policy, soft.log_policy, strict=True):
        np.testing.assert_allclose(np.exp(own), np.exp(other), atol=1e-12)


def test_equal_optima_share_as_the_reference_has_them():
    # a and b are equally good first tokens, but after b the reference misses the right second one half the time.
    def two_ways(prompts, completions, **columns):
        return [float(text in ("a a", "b b")) for text in completions]

    table = np.zeros((4, 4))
    table[:] = [0.5, 0.5, 0, 0]
    table[0], table[2] = [1.0, 0, 0, 0], [0.3, 0.6, 0.1, 0]
    task = small_task(reward=two_ways, max_new_tokens=2)
    tree = prefix_tree(task)
    solution = solve(tree, NGramReference(table), beta=0)  # prompt 1 ends in c: 0.3 * 1 against 0.6 * 0.5
    assert np.exp(solution.log_policy[0][4:6]) == pytest.approx([0.5, 0.5])
    soft = solve(tree, NGramReference(table), beta=1e-3)
    np.testing.assert_allclose(np.exp(soft.log_policy[0]), np.exp(solution.log_policy[0]), atol=1e-12)


def test_large_beta_recovers_the_reference():
    task, reference = small_task(), bigram()
    solution = solve(task, reference, beta=1e9)
    for own, other in zip(solution.log_policy, solution.log_reference, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-8)
    # J* = J_ref + Var(R) / (2 beta) + ...: to see it the logarithm must not round.
    assert solution.objective == pytest.approx(solution.reference_objective, abs=1e-8)
    assert solution.objective > solution.reference_objective - 1e-12


@pytest.mark.parametrize(("pay", "gamma"), [("every", 1.0), ("every", 0.8), ("difference", 0.8)])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_dense_and_shaped_rewards_are_those_that_the_environment_pays(pay, gamma, beta):
    task = small_task(reward=Paid(pay, gamma), gamma=gamma)
    solution = solve(task, bigram(), beta=beta)
    env = TokenEnv(task)
    best = []
    for index, prompt in enumerate(task.encoded("train")):
        totals = {}
        for tokens in completions():
            env.reset(options={"prompt_index": index})
            totals[tokens] = sum(gamma**t * env.step(token)[1] for t, token in enumerate(tokens))
        logs = {y: log_probability(bigram(), prompt.ids, y) for y in totals}
        best.append(
            beta * np.log(sum(np.exp(logs[y] + r / beta) for y, r in totals.items())) if beta else max(totals.values())
        )
    np.testing.assert_allclose(solution.prompt_values, best, atol=1e-12)


def test_shaping_leaves_the_optimum_alone():
    plain, shaped = small_task(gamma=0.8), small_task(gamma=0.8, reward=Paid("difference", 0.8))
    a, b = solve(plain, bigram()), solve(shaped, bigram())
    np.testing.assert_allclose(a.prompt_values, b.prompt_values, atol=1e-12)
    for own, other in zip(a.log_policy, b.log_policy, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-10)


def test_masks_are_respected():
    task = word_task(mask=odd_after_even, max_new_tokens=3)
    tree = prefix_tree(task)
    # Even, odd, even ids of a A b c stop d, where stop (4) is even and ends: 3 prompts, 3 + 2 * 3 + 6 * 3 each.
    assert tree.states == 3 * (1 + 3 + 2 * 3 + 6 * 3)
    for depth, level in enumerate(tree.levels[1:]):
        assert (level.action % 2 == depth % 2).all()
    solution = solve(tree)
    assert solution.objective == pytest.approx(solve(task).objective)
    observation = tree.observations(0, np.array([0]))
    logs = solution.log_probs(observation)
    assert np.isneginf(logs[0, 1::2]).all()
    assert np.exp(logs).sum() == pytest.approx(1)
    # The uniform reference is normalised over the legal actions.
    np.testing.assert_allclose(np.exp(solution.log_reference[1]), 1 / 3)


def test_special_tokens_are_no_actions():
    words = ["a", "<pad>", "b", "<end>"]
    task = make_task("Text", prompts=["a"], tokenizer=words, stop="<end>", reward=uneven, max_new_tokens=2)
    tree = prefix_tree(task)
    assert tree.levels[1].action.tolist() == [0, 2, 3]
    assert tree.levels[1].finished.tolist() == [False, False, True]
    assert tree.levels[2].action.tolist() == [0, 2, 3, 0, 2, 3]
    assert tree.levels[2].finished.all()


def test_size_guard_counts_before_it_builds(monkeypatch):
    def forbidden(*_):
        raise AssertionError("memory was spent")

    monkeypatch.setattr(build, "_level", forbidden)
    # 2 prompts: 1 + 4 + 3 * 4 + 9 * 4 states each.
    with pytest.raises(ValueError, match=r"106 states, allowed is max_states=105.*optimum_of"):
        prefix_tree(small_task(), max_states=105)
    with pytest.raises(ValueError, match=r"about 10\^\d+ states"):
        solve(small_task(max_new_tokens=4000))
    monkeypatch.undo()
    assert prefix_tree(small_task(), max_states=106).states == 106


def test_size_guard_of_a_masked_task_stops_while_it_grows():
    calls = []

    def mask(states):
        calls.append(len(states))
        return odd_after_even(states)

    with pytest.raises(ValueError, match=r"at least .* states"):
        prefix_tree(word_task(mask=mask, max_new_tokens=8), max_states=1000)
    assert sum(calls) < 1000


def test_a_mask_that_leaves_nothing_is_an_error():
    with pytest.raises(ValueError, match="leaves no token"):
        prefix_tree(word_task(mask=lambda states: np.zeros((len(states), 6), dtype=bool)))


def test_environments_and_ids_can_be_solved():
    env = gym.make("textgym/Text-v0", task="Text", prompts=["a"], tokenizer=["a", "b"], reward=Paid("end"),
                   max_new_tokens=2, split="eval")  # fmt: skip
    solution = solve(env)
    assert solution.tree.split == "eval"
    assert solution.tree.states == 1 + 2 + 4
    with pytest.raises(TypeError, match="allowed are"):
        solve("Helpful")


def test_the_optimum_is_a_policy():
    task = small_task(gamma=0.9)
    tree = prefix_tree(task)
    solution = solve(tree, bigram())
    own = policy_values(tree, solution, bigram())
    assert own.objective == pytest.approx(solution.objective, abs=1e-12)
    for a, b in zip(own.values, solution.values, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    for advantages in own.advantages:
        np.testing.assert_allclose(advantages, 0, atol=1e-12)
    for depth, level in enumerate(tree.levels[:-1]):
        rows = np.arange(len(level.parent))
        np.testing.assert_array_equal(solution.state_values(tree.observations(depth, rows)), solution.values[depth])
    ended = tree.observations(1, np.flatnonzero(tree.levels[1].finished))
    np.testing.assert_allclose(np.exp(solution.log_probs(ended)), 0.25)
    assert solution.optimality(solution.objective) == 1
    assert solution.optimality(solution.reference_objective) == 0


def test_no_policy_beats_it():
    tree = prefix_tree(small_task(gamma=0.6))
    solution = solve(tree, bigram(), beta=0.2)
    rng = np.random.default_rng(0)
    for _ in range(50):
        noise = NGramReference(rng.dirichlet(np.ones(4), size=(4, 4)))
        mixed = policy_values(tree, noise, bigram(), beta=0.2)
        assert (mixed.prompt_objectives <= solution.prompt_values + 1e-12).all()


def test_foreign_and_ambiguous_observations_are_refused():
    solution = solve(small_task(), bigram())
    ids = np.array([[2, 2, 2, 0, 0]])
    with pytest.raises(ValueError, match="no state that legal actions reach"):
        solution.log_probs({"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 0, 0]])})
    nested = make_task("Text", prompts=["a", "a b"], tokenizer=["a", "b"], reward=Paid("end"),
                       max_new_tokens=2)  # fmt: skip
    twins = solve(nested)
    first = {"input_ids": np.array([[0, 0, 0, 0]]), "attention_mask": np.array([[1, 0, 0, 0]])}
    assert np.isfinite(twins.log_probs(first)).all()
    both = {"input_ids": np.array([[0, 1, 0, 0]]), "attention_mask": np.array([[1, 1, 0, 0]])}
    with pytest.raises(ValueError, match="two states"):
        twins.log_probs(both)


def test_zero_probability_of_the_reference():
    # The best answer is out of the reference's reach: only beta = 0 takes it.
    never_a = NGramReference(np.tile([0, 0.5, 0.3, 0.2], (4, 1)))
    task = small_task()
    soft, hard = solve(task, never_a, beta=0.1), solve(task, never_a, beta=0)
    taken = soft.optimal.trajectories
    assert taken.probability.sum() == pytest.approx(1)
    for depth in range(3):
        a = soft.tree.levels[depth + 1].action == 0
        assert np.isneginf(soft.log_policy[depth][a]).all()
    assert hard.prompt_values[0] == 3.0
    assert hard.optimal.trajectories.probability.sum() == pytest.approx(1)
    assert soft.objective < hard.objective
    assert np.isfinite(soft.objective)


def test_noisy_rewards_need_their_mean():
    with pytest.raises(ValueError, match="expected"):
        solve(word_task(reward=seed_noise, noisy=True, max_new_tokens=2))

    class Noise:
        def __call__(self, prompts, completions, **columns):
            return seed_noise(prompts, completions, **columns)

        def expected(self, prompts, completions, **columns):
            return [float(text == "a") for text in completions]

    solution = solve(word_task(reward=Noise(), noisy=True, max_new_tokens=1), beta=0)
    assert solution.objective == 1.0


def test_rewards_that_change_are_refused_and_left_as_they_were():
    normed = RunningNorm(uneven)
    with pytest.raises(ValueError, match="changes while it scores"):
        solve(word_task(reward=normed, max_new_tokens=2))
    assert normed.count == 0


@pytest.mark.parametrize("beta", [-1.0, float("nan"), float("inf")])
def test_bad_beta_and_gamma_are_refused(beta):
    with pytest.raises(ValueError, match="beta"):
        solve(small_task(), beta=beta)
    with pytest.raises(ValueError, match="gamma"):
        solve(small_task(), gamma=2.0)


def test_trajectories_sum_to_one():
    every = trajectory_probabilities(small_task(), bigram(3))
    assert len(every.prompt) == 2 * len(list(completions()))
    assert every.probability.sum() == pytest.approx(1, abs=1e-12)
    assert np.isnan(every.log_ratio).all()


class Remembers:
    """Keeps its scores, as a learned reward does."""

    def __init__(self):
        self.seen = {}

    def __call__(self, prompts, completions, **columns):
        for text in completions:
            self.seen.setdefault(text, float(text.count("a")))
        return [self.seen[text] for text in completions]

    def state_dict(self):
        return {"cut": 0, "scores": [*self.seen.items()]}

    def load_state_dict(self, state):
        self.seen = dict(state["scores"])


SMALL_TEXT = {"prompts": ["a"], "tokenizer": ["a", "b", "<end>"], "stop": "<end>", "max_new_tokens": 3, "beta": 0.5}


def counts_a(prompts, completions, **columns):
    return [float(text.count("a")) for text in completions]


def test_a_reward_that_remembers_scores_is_a_fixed_function_of_the_text():
    reward = Remembers()
    found = solve(make_task("Text", reward={"name": "clipped", "reward": reward, "high": 3.0}, **SMALL_TEXT))
    assert found.objective == solve(make_task("Text", reward=counts_a, **SMALL_TEXT)).objective
    assert reward.seen == {}  # as it was


def counts_a_slowly(prompts, completions, **columns):
    time.sleep(2e-4 * len(completions))
    return counts_a(prompts, completions)


def hangs_at_b(prompts, completions, **columns):
    time.sleep(60.0 * any("b" in text for text in completions))
    return counts_a(prompts, completions)


@pytest.mark.long
def test_a_time_limit_is_of_a_batch_as_large_as_in_playing():
    options = {**SMALL_TEXT, "tokenizer": [*"abcdefgh", "<end>"], "max_new_tokens": 4}  # 4,681 texts, 0.9 s
    found = solve(make_task("Text", reward=counts_a_slowly, timeout=0.6, on_error="skip", **options))
    assert found.objective == solve(make_task("Text", reward=counts_a, **options)).objective


@pytest.mark.slow
def test_a_text_that_is_not_scored_in_time_has_no_pay_to_solve_with():
    task = make_task("Text", reward=hangs_at_b, timeout=0.5, on_error="skip", **{**SMALL_TEXT, "max_new_tokens": 1})
    with (
        pytest.warns(TextGymWarning),
        pytest.raises(UnsolvableError, match="on batches of 3 texts in all"),
    ):
        solve(task)


class Live:
    """Counts what it has scored, in the very dict that it gives as its state."""

    def __init__(self):
        self.state = {"count": 0}

    def __call__(self, prompts, completions, **columns):
        self.state["count"] += len(completions)
        return [float(self.state["count"])] * len(completions)

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state.update(state)


def test_a_state_that_is_given_as_it_lives_is_seen_to_change():
    reward = Live()
    with pytest.raises(UnsolvableError, match="changes while it scores"):
        solve(make_task("Text", reward=reward, **SMALL_TEXT))
    assert reward.state == {"count": 0}
