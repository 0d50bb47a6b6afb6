"""Evaluation and J* against sums over all completions of a task small enough to list them."""

import itertools
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from solver_tools import odd_grammar, small_task

from textgym import TokenEnv, make_task
from textgym.estimates import RESAMPLES, Samples, draw_samples, interval, resampled_means, tilt, widen
from textgym.evaluate import _mean_term, distinct, evaluate
from textgym.lm.reference import NGramReference, UniformReference
from textgym.optimum import estimated, optimum_of
from textgym.sampling import play
from textgym.solver import solve
from textgym.task import make_reference

WORDS = ("a", "b", "<end>")
STOP, HORIZON, BETA = 2, 2, 0.5
TABLE = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [1 / 3, 1 / 3, 1 / 3]])


def share_of_a(prompts, completions, **columns):
    return [
        text.split().count("a") + (0.5 if prompt == "b" else 0.0)
        for prompt, text in zip(prompts, completions, strict=True)
    ]


@pytest.fixture(scope="module")
def task():
    return make_task(
        "Text",
        prompts=["a", "b"],
        tokenizer=WORDS,
        stop="<end>",
        reward=share_of_a,
        gold=share_of_a,
        max_new_tokens=HORIZON,
        beta=BETA,
        weights=[3, 1],
        eval_prompts=None,
    )


@pytest.fixture(scope="module")
def reference():
    return NGramReference(TABLE)


def completions(prompt, table):
    """(probability, reward, KL of `table` to TABLE on the way) of every completion."""
    for length in range(1, HORIZON + 1):
        for body in itertools.product(range(STOP), repeat=length - 1):
            for last in [STOP] if length < HORIZON else range(3):
                probability, divergence, before = 1.0, 0.0, prompt
                for token in (*body, last):
                    probability *= table[before, token]
                    divergence += float(table[before] @ np.log(table[before] / TABLE[before]))
                    before = token
                yield probability, (*body, last).count(0) + 0.5 * prompt, divergence


def exact(table):
    """Reward, KL and soft optimum of each prompt, by enumeration."""
    rows = [np.array(list(completions(prompt, table))) for prompt in (0, 1)]
    reward = [row[:, 0] @ row[:, 1] for row in rows]
    divergence = [row[:, 0] @ row[:, 2] for row in rows]
    best = [BETA * np.log(row[:, 0] @ np.exp(row[:, 1] / BETA)) for row in rows]
    return np.array(reward), np.array(divergence), np.array(best)


WEIGHTS = np.array([0.75, 0.25])


def sampled(task, reference, each):
    """The optimum as it is estimated, although this task can be solved."""
    return estimated(draw_samples(task, reference, each=each), task.beta, "eval")


def test_the_list_of_completions_is_complete():
    for prompt in (0, 1):
        assert sum(p for p, _, _ in completions(prompt, TABLE)) == pytest.approx(1.0)


@pytest.mark.slow
def test_optimum_and_reference_agree_with_enumeration(task, reference):
    reward, _, best = exact(TABLE)
    got = sampled(task, reference, 4000)
    assert got.value.low < WEIGHTS @ best < got.value.high
    assert got.reference.low < WEIGHTS @ reward < got.reference.high
    assert got.value.high - got.value.low < 0.05


@pytest.mark.slow
def test_policy_agrees_with_enumeration(task, reference):
    table = np.array([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.2, 0.3, 0.5]])
    reward, divergence, _ = exact(table)
    base, _, best = exact(TABLE)
    scale = sampled(task, reference, 4000)
    got = evaluate(NGramReference(table), task, reference, scale, per_prompt=4000)
    assert not got.exact
    objective = WEIGHTS @ (reward - BETA * divergence)
    for estimate, want in (
        (got.reward, WEIGHTS @ reward),
        (got.gold, WEIGHTS @ reward),
        (got.kl, WEIGHTS @ divergence),
        (got.objective, objective),
        (got.optimality, (objective - WEIGHTS @ base) / (WEIGHTS @ best - WEIGHTS @ base)),
    ):
        # The interval is four standard errors wide.
        assert abs(estimate.mean - want) < estimate.high - estimate.low
    assert 0 < got.stop_rate < 1
    assert got.summary()["kl"]["mean"] == got.kl.mean
    assert len(repr(got)) < 2000  # the episodes are left out


