"""Follow a batch of rows that grow, with a key-value cache."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym.checks import Bools, Ints, token_counts
from textgym.lm.backbone import Backbone
from textgym.lm.reference import Observation

_KEEP_SHARE = 0.75  # The cache is compacted when fewer of its rows than this still get tokens.


class Decoder:
    """The features of a batch of observations, with a key-value cache that follows the batch.

    A row that is longer than when it was last seen is extended, by several tokens where the backbone can; an unchanged
    row costs nothing, anything else (a new prompt, another batch size) is read afresh, equal rows once if at most half
    are different. So calling it after every `step` costs as much as generating, and the caller passes nothing but
    observations.
    """

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        self._backbone = backbone
        self._device = device
        self._ids: Ints = np.zeros((0, 0), dtype=np.int64)
        self._lengths: Ints = np.zeros(0, dtype=np.int64)
        self._cache: object | None = None
        self._rows: Ints = np.zeros(0, dtype=np.int64)  # batch row of each cache row
        self._extendable: Bools = np.zeros(0, dtype=np.bool_)
        self._even = True  # whether rows have got equally many tokens: then one that pauses finds places up to the end
        self._room: Ints = np.zeros(0, dtype=np.int64)  # tokens that each batch row may still get
        self._features = torch.zeros(0)

    def reset(self) -> None:
        """Forget every row; needed after the model's parameters change."""
        self._lengths = np.zeros(0, dtype=np.int64)
        self._cache = None

    @torch.inference_mode()
    def advance(self, observation: Observation, active: Bools | None = None) -> Tensor:
        """Return the features (B, F) after each row's last token, not to be written to.

        Args:
            observation: `input_ids` (B, L) int64 and `attention_mask` (B, L), right-padded.
            active: (B,) bool; rows that are False are not computed (their features are stale). None means all.
        """
        ids = np.asarray(observation["input_ids"], dtype=np.int64)
        lengths = token_counts(observation)
        wanted = np.ones(len(ids), dtype=np.bool_) if active is None else active
        if not self._continues(ids, lengths, wanted):
            self._open(ids, lengths)
            return self._features
        growth = np.where(wanted, lengths - self._lengths, 0)
        if growth.any():
            self._extend(ids, growth)
        return self._features

    def _continues(self, ids: Ints, lengths: Ints, wanted: Bools) -> bool:
        if self._cache is None or ids.shape != self._ids.shape:
            return False
        growth = np.where(wanted, lengths - self._lengths, 0)
        if (growth < 0).any() or (growth > np.where(self._extendable, self._room, 0)).any():
            return False
        if growth.max() > 1 and not self._backbone.takes(self._cache, int(growth.max())):
            return False
        width = int(self._lengths.max())
        seen = (np.arange(width) < self._lengths[:, None]) & wanted[:, None]
        return not ((ids[:, :width] != self._ids[:, :width]) & seen).any()

    def _open(self, ids: Ints, lengths: Ints) -> None:
        width = int(lengths.max())
        slots, self._cache = ids.shape[1] - width, None  # the old cache goes before there is a new one
        first, same_as = _distinct(ids, lengths)
        alike = len(first) <= len(ids) // 2  # else a copy of the cache costs more memory than it saves time
        read = first if alike else np.arange(len(ids))
        given = self._tensor(ids[read, :width]), self._tensor(lengths[read])
        self._cache, self._features = self._backbone.open(*given, slots)
        if alike:
            rows = self._tensor(same_as)
            self._cache, self._features = self._backbone.select(self._cache, rows), self._features[rows]
        self._even, self._room = True, np.full(len(ids), slots)
        self._rows = np.arange(len(ids))
        self._extendable = np.ones(len(ids), dtype=np.bool_)
        self._ids, self._lengths = ids.copy(), lengths

    def _extend(self, ids: Ints, growth: Ints) -> None:
        alive = growth[self._rows] > 0
        if alive.mean() < (_KEEP_SHARE if self._even or growth.max() > 1 else 1.0):
            keep = np.flatnonzero(alive)
            self._cache = self._backbone.select(self._cache, self._tensor(keep))
            self._rows, alive = self._rows[keep], alive[keep]
        counts, before = growth[self._rows], self._lengths[self._rows]
        if growth.max() > 1:
            columns = before[:, None] + np.arange(growth.max())
            tokens = ids[self._rows[:, None], columns.clip(max=ids.shape[1] - 1)]
            features = self._backbone.extend(self._cache, self._tensor(tokens), self._tensor(counts))
            self._extendable &= np.isin(np.arange(len(ids)), self._rows)
            self._even = False
        else:
            # Rows that stay in the cache without a new token read their last one again: they cannot be extended later.
            tokens = ids[self._rows, before + counts - 1]
            features = self._backbone.extend(self._cache, self._tensor(tokens))
            self._extendable &= growth > 0
        if len(self._rows) == len(ids) and alive.all():
            self._features = features
        else:
            rows, fresh = self._tensor(self._rows[alive]), self._tensor(np.flatnonzero(alive))
            self._features = self._features.index_copy(0, rows, features[fresh])
        self._ids[growth > 0] = ids[growth > 0]
        self._lengths, self._room = self._lengths + growth, self._room - growth

    def _tensor(self, array: NDArray[np.integer]) -> Tensor:
        return torch.tensor(array, device=self._device)


def _distinct(ids: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """Return where each of D different texts stands first (D,), and which of them every row is (B,)."""
    found: dict[bytes, int] = {}
    texts = (row[:length].tobytes() for row, length in zip(ids, lengths.tolist(), strict=True))
    same_as = np.array([found.setdefault(text, len(found)) for text in texts])
    return np.unique(same_as, return_index=True)[1], same_as
