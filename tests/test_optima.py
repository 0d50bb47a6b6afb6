"""`optimum_of`: exact where it can be, a mixture where the reference finds little, "not known" where nothing tells."""

import math
from dataclasses import replace

import numpy as np
import pytest

from textgym import make_task
from textgym.estimates import Samples, draw_samples, read_samples, tilt, write_samples
from textgym.evaluate import evaluate
from textgym.lm.reference import NGramReference, UniformReference
from textgym.optimum import committed_samples, estimated, fingerprint, optimum_of, samples_path, solvable
from textgym.rewards import RunningNorm
from textgym.solver import solve
from textgym.task import make_reference

COMMITTED = (
    *("Helpful", "Harmless", "Honest", "HHH", "Arithmetic", "Json", "Keywords", "Format", "Pattern"),
    *("Sentiment", "Brief", "NoRepeat"),
)


def sampled(task, proposals=(), each=256, beta=None, seed=0):
    reference = make_reference(task)
    samples = draw_samples(task, reference, proposals, each=each, seed=seed)
    return estimated(samples, task.beta if beta is None else beta, "eval", seed)


def nearly(solution, share):
    """The optimum, with `share` of the probability in every state given to the uniform policy."""
    uniform = UniformReference(solution.tree.task.vocabulary.allowed)

    class Mixed:
        def log_probs(self, observation):
            with np.errstate(divide="ignore"):
                own, other = solution.log_probs(observation), uniform.log_probs(observation)
                return np.logaddexp(own + math.log(1 - share), other + math.log(share))

    return Mixed()


@pytest.mark.parametrize("name", ["Bandit", "Stop", "Copy", "Noisy", "Deceptive"])
def test_what_can_be_solved_is_exact_for_every_policy(name):
    task = make_task(name)
    optimum = optimum_of(task)
    solution = solve(task, split="eval")
    assert optimum.exact
    assert optimum.value.exact
    assert optimum.value.mean == solution.objective
    for policy, want in ((make_reference(task), 0.0), (solution, 1.0)):
        found = evaluate(policy, task, optimum=optimum, per_prompt=2)
        assert found.exact
        assert found.optimality.mean == pytest.approx(want, abs=1e-9)
        assert found.optimality.exact


class Compares:
    """Pays every completion the same, once the whole batch is there."""

    pay = "together"

    def __call__(self, prompts, completions, **columns):
        return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        (make_task("Stop"), True),
        (make_task("Noisy"), True),
        (replace(make_task("Stop"), reward=Compares()), False),
        (replace(make_task("Stop"), reward=RunningNorm("length")), False),
        (make_task("Text", prompts=["a"], reference="uniform"), False),
        (make_task("Json"), False),
    ],
    ids=["small", "noise with a mean", "compares", "changes", "too large", "too large a grammar"],
)
def test_a_task_is_solvable_where_its_optimum_is_solved(task, answer):
    assert solvable(task) == answer


def test_j_and_kl_of_a_large_tree_are_sampled_on_an_exact_scale(monkeypatch):
    monkeypatch.setattr("textgym.evaluate.MAX_RUNNING", 10)
    task = make_task("Stop")
    found = evaluate(make_reference(task), task, per_prompt=64)
    assert not found.exact
    assert not found.objective.exact
    assert optimum_of(task).exact


def test_a_mixture_finds_what_the_reference_seldom_writes():
    task = make_task("DeepSea", difficulty=10)
    solution = solve(task, split="eval")
    alone = sampled(task, each=256)
    assert alone.value is None or alone.value.mean < 0.6
    found = sampled(task, [nearly(solution, 0.2)], each=256)
    assert found.effective_samples > 10
    assert found.value.low <= solution.objective <= found.value.high
    # A proposal that is no use changes how sure J* is, not what it is.
    also = sampled(task, [nearly(solution, 0.2), UniformReference(task.vocabulary.allowed)], each=256)
    assert also.value.low <= solution.objective <= also.value.high


