"""What TextGym asks of an agent, and how an agent reads its observations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from textgym.checks import Ints
from textgym.state import ENVIRONMENT, PROMPT, Prompt, TokenState
from textgym.task import Task

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
    """Return the tokens of each of B states."""
    lengths = np.count_nonzero(observation["attention_mask"], axis=1).tolist()
    ids: NDArray[np.int64] = observation["input_ids"]
    return [tuple(row[:length]) for row, length in zip(ids.tolist(), lengths, strict=True)]


def prompt_lengths(observation: Observation) -> Ints:
    """Return the tokens of each state's prompt, (B,).

    Raises: ValueError for observations without `segment_ids`.
    """
    if "segment_ids" not in observation:
        raise ValueError(
            "observation: has no segment_ids, which say where the prompt ends; make the environment with segments=True"
        )
    prompt = (observation["segment_ids"] == PROMPT) & (observation["attention_mask"] != 0)
    return np.asarray(np.count_nonzero(prompt, axis=1))


class StateFinder:
    """Finds the states that observations show.

    Args:
        task: supplies the prompts of all splits.
    """

    def __init__(self, task: Task) -> None:
        self._decode = task.vocabulary.decode
        # A prompt of several splits is taken from the held-out ones.
        splits = [split for split in ("tune", "train", "eval") if split in task.prompts]
        self._prompts = {prompt.ids: (split, prompt) for split in splits for prompt in task.encoded(split)}

    def states(self, observation: Observation) -> list[tuple[str, TokenState]]:
        """Return split and state of each of B observations, taken to be running.

        Raises: ValueError for observations without `segment_ids`.
        """
        starts, rows = prompt_lengths(observation).tolist(), token_rows(observation)
        segments: NDArray[np.int8] = observation["segment_ids"]
        found = []
        for tokens, start, authors in zip(rows, starts, segments, strict=True):
            environment = np.flatnonzero(authors == ENVIRONMENT) - start
            found.append(self.state(tokens, start, tuple(environment.tolist())))
        return found

    def state(
        self, tokens: tuple[int, ...], start: int, environment: tuple[int, ...] = ()
    ) -> tuple[str, TokenState]:
        """Return split and state of a sequence whose first `start` tokens are the prompt.

        A prompt that no split has is one of the user's own: a reward can know its text alone.
        """
        ids = tokens[:start]
        split, prompt = self._prompts.get(ids, ("eval", None))
        if prompt is None:
            prompt = Prompt(self._decode([ids])[0], ids, None)
        return split, TokenState(prompt, tokens[start:], environment=environment)
