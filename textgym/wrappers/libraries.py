"""Wrappers for the libraries of others: infos of numbers, masks in the infos, one-hot tokens; single and vector."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from textgym.state import Observation
from textgym.task import Task
from textgym.vector_io import Infos, RowsEnv, Seeds, found
from textgym.wrappers.base import Env, Options, PassingWrapper, ShowingRows, ShowingWrapper, task_of


class _Told:
    """What a single and a vector wrapper share that change nothing but the infos: `_told` returns the new ones."""

    env: Any

    def _told(self, info: Infos) -> Infos:
        raise NotImplementedError

    def reset(self, *, seed: Seeds = None, options: Options = None) -> tuple[Any, Infos]:
        """See `TokenEnv.reset` and `TokenVectorEnv.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._told(info)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Infos]:
        """See `TokenEnv.step` and `TokenVectorEnv.step`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, self._told(info)


class _Numbers(_Told):
    def _told(self, info: Infos) -> Infos:
        kept = {
            name: self._told(value) if isinstance(value, dict) else value
            for name, value in info.items()
            # SAME_STEP mode keeps the last observations in an array of objects, which hold no text.
            if name == "final_obs" or isinstance(value, dict) or np.asarray(value).dtype.kind in "biuf"
        }
        # A mask says in which rows an array holds values; it goes with its array.
        return {name: value for name, value in kept.items() if (of := name.removeprefix("_")) in kept or of not in info}


class NoInfo(_Numbers, gym.Wrapper[Any, Any, Any, Any]):
    """Remove everything except numbers from the infos: no `prompt`, `completion` and `finish_reason`.

    For libraries that store infos beside the steps, where a text that comes with the last step only is missing
    everywhere else. `env` can be any environment.
    """


class VectorNoInfo(_Numbers, PassingWrapper):
    """`NoInfo` of a vector environment; in SAME_STEP mode `final_obs` stays."""


class ActionMaskInfo(_Told, gym.Wrapper[Any, Any, Any, Any]):
    """Add the mask of the suggested actions to every info: `action_mask`, int8 (A,), 1 for suggested ones.

    Args:
        env: an environment of TextGym; with `TopKActions` or `AllowedActions` below, A counts their actions.
    Raises: TypeError for an environment that is not TextGym's.
    """

    def __init__(self, env: Env) -> None:
        task_of(env)
        super().__init__(env)

    def _told(self, info: Infos) -> Infos:
        return {**info, "action_mask": np.asarray(self.env.get_wrapper_attr("action_masks")(), dtype=np.int8)}


class VectorActionMaskInfo(_Told, PassingWrapper):
    """`ActionMaskInfo` of a vector environment, int8 (N, A), of all rows at every step.

    In SAME_STEP mode a row that has ended shows the mask of its new episode; `final_info` has none. Around each of the
    environments of a `SyncVectorEnv` goes `ActionMaskInfo`.

    Raises: as `ActionMaskInfo` does.
    """

    def __init__(self, env: RowsEnv) -> None:
        task_of(env)
        super().__init__(env)

    def _told(self, info: Infos) -> Infos:
        masks = np.asarray(found(self.env, "action_masks")(), dtype=np.int8)
        return {**info, "action_mask": masks, "_action_mask": np.ones(self.num_envs, dtype=np.bool_)}


def _one_hot(observation: Observation, size: int) -> NDArray[np.float32]:
    """Return B texts as one-hot vectors (B, L * V), zero where there is no text."""
    ids, mask = observation["input_ids"], observation["attention_mask"]
    shown = np.zeros((*ids.shape, size), dtype=np.float32)  # (B, L, V)
    np.put_along_axis(shown, ids[..., None], mask[..., None], axis=-1)
    return shown.reshape(len(ids), -1)


def _one_hot_space(task: Task) -> spaces.Box:
    columns = task.max_prompt_tokens + task.max_new_tokens
    return spaces.Box(0, 1, (columns * task.vocabulary.size,), np.float32)


class OneHotTokens(ShowingWrapper):
    """Observe the text as a flat vector, float32 (L * V,): entry l * V + v is 1 if token v is in column l.

    Columns without text are 0. For default networks, which would take ids for quantities; it costs 4 L V bytes an
    observation, so it is for small vocabularies, `LMFeatures` for others.

    Args:
        env: one environment that shows tokens; no wrapper that reads tokens may come around this one.
    Raises: TypeError for an environment that is not TextGym's, or does not show tokens.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.observation_space = _one_hot_space(self.task)

    def _show(self, observation: Observation) -> NDArray[np.float32]:
        return _one_hot(observation, self.task.vocabulary.size)


class VectorOneHotTokens(ShowingRows):
    """`OneHotTokens` of a vector environment, float32 (N, L * V). Raises: as `OneHotTokens` does."""

    def __init__(self, env: RowsEnv) -> None:
        super().__init__(env)
        self._show_as(_one_hot_space(self.task))

    def _show(self, observation: Observation) -> NDArray[np.float32]:
        return _one_hot(observation, self.task.vocabulary.size)
