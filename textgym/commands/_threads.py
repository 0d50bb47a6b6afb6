"""Uses all cores that this process may use."""

from __future__ import annotations

import os


def use_all_cores() -> int:
    """Sets torch's threads to the number of cores, unless OMP_NUM_THREADS says otherwise. Returns: the number."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        affinity = getattr(os, "sched_getaffinity", None)
        torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count() or 1)
    return int(torch.get_num_threads())
