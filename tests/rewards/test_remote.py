"""Rewards that wait: many at once, retries, a cache; and a judge behind a server that does what servers do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import sqlite3
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from textgym_agents.config import TrainSettings
from textgym_agents.training.loop import SilentWatcher, Training

from textgym import make_task
from textgym.rewards import RewardError, Scorer, TextGymWarning, Weighted, make_reward, remote
from textgym.rewards.remote import Concurrent, Judge

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

    def reply(self, data, status, cut=False):
        text = json.dumps(data).encode()
        text = text[: len(text) // 2] if cut else text
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
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
        threading.Thread(target=made.serve_forever, daemon=True).start()
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
