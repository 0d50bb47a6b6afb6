"""The same conditions for every test: one thread, since bits depend on their number, and Python's own Ctrl-C."""

import gc
import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch; child processes inherit it
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
gc.set_threshold(50_000, 20, 20)  # searches for cycles took a quarter of the time in which tests are collected


def pytest_collection_finish() -> None:
    """Leave what was collected out of every later search for garbage."""
    gc.collect()
    gc.freeze()
