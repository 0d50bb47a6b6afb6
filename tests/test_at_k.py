"""avg@k, pass@k and majority@k: unbiased over all ways to draw, and right about policies whose truth is enumerated."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli_tools import run

from textgym import make_task
from textgym.estimates import majority_ways
from textgym.evaluate import at_k
from textgym.rewards.answers import vote
from textgym.sampling import play
from textgym.solver import solve
from textgym.task import make_reference

TEXTS = ["#### 7", "so \\boxed{7.0}", "8", "#### 9", "I say 9", "none", "#### 8"]
RIGHT = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def episodes(texts: list[str], gold: list[float]) -> Any:
    rows = np.array([texts], dtype=object)
    scores = np.array([gold])
    return SimpleNamespace(returns=scores, gold=scores, written=rows, weights=np.ones(1))


def voted(answers: list[str], right: str) -> float:
    """How often the most frequent answer is right, ties being broken at random."""
    counts = Counter(answers)
    top = max(counts.values())
    tied = [answer for answer, count in counts.items() if count == top]
    return (right in tied) / len(tied)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6, 7])
def test_every_way_to_draw_counts_the_same(k: int) -> None:
    task = make_task("Arithmetic")
    found = at_k(task, episodes(TEXTS, RIGHT), [k])
    answers = ["7", "7", "8", "9", "9", "none", "8"]
    ways = list(combinations(range(7), k))
    assert found["avg"][k].mean == pytest.approx(2 / 7)
    assert found["pass"][k].mean == pytest.approx(np.mean([any(RIGHT[i] for i in way) for way in ways]))
    votes = [voted([answers[i] for i in way], "7") for way in ways]
    assert found["majority"][k].mean == pytest.approx(np.mean(votes))
    assert found["pass"][k].low <= found["pass"][k].mean <= found["pass"][k].high


@pytest.mark.parametrize("k", range(1, 9))
def test_majorities_of_rows_whose_counts_differ(k: int) -> None:
    rows, right = np.array([[4, 4, 0, 1], [1, 2, 3, 3], [0, 1, 7, 1], [3, 3, 3, 0]]), [1.0, 0.25, 0.0, 0.5]
    want = []
    for row in rows:
        answers = [str(answer) for answer, count in enumerate(row) for _ in range(count)]
        ways = list(combinations(answers, k))
        want.append(sum(share * voted(list(way), str(answer)) for way in ways for answer, share in enumerate(right)))
    assert majority_ways(rows, np.array(right), k) == pytest.approx(want)


def test_pass_at_k_by_the_formula_of_its_paper() -> None:
    found = at_k(make_task("Arithmetic"), episodes(["1"] * 3 + ["2"] * 17, [1.0] * 3 + [0.0] * 17), [5])
    assert found["pass"][5].mean == pytest.approx(1 - math.comb(17, 5) / math.comb(20, 5))


@pytest.mark.long
def test_the_truth_of_a_solved_task_is_met() -> None:
    """Of the reference on Countdown, p per prompt and per answer are known by enumeration."""
    task = make_task("Countdown", difficulty=2)
    every = solve(task, split="eval").reference.trajectories
    right = np.array([8 * every.probability[(every.prompt == p) & (every.returns == 1)].sum() for p in range(8)])
    found = [at_k(task, play(make_reference(task), task, per_prompt=64, seed=seed), [1, 4, 16]) for seed in range(12)]
    for k in (1, 4, 16):
        truth = float(np.mean(1 - (1 - right) ** k))
        estimates = [each["pass"][k] for each in found]
        means = [each.mean for each in estimates]
        assert np.mean(means) == pytest.approx(truth, abs=3 * np.std(means) / math.sqrt(12))
        assert sum(each.low <= truth <= each.high for each in estimates) >= 9
        assert all(each.high - each.low < 0.4 for each in estimates)
        assert [each["avg"][k].mean for each in found] == pytest.approx([each["pass"][1].mean for each in found])
    assert [each["majority"][1].mean for each in found] == pytest.approx([each["pass"][1].mean for each in found])


def test_the_variance_is_the_jackknifes() -> None:
    """Of pass@2 of 1 right among 4: without a wrong one 2 / 3, without the right one 0."""
    estimate = at_k(make_task("Arithmetic"), episodes(["1", "2", "3", "4"], [1.0, 0.0, 0.0, 0.0]), [2])["pass"][2]
    assert estimate.mean == pytest.approx(0.5)
    half = 1.96 * math.sqrt(3 / 4 * (3 * (2 / 3 - 0.5) ** 2 + 0.25))
    assert (estimate.low, estimate.high) == (pytest.approx(max(0.0, 0.5 - half)), pytest.approx(min(1.0, 0.5 + half)))


def jackknifed(left: Any) -> float:
    """The jackknife's variance of a statistic that is `left[i]` without draw i."""
    return (len(left) - 1) / len(left) * sum((each - np.mean(left)) ** 2 for each in left)