@pytest.mark.slow
def test_the_reference_scores_zero_and_has_no_kl(task, reference):
    got = evaluate(reference, task, reference, sampled(task, reference, 2000), per_prompt=2000)
    assert got.kl.mean == 0.0
    assert got.optimality.low < 0 < got.optimality.high


def test_the_seed_decides(task, reference):
    one, two, other = (play(reference, task, per_prompt=8, seed=seed) for seed in (1, 1, 2))
    assert one.completions.tolist() == two.completions.tolist()
    assert one.completions.tolist() != other.completions.tolist()
    assert one.prompts == ("a", "b")


class AlwaysA:
    def log_probs(self, observation):
        return None

    def act(self, observation, deterministic=False):
        return np.zeros(len(observation["input_ids"]), dtype=np.int64)


def test_a_policy_without_log_probabilities_has_reward_but_no_objective(task, reference):
    got = evaluate(AlwaysA(), task, reference, per_prompt=3)
    assert got.reward.mean == pytest.approx(2 + 0.25 * 0.5)
    assert got.objective is got.optimality is got.kl is got.entropy is None


def test_deterministic_takes_the_likeliest_token(task, reference):
    got = play(reference, task, per_prompt=2, deterministic=True)
    assert got.completions.tolist() == [["a a", "a a"], ["b b", "b b"]]


def test_few_effective_samples_are_no_optimum(task):
    samples = draw_samples(task, UniformReference(np.ones(3, dtype=bool)), each=20)
    got = estimated(samples, 0.02, "eval")
    assert got.value is None
    assert "effective samples a prompt, 10 are needed" in str(got)


def test_an_optimum_of_another_beta_or_split_is_refused(task, reference):
    optimum = optimum_of(task, reference=reference)
    with pytest.raises(ValueError, match=r"it is of beta=0\.5 on 'eval', allowed is beta=0\.1"):
        evaluate(reference, task, reference, optimum, beta=0.1)
    with pytest.raises(ValueError, match=r"on .eval., allowed is beta=0\.5 on .train."):
        evaluate(reference, task, reference, optimum, split="train")
    with pytest.raises(ValueError, match="beta=-1"):
        optimum_of(task, reference=reference, beta=-1)


def sampled_optima(returns):
    """J* of each prompt (P,) at beta = 1 from returns (P, n) of the reference."""
    count = len(returns)
    tokens = np.zeros((count, 1, 1), dtype=np.int32)
    zeros, weights = np.zeros_like(returns), np.full(count, 1 / count)
    return tilt(Samples(returns, zeros, weights, returns.shape[1], 1.0, tokens), 1.0).values


def test_the_sampled_optimum_by_hand_and_its_bias(monkeypatch):
    monkeypatch.setattr("textgym.estimates.RESAMPLES", 2)
    # mean of exp(0) and exp(1) is 1.859; relative variance of one draw 2 ((e - 1) / (e + 1))^2, of the mean half of it
    want = np.log((1 + np.e) / 2) + 0.5 * ((np.e - 1) / (np.e + 1)) ** 2
    assert sampled_optima(np.array([[0.0, 1.0]])) == pytest.approx(want)
    rng = np.random.default_rng(0)
    draws = (rng.random((4000, 50)) < 0.3).astype(float)  # truth: log(0.7 + 0.3 e)
    truth = np.log(0.7 + 0.3 * np.e)
    plain = np.log(np.exp(draws).mean(1)).mean()
    assert abs(sampled_optima(draws).mean() - truth) < 0.25 * abs(plain - truth)


def test_what_is_enumerated_is_known_without_width(task, reference):
    table = np.array([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.2, 0.3, 0.5]])
    reward, divergence, _ = exact(table)
    got = evaluate(NGramReference(table), task, reference, per_prompt=4)
    for estimate, want in (
        (got.reward, WEIGHTS @ reward),
        (got.gold, WEIGHTS @ reward),  # the reward itself
        (got.kl, WEIGHTS @ divergence),
        (got.objective, WEIGHTS @ (reward - BETA * divergence)),
    ):
        assert estimate.low == estimate.mean == estimate.high == pytest.approx(want)
    # Behind "a" it stops with 0.1 at once, and with 0.8 * 0.1 + 0.1 * 0.2 after a word.
    # Behind "b" it does with 0.2, and with 0.6 * 0.1 + 0.2 * 0.2.
    assert got.stop_rate == pytest.approx(0.75 * 0.2 + 0.25 * 0.3)


