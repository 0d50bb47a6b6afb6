"""Files and folders that a reader never sees half of and that outlast a power cut, and JSON that is plain."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from textgym.data_files import json_object, line_text, numbered_lines


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a name beside `path`; the file that the block writes there takes the place of `path`, whole and on the disk.

    A block that raises leaves what was at `path`.
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


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically. Raises: TypeError for what JSON cannot hold."""
    write_text(path, json.dumps(plain(data), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises: ValueError that names the file, and the line where there is one."""
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
    """Raise ValueError unless a file is at `path`, which may be a link: a pipe would be waited for without end."""
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
    """Turn whatever comes of a damaged file into a ValueError that names it: libraries raise anything.

    Args:
        path: of the file or folder that the block reads. what: it holds, for the message: "the saved agent".
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
    """Open the file by which processes keep each other out of a folder. Raises: ValueError if it is no file."""
    path = folder / ".lock"
    if os.path.lexists(path):
        check_file(path)
    return path.open("w")


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, that are still there after a power cut."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync(each.parent)


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a folder by what `write` puts into a new one.

    A `write` that raises leaves what was at `path`, and nothing of its own. At every moment the old or the new folder
    is whole; after a crash between the two renames `recover_folder` brings it back. When this returns, the new one is
    on the disk.
    """
    recover_folder(path)
    new, old = _siblings(path)
    shutil.rmtree(new, ignore_errors=True)
    try:
        make_folder(new)
        write(new)
        for each in (*new.rglob("*"), new):
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
        old.rename(path)
        sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or the names in a folder; systems but POSIX keep names themselves."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_line(row: Mapping[str, Any]) -> str:
    """Return one row of a .jsonl file, with its line break."""
    return json.dumps(plain(row), ensure_ascii=True, allow_nan=False) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a .jsonl file; [] without one. A last line that was cut off by a crash is left out.

    Raises: ValueError that names the file, and the line that is no JSON object.
    """
    if not os.path.lexists(path):
        return []
    check_file(path)
    rows: list[dict[str, Any]] = []
    try:
        lines = list(numbered_lines(path))
        whole = path.read_bytes().endswith(b"\n")
    except OSError as error:
        raise ValueError(f"{path}: no text can be read there ({error.strerror})") from error
    for number, line in lines:
        try:
            rows.append(json_object(line_text(line, number)))
        except ValueError as error:
            if number == lines[-1][0] and not whole:
                break
            raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def plain(value: Any) -> Any:
    """Copy with numpy numbers as Python's and with None for NaN and infinities, which JSON does not have."""
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
