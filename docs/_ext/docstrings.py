"""Read the project's docstrings: prose in Markdown, then sections of which one line may hold several arguments."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path

from textgym_agents import agent_names
from textgym_agents.registry import agent_class, config_class

from textgym.registry import AGENTS

ROOT = Path(__file__).parents[2]
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Warns|Source):(?: |$)")
_INNER = re.compile(r"(?<=[.;]) (?=(?:Returns|Yields|Raises|Warns|Source): )")
_ITEM = re.compile(r"^(\*{0,2}[A-Za-z_][\w.]*(?:, \*{0,2}[A-Za-z_]\w*)*): *")
_NEXT = re.compile(r"(?<=[.;]) (?=(?:[a-z_]\w*, )*[a-z_]\w*: )")
_IMPORT = re.compile(r"^from (textgym[\w.]*) import ([\w, ]+)$", re.MULTILINE)


def exported_names() -> dict[str, list[str]]:
    """Return the names that each package exports, as they are recorded."""
    recorded = json.loads((ROOT / "tests/golden/data/names.json").read_text(encoding="utf-8"))
    return {module: names for module, names in recorded["exports"].items() if names}


def public_names() -> dict[str, list[str]]:
    """Return the names of each module that packages export or pages import, and of the agents and their settings."""
    found = exported_names()
    exported = {id(getattr(importlib.import_module(module), name)) for module in found for name in found[module]}
    others = [(kind.__module__, kind.__name__) for name in agent_names() for kind in kinds(name)]
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for module, names in _IMPORT.findall(page.read_text(encoding="utf-8")):
            others += [(module, name) for name in names.replace(" ", "").split(",")]
    for module, name in others:
        if id(getattr(importlib.import_module(module), name)) not in exported:
            found.setdefault(module, []).append(name)
    return {module: sorted({*names}) for module, names in sorted(found.items())}


def kinds(agent: str) -> list[type]:
    """Return the class of an agent that the package itself registers, that of its settings, and what they stand on."""
    if not str(AGENTS.entry(agent).target).startswith("textgym_agents."):
        return []
    settings = config_class(agent_class(agent))
    above = [] if settings is None else [each for each in settings.__mro__ if is_dataclass(each)]
    return [agent_class(agent), *(each for each in above if each.__module__.startswith("textgym_agents."))]


def constant(module: str, name: str) -> tuple[str, str]:
    """Return the code of a constant and the text below it, from where its package defines it."""
    file = Path(str(importlib.import_module(module).__file__))
    for path in sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node, below in zip(body, [*body[1:], ast.Pass()], strict=True):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(each, ast.Name) and each.id == name for each in targets):
                text = (
                    below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
                )
                return ast.unparse(node.value), inspect.cleandoc(str(text))
    raise ValueError(f"{module}:{name}: its package defines no such constant")


def parameters(thing: object) -> list[str]:
    """Return the names of what a function or a class is called with."""
    try:
        return [name for name in inspect.signature(thing).parameters if name not in ("self", "cls")]
    except (TypeError, ValueError):
        return []


def attributes(thing: object) -> set[str]:
    """Return the names that a class gives to its instances."""
    ours = [each for each in getattr(thing, "__mro__", ()) if each.__module__.startswith("textgym")]
    code = [re.sub(r'"""(?s:.*?)"""', "", inspect.getsource(each)) for each in ours]
    return {name for each in code for name in re.findall(r"\b[a-z]\w*\b", each)}


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a docstring: ("", prose) or (name of a section, its dedented body)."""
    name, lines = "", list[str]()
    for line in _INNER.sub("\n", inspect.cleandoc(text)).splitlines():
        begins = _SECTION.match(line)
        if begins or (name and line and not line.startswith(" ")):
            yield name, _dedented(lines)
            name, lines = (begins[1], [line[begins.end() :]]) if begins else ("", [line])
        else:
            lines.append(line)
    yield name, _dedented(lines)


def items(body: str, known: set[str]) -> list[tuple[str, str]]:
    """Return (names, text) of what a section lists; within a line only names that are known begin an item."""
    found: list[tuple[str, list[str]]] = []
    for line in body.splitlines():
        for place, part in enumerate(_NEXT.split(line) if not line.startswith(" ") else [line]):
            begins = _ITEM.match(part)
            if begins and (place == 0 or {*begins[1].split(", ")} <= known):
                found.append((begins[1], [part[begins.end() :]]))
            elif not found:
                found.append(("", [part]))
            elif place:
                found[-1][1][-1] += f" {part}"
            else:
                found[-1][1].append(part)
    return [(names, _dedented(lines)) for names, lines in found]


def to_rst(text: str, thing: object, link: Callable[[str], str]) -> list[str]:
    """Return a docstring as reStructuredText.

    Args:
        text: the docstring. thing: what it is of.
        link: from what stands in backticks to the markup for it.
    """
    known, out = {*parameters(thing)} | attributes(thing), list[str]()
    for name, body in sections(text):
        lines = body.splitlines()
        if not name:
            out += [*_prose(body, link), ""]
            continue
        out.append(f":{'Parameters' if name == 'Args' else name}:")
        listed = name in ("Args", "Attributes") or (
            name == "Raises" and all(line.startswith(" ") or _ITEM.match(line) for line in lines)
        )
        for names, said in items(body, known) if listed else [("", body)]:
            bold = ", ".join(f"**{each}**" for each in names.replace("*", r"\*").split(", "))
            head, *rest = _prose(said, link) or [""]
            out.append(f"    * {bold} -- {head}" if names else f"    {head}")
            out += [f"    {'  ' if names else ''}{line}" for line in rest]
        out.append("")
    return out


def _dedented(lines: list[str]) -> str:
    return "\n".join([*lines[:1], textwrap.dedent("\n".join(lines[1:]))]).strip()


def _prose(text: str, link: Callable[[str], str]) -> list[str]:
    """Return prose, with what is indented by four as code."""
    out: list[str] = []
    for block in re.split(r"\n{2,}", text):
        if block.startswith("    "):
            out += [".. code-block:: python", "", *block.splitlines(), ""]
            continue
        for line in _inline(block, link).splitlines():
            if line.startswith("### "):
                out += [f".. rubric:: {line[4:]}", ""]
            elif line.startswith("- ") and out and out[-1] and not out[-1].startswith(("- ", "  ")):
                out += ["", line]
            else:
                out.append(line)
        out.append("")
    return out[:-1]


def _inline(text: str, link: Callable[[str], str]) -> str:
    """Turn Markdown's code into reStructuredText's, and escape what only the latter reads as markup."""
    parts = text.split("`")
    for place, part in enumerate(parts):
        if place % 2 and place < len(parts) - 1:
            parts[place] = f"\\ {link(' '.join(part.split()))}\\ "
        else:
            parts[place] = re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part)
    text = re.sub(r"(^|[\s(])\\ (?=[`:])", r"\1", "".join(parts), flags=re.MULTILINE)
    return re.sub(r"(?<=`)\\ (?=[\s.,;:)]|$)", "", text)
