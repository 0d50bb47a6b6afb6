"""Flags of the command line, read by tyro and checked."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from textgym.checks import JsonObject, did_you_mean, docstring
from textgym.commands.console import UsageError
from textgym.files import json_value
from textgym.registry import import_user_module
from textgym.rows import check_hub

T = TypeVar("T")
S = TypeVar("S")
_TEXTS = ("--prompt", "--completion")  # flags whose values name no file

EnvId = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
"""The id of an environment, as first word after the command."""
EnvOptions = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")]
"""Options of the environment; `env_options` reads them."""


def parse(flags: type[T], arguments: list[str], command: str, first: str = "id", default: T | None = None) -> T:
    """Return an instance of a dataclass from the arguments of a command. `--help` prints its flags and exits.

    Args:
        first: the key of a file of `--config` that stands for the first word after the command.
        default: what holds the values of flags that are not given; None: those of the dataclass.
    Raises: UsageError with what is wrong; whatever the dataclass itself raises.
    """
    hints = _hints(flags)
    words = checked_words(with_config(arguments, first, hints))
    for name in (each for each, hint in hints.items() if _takes_several(hint)):
        words = merged(words, f"--{name}")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                flags,
                args=words,
                prog=f"textgym {command}",
                description=docstring(flags),
                config=(tyro.conf.OmitArgPrefixes,),
                default=tyro.MISSING_NONPROP if default is None else default,
            )
    except SystemExit as request:
        if not request.code:
            raise
        raise UsageError(_message(errors.getvalue(), command)) from request


def parse_pair(
    first: type[S],
    second: type[T],
    arguments: list[str],
    command: str,
    text: str,
    group: str = "",
    default: tuple[S, T] | None = None,
) -> tuple[S, T]:
    """Return instances of two dataclasses whose flags stand side by side. See `parse`.

    Args:
        text: what `--help` begins with. group: what its part with the flags of `second`, the last, is headed with.
        default: what hold the values of flags that are not given; None: those of the dataclasses.
    """
    parts = [
        (part, Annotated[kind, tyro.conf.arg(name=name, help=docstring(kind).partition("Raises:")[0].strip())])
        for part, kind, name in (("a", first, ""), ("b", second, group))
    ]
    both = make_dataclass(first.__name__, parts, frozen=True)
    both.__doc__ = text
    found: Any = parse(both, arguments, command, default=None if default is None else both(*default))
    return found.a, found.b


def _hints(flags: type) -> dict[str, object]:
    """Return the type of every flag of a dataclass, and of those in it, by the flag's name without its dashes.

    A flag that is given once for each of its words has the type of a list.
    """
    found: dict[str, object] = {}
    for name, hint in get_type_hints(flags, include_extras=True).items():
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        own = {name.replace("_", "-"): list[str] if tyro.conf.UseAppendAction in marks else kind}
        found |= _hints(kind) if isinstance(kind, type) and is_dataclass(kind) else own
    return found


def _takes_several(hint: object) -> bool:
    return get_origin(hint) is tuple or any(map(_takes_several, get_args(hint)))


def _has_bare_word(words: Sequence[str], hints: Mapping[str, object]) -> bool:
    """Return whether a word is neither a flag nor the value of one."""
    values = 0.0  # that the flag before may still take
    for word in words:
        if word.startswith("--"):
            hint = hints.get(_flag_name(word), tuple[str, ...])  # a flag that is none is named by tyro
            values = 0.0 if "=" in word or hint is bool else math.inf if _takes_several(hint) else 1.0
        elif not values:
            return True
        else:
            values -= 1
    return False


def with_config(arguments: Sequence[str], first: str = "id", hints: Mapping[str, object] | None = None) -> list[str]:
    """Return command-line words in which a TOML file's flags stand in the place of `--config FILE`.

    A key of the file is a flag without its dashes, `first` the first word after the command, and the table `env` the
    environment's options. A flag, or an option of the environment, that is also on the command line wins.

    Args: hints: the type of every flag; without them, only a first word wins over the file's.
    Raises: UsageError for a file that cannot be read, or a value that is no flag's.
    """
    words = list(arguments)
    places = [i for i, word in enumerate(words) if word == "--config" or word.startswith("--config=")]
    if not places:
        return words
    place = places[0]
    path = words[place].partition("=")[2] if "=" in words[place] else "".join(words[place + 1 : place + 2])
    if len(places) > 1 or not path or path.startswith("--"):
        raise UsageError("--config: allowed is one file, as in --config run.toml")
    del words[place : place + (1 if "=" in words[place] else 2)]
    try:
        table = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--config {path}: no settings can be read there ({said})") from error
    named = {_flag_name(word) for word in words if word.startswith("--")} - {"env"}
    leading = [str(table.pop(first))] if first in table else []
    options = table.pop("env", {})
    if not isinstance(options, dict):
        raise UsageError(f"--config {path}: env must be a table of the environment's options")
    found = [
        word
        for name, value in table.items()
        if _flag_name(name) not in named
        for word in _flag(path, name, value, (hints or {}).get(name.replace("_", "-"), bool))
    ]
    # Text that looks like JSON stays a text.
    pairs = [f"{name}={_option(path, name, value)}" for name, value in options.items()]
    if words and not words[0].startswith("--"):
        leading = [words.pop(0)]
    elif hints and _has_bare_word(words, hints):
        leading = []
    return [*leading, *found, *(["--env", *pairs] if pairs else []), *words]


def _option(path: str, name: str, value: object) -> str:
    try:
        return json.dumps(_at_home(value))
    except TypeError as error:
        raise UsageError(
            f"--config {path}: env.{name} holds what is no JSON, such as a date ({value!s:.80})"
        ) from error


def _at_home(value: object) -> object:
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def _flag_name(word: str) -> str:
    """Return the name of a flag, the same for --an-option, --no-an-option=3 and an_option."""
    return word.partition("=")[0].removeprefix("--").replace("_", "-").removeprefix("no-")


def typed_flags(words: Sequence[str]) -> set[str]:
    """Return the names of the flags among command-line words, as fields have them."""
    return {_flag_name(word).replace("-", "_") for word in words if word.startswith("--")}


def _flag(path: str, name: str, value: object, hint: object) -> list[str]:
    """Return the words for a key of a TOML file, of a flag of some type."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool) and hint is bool:
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return [f"{flag}={item}" for item in value] if get_origin(hint) is list else [flag, *map(str, value)]
    if isinstance(value, str | int | float):
        return [f"{flag}={value}"]
    raise UsageError(
        f"--config {path}: {name} is a {type(value).__name__}; allowed are flags' values, and the table env"
    )


