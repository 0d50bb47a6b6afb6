"""The same conditions for every test: one thread, since bits depend on their number, and Python's own Ctrl-C."""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch; child processes inherit it
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