def test_weights_of_a_mixture_average_to_one_and_change_no_expectation():
    task = make_task("TwoModes")
    proposal = NGramReference(np.array([0.5, 0.3, 0.2, 0.0]))
    samples = draw_samples(task, make_reference(task), [proposal], each=4096)
    weights = np.exp(samples.log_weights)
    assert weights.mean() == pytest.approx(1.0, abs=0.03)
    assert weights.max() <= 2.0 + 1e-6  # the reference is half of the mixture
    base = solve(task, split="eval").reference_objective
    assert (weights * samples.returns).mean() == pytest.approx(base, abs=0.02)


def test_a_reward_that_was_never_seen_is_no_optimum():
    task = make_task("DeepSea", difficulty=18)
    got = sampled(task, each=64)
    assert got.value is None
    assert "all completions of a prompt earned the same (share of the prompts: 1.00)" in str(got)
    found = evaluate(make_reference(task), task, None, got, per_prompt=2)
    assert found.optimality is None
    assert found.objective is not None


def some_of(prompts, completions, **columns):
    """Pays 1 for "b" on all prompts but the last one, which it never pays."""
    return [float(text.startswith("b") and prompt != "z") for prompt, text in zip(prompts, completions, strict=True)]


class Declared:
    maximum = 1.0

    def __call__(self, prompts, completions, **columns):
        return some_of(prompts, completions)


@pytest.mark.slow
@pytest.mark.parametrize(("others", "known"), [(19, True), (3, False)])
def test_prompts_that_pay_nothing_widen_j_star_up_to_the_declared_maximum(others, known):
    words = ["a", "b", "<end>", "z", *(f"p{i}" for i in range(others))]
    prompts = [*(f"p{i}" for i in range(others)), "z"]
    settings = {"tokenizer": words, "stop": "<end>", "max_new_tokens": 1, "beta": 0.5}
    task = make_task("Text", prompts=prompts, reward=Declared(), **settings)
    got = sampled(task, each=400)
    if not known:  # a quarter of the prompts
        assert got.value is None
        assert "share of the prompts: 0.25" in got.unknown
        return
    seen = 0.5 * np.log(1 + (math.e**2 - 1) / len(words[:-others]) * 0)  # nothing is paid: 0
    top = 0.95 * 0.5 * np.log((math.e**2 + (len(words) - 1)) / len(words)) + 0.05 * seen
    assert got.value.mean == pytest.approx(top, abs=0.02)
    assert got.value.high > top + 0.04  # 0.05 of the weight may earn 1
    # Without a declared maximum nobody can say how much may be missing.
    silent = make_task("Text", prompts=prompts, reward=some_of, **settings)
    assert "declares no `maximum`" in sampled(silent, each=400).unknown


def test_a_prompt_that_earns_the_maximum_throughout_is_known():
    words = ["a", "b", "<end>"]
    always = {"name": "length", "target": 1, "unit": "tokens"}
    task = make_task("Text", prompts=["a"], tokenizer=words, reward=always, max_new_tokens=1, beta=0.5)
    got = sampled(task, each=64)
    assert got.value.mean == pytest.approx(1.0)
    assert got.value.high == pytest.approx(1.0)


@pytest.mark.parametrize("rare", [0.002, 0.01])
def test_what_was_never_drawn_is_in_the_interval_where_the_maximum_is_known(rare):
    """One answer in 500 or 100 pays 1, another a little: effective samples are many, and know nothing of the first."""
    reference = NGramReference(np.array([rare, 0.3, 0.7 - rare]))
    pays = some_pay({"a": 1.0, "b": 0.02})
    kwargs = {"prompts": ["a"], "tokenizer": ["a", "b", "c"], "max_new_tokens": 1, "reference": reference, "beta": 0.1}
    task = make_task("Text", reward=pays, **kwargs)
    exact = solve(task, split="eval").objective
    found = [estimated(draw_samples(task, reference, each=128, seed=seed), 0.1, "eval", seed) for seed in range(40)]
    known = [each for each in found if each.value is not None]
    assert len(known) >= 8
    assert all(each.value.low <= exact <= each.value.high for each in known)
    assert all(each.improvable for each in known)
    # By hand: nothing of pay 1 was drawn, and 3 / 128 of the probability may be.
    blind = next(each for each in known if each.samples.returns.max() < 0.5)
    mean = math.exp(blind.value.mean / 0.1)
    assert blind.room == pytest.approx(0.1 * math.log(mean + 3 / 128 * math.exp(10)) - blind.value.mean)
    # A trained policy has drawn it; where nobody says what is the most, nobody knows.
    assert estimated(draw_samples(task, reference, [reference], each=64), 0.1, "eval").room == 0.0
    silent = make_task("Text", reward=pays.__call__, **kwargs)
    assert estimated(draw_samples(silent, reference, each=128), 0.1, "eval").room == 0.0


