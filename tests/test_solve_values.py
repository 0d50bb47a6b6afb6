"""The values of policies, against sums over listed trajectories, against sampling, and against one another."""

import numpy as np
import pytest
from solver_tools import Answers, Paid, Table, bigram, completions, log_probability, score, small_task

from textgym.estimates import draw_samples
from textgym.evaluate import evaluate
from textgym.lm.reference import NGramReference, UniformReference
from textgym.optimum import estimated
from textgym.sampling import play
from textgym.solver import policy_values, prefix_tree, solve, trajectory_probabilities
from textgym.task import make_task


@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_values_are_sums_over_trajectories(gamma):
    task, policy, reference, beta = small_task(gamma=gamma), Table(1), bigram(), 0.4
    values = policy_values(task, policy, reference)
    for index, prompt in enumerate(task.encoded("train")):
        ret = kl = length = entropy = 0.0
        for y in completions():
            log_p = log_probability(policy, prompt.ids, y)
            p = np.exp(log_p)
            ret += p * score(task, prompt, y)
            kl += p * (log_p - log_probability(reference, prompt.ids, y))
            entropy -= p * log_p
            length += p * len(y)
        assert values.prompt_returns[index] == pytest.approx(ret, abs=1e-12)
        assert values.prompt_kl[index] == pytest.approx(kl, abs=1e-12)
        assert values.prompt_entropy[index] == pytest.approx(entropy, abs=1e-12)
        assert values.prompt_lengths[index] == pytest.approx(length, abs=1e-12)
        assert values.prompt_objectives[index] == pytest.approx(ret - beta * kl, abs=1e-12)
    assert values.objective == pytest.approx(np.dot([0.25, 0.75], values.prompt_objectives))
    assert values.objective == pytest.approx(values.expected_return - beta * values.kl)


def test_the_value_of_a_state_in_the_middle():
    # V(s) = sum over what may follow of P (gamma^2 r_2 - beta log-ratio) in units of time 0; s is "a" then b, b.
    task, policy, reference = small_task(gamma=0.5), Table(2), bigram()
    values = policy_values(task, policy, reference, beta=0.7)
    depth, row = values.tree.find(0, (1, 1))
    (prompt, _), start = task.encoded("train"), (0, 1, 1)
    own, base = policy.distribution(start), np.exp(log_table(reference, start))
    rewards = np.array([score(task, prompt, (1, 1, a)) for a in range(4)])  # with gamma^2 = 0.25 in it
    assert values.values[depth][row] == pytest.approx(own @ (rewards - 0.7 * np.log(own / base)))
    edges = slice(values.tree.levels[2].first[row], values.tree.levels[2].first[row + 1])
    np.testing.assert_allclose(values.action_values[2][edges], rewards, atol=1e-14)
    advantages = rewards - 0.7 * np.log(own / base) - values.values[depth][row]
    np.testing.assert_allclose(values.advantages[2][edges], advantages, atol=1e-12)


