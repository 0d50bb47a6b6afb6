"""Stable-Baselines3 draws from the global generators: here they are lent to it, and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """Within, the global generators of Python, numpy and torch start from `seed`; afterwards they are as before."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)  # noqa: NPY002
