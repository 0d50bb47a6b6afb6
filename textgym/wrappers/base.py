"""The base of the wrappers: they know the tokens that the environment below them shows."""

from __future__ import annotations

from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textgym.checks import Bools, Floats, shown
from textgym.episodes import action_space, observation_space
from textgym.lm.reference import Reference
from textgym.state import Observation, TokenState
from textgym.task import Task, make_reference
from textgym.vector_io import Infos, Seeds, call_rows, found
from textgym.vector_io import RowsEnv as RowsEnv
from textgym.vector_io import Shown as Shown

Env: TypeAlias = gym.Env[Any, Any]
"""A `TokenEnv`, wrapped or not."""
Options: TypeAlias = dict[str, Any] | None
Actions: TypeAlias = NDArray[Any]
Step: TypeAlias = tuple[Shown, float, bool, bool, Infos]
RowsStep: TypeAlias = tuple[Shown, Floats, Bools, Bools, Infos]
Masks: TypeAlias = Bools | None


def task_of(env: Env | RowsEnv) -> Task:
    """Return the task of an environment of TextGym. Raises: TypeError for another one."""
    task = getattr(env.unwrapped, "task", None)
    if not isinstance(task, Task):
        raise TypeError(f"env={env!r:.80}: has no task; allowed are environments of TextGym")
    return task


def _check_below(env: Env | RowsEnv, wrapper: str, takes_tokens: bool) -> None:
    """Raise TypeError unless the environment below shows tokens, and takes them as actions if the wrapper does."""
    task = getattr(env.unwrapped, "task", None)
    shown = getattr(env, "single_observation_space", None) or env.observation_space
    taken = getattr(env, "single_action_space", None) or env.action_space
    if task is None or shown not in (observation_space(task), observation_space(task, segments=True)):
        raise TypeError(
            f"{wrapper}: the environment below it does not show tokens; "
            "LMFeatures comes last, around all other wrappers"
        )
    if takes_tokens and taken != action_space(task):
        raise TypeError(
            f"{wrapper}: the actions of the environment below it are no tokens; "
            "the order is ReferenceReward, then TopKActions or EmbeddingActions, then LMFeatures"
        )


def reference_of(env: Env | RowsEnv, reference: Reference | None) -> Reference:
    """Return the given reference, that of a wrapper below (so that one forward serves both), or the task's.

    Raises: TypeError for a reference without log-probabilities, such as the name of one.
    """
    if not isinstance(reference, Reference | None):
        raise TypeError(
            f"reference={shown(reference)}: allowed are None, the task's, and an object with log_probs(observation), "
            "as textgym.task.make_reference(task) gives it"
        )
    layer: object = env
    while reference is None and layer is not None:
        reference = vars(layer).get("reference")
        layer = vars(layer).get("env")
    return make_reference(task_of(env)) if reference is None else reference


class SingleWrapper(gym.Wrapper[Any, Any, Observation, Any]):
    """A wrapper of one environment that knows the present observation, as a batch of one.

    Raises: TypeError for an environment below that does not show tokens, or does not take them where `_takes_tokens`.
    """

    _takes_tokens = True

    def __init__(self, env: Env) -> None:
        _check_below(env, type(self).__name__, self._takes_tokens)
        super().__init__(env)
        self.task = task_of(env)
        self._observation: Observation = {}

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Shown, Infos]:
        """See `TokenEnv.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._see(observation), info

    def set_state(self, state: TokenState) -> Shown:
        """See `TokenEnv.set_state`."""
        return self._see(self.env.get_wrapper_attr("set_state")(state))

    def _step(self, action: int) -> Step:
        """Step the environment below, and keep what it shows."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._see(observation), float(reward), terminated, truncated, info

    def _see(self, observation: Observation) -> Shown:
        """Keep what the environment below shows. Return what this wrapper shows."""
        self._observation = {name: array[None] for name, array in observation.items()}
        return observation

    def _masks(self) -> Masks:
        """Return the task's grammar in this state, bool (1, V); None where every allowed token always is."""
        if self.task.mask is None:
            return None
        return np.asarray(self.env.get_wrapper_attr("action_masks")())[None]


