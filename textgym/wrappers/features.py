"""Wrappers that show the frozen language model's hidden state in place of the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textgym.lm.reference import Reference
from textgym.state import Observation, TokenState
from textgym.wrappers.base import RowsWrapper, SingleWrapper, check_below, reference_of


def _model(env: Any, reference: Reference | None) -> Any:
    """A reference with hidden states. Raises: ValueError for one that is no LM."""
    model = reference_of(env, reference)
    if not hasattr(model, "features"):
        raise ValueError(
            f"reference={str(model)!r} of task {env.unwrapped.task.name!r} is no language model: "
            "it has no hidden states"
        )
    return model


def _space(model: Any) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (model.hidden_size,), np.float32)


class LMFeatures(SingleWrapper):
    """The observation is the reference LM's last hidden state at the last token, float32 (H,).

    Args:
        env: one environment that shows tokens; no wrapper that reads tokens may come around this one.
        reference: a causal LM as `make_reference` gives it; None takes that of a wrapper below, or the task's.
    Raises: ValueError if the reference is no language model.
    """

    def __init__(self, env: Any, reference: Reference | None = None) -> None:
        check_below(env, "LMFeatures", actions=False)
        super().__init__(env)
        self.reference = _model(env, reference)
        self.observation_space = _space(self.reference)

    def step(self, action: Any) -> Any:
        """See `TokenEnv.step`."""
        observation, *rest = self.env.step(action)
        return (self._show(observation), *rest)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """See `TokenEnv.reset`."""
        observation, info = super().reset(seed=seed, options=options)
        return self._show(observation), info

    def set_state(self, state: TokenState) -> Any:
        """See `TokenEnv.set_state`."""
        return self._show(super().set_state(state))

    def _show(self, observation: Observation) -> NDArray[np.float32]:
        self._see(observation)
        shown: NDArray[np.float32] = self.reference.features(self._observation)[0]
        return shown


class VectorLMFeatures(RowsWrapper):
    """`LMFeatures` of a vector environment, float32 (N, H): one batch through the model a step.

    In SAME_STEP mode the last observations of ended rows are read in a batch of their own.
    """

    def __init__(self, env: Any, reference: Reference | None = None) -> None:
        check_below(env, "VectorLMFeatures", actions=False)
        super().__init__(env)
        self.reference = _model(env, reference)
        # The ends are read beside the rows that go on, whose cache must not be lost.
        self._ends = self.reference.copy()
        self.single_observation_space = _space(self.reference)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def step(self, actions: Any) -> Any:
        """See `TokenVectorEnv.step`."""
        observation, rewards, terminations, truncations, infos = self._stepped(actions)
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and "final_obs" in infos:
            infos = {**infos, "final_obs": self._final(infos["final_obs"], infos["_final_obs"])}
        return self.reference.features(observation), rewards, terminations, truncations, infos

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """See `TokenVectorEnv.reset`."""
        observation, infos = super().reset(seed=seed, options=options)
        return self.reference.features(observation), infos

    def set_states(self, states: Any, rows: Any = None) -> Any:
        """See `TokenVectorEnv.set_states`."""
        return self.reference.features(super().set_states(states, rows))

    def _final(self, observations: NDArray[Any], ended: NDArray[np.bool_]) -> NDArray[Any]:
        rows = np.flatnonzero(ended)
        batch = {name: np.stack([observations[row][name] for row in rows]) for name in observations[rows[0]]}
        shown = np.empty(len(ended), dtype=object)
        for row, features in zip(rows, self._ends.features(batch), strict=True):
            shown[row] = features
        return shown
