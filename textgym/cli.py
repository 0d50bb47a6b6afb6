"""The command `textgym`: finds the subcommand, runs it, and turns every error into one line."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from textgym.commands import command_names, load_command, summary
from textgym.commands._errors import UsageError, one_line
from textgym.interrupts import is_termination, sigterm_raises
from textgym.messages import did_you_mean

EXIT_ERROR, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE, EXIT_TERMINATED = 2, 130, 141, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        arguments: without the program's name; None takes `sys.argv`. `--debug` may stand anywhere in them.
    Returns: the exit code: 0, 2 after an error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = given[: given.index("--")] if "--" in given else given
    debug = "--debug" in options
    rest = [word for word in options if word != "--debug"] + given[len(options) :]
    try:
        _prepare_streams()
        with warnings.catch_warnings(), sigterm_raises():
            if not debug:
                warnings.showwarning = _show_warning
            return _dispatch(rest)
    except SystemExit as exit_request:
        return _exit_code(exit_request)
    except BrokenPipeError:
        # The reader has gone (`textgym list | head`): Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        if debug:
            traceback.print_exc()
        _say(f"interrupted: {interrupt}" if str(interrupt) else "interrupted")
        return EXIT_TERMINATED if is_termination(interrupt) else EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            _say(f"error: {one_line(error)}")
        return EXIT_ERROR


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_help()
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        _print_version()
        return 0
    if name not in command_names():
        kind = "flag" if name.startswith("-") else "command"
        near = did_you_mean(name, command_names())
        raise UsageError(f"{kind} {name!r}: not one of {', '.join(command_names())}.{near}")
    load_command(name)(rest)
    return 0


def _print_help() -> None:
    from rich.table import Table

    from textgym.commands._console import output

    console = output()
    console.print("usage: textgym COMMAND ...", markup=False)
    console.print("\nText generation as a Markov decision process, in Gymnasium's interface.\n", markup=False)
    table = Table.grid(padding=(0, 2))
    for name in command_names():
        table.add_row(f"  {name}", summary(name))
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
        print(f"textgym {version('textgym')}")
    except PackageNotFoundError:
        print("textgym (not installed: running from its source)")


def _prepare_streams() -> None:
    """Texts of models may hold any character; where the terminal cannot show one, its escape is shown."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {one_line(message)}")


def _say(text: str) -> None:
    print(f"textgym: {text}", file=sys.stderr, flush=True)


def _exit_code(request: SystemExit) -> int:
    if request.code is None or isinstance(request.code, int):
        return request.code or 0
    _say(str(request.code))
    return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
