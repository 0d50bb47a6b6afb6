"""The built site in a real browser: it asks nobody for anything, fits every width, can be searched; a slider moves.

TEXTGYM_SITE names its folder, as `.ci/site` builds it; without it these tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SITE = Path(os.environ.get("TEXTGYM_SITE", "no site"))
CHAPTER = "benchmarks/textgym_benchmarks/course/chapters/03_trajectories"
PAGES = (
    "docs/index",
    "README",
    "docs/algorithms",
    "docs/choosing",
    "docs/api/textgym.solver",
    "docs/api/textgym",
    CHAPTER,
)
pytestmark = pytest.mark.skipif(not SITE.is_dir(), reason="TEXTGYM_SITE=build/site, once .ci/site has built it")

SLIDER = """---
file_format: mystnb
kernelspec:
  name: python3
---

# A slider

```{code-cell} ipython3
from matplotlib import pyplot
from textgym_benchmarks.course import slider

slider("beta", {beta: pyplot.figure(figsize=(beta, 1)) for beta in (1, 2, 3)})
```
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_and_asks_nobody(visit: Any, screenshots: Path, name: str, width: int, dark: bool) -> None:
    opened = visit(SITE / f"{name}.html", width=width, dark=dark)
    opened.page.wait_for_timeout(200)
    opened.check()
    assert opened.sideways() == 0
    theme = "dark" if dark else "light"
    opened.page.screenshot(path=screenshots / f"site-{Path(name).name}-{width}-{theme}.png")


def test_the_site_begins_at_its_first_page(visit: Any) -> None:
    opened = visit(SITE / "index.html")
    opened.page.wait_for_url("**/docs/index.html")
    opened.check()


def test_the_search_works_offline(visit: Any) -> None:
    opened = visit(SITE / "search.html")
    opened.page.goto(f"{(SITE / 'search.html').resolve().as_uri()}?q=optimality")
    opened.wait("document.querySelectorAll('#search-results li a').length > 5")
    opened.check()


def test_the_slider_of_a_chapter_moves(visit: Any, tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text("extensions = ['myst_nb']\nhtml_theme = 'furo'\nnb_execution_mode = 'force'\n")
    (tmp_path / "index.md").write_text(SLIDER)
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", tmp_path, tmp_path / "out"], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    opened = visit(tmp_path / "out" / "index.html")
    shown = "[...document.querySelectorAll('figure .pages > div')].map(page => !page.hidden)"
    assert opened.page.evaluate(shown) == [True, False, False]
    opened.page.locator("input[type=range]").fill("2")
    assert opened.page.evaluate(shown) == [False, False, True]
    assert opened.page.locator("figure output").text_content() == "3"
    opened.check()
