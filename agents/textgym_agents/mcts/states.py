"""From observations back to states: which part of a sequence is the prompt, and what has been paid so far."""

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
        task: supplies the prompts of both splits.
    """

    def __init__(self, task: Any) -> None:
        self._task = task
        # A prompt that both splits have is taken from the held-out ones.
        self._prompts = {
            prompt.ids: (split, prompt) for split in ("train", "eval") for prompt in task.encoded(split)
        }

    def find(self, tokens: tuple[int, ...]) -> tuple[str, TokenState]:
        """Split and state; the prompt is the longest one of the task that the sequence begins with.

        A sequence that begins with none is a prompt of the user's own, of which a reward can know the text alone.
        Raises: ValueError if it is too long for that.
        """
        for length in range(min(len(tokens), self._task.max_prompt_tokens), 0, -1):
            if tokens[:length] in self._prompts:
                split, prompt = self._prompts[tokens[:length]]
                return split, TokenState(prompt, tokens[length:])
        if len(tokens) > self._task.max_prompt_tokens:
            raise ValueError(
                f"observation: a state of {len(tokens)} tokens begins with no prompt of the task"
            )
        (text,) = self._task.vocabulary.decode([tokens])
        return "eval", TokenState(Prompt(text, tokens, None))
