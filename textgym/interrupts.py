"""Handle early ends of a program: a full disk, no memory, SIGTERM and Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

_Handler = Callable[[int, FrameType | None], object] | int | None
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Messages of libraries that are not Python's: those in Rust, HDF5, Torch (without a number).
_SIGNS: dict[int, tuple[str, ...]] = {number: (f"os error {number})", f"errno = {number},") for number in _FULL}
_SIGNS[errno.ENOSPC] += (os.strerror(errno.ENOSPC), "PytorchStreamWriter failed", "inline_container.cc")
_NO_MEMORY = ("can't allocate memory", "CUDA out of memory", os.strerror(errno.ENOMEM))
_NO_PROCESS = ("can't start new thread", os.strerror(errno.EAGAIN))


class DiskFullError(OSError):
    """A place is full; the message names it and a remedy."""


@contextlib.contextmanager
def disk_full_at(place: str | Path, advice: str = "") -> Iterator[None]:
    """Turn a full disk within a block into an error that names the place, whatever library found it.

    Args:
        place: the file or folder that is written.
        advice: the next step once there is space; "" says to run it again.
    Raises: DiskFullError.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        number = disk_full(error)
        if number is None:
            raise
        what = f"{os.strerror(number)}; make space, then {advice or 'run it again'}"
        raise DiskFullError(number, what, str(place)) from error


def disk_full(error: BaseException | None) -> int | None:
    """Return the error number of the full disk, quota or file size limit behind an error; None if there is none."""
    while error is not None:
        for number, signs in _SIGNS.items():
            if getattr(error, "errno", None) == number or any(sign in str(error) for sign in signs):
                return number
        error = error.__cause__ or error.__context__
    return None


def with_remedy(error: BaseException) -> str:
    """Return an error's text, with a remedy before it where the machine has run out of something."""
    text = str(error)
    if isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        helps = "out of memory: a smaller batch or model, or fewer workers, takes less"
    elif any(sign in text for sign in _NO_PROCESS):
        helps = "no more processes or threads may be started: use fewer workers, or raise the limit (ulimit -u)"
    elif getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        helps = "no more files may be open: use fewer workers, or raise the limit (ulimit -n)"
    else:
        return text
    return f"{helps} ({text})" if text else helps


class Terminated(KeyboardInterrupt):
    """SIGTERM, the signal of batch systems and containers; it is handled as Ctrl-C is."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during training; the message describes the run folder."""


class Request:
    """A record of the signal that asked to stop, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Return whether somebody has asked to stop."""
        return self.signal is not None

    def error(self) -> KeyboardInterrupt:
        """Return what to raise once all is saved."""
        return Terminated() if self.signal == signal.SIGTERM else KeyboardInterrupt()


_unheeded: list[Request] = []


@contextlib.contextmanager
def first_interrupt(asked: Callable[[], None]) -> Iterator[Request]:
    """Yield an object that says whether Ctrl-C was pressed or SIGTERM sent; the second one acts as it did before.

    Nothing changes outside the main thread, where Python handles no signals; for Ctrl-C in a process that ignores it,
    such as one that a shell's script starts in the background; and for SIGTERM where the program has its own handler.
    `asked` is called the first time. Where the block ends all the same, see `heeded`.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = [] if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else [signal.SIGINT]
    numbers += [signal.SIGTERM] if _is_ours_to_take() else []
    before = {number: signal.getsignal(number) for number in numbers}

    def remember(number: int, _: FrameType | None) -> None:
        _restore(before)
        request.signal = number
        asked()

    for number in numbers:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        _restore(before)
        if request():
            _unheeded.append(request)


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Raise at the end of the block for a signal in it that stopped nothing, since it came shortly before an end.

    For work that is followed by more: see `first_interrupt`.
    """
    _unheeded.clear()
    yield
    if _unheeded:
        raise _unheeded.pop().error()


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Make SIGTERM raise `Terminated` in the main thread, as Ctrl-C raises KeyboardInterrupt."""
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
    """Return whether an interrupt comes from SIGTERM."""
    while interrupt is not None and not isinstance(interrupt, Terminated):
        interrupt = interrupt.__cause__
    return interrupt is not None


def _is_ours_to_take() -> bool:
    return signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, _terminate)


def _terminate(*_: object) -> None:
    raise Terminated


def _restore(handlers: Mapping[signal.Signals, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
