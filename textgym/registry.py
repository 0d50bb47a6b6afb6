"""Find tasks, rewards, responders, agents, suites and commands by name, and import only what is asked for.

A name leads to "module:attribute", or to an object that was added at run time. Names come from three places:

- `builtin.toml` in each package of this project. It is a file of data, so that reading it imports nothing, and no list
  of entry points, so that a source tree that is not installed has its names, too.
- The entry points of installed packages, in the groups `textgym.tasks`, `textgym.rewards`, `textgym.responders`,
  `textgym.agents`, `textgym.suites` and `textgym.commands`; and those in the `pyproject.toml` of the current folder,
  installed or not.
- `Registry.add`.
"""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

from textgym.checks import TextGymWarning, did_you_mean, docstring, not_one_of, shown
from textgym.sources import PACKAGES

Factory = Callable[..., Any]
"""A function or a class."""
_TARGET = re.compile(r"[\w.]+:\w+")
_VERSIONED = re.compile(r"(.+)-v(\d+)")


@dataclass(frozen=True)
class Entry:
    """A name and what it leads to.

    Args:
        name: a text without spaces, ":" and "/".
        target: a function or class, or "module:attribute", which is imported when it is first needed.
        summary: one line for people; "" stands for the first line of the target's docstring.
        source: name and version of the distribution whose entry point it is; "" for every other entry.
    Raises: ValueError for a name or a target of another form.
    """

    name: str
    target: Factory | str
    summary: str = ""
    source: str = field(default="", compare=False)
    _form: ClassVar[tuple[str, str]] = (r"[^\s:/]+", "is a text without spaces, ':' and '/'")

    def __post_init__(self) -> None:
        pattern, allowed = self._form
        if not isinstance(self.name, str) or not re.fullmatch(pattern, self.name):
            raise ValueError(f"name={shown(self.name)}: allowed {allowed}")
        if not callable(self.target) and not (isinstance(self.target, str) and _TARGET.fullmatch(self.target)):
            raise ValueError(
                f"{self.name}={shown(self.target)}: allowed is a function, a class or the text 'module:attribute'"
            )

    @classmethod
    def read(cls, key: str, target: str, summary: str = "", source: str = "") -> Self:
        """Make the entry of a line in `builtin.toml`, or of an entry point."""
        return cls(key, target, summary, source)

    @property
    def key(self) -> str:
        """What a registry keeps the entry under."""
        return self.name

    @property
    def origin(self) -> str:
        """The distribution or package that the entry comes from, with its target."""
        where = self.target if isinstance(self.target, str) else f"{self.target.__module__}:"
        package = where.partition(":")[0].partition(".")[0]
        with suppress(PackageNotFoundError):  # a source tree that is not installed
            package = f"textgym {version('textgym')}" if package in PACKAGES else package
        return f"{self.source or package} ({self.target})"


@dataclass(frozen=True)
class TaskEntry(Entry):
    """The entry of a task, with what its registration with Gymnasium needs.

    Args:
        name: as in `textgym/NAME-vN`, or NAMESPACE/NAME for the id `NAMESPACE/NAME-vN`.
        target, summary, source: see `Entry`; the target goes from the task's options to a `Task`.
        version: N; it rises when reward, observation or termination changes.
        family: "alignment", "verifiable", "style", "diagnostics", "turns" or "text".
        reward, vocabulary, horizon: of the task as it is by default, its last two in tokens, so that a list need not
            build it; 0 and "" where only building tells.
        needs: modules of an extra that it cannot be built without.
    Raises: ValueError for a name that is not made of letters, digits and underscores, or the namespace "textgym".
    """

    version: int = 0
    family: str = "text"
    reward: str = ""
    vocabulary: int = 0
    horizon: int = 0
    needs: Sequence[str] = ()
    _form: ClassVar[tuple[str, str]] = (
        r"(?!textgym/)([\w-]+/)?[^\W\d]\w*",
        "are letters, digits and underscores, not starting with a digit; before them a namespace, as in mine/Ask",
    )

    @classmethod
    def read(
        cls,
        key: str,
        target: str,
        summary: str = "",
        source: str = "",
        family: str = "text",
        reward: str = "",
        vocabulary: int = 0,
        horizon: int = 0,
        needs: Sequence[str] = (),
    ) -> TaskEntry:
        """Make the entry of a key NAME-vN; without -vN the version is 0."""
        found = _VERSIONED.fullmatch(key)
        name, version = found.groups() if found else (key, "0")
        return cls(name, target, summary, source, int(version), family, reward, vocabulary, horizon, tuple(needs))

    @property
    def key(self) -> str:
        """Name and version: several versions of a task may stand side by side."""
        return f"{self.name}-v{self.version}"

    @property
    def id(self) -> str:
        """The Gymnasium id."""
        return self.key if "/" in self.key else f"textgym/{self.key}"


