"""Wrappers that show the frozen language model's hidden state in place of the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textgym.checks import Bools
from textgym.lm.reference import Reference
from textgym.state import Observation
from textgym.wrappers.base import (
    Actions,
    Env,
    RowsEnv,
    RowsStep,
    RowsWrapper,
    SingleWrapper,
    Step,
    check_below,
    reference_of,
    task_of,
)

if TYPE_CHECKING:
    from textgym.lm.causal import CausalLM


def _model(env: Env | RowsEnv, reference: Reference | None) -> CausalLM:
    """Return a reference with hidden states. Raises: ValueError for one that is no LM."""
    model: Any = reference_of(env, reference)
    if not hasattr(model, "features"):
        raise ValueError(
            f"reference={str(model)!r} of task {task_of(env).name!r} is no language model: it has no hidden states"
        )
    return cast("CausalLM", model)


def _space(model: CausalLM) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (model.hidden_size,), np.float32)


class LMFeatures(SingleWrapper):
    """Show the reference LM's last hidden state at the last token, float32 (H,).

    Args:
        env: one environment that shows tokens; no wrapper that reads tokens may come around this one.
        reference: a causal LM as `make_reference` gives it; None takes that of a wrapper below, or the task's.
    Raises: ValueError if the reference is no language model.
    """

    def __init__(self, env: Env, reference: Reference | None = None) -> None:
        check_below(env, "LMFeatures", actions=False)
        super().__init__(env)
        self.reference = _model(env, reference)
        self.observation_space = _space(self.reference)

    def step(self, action: int) -> Step:
        """See `TokenEnv.step`."""
        return self._step(action)

    def _see(self, observation: Observation) -> NDArray[np.float32]:
        super()._see(observation)
        return np.asarray(self.reference.features(self._observation)[0])


class VectorLMFeatures(RowsWrapper):
    """`LMFeatures` of a vector environment, float32 (N, H): one batch through the model a step.

    In SAME_STEP mode the last observations of ended rows are read in a batch of their own.
    """

    def __init__(self, env: RowsEnv, reference: Reference | None = None) -> None:
        check_below(env, "VectorLMFeatures", actions=False)
        super().__init__(env)
        self.reference = _model(env, reference)
        # The ends are read beside the rows that go on, whose cache must not be lost.
        self._ends = self.reference.copy()
        self.single_observation_space = _space(self.reference)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def step(self, actions: Actions) -> RowsStep:
        """See `TokenVectorEnv.step`."""
        shown, rewards, terminations, truncations, infos = self._step(actions)
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and "final_obs" in infos:
            infos = {**infos, "final_obs": self._final(infos["final_obs"], infos["_final_obs"])}
        return shown, rewards, terminations, truncations, infos

    def _see(self, observation: Observation) -> NDArray[np.float32]:
        super()._see(observation)
        return self.reference.features(observation)

    def _final(self, observations: NDArray[np.object_], ended: Bools) -> NDArray[np.object_]:
        rows = np.flatnonzero(ended)
        batch = {name: np.stack([observations[row][name] for row in rows]) for name in observations[rows[0]]}
        shown = np.empty(len(ended), dtype=object)
        for row, features in zip(rows, self._ends.features(batch), strict=True):
            shown[row] = features
        return shown
