"""Files and folders that a reader never sees half of, and JSON that is plain: no NaN, no infinity."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from textgym.data_files import json_object, line_text, numbered_lines, read_object


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: a reader sees the old text or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """Writes JSON atomically. Raises: TypeError for what JSON cannot hold."""
    write_text(path, json.dumps(plain(data), indent=1, allow_nan=False) + "\n")


read_json = read_object


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Replaces a folder by what `write` puts into a new one.

    At every moment the old or the new folder is whole; after a crash between the two renames `recover_folder` brings
    it back.
    """
    recover_folder(path)
    new, old = _siblings(path)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    write(new)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Brings back the folder that a crashed `replace_folder` had moved aside."""
    old = _siblings(path)[1]
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _siblings(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}-new"), path.with_name(f".{path.name}-old")


def json_line(row: Mapping[str, Any]) -> str:
    """One row of a .jsonl file, with its line break."""
    return json.dumps(plain(row), ensure_ascii=True, allow_nan=False) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; [] without one. A last line that was cut off by a crash is left out."""
    if not path.exists():
        return []
    rows = []
    lines = list(numbered_lines(path))
    for number, line in lines:
        try:
            rows.append(json_object(line_text(line, number)))
        except ValueError as error:
            if number == lines[-1][0] and not path.read_bytes().endswith(b"\n"):
                break
            raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def plain(value: Any) -> Any:
    """A copy with numpy numbers as Python's and with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
