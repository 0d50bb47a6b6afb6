"""A judge behind a server that does what servers do: odd answers, limits, pauses, keys that nobody may see."""

from __future__ import annotations

import contextlib
import json
import pickle
import signal
import sqlite3
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from textgym_agents.config import TrainSettings
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.loop import SilentWatcher, Training

from textgym import make_task
from textgym.cli import main
from textgym.files import read_lines, value_at
from textgym.interrupts import TrainingInterrupted
from textgym.rewards import RewardError, Scorer, TextGymWarning, make_reward, remote
from textgym.rewards.remote import Judge, read_answer

KEY = "sk-planted-0123456789"
SAID = {"choices": [{"message": {"content": '{"score": 0.5}'}}]}
ODD = ["[]", "null", "3", "<html>login page</html>", "", '{"detail": "Not found"}', '{"choices": "none"}', "[" * 99_999]
ODD += ['{"choices": []}', '{"choices": [{}]}', '{"choices": [{"message": null}]}', '{"choices": [null]}']
ODD += ['{"choices": [{"message": {"content": [{"type": "text", "text": "{}"}]}}]}']
BAD = ["slow", "gone", 429, 500, '{"score": 0.', "cut", '{"grade": 1}']
USAGES = [None, {}, "none", [], {"prompt_tokens": 7}, {"prompt_tokens": -7, "completion_tokens": True}]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.001)
    monkeypatch.setenv("JUDGE_KEY", KEY)


class Server(BaseHTTPRequestHandler):
    """Answers as the completion says, by the number of the request for it."""

    seen: ClassVar[Counter[str]] = Counter()
    asked: ClassVar[list[dict]] = []
    all_in_flight: ClassVar = threading.Barrier(64)
    mood: ClassVar[int] = 0
    moods: ClassVar[dict[str, int]] = {}

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        Server.asked.append({"authorization": self.headers["Authorization"], **body})
        how = text.split("<", 1)[1].split(">", 1)[0]
        Server.seen[how] += 1
        first = Server.seen[how] == 1
        if how == "slow" and first:
            time.sleep(1.5)
        if how == "together":
            Server.all_in_flight.wait(20)  # raises, and so closes the connection, if they do not all come
            time.sleep(1.0)
        if how == "bad":
            self.reply_badly(text)
            return
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

    def reply_badly(self, text):
        """Fail twice, then give a score; a text that got one in another mood gets another one."""
        Server.seen[text] += 1
        number = zlib.crc32(text.encode())
        how = BAD[(number + Server.seen[text]) % len(BAD)] if Server.seen[text] <= 2 else None
        Server.seen[str(how)] += 1
        if how == "slow":
            time.sleep(0.8)
        elif how == "gone":
            self.close_connection = True  # without an answer
        elif isinstance(how, int):
            self.reply({"error": {"message": "no"}}, how)
        elif how is not None:
            self.reply({"choices": [{"message": {"content": how}}]}, 200, cut=how == "cut")
        else:
            changed = Server.mood - Server.moods.setdefault(text, Server.mood)
            score = (number + changed) % 1009 / 1009
            self.reply({"choices": [{"message": {"content": json.dumps({"score": score})}}]}, 200)

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
    Server.moods.clear()
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


@pytest.mark.slow
def test_64_calls_of_a_second_wait_together(server, tmp_path):
    reward = judge(server, retries=0, cache=str(tmp_path / "scores"))
    scorer, columns = Scorer(reward), {"answer": [str(each) for each in range(64)]}
    assert scorer.score(["life"], ["good"], {"answer": ["42"]}).total.tolist() == [0.25]  # what is made once is made
    started = time.process_time()
    assert scorer.score(["life"] * 64, ["together"] * 64, columns).total.tolist() == [0.25] * 64
    # A second of waiting and less than one of work: two at most where nothing else keeps the processor.
    assert time.process_time() - started < 1
    assert scorer.spent()["calls"] == 65


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


@pytest.mark.parametrize("how", ["echo097", "echo110", "echo401-245", "echo401-255", "echo401-240"])
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
        ({"rubric": "Is {prompt} good?"}, "allowed is a text with {completion} in it"),
        ({"low": 1.0}, "low=1.0: allowed is less than high=1.0"),
        ({"prices": [1.0]}, "prices=.1.0.: allowed are two numbers"),
        ({"prices": 3}, "prices=3: allowed are two numbers"),
        ({"base_url": 5}, "base_url=5: allowed is None, or what begins with http://"),
        ({"base_url": "nonsense"}, "base_url='nonsense': allowed is None, or what begins with http://"),
        ({"cache": "/no/such/folder/scores"}, "cache='/no/such/folder/scores': .*unable to open database file"),
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


