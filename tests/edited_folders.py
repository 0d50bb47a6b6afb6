"""Edits that a person, a disk or another program may make in a folder, drawn at random, and how a reader takes them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from textgym.cli import main
from textgym.commands.console import one_line

SECONDS = 10.0
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**64,
    10**400,
    -(10**400),
    0.5,
    float("nan"),
    float("inf"),
    1e308,
    "",
    "abc",
    "\ud800",
    "../..",
    [],
    {},
    [1, "a"],
    {"a": 1},
    [[[[0.0]]]],
)


def edit(folder: Path, others: list[Path], rng: random.Random) -> str:
    """Edits one file of a folder. Returns: what was done.

    Args:
        others: folders whose files may take its place.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("events."))
    path = rng.choice(files)
    edits: list[Callable[[Path, random.Random], str]] = [*_ANY]
    if path.suffix in _OWN:
        edits += 2 * _OWN[path.suffix]
    chosen = rng.randrange(len(edits) + 1)
    name = path.relative_to(folder)
    if chosen < len(edits):
        return f"{name}: {edits[chosen](path, rng)}"
    theirs = sorted(
        other for each in (folder, *others) for other in each.rglob("*") if other.is_file() and other != path
    )
    alike = [other for other in theirs if other.name == path.name] or theirs
    source = rng.choice(alike if rng.random() < 0.7 else theirs)
    path.write_bytes(source.read_bytes())
    return f"{name}: copied from {source}"


def problem(read: Callable[[], object]) -> str | None:
    """Returns: None where reading succeeds, or says why it does not, in one line and in time; else what is wrong."""
    try:
        with _limit():
            read()
    except _TooLong:
        return f"took longer than {SECONDS} s"
    except Exception as error:
        line = one_line(error)
        return None if "--debug" not in line and line else f"{type(error).__name__}: {line}"
    return None


def command(*words: str) -> None:
    """Runs the command line in this process. Raises: AssertionError where it does not end as it should."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    said = [line for line in err.getvalue().splitlines() if "warning:" not in line]
    errors = [line for line in said if line.startswith("textgym: error: ")]
    clear = len(errors) == 1 and "--debug" not in errors[0]
    if "Traceback" in err.getvalue() or not (code == 0 or (code == 2 and clear)):
        raise AssertionError(f"exit code {code}: {err.getvalue()[-300:]!r}")


class _TooLong(BaseException):
    pass


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Any file


def _delete(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "deleted"


def _empty(path: Path, rng: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def _truncate(path: Path, rng: random.Random) -> str:
    content = path.read_bytes()
    size = rng.randrange(len(content) + 1)
    path.write_bytes(content[:size])
    return f"cut to {size} of {len(content)} bytes"


def _double(path: Path, rng: random.Random) -> str:
    path.write_bytes(2 * path.read_bytes())
    return "written twice"


def _folder(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.mkdir()
    return "made a folder"


def _pipe(path: Path, rng: random.Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "made a pipe"


def _loop(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.symlink_to(path.name)
    return "made a link to itself"


def _flip(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    places = [rng.randrange(len(content)) for _ in range(rng.randint(1, 8))] if content else []
    for place in places:
        content[place] ^= rng.randint(1, 255)
    path.write_bytes(bytes(content))
    return f"bytes {places} changed"


def _noise(path: Path, rng: random.Random) -> str:
    path.write_bytes(rng.randbytes(rng.randint(1, 500)))
    return "noise"


_ANY = [_delete, _empty, _truncate, _double, _folder, _pipe, _loop, _flip, _noise]

# JSON


def _places(data: Any) -> list[tuple[Any, Any]]:
    """Every container in some JSON with a key of it."""
    if isinstance(data, dict | list):
        items = list(data.items() if isinstance(data, dict) else enumerate(data))
        return [(data, key) for key, _ in items] + [place for _, value in items for place in _places(value)]
    return []


def _change(data: Any, rng: random.Random) -> tuple[Any, str]:
    places = _places(data)
    if not places or rng.random() < 0.03:
        value = rng.choice(ODD)
        return value, f"is {value!r:.40}"
    holder, key = rng.choice(places)
    done = rng.choice(("odd", "odd", "odd", "drop", "rename", "deep", "scale"))
    if done == "drop":
        del holder[key]
    elif done == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif done == "deep":
        for _ in range(60):
            holder[key] = [holder[key]]
    elif done == "scale" and isinstance(holder[key], int | float):
        holder[key] = holder[key] * rng.choice((-1, 2, 1000, 10**9, 10**30))
    else:
        holder[key] = rng.choice(ODD)
        return data, f"{key!r:.40} = {holder[key]!r:.40}"
    return data, f"{key!r:.40}: {done}"


def _json(path: Path, rng: random.Random) -> str:
    data, what = _change(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(data))
    return what


def _very_deep(path: Path, rng: random.Random) -> str:
    path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    return "nested without end"


def _line(path: Path, rng: random.Random) -> str:
    lines = path.read_text().splitlines()
    if not lines:
        return "nothing"
    place = rng.randrange(len(lines))
    done = rng.choice(("change", "change", "change", "drop", "twice", "swap"))
    what = done
    if done == "change":
        data, what = _change(json.loads(lines[place]), rng)
        lines[place] = json.dumps(data)
    elif done == "drop":
        del lines[place]
    elif done == "twice":
        lines.insert(place, lines[place])
    else:
        lines[place], lines[-1] = lines[-1], lines[place]
    path.write_text("".join(line + "\n" for line in lines))
    return f"line {place + 1}: {what}"


# Tensors


def _tensor(path: Path, rng: random.Random) -> str:
    tensors = load(path.read_bytes())
    if not tensors:
        return "nothing"
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    done = rng.choice(("rename", "drop", "kind", "shape", "row", "nan", "huge", "empty", "add"))
    if done == "rename":
        tensors[f"{name}x"] = tensors.pop(name)
    elif done == "drop":
        del tensors[name]
    elif done == "kind":
        with np.errstate(all="ignore"):
            tensors[name] = value.astype(rng.choice((np.float64, np.int8, np.float16, np.uint32, np.bool_)))
    elif done == "shape":
        tensors[name] = value.reshape(rng.choice(((-1,), (1, *value.shape), (*value.shape, 1))))
    elif done == "row":
        tensors[name] = np.concatenate([value.reshape(-1), value.reshape(-1)[:1]])
    elif done == "nan":
        tensors[name] = np.full_like(value, np.nan if value.dtype.kind == "f" else -1)
    elif done == "huge":
        tensors[name] = np.full_like(value, 1e30 if value.dtype.kind == "f" else 100)
    elif done == "empty":
        tensors[name] = np.zeros(0, value.dtype)
    else:
        tensors["another"] = value
    path.write_bytes(save(tensors))
    return f"{name}: {done}"


def _header(path: Path, rng: random.Random) -> str:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header, what = _change(header, rng)
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + size :])
    return f"header: {what}"


_OWN = {
    ".json": [_json, _json, _json, _json, _very_deep],
    ".jsonl": [_line, _line, _line],
    ".safetensors": [_tensor, _tensor, _header],
}


def fresh(source: Path, target: Path) -> Path:
    """A copy of a folder where another one may have been."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target
