"""A task on a server, by the protocol of OpenEnv: every connection is a session with an environment of its own."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

import gymnasium as gym

from textgym.bridges.spoken import SpokenEpisodes
from textgym.checks import check_count, not_one_of, shown
from textgym.env import TokenEnv
from textgym.task import Task

if TYPE_CHECKING:
    from fastapi import FastAPI

_Event = MutableMapping[str, object]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]
_MESSAGES = ("reset", "step", "state", "close", "mcp")


def openenv_missing(who: str) -> ModuleNotFoundError:
    """Return the error for `who` needs OpenEnv, which is not installed."""
    message = f'{who} needs openenv-core, which is not installed: pip install "textgym[openenv]"'
    return ModuleNotFoundError(message, name="openenv")


def make_app(task: Task, split: str = "train", sessions: int = 64, max_bytes: int = 2**20) -> FastAPI:
    """Make a server's application of a task, for uvicorn or another ASGI server.

    An action is {"tokens": ids}, or {"text": a turn}; an observation has `text`, what the environment says, `tokens`
    and `authors` of the whole sequence, and `info`. Steps are taken one at a time, whoever asks.

    Args:
        task: the task. split: of the prompts. sessions: at once. max_bytes: of a message.
    Returns: the application, with the routes of OpenEnv's HTTPEnvServer.
    Raises: ValueError for an argument that is not allowed; ModuleNotFoundError without `textgym[openenv]`.
    """
    try:
        from fastapi import FastAPI
        from fastapi.responses import JSONResponse
        from openenv.core.env_server import ConcurrencyConfig, HTTPEnvServer
    except ModuleNotFoundError as error:
        raise openenv_missing("serve") from error
    app, most = FastAPI(title=f"TextGym: {task.name}"), check_count("max_bytes", max_bytes, unit="bytes")
    at_once = ConcurrencyConfig(max_concurrent_envs=check_count("sessions", sessions))
    HTTPEnvServer(*_openenv_classes(task, split), concurrency_config=at_once).register_routes(app)
    for kind in (ValueError, TypeError, gym.error.Error):
        app.add_exception_handler(kind, lambda _, error: JSONResponse({"detail": str(error)}, 422))
    app.add_middleware(_Checked, most=most)
    return app


def _openenv_classes(task: Task, split: str) -> tuple[type, type, type]:
    """Return the classes of the environment, its actions and its observations."""
    from openenv.core.env_server import Action, Environment, Observation, State
    from pydantic import ConfigDict, SkipValidation

    lock = Lock()  # a task's reward and responder may not bear several threads
    TokenEnv(task, split=split)  # what is wrong is said before the first session

    class TextAction(Action):  # type: ignore[misc]
        model_config = ConfigDict(extra="allow", json_schema_extra={"required": ["text"]})  # `act` checks it
        tokens: SkipValidation[list[int] | None] = None
        text: SkipValidation[str | None] = None

    class TextObservation(Observation):  # type: ignore[misc]
        text: str
        tokens: list[int]
        authors: list[int]
        info: dict[str, object]

    class TextEnvironment(Environment):  # type: ignore[misc]
        SUPPORTS_CONCURRENT_SESSIONS = True
        state = State()  # in the place of OpenEnv's abstract property

        def __init__(self) -> None:
            super().__init__()
            self._episodes, self.state = SpokenEpisodes(TokenEnv(task, split=split)), State()

        def reset(self, seed: int | None = None, episode_id: str | None = None, **options: object) -> TextObservation:
            with lock:
                self._episodes.begin(seed, options)
            self.state = State(episode_id=episode_id)
            return self._observation(None)

        def step(self, action: TextAction, timeout_s: float | None = None) -> TextObservation:
            with lock:
                self._episodes.act({"tokens": action.tokens, "text": action.text, **(action.model_extra or {})})
            self.state.step_count += 1
            return self._observation(self._episodes.reward)

        def _observation(self, reward: float | None) -> TextObservation:
            played, state = self._episodes, self._episodes.env.get_state()
            seen = {"text": played.text, "tokens": state.tokens, "authors": state.authors, "info": played.info}
            return TextObservation(done=played.ended, reward=reward, **seen)

    return TextEnvironment, TextAction, TextObservation


class _Checked:
    """Answers what OpenEnv would end a session for, or take although it is too large."""

    def __init__(self, app: Callable[[_Event, _Receive, _Send], Awaitable[None]], most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: _Event, receive: _Receive, send: _Send) -> None:
        from starlette.responses import JSONResponse
        from starlette.websockets import WebSocketDisconnect

        length = (headers := dict(scope.get("headers", ()))).get(b"content-length", b"")  # type: ignore[call-overload]
        if scope["type"] == "websocket":
            with suppress(WebSocketDisconnect):  # OpenEnv closes a connection that the client has closed
                await self._app(scope, self._messages(receive, send), send)
        elif b"transfer-encoding" in headers or (length.isdigit() and int(length) > self._most):
            told = f"body: {length.decode() or 'unknown'} bytes; allowed are at most {self._most}, and a content-length"
            await JSONResponse({"detail": told}, 413, {"connection": "close"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _messages(self, receive: _Receive, send: _Send) -> _Receive:
        async def next_message() -> _Event:
            while True:
                event = await receive()
                if event["type"] != "websocket.receive" or not (problem := self._problem(event.get("text"))):
                    return event
                told = {"type": "error", "data": {"message": problem, "code": "VALIDATION_ERROR"}}
                await send({"type": "websocket.send", "text": json.dumps(told)})

        return next_message

    def _problem(self, text: object) -> str:
        """Return what is wrong with a message, "" for nothing."""
        if not isinstance(text, str):
            return "message: bytes; allowed is a text"
        if (size := len(text.encode(errors="replace"))) > self._most:
            return f"message: {size} bytes; allowed are at most {self._most}"
        message = None
        with suppress(ValueError, RecursionError):
            read = json.loads(text)
            json.dumps(read, ensure_ascii=False).encode()  # half of a surrogate pair can be answered nowhere
            message = read
        if not isinstance(message, dict) or not isinstance(message.get("data", {}), dict):
            return f'message={shown(text)}: allowed is JSON as {{"type": ..., "data": {{...}}}}, in UTF-8'
        if message.get("type") not in _MESSAGES:
            return not_one_of("message type", message.get("type"), _MESSAGES)
        return ""
