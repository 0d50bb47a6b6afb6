"""Rewards that wait: many at once, in groups, with retries and a cache."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import pickle
import time
import warnings
from collections import Counter
from email.utils import formatdate

import numpy as np
import pytest

from textgym.rewards import RewardError, RunningNorm, Scorer, TextGymWarning, Weighted, make_reward, remote
from textgym.rewards.remote import Concurrent

calls: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    calls.clear()
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.001)


async def score(prompt, completion, **row):
    """What the completion says; "twice" fails once, "never" always."""
    calls[completion] += 1
    await asyncio.sleep(float(row.get("wait", 0.0)))
    if completion == "never" or (completion == "twice" and calls[completion] < 2):
        raise ConnectionError("it is down")
    return None if completion == "silent" else len(prompt) + len(completion)


@pytest.mark.long
@pytest.mark.slow
def test_what_it_costs_is_counted_under_a_time_limit_too():
    nothing = {"calls": 0, "retries": 0, "cached": 0, "failed": 0}
    reward = Concurrent(score, retries=0)
    scorer = Scorer(reward, "skip", timeout=60)
    assert scorer.spent() == nothing
    with pytest.warns(TextGymWarning, match="it is down"):
        scorer.score(["p"] * 3, ["ab", "never", "ab"])
    assert scorer.spent() == {**nothing, "calls": 2, "failed": 1}
    scorer.close()  # the next call has another process, which counts from 0
    scorer.score(["p"] * 2, ["ab", "abc"])
    assert scorer.spent() == {**nothing, "calls": 4, "failed": 1}
    scorer.close()
    Scorer(reward).score(["p"], ["ab"])  # what was spent before goes on, and counts once
    scorer = Scorer(reward, timeout=60)
    assert scorer.spent() == {**nothing, "calls": 1}
    for calls in (2, 3):
        scorer.score(["p"], ["ab"])
        assert scorer.spent() == {**nothing, "calls": calls}
        scorer.close()


def test_values_retries_and_what_it_costs():
    reward = Concurrent(score, retries=2)
    texts = ["ab", "twice", "never", "silent", "ab"]
    scorer = Scorer(reward, "skip")
    with pytest.warns(TextGymWarning, match=r"reward 'score': ConnectionError: it is down .*\(3 tries\)"):
        found = scorer.score(["p"] * 5, texts)
    np.testing.assert_array_equal(found.total, [3.0, 6.0, 0.0, 0.0, 3.0])
    assert calls == {"ab": 1, "twice": 2, "never": 3, "silent": 1}  # equal ones once, a failed one no more than that
    assert scorer.spent() == {"calls": 7, "retries": 3, "cached": 0, "failed": 1}
    assert scorer.failures == {"raises": 1}
    with pytest.raises(RewardError, match="it is down"):
        Scorer(Concurrent(score, retries=0)).score(["p"], ["never"])


@pytest.mark.slow
def test_calls_wait_together_within_a_bound():
    running = most = 0

    async def count(prompt, completion):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return 1.0

    texts = [str(number) for number in range(64)]
    started = time.monotonic()
    assert Scorer(Concurrent(count)).score(["p"] * 64, texts).total.sum() == 64
    assert time.monotonic() - started < 64 * 0.02 / 2
    assert most == 64
    most = 0
    Scorer(Concurrent(count, at_once=5)).score(["p"] * 64, texts)
    assert most == 5


@pytest.mark.slow
def test_rewards_of_a_sum_wait_at_once():
    together = Weighted([Concurrent(score, ["wait"]), Concurrent(score, ["wait"], name="other")], [1.0, 2.0])
    started = time.monotonic()
    found = Scorer(together).score(["p"], ["abc"], {"wait": [0.4]})
    assert time.monotonic() - started < 0.75
    assert (found.total.tolist(), together.term_names) == ([12.0], ("score", "other"))
    assert together.spent()["calls"] == 2


class Waiting:
    """An async reward of a batch that knows how many of its kind waited at once; the first prompt answers last."""

    name = "waiting"

    def __init__(self):
        self.running = self.most = 0

    async def __call__(self, prompts, completions, **columns):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.05 if prompts[0] == "p" else 0.02)
        self.running -= 1
        return [float(len(text) + 10 * len(completions)) for text in completions]

    async def one(self, prompt, completion):
        return (await self([prompt], [completion]))[0] - 10


PROMPTS, TEXTS = ["p", "q", "r", "s", "q", "p"], ["a", "ab", "abc", "abcd", "abcde", "abcdef"]


@pytest.mark.parametrize("around", [None, "clipped", "weighted", "from_messages"])
def test_groups_of_a_batch_wait_together(around):
    waiting = Waiting()
    inner = {"clipped": {"name": "clipped", "reward": waiting, "high": 100.0}, "weighted": Weighted([waiting])}
    reward = inner.get(around, waiting if around is None else {"name": around, "reward": waiting})
    found = Scorer({"name": "grouped", "reward": reward}).score(PROMPTS, TEXTS).total
    # Twice ten for the two completions of p and of q, and the length.
    assert found.tolist() == [21.0, 22.0, 13.0, 14.0, 25.0, 26.0]
    assert waiting.most == 4
    outer = Waiting()
    Scorer(
        Weighted([{"name": "grouped", "reward": outer.__call__}, {"name": "clipped", "reward": outer.__call__}])
    ).score(PROMPTS, TEXTS)
    assert outer.most == 5


def test_groups_share_the_bound_and_the_cache(tmp_path):
    waiting = Waiting()
    reward = Concurrent(waiting.one, at_once=3, cache=str(tmp_path / "scores"))
    grouped = Scorer({"name": "grouped", "reward": reward})
    assert grouped.score(PROMPTS, TEXTS).total.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert (waiting.most, reward.spent()["calls"], len(reward._lines)) == (3, 6, 0)
    assert grouped.score(PROMPTS, TEXTS).total.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert reward.spent()["cached"] == 6


def test_groups_end_in_their_order_whichever_answers_first():
    def at_once(prompts, completions, **columns):
        return [float(len(text) + 10 * len(completions)) for text in completions]

    # The running mean of q, which answers first, has p in it all the same.
    expected, found = (
        Scorer({"name": "grouped", "reward": RunningNorm(each)}).score(PROMPTS, TEXTS).total
        for each in (at_once, Waiting())
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_what_was_begun_is_given_up_when_another_reward_raises():
    def broken(prompts, completions, **columns):
        raise KeyError("no")

    waiting = Waiting()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(RewardError, match="KeyError"):
            Scorer(Weighted([Weighted([waiting]), broken])).score(["p"], ["a"])
        gc.collect()
    assert (waiting.most, told) == (0, [])  # no coroutine that was never awaited


def test_pauses_are_stretched_apart_and_the_same_each_time(monkeypatch):
    pauses, sleep = [], asyncio.sleep

    async def noted(seconds):
        pauses.append(seconds)
        await sleep(0)

    async def down(prompt, completion):
        raise ConnectionError

    monkeypatch.setattr(asyncio, "sleep", noted)
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 4.0)
    for _ in range(2):
        with pytest.warns(TextGymWarning):
            Scorer(Concurrent(down, retries=3), "skip").score(["p", "p"], ["a", "b"])
    assert pauses[:6] == pauses[6:]
    assert len(set(pauses[:6])) == 6
    for pause, least in zip(pauses, (4, 4, 8, 8, 8, 8), strict=False):
        assert least <= pause <= 1.25 * least


def test_a_server_says_how_long_to_leave_it_alone():
    now = time.time()
    assert [remote._pause(each) for each in (None, "2.5", "-1", "90", "nan", "soon")] == [0.0, 2.5, 0.0, 30.0, 0.0, 0.0]
    assert 18 <= remote._pause(formatdate(now + 20, usegmt=True)) <= 20
    assert remote._pause(formatdate(now - 20, usegmt=True)) == 0.0
    assert remote._pause(formatdate(now + 9999, usegmt=True)) == 30.0


def test_a_slow_call_fails_by_itself():
    scorer = Scorer(Concurrent(score, ["wait"], retries=1, seconds=0.05), "skip")
    with pytest.warns(TextGymWarning, match=r"no answer within 0.05 s \(2 tries\)"):
        found = scorer.score(["p", "p"], ["slow", "fast"], {"wait": [5.0, 0.0]})
    assert found.total.tolist() == [0.0, 5.0]
    assert scorer.failures == {"timeout": 1}


def test_scores_are_kept_and_belong_to_texts_columns_and_name(tmp_path):
    path = str(tmp_path / "scores.sqlite3")
    first = Concurrent(score, ["wait"], cache=path, retries=0)
    columns = {"wait": [0.0, 0.0, 0.0]}
    with pytest.warns(TextGymWarning, match="it is down"):
        before = Scorer(first, "skip").score(["p"] * 3, ["ab", "silent", "twice"], columns)
    again = Concurrent(score, ["wait"], cache=path, retries=0)
    after = Scorer(again).score(["p"] * 3, ["ab", "silent", "twice"], columns)
    assert after.total.tolist() == [3.0, 0.0, 6.0]  # what failed is asked for again
    assert np.isnan(after.terms["score"]).tolist() == [False, True, False]
    assert before.total[:2].tolist() == after.total[:2].tolist()
    assert again.spent() == {"calls": 1, "retries": 0, "cached": 2, "failed": 0}
    for other, wait in ((Concurrent(score, ["wait"], cache=path, name="new"), 0.0), (again, 0.01)):
        before_calls = other.counts["calls"]
        Scorer(other).score(["p"], ["ab"], {"wait": [wait]})
        assert other.counts["calls"] == before_calls + 1
    restored = pickle.loads(pickle.dumps(again))
    assert Scorer(restored).score(["p"], ["ab"], {"wait": [0.0]}).total.tolist() == [3.0]
    (tmp_path / "text").write_text("no database, but longer than nothing" * 9)
    with pytest.raises(ValueError, match=r"cache='.*text': it is no database of scores"):
        Concurrent(score, cache=str(tmp_path / "text"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "remote_scores:nothing"}, "remote_scores"),
        ({"score": 3}, "score=3: allowed is an async function"),
        ({"score": score, "columns": "answer"}, "columns='answer'"),
        ({"score": score, "at_once": 0}, "at_once=0"),
        ({"score": score, "retries": -1}, "retries=-1"),
        ({"score": score, "seconds": 0}, "seconds=0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises((ValueError, TypeError, ImportError), match=message):
        make_reward({"name": "concurrent", **settings})


@pytest.mark.parametrize("first", [np.zeros(2000), np.array([0.123456781])])
def test_rows_that_differ_inside_an_array_have_scores_of_their_own(first):
    async def score(prompt, completion, field):
        return float(np.sum(field))

    second = first.copy()
    second[len(second) // 2] += 3e-9
    reward = Concurrent(score, columns=["field"], retries=0)
    assert reward.key("p", "c", {"field": first}) == reward.key("p", "c", {"field": first.copy()})
    assert reward.key("p", "c", {"field": first}) != reward.key("p", "c", {"field": second})
    own = [np.zeros(2000), np.repeat([0.0, 5.0, 0.0], [1000, 1, 999])]
    assert Scorer(reward).score(["p", "p"], ["c", "c"], {"field": own}).total.tolist() == [0, 5]


class Rate:
    def __init__(self, value):
        self.value = value

    async def __call__(self, prompt, completion, **row):
        return self.value


@pytest.mark.parametrize(
    "function", [functools.partial(score, wait=0.0), Rate(3.0), lambda *texts, **row: score(*texts)]
)
def test_a_cache_needs_a_name(tmp_path, function):
    place = str(tmp_path / "scores.sqlite3")
    with pytest.raises(ValueError, match=r"^cache='.*scores\.sqlite3': scores are kept under a name, and .* has none"):
        Concurrent(function, cache=place)
    assert Scorer(Concurrent(function, cache=place, name="mine")).score(["p"], ["ab"]).total.tolist() == [3.0]


@pytest.mark.parametrize(
    ("value", "total", "kind"),
    [
        (True, 1.0, None),
        (np.array(2.5), 2.5, None),
        (math.nan, 0.0, "nan"),
        (-math.inf, 0.0, "inf"),
        ("1", 0.0, "wrong_type"),
    ],
)
@pytest.mark.filterwarnings("ignore:reward")
def test_what_an_async_function_returns_counts_as_of_any_reward(value, total, kind):
    found = [Scorer(reward, "skip") for reward in (Concurrent(Rate(value), retries=0), lambda **_: [value])]
    assert [each.score(["p"], ["ab"]).total.tolist() for each in found] == [[total], [total]]
    assert [dict(each.failures) for each in found] == [{} if kind is None else {kind: 1}] * 2