def some_pay(pay):
    class Pays:
        name, maximum = "pays", 1.0

        def __call__(self, prompts, completions, **columns):
            return [pay.get(text, 0.0) for text in completions]

    return Pays()


def test_a_trained_policy_is_asked_where_the_optimum_is_far_from_the_reference():
    def first(prompts, completions, **columns):
        return [text.split().count("a") / 30 for text in completions]

    def found(beta):
        task = make_task("Text", prompts=["a"], tokenizer=["a", "b", "c"], reward=first, max_new_tokens=30, beta=beta)
        return optimum_of(task)

    near, far = found(0.5), found(0.1)
    assert near.effective_samples > 64 > far.effective_samples > 30
    assert (near.improvable, far.improvable) == (False, True)


def test_samples_come_back_from_their_file(tmp_path):
    task = make_task("TwoModes")
    samples = draw_samples(task, make_reference(task), [UniformReference(task.vocabulary.allowed)], each=32)
    path = tmp_path / "samples.safetensors"
    write_samples(samples, path, {"name": "TwoModes"})
    read, key = read_samples(path)
    assert key == {"name": "TwoModes"}
    written = []
    for key in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):
        write_samples(samples, path, key)
        written.append(path.read_bytes())
    assert written[0] == written[1]  # one file, in whatever order the key was put together
    for beta in (0.05, 0.2, 3.0):
        one, two = tilt(samples, beta), tilt(read, beta)
        np.testing.assert_array_equal(one.values, two.values)
        np.testing.assert_array_equal(one.replicates, two.replicates)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="file of samples is damaged"):
        read_samples(path)


def test_committed_samples_serve_their_own_task_only(tmp_path, monkeypatch):
    monkeypatch.setattr("textgym.optimum.FOLDER", tmp_path)
    task = make_task("Arithmetic", max_new_tokens=6)
    samples = draw_samples(task, make_reference(task), each=4)
    write_samples(samples, samples_path(task, "eval"), fingerprint(task, "eval"))
    assert committed_samples(task, "eval") is not None
    assert committed_samples(task, "train") is None
    assert optimum_of(task, beta=0.3).committed
    for changed in (
        {"max_new_tokens": 7},
        {"gamma": 0.9},
        {"reward": {"name": "length", "target": 3}},
        {"reference": "uniform"},
    ):
        assert committed_samples(make_task("Arithmetic", **({"max_new_tokens": 6} | changed)), "eval") is None
    # The same name, but a reward that pays these completions otherwise.
    monkeypatch.setattr(type(task.reward), "__call__", lambda self, prompts, completions, **_: [0.5] * len(prompts))
    assert committed_samples(make_task("Arithmetic", max_new_tokens=6), "eval") is None


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize(("each", "least"), [(256, 178), (1024, 186)])
def test_intervals_of_j_star_cover_at_few_effective_samples(each, least):
    """At 15 effective samples (Stop, 256 a prompt) the interval holds J* nearly as often as it says."""
    task = make_task("Stop")
    exact = solve(task, split="eval").objective
    covered = 0
    for seed in range(200):
        found = tilt(draw_samples(task, make_reference(task), each=each, seed=seed), task.beta, seed)
        low, high = np.quantile(found.replicates[:, 1], [0.025, 0.975])
        covered += low <= exact <= high
    assert covered >= least