def checked_words(arguments: Sequence[str]) -> list[str]:
    """Return command-line words with the home folder in place of a `~` that a flag's value or a path starts with.

    Raises: UsageError for a word that is not UTF-8, as libraries that write files ask for, or an unknown home folder.
    """
    return [_checked(before, word) for before, word in zip(["", *arguments], arguments, strict=False)]


def _checked(before: str, word: str) -> str:
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{os.fsencode(word)!r}: allowed are words and names in UTF-8") from error
    flag, equals, value = word.partition("=") if word.startswith("--") else (before, "", word)
    start = "~" if flag.startswith("--") else "~/"  # of a word that no flag stands before, a path for sure
    if flag in _TEXTS or not value.startswith(start):
        return word
    try:
        home = str(Path(value).expanduser())
    except RuntimeError as error:
        raise UsageError(f"{flag} {value!r}: there is no such home folder (./~ is a name)") from error
    return f"{flag}={home}" if equals else home


def merged(arguments: Sequence[str], flag: str) -> list[str]:
    """Return command-line words in which a flag that takes several words and is given several times stands once.

    tyro would take the last one and say nothing about those before it.
    """
    if sum(word == flag or word.startswith(f"{flag}=") for word in arguments) < 2:
        return list(arguments)
    before: list[str] = []
    taken: list[str] = []
    follows = False  # whether the next word may be a value of the flag
    for word in arguments:
        if word == flag or word.startswith(f"{flag}="):
            follows = word == flag
            taken += [] if follows else [word.removeprefix(f"{flag}=")]
        elif follows and not word.startswith("--"):
            taken.append(word)
        else:
            follows = False
            before.append(word)
    return [*before, flag, *taken] if taken else list(arguments)


def _message(box: str, command: str) -> str:
    """Return the sentence in tyro's error box, and the flag that it thinks was meant.

    A box is a title, the sentence and more, between rules; its lines are drawn with blanks where there is no UTF-8.
    """
    lines = [re.sub(r"^[│|]|[│|]$", "", line.strip()).strip() for line in box.splitlines()]
    parts: list[list[str]] = [[]]
    for line in filter(None, lines[1:]):
        if set(line) <= set("─-╭╮╰╯+"):
            parts.append([])
        else:
            parts[-1].append(line)
    sentence = next((" ".join(" ".join(part).split()) for part in parts if part), "")
    body = [line for part in parts for line in part]
    near = re.search(r"Perhaps you meant:?\s*(--[\w-]+)", " ".join(body))
    meant = f". Did you mean {near.group(1)!r}?" if near else ""
    return f"{sentence}{meant} (textgym {command} --help shows the flags)"


def env_options(words: Sequence[str], flag: str = "--env", taken: Sequence[str] = ("num_envs",)) -> JsonObject:
    """Return `NAME=VALUE` words as keyword arguments; a value is read as JSON where it is JSON, else it is a text.

    The home folder takes the place of a `~` that a path starts with, as in prompts=~/prompts.txt: shells leave it.

    Args: taken: names that the command says itself.
    Raises: UsageError for these, a word without "=" or without a name; FileNotFoundError for an environment's data or
        reference that is nowhere.
    """
    options: JsonObject = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name.isidentifier():
            raise UsageError(f"{flag} {word!r}: allowed is NAME=VALUE, as in max_new_tokens=20")
        if name in taken:
            raise UsageError(f"{flag} {word!r}: {name} is no option here; allowed are those of the environment")
        try:
            options[name] = json_value(value)
        except ValueError:
            options[name] = _at_home(value)
    if flag == "--env":
        for name in ("prompts", "eval_prompts", "tune_prompts", "reference"):
            check_hub(name, options.get(name), "model" if name == "reference" else "dataset")
    return options


def find_id(name: str) -> str:
    """Return the full id of an environment: `textgym/` may be left out, `module:ID` imports a module first.

    Raises: UsageError for an id that is not registered, with the nearest one.
    """
    import gymnasium as gym

    import textgym  # noqa: F401  (registers the ids)

    module, _, identifier = name.rpartition(":")
    if module:
        import_user_module(module)
    for candidate in (identifier, f"textgym/{identifier}"):
        if candidate in gym.registry:
            return candidate
    ours = [known for known in gym.registry if known.startswith("textgym/")]
    space, slash, _ = identifier.partition("/")
    if slash and space != "textgym":
        # In a namespace of somebody's own, what is like it in name alone is another's.
        near = did_you_mean(identifier, [known for known in gym.registry if known.startswith(f"{space}/")])
        near = near or ("" if module else f" The module that registers it goes before it, as in my_file:{identifier}")
    else:
        near = did_you_mean(identifier, ours) or did_you_mean(f"textgym/{identifier}", [*ours, *gym.registry])
    raise UsageError(f"ID {name!r}: there is no such environment (textgym list shows all).{near}")
