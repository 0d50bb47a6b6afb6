"""Learning from given texts: passes over data, optimiser steps on them, and a memory of whole episodes."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textgym.play import check_env
from textgym.preferences import Demonstration, Ranking, Reading
from textgym.rewards import TextGymWarning
from textgym.task import Task, refuse_turns
from textgym.vector import TokenVectorEnv
from textgym_agents.config import KL, LMConfig, at_least_one, require
from textgym_agents.datasets.reading import Recording, is_recording, read_recording
from textgym_agents.lm.agent import LMAgent
from textgym_agents.lm.sequences import Sequences, encode_texts
from textgym_agents.lm.trainer import accumulate
from textgym_agents.protocol import Callback, Metrics

Row = TypeVar("Row", Demonstration, Ranking)


@dataclass(frozen=True)
class OfflineConfig(LMConfig):
    """Settings of agents that learn from given texts. Raises: as `LMConfig` does."""

    data: str | None = None
    """Texts to learn from: a file in any format of textgym.preferences, or a log or Minari dataset of episodes."""
    on_broken: Literal["stop", "skip"] = "stop"
    """What to do if the file has rows that cannot be used. stop: learn nothing; skip: leave them out and name them."""
    epochs: int = 1
    """Passes over the texts of an iteration before the next texts are taken."""
    minibatches: int = 4
    """Optimiser steps per pass."""
    kl: KL = "k1"
    """Must be k1: nothing is sampled from the policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "epochs", "minibatches")
        require("kl", self.kl, self.kl == "k1", "'k1'")
        require("kl_target", self.kl_target, self.kl_target is None, "None: nothing is sampled from the policy")

    @property
    def prompts_from(self) -> str:
        """The setting that says whose prompts are learned from; "" where they are drawn from the environment anew."""
        return "data" if self.data is not None else ""


