"""Rich consoles and texts: what models and files wrote is shown as it is, never read as markup or escapes."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from textgym.render import escaped


class _Output(Console):
    """A console that leaves a reader who has gone to the command line."""

    def on_broken_pipe(self) -> None:
        """See `Console.on_broken_pipe`, which exits with 1."""
        raise


def output() -> Console:
    """A console on the standard output, as it is at this moment."""
    return _Output(file=sys.stdout, highlight=False, soft_wrap=False)


def untrusted(text: str, style: str = "") -> Text:
    """A text from a model, a file or a user: control characters are escaped, markup is not interpreted."""
    return Text(escaped(text), style=style)


def note(text: str) -> None:
    """One line to the standard error that is no error."""
    print(f"textgym: {escaped(text)}", file=sys.stderr, flush=True)