def test_a_gold_reward_that_is_not_the_return_is_sampled(task, reference):
    for other in (replace(task, gamma=0.5), replace(task, gold=lambda **columns: share_of_a(**columns))):
        got = evaluate(reference, other, reference, per_prompt=8)
        assert got.reward.low == got.reward.high
        assert got.gold.low < got.gold.mean < got.gold.high
        assert got.gold.mean == pytest.approx(WEIGHTS @ got.episodes.gold.mean(1))


def test_a_kl_that_is_known_of_whole_answers_alone(task, reference):
    class Whole(AlwaysA):
        def edge_log_probs(self, tree, log_reference):
            return None

        def sequence_kl(self, task, split, seed):
            return np.array([1.0, 2.0]), np.linspace(0.5, 1.5, RESAMPLES)[:, None] * np.array([1.0, 2.0])

    got = evaluate(Whole(), task, reference, per_prompt=3)
    low, high = (1.25 * (0.5 + share) for share in (0.025, 0.975))
    assert (got.kl.mean, got.kl.low, got.kl.high) == pytest.approx((1.25, low, high))
    ends = [2.125 - BETA * kl for kl in (1.25, high, low)]  # "a a" earns 2, and 2.5 behind "b"
    assert (got.objective.mean, got.objective.low, got.objective.high) == pytest.approx(tuple(ends))
    free = evaluate(Whole(), replace(task, beta=0.0), reference, per_prompt=3)
    assert free.objective == free.reward


def test_probabilities_that_are_known_of_whole_answers(task, reference):
    class Known(AlwaysA):
        def edge_log_probs(self, tree, log_reference):
            return log_reference

        def sequence_kl(self, task, split, seed):
            return None

    got = evaluate(Known(), task, reference, per_prompt=3)
    assert got.kl.low == got.kl.mean == got.kl.high == 0.0
    assert got.reward.mean == pytest.approx(WEIGHTS @ exact(TABLE)[0])


def test_a_policy_that_wants_what_is_forbidden_alone_takes_any_legal_token():
    class Wants:
        def __init__(self, instead):
            self.instead = instead

        def log_probs(self, observation):
            wanted = np.full((len(observation["input_ids"]), 4), -np.inf)
            wanted[:, 1] = 0.0  # b, which may not be the first token
            first = observation["attention_mask"].sum(1) == 1
            if self.instead:
                wanted[first] = np.log([1 / 3, 1e-300, 1 / 3, 1 / 3])
            return wanted

    forbids = small_task(mask=odd_grammar)
    base = make_reference(forbids)
    one, other = (evaluate(Wants(instead), forbids, base, per_prompt=4) for instead in (False, True))
    assert one.exact
    assert one.reward.mean == pytest.approx(other.reward.mean)
    assert one.kl.mean == pytest.approx(other.kl.mean)


def test_the_mean_of_a_term_is_over_those_that_have_it():
    values = np.array([[1.0, np.nan], [3.0, 5.0]])
    assert _mean_term(WEIGHTS, values) == pytest.approx((0.75 * 1 + 0.25 * 3 + 0.25 * 5) / (0.75 + 0.25 + 0.25))
    assert np.isnan(_mean_term(WEIGHTS, np.full((2, 2), np.nan)))


def test_distinct_by_hand():
    texts = np.array(["a b a", "a"], dtype=object)
    assert distinct(texts, 1) == 2 / 4
    assert distinct(texts, 2) == 2 / 2
    assert distinct(np.array([""], dtype=object), 1) == 0.0
    assert distinct(np.array(["a a a"], dtype=object), 1) == 1 / 3


def test_bad_per_prompt_is_named(task, reference):
    with pytest.raises(ValueError, match="per_prompt=0"), warnings.catch_warnings():
        play(reference, task, per_prompt=0)


def test_the_noise_of_a_reward_is_no_gain():
    task = make_task("Noisy")
    exact = solve(task, split="eval")
    got = sampled(task, make_reference(task), 2000)
    assert got.value.low - 0.02 < exact.objective < got.value.high + 0.02
    assert got.reference.mean == pytest.approx(exact.reference_objective, abs=0.05)


def test_a_greedy_policy_is_charged_for_its_certainty(task, reference):
    got = evaluate(reference, task, reference, per_prompt=2, deterministic=True)
    # "a a" has probability 0.5 * 0.5 after "a", "b b" 0.6 * 0.6 after "b".
    want = 0.75 * -np.log(0.25) + 0.25 * -np.log(0.36)
    assert got.kl.mean == pytest.approx(want)
    assert got.entropy.mean == 0.0
    assert got.optimality.mean <= 1.0


