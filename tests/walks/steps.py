"""What the walks share: type a command as a user would, show what it says, and hold that to what is known.

Each walk is a script, run in an empty folder by the Python that TextGym is installed for: `.ci/full walks`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As on the path of a user whose environment is active.
VARIABLES = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}

# In the background of a script Ctrl-C is ignored, and what is started there would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def begin(title: str) -> None:
    """Say whose walk it is; end unless the folder is empty and TextGym is installed outside this checkout."""
    print(f"# {title}", flush=True)
    sees("the folder is empty", not list(Path().iterdir()))
    place = run("python -c 'import textgym; print(textgym.__file__)'").strip()
    checkout = str(Path(__file__).parents[2])
    sees("TextGym is that of a wheel", "site-packages" in place and not place.startswith(checkout))


def sees(claim: str, holds: object, found: object = "") -> None:
    """Print a claim that holds, with the values that were found; end the walk at one that does not."""
    print(f"  {'ok' if holds else 'NOT SO'}: {claim}{f' ({found})' if found != '' else ''}", flush=True)
    if not holds:
        sys.exit(1)


def writes(name: str, text: str) -> None:
    """Write a file of the user's own into the folder."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    print(f"\n+ wrote {name}", flush=True)


def run(line: str, code: int = 0, stop: Callable[[], bool] | None = None) -> str:
    """Type one command line, show what it prints, and return that.

    Args:
        line: the words, quoted as for a shell.
        code: the exit status that is expected.
        stop: asked ten times a second; True presses Ctrl-C, once.
    """
    print(f"\n$ {line}", flush=True)
    start = time.monotonic()
    with Path(os.devnull).open() as nothing:
        # A process group of its own: Ctrl-C reaches it, and nothing else.
        process = subprocess.Popen(
            shlex.split(line),
            env=VARIABLES,
            stdin=nothing,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while stop is not None and process.poll() is None:
            if stop():
                os.killpg(process.pid, signal.SIGINT)
                break
            time.sleep(0.1)
        out, err = process.communicate(timeout=900)
    said = out + "".join(line for line in err.splitlines(True) if not re.match(r"textgym: .* \(\d+ s\)$", line))
    shown = said.rstrip().splitlines()
    print("\n".join([*shown[:60], f"... {len(shown) - 60} more lines"] if len(shown) > 60 else shown), flush=True)
    sees(f"exit status {code}, {time.monotonic() - start:.0f} s", process.returncode == code, process.returncode)
    sees("no traceback, no warning of a library", "Traceback" not in said and "[transformers]" not in said)
    return said


def numbers(path: str) -> Any:
    """Read a JSON file of a run."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def lines(path: str) -> list[Any]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def offline(path: str, *words: str) -> None:
    """Check that a page asks for nothing from the network, and that it holds some words."""
    page = Path(path).read_text(encoding="utf-8")
    elsewhere = re.search(r"<(?:script|link|img)[^>]*(?:src|href)=.?https?:", page)
    sees(f"{path} loads nothing from elsewhere", not elsewhere)
    for word in words:
        sees(f"{path} shows {word!r}", word in page)
