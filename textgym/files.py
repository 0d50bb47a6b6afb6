"""Read JSON and lines strictly, and write files and folders atomically.

Nothing is repaired: an error names the file and the line, in one line.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import IO, Any, Final, NoReturn

from textgym.checks import JsonObject

_MOST_DIGITS: Final = 4300  # of an integer: Python reads no more
_ESCAPED_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_SHOWN_NAME: Final = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    r"""Yield numbers, from 1, and bytes of the lines that are not blank, without their ends (\n or \r\n).

    Raises: FileNotFoundError; ValueError for anything but a plain file, such as a folder or a pipe.
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
    """Decode a line. Raises: ValueError unless it is UTF-8 without a byte order mark and NUL bytes."""
    if number == 1 and line.startswith(codecs.BOM_UTF8):
        raise ValueError("begins with a byte order mark; save the file as UTF-8 without one")
    if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("the file is UTF-16; save it as UTF-8")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line)") from error
    if "\0" in text:
        raise ValueError(f"a NUL byte (byte {line.index(0) + 1} of the line), as in UTF-16; save the file as UTF-8")
    return text


def json_object(text: str) -> JsonObject:
    """Read a JSON object. Raises: ValueError for anything else, see `json_value`."""
    data = json_value(text)
    if not isinstance(data, dict):
        raise ValueError(f"holds {_SHOWN_NAME.get(type(data), 'a number')}, allowed is a JSON object")
    return data


def value_at(value: object, *path: str | int) -> object:
    """Return what is at a place in a JSON value: under names and positions; None where there is no such place."""
    try:
        return reduce(getitem, path, value)  # type: ignore[arg-type]
    except (LookupError, TypeError):
        return None


def json_value(text: str) -> Any:
    """Read the value of a JSON text.

    Raises: ValueError for text that is not JSON, and where readers differ: a key that stands twice in an object, NaN
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


def unique_keys(pairs: list[tuple[str, Any]]) -> JsonObject:
    """Make a dict, as an `object_pairs_hook`. Raises: ValueError if a key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def refuse_constant(name: str) -> NoReturn:
    """Raise ValueError, as a `parse_constant`: NaN and infinities are not JSON."""
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


def _check_surrogates(value: object) -> None:
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


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a name beside `path`; the file that the block writes there then replaces `path`, synced to the disk.

    If the block raises, `path` stays as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees the old text or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old bytes or the new ones."""
    with replaced(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, data: object) -> None:
    """Write `data` as JSON to a path, atomically. Raises: TypeError for a value that JSON cannot hold."""
    write_text(path, json.dumps(plain(data), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> JsonObject:
    """Read a JSON object from a path. Raises: ValueError that names the file, and the line where there is one."""
    check_file(path)
    texts: list[str] = []
    number = 0
    try:
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            texts.append(line_text(line, number))
    except OSError as error:
        raise ValueError(f"{path}: no JSON can be read there ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error
    try:
        return json_object("\n".join(texts))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON can be read there ({error})") from error


def check_file(path: Path) -> None:
    """Raise ValueError unless `path` is a file or a link to one: reading a pipe could wait for ever."""
    if not path.is_file():
        what = "is no file" if os.path.lexists(path) else "there is no such file"
        raise ValueError(f"{path}: {what}")


def check_files(folder: Path) -> None:
    """Raise ValueError if anything in a folder, at any depth, is neither a file nor a folder."""
    for path in folder.rglob("*"):
        if not path.is_dir():
            check_file(path)


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn any error of a block that reads a damaged file, or folder, into a ValueError that names it.

    `what` is its content, for the message: "the saved agent".
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        how = "does not fit here, or is damaged" if isinstance(error, ValueError) else "is damaged"
        said = " ".join(str(error).split())
        problem = f"{type(error).__name__}: {said:.300}" if said else type(error).__name__
        raise ValueError(f"{path}: {what} {how} ({problem})") from error


def open_lock(folder: Path) -> IO[str]:
    """Open the lock file of a folder. Raises: ValueError if it is not a file."""
    path = folder / ".lock"
    if os.path.lexists(path):
        check_file(path)
    return path.open("w")


def try_to_hold(lock: IO[str], wait: bool = False) -> bool:
    """Take a lock file until it is closed, and return whether it was free; without POSIX it always is.

    Args:
        wait: until it is free.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, so that they survive a power cut."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync(each.parent)


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Replace the folder at `path` by a new one that `write` fills.

    If `write` raises, the old folder stays and nothing else does. At every moment the old or the new folder is whole;
    after a crash between the two renames `recover_folder` brings it back. On return, the new one is on the disk.
    Whoever may read the folder may read its files.
    """
    recover_folder(path)
    new, old = _siblings(path)
    shutil.rmtree(new, ignore_errors=True)
    try:
        make_folder(new)
        write(new)
        allowed = new.stat().st_mode & 0o666
        for each in (*new.rglob("*"), new):
            if (mode := each.stat().st_mode) | allowed != mode:  # safetensors makes files that only we may read
                each.chmod(stat.S_IMODE(mode | allowed))
            sync(each)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if path.exists():
        path.rename(old)
    new.rename(path)
    # The disk may do things in another order: the old files must not go before the new name is there.
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Bring back the folder that a crashed `replace_folder` had moved aside."""
    old = _siblings(path)[1]
    if old.exists() and not path.exists():
        with contextlib.suppress(FileNotFoundError):  # another process of the same training did it
            old.rename(path)
        sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder, if there is one. A process that is killed leaves the whole of it under its name, or nothing."""
    gone = path.with_name(f".{path.name}-gone")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's names (on POSIX; other systems keep them)."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_line(row: Mapping[str, object]) -> str:
    """Return one row of a .jsonl file, with its line break."""
    return json.dumps(plain(row), ensure_ascii=True, allow_nan=False) + "\n"


def read_lines(path: Path) -> list[JsonObject]:
    """Read the rows of a .jsonl file; [] without one. A last line that was cut off by a crash is left out.

    Raises: ValueError that names the file, and the line that is not a JSON object.
    """
    if not os.path.lexists(path):
        return []
    check_file(path)
    rows: list[JsonObject] = []
    try:
        content = path.read_bytes()  # once: another process may be writing it
    except OSError as error:
        raise ValueError(f"{path}: no text can be read there ({error.strerror})") from error
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(json_object(line_text(line.removesuffix(b"\r"), number)))
        except ValueError as error:
            if number == len(lines):  # what follows the last line break
                break
            raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def plain(value: object) -> Any:
    """Copy a value with numpy numbers as Python's and with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _siblings(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}-new"), path.with_name(f".{path.name}-old")
