"""From observations back to states: which part of a sequence is the prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.state import Prompt, TokenState
from textgym_agents.protocol import Observation


def token_rows(observation: Observation) -> list[tuple[int, ...]]:
    """The tokens of each state."""
    lengths = np.count_nonzero(observation["attention_mask"], axis=1).tolist()
    ids: NDArray[np.int64] = observation["input_ids"]
    return [tuple(row[:length]) for row, length in zip(ids.tolist(), lengths, strict=True)]


class StateFinder:
    """Finds the state that a sequence of tokens is.

    Args:
        task: supplies the prompts of all splits.
    """

    def __init__(self, task: Any) -> None:
        self._task = task
        # A prompt of several splits is taken from the held-out ones.
        splits = [split for split in ("tune", "train", "eval") if split in task.prompts]
        self._prompts = {prompt.ids: (split, prompt) for split in splits for prompt in task.encoded(split)}
        self._lengths = sorted({len(ids) for ids in self._prompts}, reverse=True)

    def known(self, tokens: tuple[int, ...]) -> tuple[str, TokenState] | None:
        """Split and state; the prompt is the longest one of the task that the sequence begins with, None without."""
        for length in self._lengths:
            found = self._prompts.get(tokens[:length]) if length <= len(tokens) else None
            if found is not None:
                return found[0], TokenState(found[1], tokens[length:])
        return None

    def find(self, tokens: tuple[int, ...]) -> tuple[str, TokenState]:
        """Split and state; see `known`.

        A sequence that begins with no prompt is one of the user's own, of which a reward can know the text alone.
        Raises: ValueError if it is too long for that.
        """
        found = self.known(tokens)
        if found is not None:
            return found
        if len(tokens) > self._task.max_prompt_tokens:
            raise ValueError(
                f"observation: a state of {len(tokens)} tokens begins with no prompt of the task"
            )
        (text,) = self._task.vocabulary.decode([tokens])
        return "eval", TokenState(Prompt(text, tokens, None))
