"""Whole batches of what several ranks have played, or one in several rounds.

Small arrays are on every rank, large ones where they were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from textgym.checks import Floats
from textgym_agents.lm.devices import Devices
from textgym_agents.lm.processors import PackedMasks
from textgym_agents.lm.rollout import Rollout

_ARRAYS = ("columns", "steps", "rewards", "lengths", "bootstrap", "truncated", "stopped")
_TENSORS = ("actions", "log_probs", "values")


class OwnStates:
    """Entries of the states that this rank has played, asked for by their places among the N of the whole batch.

    It stands for a tensor, or masks, of which nothing is asked but the entries of some states.

    Args:
        part: (n, ...) the entries. first: the place of the first of these states; the others follow it.
    """

    def __init__(self, part: Tensor | PackedMasks, first: int) -> None:
        self._part, self._first = part, first

    def __getitem__(self, states: Tensor) -> Tensor:
        return self._part[states - self._first]


def gathered(devices: Devices, rollout: Rollout, scored: Tensor, kl: Floats) -> tuple[Rollout, Tensor, Floats]:
    """Return the rollout, what `score_reference` gave, and the KL (N,) of the whole batch, from those of this rank.

    What has an entry for every token of the vocabulary, or a hidden state, of every state stays where it is: `scored`
    where it is (N, F), and the masks. They can be asked for this rank's own states alone.
    """
    if devices.world == 1:
        return rollout, scored, kl
    whole = whole_rollout(devices, rollout)
    first = int(np.count_nonzero(whole.rows < devices.rank * len(rollout.lengths)))
    own = {
        name: OwnStates(getattr(whole, name), first) for name in ("masks", "kept") if getattr(whole, name) is not None
    }
    whole = replace(whole, **cast("dict[str, Any]", own))
    everywhere = devices.gather(scored) if scored.dim() == 1 else cast("Tensor", OwnStates(scored, first))
    return whole, everywhere, np.asarray(devices.gather_array(kl), dtype=np.float64)


def whole_rollout(devices: Devices, rollout: Rollout) -> Rollout:
    """Return the rollout of the whole batch, without features; its masks are those of this rank's states."""
    if devices.world == 1:
        return rollout
    width = int(max(devices.gather_array(np.array([rollout.input_ids.shape[1]]))))
    ids = rollout.input_ids.new_zeros((len(rollout.lengths), width))
    ids[:, : rollout.input_ids.shape[1]] = rollout.input_ids
    arrays: dict[str, Any] = {name: devices.gather_array(getattr(rollout, name)) for name in _ARRAYS}
    tensors: dict[str, Any] = {name: devices.gather(getattr(rollout, name)) for name in _TENSORS}
    behind = rollout.bootstrap_kl
    return replace(
        rollout,
        input_ids=devices.gather(ids),
        rows=np.repeat(np.arange(len(arrays["lengths"])), arrays["lengths"].astype(np.int64)),
        features=None,
        bootstrap_kl=None if behind is None else np.asarray(devices.gather_array(behind), dtype=np.float64),
        **arrays,
        **tensors,
    )


def joined(parts: Sequence[Rollout]) -> Rollout:
    """Return the rows of several rollouts as those of one, in their order."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.input_ids.shape[1] for part in parts)
    ids = [torch.nn.functional.pad(part.input_ids, (0, width - part.input_ids.shape[1])) for part in parts]
    firsts = np.cumsum([0, *(len(part.lengths) for part in parts)])
    rows = np.concatenate([part.rows + first for part, first in zip(parts, firsts, strict=False)])
    found: dict[str, Any] = {"input_ids": torch.cat(ids), "rows": rows}
    for name in (each.name for each in fields(Rollout) if each.name not in (*found, "rounds")):
        pieces = [getattr(part, name) for part in parts]
        if isinstance(pieces[0], Tensor):
            found[name] = torch.cat(pieces)
        elif isinstance(pieces[0], PackedMasks):
            found[name] = PackedMasks.join(pieces)
        elif pieces[0] is not None:
            found[name] = np.concatenate(pieces)
    return replace(parts[0], **found, rounds=len(parts))
