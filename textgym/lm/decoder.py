"""Incremental decoding behind plain observations: only what is new in an observation is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym.lm.backbone import Backbone

Observation = dict[str, NDArray[Any]]

_KEEP_SHARE = 0.75  # The cache is compacted when fewer of its rows than this are still growing.


class Decoder:
    """Next-token logits for a batch of observations, with a key-value cache that follows the batch.

    A row that is one token longer than when it was last seen is extended, an unchanged row costs nothing, anything
    else (a new prompt, another batch size) is read afresh. So calling it after every `step` costs what
    generating costs, and the caller passes nothing but observations.
    """

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        self._backbone = backbone
        self._device = device
        self._ids: NDArray[np.int64] = np.zeros((0, 0), dtype=np.int64)
        self._lengths: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._cache: Any = None
        self._rows: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # batch row of each cache row
        self._extendable: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self._slots = 0
        self._logits = torch.zeros(0)
        self._hidden = torch.zeros(0)

    def reset(self) -> None:
        """Forgets every row; needed after the model's parameters change."""
        self._lengths = np.zeros(0, dtype=np.int64)
        self._cache = None

    @torch.inference_mode()
    def advance(
        self, observation: Observation, active: NDArray[np.bool_] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, V) and last hidden states (B, H) after each row's last token; the caller must not write to them.

        Args:
            observation: `input_ids` (B, L) int64 and `attention_mask` (B, L), right-padded.
            active: (B,) bool; rows that are False are not computed (their outputs are stale). None means all.
        """
        ids = np.asarray(observation["input_ids"])
        lengths = np.count_nonzero(observation["attention_mask"], axis=1)
        wanted = np.ones(len(ids), dtype=np.bool_) if active is None else active
        if not self._continues(ids, lengths, wanted):
            self._open(ids, lengths)
            return self._logits, self._hidden
        grown = wanted & (lengths == self._lengths + 1)
        if grown.any():
            self._extend(ids, lengths, grown)
        return self._logits, self._hidden

    def _continues(
        self, ids: NDArray[np.int64], lengths: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> bool:
        if self._cache is None or ids.shape != self._ids.shape:
            return False
        growth = np.where(wanted, lengths - self._lengths, 0)
        grown = growth == 1
        if (growth[~grown] != 0).any() or (grown & ~self._extendable).any() or self._slots < grown.any():
            return False
        width = int(self._lengths.max())
        seen = (np.arange(width) < self._lengths[:, None]) & wanted[:, None]
        return not ((ids[:, :width] != self._ids[:, :width]) & seen).any()

    def _open(self, ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        width = int(lengths.max())
        self._slots = ids.shape[1] - width
        self._cache, self._logits, self._hidden = self._backbone.open(
            self._tensor(ids[:, :width]), self._tensor(lengths), self._slots
        )
        self._rows = np.arange(len(ids))
        self._extendable = np.ones(len(ids), dtype=np.bool_)
        self._ids, self._lengths = ids.copy(), lengths

    def _extend(self, ids: NDArray[np.int64], lengths: NDArray[np.int64], grown: NDArray[np.bool_]) -> None:
        alive = grown[self._rows]
        if alive.mean() < _KEEP_SHARE:
            keep = np.flatnonzero(alive)
            self._cache = self._backbone.select(self._cache, self._tensor(keep))
            self._rows, alive = self._rows[keep], alive[keep]
        # Rows that stay in the cache without growing read their last token again: they cannot be extended later.
        self._extendable &= grown
        last = lengths[self._rows] - 1
        tokens = ids[self._rows, last]
        logits, hidden = self._backbone.extend(self._cache, self._tensor(tokens))
        self._slots -= 1
        if len(self._rows) == len(ids) and alive.all():
            self._logits, self._hidden = logits, hidden
        else:
            rows, fresh = self._tensor(self._rows[alive]), self._tensor(np.flatnonzero(alive))
            self._logits = self._logits.index_copy(0, rows, logits[fresh])
            self._hidden = self._hidden.index_copy(0, rows, hidden[fresh])
        self._ids[self._rows[alive], last[alive]] = tokens[alive]
        self._lengths = np.where(grown, lengths, self._lengths)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.tensor(array, device=self._device)
