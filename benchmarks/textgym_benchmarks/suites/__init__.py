"""The suites that come with the package, by name. Each is data: a small function that lists its rows."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from textgym.checks import not_one_of
from textgym_benchmarks.suite import Suite

SUITES: Final = ("ci", "quick", "core", "diagnostics", "rewards", "scaling", "full")
"""From the shortest to the longest."""


def make_suite(name: str) -> Suite:
    """A suite by name. Raises: ValueError for an unknown one, with the nearest."""
    if name not in SUITES:
        raise ValueError(not_one_of("suite", name, SUITES))
    suite: Suite = import_module(f"{__name__}.{name}").suite()
    return suite
