"""What TextGym asks of an agent, and how an agent reads its observations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from textgym.state import Prompt, TokenState

Observation = Mapping[str, NDArray[Any]]
Metrics = dict[str, float]
Callback = Callable[[Metrics], bool | None]


@runtime_checkable
class Agent(Protocol):
    """A policy that may learn. Any class with these methods takes part in evaluation, benchmark and command line."""

    def learn(self, env: Any, episodes: int, callback: Callback | None = None) -> None:
        """Learns from `episodes` episodes of `env`.

        Args:
            env: a vector environment (`gym.make_vec`) or what the agent asks for.
            episodes: the budget; the unit that all agents are compared in.
            callback: called with the metrics of every iteration; returning True stops learning.
        """

    def act(self, observation: Observation, deterministic: bool = False) -> NDArray[np.int64]:
        """Token ids (B,) for a batch of observations; the likeliest ones if `deterministic`."""

    def log_probs(self, observation: Observation) -> NDArray[np.floating[Any]] | None:
        """Next-token log-probabilities (B, V) in nats, or None for an agent that has none."""

    def save(self, path: str | Path) -> None:
        """Writes the agent to a folder, atomically."""

    @classmethod
    def load(cls, path: str | Path, env: Any) -> Agent:
        """Reads what `save` wrote; `env` supplies the task."""


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