@pytest.mark.parametrize(("count", "k"), [(5, 1), (5, 2), (5, 3), (5, 5), (2, 1), (2, 2)])
def test_intervals_over_prompts_by_leaving_every_completion_out(count: int, k: int) -> None:
    texts = [each[:count] for each in (["1", "2", "1", "3", "2"], ["1", "4", "4", "4", "5"])]
    weights = np.array([0.7, 0.3])
    rows = np.array(texts, dtype=object)
    scores = (rows == "1").astype(float)
    every = SimpleNamespace(returns=scores, gold=scores, written=rows, weights=weights)
    found = at_k(make_task("Arithmetic"), every, [k])

    def measures(answers: list[str], few: int) -> list[float]:
        ways = [list(way) for way in combinations(answers, few)]
        wins = [voted(way, "1") for way in ways]
        return [answers.count("1") / len(answers), np.mean(["1" in way for way in ways]), np.mean(wins)]

    means, variances = np.zeros(3), np.zeros(3)
    for own, weight in zip(texts, weights, strict=True):
        value = measures(own, k)
        without = [measures(own[:i] + own[i + 1 :], min(k, count - 1)) for i in range(count)]
        means += weight * np.array(value)
        variances += weight**2 * np.array([jackknifed(left) for left in np.transpose(without)])
    for name, mean, width in zip(found, means, 1.96 * variances**0.5, strict=True):
        estimate = found[name][k]
        assert estimate.mean == pytest.approx(mean)
        if width > 0:
            ends = np.clip([mean - width, mean + width], 0, 1).tolist()
            assert (estimate.low, estimate.high) == pytest.approx(tuple(ends))


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_where_all_are_alike_the_rule_of_three_bounds_them(right: float) -> None:
    rows, weights = np.full((2, 10), "1", dtype=object), np.array([0.75, 0.25])
    scores = np.full((2, 10), right)
    every = SimpleNamespace(returns=scores, gold=scores, written=rows, weights=weights)
    found = at_k(make_task("Arithmetic"), every, [2])
    far = 3 * 0.75 / 10
    bounds = {"avg": far, "majority": far, "pass": far**2 if right else 1 - (1 - far) ** 2}
    for name, bound in bounds.items():
        estimate = found[name][2]
        assert estimate.mean == right
        assert (estimate.low, estimate.high) == pytest.approx((1 - bound, 1) if right else (0, bound))
    # Of two completions a share of 3 / 2 is one of 1.
    assert at_k(make_task("Arithmetic"), episodes(["2", "3"], [0.0, 0.0]), [2])["pass"][2].high == 1


@pytest.mark.parametrize("declared", [None, 2.0])
@pytest.mark.parametrize("golden", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_right_is_what_earns_the_most_or_what_is_said(declared: float | None, golden: bool, gamma: float) -> None:
    class Pay:
        maximum = declared

        def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
            return [2.0 if text == "a a" else float("a" in text) for text in completions]

    pay = Pay()
    reward = (lambda completions, **_: [0.0] * len(completions)) if golden else pay
    task = make_task(
        "Text", prompts=["a"], tokenizer=["a", "b"], max_new_tokens=2, reward=reward, gold=pay if golden else None,
        gamma=gamma,
    )  # fmt: skip
    every = play(make_reference(task), task, per_prompt=40)
    texts = every.completions[0].tolist()
    shares = {2.0: texts.count("a a") / 40, 1.0: sum("a" in text for text in texts) / 40}
    assert 0 < shares[2.0] < shares[1.0] < 1
    assert at_k(task, every, [1])["avg"][1].mean == pytest.approx(shares[declared or 1.0])
    for right, share in shares.items():
        assert at_k(task, every, [1], right=right)["avg"][1].mean == pytest.approx(share)
    # What is paid may lie under it by rounding.
    assert at_k(task, every, [1], right=2.0 + 1e-10)["avg"][1].mean == pytest.approx(shares[2.0])


def test_one_completion_has_no_interval() -> None:
    found = at_k(make_task("Arithmetic"), episodes(["1"], [1.0]), [1])
    assert all(each[1].mean == 1 and math.isnan(each[1].low) for each in found.values())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("so #### 7.0", 7), ("I say 7.", 7), ("none ", "none"), ("3 - 8 =", "3 - 8 ="), ("3 + 4 = 7", 7), ("#### x", "x")],
)
def test_what_counts_as_the_same_answer(text: str, wanted: object) -> None:
    assert vote(text) == wanted


