"""Files of data: prompts, preferences, demonstrations, run folders; UTF-8, and JSON that every reader reads alike.

Nothing is repaired: what is refused is named with file and line, in one line.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

_MOST_DIGITS: Final = 4300
"""Of an integer: what Python reads."""
_ESCAPED_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_SHOWN_NAME: Final = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    r"""Yield numbers, from 1, and bytes of the lines that are not blank, without their ends (\n or \r\n).

    Raises: FileNotFoundError; ValueError for a folder, a pipe or another thing that is no plain file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if not path.is_file():
        raise ValueError(f"{path}: is {'a folder' if path.is_dir() else 'no plain file'}, allowed is a file")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                # Without its end: JSON would complain of that in a line that was cut off.
                yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def line_text(line: bytes, number: int) -> str:
    """The text of a line. Raises: ValueError for what is not UTF-8, with or without a byte order mark."""
    if number == 1 and line.startswith(codecs.BOM_UTF8):
        raise ValueError("begins with a byte order mark; save the file as UTF-8 without one")
    if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("the file is UTF-16; save it as UTF-8")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line)") from error
    if "\0" in text:
        raise ValueError(
            f"a NUL byte (byte {line.index(0) + 1} of the line), as in UTF-16; save the file as UTF-8"
        )
    return text


def json_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises: ValueError for anything else, see `json_value`."""
    data = json_value(text)
    if not isinstance(data, dict):
        raise ValueError(f"holds {_SHOWN_NAME.get(type(data), 'a number')}, allowed is a JSON object")
    return data


def json_value(text: str) -> Any:
    """The value of a JSON text.

    Raises: ValueError for what is no JSON, and for what readers differ on: a key that stands twice in an object, NaN
        and infinities, numbers out of a float's range or of more than 4,300 digits, halves of surrogate pairs, and
        nesting deeper than Python's recursion limit.
    """
    try:
        data = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise ValueError(f"not JSON ({error.msg}, {line}column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not JSON (nested too deeply)") from error
    if _ESCAPED_SURROGATE.search(text):
        _check_surrogates(data)
    return data


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` that repairs nothing. Raises: ValueError if a key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def refuse_constant(name: str) -> NoReturn:
    """A `parse_constant`. Raises: ValueError, for NaN and infinities are no JSON."""
    raise ValueError(f"{name} is no JSON")


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits, at most {_MOST_DIGITS} are allowed")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits:.40} is out of a float's range")
    return number


def _check_surrogates(value: Any) -> None:
    # Half of a pair of UTF-16 units: JSON can write it, no tokenizer and no UTF-8 file can hold it.
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            lone = re.search("[\ud800-\udfff]", value)
            if lone:
                raise ValueError(f"a text holds a lone surrogate, {lone[0]!r}, which is no character")
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=unique_keys, parse_constant=refuse_constant, parse_int=_integer, parse_float=_float
)
