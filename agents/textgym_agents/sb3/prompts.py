"""Where the prompt ends in an observation: what grammars and recurrent policies have to know."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.state import Prompt, TokenState
from textgym_agents.protocol import Observation


class PromptFinder:
    """Finds the longest of a task's prompts that a token sequence begins with.

    An observation does not say how long its prompt is. A sequence that begins with no prompt of either split counts as
    a prompt that nothing has been written after.

    Args:
        task: what `env.unwrapped.task` holds.
    """

    def __init__(self, task: Any) -> None:
        prompts = [prompt for split in ("train", "eval") for prompt in task.encoded(split)]
        self._prompts: dict[tuple[int, ...], Prompt] = {prompt.ids: prompt for prompt in prompts}
        self._lengths = sorted({len(ids) for ids in self._prompts}, reverse=True)

    def states(self, observation: Observation) -> list[TokenState]:
        """The states of B observations, taken to be running."""
        lengths = np.count_nonzero(observation["attention_mask"], axis=1)
        rows = [ids[:n].tolist() for ids, n in zip(observation["input_ids"], lengths, strict=True)]
        return [self._state(tuple(row)) for row in rows]

    def prompt_lengths(self, observation: Observation) -> NDArray[np.int64]:
        """Tokens of each observation's prompt, (B,)."""
        return np.array([len(state.prompt.ids) for state in self.states(observation)], dtype=np.int64)

    def _state(self, ids: tuple[int, ...]) -> TokenState:
        for length in self._lengths:
            prompt = self._prompts.get(ids[:length]) if length <= len(ids) else None
            if prompt is not None:
                return TokenState(prompt, ids[length:])
        return TokenState(Prompt("", ids, None))
