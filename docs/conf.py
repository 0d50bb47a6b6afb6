"""Build the site: `python -m sphinx -c docs -W --keep-going . build/site`.

The source folder is the repository, so that the links between its pages work here as they do on a forge. Pages are
plain Markdown: what only a site needs, which is navigation, downloads and the API, is added here.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import sys
from pathlib import Path

import jupytext
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
os.environ["OMP_NUM_THREADS"] = "1"  # of the chapters, too

import docstrings  # noqa: E402
from textgym_benchmarks.course.chapters import all_chapters, student_notebook  # noqa: E402

CHAPTERS = "benchmarks/textgym_benchmarks/course/chapters"
API = "docs/api"
NOTEBOOK = (
    "*This page is a notebook, and what it shows is what its code printed.* "
    '<a href="{name}.ipynb" download>Download {name}.ipynb</a>, without answers, and open it in Jupyter, or upload it to '
    "Google Colab at `https://colab.research.google.com/#upload=true` and begin there with "
    '`%pip install "textgym[course]"`.'
)

project = "TextGym"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "benchmarks/RESULTS.md", f"{CHAPTERS}/*.md"]
exclude_patterns = [".*", "build", "dist", "runs", "agents", "tests", "textgym", "examples", "docs/_*"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 6
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 1200
nb_ipywidgets_js: dict[str, dict[str, str]] = {}

autodoc_default_options = {"members": True, "member-order": "bysource"}
maximum_signature_line_length = 88
default_role = "literal"

html_theme = "furo"
html_title = "TextGym"
html_math_renderer = "mathml"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

linkcheck_timeout = 20
linkcheck_anchors = False  # those of pages that scripts write cannot be seen


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

    def plain(note: object) -> object:
        return Shown(getattr(note, "__forward_arg__", note)) if isinstance(note, str) or hasattr(note, "__forward_arg__") else note

    def told(each: inspect.Parameter) -> inspect.Parameter:
        default = each.default
        if default is not each.empty and "<" in repr(default):
            default = Shown("..." if "factory" in repr(default) else default)
        return each.replace(annotation=plain(each.annotation), default=default)

    told_all = [told(each) for name, each in found.parameters.items() if name not in ("self", "cls")]
    return str(found.replace(parameters=told_all, return_annotation=plain(found.return_annotation)))


def link(code: str, places: dict[str, str]) -> str:
    """Return the markup of what stands in backticks: a link where it is one public name."""
    return f":py:obj:`{code} <{places[code]}>`" if code in places else f"``{code}``"


def api_pages(app: Sphinx) -> None:
    """Write a page for each module that has public names, and the page that lists them."""
    folder = ROOT / API
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = docstrings.public_names()
    short = [name for each in names.values() for name in each]
    app.places = {name: f"{module}.{name}" for module in names for name in names[module] if short.count(name) == 1}
    for module in names:
        text = docstrings.to_rst(importlib.import_module(module).__doc__ or "", None, lambda code: link(code, app.places))
        entries = [line for name in names[module] for line in entry(app, module, name)]
        page = [module, "=" * len(module), "", f".. py:module:: {module}", "", *text, "", *entries]
        (folder / f"{module}.rst").write_text("\n".join(page), encoding="utf-8")
    listed = ["API reference", "=============", "", "What the packages export, and what these pages import.", ""]
    toctree = [".. toctree::", "   :maxdepth: 2", "", *(f"   {module}" for module in names)]
    (folder / "index.rst").write_text("\n".join([*listed, *toctree]), encoding="utf-8")


def entry(app: Sphinx, module: str, name: str) -> list[str]:
    """Return the directive that documents a public name."""
    thing = getattr(importlib.import_module(module), name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        kind = "autofunction" if inspect.isfunction(thing) else "autoexception" if issubclass(thing, BaseException) else "autoclass"
        return [f".. {kind}:: {module}.{name}", ""]
    value, text = docstrings.constant(module, name)
    told = docstrings.to_rst(text, thing, lambda code: link(code, app.places))
    return [f".. py:data:: {module}.{name}", f"   :value: {value}", "", *(f"   {line}" for line in told), ""]


def read_docstring(app: Sphinx, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Turn a docstring of the project into reStructuredText, in place."""
    thing = thing.fget if isinstance(thing, property) else thing
    lines[:] = docstrings.to_rst("\n".join(lines), thing, lambda code: link(code, app.places))


def read_signature(app: Sphinx, kind: str, name: str, thing: object, *_: object) -> tuple[str | None, None] | None:
    """Return the signature of a class or a function as it is written."""
    return (signature(thing), None) if callable(thing) else None


def navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Add what only a site needs: trees of contents from the lists of links, and the note on top of a chapter."""
    if page == root_doc:
        text = source[0].replace("- API: ", "- [API](api/index.rst): ")
        head, *parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
        source[0] = "".join([head + toctree(["/README.md"]), *(part + toctree(links(part), part) for part in parts)])
    elif page == "docs/tasks/README":
        source[0] += toctree(re.findall(r"^## \[.*\]\((.*)\)", source[0], re.MULTILINE))
    elif page == "docs/course/index":
        source[0] += toctree([f"/{CHAPTERS}/{chapter.path.name}" for chapter in all_chapters()])
    elif page.startswith(CHAPTERS):
        note = NOTEBOOK.format(name=Path(page).name)
        source[0] = re.sub(r"^# .*\n", lambda title: f"{title[0]}\n{note}\n", source[0], count=1, flags=re.MULTILINE)


def links(part: str) -> list[str]:
    """Return where the items of a list lead to."""
    return re.findall(r"^- \[.*?\]\((.*?)\)", part, re.MULTILINE)


def toctree(pages: list[str], part: str = "") -> str:
    """Return the directive of a tree of contents, hidden, with the first heading of a part as its caption."""
    caption = f":caption: {part.splitlines()[0][3:]}\n" if part else ""
    return "\n".join(["\n\n```{toctree}", ":hidden:", caption, *pages, "```\n\n"])


def notebooks(app: Sphinx) -> None:
    """Write each chapter as a notebook, beside its page."""
    folder = Path(app.outdir) / CHAPTERS
    folder.mkdir(parents=True, exist_ok=True)
    for chapter in all_chapters():
        jupytext.write(student_notebook(chapter), folder / f"{chapter.path.stem}.ipynb")


def beginning(app: Sphinx, error: Exception | None) -> None:
    """Let the folder of the site begin at its first page."""
    if error is None and app.builder.format == "html":
        head = f'<!doctype html><meta charset="utf-8"><title>{project}</title>'
        away = f'<meta http-equiv="refresh" content="0; url={root_doc}.html"><a href="{root_doc}.html">{project}</a>'
        (Path(app.outdir) / "index.html").write_text(head + away, encoding="utf-8")


def write_math(writer: object, node: nodes.Element, display: str) -> None:
    """Write a formula as MathML."""
    writer.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Join the functions of this file to Sphinx."""
    inline, block = ((lambda writer, node, kind=kind: write_math(writer, node, kind), None) for kind in ("inline", "block"))
    app.add_html_math_renderer("mathml", inline, block)
    app.connect("builder-inited", api_pages)
    app.connect("builder-inited", notebooks)
    app.connect("source-read", navigation)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", read_signature)
    app.connect("build-finished", beginning)