@pytest.mark.long
@pytest.mark.slow
def test_a_run_and_its_export_hold_no_key(server, tmp_path, capfd):
    pytest.importorskip("openai")
    reward = {"name": "judge", "model": "m", "rubric": "How is {prompt} {completion}?", "base_url": server}
    reward |= {"key": "JUDGE_KEY", "retries": 0, "cache": str(tmp_path / "scores")}
    # The first gets scores, the second what was sent, with the key.
    env = [f"reward={json.dumps(reward)}", 'prompts=["<good>", "<echo097>"]', "max_new_tokens=3", "on_error=skip"]
    words = ["--agent", "rloo", "--episodes", "16", "--batch", "8", "--optimum-per-prompt", "0"]
    words += ["--final-per-prompt", "2", "--out", str(tmp_path / "run"), "--env", *env]
    assert main(["train", "Text-v0", *words]) == 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "export")]) == 0
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    names = {"config.json", "metrics.jsonl", "samples.jsonl", "scores", "README.md", "model.safetensors"}
    assert names <= {each.name for each in files}
    assert b"JUDGE_KEY" in (tmp_path / "run" / "config.json").read_bytes()
    with sqlite3.connect(tmp_path / "scores") as database:
        assert set(database.execute("SELECT score FROM scores")) == {(0.25,)}
    assert {each["authorization"] for each in Server.asked} == {f"Bearer {KEY}"}
    shown = capfd.readouterr()
    assert "yyyBearer (the key)" in shown.err
    for text in [shown.out.encode(), shown.err.encode(), *(each.read_bytes() for each in files)]:
        assert KEY[:8].encode() not in text


class Stopping(SilentWatcher):
    """Presses Ctrl-C twice after an iteration, so that the run stops at once, with no checkpoint of it."""

    def __init__(self, at):
        self.at = at

    def iteration(self, row):
        if row["iteration"] == self.at:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)


def of_a_run(folder):
    """What a training leaves, but for what it took and spent."""
    rows = RunFolder(folder).metrics()
    kept = [{name: row[name] for name in row if not name.endswith("seconds") and "/spent/" not in name} for row in rows]
    saved = {each.relative_to(folder): each.read_bytes() for each in folder.glob("checkpoint/**/*") if each.is_file()}
    return kept, read_lines(folder / "samples.jsonl"), saved


@pytest.mark.long
@pytest.mark.slow
def test_a_training_with_a_bad_judge_goes_on_bit_by_bit_from_its_cache(server, tmp_path):
    def plan(cache):
        reward = {"name": "judge", "model": "m", "rubric": "How is <bad>? {prompt} {completion}", "base_url": server}
        reward |= {"key": None, "seconds": 0.5, "retries": 6, "cache": str(tmp_path / cache)}
        env = {"prompts": ["Hello", "Why?"], "max_new_tokens": 3, "reward": reward, "beta": 0.1}
        few = {"eval_every": 2, "save_every": 2, "eval_per_prompt": 4, "final_per_prompt": 4, "optimum_per_prompt": 0}
        return TrainSettings("textgym/Text-v0", "rloo", 40, {"batch": 8}, env=env, samples=2, **few)

    pytest.importorskip("openai")
    Training(plan("one"), pictures=False).run(tmp_path / "whole", SilentWatcher())
    assert all(Server.seen[str(how)] for how in BAD)
    Server.seen.clear()
    Server.moods.clear()
    with pytest.raises(TrainingInterrupted):
        Training(plan("two"), pictures=False).run(tmp_path / "cut", Stopping(3))
    cut = RunFolder.reopen(tmp_path / "cut")
    assert (cut.metrics()[-1]["iteration"], cut.marked()) == (3, 2)
    Server.mood += 1
    asked = {text: Server.seen[text] for text in Server.moods}
    Training(plan("two"), cut, pictures=False).run(cut.path, SilentWatcher())
    assert of_a_run(tmp_path / "cut") == of_a_run(tmp_path / "whole")
    # What was asked before is not asked again, and what came later is.
    assert {text: Server.seen[text] for text in asked} == asked
    assert len(Server.moods) > len(asked)
    assert cut.metrics()[-1]["reward/spent/cached"] > 0