def test_one_completion_a_prompt_has_no_interval(task, reference):
    got = evaluate(reference, task, reference, sampled(task, reference, 200), per_prompt=1)
    assert np.isnan(got.reward.low)


@pytest.mark.slow
def test_intervals_cover_at_two_completions_a_prompt():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        values = rng.normal(size=(1, 40, 2))
        means = values.mean(-1) @ np.full(40, 1 / 40)
        replicates = widen(means, resampled_means(values, seed) @ np.full(40, 1 / 40), 2)
        estimate = interval(float(means[0]), replicates[:, 0])
        hits += estimate.low < 0 < estimate.high
    assert hits / 200 > 0.89


def test_evaluating_does_not_move_a_reward_that_learns():
    task = make_task(
        "Text",
        prompts=["a", "b"],
        tokenizer=WORDS,
        stop="<end>",
        max_new_tokens=HORIZON,
        reward={"name": "running_norm", "reward": {"name": "length", "target": 2}},
    )
    before = task.scorer.state_dict()
    first = play(UniformReference(np.ones(3, dtype=bool)), task, per_prompt=20)
    second = play(UniformReference(np.ones(3, dtype=bool)), task, per_prompt=20)
    assert task.scorer.state_dict() == before
    np.testing.assert_array_equal(first.returns, second.returns)


def test_all_completions_are_scored_in_one_call_and_discounted_by_their_own_length():
    calls = []

    def counted(prompts, completions, **columns):
        calls.append(len(prompts))
        return [1.0] * len(prompts)

    task = make_task(
        "Text", prompts=["a", "b"], tokenizer=WORDS, stop="<end>", reward=counted, max_new_tokens=4, gamma=0.5
    )
    episodes = play(UniformReference(task.vocabulary.allowed), task, per_prompt=30)
    assert calls == [60]
    assert len(np.unique(episodes.lengths)) == 4
    np.testing.assert_array_equal(episodes.returns, 0.5 ** (episodes.lengths - 1.0))


class OneToken:
    """Writes one token and has no log-probabilities."""

    def log_probs(self, observation):
        return None

    def act(self, observation, deterministic=False):
        return np.full(len(observation["input_ids"]), STOP)


def test_without_a_price_of_the_kl_j_is_the_reward_whatever_the_kl():
    options = {"prompts": ["a"], "tokenizer": WORDS, "stop": "<end>", "reward": share_of_a, "max_new_tokens": HORIZON}
    task = make_task("Text", beta=0.0, **options)
    found = evaluate(OneToken(), task, per_prompt=8)
    assert found.kl is None
    assert found.objective == found.reward


class Even:
    """Gives every token of the vocabulary the same probability, those that are never legal too."""

    def __init__(self, size):
        self.size = size

    def log_probs(self, observation):
        return np.full((len(observation["input_ids"]), self.size), -math.log(self.size))


def test_what_is_played_is_what_is_enumerated_where_a_policy_writes_what_is_not_legal():
    task = make_task("Copy", difficulty=2)
    assert not task.vocabulary.allowed.all()
    found = evaluate(Even(task.vocabulary.size), task, per_prompt=256)
    assert found.exact
    assert found.episodes.kl.max() == pytest.approx(0, abs=1e-6)  # the reference is uniform over what is legal
    assert found.episodes.returns.mean() == pytest.approx(found.reward.mean, abs=4 * 0.4 / 2560**0.5)


def counting_task(**options):
    def pay(prompts, completions, **columns):
        return [text.count("a") / 30 for text in completions]

    never_c = NGramReference(np.array([[0.5, 0.5, 0.0]] * 3))
    settings = {"prompts": ["a"], "tokenizer": ["a", "b", "c"], "stop": (), "max_new_tokens": 30, "beta": 0.1}
    return make_task("Text", **settings | options, reward=pay, reference=never_c)


def test_a_proposal_may_write_what_the_reference_never_does():
    task = counting_task()
    found = optimum_of(task, [Even(3)], per_prompt=256)
    best = 30 * 0.1 * math.log((math.exp(1 / 30 / 0.1) + 1) / 2)  # of every token its own
    assert found.value.low - 0.02 < best < found.value.high + 0.02


