"""An extension of Sphinx: a page for each module that has public names, from signatures and docstrings as they are."""

from __future__ import annotations

import importlib
import inspect
import shutil
from functools import cache

import docstrings
from sphinx.application import Sphinx

FOLDER = docstrings.ROOT / "docs" / "api"


class Shown:
    """Code of an annotation or a default, which a signature shows as it is."""

    def __init__(self, code: object) -> None:
        self.code = str(code)

    def __repr__(self) -> str:
        return self.code


def signature(thing: object) -> str | None:
    """Return how something is called, with annotations as they are written; None where nothing says so."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return None
    parameters = [each for name, each in found.parameters.items() if name not in ("self", "cls")]
    back = found.empty if inspect.isclass(thing) else written(found.return_annotation)
    return str(found.replace(parameters=[told(each) for each in parameters], return_annotation=back))


def written(note: object) -> object:
    """Return an annotation so that it shows as it was written."""
    code = getattr(note, "__forward_arg__", note)
    return Shown(code) if isinstance(code, str) else note


def told(each: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter with its annotation as it was written, and a default that can be read."""
    default = each.default
    if "factory" in repr(default):
        default = Shown("...")
    elif repr(default).startswith("<") and default is not each.empty:
        default = Shown(getattr(default, "__name__", default))
    return each.replace(annotation=written(each.annotation), default=default)


@cache
def places() -> dict[str, str]:
    """Return where the names lead to that only one module has."""
    names = docstrings.public_names()
    every = [name for each in names.values() for name in each]
    return {name: f"{module}.{name}" for module in names for name in names[module] if every.count(name) == 1}


def link(code: str) -> str:
    """Return the markup of what stands in backticks: a link where it is a public name."""
    return f":py:obj:`{code} <{places()[code]}>`" if code in places() else f"``{code}``"


def write_pages(app: Sphinx) -> None:
    """Write a page for each module, and the page that lists them."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    names = docstrings.public_names()
    for module in names:
        text = docstrings.to_rst(said(module), None, link)
        entries = [line for name in names[module] for line in entry(module, name)]
        page = [module, "=" * len(module), "", f".. py:module:: {module}", "", *text, "", *entries]
        (FOLDER / f"{module}.rst").write_text("\n".join(page), encoding="utf-8")
    listed = [
        "API",
        "===",
        "",
        "What the packages export, agents and their settings, and what the pages of this site import.",
        "",
    ]
    listed += [f"- :doc:`{module}`: {docstrings.to_rst(said(module), None, link)[0]}" for module in names]
    listed += ["", ".. toctree::", "   :hidden:", "", *(f"   {module}" for module in names)]
    (FOLDER / "index.rst").write_text("\n".join(listed), encoding="utf-8")


def said(module: str) -> str:
    """Return what a module says of itself."""
    return importlib.import_module(module).__doc__ or ""


def entry(module: str, name: str) -> list[str]:
    """Return the directive that documents a public name."""
    thing = getattr(importlib.import_module(module), name)
    if inspect.isfunction(thing):
        return [f".. autofunction:: {module}.{name}", ""]
    if inspect.isclass(thing):
        kind = "autoexception" if issubclass(thing, BaseException) else "autoclass"
        above = ["   :show-inheritance:"] if any(each.__name__ in places() for each in thing.__bases__) else []
        return [f".. {kind}:: {module}.{name}", *above, ""]
    value, text = docstrings.constant(module, name)
    lines = docstrings.to_rst(text, thing, link)
    return [f".. py:data:: {name}", f"   :value: {value}", "", *(f"   {line}" for line in lines), ""]


def read_docstring(app: Sphinx, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Turn a docstring into reStructuredText, in place."""
    thing = thing.fget if isinstance(thing, property) else thing
    lines[:] = docstrings.to_rst("\n".join(lines), thing, link)


def read_signature(
    app: Sphinx, kind: str, name: str, thing: object, *_: object
) -> tuple[str | None, str | None] | None:
    """Return the signature of a class or a function as it is written."""
    if not callable(thing):
        return None
    code, _, back = (signature(thing) or "").partition(" -> ")
    return (code, back or None) if code else None


def read_bases(app: Sphinx, name: str, thing: object, options: object, bases: list[type]) -> None:
    """Leave out base classes that have no page."""
    bases[:] = [each for each in bases if each.__name__ in places()]


def setup(app: Sphinx) -> dict[str, bool]:
    """Join the functions of this file to Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", read_signature)
    app.connect("autodoc-process-bases", read_bases)
    return {"parallel_read_safe": True}
