"""Ctrl-C that waits for a good moment: the first one asks, the second one stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; the message says what the run folder holds."""


@contextlib.contextmanager
def first_interrupt(asked: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C was pressed; a second press raises KeyboardInterrupt as usual.

    Outside the main thread, where Python handles no signals, nothing changes; nor does it in a process that ignores
    Ctrl-C, as those do that a shell's script starts in the background.

    Args:
        asked: called at the first press.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield lambda: False
        return
    presses: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def remember(number: int, _: Any) -> None:
        signal.signal(signal.SIGINT, before)
        presses.append(number)
        asked()

    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(presses)
    finally:
        signal.signal(signal.SIGINT, before)