class OfflineAgent(LMAgent):
    """An LM policy that learns from given texts, `unit` of them together. Args: see `LMAgent`.

    An iteration takes as many texts as there are sub-environments, and each counts as an episode. The data are read in
    shuffled passes, repeated until the budget is used up.
    """

    config: OfflineConfig
    unit: int = 1
    """Texts that are learned from together."""
    offline: bool = True
    """Whether others than the policy write the texts."""

    def __init__(self, task: Task, config: OfflineConfig, model: nn.Module | None = None) -> None:
        self._check_turns(task, config)
        super().__init__(task, config, model)
        if task.mask is not None:
            raise ValueError(f"task {task.name!r}: it has a grammar mask; {self.name} takes tasks without one")
        self._data: Sequences | None = None
        self._digest: bytes | None = None

    def learn(self, env: TokenVectorEnv, episodes: int, callback: Callback | None = None) -> None:
        """See `LMAgent.learn`.

        Raises: also ValueError if the texts cannot be used or are others than learning began with.
        """
        self.check_learning(env)
        super().learn(env, episodes, callback)

    def check_learning(self, env: TokenVectorEnv) -> None:
        """See `Agent.check_learning`: the texts are read here."""
        check_env(env)
        if env.num_envs % self.unit:
            raise ValueError(
                f"env: {env.num_envs} sub-environments; allowed are multiples of {self.unit} (texts taken together)"
            )
        if self._data is None and self._has_data():
            self._data = self._load()
            digest = self._data.digest()
            if self._digest not in (None, digest):
                raise ValueError(f"data={self.config.data!r}: other texts than learning began with")
            self._digest = digest

    def _check_turns(self, task: Task, config: OfflineConfig) -> None:
        """Raise ValueError for a task with turns: a text does not say who wrote what in it."""
        refuse_turns(task, self.name)

    def _usable(self, reading: Reading[Row]) -> list[Row]:
        """Return the rows of a file. Warns: TextGymWarning of those that are left out."""
        self._leave_out(reading.problems, len(reading.rows))
        return reading.rows

    def _leave_out(self, problems: Sequence[object], kept: int) -> None:
        if problems:
            text = f"{len(problems)} of {kept + len(problems)} rows are left out, first {problems[0]}"
            warnings.warn(f"data={self.config.data!r}: {text}", TextGymWarning, stacklevel=5)

    @abstractmethod
    def _has_data(self) -> bool:
        """Return whether there are texts to be read."""

    @abstractmethod
    def _read(self) -> list[Demonstration]:
        """Return all texts of a file, those of a unit one after the other."""

    @abstractmethod
    def _select(self, recording: Recording) -> Sequences:
        """Return the recorded episodes to learn from, those of a unit one after the other."""

    def _load(self) -> Sequences:
        data = self.config.data
        if data is None or not is_recording(data):
            return self._encode(self._read())
        recording = read_recording(data, self.task, self.config.on_broken)
        try:
            return self._select(recording)
        except ValueError as error:
            raise ValueError(f"data={data!r}: {error}") from error

    def _batch(self, env: TokenVectorEnv) -> tuple[Sequences, Metrics]:
        """Return the texts of this iteration, and metrics of them."""
        assert self._data is not None
        count = self.devices.world * env.num_envs // self.unit
        total = len(self._data.lengths) // self.unit
        units = passes(total, self.episodes // self.unit, count, self.config.seed)
        return self._data.rows(_texts_of(units, self.unit)), {"data/passes": self.episodes / self.unit / total}

    @abstractmethod
    def _losses(self, batch: Sequences, reference: Tensor) -> tuple[Tensor, Metrics]:
        """Return the loss of every unit or token (n,), and sums over them to be reported.

        Args:
            reference: (b,) the values of `_score_reference` for these texts.
        """

    def _score_reference(self, batch: Sequences) -> Tensor:
        """Return what the loss needs of the reference, one number for every text (B,)."""
        return torch.zeros(len(batch.lengths), device=self.policy.device)

    def _total(self, batch: Sequences) -> int:
        """Return the number of items in a mini-batch: its loss is their mean."""
        return len(batch.lengths) // self.unit

    def _encode(self, texts: Sequence[Demonstration]) -> Sequences:
        if self.config.on_broken == "skip":
            texts = self._encodable(texts)
        sequences, cut = encode_texts(self.task, texts)
        if not len(sequences.lengths):
            raise ValueError(f"data={self.config.data!r}: there is nothing in it")
        if cut:
            warnings.warn(
                f"{cut} of {len(texts)} texts do not fit into max_prompt_tokens={self.task.max_prompt_tokens} and "
                f"max_new_tokens={self.task.max_new_tokens}, or go on behind a stop token, and were cut",
                TextGymWarning,
                stacklevel=3,
            )
        return sequences

    def _encodable(self, texts: Sequence[Demonstration]) -> list[Demonstration]:
        """Return the texts that the task can write, those of a unit together."""
        kept, problems = list[Demonstration](), list[ValueError]()
        for start in range(0, len(texts), self.unit):
            try:
                encode_texts(self.task, texts[start : start + self.unit])
                kept += texts[start : start + self.unit]
            except ValueError as error:
                problems.append(error)
        self._leave_out(problems, len(kept) // self.unit)
        return kept

    def _iterate(self, env: TokenVectorEnv) -> Metrics:
        batch, metrics = self._batch(env)
        metrics |= self._update(batch)
        self.policy.forget()  # what it has cached of texts is of other parameters
        return metrics | {
            "completion_length": float(batch.lengths.mean()),
            "tokens": float(batch.lengths.sum()),
        }

    def _update(self, batch: Sequences) -> Metrics:
        config = self.config
        generator = np.random.default_rng([self._seed(1)])
        reference = self._score_reference(batch)
        units = len(batch.lengths) // self.unit
        steps: list[Metrics] = []
        for _ in range(config.epochs):
            for chosen in np.array_split(generator.permutation(units), min(config.minibatches, units)):
                steps.append(self._step(batch, reference, chosen))
        return {name: math.fsum(step[name] for step in steps) / len(steps) for name in steps[0]}

    def _step(self, batch: Sequences, reference: Tensor, units: NDArray[np.int64]) -> Metrics:
        """Take one optimiser step. Returns: means over its items, and the gradient's norm."""
        total = self._total(batch.rows(_texts_of(units, self.unit)))
        own, weight = self.devices.deal(units)
        at_once = max(self.config.micro_batch // self.unit, 1)
        texts = [_texts_of(own[start : start + at_once], self.unit) for start in range(0, len(own), at_once)]
        parts = (self._losses(batch.rows(chosen), reference[torch.tensor(chosen)]) for chosen in texts)
        means = accumulate(self.optimizer, parts, total, self.devices, weight)
        return means | {"policy/grad_norm": self._finish_step()}

    # Storage

    def memory(self) -> dict[str, Tensor]:
        """See `LMAgent.memory`: the digest of the texts, not the texts."""
        return {} if self._digest is None else {"digest": torch.tensor(list(self._digest), dtype=torch.uint8)}

    def restore_memory(self, tensors: dict[str, Tensor]) -> None:
        """See `LMAgent.restore_memory`."""
        self._digest = bytes(tensors["digest"].tolist())


def passes(total: int, start: int, count: int, seed: int) -> NDArray[np.int64]:
    """Return places start, start + 1, ... of an endless row of shuffled passes over 0..total-1, (count,).

    Every place depends on the seed and on nothing that came before.
    """
    places = np.arange(start, start + count)
    result = np.empty(count, dtype=np.int64)
    for epoch in np.unique(places // total):
        within = places // total == epoch
        order = np.random.default_rng([seed, 6, int(epoch)]).permutation(total)
        result[within] = order[places[within] % total]
    return result


def _texts_of(units: NDArray[np.integer[Any]], size: int) -> NDArray[np.int64]:
    return np.asarray((units[:, None] * size + np.arange(size)).ravel(), dtype=np.int64)