@pytest.mark.slow
@pytest.mark.parametrize(("name", "independent"), [("Format", 0.646), ("Json", 0.614), ("Keywords", 0.865)])
def test_committed_optima_hold_what_other_samples_found(name, independent):
    """J* from 16,384 episodes of another policy, by other code; one that lies above has to rest on more samples."""
    optimum = optimum_of(make_task(name))
    assert optimum.committed
    assert optimum.value is not None
    assert optimum.effective_samples > 10
    assert optimum.value.high >= independent - 0.001
    if optimum.value.low > independent + 0.001:
        assert optimum.effective_samples > {"Format": 176, "Json": 42, "Keywords": 8}[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if place else []) for place, name in enumerate(COMMITTED)]
)
def test_every_sampled_task_of_the_suite_core_has_a_committed_optimum(name):
    task = make_task(name)
    optimum = optimum_of(task)
    assert optimum.committed
    assert optimum.value is not None
    assert optimum.value.low > optimum.reference.high
    # The same samples serve at any beta: with a dearer KL less is to be had.
    assert optimum_of(task, beta=2 * optimum.beta).value.mean < optimum.value.mean


def test_an_exact_optimum_of_another_reference_is_refused():
    task = make_task("Stop")
    shares = np.zeros(task.vocabulary.size)
    shares[task.vocabulary.allowed] = [0.6, 0.3, 0.1]
    skewed = NGramReference(shares)
    with pytest.raises(ValueError, match="another reference"):
        evaluate(UniformReference(task.vocabulary.allowed), task, skewed, optimum_of(task), per_prompt=2)
    own = optimum_of(task, reference=skewed)
    assert evaluate(skewed, task, skewed, own, per_prompt=2).kl.mean == pytest.approx(0.0, abs=1e-12)


def test_at_beta_0_a_task_that_is_not_solved_has_no_known_optimum():
    assert "samples cannot tell" in optimum_of(make_task("Text", prompts=["a"], beta=0.0)).unknown


def test_weights_that_are_far_apart_give_numbers():
    """Of 8 completions of a prompt one earns 1000 nats more: in a third of the replicates it is not there."""
    returns = np.zeros((2, 8))
    returns[0, 3] = 1000.0
    samples = Samples(returns, np.zeros((2, 8)), np.full(2, 0.5), 8, 2000.0, np.zeros((2, 1, 1), dtype=np.int32))
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        found = tilt(samples, beta=1.0)
    assert np.isfinite(found.replicates).all()
    # Without it a prompt's own J* is at most -345 nats from the greatest weight: the interval's end is far below.
    assert np.percentile(found.replicates[:, 1], 2.5) < found.values[0] / 2 - 150


class Constant:
    def __init__(self, maximum):
        self.maximum = maximum

    def __call__(self, prompts, completions, **columns):
        return [self.maximum] * len(completions)


@pytest.mark.parametrize("maximum", [0.9, 0.7, 0.6, -0.3, 1e6 + 0.1, 1e6 + 0.15])
def test_a_maximum_that_no_float32_equals_is_reached(maximum):
    task = make_task("Text", prompts=["a"], tokenizer=["a", "b", "<end>"], reward=Constant(maximum), max_new_tokens=2)
    assert sampled(task, each=32).value.mean == pytest.approx(maximum)


def test_what_was_not_drawn_lies_where_it_is_worth_most():
    # Nine prompts at the maximum, one that earns nothing: 3 / n of the probability in that one alone, by hand.
    values, each, beta = np.array([1.0] * 9 + [0.0]), 128, 0.05
    returns = np.repeat(values[:, None], each, axis=1) + np.where(np.arange(each) == 0, -1e-3, 0.0)
    samples = Samples(returns, np.zeros_like(returns), np.full(10, 0.1), each, 1.0, np.zeros((10, 1, 1), np.int32))
    found = estimated(samples, beta, "eval")
    assert found.room == pytest.approx(0.1 * beta * math.log(1 + 3 / each * math.exp(1 / beta)), rel=0.02)
