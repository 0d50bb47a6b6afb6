"""Wording shared by error messages: what is allowed, and the nearest name to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """' Did you mean ...?' for the nearest of `allowed`, or '' when none is near."""
    near = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def not_one_of(argument: str, name: object, allowed: Iterable[str]) -> str:
    """The message for a `name` given as `argument` that is not among `allowed`."""
    names = sorted(allowed)
    listed = ", ".join(names) if names else "(none)"
    return f"{argument} {name!r}: not one of {listed}.{did_you_mean(name, names)}"
