"""What the machine refuses, found again in whatever a library makes of it: a full disk, no memory, no processes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What libraries write that are not Python's: those in Rust, HDF5, Torch (without a number).
_SIGNS: dict[int, tuple[str, ...]] = {
    number: (f"os error {number})", f"errno = {number},") for number in _FULL
}
_SIGNS[errno.ENOSPC] += (os.strerror(errno.ENOSPC), "PytorchStreamWriter failed", "inline_container.cc")
_NO_MEMORY = ("can't allocate memory", "CUDA out of memory", os.strerror(errno.ENOMEM))
_NO_PROCESS = ("can't start new thread", os.strerror(errno.EAGAIN))


class DiskFullError(OSError):
    """Nothing more can be written to a place; the message says what to do."""


@contextlib.contextmanager
def disk_full_at(place: str | Path, advice: str = "") -> Iterator[None]:
    """Within it, a full disk is an error that names the place, whatever library found it.

    Args:
        place: the file or folder that is written.
        advice: what to do once there is space; "" says to run it again.
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
    """Return an error's text; where the machine has no more of something, what helps against that before it."""
    text = str(error)
    if isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        helps = "out of memory: a smaller batch or model, or fewer workers, takes less"
    elif any(sign in text for sign in _NO_PROCESS):
        helps = (
            "no more processes or threads may be started: use fewer workers, or raise the limit (ulimit -u)"
        )
    elif getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        helps = "no more files may be open: use fewer workers, or raise the limit (ulimit -n)"
    else:
        return text
    return f"{helps} ({text})" if text else helps
