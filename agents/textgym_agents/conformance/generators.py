"""The global random generators: seeded for a check, watched, and put back."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def global_generators(seed: int) -> Iterator[Callable[[], list[str]]]:
    """Seeds those of Python, numpy and, where it is loaded, torch.

    Args:
        seed: of all of them.
    Returns: a context whose value names, when called, the generators that were drawn from since.
    """
    torch: Any = sys.modules.get("torch")
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002
    tensor = None if torch is None else torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    if torch is not None:
        # Not manual_seed, which would reseed every accelerator as well.
        torch.default_generator.manual_seed(seed)
    before = _states()
    try:
        yield lambda: [name for name, state in _states().items() if before.get(name, state) != state]
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002
        if torch is not None:
            torch.set_rng_state(tensor)


def _states() -> dict[str, object]:
    array: Any = np.random.get_state()  # noqa: NPY002
    states: dict[str, object] = {
        "random": random.getstate(),
        "numpy.random": (array[1].tobytes(), array[2:]),
    }
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy().tobytes()
    return states
