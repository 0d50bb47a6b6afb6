"""Suites by name. Each is data: a small function that lists its rows."""

from __future__ import annotations

from textgym.checks import shown
from textgym.registry import SUITES
from textgym_benchmarks.suite import Suite


def make_suite(name: str) -> Suite:
    """Make a suite.

    Args:
        name: one of `textgym.registry.SUITES`, which holds the shipped ones from the shortest to the longest.
    Raises: ValueError for an unknown name, with the nearest; TypeError if it leads to something else than a suite.
    """
    suite = SUITES.load(name)()
    if not isinstance(suite, Suite):
        raise TypeError(f"suite {name!r}: its function returned {shown(suite)}; allowed is a Suite")
    return suite
