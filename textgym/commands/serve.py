"""Serve an environment through the OpenEnv protocol."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from typing import cast

import gymnasium as gym

from textgym.bridges.server import make_app, openenv_missing
from textgym.checks import check_count
from textgym.commands.console import UsageError
from textgym.commands.flags import EnvId, EnvOptions, env_options, find_id, parse
from textgym.env import TokenEnv

_LOG = logging.getLogger(__name__)
_FRAME = 2**24  # bytes; a larger message ends the connection, where one that is too large is answered


@dataclass(frozen=True)
class ServeFlags:
    """Serve an environment through the OpenEnv protocol; every connection is a session with its own environment.

    Example: textgym serve TwentyQuestions-v0 --port 8000
    """

    id: EnvId
    """Id of the environment, as in `textgym list`."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 accepts other machines, and there is no authentication."""
    port: int = 8000
    """Port to listen on; 0: a free one."""
    sessions: int = 64
    """Maximum number of simultaneous sessions."""
    split: str = "train"
    """Split that prompts are drawn from: train or eval."""
    max_bytes: int = 2**20
    """Maximum size of a message, bytes."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; values are JSON or text."""

    def __post_init__(self) -> None:
        if not self.host.strip():  # which would be every address of this machine
            raise ValueError(f"host={self.host!r}: allowed is an address, as 127.0.0.1")
        check_count("port", self.port, 0, 65535)
        check_count("sessions", self.sessions)
        check_count("max_bytes", self.max_bytes, 1, _FRAME // 2)


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(ServeFlags, arguments, "serve")
    env = cast(
        TokenEnv, gym.make(find_id(flags.id), split=flags.split, **env_options(flags.env, taken=("split",))).unwrapped
    )
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise openenv_missing("serve") from error
    app = make_app(env.task, flags.split, flags.sessions, flags.max_bytes)
    family = socket.AF_INET6 if ":" in flags.host else socket.AF_INET
    try:
        listening = socket.create_server((flags.host, flags.port), family=family)
    except OSError as error:
        said = str(error.strerror).partition(" (while")[0]
        raise UsageError(
            f"--host {flags.host} --port {flags.port}: {said}; allowed are an address of this machine and a free port"
        ) from error
    host = f"[{flags.host}]" if family == socket.AF_INET6 else flags.host
    print(f"{env.task.name} at http://{host}:{listening.getsockname()[1]}, Ctrl-C ends it", flush=True)
    _LOG.info("")  # whoever waits for others is at no work
    config = uvicorn.Config(app, log_level="warning", ws_max_size=_FRAME)
    uvicorn.Server(config).run(sockets=[listening])