def log_table(policy, tokens):
    ids = np.array([tokens])
    return policy.log_probs({"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_advantages_have_mean_zero(beta):
    values = policy_values(small_task(gamma=0.8), Table(3), bigram(), beta=beta)
    for depth, level in enumerate(values.tree.levels[:-1]):
        mean = np.add.reduceat(np.exp(values.log_policy[depth]) * values.advantages[depth], level.starts)
        np.testing.assert_allclose(mean, 0, atol=1e-12)


def test_the_performance_difference():
    # J(pi') - J(pi) = E_pi' sum_t [A^pi - beta (log pi' - log pi)]: the lemma, with the KL that pi' itself pays.
    tree, beta, reference = prefix_tree(small_task(gamma=0.7)), 0.4, bigram()
    old = policy_values(tree, Table(4), reference, beta)
    new = policy_values(tree, Table(5), reference, beta)
    total = 0.0
    for depth in range(len(tree.levels) - 1):
        weight = tree.weights[tree.prompt_of[depth + 1]] * new.reach[depth + 1]
        total += weight @ (old.advantages[depth] - beta * (new.log_policy[depth] - old.log_policy[depth]))
    assert new.objective - old.objective == pytest.approx(total, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pay", ["end", *(pytest.param(pay, marks=pytest.mark.long) for pay in ("every", "difference"))]
)
def test_sampled_returns_lie_within_four_standard_errors(pay):
    task = small_task(gamma=0.9, reward=Paid(pay, 0.9))
    policy, reference = Table(6), bigram()
    values = policy_values(task, policy, reference)
    episodes = play(policy, task, split="train", per_prompt=4000, seed=1, reference=reference)
    for exact, sampled in (
        (values.prompt_returns, episodes.returns),
        (values.prompt_kl, episodes.kl),
        (values.prompt_entropy, episodes.entropy),
        (values.prompt_lengths, episodes.lengths),
    ):
        error = sampled.std(1, ddof=1) / np.sqrt(sampled.shape[1])
        assert (np.abs(sampled.mean(1) - exact) < 4 * error).all()


@pytest.mark.slow
def test_evaluate_agrees_on_the_optimal_policy():
    task, reference = small_task(), bigram()
    solution = solve(task, reference)
    optimum = estimated(draw_samples(task, reference, split="train", each=2000), task.beta, "train")
    found = evaluate(solution, task, reference, optimum, split="train", per_prompt=2000, seed=2)
    for estimate, exact in ((found.objective, solution.objective), (found.optimality, 1.0)):
        # An interval of 95% spans four standard errors.
        assert abs(estimate.mean - exact) < estimate.high - estimate.low < 0.25


@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_probabilities_of_trajectories(gamma):
    task, policy, reference = small_task(gamma=gamma), Table(7), bigram()
    every = trajectory_probabilities(task, policy, reference)
    assert every.probability.sum() == pytest.approx(1, abs=1e-12)
    assert every.probability[every.prompt == 1].sum() == pytest.approx(0.75, abs=1e-12)
    prompt = task.encoded("train")[1]
    best = every.likeliest(1, 100)
    assert len(best) == len(list(completions()))
    assert [c.probability for c in best] == sorted((c.probability for c in best), reverse=True)
    for completion in best:
        log_p = log_probability(policy, prompt.ids, completion.tokens)
        assert completion.probability == pytest.approx(np.exp(log_p))
        log_p = log_probability(reference, prompt.ids, completion.tokens)
        assert completion.reference_probability == pytest.approx(np.exp(log_p))
        assert completion.ret == pytest.approx(score(task, prompt, completion.tokens))


def test_policies_are_normalised_over_the_legal_actions():
    # Half of the probability is on the stop id, which is taken out of the vocabulary here: the rest is scaled up.
    class NoStop:
        def log_probs(self, observation):
            with np.errstate(divide="ignore"):
                return np.tile(np.log([0.1, 0.2, 0.2, 0.5]), (len(observation["input_ids"]), 1))

    def grammar(states):
        return np.tile([True, True, True, False], (len(states), 1))

    task = small_task(max_new_tokens=1, mask=grammar)
    values = policy_values(task, NoStop(), NoStop())
    np.testing.assert_allclose(np.exp(values.log_policy[0][:3]), [0.2, 0.4, 0.4])
    assert values.kl == 0


def test_a_policy_outside_the_support_of_the_reference_has_infinite_kl():
    only_a = NGramReference(np.tile([1.0, 0, 0, 0], (4, 1)))
    never_a = NGramReference(np.tile([0, 0.5, 0.3, 0.2], (4, 1)))
    values = policy_values(small_task(), only_a, never_a)
    assert values.kl == np.inf
    assert values.objective == -np.inf
    assert policy_values(small_task(), only_a, never_a, beta=0).objective == pytest.approx(0.25 * 3 - 0.75 * 1.5)


def test_what_a_policy_never_says_is_none_of_its_likeliest():
    never_a = NGramReference(np.tile([0, 0.5, 0.3, 0.2], (4, 1)))
    best = policy_values(small_task(), never_a, bigram()).trajectories.likeliest(1, 100)
    assert {found.tokens for found in best} == {tokens for tokens in completions() if 0 not in tokens}


def test_a_prompt_without_weight_counts_for_nothing():
    # After "b", which is never shown, the policy says what the reference does not.
    policy = NGramReference(np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.5, 0.3, 0.2]]))
    reference = NGramReference(np.array([[0.3, 0.3, 0.4], [0.0, 0.5, 0.5], [0.3, 0.3, 0.4]]))
    words = {"tokenizer": ["a", "b", "<end>"], "stop": "<end>", "max_new_tokens": 1, "reward": "length", "beta": 0.3}
    found = policy_values(make_task("Text", prompts=["a", "b"], weights=[1, 0], **words), policy, reference)
    alone = policy_values(make_task("Text", prompts=["a"], **words), policy, reference)
    assert found.prompt_kl[1] == np.inf
    assert (found.objective, found.kl) == (alone.objective, alone.kl)
    assert found.reach[0].tolist() == [1.0, 1.0]


