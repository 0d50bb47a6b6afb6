"""Show an episode as text that is safe to print, and as a picture of that text; and numbers as a table in HTML."""

from __future__ import annotations

import functools
import html
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from gymnasium.error import DependencyNotInstalled

from textgym.checks import did_you_mean

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

    from textgym.state import TokenState
    from textgym.task import Task

    Font = FreeTypeFont | BitmapFont

Frame = str | npt.NDArray[np.uint8]
CANVAS = (640, 384)  # pixels, width and height; even, as video codecs want them
_MARGIN, _LINE, _FONT_SIZE = 16, 22, 16
_INK, _PAPER = (32, 32, 32), (255, 255, 255)
# Control, format (text direction), surrogate, private, unassigned, line and paragraph separators.
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def check_render_mode(render_mode: str | None, allowed: Iterable[str]) -> None:
    """Raise ValueError for an unknown mode, DependencyNotInstalled for "rgb_array" without Pillow."""
    if render_mode is not None and render_mode not in (names := list(allowed)):
        near = did_you_mean(render_mode, names)
        raise ValueError(f"render_mode={render_mode!r}: not one of None, {', '.join(names)}.{near}")
    if render_mode == "rgb_array":
        _font()


def counted(many: int, what: str) -> str:
    """Return a number of things for people: "1 token", "2 tokens"."""
    return f"{many:,} {what}{'s' * (many != 1)}"


def escaped(text: str) -> str:
    """Return the text with characters that could control a terminal written as Python escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _ESCAPED_CATEGORIES
        else character
        for character in text
    )


def html_table(*rows: Sequence[object], heads: Sequence[str] = ()) -> str:
    """Return rows as a table in HTML, for notebooks, in which every text stays text. Args: heads: of the columns."""
    cells = [("th", heads)] * bool(heads) + [("td", row) for row in rows]
    lines = (
        "".join(f'<{tag} style="text-align: left">{html.escape(escaped(str(cell)))}</{tag}>' for cell in row)
        for tag, row in cells
    )
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def frame_text(task: Task, state: TokenState, reward: float | None) -> str:
    """Return an episode in two lines, and a third once it has ended.

    Args:
        task: gives the vocabulary.
        state: what to show.
        reward: what the last step paid, reward units; None where that is not known.
    """
    text = task.vocabulary.decode([state.completion])[0]
    frame = f"prompt      {escaped(state.prompt.text)}\ncompletion  {escaped(text)}"
    if state.finish_reason is None:
        return frame
    paid = "" if reward is None else f", reward {reward:.6g}"
    return f"{frame}\nfinished    {state.finish_reason}, {counted(len(state.completion), 'token')}{paid}\n"


def print_frame(frame: str, printed: str) -> None:
    """Print a frame, or only what is new if it continues the frame printed last."""
    out = sys.stdout
    text = frame.removeprefix(printed)
    if printed and text == frame:
        text = "\n" + frame
    encoding = getattr(out, "encoding", None) or "utf-8"
    out.write(text.encode(encoding, "backslashreplace").decode(encoding))
    out.flush()


def frame_image(frame: str) -> npt.NDArray[np.uint8]:
    """Return a picture of a frame, uint8 (384, 640, 3); of the end of a text that is too long."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", CANVAS, _PAPER)
    draw = ImageDraw.Draw(image)
    lines = [part for line in frame.splitlines() for part in _wrapped(line)]
    for number, line in enumerate(lines[-((CANVAS[1] - 2 * _MARGIN) // _LINE) :]):
        draw.text((_MARGIN, _MARGIN + number * _LINE), line, fill=_INK, font=_font())
    return np.array(image, dtype=np.uint8)


def _wrapped(line: str) -> list[str]:
    """Cut a line where it would leave the canvas."""
    parts, current, width = [], "", 0.0
    for character in line:
        step = _width(character)
        if width + step > CANVAS[0] - 2 * _MARGIN:
            parts.append(current)
            current, width = "", 0.0
        current, width = current + character, width + step
    return [*parts, current]


@functools.lru_cache(maxsize=4096)
def _width(character: str) -> float:
    return float(_font().getlength(character))


@functools.cache
def _font() -> Font:
    try:
        from PIL import ImageFont
    except ModuleNotFoundError as error:
        raise DependencyNotInstalled('render_mode="rgb_array" needs Pillow: pip install "textgym[report]"') from error
    return ImageFont.load_default(_FONT_SIZE)
