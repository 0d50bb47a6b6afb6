"""The infos of the vector environment, as Gymnasium's SyncVectorEnv has them: an array and a mask per key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from textgym.episodes import Ending
from textgym.state import Observation, Prompt, TokenStore

Infos = dict[str, Any]


class _Rows:
    """Makes the arrays (N,) that hold values in some rows only, and the mask that says in which."""

    def __init__(self, num_envs: int, rows: Sequence[int]) -> None:
        self.num_envs, self.rows = num_envs, rows
        self.at = np.array(rows)
        self.mask = np.zeros(num_envs, dtype=np.bool_)
        self.mask[self.at] = True

    def objects(self, values: Sequence[Any]) -> npt.NDArray[Any]:
        array = np.empty(self.num_envs, dtype=object)  # numpy fills it with None
        for row, value in zip(self.rows, values, strict=True):
            array[row] = value
        return array

    def numbers(self, values: Any, dtype: type) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.zeros(self.num_envs, dtype=dtype)
        array[self.at] = values
        return array

    def with_masks(self, arrays: Infos) -> Infos:
        for key in tuple(arrays):
            arrays["_" + key] = self.mask.copy()
        return arrays


def reset_infos(num_envs: int, rows: list[int], prompts: Sequence[Prompt]) -> Infos:
    """What is said of the episodes that started in `rows`."""
    of = _Rows(num_envs, rows)
    indices = [-1 if prompt.index is None else prompt.index for prompt in prompts]
    texts = [prompt.text for prompt in prompts]
    return of.with_masks({"prompt": of.objects(texts), "prompt_index": of.numbers(indices, int)})


def final_infos(num_envs: int, ending: Ending, store: TokenStore) -> Infos:
    """What is said of the episodes that ended."""
    of, judgement = _Rows(num_envs, ending.rows), ending.judgement
    terms = {name: of.numbers(values, float) for name, values in judgement.terms.items()}
    arrays: Infos = {
        "completion": of.objects(judgement.texts),
        "finish_reason": of.objects([store.finish_reason(row) for row in ending.rows]),
        "reward_terms": of.with_masks(terms),
    }
    if ending.gold is not None:
        arrays["gold"] = of.numbers(ending.gold, float)
    return of.with_masks(arrays)


def same_step_infos(
    num_envs: int, rows: list[int], observations: Sequence[Observation], final: Infos
) -> Infos:
    """The ends of episodes whose rows have been reset in the same step."""
    of = _Rows(num_envs, rows)
    return of.with_masks({"final_obs": of.objects(observations), "final_info": final})
