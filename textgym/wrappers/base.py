"""What the wrappers have in common: they read the tokens of the environment below them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorWrapper
from numpy.typing import NDArray

from textgym.episodes import action_space, observation_space
from textgym.lm.reference import Reference
from textgym.state import Observation, TokenState
from textgym.task import make_reference

Masks = NDArray[np.bool_] | None


def check_below(env: Any, wrapper: str, actions: bool = True) -> None:
    """Raises TypeError unless the environment below shows tokens, and takes them as actions if `actions`."""
    task = getattr(env.unwrapped, "task", None)
    shown = getattr(env, "single_observation_space", None) or env.observation_space
    taken = getattr(env, "single_action_space", None) or env.action_space
    if task is None or shown not in (observation_space(task), observation_space(task, segments=True)):
        raise TypeError(
            f"{wrapper}: the environment below it does not show tokens; "
            "LMFeatures comes last, around all other wrappers"
        )
    if actions and taken != action_space(task):
        raise TypeError(
            f"{wrapper}: the actions of the environment below it are no tokens; "
            "the order is ReferenceReward, then TopKActions or EmbeddingActions, then LMFeatures"
        )


def reference_of(env: Any, given: Reference | None) -> Reference:
    """The given reference, or that of a wrapper below (so that one forward serves both), or the task's."""
    if given is not None:
        return given
    task, layer = env.unwrapped.task, env
    while layer is not None:
        if "reference" in vars(layer):
            below: Reference = layer.reference
            return below
        layer = vars(layer).get("env")
    return make_reference(task)


class SingleWrapper(gym.Wrapper[Any, Any, Observation, Any]):
    """A wrapper of one environment that knows the present observation, as a batch of one."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._observation: Observation = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """See `TokenEnv.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._see(observation), info

    def set_state(self, state: TokenState) -> Any:
        """See `TokenEnv.set_state`."""
        return self._see(self.env.get_wrapper_attr("set_state")(state))

    def _see(self, observation: Observation) -> Observation:
        self._observation = {name: array[None] for name, array in observation.items()}
        return observation

    def _masks(self) -> Masks:
        """The task's grammar in this state, bool (1, V); None where every allowed token always is."""
        if self.env.unwrapped.task.mask is None:  # type: ignore[attr-defined]
            return None
        return np.asarray(self.env.get_wrapper_attr("action_masks")())[None]


class RowsWrapper(VectorWrapper):
    """A wrapper of a vector environment that knows the present observations and which rows take no action."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._observation: Observation = {}
        self._idle = np.zeros(self.num_envs, dtype=np.bool_)

    def __getattr__(self, name: str) -> Any:
        # As gymnasium.Wrapper.get_wrapper_attr does for single environments.
        if name.startswith("_") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """See `TokenVectorEnv.reset`."""
        observation, infos = self.env.reset(seed=seed, options=options)
        mask = None if options is None else options.get("reset_mask")
        self._idle[slice(None) if mask is None else mask] = False
        return self._see(observation), infos

    def set_states(self, states: Any, rows: Any = None) -> Any:
        """See `TokenVectorEnv.set_states`."""
        observation = self.env.set_states(states, rows)  # type: ignore[attr-defined]
        chosen = range(self.num_envs) if rows is None else rows
        self._idle[list(chosen)] = [state.finish_reason is not None for state in states]
        return self._see(observation)

    def _see(self, observation: Observation) -> Observation:
        self._observation = observation
        return observation

    def _stepped(self, actions: Any) -> tuple[Any, ...]:
        """Steps the environment below, and keeps what it shows."""
        observation, rewards, terminations, truncations, infos = self.env.step(actions)
        if self.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
            self._idle = np.asarray(terminations | truncations)
        return self._see(observation), rewards, terminations, truncations, infos

    def _masks(self) -> Masks:
        """The task's grammar in every row, bool (N, V); None where every allowed token always is."""
        return None if self.unwrapped.task.mask is None else np.asarray(self.env.action_masks())  # type: ignore[attr-defined]
