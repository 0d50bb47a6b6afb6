"""Running the command line in a test: in this process, or in a child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textgym.cli import main

ROOT = Path(__file__).parents[1]
RUN_FILES = ("config.json", "metrics.jsonl", "samples.jsonl", "result.json", "curve.png", "checkpoint", "tensorboard")
"""What stands in the folder of a training that has ended."""


def run(capsys: Any, *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


BLOCK = """
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def environment() -> dict[str, str]:
    """The variables of a child process that finds the source, and keeps its bytecode for the next one."""
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "agents", "benchmarks"))
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": path, "TEXTGYM_STATUS": "off"}


def child(*words: str, before: str = "", stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in its own process, after some Python code."""
    code = f"import sys\n{before}\nfrom textgym.cli import main\nsys.exit(main({list(words)!r}))"
    return subprocess.run(
        [sys.executable, "-c", code],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )


COMMAND = (sys.executable, "-P", "-c", "import sys; from textgym.cli import main; sys.exit(main())")
"""Starts the command line as the script `textgym` does: no module is taken from the current folder."""


@contextmanager
def started(*words: str, **streams: int) -> Iterator[subprocess.Popen[str]]:
    """The command line in its own process, which is killed if the test fails before it has ended."""
    with subprocess.Popen([*COMMAND, *words], env=environment(), text=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def until(holds: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def metrics(folder: str) -> list[dict[str, float]]:
    """The rows of metrics.jsonl, without what depends on the clock."""
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows]


def shell(
    script: str, *words: str | bytes, cwd: Path | bytes | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A script of bash in which `"$@"` is the command line with these words."""
    return subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, *words],
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=120,
        cwd=cwd,
        env=environment() | variables,
        check=False,
    )


def assert_one_line(code: int, err: str, *words: str) -> None:
    assert code == 2
    assert err.startswith("textgym: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err
