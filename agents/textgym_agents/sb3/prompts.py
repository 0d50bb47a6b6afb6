"""Where the prompt ends in an observation: what grammars and recurrent policies have to know."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.state import Prompt, TokenState
from textgym_agents.protocol import Observation
from textgym_agents.states import StateFinder, token_rows


class PromptFinder:
    """Finds the longest of a task's prompts that a token sequence begins with.

    An observation does not say how long its prompt is. A sequence that begins with no prompt of either split counts as
    a prompt that nothing has been written after.

    Args:
        task: what `env.unwrapped.task` holds.
    """

    def __init__(self, task: Any) -> None:
        self._finder = StateFinder(task)

    def states(self, observation: Observation) -> list[TokenState]:
        """The states of B observations, taken to be running."""
        return [self._state(row) for row in token_rows(observation)]

    def prompt_lengths(self, observation: Observation) -> NDArray[np.int64]:
        """Tokens of each observation's prompt, (B,)."""
        return np.array([len(state.prompt.ids) for state in self.states(observation)], dtype=np.int64)

    def _state(self, ids: tuple[int, ...]) -> TokenState:
        found = self._finder.known(ids)
        return TokenState(Prompt("", ids, None)) if found is None else found[1]