class PassingWrapper(VectorWrapper):
    """A vector wrapper that has the attributes of what it wraps, as `gymnasium.Wrapper.get_wrapper_attr` finds them."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def call(self, name: str, *args: object, **kwargs: object) -> tuple[Any, ...]:
        """See `TokenVectorEnv.call`."""
        return call_rows(self, name, *args, **kwargs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """See `TokenVectorEnv.get_attr`."""
        return call_rows(self, name)


class RowsWrapper(PassingWrapper):
    """A wrapper of a vector environment that knows the present observations and which rows take no action.

    Raises: as `SingleWrapper`.
    """

    _takes_tokens = True

    def __init__(self, env: RowsEnv) -> None:
        _check_below(env, type(self).__name__, self._takes_tokens)
        super().__init__(env)
        self.task = task_of(env)
        self._observation: Observation = {}
        self._idle = np.zeros(self.num_envs, dtype=np.bool_)

    def reset(self, *, seed: Seeds = None, options: Options = None) -> tuple[Shown, Infos]:
        """See `TokenVectorEnv.reset`."""
        observation, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        mask = None if options is None else options.get("reset_mask")
        self._start(slice(None) if mask is None else mask, None)
        return self._see(observation), infos

    def set_states(self, states: list[TokenState], rows: list[int] | None = None) -> Shown:
        """See `TokenVectorEnv.set_states`."""
        observation = found(self.env, "set_states")(states, rows)
        self._start(list(range(self.num_envs) if rows is None else rows), states)
        return self._see(observation)

    def _start(self, rows: slice | Bools | list[int], states: list[TokenState] | None) -> None:
        """Note that rows go on from these states; None: from the start of an episode."""
        self._idle[rows] = states is not None and [state.finish_reason is not None for state in states]

    def _see(self, observation: Observation) -> Shown:
        """Keep what the environment below shows. Return what this wrapper shows."""
        self._observation = observation
        return observation

    def _step(self, actions: Actions) -> RowsStep:
        """Step the environment below, and keep what it shows."""
        observation, rewards, terminations, truncations, infos = self.env.step(actions)
        if self.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
            self._idle = np.asarray(terminations | truncations)
        return self._see(observation), rewards, terminations, truncations, infos

    def _masks(self) -> Masks:
        """Return the task's grammar in every row, bool (N, V); None where every allowed token always is."""
        return None if self.task.mask is None else np.asarray(found(self.env, "action_masks")())


class ShowingWrapper(SingleWrapper):
    """A wrapper of one environment that shows an array instead of tokens: `_show` makes it of a batch of them."""

    _takes_tokens = False

    def step(self, action: int) -> Step:
        """See `TokenEnv.step`."""
        return self._step(action)

    def _see(self, observation: Observation) -> Shown:
        super()._see(observation)
        return np.asarray(self._show(self._observation)[0])

    def _show(self, observation: Observation) -> NDArray[np.float32]:
        raise NotImplementedError


class ShowingRows(RowsWrapper):
    """`ShowingWrapper` of a vector environment; `_show_ends` is for the last observations of SAME_STEP mode."""

    _takes_tokens = False

    def _show_as(self, space: spaces.Box) -> None:
        self.single_observation_space = space
        self.observation_space = batch_space(space, self.num_envs)

    def step(self, actions: Actions) -> RowsStep:
        """See `TokenVectorEnv.step`."""
        shown, rewards, terminations, truncations, infos = self._step(actions)
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and "final_obs" in infos:
            infos = {**infos, "final_obs": self._final(infos["final_obs"], infos["_final_obs"])}
        return shown, rewards, terminations, truncations, infos

    def _see(self, observation: Observation) -> Shown:
        super()._see(observation)
        return self._show(observation)

    def _final(self, observations: NDArray[np.object_], ended: Bools) -> NDArray[np.object_]:
        rows = np.flatnonzero(ended)
        batch = {name: np.stack([observations[row][name] for row in rows]) for name in observations[rows[0]]}
        shown = np.empty(len(ended), dtype=object)
        for row, array in zip(rows, self._show_ends(batch), strict=True):
            shown[row] = array
        return shown

    def _show(self, observation: Observation) -> NDArray[np.float32]:
        raise NotImplementedError

    def _show_ends(self, observation: Observation) -> NDArray[np.float32]:
        return self._show(observation)
