"""A headless Chromium for the tests of pages: one for each module, with a record of errors and requests."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

WHERE = "Chromium is missing: apt-get install chromium (Debian), or set TEXTGYM_CHROMIUM to its path"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Visit:
    """A page that was opened, and what happened on it: console errors, dialogs, requests."""

    page: Any
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    own: tuple[str, ...] = ("file:", "data:", "blob:")

    def check(self) -> None:
        """No error, no dialog, and nothing asked for but files of its own place and what the page itself made."""
        assert self.errors == []
        assert self.dialogs == []
        assert [url for url in self.requests if not url.startswith(self.own)] == []

    def sideways(self) -> int:
        """How far the page can be scrolled sideways, in pixels."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return width

    def wait(self, condition: str, seconds: float = 20.0) -> None:
        """Waits until a JavaScript expression holds; Playwright's own wait needs `eval`, which pages forbid."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"{condition} does not hold after {seconds:g} s"
            self.page.wait_for_timeout(20)


Open = Callable[..., Visit]


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("TEXTGYM_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


# Playwright keeps an event loop running in this thread for as long as it is open, and other tests start their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    if path is None:
        pytest.skip(WHERE)
    sync_api = pytest.importorskip("playwright.sync_api", reason='pip install "textgym[test]"')
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens a page of a folder, or of a server by its address: visit(path, width=1280, dark=False)."""
    contexts = []

    def open_page(path: Path | str, width: int = 1280, dark: bool = False, **options: Any) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", **options
        )
        contexts.append(context)
        visited = Visit(context.new_page())
        page = visited.page
        page.on("console", lambda line: visited.errors.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: visited.errors.append(str(error)))
        page.on("request", lambda request: visited.requests.append(request.url))

        def dismiss(dialog: Any) -> None:
            visited.dialogs.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", dismiss)
        if isinstance(path, str):
            visited.own = (path, "data:", "blob:")
        page.goto(path if isinstance(path, str) else path.resolve().as_uri())
        return visited

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def picture() -> Callable[[Any, str], None]:
    """Pictures a whole page for people to look at, if TEXTGYM_SCREENSHOTS names a folder: picture(page, name)."""

    def take(page: Any, name: str) -> None:
        if folder := os.environ.get("TEXTGYM_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / name, full_page=True)

    return take


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where pictures go: TEXTGYM_SCREENSHOTS, or a folder of this test."""
    folder = Path(os.environ.get("TEXTGYM_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
