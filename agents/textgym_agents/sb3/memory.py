"""How many transitions a replay buffer keeps, and whether they fit into memory."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

_EPISODES = 4096  # full-length ones that are kept
_PER_TOKEN = 64  # transitions for every action
_LEAST, _MOST = 10_000, 1_000_000
_NUMBERS = 3 * 4  # reward, done and time-out, float32 each
_SHARE = 0.5  # of the free memory that one buffer may take


def replay_size(asked: int | None, observation: Any, action: Any, vocabulary: int, horizon: int) -> int:
    """The transitions of a replay buffer.

    Args:
        asked: by the user; None chooses 4,096 episodes of full length or 64 transitions a token of the vocabulary,
            whichever is more, within 10,000..1,000,000.
        observation, action: spaces of one environment.
        vocabulary: tokens. horizon: steps of the longest episode.
    Raises: ValueError with the figures if the buffer takes more than half of the free memory.
    """
    size = asked or min(max(_EPISODES * horizon, _PER_TOKEN * vocabulary, _LEAST), _MOST)
    each = transition_bytes(observation, action)
    free = free_bytes()
    if free is not None and size * each > _SHARE * free:
        raise ValueError(
            f"replay={size}: {size:,} transitions of {each:,} bytes take {size * each / 1e9:.2f} GB, but only "
            f"{free / 1e9:.2f} GB are free; allowed is at most {int(_SHARE * free / each):,} (half of that)"
        )
    return size


def transition_bytes(observation: Any, action: Any) -> int:
    """Bytes of one transition: two observations, an action, three numbers."""
    return 2 * _bytes(observation) + _bytes(action) + _NUMBERS


def _bytes(space: Any) -> int:
    if isinstance(space, spaces.Dict):
        return sum(_bytes(part) for part in space.values())
    numbers, each = np.prod(space.shape, dtype=np.int64), np.dtype(space.dtype).itemsize
    return int(numbers) * int(each)


def free_bytes() -> int | None:
    """Memory that programs can still take; without psutil Linux alone tells, elsewhere None."""
    try:
        psutil: Any = import_module("psutil")
    except ModuleNotFoundError:
        return available_bytes(Path("/proc/meminfo"))
    return int(psutil.virtual_memory().available)


def available_bytes(meminfo: Path) -> int | None:
    """What Linux's table of memory says under MemAvailable, in bytes; None where there is no such line.

    The pages that `os.sysconf` counts as free are fewer: they leave out the file cache, which is given up on demand.
    """
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None