def test_an_infinite_kl_to_a_prompt_that_is_never_drawn_counts_nothing():
    class WritesCAfterB:
        def log_probs(self, observation):
            after_b = (observation["input_ids"][:, 0] == 1)[:, None]
            with np.errstate(divide="ignore"):
                return np.log(np.where(after_b, [[0.2, 0.2, 0.6]], [[0.6, 0.4, 0.0]]))

    task = counting_task(prompts=["a", "b"], weights=[1, 0])
    found = evaluate(WritesCAfterB(), task, optimum=optimum_of(task, per_prompt=64), per_prompt=16)
    assert np.isinf(found.episodes.kl[1]).any()
    each = 0.6 * math.log(1.2) + 0.4 * math.log(0.8)
    assert found.kl.mean == pytest.approx(30 * each)
    assert found.objective is not None
    assert found.optimality is not None


class Told:
    """A policy that says one row of numbers in every state."""

    def __init__(self, row):
        self.row = np.asarray(row, dtype=np.float64)

    def log_probs(self, observation):
        return np.tile(self.row, (len(observation["input_ids"]), 1))


def long_task(tokens):
    """A task that is solved where it is short, and sampled where it is long."""

    def share(prompts, completions, **columns):
        return [text.split().count("a") / tokens for text in completions]

    words = ["a", "b", "c"]
    return make_task("Text", prompts=["a"], tokenizer=words, reward=share, max_new_tokens=tokens, beta=0.5)


@pytest.mark.parametrize("more", [0.0, 3.0, -3.0, 1000.0, -1000.0])
def test_numbers_that_are_no_log_probabilities_yet_are_normalised_solved_or_sampled(more):
    logits = np.array([-2.0, -1.0, -2.0])
    probs = np.exp(logits) / np.exp(logits).sum()
    kl = probs @ np.log(3 * probs)  # a token, against the uniform reference
    for tokens, solved in ((6, True), (40, False)):
        found = evaluate(Told(logits + more), long_task(tokens))
        assert found.exact == solved
        assert found.kl.mean == pytest.approx(tokens * kl)


def test_proposals_may_be_off_by_a_constant():
    task = long_task(40)
    plain, shifted = (optimum_of(task, [Told(np.log([0.4, 0.3, 0.3]) + more)]).value for more in (0.0, 0.1))
    assert [plain.mean, plain.low, plain.high] == pytest.approx([shifted.mean, shifted.low, shifted.high])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([np.nan] * 3, "policy: log_probs holds NaN"),
        ([0.0, 0.0, np.inf], "policy: log_probs holds NaN or \\+inf"),
        ([-np.inf] * 3, "or a row of -inf"),
        ([0.0] * 7, r"policy: log_probs returned shape \(16, 7\), allowed is \(16, 3\)"),
    ],
)
def test_bad_log_probabilities_are_refused_where_they_are_sampled(row, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Told(row), long_task(40))
    with pytest.raises(ValueError, match=message.replace("policy", "reference")):
        play(Told([0.0] * 3), long_task(40), reference=Told(row))


@pytest.mark.parametrize("seed", [-1, 1.5, "x"])
def test_a_bad_seed_is_named(task, seed):
    for function in (play, evaluate):
        with pytest.raises(ValueError, match=f"seed={seed!r}: allowed is an integer >= 0"):
            function(UniformReference(np.ones(3, np.bool_)), task, seed=seed)
    with pytest.raises(ValueError, match=f"seed={seed!r}: allowed is an integer >= 0"):
        optimum_of(task, seed=seed)


def test_a_policy_that_only_acts_is_played(task):
    class Acts:
        def act(self, observation, deterministic=False):
            return np.zeros(len(observation["input_ids"]), dtype=int)

    class Says(Acts):
        def log_probs(self, observation):
            return None

    found, same = (evaluate(policy, task, per_prompt=2) for policy in (Acts(), Says()))
    assert found.reward == same.reward
    assert found.reward.mean == pytest.approx(2.125)  # "a a", and half a point more for the prompt of weight 1/4
    assert found.kl is None
    for none in (None, object()):
        with pytest.raises(TypeError, match=r"policy=.*allowed has log_probs\(observation\) or act"):
            evaluate(none, task)


@pytest.mark.parametrize("given", ["Text", None, TokenEnv("Bandit")])
def test_what_is_no_task_is_refused(given, task, reference):
    for call in (lambda: optimum_of(given), lambda: evaluate(reference, given)):
        with pytest.raises(TypeError, match=r"task=.*: allowed is a textgym\.Task"):
            call()
    with pytest.raises(ValueError, match="per_prompt=-1: allowed is an integer >= 0"):
        optimum_of(task, per_prompt=-1)
