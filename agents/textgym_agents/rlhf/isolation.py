"""Libraries that seed global generators and write logs, kept from doing either to their caller."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from transformers.utils import logging


@contextlib.contextmanager
def own_generators() -> Iterator[None]:
    """Whatever happens inside to the global generators of Python, numpy and torch is undone at the end."""
    # transformers' Trainer seeds all three by itself and saves their states with every checkpoint.
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No logs below errors and no progress bars of transformers; both are as before at the end."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
