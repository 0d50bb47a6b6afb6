"""Templates in which every text of a model or a file stays text: no markup, no script, no terminal escape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from textgym.render import escaped

# What could end the script element or, in old readers of JavaScript, a line.
_UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def environment(package: str) -> Environment:
    """The templates of a package's folder `templates`, with those of this package (`base.html`) behind them.

    Everything that a template puts out is made visible (see `visible`) and then escaped for HTML. Filters: `lines`
    keeps line ends, `embed` writes JSON for a script element, `number` writes a number or a dash for None.

    Args:
        package: a dotted name, such as "textgym_benchmarks.report".
    """
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("textgym_benchmarks.pages")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"lines": lines, "embed": embed, "number": number}
    return made


def visible(text: str, keep: str = "") -> str:
    r"""The text with control characters, terminal escapes and direction marks written out, as in `\x1b[31m`.

    Args:
        text: of any origin.
        keep: characters that are left as they are, such as a line end.
    """
    if not keep:
        return escaped(text)
    return "".join(character if character in keep else escaped(character) for character in text)


def lines(text: str) -> Markup:
    """A text as HTML whose line ends and tabs are kept, for an element that shows them."""
    return escape(visible(text, keep="\n\t"))


def visible_values(value: Any) -> Any:
    """A JSON value in which every text, keys too, is made visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): visible_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [visible_values(item) for item in value]
    return value


def embed(value: Any) -> Markup:
    """A JSON value for a `<script type="application/json">`: its texts visible, nothing in it can end the element.

    Raises: ValueError for NaN or an infinity.
    """
    text = json.dumps(visible_values(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_UNSAFE))


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: `digits` after the point below 1,000, thousands separated above, a dash for None."""
    if value is None:
        return "\u2013"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "\u2212")
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "\u2212")


def _finalize(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
