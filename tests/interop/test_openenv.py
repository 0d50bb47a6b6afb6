"""Tasks served by OpenEnv's own server, and OpenEnv environments as users: the same episodes as here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from textgym import TokenEnv, make_task
from textgym.bridges.client import OpenEnvUser
from textgym.bridges.server import make_app
from textgym.task import Task

pytestmark = pytest.mark.slow
core = pytest.importorskip("openenv.core", reason="openenv-core is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="openenv-core is not installed")
ConnectionClosed = pytest.importorskip("websockets.exceptions").ConnectionClosed

PROMPTS = ["What do you like?", "Who are you?"]
SESSIONS = 64


def curious(conversations: Any) -> list[str]:
    return [f"Why {conversation[-1]['content'].split(' ')[0]}?" for conversation in conversations]


def letters(prompts: Any, completions: Any, turns: Any, **columns: Any) -> list[float]:
    return [float(sum(len(text.strip()) for author, text in said if author == "policy")) for said in turns]


@contextlib.contextmanager
def served(task: Task, **options: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(make_app(task, **options), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def local(task: Task, seed: int) -> list[Any]:
    """What an episode of random tokens observes, and the tokens."""
    env, generator, found, done = TokenEnv(task), np.random.default_rng(seed), [], False
    _, info = env.reset(seed=seed)
    found.append((None, list(env.get_state().tokens), list(env.get_state().authors), 0.0, False, info))
    while not done:
        token = int(generator.choice(np.flatnonzero(env.action_masks())))
        if task.vocabulary.stop_ids and generator.random() < 0.2:
            token = task.vocabulary.stop_ids[0]
        _, reward, done, _, info = env.step(token)
        state = env.get_state()
        found.append((token, list(state.tokens), list(state.authors), reward, done, info))
    return found


@pytest.mark.parametrize("name", ["TwentyQuestions", "Text"])
def test_many_sessions_at_once_are_as_many_environments(name: str) -> None:
    options = {"prompts": PROMPTS, "responder": curious, "turns": 3, "turn_tokens": 4} if name == "Text" else {}
    task = make_task(name, **options)

    async def play(url: str, wanted: list[list[Any]]) -> None:
        sessions = [core.GenericEnvClient(url) for _ in wanted]
        await asyncio.gather(*(session.connect() for session in sessions))
        last = await asyncio.gather(*(each.reset(seed=seed) for seed, each in enumerate(sessions)))
        for place in range(max(map(len, wanted))):
            # Every session that runs takes one step, all at once.
            there = [seed for seed, steps in enumerate(wanted) if place < len(steps)]
            if place:
                actions = ({"tokens": [wanted[seed][place][0]]} for seed in there)
                last = await asyncio.gather(
                    *(sessions[seed].step(action) for seed, action in zip(there, actions, strict=True))
                )
            for seed, found in zip(there, last, strict=True):
                _, tokens, authors, reward, done, info = wanted[seed][place]
                seen = found.observation
                assert (seen["tokens"], seen["authors"], seen["info"]) == (tokens, authors, info)
                assert ((found.reward or 0.0), found.done) == (reward, done)
        await asyncio.gather(*(session.close() for session in sessions))

    with served(task, sessions=SESSIONS) as url:
        wanted = [local(task, seed) for seed in range(SESSIONS)]
        asyncio.run(play(url, wanted))
    assert len({tuple(steps[-1][1]) for steps in wanted}) > 8  # they are not one episode


def test_texts_and_several_tokens_are_the_same_turns() -> None:
    task = make_task("TwentyQuestions")
    with served(task) as url, core.GenericEnvClient(url).sync() as one, core.GenericEnvClient(url).sync() as other:
        for seed in range(4):
            one.reset(seed=seed)
            other.reset(seed=seed)
            for text, tokens in (("<2", [1]), ("3", [6])):
                assert one.step({"text": text}) == other.step({"tokens": tokens})
        assert one.state()["step_count"] == 2


REFUSED = [
    ({"tokens": [99]}, r"tokens\[0\]=99: allowed is an integer in 0..11"),
    ({"tokens": [-1]}, r"tokens\[0\]=-1: allowed is an integer in 0..11"),
    ({"tokens": [True]}, r"tokens\[0\]=True: allowed is an integer"),
    ({"tokens": ["1"]}, r"tokens\[0\]='1': allowed is an integer"),
    ({"tokens": "a"}, "tokens='a': allowed is a list of at least one token id"),
    ({"tokens": []}, r"tokens=\[\]: allowed is a list of at least one token id"),
    ({"tokens": [0, 0]}, r"tokens=\[0, 0\]: the turn ends with the first 1"),
    ({"text": 5}, "text=5: allowed is a text"),
    ({"text": "lions"}, "text='lions': allowed is what this vocabulary can write"),
    ({"text": "<1 <2"}, "text='<1 <2': a turn of 2 tokens, allowed are 1 here"),
    ({"text": ""}, "text='': a turn of 0 tokens, allowed are 1 here"),
    ({"token": 1}, "action 'token': not one of text, tokens. Did you mean 'tokens'?"),
    ({}, "action={}: allowed is one of tokens and text"),
    ({"text": "0", "tokens": [3]}, "allowed is one of tokens and text"),
]
RAW = [
    ("[1]", "allowed is"),
    ("{", "allowed is JSON"),
    ('{"type": "jump"}', "message type 'jump': not one of close, mcp, reset, state, step"),
    ('{"type": "step", "data": 5}', "allowed is"),
    ('{"type": "step", "data": {"\\ud800": "x"}}', "in UTF-8"),  # half of a surrogate pair
    ('{"type": "state", "data": {"a": ["\\ud800"]}}', "in UTF-8"),
    (b"\x00", "message: bytes; allowed is a text"),
    (" " * 5000, "message: 5000 bytes; allowed are at most 4096"),
]
RESETS = [
    ({"seed": -1}, "seed=-1: allowed is an integer >= 0"),
    ({"seed": "x"}, "seed='x': allowed is an integer >= 0"),
    ({"speed": 1}, "option 'speed': not one of prompt, prompt_index"),
    ({"prompt_index": 7}, "option prompt_index=7: not an int in 0..0"),
]


def test_bad_input_is_answered_and_the_session_goes_on() -> None:
    task = make_task("TwentyQuestions")
    wanted = TokenEnv(task)
    wanted.reset(seed=5)
    with served(task, max_bytes=4096) as url, core.GenericEnvClient(url).sync() as session:

        async def raw(message: str | bytes) -> Any:
            await session.async_client._ws.send(message)
            return json.loads(await session.async_client._ws.recv())

        with pytest.raises(RuntimeError, match="before the first reset"):
            session.step({"tokens": [1]})
        session.reset(seed=5)
        for action, said in REFUSED:
            with pytest.raises(RuntimeError, match=said):
                session.step(action)
        for options, said in RESETS:
            with pytest.raises(RuntimeError, match=said):
                session.reset(**options)
        for message, said in RAW:
            answer = session._run(raw(message))
            assert answer["type"] == "error"
            assert said in answer["data"]["message"]
        for token in (1, 3):
            _, reward, done, _, info = wanted.step(token)
            found = session.step({"tokens": [token]})
            assert (found.reward, found.done, found.observation["info"]) == (reward, done, info)
        assert found.done
        with pytest.raises(RuntimeError, match="after the end of the episode"):
            session.step({"tokens": [1]})
        assert not session.reset(seed=1).done


def test_requests_over_http() -> None:
    import httpx

    with (
        served(make_task("TwentyQuestions"), max_bytes=4096) as url,
        httpx.Client(base_url=url, trust_env=False) as web,
    ):
        assert web.post("/reset", json={"seed": 1}).json()["observation"]["text"] == "guess"
        # Each request has an environment of its own, which was not reset.
        refused = web.post("/step", json={"action": {"tokens": [1]}})
        assert refused.status_code == 422
        assert "before the first reset" in refused.json()["detail"]
        refused = web.post("/reset", content=b" " * 5000)
        assert refused.status_code == 413
        assert refused.json()["detail"].startswith("body: 5000 bytes; allowed are at most 4096")
        assert web.post("/reset", content=iter([b"{}"])).status_code == 413
        assert set(web.get("/schema").json()["action"]["properties"]) == {"metadata", "tokens", "text"}


def test_more_sessions_than_there_are_places_for() -> None:
    with served(make_task("TwentyQuestions"), sessions=1) as url, core.GenericEnvClient(url).sync() as session:
        session.reset(seed=0)
        # The server says so and closes; a client that writes first sees that it is closed.
        refused = pytest.raises((RuntimeError, ConnectionClosed), match=r"CAPACITY_REACHED|1000 \(OK\)")
        with refused, core.GenericEnvClient(url).sync() as other:
            other.reset(seed=0)
        assert not session.reset(seed=1).done


@pytest.mark.parametrize("sessions", [1, 16])
def test_an_environment_of_texts_is_the_user(sessions: int) -> None:
    """The same episodes as with the server's own user, states restored out of order, too."""
    given: dict[str, Any] = {"prompts": PROMPTS, "turns": 3}
    there = make_task("Text", responder=curious, reward=letters, turn_tokens=40, **given)
    here = TokenEnv(make_task("Text", responder=curious, reward=letters, turn_tokens=6, **given))
    with served(there) as url:
        user = OpenEnvUser(url, seeds=6, sessions=sessions)
        assert sorted(user.prompts) == PROMPTS
        env = TokenEnv(make_task("Text", responder=user, reward=user.reward, turn_tokens=6, **given))
        with pytest.raises(ValueError, match="prompt 'Hello': allowed are the 2 prompts of this OpenEnvUser"):
            user([[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "a"}]])
        stop = here.task.vocabulary.stop_ids[0]
        for seed in range(4):
            generator, done = np.random.default_rng(seed), False
            here.reset(seed=seed)
            env.reset(seed=seed)
            first = env.get_state()
            tokens = []
            while not done:
                token = int(generator.choice(np.flatnonzero(env.action_masks())))
                tokens.append(stop if generator.random() < 0.2 else token)
                _, reward, done, _, _ = here.step(tokens[-1])
                assert env.step(tokens[-1])[1:3] == (reward, done)
                assert env.get_state() == here.get_state()
            last = env.get_state()
            env.set_state(first)
            for token in tokens:
                env.step(token)
            assert env.get_state() == last
        user.close()
        with pytest.raises(
            ValueError, match="observation='words': None is no text; the environment has the fields text"
        ):
            OpenEnvUser(url, observation="words")


