"""The example at the head of each command's --help: cheap ones run, the others are read by the command's parser."""

from __future__ import annotations

import io
import re
import shlex

import pytest
import tyro
from cli_tools import run

from textgym.registry import COMMANDS

CHEAP = {"agents", "eval", "inspect", "list", "new", "play", "rewards", "solve"}


class Read(Exception):  # noqa: N818
    """The flags could be read."""


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_has_an_example_that_holds(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    shown = run(capsys, name, "--help")[1]
    examples = re.findall(r"^\s*Example: textgym (.*)$", shown, re.MULTILINE)
    assert len(examples) == 1, f"--help of {name} has {len(examples)} lines 'Example: textgym {name} ...'"
    words = shlex.split(examples[0])
    assert words[0] == name
    assert len(examples[0]) <= 80
    if name in CHEAP:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n\n\n"))
        code, out, err = run(capsys, *words)
        assert (code, err) == (0, "")
        assert out
        return
    parse = tyro.cli

    def read(*arguments, **options):
        parse(*arguments, **options)
        raise Read

    monkeypatch.setattr(tyro, "cli", read)
    assert "Read" in run(capsys, *words)[2]
