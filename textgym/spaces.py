"""Spaces of tokens whose samplers take the masks of `action_masks()` as they are."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space


class TokenSpace(spaces.Discrete):
    """`Discrete(n)`; `sample(mask=)` takes bool (n,) beside Gymnasium's int8."""

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        """See `gymnasium.spaces.Discrete.sample`."""
        return super().sample(_as_int8(mask), probability)


class TokenSpaces(spaces.MultiDiscrete):
    """`MultiDiscrete([n] * N)`; `sample(mask=)` takes bool (N, n) beside Gymnasium's tuple of int8 (n,)."""

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        """See `gymnasium.spaces.MultiDiscrete.sample`."""
        return super().sample(None if mask is None else tuple(map(_as_int8, mask)), probability)


def _as_int8(mask: Any) -> Any:
    return mask.view(np.int8) if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ else mask


@batch_space.register
def _batch_tokens(space: TokenSpace, n: int = 1) -> TokenSpaces:
    counts, starts = np.full(n, space.n), np.full(n, space.start)
    return TokenSpaces(counts, dtype=space.dtype, seed=deepcopy(space.np_random), start=starts)