def test_a_turn_that_the_server_refuses_is_answered_with_its_error() -> None:
    there = make_task("TwentyQuestions", difficulty=1)
    with served(there, sessions=2) as url:
        user = OpenEnvUser(url, seeds=1, sessions=2)
        (prompt,) = user.prompts
        said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Happy to help!"}]
        for _ in range(3):  # no session is lost by it
            (error,) = user([said])
            assert error is not None
            assert error.startswith("error: text='Happy to help!': allowed is what this vocabulary can write")
        told = [("policy", "Happy to help!"), ("environment", error), ("policy", "0"), ("environment", "right")]
        said += [{"role": "user", "content": error}, {"role": "assistant", "content": "0"}]
        assert user([said]) == [None]  # the game goes on and ends
        (alone,) = user.reward([prompt], [""], turns=[told[2:]])
        assert user.reward([prompt], [""], turns=[told]) == [alone]
        user.close()
        with pytest.raises(ValueError, match=r"action='nope': actions of the environment have the fields .*text"):
            OpenEnvUser(url, action="nope")


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_the_command_serves(host: str, shown: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip(f"this machine has no {host}")
    words = [sys.executable, "-m", "textgym", "serve", "TwentyQuestions-v0", "--host", host, "--port", "0"]
    words += ["--env", "difficulty=1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        try:
            assert command.stdout is not None
            (url,) = re.findall(
                rf"TwentyQuestions at (http://{re.escape(shown)}:\d+), Ctrl-C ends it", command.stdout.readline()
            )
            with core.GenericEnvClient(url).sync() as session:
                assert session.reset(seed=0).observation["tokens"] == list(
                    make_task("TwentyQuestions", difficulty=1).encoded("train")[0].ids
                )
            port = url.rpartition(":")[2]
            taken = subprocess.run([*words[:8], port], capture_output=True, text=True, timeout=60)
            assert taken.returncode == 2
            assert f"--host {host} --port {port}: Address already in use; allowed are" in taken.stderr
        finally:
            command.terminate()
        assert command.wait(30) == 143
