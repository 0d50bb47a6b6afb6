"""Build the site: `python -m sphinx -c docs -W --keep-going . build/site`.

The source folder is the repository, so that the links between its pages work here as they do on a forge. Pages are
plain Markdown: what only a site needs, which is navigation, downloads and the API, is added here.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import jupytext
from docutils import nodes
from latex2mathml.converter import convert
from myst_nb.core import render
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
os.environ["OMP_NUM_THREADS"] = "1"  # of the chapters, too
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, of a notebook without ipywidgets

from textgym_benchmarks.course.chapters import all_chapters, student_notebook  # noqa: E402

CHAPTERS = "benchmarks/textgym_benchmarks/course/chapters"
NOTEBOOK = (
    "*This page is a notebook, and what it shows is what its code printed.* "
    '<a href="{name}.ipynb" download>Download {name}.ipynb</a>, without answers, and open it in Jupyter, or upload '
    "it to Google Colab at `https://colab.research.google.com/#upload=true` and install TextGym there, with "
    "its extra `course`."
)

project = "TextGym"
extensions = ["myst_nb", "sphinx.ext.autodoc", "api"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "benchmarks/RESULTS.md", f"{CHAPTERS}/*.md"]
exclude_patterns = [".*", "build", "dist", "runs", "agents", "tests", "textgym", "examples", "docs/_*"]
exclude_patterns += ["CODE_OF_CONDUCT.md", "SECURITY.md"]  # for those who host the code

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 6
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 1200
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_type_aliases = {name: name for name in ("Floats", "Ints", "Bools", "JsonObject", "Observation")}
maximum_signature_line_length = 88
default_role = "literal"

html_theme = "furo"
html_title = "TextGym"
pygments_dark_style = "github-dark"
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # a browser reads no other page of a folder on the disk
html_static_path = ["_static"]
html_css_files = ["site.css"]

linkcheck_timeout = 20
linkcheck_anchors = False  # those of pages that scripts write cannot be seen


def navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Add what only a site needs: trees of contents from the lists of links, and the note on top of a chapter."""
    if page == root_doc:
        text = source[0].replace("- API: ", "- [API](api/index.rst): ")
        head, *parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
        source[0] = "".join(
            [head + toctree(["Overview </README.md>"])]
            + [part + toctree(links(part), part) if links(part) else part for part in parts]
        )
    elif page == "docs/tasks/README":
        source[0] += toctree(re.findall(r"^## \[.*\]\((.*)\)", source[0], re.MULTILINE))
    elif page == "docs/course/index":
        source[0] += toctree([f"/{CHAPTERS}/{chapter.path.name}" for chapter in all_chapters()])
    elif page.startswith(CHAPTERS):
        note = NOTEBOOK.format(name=Path(page).name)
        source[0] = re.sub(r"^# .*\n", lambda title: f"{title[0]}\n{note}\n", source[0], count=1, flags=re.MULTILINE)


def show_code(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to a line of code lead to a page that shows the file, where a forge would show it."""

    def lead(found: re.Match[str]) -> str:
        path = (ROOT / page).parent.joinpath(found[2]).resolve()
        shown = Path(app.outdir, "code", path.relative_to(ROOT)).with_suffix(".html")
        shown.parent.mkdir(parents=True, exist_ok=True)
        style = HtmlFormatter(full=True, lineanchors="L", linenos="inline", title=path.name)
        shown.write_text(highlight(path.read_text(encoding="utf-8"), PythonLexer(), style), encoding="utf-8")
        way = os.path.relpath(shown, Path(app.outdir, page).parent)
        return f'<a href="{way}#L-{found[3]}">{found[1]}</a>'

    source[0] = re.sub(r"\[([^\]]*)\]\(([^)#]*\.py)#L(\d+)\)", lead, source[0])


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


def mathml(formula: str, display: str = "inline") -> str:
    """Return a formula as MathML, with a thin space on the sides of log and exp, but for that of a bracket."""
    space, name = '<mspace width="0.17em" />', "<mi>(?:log|exp)</mi>"
    after = rf"{name}(?!<mo[^>]*>(?:&#x00028;|\()|</mrow>)"
    before = rf"(</(?!mo>)\w+>|&#x00029;</mo>)(?={name})"
    return re.sub(before, rf"\g<0>{space}", re.sub(after, rf"\g<0>{space}", convert(formula, display=display)))


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join what a kernel printed in pieces as they are; MyST-NB ends each with a line break."""
    found: list[NotebookNode] = []
    streams: dict[str, NotebookNode] = {}
    for output in outputs:
        name = output.get("name", "")
        if output["output_type"] == "stream" and name in streams:
            streams[name]["text"] += output["text"]
        else:
            found.append(output)
            if output["output_type"] == "stream":
                streams[name] = output
    return found


def write_formula(writer: object, node: nodes.Element) -> None:
    """Write a formula within a line as MathML."""
    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def write_equation(writer: object, node: nodes.Element) -> None:
    """Write a formula of its own line as MathML, which scrolls where it is too wide."""
    writer.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Join the functions of this file to Sphinx."""
    merge = render.coalesce_streams
    render.coalesce_streams = lambda outputs: merge(joined(outputs))
    app.add_html_math_renderer("mathml", (write_formula, None), (write_equation, None))
    app.connect("builder-inited", notebooks)
    app.connect("source-read", navigation)
    app.connect("source-read", show_code)
    app.connect("build-finished", beginning)
