"""What a result.json must hold: checks that name the entry, what it is and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

FORMAT: Final = 1
ESTIMATES: Final = ("reward", "gold", "kl", "objective", "optimality", "entropy", "length")
"""Measures with an interval: {"mean", "low", "high"}, or null."""
NUMBERS: Final = ("stop_rate", "distinct_1", "distinct_2")
CROSSINGS: Final = ("to_half", "to_nine_tenths")
LIMIT: Final = 1e12
"""The largest number of a result, in absolute value: sums and squares of such numbers stay far from an overflow."""
STATUSES: Final = ("done", "failed", "missing")


def check_result(data: Any) -> None:
    """Raises: ValueError unless `data` is a result as result.json holds it; its cell is left to `Cell.from_json`."""
    _object("result", data, ("format", "cell", "family", "status", "error", "measures", "timing"))
    if data["format"] != FORMAT:
        raise _wrong("format", data["format"], f"{FORMAT}")
    _text("family", data["family"])
    if data["status"] not in STATUSES:
        raise _wrong("status", data["status"], ", ".join(STATUSES))
    _object("versions", data.get("versions", {}))
    for name, value in data.get("versions", {}).items():
        _text(f"versions.{name}", value)
    _text("machine", data.get("machine", ""))
    if data["status"] == "done":
        check_measures(data["measures"])
        check_timing(data["timing"])
    elif data["measures"] is not None:
        raise _wrong("measures", data["measures"], f"null, as its status is {data['status']!r}")
    if data["status"] == "failed":
        _object("error", data["error"], ("type", "message", "traceback", "attempts"))
        for name in ("type", "message", "traceback"):
            _text(f"error.{name}", data["error"][name])
        _number("error.attempts", data["error"]["attempts"])
    elif data["error"] is not None:
        raise _wrong("error", data["error"], f"null, as its status is {data['status']!r}")


def check_measures(data: Any) -> None:
    """Raises: ValueError unless `data` is what `measures` of a finished cell holds."""
    counts = ("episodes", "tokens", "iterations")
    _object("measures", data, ("before", "after", "optimum", "curve", "samples", *CROSSINGS, *counts))
    for side in ("before", "after"):
        _object(side, data[side], (*ESTIMATES, *NUMBERS))
        for name in ESTIMATES:
            _estimate(f"{side}.{name}", data[side][name])
        for name in NUMBERS:
            _number(f"{side}.{name}", data[side][name], or_null=True)
        _number(f"{side}.answer_tokens", data[side].get("answer_tokens"), or_null=True)
    _check_optimum(data["optimum"])
    for name in CROSSINGS:
        if data[name] is not None:
            _numbers(name, data[name], ("episodes", "tokens"), or_null=True)
    for name in counts:
        _number(name, data[name])
    _check_curve(_list("curve", data["curve"]))
    for place, sample in enumerate(_list("samples", data["samples"])):
        _check_sample(f"samples[{place}]", sample)


def check_timing(data: Any) -> None:
    """Raises: ValueError unless `data` is what `timing` of a finished cell holds."""
    _object("timing", data)
    for name, value in data.items():
        if name == "curve_seconds":
            for place, seconds in enumerate(_list(f"timing.{name}", value)):
                _number(f"timing.{name}[{place}]", seconds, or_null=True)
        else:
            _number(f"timing.{name}", value, or_null=True)


def check_suite(data: Any) -> None:
    """Raises: ValueError unless `data` is what can be said of all results of a file: name, description, settings."""
    _object("suite", data)
    for name in ("name", "description", "started"):
        if data.get(name) is not None:
            _text(f"suite.{name}", data[name])
    for name in ("evaluation", "settings"):
        if data.get(name) is not None:
            _object(f"suite.{name}", data[name])


def _check_curve(rows: Sequence[Any]) -> None:
    """Points in the order of their episodes; an agent may be evaluated twice before its next episode ends."""
    before = 0.0
    for place, row in enumerate(rows):
        where = f"curve[{place}]"
        _numbers(where, row, ("episode", "tokens"))
        for name, value in row.items():
            _number(f"{where}.{name}", value, or_null=True)
        _check_ends(where, row, "optimality_low", "optimality_high")
        if row["episode"] < before:
            raise _wrong(
                f"{where}.episode", row["episode"], f"a number >= {before:g}, as points are in order"
            )
        before = row["episode"]


def _check_optimum(data: Any) -> None:
    if data is None:
        return
    _object("optimum", data, ("value", "reference", "effective_samples", "beta", "exact"))
    for name in ("value", "reference"):
        _estimate(f"optimum.{name}", data[name])
    _number("optimum.effective_samples", data["effective_samples"], or_null=True)
    _number("optimum.beta", data["beta"])
    if not isinstance(data["exact"], bool):
        raise _wrong("optimum.exact", data["exact"], "true or false")


def _check_sample(where: str, data: Any) -> None:
    _object(where, data, ("prompt", "before", "after"))
    _text(f"{where}.prompt", data["prompt"])
    for side in ("before", "after"):
        answer = data[side]
        if answer is None:
            continue
        _object(f"{where}.{side}", answer, ("completion", "reward"))
        _text(f"{where}.{side}.completion", answer["completion"])
        for name in ("reward", "gold"):
            _number(f"{where}.{side}.{name}", answer.get(name), or_null=True)
        _object(f"{where}.{side}.terms", answer.get("terms", {}))
        for name, value in answer.get("terms", {}).items():
            _number(f"{where}.{side}.terms.{name}", value, or_null=True)


def _estimate(where: str, data: Any) -> None:
    if data is not None:
        _numbers(where, data, ("mean", "low", "high"), or_null=True)
        _check_ends(where, data, "low", "high")


def _check_ends(where: str, data: Mapping[str, Any], low: str, high: str) -> None:
    """Both ends of an interval are known, or neither is."""
    if (data.get(low) is None) != (data.get(high) is None):
        missing, known = (low, high) if data.get(low) is None else (high, low)
        raise _wrong(f"{where}.{missing}", None, f"a number where {known} is one")


def _numbers(where: str, data: Any, names: Sequence[str], or_null: bool = False) -> None:
    _object(where, data, names)
    for name in names:
        _number(f"{where}.{name}", data[name], or_null)


def _object(where: str, data: Any, needed: Sequence[str] = ()) -> None:
    if not isinstance(data, Mapping):
        raise _wrong(where, data, "a JSON object")
    for name in needed:
        if name not in data:
            raise ValueError(f"{where}: has no {name!r}; it needs {', '.join(needed)}")


def _list(where: str, data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise _wrong(where, data, "a list")
    return data


def _text(where: str, data: Any) -> None:
    if not isinstance(data, str):
        raise _wrong(where, data, "a text")


def _number(where: str, data: Any, or_null: bool = False) -> None:
    if data is None and or_null:
        return
    # An int may be too large for a float; comparing the two is exact.
    fits = isinstance(data, int) or (isinstance(data, float) and math.isfinite(data))
    if isinstance(data, bool) or not fits or abs(data) > LIMIT:
        raise _wrong(where, data, f"a number from -{LIMIT:g} to {LIMIT:g}" + (" or null" if or_null else ""))


def _wrong(where: str, data: Any, allowed: str) -> ValueError:
    return ValueError(f"{where}={data!r:.80}: allowed is {allowed}")