E = TypeVar("E", bound=Entry)


class Registry(Generic[E]):
    """The names of one kind. Iterating gives them all, the built-in ones first; a task's are those with its version.

    A task's name without a version means the newest. A plug-in is imported when one of its names is loaded, so that a
    broken one does not stop the others. Loading a name that two distributions claim is an error, too.

    Args:
        kind: "task", "reward", "responder", "agent", "suite" or "command".
        entry: the class of the entries.
    """

    def __init__(self, kind: str, entry: type[E]) -> None:
        self.kind = kind
        self._entry = entry
        self._clashes: dict[str, str] = {}
        self._warned: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return self._key(name) is not None

    def entry(self, name: str, argument: str = "") -> E:
        """Return the entry of a name, which a message calls `argument`. Raises: ValueError for an unknown name."""
        key = self._key(name)
        if key is None:
            names = dict.fromkeys(entry.name for entry in self._entries.values())
            raise ValueError(not_one_of(argument or self.kind, name, names))
        return self._entries[key]

    def _key(self, name: object) -> str | None:
        """Return the key of a name, of its newest version where it has several; None for an unknown one."""
        if isinstance(name, str) and name in self._entries:
            return name
        keys = [key for key, entry in self._entries.items() if entry.name == name]
        return max(keys, key=lambda key: (len(key), key), default=None)  # v10 is newer than v9

    def add(self, entry: E) -> E:
        """Add an entry; adding it again changes nothing. Raises: ValueError if another has its key."""
        known = self._entries.setdefault(entry.key, entry)
        if known != entry:
            raise ValueError(self._taken(known, entry))
        return entry

    def load(self, name: str, argument: str = "") -> Factory:
        """Return what a name leads to.

        Raises: ValueError for an unknown name, or one that is claimed twice; ImportError for one of a plug-in that
            cannot be loaded; whatever importing a built-in one raises.
        """
        entry = self.entry(name, argument)
        if clash := self.clash(entry.key):
            raise ValueError(clash)
        if not isinstance(entry.target, str):
            return entry.target
        try:
            return load_target(entry.target, self.kind)
        except Exception as error:
            if not entry.source:
                raise
            raise ImportError(
                f"{self.kind} {entry.key!r} of {entry.origin} cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    def clash(self, name: str) -> str:
        """Return who else claims a name, and what to do; "" where nobody does."""
        clash = self._clashes.get(self.entry(name).key)
        return f"{clash}; uninstall one of them" if clash else ""

    def summary(self, name: str) -> str:
        """Return one line about a name; for one that cannot be loaded, warn once and say so."""
        entry = self.entry(name)
        if entry.summary:
            return entry.summary
        try:
            return docstring(self.load(name)).partition("\n")[0]
        except (ImportError, ValueError) as error:
            self._warn(name, str(error))
            return "(cannot be loaded)"

    @cached_property
    def _entries(self) -> dict[str, E]:
        entries: dict[str, E] = {}
        group = f"{self.kind}s"
        for table in _tables():
            for key, line in table.get(group, {}).items():
                entry = self._entry.read(key, **({"target": line} if isinstance(line, str) else line))
                entries[entry.key] = entry
        points = [(point.name, point.value, _distribution(point)) for point in entry_points(group=f"textgym.{group}")]
        for name, target, source in (*points, *_points_here(f"textgym.{group}")):
            try:
                entry = self._entry.read(name, target, source=source)
            except ValueError as error:
                self._warn(name, f"entry point of {source}: {error}")
                continue
            known = entries.setdefault(entry.key, entry)
            if known.target != entry.target:
                self._clashes[entry.key] = self._taken(known, entry)
        return entries

    def _taken(self, known: E, entry: E) -> str:
        return f"{self.kind} {entry.key!r} is taken already by {known.origin}; {entry.origin} claims it, too"

    def _warn(self, name: str, problem: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(problem, TextGymWarning, stacklevel=3)


def load_target(target: str, argument: str) -> Factory:
    """Import the function or class "module:attribute".

    Args:
        target: where it is.
        argument: its name, for messages.
    Raises: ValueError for a text of another form, a module without this attribute, or an attribute that is no function
        or class; see also `import_user_module`.
    """
    if not _TARGET.fullmatch(target):
        raise ValueError(f"{argument} {shown(target)}: allowed is module:attribute")
    path, _, attribute = target.partition(":")
    module = import_user_module(path)
    if not hasattr(module, attribute):
        near = did_you_mean(attribute, dir(module))
        raise ValueError(f"{argument} {target!r}: module {path!r} has no {attribute!r}.{near}")
    found: object = getattr(module, attribute)
    if not callable(found):
        raise ValueError(f"{argument} {target!r}: it is no class or function")
    return found


def import_user_module(name: str) -> ModuleType:
    """Import a module that is installed, or else lies in the current folder.

    Raises: ModuleNotFoundError if there is none; whatever importing it raises.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        here = str(Path.cwd())
        if not _is_part(error.name, name) or here in sys.path:
            raise _not_found(error, name) from error
    sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise _not_found(error, name) from error


def _not_found(error: ModuleNotFoundError, name: str) -> ModuleNotFoundError:
    """Return the error to raise for a module: another one where it, or its package, is what was not found."""
    if not _is_part(error.name, name):
        return error
    advice = f"run the command where {name.partition('.')[0]}.py is, or pip install what holds it"
    return ModuleNotFoundError(f"module {name!r}: neither in the current folder nor installed; {advice}")


def _is_part(missing: str | None, name: str) -> bool:
    return missing is not None and f"{name}.".startswith(f"{missing}.")


def _points_here(group: str) -> list[tuple[str, str, str]]:
    """Return name, target and "./pyproject.toml" of the entry points in the `pyproject.toml` of the current folder."""
    path = Path("pyproject.toml")
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
        points = project.get("entry-points", {}).get(group, {})
        return [(name, target, f"./{path}") for name, target in points.items()]
    except (OSError, ValueError, AttributeError):  # no such file, or none that is a project's
        return []


@cache
def _tables() -> list[dict[str, dict[str, Any]]]:
    """Read `builtin.toml` of every package of the project that can be imported."""
    specs = [spec for package in PACKAGES if (spec := find_spec(package)) and spec.origin]
    files = [Path(str(spec.origin)).with_name("builtin.toml") for spec in specs]
    return [tomllib.loads(file.read_text(encoding="utf-8")) for file in files]


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a distribution without a name"


TASKS: Final = Registry("task", TaskEntry)
REWARDS: Final = Registry("reward", Entry)
RESPONDERS: Final = Registry("responder", Entry)
AGENTS: Final = Registry("agent", Entry)
SUITES: Final = Registry("suite", Entry)
COMMANDS: Final = Registry("command", Entry)
