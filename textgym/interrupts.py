"""Ctrl-C and SIGTERM that wait for a good moment: the first one asks, the second one stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM, the signal of batch systems and containers; it is taken as Ctrl-C is."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during training; the message says what the run folder holds."""


class Request:
    """Whether somebody has asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Return whether somebody has."""
        return self.signal is not None

    def error(self) -> KeyboardInterrupt:
        """Return what to raise once all is saved."""
        return Terminated() if self.signal == signal.SIGTERM else KeyboardInterrupt()


@contextlib.contextmanager
def first_interrupt(asked: Callable[[], None]) -> Iterator[Request]:
    """Give an object that says whether Ctrl-C was pressed or SIGTERM sent; a second time they do what they did before.

    Outside the main thread, where Python handles no signals, nothing changes. Nor does Ctrl-C in a process that
    ignores it, as those do that a shell's script starts in the background, nor SIGTERM where the program has a handler
    of its own for it.

    Args:
        asked: called the first time.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = [] if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else [signal.SIGINT]
    numbers += [signal.SIGTERM] if _is_ours_to_take() else []
    before = {number: signal.getsignal(number) for number in numbers}

    def remember(number: int, _: Any) -> None:
        _restore(before)
        request.signal = number
        asked()

    for number in numbers:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        _restore(before)


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within it, SIGTERM raises `Terminated` in the main thread, as Ctrl-C raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread() or not _is_ours_to_take():
        yield
        return
    before = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        _restore(before)


def is_termination(interrupt: BaseException | None) -> bool:
    """Whether SIGTERM is what an interrupt comes from."""
    while interrupt is not None and not isinstance(interrupt, Terminated):
        interrupt = interrupt.__cause__
    return interrupt is not None


def _is_ours_to_take() -> bool:
    return signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, _terminate)


def _terminate(*_: Any) -> None:
    raise Terminated


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