def test_bad_policies_are_refused():
    with pytest.raises(TypeError, match="no log-probabilities"):
        policy_values(small_task(), Answers(None))
    with pytest.raises(TypeError, match="no log-probabilities"):
        policy_values(small_task(), object())
    with pytest.raises(ValueError, match="shape"):
        policy_values(small_task(), Answers(np.zeros((2, 3))))
    with pytest.raises(ValueError, match="NaN"):
        policy_values(small_task(max_new_tokens=1), Answers(np.full((2, 4), np.nan)))
    for number in (np.nan, np.inf):
        table = np.log(np.full((2, 4), 0.25))
        table[1, 2] = number
        with pytest.raises(ValueError, match=r"NaN or \+inf"):
            policy_values(small_task(max_new_tokens=1), Answers(table))
    with pytest.raises(ValueError, match="no legal action"):
        policy_values(small_task(max_new_tokens=1), Answers(np.full((2, 4), -np.inf)))


def test_the_reference_against_itself():
    values = policy_values(small_task(), bigram(), bigram())
    assert values.kl == pytest.approx(0, abs=1e-15)
    assert values.objective == pytest.approx(solve(small_task(), bigram()).reference_objective)


@pytest.mark.long
def test_the_estimated_optimum_covers_the_exact_one():
    task, reference = small_task(), UniformReference(np.ones(4, dtype=bool))
    exact = solve(task, reference, split="eval").objective
    covered = 0
    for seed in range(200):
        found = estimated(draw_samples(task, reference, each=320, seed=seed), task.beta, "eval", seed)
        assert found.effective_samples > 30
        covered += found.value.low <= exact <= found.value.high
    assert covered >= 186  # 93%


@pytest.mark.parametrize("log_prob", [-700.0, -800.0, -np.inf])
def test_a_probability_that_underflows_is_none(log_prob):
    table = np.tile([0.5, 0.0, 0.3, 0.2], (4, 1))
    words = {"tokenizer": ("a", "b", "c", "<end>"), "stop": "<end>", "prompts": ["a"], "max_new_tokens": 1}
    task = make_task("Text", **words, reward="length", beta=0.3, reference=NGramReference(table))

    class Nearly:
        def log_probs(self, observation):
            row = np.log([0.5, 1.0, 0.3, 0.2])
            row[1] = log_prob
            return np.tile(row, (len(observation["input_ids"]), 1))

    found = policy_values(task, Nearly())
    assert found.kl == (np.inf if log_prob == -700 else pytest.approx(0))
    assert np.isfinite(found.objective) == (log_prob != -700)
