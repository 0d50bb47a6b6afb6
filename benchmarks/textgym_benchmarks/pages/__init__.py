"""Folders of pages, and templates in which every text of a model or a file stays text: no markup, no script."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from textgym.files import make_folder, write_bytes
from textgym.interrupts import disk_full_at
from textgym.render import escaped
from textgym_benchmarks.statistics import Interval

_UNFINISHED = """<!doctype html><meta charset="utf-8"><meta name="generator" content="{generator}">
<title>Not finished</title><p>These pages were not written to their end. The same command builds them anew.</p>
"""
_HEAD = 2000  # bytes of a page that must hold its generator
# What could end the script element or, in old readers of JavaScript, a line.
_UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#&~$!])")


def generator(kind: str) -> str:
    """Return the generator that the pages of a kind name, by which a folder is known again."""
    return f"textgym {kind}"


def check_folder(folder: Path, kind: str) -> None:
    """Raise FileExistsError unless a folder is a new one, an empty one, or one of pages of the same kind."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"out {str(folder)!r}: it is a file; allowed is a folder")
    if any(folder.iterdir()) and not is_of_kind(folder / "index.html", kind):
        raise FileExistsError(
            f"out {str(folder)!r}: it holds files and is no {kind}; allowed are a new folder, an empty one, "
            f"or a {kind} (which is built anew)"
        )


def is_of_kind(page: Path, kind: str) -> bool:
    """Return whether a page is of a kind. What is no file, as a pipe, is not read: that could wait for ever."""
    if not page.is_file():
        return False
    with page.open("rb") as file:
        return f'<meta name="generator" content="{generator(kind)}">'.encode() in file.read(_HEAD)


def write_folder(folder: Path, contents: Mapping[str, str | bytes], kind: str) -> None:
    """Write pages and what belongs to them, each file atomically, the index last; remove older pages of cells.

    Args:
        folder, kind: as `check_folder` takes them.
        contents: relative path -> text or bytes; holds "index.html".
    Raises: FileExistsError as `check_folder` does; DiskFullError.
    """
    check_folder(folder, kind)
    with disk_full_at(folder):
        if not (folder / "index.html").exists():
            # What breaks off here is known again, and built anew.
            _write(folder / "index.html", _UNFINISHED.format(generator=generator(kind)))
        for name in sorted(contents, key=lambda name: name == "index.html"):
            _write(folder / name, contents[name])
        for place in {(folder / name).parent for name in contents} - {folder}:
            for page in place.glob("*.html"):  # of what is no longer shown
                if page.relative_to(folder).as_posix() not in contents and is_of_kind(page, kind):
                    page.unlink()


def _write(path: Path, content: str | bytes) -> None:
    make_folder(path.parent)
    write_bytes(path, content.encode() if isinstance(content, str) else content)


def assets(package: str) -> dict[str, bytes]:
    """Return the files in the folder `assets` of a package, by name."""
    return {file.name: file.read_bytes() for file in files(package).joinpath("assets").iterdir()}


def shared_assets() -> dict[str, bytes]:
    """Return the files that `base.html` refers to: base.css and theme.js."""
    return assets(__name__)


def environment(package: str) -> Environment:
    """Return the templates of a package's folder `templates`, with those of this package (`base.html`) behind them.

    Everything that a template puts out is made visible (see `visible`) and then escaped for HTML. Filters: `lines`
    keeps line ends, `embed` writes JSON for a script element, `number` writes a number or a dash for None,
    with the `places` of a time.
    """
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(__name__)]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"lines": lines, "embed": embed, "number": number, "places": places}
    return made


def _finalize(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def visible(text: str, keep: str = "") -> str:
    r"""Return the text with control characters, terminal escapes and direction marks written out, as in `\x1b[31m`.

    Those of `keep` are left as they are.
    """
    if not keep:
        return escaped(text)
    return "".join(character if character in keep else escaped(character) for character in text)


def lines(text: str) -> Markup:
    """Return a text as HTML whose line ends and tabs are kept, for an element that shows them."""
    return escape(visible(text, keep="\n\t"))


def visible_values(value: object) -> object:
    """Return a JSON value in which every text, keys too, is made visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): visible_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [visible_values(item) for item in value]
    return value


def embed(value: object) -> Markup:
    """Return a JSON value for a `<script type="application/json">`: nothing in it can end the element.

    Raises: ValueError for NaN or an infinity.
    """
    text = json.dumps(visible_values(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_UNSAFE))


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for people: `digits` after the point below 1,000, thousands separated above, a dash for None."""
    if value is None:
        return "\u2013"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "\u2212")
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "\u2212")


def places(time: float | None) -> int:
    """Return how many digits after the point a time has: one, or two significant ones where it is below 1."""
    return 1 if not time or abs(time) >= 1 else 1 - math.floor(math.log10(abs(time)))


def markdown(package: str, name: str) -> Template:
    """Return a template of Markdown in a package's folder `templates`.

    Filters: `text` for every text of a file, `fixed` for numbers, with the `places` of a time, `interval` for those
    with their ends.
    """
    made = Environment(
        loader=PackageLoader(package),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"text": text, "fixed": fixed, "interval": interval, "places": places}
    return made.get_template(name)


def text(words: object) -> str:
    """Return any text as Markdown that shows it: one line, nothing in it is markup or steers a terminal."""
    return _MARKDOWN.sub(r"\\\1", escaped(str(words)))


def fixed(value: float | None, digits: int = 2) -> str:
    """Return a number for people, rounded twice: the last bits of a sum do not decide between two digits."""
    if value is None:
        return "\u2013"
    shown = f"{round(value, 9):,.{digits}f}"
    return shown.removeprefix("-") if float(shown.replace(",", "")) == 0 else shown


def interval(found: Interval, digits: int = 2) -> str:
    """Return a number with its interval, where there is one."""
    if found.value is None or found.low is None or found.high is None or found.high - found.low < 1e-9:
        return fixed(found.value, digits)
    return f"{fixed(found.value, digits)} [{fixed(found.low, digits)}, {fixed(found.high, digits)}]"
