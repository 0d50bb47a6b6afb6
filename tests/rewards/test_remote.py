"""Rewards that wait: many at once, retries, a cache; and a judge behind a server that does what servers do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import pickle
import sqlite3
import threading
import time
import warnings
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from textgym_agents.config import TrainSettings
from textgym_agents.training.loop import SilentWatcher, Training

from textgym import make_task
from textgym.files import value_at
from textgym.rewards import RewardError, RunningNorm, Scorer, TextGymWarning, Weighted, make_reward, remote
from textgym.rewards.remote import Concurrent, Judge, read_answer

KEY = "sk-planted-0123456789"
calls: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    calls.clear()
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.001)
    monkeypatch.setenv("JUDGE_KEY", KEY)


async def score(prompt, completion, **row):
    """What the completion says; "twice" fails once, "never" always."""
    calls[completion] += 1
    await asyncio.sleep(float(row.get("wait", 0.0)))
    if completion == "never" or (completion == "twice" and calls[completion] < 2):
        raise ConnectionError("it is down")
    return None if completion == "silent" else len(prompt) + len(completion)


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


SAID = {"choices": [{"message": {"content": '{"score": 0.5}'}}]}
ODD = ["[]", "null", "3", "<html>login page</html>", "", '{"detail": "Not found"}', '{"choices": "none"}', "[" * 99_999]
ODD += ['{"choices": []}', '{"choices": [{}]}', '{"choices": [{"message": null}]}', '{"choices": [null]}']
ODD += ['{"choices": [{"message": {"content": [{"type": "text", "text": "{}"}]}}]}']
USAGES = [None, {}, "none", [], {"prompt_tokens": 7}, {"prompt_tokens": -7, "completion_tokens": True}]


class Server(BaseHTTPRequestHandler):
    """Answers as the completion says, by the number of the request for it."""

    seen: ClassVar[Counter[str]] = Counter()
    asked: ClassVar[list[dict]] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        Server.asked.append({"authorization": self.headers["Authorization"], **body})
        how = text.split("<", 1)[1].split(">", 1)[0]
        Server.seen[how] += 1
        first = Server.seen[how] == 1
        if how == "slow" and first:
            time.sleep(1.5)
        if how.startswith(("odd", "usage")):
            number = int(how[-2:])
            text = ODD[number] if how.startswith("odd") else json.dumps(SAID | {"usage": USAGES[number]})
            self.reply(text, 200, kind="text/html" if number % 2 else "application/json")
            return
        if how.startswith("echo"):  # so long that the key lies where messages are cut
            said = "y" * int(how[-3:]) + self.headers["Authorization"]
            self.reply({"error": {"message": said}}, 401) if "401" in how else self.reply(said, 200)
            return
        if how in ("429", "500", "401") and (first or how == "401"):
            self.reply({"error": {"message": f"no: {self.headers['Authorization']}"}}, int(how))
            return
        content = {
            "half": '{"score": 0.',
            "schema": '{"grade": 1}',
            "range": '{"score": 7}',
            "prose": 'I say {"score": 1}',
        }
        said = content[how] if how in content and (first or how == "prose") else '{"score": 0.25}'
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        self.reply(answer, 200, cut=how == "cut" and first)

    def reply(self, data, status, cut=False, kind="application/json"):
        text = (data if isinstance(data, str) else json.dumps(data)).encode()
        text = text[: len(text) // 2] if cut else text
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        with contextlib.suppress(OSError):  # nobody waits any more
            self.wfile.write(text)

    def log_message(self, *_):
        pass


class ManyAtOnce(ThreadingHTTPServer):
    """A server that keeps nobody waiting for a connection."""

    request_queue_size = 64


@pytest.fixture
def server():
    Server.seen.clear()
    Server.asked.clear()
    with ManyAtOnce(("127.0.0.1", 0), Server) as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}/v1"
        made.shutdown()


def judge(server, **settings):
    pytest.importorskip("openai")
    rubric = "Is <{completion}> a good answer to {prompt}, which is {answer}?"
    spec = {"name": "judge", "model": "m", "rubric": rubric, "base_url": server, "key": "JUDGE_KEY", **settings}
    return make_reward(spec)


@pytest.mark.slow
def test_a_judge_outlives_what_servers_do(server, tmp_path):
    reward = judge(server, seconds=1.0, prices=[1.0, 2.0], cache=str(tmp_path / "scores"))
    texts = ["good", "slow", "429", "500", "half", "cut", "schema", "range", "prose", "401"]
    scorer = Scorer(reward, "skip")
    columns = {"answer": ["42"] * len(texts)}
    with pytest.warns(TextGymWarning) as told:
        found = scorer.score(["life"] * len(texts), texts, columns)
    assert found.total.tolist() == [0.25] * 8 + [0.0, 0.0]
    assert scorer.failures == {"wrong_type": 1, "raises": 1}
    said = " ".join(str(each.message) for each in told)
    assert 'the judge answered \'I say {"score": 1}\'; allowed is {"score": NUMBER} from 0 to 1 (4 tries)' in said
    assert "the server answered 401" in said
    assert Server.seen == {"good": 1, "401": 1, "prose": 4, **dict.fromkeys(texts[1:8], 2)}
    spent = scorer.spent()
    # Three answers were no answers: the slow one, which comes too late, 429 and 500; of 401 there is none.
    answered = 1 + 7 + 4 + 3
    assert (spent["calls"], spent["retries"], spent["failed"]) == (20, 10, 2)
    assert (spent["tokens_read"], spent["tokens_written"]) == (100 * answered, 10 * answered)
    assert spent["cost"] == pytest.approx((100 * answered + 2 * 10 * answered) / 1e6)
    # A run that goes on takes its scores from there, the same ones, and asks for those that failed.
    again = Scorer(judge(server, seconds=1.0, cache=str(tmp_path / "scores")), "skip")
    with pytest.warns(TextGymWarning):
        np.testing.assert_array_equal(again.score(["life"] * 10, texts, columns).total, found.total)
    assert again.spent()["cached"] == 8
    (asked,) = (each for each in Server.asked if "<good>" in each["messages"][0]["content"])
    assert asked["messages"][0]["content"].startswith("Is <good> a good answer to life, which is 42?")
    assert (asked["temperature"], asked["authorization"]) == (0.0, f"Bearer {KEY}")
    # The key is nowhere: not in what is said, though the server sent it back, nor in what is kept.
    kept = [str(vars(reward)), said, pickle.dumps(reward).decode("latin-1")]
    kept += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert not any(KEY in text for text in kept)
    assert "Bearer (the key)" in said


def test_an_answer_of_another_schema_costs_no_other_completion(server, capfd):
    odd, usages = [f"odd{each:02}" for each in range(len(ODD))], [f"usage{each:02}" for each in range(len(USAGES))]
    texts = ["good", *odd, *usages]
    reward = judge(server, retries=1)
    scorer = Scorer(reward, "penalty", -2.0)
    with pytest.warns(TextGymWarning, match=r"the judge answered '\[\]'; allowed is .* \(2 tries\)"):
        found = scorer.score(["life"] * len(texts), texts, {"answer": ["42"] * len(texts)}).total
    assert found.tolist() == [0.25] + [-2.0] * len(odd) + [0.5] * len(usages)
    assert Server.seen == {"good": 1, **dict.fromkeys(odd, 2), **dict.fromkeys(usages, 1)}
    assert scorer.failures == {"wrong_type": len(odd)}
    spent = scorer.spent()
    assert (spent["calls"], spent["failed"]) == (1 + 2 * len(odd) + len(usages), len(odd))
    assert (spent["tokens_read"], spent["tokens_written"]) == (107, 10)
    assert spent["unmetered"] == 2 * len(odd) + len(usages)
    assert capfd.readouterr().err == ""


def test_what_an_answer_holds():
    usage = {"prompt_tokens": 3, "completion_tokens": 0}
    assert read_answer(json.dumps(SAID | {"usage": usage})) == ('{"score": 0.5}', 3, 0)
    assert read_answer(json.dumps(SAID | {"usage": {"prompt_tokens": 1e300}})) == ('{"score": 0.5}', None, None)
    assert all(read_answer(each) == (None, None, None) for each in ODD)
    assert value_at({"a": [1, {"b": 2}]}, "a", 1, "b") == 2
    assert value_at({"a": "text"}, "a", "b") is None


@pytest.mark.parametrize("how", ["echo097", "echo110", "echo401-245", "echo401-262", "echo401-240"])
def test_no_part_of_the_key_is_shown_where_messages_are_cut(server, how):
    with pytest.raises(RewardError) as told:
        Scorer(judge(server, retries=0)).score(["life"], [how], {"answer": ["42"]})
    assert "yyyB" in str(told.value)
    assert KEY[:8] not in str(told.value)


def test_a_key_is_hidden_in_every_form_and_where_an_answer_ends_in_it(monkeypatch):
    secret = 'sk-it\'s/"so"-0123456789'
    monkeypatch.setenv("JUDGE_KEY", secret)
    reward = judge("http://127.0.0.1:9/v1")
    for form in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], secret.replace("/", "\\/"), secret[:15]):
        assert reward._cut(f"Bearer {form}") == "Bearer (the key)"
    assert judge("http://127.0.0.1:9/v1", key=None)._cut("none" * 99) == "none" * 75


def test_groups_share_the_connection_of_a_judge(server):
    scorer = Scorer({"name": "grouped", "reward": judge(server)})
    assert scorer.score(list("pqrs"), ["good"] * 4, {"answer": ["42"] * 4}).total.tolist() == [0.25] * 4


@pytest.mark.parametrize("key", ["sk-LITERALKEY", "hf_LiteralKey", "LITERAL0KEY", "LITERALKEY", 3])
def test_what_may_be_a_key_is_not_shown(key):
    with pytest.raises(ValueError, match=r"key=\(not shown\): the environment has no such variable") as told:
        judge("http://127.0.0.1:9/v1", key=key)
    assert str(key) not in str(told.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key": "NO_SUCH_KEY"}, "key='NO_SUCH_KEY': the environment has no such variable"),
        ({"rubric": "Is it good?"}, "allowed is a text with {completion} in it"),
        ({"low": 1.0}, "low=1.0: allowed is less than high=1.0"),
        ({"prices": [1.0]}, "prices=.1.0.: allowed are two numbers"),
        ({"model": ""}, "model=''"),
    ],
)
def test_a_bad_judge_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        judge("http://127.0.0.1:9/v1", **settings)


def test_a_judge_needs_the_columns_of_its_rubric(server):
    with pytest.raises(RewardError, match="'answer' is needed by reward 'judge'"):
        Scorer(judge(server)).score(["life"], ["good"])


def test_a_task_is_paid_by_a_judge(server, tmp_path):
    rubric = "How is <good>? {completion}"
    spec = {"name": "judge", "model": "m", "rubric": rubric, "base_url": server, "key": None}
    task = make_task("Text", reward=[{"name": "length", "target": 2}, {**spec, "cache": str(tmp_path / "s")}])
    assert task.scorer.term_names == ("length", "judge")
    scores = task.scorer.score(["p"], ["one two"])
    assert scores.terms["judge"].tolist() == [0.25]
    with sqlite3.connect(tmp_path / "s") as database:
        assert database.execute("SELECT score FROM scores").fetchall() == [(0.25,)]
    assert isinstance(make_reward(spec), Judge)


def test_a_run_holds_no_key(server, tmp_path):
    rubric = "How is <good>? {completion}"
    reward = {"name": "judge", "model": "m", "rubric": rubric, "base_url": server, "key": "JUDGE_KEY"}
    env = {"tokenizer": ["<end>", "a", "b"], "stop": "<end>", "reference": "uniform", "prompts": ["a"], "beta": 1.0}
    env |= {"max_new_tokens": 2, "reward": {**reward, "cache": str(tmp_path / "scores")}}
    plan = TrainSettings("textgym/Text-v0", "monte-carlo", 64, env=env, optimum_per_prompt=8)
    Training(plan).run(tmp_path / "run", SilentWatcher())
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert {"config.json", "metrics.jsonl", "samples.jsonl", "scores"} <= {each.name for each in files}
    assert b"JUDGE_KEY" in (tmp_path / "run" / "config.json").read_bytes()
    assert not any(KEY.encode() in each.read_bytes() for each in files)
