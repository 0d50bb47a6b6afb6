"""A time limit for rewards and responders: they run in a child process that is killed when it takes too long."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import MappingProxyType
from typing import Any, cast

from textgym.checks import is_finite, shown, users_line
from textgym.rewards.base import Reward, RewardError, reward_name
from textgym.rewards.calling import awaited

_SAFE = "PYTHONSAFEPATH"
"""Keeps a new interpreter from taking modules from the current folder, where a `random.py` may lie."""
MOST_SECONDS = 1e6  # systems wait for no more than some weeks
START_SECONDS = 120.0  # for imports and unpickling, which count as no time of the reward's


class Deadline:
    """Runs a reward in a spawned child process that lives on between calls.

    The reward's `state_dict`, where it has one, travels with every call and comes back, so nothing is lost when the
    child is killed. What it has spent comes back, too. What the child prints goes to the standard error.

    Args:
        reward: picklable, so defined at the top level of a module.
        seconds: limit of one call, whatever the size of its batch; above 0, at most a million.
        kind: what messages call it.
    Raises: ValueError for a bad limit or a reward that cannot be pickled.
    """

    def __init__(self, reward: Reward | Called, seconds: float, kind: str = "reward") -> None:
        if not is_finite(seconds) or not 0 < seconds <= MOST_SECONDS:
            raise ValueError(
                f"timeout={shown(seconds)}: None or a number of seconds above 0, at most {MOST_SECONDS:.0f}, is allowed"
            )
        self.reward: Any = reward  # for its optional attributes
        self.seconds, self.kind = float(seconds), kind
        self.name = reward.name if isinstance(reward, Called) else reward_name(reward)
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._at_exit: Finalize | None = None
        self._owner = os.getpid()
        self._spent = _spent_by(reward)
        self._pickled()

    def spent(self) -> dict[str, float]:
        """Return what the reward has spent, before and in all child processes; calls that were killed are missing."""
        return dict(self._spent)

    def call(self, method: str, arguments: Mapping[str, object]) -> object:
        """Return `reward.<method>(**arguments)`.

        Raises: KeyboardInterrupt if the reward raised it; RewardError of kind "timeout" or "dies", or "raises" for
            what else the reward raised; RuntimeError if the child process cannot be started.
        """
        connection = self._running()
        state = self.reward.state_dict() if hasattr(self.reward, "state_dict") else None
        request = pickle.dumps((method, arguments, state))
        try:
            connection.send_bytes(request)
            if not connection.poll(self.seconds):
                self.close()
                raise RewardError(f"{self.kind} {self.name!r} took longer than {self.seconds} s", "timeout")
            answer = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError) as error:
            self.close()
            raise RewardError(f"the process of {self.kind} {self.name!r} died", "dies") from error
        except BaseException:
            # An answer that nobody read (an interrupt) would be taken for the next call's.
            self.close()
            raise
        return self._read(*answer)

    def close(self) -> None:
        """Kill the child process; the next call starts another."""
        if self._process is not None and self._at_exit is not None and self._owner == os.getpid():
            self._at_exit.cancel()
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_process": None, "_connection": None, "_at_exit": None}

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _pickled(self) -> bytes:
        try:
            return pickle.dumps(self.reward)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"timeout={self.seconds} runs {self.kind} {self.name!r} in a process of its own, so it has to be "
                f"picklable (defined at the top level of a module): {error}"
            ) from error

    def _running(self) -> Connection:
        if self._owner != os.getpid() or (self._process is not None and not self._process.is_alive()):
            self.close()  # a forked copy must not talk over its parent's pipe
        return self._connection or self._start()

    def _start(self) -> Connection:
        if multiprocessing.current_process().daemon:
            raise RuntimeError(
                f"timeout={self.seconds} needs a child process, which a daemonic process may not have; "
                "AsyncVectorEnv(..., daemon=False) is allowed"
            )
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        self._connection = connection
        safe = os.environ.get(_SAFE)
        self._process = context.Process(target=_serve, args=(theirs, self._pickled(), safe, self.kind), daemon=True)
        self._owner = os.getpid()
        os.environ[_SAFE] = "1"
        try:
            self._process.start()
        finally:
            _put_back(safe)
        # At exit multiprocessing would ask the child by SIGTERM, and wait.
        self._at_exit = Finalize(None, self._process.kill, exitpriority=0)
        theirs.close()
        try:
            started = connection.poll(START_SECONDS)
            problem = pickle.loads(connection.recv_bytes()) if started else "it took too long"
        except (EOFError, OSError):
            problem = "it died; a script needs `if __name__ == '__main__':`"
        if problem:
            self.close()
            raise RuntimeError(f"the process of {self.kind} {self.name!r} could not be started: {problem}")
        return connection

    def _read(self, outcome: str, value: object, state: object, spent: dict[str, float]) -> object:
        self._spent |= {name: self._spent.get(name, 0.0) + more for name, more in spent.items()}
        if outcome == "interrupted":
            raise KeyboardInterrupt(f"raised by {self.kind} {self.name!r}")
        if outcome == "raised":
            message, kind, index, remote = cast("tuple[str, str, int | None, str]", value)
            raise RewardError(message, kind, index) from RuntimeError(f"in the {self.kind}'s process:\n{remote}")
        if state is not None:
            self.reward.load_state_dict(state)
        return value


@dataclass(frozen=True)
class Called:
    """A function as what a `Deadline` runs.

    Args:
        function: picklable. name: for messages.
    """

    function: Callable[..., object]
    name: str

    def run(self, arguments: tuple[object, ...], options: Mapping[str, object]) -> object:
        """Call the function.

        Args:
            arguments: by place. options: by keyword.
        Returns: what it returns.
        """
        return self.function(*arguments, **options)


def _put_back(value: str | None) -> None:
    """Give the variable `_SAFE` the value that it had."""
    os.environ.pop(_SAFE, None)
    if value is not None:
        os.environ[_SAFE] = value


def _serve(connection: Connection, pickled: bytes, safe: str | None, kind: str) -> None:
    """Answer calls until the other end goes away (in the child process)."""
    _put_back(safe)
    for number in (signal.SIGINT, signal.SIGTERM):  # an interrupt of a whole group is the parent's to handle
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # where somebody has closed them
        os.dup2(2, 1)  # for what is no Python; the parent's standard output may be data, such as JSON
    sys.stdout = sys.stderr
    try:
        reward = pickle.loads(pickled)
    except Exception as error:
        connection.send_bytes(pickle.dumps(f"{type(error).__name__}: {error}"))
        return
    connection.send_bytes(pickle.dumps(""))
    while True:
        try:
            request = connection.recv_bytes()
        except (EOFError, OSError):
            return
        connection.send_bytes(_answer(reward, request, kind))


def _answer(reward: Any, request: bytes, kind: str) -> bytes:
    """Run one call; whatever goes wrong becomes part of the answer."""
    before: dict[str, float] = {}
    try:
        method, arguments, state = pickle.loads(request)
        if state is not None:
            reward.load_state_dict(state)
        before = _spent_by(reward)
        (value,) = awaited([getattr(reward, method)(**arguments)])
        state = reward.state_dict() if state is not None else None
        return pickle.dumps(("value", value, state, _spent_by(reward, before)))
    except RewardError as error:
        failure = (str(error), error.kind, error.index, traceback.format_exc())
    except KeyboardInterrupt:
        return pickle.dumps(("interrupted", None, None, _spent_by(reward, before)))
    except BaseException as error:
        message = f"{kind} {reward_name(reward)!r} raised {type(error).__name__}: {error}{users_line(error)}"
        failure = (message, "raises", None, traceback.format_exc())
    return pickle.dumps(("raised", failure, None, _spent_by(reward, before)))


def _spent_by(reward: object, before: Mapping[str, float] = MappingProxyType({})) -> dict[str, float]:
    """Return what a reward has spent, less what it had spent before; {} of one that does not say."""
    found: dict[str, float] = getattr(reward, "spent", dict)()
    return {name: value - before.get(name, 0.0) for name, value in found.items()}
