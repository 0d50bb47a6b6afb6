"""The course: twelve chapters as notebooks, and exercises whose answers are compared with exact values.

In a notebook, `check(function)` says whether an exercise is solved, and `slider` shows figures one at a time;
`textgym course` grades whole files.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from textgym_benchmarks.course.grading import check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Slider", "check", "slider"]


class Slider:
    """Figures of which one is shown at a time; a notebook displays it.

    Args:
        name: of what changes from one to the next, "beta". pages: an HTML part for each of its values, in order.
    """

    def __init__(self, name: str, pages: Mapping[str, str]) -> None:
        self.name, self.pages = name, dict(pages)

    def _repr_html_(self) -> str:
        values = list(self.pages)
        parts = "".join(f"<div{' hidden' * (i > 0)}>{page}</div>" for i, page in enumerate(self.pages.values()))
        move = (
            "const all = this.closest('figure').querySelectorAll('.pages > div');"
            "all.forEach((page, i) => { page.hidden = i !== Number(this.value); });"
            f"this.nextElementSibling.value = {json.dumps(values)}[this.value];"
        )
        return (
            f'<figure style="margin:0"><label>{escape(self.name)} <input type="range" min="0" max="{len(values) - 1}" '
            f'value="0" step="1" oninput="{escape(move)}"> <output>{escape(values[0])}</output></label>'
            f'<div class="pages">{parts}</div></figure>'
        )

    def __repr__(self) -> str:
        return f"Slider({self.name}: {', '.join(self.pages)})"


def slider(name: str, figures: Mapping[object, Figure]) -> Slider:
    """Return figures with a slider, and close them.

    Args:
        name: of what changes from one to the next, "beta". figures: by its values, in order.
    Raises: ValueError for no figures.
    """
    if not figures:
        raise ValueError("figures={}: at least one figure is needed")
    return Slider(name, {str(value): _image(f"{name} {value}", figure) for value, figure in figures.items()})


def _image(text: str, figure: Figure) -> str:
    from matplotlib import pyplot

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100, bbox_inches="tight")
    pyplot.close(figure)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(text)}" style="max-width:100%" src="data:image/png;base64,{data}">'
