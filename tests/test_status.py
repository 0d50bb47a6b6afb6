"""What a command says while it is at work: never silent for long, never in the way of what it prints."""

from __future__ import annotations

import io
import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_tools import COMMAND, shell, until

from textgym.commands.console import Status

pytestmark = pytest.mark.slow

LOG = logging.getLogger("textgym.sampling")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, work: Callable[[], None], patience: float) -> str:
    """What a command whose work this is says on the standard error."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("TEXTGYM_STATUS", raising=False)
    status = Status("eval")
    status._patience = patience
    with status:
        work()
    return stream.getvalue()


def test_silence_is_filled_with_the_last_message(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()

    def work() -> None:
        until(lambda: "starting" in stream.getvalue())
        LOG.info("sampling answers, %d of %d", 512, 1024)
        until(lambda: "512" in stream.getvalue())

    lines = shown(monkeypatch, stream, work, 0.1).splitlines()
    assert all(re.fullmatch(r"textgym: .* \(\d+ s\)", line) for line in lines)
    assert lines[0].startswith("textgym: eval is starting (")
    assert lines[-1].startswith("textgym: eval is starting: sampling answers, 512 of 1024 (")
    assert not LOG.parent.handlers  # type: ignore[union-attr]


@pytest.mark.parametrize("message", ["at work", ""])
def test_nothing_is_said_to_whoever_is_asked_or_hears_something_else(
    monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def work() -> None:
        LOG.info(message)
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            time.sleep(0.05)
            if message:
                print("a line", file=sys.stdout)

    assert shown(monkeypatch, io.StringIO(), work, 0.6) == ""


def test_what_a_command_says_stands_before_what_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()

    def work() -> None:
        for stage in ("solving", "evaluating"):
            logging.getLogger("textgym_agents.commands.policies").info(stage)
            until(lambda stage=stage: f"{stage} (" in stream.getvalue())  # type: ignore[misc]
            LOG.info("half")
            until(lambda stage=stage: f"{stage}: half (" in stream.getvalue())  # type: ignore[misc]

    shown(monkeypatch, stream, work, 0.1)


def test_on_a_terminal_its_line_makes_room(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stream = Terminal()

    def work() -> None:
        LOG.info("a \x1b[31m name")
        until(lambda: "name" in stream.getvalue())
        print("result")

    text = shown(monkeypatch, stream, work, 0.1)
    assert "\n" not in text
    assert "\x1b[31m" not in text  # a message may hold the name of a file
    assert text.endswith("\r\x1b[2K")
    assert capsys.readouterr().out == "result\n"


def test_it_is_off_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TEXTGYM_STATUS", "off"), ("RANK", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            before = sys.stdout
            with Status("eval"):
                assert sys.stdout is before


@pytest.mark.long
def test_the_command_line_is_never_silent_for_long(tmp_path: Path) -> None:
    slow = "import time, textgym.commands.list as c; c.main = lambda words: time.sleep(4)"
    code = f"import sys\n{slow}\nfrom textgym.cli import main\nsys.argv[1:] = ['list']\nsys.exit(main())"
    done = shell(f'{COMMAND[0]} -c "$CODE"', cwd=tmp_path, CODE=code, TEXTGYM_STATUS="on")
    assert done.returncode == 0
    assert re.fullmatch(r"(textgym: list is starting \(\d+ s\)\n)+", done.stderr)
    assert done.stdout == ""
