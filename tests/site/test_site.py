"""The built site: every public name, every chapter with output and download, no dead link and no other host.

TEXTGYM_SITE names its folder, as `.ci/site` builds it; without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
SITE = Path(os.environ.get("TEXTGYM_SITE", "no site"))
CHAPTERS = "benchmarks/textgym_benchmarks/course/chapters"
LOADS = {"src", "srcset", "data", "poster", "action", "background", "xlink:href"}  # what a browser asks for by itself
needs_site = pytest.mark.skipif(not SITE.is_dir(), reason="TEXTGYM_SITE=build/site, once .ci/site has built it")

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
import docstrings  # noqa: E402


@dataclass
class Page(HTMLParser):
    """What a page loads, where it leads, and the places in it that others lead to."""

    text: str
    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    places: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.places.add(value or "")
            elif name == "href":
                (self.links if tag in ("a", "area") else self.loads).append(value or "")
            elif name in LOADS:
                self.loads.append(value or "")
            elif name == "style":
                self.loads += re.findall(r"url\(['\"]?([^'\")]+)", value or "")


@cache
def pages() -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(SITE.rglob("*.html"))}


def elsewhere(url: str) -> bool:
    return url.startswith("//") or urlsplit(url).scheme in ("http", "https", "ws", "wss", "ftp")


def broken(path: Path, page: Page, site: dict[Path, Page]) -> list[str]:
    """The links of a page that lead to no file of the site, or to no place of a page."""
    found = []
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        known = site.get(target)
        if not target.is_file() or (parts.fragment and known and unquote(parts.fragment) not in known.places):
            found.append(link)
    return found


@needs_site
def test_no_page_loads_anything_from_another_host() -> None:
    found = {str(path): [url for url in page.loads if elsewhere(url)] for path, page in pages().items()}
    assert not {path: urls for path, urls in found.items() if urls}
    for path in SITE.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", path.read_text(encoding="utf-8")), path


@needs_site
def test_every_internal_link_leads_somewhere() -> None:
    site = {path.resolve(): page for path, page in pages().items()}
    found = {str(path): broken(path, page, site) for path, page in site.items()}
    assert not {path: links for path, links in found.items() if links}
    assert sum(len(page.links) for page in site.values()) > 1000


@needs_site
def test_every_public_name_is_in_the_inventory() -> None:
    body = (SITE / "objects.inv").read_bytes().split(b"\n", 4)[4]
    listed = {line.split(" ")[0] for line in zlib.decompress(body).decode().splitlines() if " py:" in line}
    wanted = {f"{module}.{name}" for module, names in docstrings.public_names().items() for name in names}
    assert len(wanted) > 180
    assert not wanted - listed


@needs_site
def test_every_page_of_the_docs_is_in_the_site() -> None:
    sources = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "RESULTS.md"]
    built = {path.relative_to(SITE) for path in pages()}
    missing = {path.name for path in sources if path.relative_to(ROOT).with_suffix(".html") not in built}
    assert missing == {"CODE_OF_CONDUCT.md", "SECURITY.md"}  # which are for those who host the code


@needs_site
@pytest.mark.parametrize("source", sorted((ROOT / CHAPTERS).glob("*.md")), ids=lambda path: path.stem)
def test_every_chapter_has_output_formulas_and_a_download(source: Path) -> None:
    page = pages()[SITE / CHAPTERS / f"{source.stem}.html"]
    text = source.read_text(encoding="utf-8")
    exercises = len(re.findall(r"^check\(", text, re.MULTILINE))
    assert 3 <= exercises == page.text.count("not answered yet")
    assert page.text.count('class="cell_output') > exercises
    assert "TqdmWarning" not in page.text
    assert "<math" in page.text or "$$" not in text
    assert "<img" in page.text or "plt.show()" not in text
    assert f"{source.stem}.ipynb" in page.links
    notebook = json.loads((SITE / CHAPTERS / f"{source.stem}.ipynb").read_text(encoding="utf-8"))
    assert sum(cell["cell_type"] == "code" for cell in notebook["cells"]) == text.count("```{code-cell}")


@needs_site
def test_no_page_loads_a_script_for_formulas_or_widgets() -> None:
    for path, page in pages().items():
        assert not [url for url in page.loads if re.search("mathjax|require|widgets|plotly", url.lower())], path
        assert "math notranslate" not in page.text, path  # what MathJax would have to turn into a formula


def test_what_is_loaded_and_what_is_only_linked_are_told_apart() -> None:
    page = Page(
        '<link href="//cdn.net/a.css"><script src="https://cdn.net/a.js"></script><a href="https://b.org">b</a>'
        '<img src="data:image/png;base64,AA"><p id="here" style="background: url(\'http://c.org/c.png\')">'
    )
    assert [url for url in page.loads if elsewhere(url)] == [
        "//cdn.net/a.css",
        "https://cdn.net/a.js",
        "http://c.org/c.png",
    ]
    assert (page.links, page.places) == (["https://b.org"], {"here"})


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    first = Page('<a href="b.html#there">x</a><a href="b.html#gone">x</a><a href="c.html">x</a><a href="#no">x</a>')
    second = Page('<p id="there">')
    (tmp_path / "b.html").write_text(second.text)
    site = {tmp_path.resolve() / "a.html": first, tmp_path.resolve() / "b.html": second}
    (tmp_path / "a.html").write_text(first.text)
    assert broken(tmp_path.resolve() / "a.html", first, site) == ["b.html#gone", "c.html", "#no"]