def test_majority_meets_the_truth_of_a_distribution_of_three_answers() -> None:
    p, k = {"1": 0.4, "2": 0.35, "3": 0.25}, 5
    truth = sum(math.prod(p[a] for a in way) * voted(list(way), "1") for way in product(p, repeat=k))
    generator, found, covered = np.random.default_rng(0), [], 0
    for _ in range(40):
        texts = generator.choice(list(p), 60, p=list(p.values())).tolist()
        estimate = at_k(make_task("Arithmetic"), episodes(texts, [float(t == "1") for t in texts]), [k])["majority"][k]
        found.append(estimate.mean)
        covered += estimate.low <= truth <= estimate.high
    assert np.mean(found) == pytest.approx(truth, abs=3 * np.std(found) / math.sqrt(40))
    assert covered >= 34


@pytest.mark.parametrize("k", [0, 8, 101])
def test_a_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="k="):
        at_k(make_task("Arithmetic"), episodes(TEXTS, RIGHT), [k])


def test_the_command_shows_them(capsys: Any) -> None:
    words = ("eval", "Countdown-v0", "--env", "difficulty=2", "--per-prompt", "8", "--k", "1", "8")
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert "pass@k" in out
    assert "majority@k" in out
    report = json.loads(run(capsys, *words, "--json")[1])
    assert (
        report["pass@1"]["mean"]
        == pytest.approx(report["avg@8"]["mean"])
        == pytest.approx(report["majority@1"]["mean"])
    )
    assert report["pass@8"]["mean"] >= report["pass@1"]["mean"]
    code, _, err = run(capsys, *words[:-1], "9")
    assert code == 2
    assert "k=9" in err


@pytest.mark.parametrize("shaped", [False, True])
@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_a_discount_makes_no_answer_wrong(gamma: float, shaped: bool) -> None:
    words = {"tokenizer": ["yes", "no", "<end>"], "stop": "<end>", "prompts": ["no"], "max_new_tokens": 3}
    found = {}
    for each in (1.0, gamma):
        reward: dict[str, Any] = {"name": "keywords", "words": ["yes"]}
        if shaped:
            reward = {"name": "shaped", "reward": reward, "gamma": each}
        task = make_task("Text", reward=reward, gamma=each, **words)
        found[each] = at_k(task, play(make_reference(task), task, per_prompt=64), [1, 4])
    assert 0.2 < found[gamma]["avg"][1].mean < 0.9
    assert found[gamma] == found[1.0]


def test_completions_that_all_agree_are_not_exact_and_the_interval_covers() -> None:
    class Coin:
        def log_probs(self, observation: Any) -> Any:
            return np.tile(np.log([0.05, 0.475, 0.475]), (len(observation["input_ids"]), 1))

    def is_a(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        return [float(text == "a") for text in completions]

    task = make_task("Text", prompts=["a"], tokenizer=["a", "b", "c"], reward=is_a, max_new_tokens=1)
    found = [at_k(task, play(Coin(), task, per_prompt=16, seed=seed), [1, 4]) for seed in range(100)]
    none = [each for each in found if each["pass"][1].mean == 0]
    assert len(none) > 30
    assert not any(each["pass"][1].exact for each in found)
    # The rule of three: 3 / 16 of the probability may be right, whatever k is; four draws find it so often:
    for k, high in ((1, 3 / 16), (4, 1 - (13 / 16) ** 4)):
        assert none[0]["pass"][k].high == pytest.approx(high)
        assert none[0]["avg"][k].high == none[0]["majority"][k].high == 3 / 16
    for k, truth in ((1, 0.05), (4, 1 - 0.95**4)):
        assert sum(each["pass"][k].low <= truth <= each["pass"][k].high for each in found) >= 90


@pytest.mark.parametrize(("right", "k", "low"), [(10, 1, 0.7), (10, 5, 1 - 0.3**5), (9, 5, 1 - 0.4**5)])
def test_where_no_completion_decides_pass_at_k_has_the_interval_of_the_share(right: int, k: int, low: float) -> None:
    # 3 of 10 more may be wrong, by the rule of three; with 9 right any five hold a right one.
    answers = ["1"] * right + ["0"] * (10 - right)
    gold = [1.0] * right + [0.0] * (10 - right)
    found = at_k(make_task("Arithmetic"), episodes(answers, gold), [k], right=1.0)
    assert (found["pass"][k].mean, found["pass"][k].high) == (1.0, 1.0)
    assert found["pass"][k].low == pytest.approx(low)
