"""The form of result.json: a table of checks that name the entry, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from textgym_agents.training.measures import ESTIMATES, NUMBERS

FORMAT: Final = 1
LIMIT: Final = 1e12
"""The largest number of a result, in absolute value: sums and squares of such numbers stay far from an overflow."""
STATUSES: Final = ("done", "failed", "missing")

Check = Callable[[str, object], None]
"""Takes the name of an entry and its value. Raises: ValueError for a value that is not allowed."""


def _must(accepts: Callable[[object], bool], allowed: str) -> Check:
    def check(where: str, data: object) -> None:
        if not accepts(data):
            raise _wrong(where, data, allowed)

    return check


def _wrong(where: str, data: object, allowed: str) -> ValueError:
    return ValueError(f"{where}={data!r:.80}: allowed is {allowed}")


def _is_number(data: object) -> bool:
    # An int may be too large for a float; comparing the two is exact.
    return isinstance(data, int | float) and not isinstance(data, bool) and abs(data) <= LIMIT


_RANGE = f"a number from -{LIMIT:g} to {LIMIT:g}"
_anything = _must(lambda data: True, "anything")
_text = _must(lambda data: isinstance(data, str), "a text")
_flag = _must(lambda data: isinstance(data, bool), "true or false")
_number = _must(_is_number, _RANGE)
_number_or_null = _must(lambda data: data is None or _is_number(data), f"{_RANGE} or null")
_list = _must(lambda data: isinstance(data, list), "a list")
_object = _must(lambda data: isinstance(data, Mapping), "a JSON object")


def _or_null(check: Check) -> Check:
    return lambda where, data: None if data is None else check(where, data)


def _list_of(check: Check) -> Check:
    def check_list(where: str, data: object) -> None:
        _list(where, data)
        for place, each in enumerate(data):  # type: ignore[var-annotated, arg-type]
            check(f"{where}[{place}]", each)

    return check_list


def _record(
    needed: Mapping[str, Check],
    optional: Mapping[str, Check] | None = None,
    others: Check = _anything,
    ends: tuple[str, str] | None = None,
    prefix: bool = True,
) -> Check:
    """Return the check of a JSON object.

    Args:
        needed, optional: entry -> check. others: of every other entry.
        ends: two entries of which both are known, or neither is.
        prefix: whether messages name an entry after the object that it is in.
    """
    known = {**needed, **(optional or {})}

    def check(where: str, data: object) -> None:
        _object(where, data)
        assert isinstance(data, Mapping)
        for name in needed:
            if name not in data:
                raise ValueError(f"{where}: has no {name!r}; it needs {', '.join(needed)}")
        for name, value in data.items():
            known.get(name, others)(f"{where}.{name}" if prefix else name, value)
        if ends and (data.get(ends[0]) is None) != (data.get(ends[1]) is None):
            missing, there = ends if data.get(ends[0]) is None else reversed(ends)
            raise _wrong(f"{where}.{missing}", None, f"a number where {there} is one")

    return check


def _curve(where: str, data: object) -> None:
    """Accept points in the order of their episodes; an agent may be evaluated twice before its next episode ends."""
    _list_of(_POINT)(where, data)
    before = 0.0
    for place, row in enumerate(data):  # type: ignore[var-annotated, arg-type]
        if row["episode"] < before:
            allowed = f"a number >= {before:g}, as points are in order"
            raise _wrong(f"{where}[{place}].episode", row["episode"], allowed)
        before = row["episode"]


_NUMBERS = _record({}, others=_number_or_null)
_ESTIMATE = _record(dict.fromkeys(("mean", "low", "high"), _number_or_null), ends=("low", "high"))
_POINT = _record(
    dict.fromkeys(("episode", "tokens"), _number),
    others=_number_or_null,
    ends=("optimality_low", "optimality_high"),
)
_SIDE = _record(
    dict.fromkeys(ESTIMATES, _or_null(_ESTIMATE)) | dict.fromkeys(NUMBERS, _number_or_null),
    {"answer_tokens": _number_or_null},
)
_OPTIMUM = _record(
    {
        **dict.fromkeys(("value", "reference"), _or_null(_ESTIMATE)),
        "effective_samples": _number_or_null,
        "beta": _number,
        "exact": _flag,
    }
)
_CROSSING = _record(dict.fromkeys(("episodes", "tokens"), _number_or_null))
_ANSWER = _record({"completion": _text, "reward": _number_or_null}, {"gold": _number_or_null, "terms": _NUMBERS})
_SAMPLE = _record({"prompt": _text, **dict.fromkeys(("before", "after"), _or_null(_ANSWER))})
_MEASURES = _record(
    {
        **dict.fromkeys(("before", "after"), _SIDE),
        "optimum": _or_null(_OPTIMUM),
        "curve": _curve,
        "samples": _list_of(_SAMPLE),
        **dict.fromkeys(("to_half", "to_nine_tenths"), _or_null(_CROSSING)),
        **dict.fromkeys(("episodes", "tokens", "iterations"), _number),
    },
    {"scored": _number},
    prefix=False,
)
_SO_FAR = _record({"state": _text, "episodes": _number, "seconds_left": _number_or_null}, prefix=False)
_TIMING = _record(
    {}, dict.fromkeys(("curve_seconds", "curve_cpu_seconds"), _list_of(_number_or_null)), others=_number_or_null
)
_ERROR = _record({**dict.fromkeys(("type", "message", "traceback"), _text), "attempts": _number})
_SUITE = _record(
    {},
    {
        **dict.fromkeys(("name", "description", "started"), _or_null(_text)),
        **dict.fromkeys(("evaluation", "settings"), _or_null(_object)),
    },
)
_RESULT = _record(
    {
        "format": _must(lambda data: data == FORMAT, f"{FORMAT}"),
        "cell": _anything,
        "family": _text,
        "status": _must(lambda data: data in STATUSES, ", ".join(STATUSES)),
        **dict.fromkeys(("error", "measures", "timing"), _anything),
    },
    {"versions": _record({}, others=_text), "machine": _text},
    prefix=False,
)


def check_result(data: object) -> None:
    """Raise ValueError unless `data` is a result as result.json holds it; its cell is left to `Cell.from_json`."""
    _RESULT("result", data)
    assert isinstance(data, Mapping)
    status = data["status"]
    if status == "done":
        _MEASURES("measures", data["measures"])
        _TIMING("timing", data["timing"])
    if status == "failed":
        _ERROR("error", data["error"])
    if data.get("so_far") is not None:
        _SO_FAR("so_far", data["so_far"])
        if "after" in data["so_far"]:
            _MEASURES("so_far", data["so_far"])
    for name, owner in (("measures", "done"), ("error", "failed")):
        if status != owner and data[name] is not None:
            raise _wrong(name, data[name], f"null, as its status is {status!r}")


def check_suite(data: object) -> None:
    """Raise ValueError unless `data` describes a results file: name, description, settings."""
    _SUITE("suite", data)
