"""Whole episodes to learn from again: a bounded memory in numpy, the oldest forgotten first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_NAMES = ("input_ids", "starts", "lengths", "rewards", "reference", "normalisers")


@dataclass(frozen=True)
class Paths:
    """B finished episodes; what stands behind an episode's end is 0.

    Attributes:
        input_ids: (B, L) int32, right-padded prompts and completions.
        starts: (B,) int32, tokens of the prompt. lengths: (B,) int32, actions.
        rewards: (B, T) float32, reward units.
        reference: (B, T) float32, log-probability of every action under the reference, nats.
        normalisers: (B, T) float32, log-sum-exp of the reference's logits in every state, nats.
    """

    input_ids: NDArray[np.int32]
    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    rewards: NDArray[np.float32]
    reference: NDArray[np.float32]
    normalisers: NDArray[np.float32]

    def rows(self, chosen: NDArray[np.integer]) -> Paths:
        """Some of them."""
        return Paths(*(getattr(self, name)[chosen] for name in _NAMES))


class Replay:
    """Keeps the last `capacity` episodes.

    Args:
        capacity: episodes, at least 1.
        width: L, tokens of a whole sequence. steps: T, the most actions of an episode.
    """

    def __init__(self, capacity: int, width: int, steps: int) -> None:
        shapes = [(width,), (), (), (steps,), (steps,), (steps,)]
        kinds = [np.int32] * 3 + [np.float32] * 3
        self._arrays = Paths(*(np.zeros((capacity, *s), k) for s, k in zip(shapes, kinds, strict=True)))  # type: ignore[arg-type]
        self.capacity = capacity
        self.seen = 0

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def add(self, paths: Paths) -> None:
        """Puts episodes in place of the oldest ones."""
        count = len(paths.lengths)
        places = (self.seen + np.arange(count)) % self.capacity
        for name in _NAMES:
            getattr(self._arrays, name)[places] = getattr(paths, name)
        self.seen += count

    def sample(self, count: int, generator: np.random.Generator, newest: int = 0) -> Paths:
        """The `newest` episodes, and `count` of all, uniformly and with replacement.

        Raises: ValueError if there are none.
        """
        if not len(self):
            raise ValueError("replay: it is empty, at least one episode is needed")
        last = (self.seen - 1 - np.arange(min(newest, len(self)))) % self.capacity
        return self._arrays.rows(np.concatenate([last, generator.integers(len(self), size=count)]))

    def tensors(self) -> dict[str, Tensor]:
        """What is to be saved."""
        kept = {name: torch.from_numpy(getattr(self._arrays, name)[: len(self)].copy()) for name in _NAMES}
        return kept | {"seen": torch.tensor([self.seen])}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `tensors` gave. Raises: ValueError for episodes that do not fit."""
        self.seen = int(tensors["seen"][0])
        starts, lengths = tensors["starts"], tensors["lengths"]
        width, steps = self._arrays.input_ids.shape[1], self._arrays.rewards.shape[1]
        fits = (starts >= 1) & (lengths >= 1) & (lengths <= steps) & (starts + lengths <= width)
        if self.seen < 0 or not bool(fits.all()):
            raise ValueError(
                f"replay: seen={self.seen}, or an episode is longer than {steps} actions or empty"
            )
        for name in _NAMES:
            getattr(self._arrays, name)[: len(self)] = tensors[name].numpy()
