"""What a task's grammar allows in the states of observations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym_agents.protocol import Observation
from textgym_agents.states import StateFinder, token_rows

Bools = NDArray[np.bool_]


class Grammar:
    """Asks a task's mask about states that are known by their tokens alone.

    Args:
        task: supplies mask, vocabulary and prompts.
    """

    def __init__(self, task: Any) -> None:
        self._task = task
        self._finder = None if task.mask is None else StateFinder(task)

    def legal(self, observation: Observation, asked: Bools) -> Bools | None:
        """The legal tokens (n, V) of running states; None for a task without mask.

        Args:
            asked: (n,) the states to ask about. In others, and where no prompt of the task begins a state, all ordinary
                tokens are legal.
        """
        if self._finder is None:
            return None
        legal = np.repeat(self._task.vocabulary.allowed[None], len(asked), axis=0)
        rows = np.flatnonzero(asked)
        found = [self._finder.known(row) for row in token_rows({k: v[rows] for k, v in observation.items()})]
        known = rows[[state is not None for state in found]]
        if len(known):
            legal[known] &= self._task.mask([state for _, state in filter(None, found)])
        return legal
