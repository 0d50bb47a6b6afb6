"""Wrappers that add a reference model's log-probabilities to the rewards, or its hidden states to the observations; and
points for tokens from its embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from textgym.checks import Bools, Floats, check_count, check_number, is_finite, shown
from textgym.lm.reference import Reference, over_legal
from textgym.state import Observation, TokenState
from textgym.task import BETA, Task, has_language_model, reference_model
from textgym.vector import refuse_together
from textgym.vector_io import Infos
from textgym.wrappers.base import (
    Actions,
    Env,
    Masks,
    Options,
    RowsEnv,
    RowsStep,
    RowsWrapper,
    ShowingRows,
    ShowingWrapper,
    Shown,
    SingleWrapper,
    Step,
    reference_of,
    task_of,
)

if TYPE_CHECKING:
    from textgym.lm.causal import CausalLM

FLOOR = -50.0  # nats


def token_embedding(task: Task, dimensions: int, seed: int = 0) -> Floats:
    """Return a point in [-1, 1]^D for every token: similar tokens are close to each other if the reference is an LM.

    Args:
        task: supplies vocabulary and reference.
        dimensions: D; with an LM at most the width of its embedding, and less than the allowed tokens.
        seed: of the random directions that replace the embedding where the reference is no LM.
    Returns: (V, D) float64.
    Raises: ValueError for D or a seed out of range.
    """
    check_count("dimensions", dimensions)
    check_count("seed", seed, 0)
    if has_language_model(task):
        from textgym.lm.causal import load_causal_lm

        weights = load_causal_lm(reference_model(task)).get_input_embeddings().get_parameter("weight")
        points = _principal(weights.detach().double().numpy(), dimensions, task.vocabulary.allowed)
    else:
        points = np.random.default_rng([seed, 3]).standard_normal((task.vocabulary.size, dimensions))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(np.clip(points / np.abs(points).max(0), -1.0, 1.0))


def _principal(rows: Floats, dimensions: int, allowed: Bools) -> Floats:
    """Return the rows on the main axes of the allowed ones."""
    most = min(rows.shape[1], int(allowed.sum()) - 1)  # n points lie in n - 1 dimensions
    if dimensions > most:
        raise ValueError(
            f"dimensions={dimensions!r}: the reference's embedding has {rows.shape[1]} for {allowed.sum()} allowed "
            f"tokens; allowed is {most} at most"
        )
    centred = rows - rows[allowed].mean(0)
    axes = np.linalg.svd(centred[allowed], full_matrices=False)[2][:dimensions]
    return np.asarray(centred @ axes.T)


class Bonus:
    """beta log pi_ref(a | s), of single environments and of rows.

    Args:
        reference: pi_ref. beta: reward units per nat, >= 0. floor: nats; what is less likely counts as this.
        allowed: (V,) bool.
    Raises: ValueError for a beta or floor out of range.
    """

    def __init__(self, reference: Reference, beta: float, floor: float, allowed: Bools) -> None:
        if not is_finite(floor) or floor >= 0:
            raise ValueError(f"floor={shown(floor)}: allowed is a finite number below 0 (nats)")
        self.reference, self.beta, self.floor = reference, check_number("beta", beta, 0, unit=BETA), floor
        self._allowed = allowed

    def of(self, observation: Observation, actions: Actions, masks: Masks) -> Floats:
        """Return the bonus (B,) of B actions in B states, reward units."""
        table = np.asarray(self.reference.log_probs(observation), dtype=np.float64)
        logs = over_legal(table, masks, self._allowed)
        taken = np.take_along_axis(logs, actions.astype(np.int64)[:, None], axis=1)[:, 0]
        return np.asarray(self.beta * np.maximum(taken, self.floor))


def _refuse_second(env: Env | RowsEnv) -> None:
    """Raise TypeError for an environment that pays for the reference already: it would discount and pay twice."""
    layer: object = env
    while layer is not None:
        if isinstance(layer, ReferenceReward | VectorReferenceReward):
            name = type(layer).__name__
            raise TypeError(f"env: {name} is around it already; allowed is one, whose beta may be any number")
        layer = vars(layer).get("env")


class ReferenceReward(SingleWrapper):
    """Pay gamma^t r_t + beta log pi_ref(a | s) instead of r_t; gamma is the task's.

    J = E[sum gamma^t r_t] - beta KL(pi || pi_ref) = E[sum of these rewards] + beta H(pi), H being the entropy of the
    whole text: an agent that maximises their sum plus beta times entropy maximises J. J discounts rewards but not the
    KL, so the discount is in what is paid here, and the agent has none of its own. The identity holds for policies that
    write no token below the floor.

    Args:
        env: one environment whose actions are tokens; this wrapper comes before those that change actions.
        beta: reward units per nat; None takes the task's.
        reference: None takes the task's.
        floor: nats; a token that the reference (almost) never writes counts as if it were this likely.
    Raises: TypeError for an environment that is not TextGym's, has this wrapper already, or whose actions are not
        tokens; ValueError for a beta or floor out of range.
    """

    pays_discounted = True

    def __init__(
        self, env: Env, beta: float | None = None, reference: Reference | None = None, floor: float = FLOOR
    ) -> None:
        super().__init__(env)
        _refuse_second(env)
        self.reference = reference_of(env, reference)
        self.beta = self.task.beta if beta is None else beta
        self._bonus = Bonus(self.reference, self.beta, floor, self.task.vocabulary.allowed)
        self._time = 0

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Shown, Infos]:
        """See `TokenEnv.reset`."""
        result = super().reset(seed=seed, options=options)
        self._time = 0
        return result

    def set_state(self, state: TokenState) -> Shown:
        """See `TokenEnv.set_state`."""
        observation = super().set_state(state)
        self._time = len(state.completion)
        return observation

    def step(self, action: int) -> Step:
        """See `TokenEnv.step`."""
        before, masks = self._observation, self._masks()
        observation, reward, terminated, truncated, info = self._step(action)
        bonus = self._bonus.of(before, np.array([action]), masks)[0]
        paid = self.task.gamma**self._time * reward + float(bonus)
        self._time += 1
        return observation, paid, terminated, truncated, info


class VectorReferenceReward(RowsWrapper):
    """`ReferenceReward` of a vector environment; rows that take no action get no reward.

    Raises: as `ReferenceReward` does; ValueError for an environment with `score_together`.
    """

    def __init__(
        self, env: RowsEnv, beta: float | None = None, reference: Reference | None = None, floor: float = FLOOR
    ) -> None:
        refuse_together(env, "VectorReferenceReward")
        super().__init__(env)
        _refuse_second(env)
        self.reference = reference_of(env, reference)
        self.beta = self.task.beta if beta is None else beta
        self._bonus = Bonus(self.reference, self.beta, floor, self.task.vocabulary.allowed)
        self._times = np.zeros(self.num_envs, dtype=np.int64)

    def step(self, actions: Actions) -> RowsStep:
        """See `TokenVectorEnv.step`."""
        before, masks, idle = self._observation, self._masks(), self._idle
        if not getattr(self.unwrapped, "copy", True):  # the step writes into these
            before = {name: array.copy() for name, array in before.items()}
        observation, rewards, terminations, truncations, infos = self._step(actions)
        # The action of a row that takes none may be anything.
        bonus = self._bonus.of(before, np.where(idle, 0, actions), masks)
        paid = self.task.gamma**self._times * rewards + np.where(idle, 0.0, bonus)
        self._times = np.where(idle | terminations | truncations, 0, self._times + 1)
        return observation, paid, terminations, truncations, infos

    def _start(self, rows: slice | Bools | list[int], states: list[TokenState] | None) -> None:
        super()._start(rows, states)
        self._times[rows] = 0 if states is None else [len(state.completion) for state in states]


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


class LMFeatures(ShowingWrapper):
    """Observe the reference LM's last hidden state at the last token, float32 (H,).

    Args:
        env: one environment that shows tokens; no wrapper that reads tokens may come around this one.
        reference: a causal LM as `make_reference` gives it; None takes that of a wrapper below, or the task's.
    Raises: TypeError for an environment that is not TextGym's, or does not show tokens; ValueError if the reference
        is no language model.
    """

    def __init__(self, env: Env, reference: Reference | None = None) -> None:
        super().__init__(env)
        self.reference = _model(env, reference)
        self.observation_space = _space(self.reference)

    def _show(self, observation: Observation) -> NDArray[np.float32]:
        return self.reference.features(observation)


class VectorLMFeatures(ShowingRows):
    """`LMFeatures` of a vector environment, float32 (N, H): one model call per step.

    In SAME_STEP mode the last observations of ended rows are read in a batch of their own.

    Raises: as `LMFeatures` does.
    """

    def __init__(self, env: RowsEnv, reference: Reference | None = None) -> None:
        super().__init__(env)
        self.reference = _model(env, reference)
        # The ends are read beside the rows that go on, whose cache must not be lost.
        self._ends = self.reference.copy()
        self._show_as(_space(self.reference))

    def _show(self, observation: Observation) -> NDArray[np.float32]:
        return self.reference.features(observation)

    def _show_ends(self, observation: Observation) -> NDArray[np.float32]:
        return self._ends.features(observation)
