"""The mark of each agent: a colour, a dash and a shape, the same on every page and in every chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Plotly's names, with the same shapes for the swatches: SVG paths around (0, 0).
SYMBOLS = {
    "circle": "M-3.6,0a3.6,3.6 0 1,0 7.2,0a3.6,3.6 0 1,0 -7.2,0Z",
    "square": "M-3.2,-3.2H3.2V3.2H-3.2Z",
    "diamond": "M0,-4.6L4.6,0L0,4.6L-4.6,0Z",
    "triangle-up": "M-4.2,3.2H4.2L0,-4.4Z",
    "triangle-down": "M-4.2,-3.2H4.2L0,4.4Z",
    "cross": "M-4.2,-1.5H-1.5V-4.2H1.5V-1.5H4.2V1.5H1.5V4.2H-1.5V1.5H-4.2Z",
    "star": "M0,-5L1.3,-1.6L4.8,-1.5L2,0.7L3,4.2L0,2.1L-3,4.2L-2,0.7L-4.8,-1.5L-1.3,-1.6Z",
}
DASHES = {"solid": "", "dash": "6 3", "dot": "1.5 2.5", "dashdot": "6 2.5 1.5 2.5"}
BASELINES = ("reference", "random")
_COLOURS, _GREY = 7, 8


@dataclass(frozen=True)
class Mark:
    """How an agent is drawn.

    Args:
        name: the agent, as tables call it.
        colour: 1 to 8, of the CSS variables `--series-N`.
        dash, symbol: names that Plotly knows, keys of `DASHES` and `SYMBOLS`.
    """

    name: str
    colour: int
    dash: str
    symbol: str

    @property
    def dash_pattern(self) -> str:
        """As SVG's stroke-dasharray takes it."""
        return DASHES[self.dash]

    @property
    def shape(self) -> str:
        """An SVG path."""
        return SYMBOLS[self.symbol]


def marks_of(names: Sequence[str]) -> tuple[Mark, ...]:
    """A mark for each agent, in the order given; agents that learn nothing are grey."""
    dashes, symbols = list(DASHES), list(SYMBOLS)
    found, learners, baselines = [], 0, 0
    for name in names:
        if name in BASELINES:
            mark = Mark(name, _GREY, ("dot", "dashdot")[baselines % 2], ("circle", "square")[baselines % 2])
            baselines += 1
        else:
            turn = learners // _COLOURS
            dash = dashes[turn % len(dashes)]
            mark = Mark(name, 1 + learners % _COLOURS, dash, symbols[(learners + turn) % len(symbols)])
            learners += 1
        found.append(mark)
    return tuple(found)
