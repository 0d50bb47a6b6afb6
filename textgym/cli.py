"""The command `textgym`: find the subcommand, run it, and turn every error into one line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from textgym.checks import not_one_of
from textgym.commands.console import Status, UsageError, one_line
from textgym.interrupts import DiskFullError, disk_full, is_termination, sigterm_raises
from textgym.registry import COMMANDS
from textgym.sources import source_digest, source_folder

_SAYS_WHAT_TO_TYPE = re.compile(r"\btextgym \w|--\w|pip install|Did you mean|\ballowed\b|\bchoose\b|not one of")
EXIT_ERROR, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE, EXIT_TERMINATED = 2, 130, 141, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: without the program's name; None takes `sys.argv`, and says what it is at while it is silent.
            `--debug` may stand anywhere in them.
    Returns: the exit code: 0, 2 after an error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in options
    rest = [word for word in options if word != "--debug"] + words[len(options) :]
    _prepare_streams()
    try:
        with (
            warnings.catch_warnings(),
            sigterm_raises(),
            Status(next(iter(rest), "help")) if arguments is None else contextlib.nullcontext(),
            _thread_errors(traceback.print_exception if debug else _show_warning),
        ):
            if not debug:
                warnings.showwarning = _show_warning
            code = _dispatch(rest)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # The reader has gone, as in `textgym list | head`.
        for stream in (sys.stdout, sys.stderr):
            _drop_if_broken(stream)
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        if debug:
            traceback.print_exc()
        _say(f"interrupted: {interrupt}" if str(interrupt) else "interrupted")
        return EXIT_TERMINATED if is_termination(interrupt) else EXIT_INTERRUPTED
    except Exception as error:
        # An error of the standard output names no file; it is recognised by the stream taking nothing still.
        nameless = isinstance(error, OSError) and error.filename is None and disk_full(error)
        broken = _drop_if_broken(sys.stdout, "\n" if nameless else "")
        place = "standard output: " if broken and not isinstance(error, DiskFullError) else ""
        if debug:
            traceback.print_exc()
        else:
            _say(f"error: {place}{one_line(error)}{_next_step(error, rest)}")
        return EXIT_ERROR


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_help()
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        _print_version()
        return 0
    if name not in COMMANDS:
        raise UsageError(not_one_of("flag" if name.startswith("-") else "command", name, COMMANDS))
    source_folder()  # before any number is made of two checkouts
    try:
        COMMANDS.load(name)(rest)
    except SystemExit as request:
        if isinstance(request.code, int | None):
            return request.code or 0
        _say(str(request.code))
        return EXIT_ERROR
    return 0


def _next_step(error: Exception, words: Sequence[str]) -> str:
    """Return where a command shows its example, after a refusal that does not say itself what to type instead."""
    refused = isinstance(error, UsageError | ValueError | FileNotFoundError | FileExistsError)
    if not refused or _SAYS_WHAT_TO_TYPE.search(one_line(error)):
        return ""
    command = f"{words[0]} " if words and words[0] in COMMANDS else ""
    return f" (textgym {command}--help shows {'an example' if command else 'the commands'})"


def _print_help() -> None:
    from rich.table import Table

    from textgym.commands.console import output

    console = output()
    console.print("usage: textgym COMMAND ...", markup=False)
    console.print("\nText generation as a Markov decision process, in Gymnasium's interface.\n", markup=False)
    table = Table.grid(padding=(0, 2))
    for name in sorted(COMMANDS):
        table.add_row(f"  {name}", COMMANDS.summary(name))
    console.print(table)
    console.print(
        "\ntextgym COMMAND --help shows the flags of a command. --version shows the version;"
        "\n--debug, before or after the command, shows where an error comes from.",
        markup=False,
        highlight=False,
    )


def _print_version() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        name = f"textgym {version('textgym')}"
    except PackageNotFoundError:
        name = "textgym (not installed: running from its source)"
    print(f"{name}, source {source_digest()} in {source_folder()}")


def _prepare_streams() -> None:
    """Give every standard stream a file that takes any text.

    A stream that was closed (`>&-`) is None in Python. The next file to be opened would get its number, and libraries
    that print would write into that file. Texts of models may hold any character; one that the terminal cannot show
    is escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _drop_if_broken(stream: TextIO, text: str = "") -> bool:
    """Return whether a stream takes no text; if so, redirect it, or Python would complain again at exit."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _say(f"warning: {one_line(message)}")


@contextlib.contextmanager
def _thread_errors(show: Callable[[Any], object]) -> Iterator[None]:
    """Within the block, show errors that end a thread of a library, as on a full disk, by a function."""
    before = threading.excepthook
    threading.excepthook = lambda thread: show(thread.exc_value)
    try:
        yield
    finally:
        threading.excepthook = before


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"textgym: {text}\n")  # in one piece: threads may say something, too
    _drop_if_broken(sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
