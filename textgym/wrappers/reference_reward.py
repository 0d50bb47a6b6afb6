"""Wrappers that pay gamma^t r + beta log pi_ref(a | s): the part of J that no policy is needed for."""

from __future__ import annotations

import numpy as np

from textgym.checks import Bools, Floats
from textgym.lm.reference import Reference, restricted
from textgym.state import Observation, TokenState
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
    Shown,
    SingleWrapper,
    Step,
    check_below,
    reference_of,
)

FLOOR = -50.0  # nats


class Bonus:
    """beta log pi_ref(a | s), of single environments and of rows.

    Args:
        reference: pi_ref. beta: reward units per nat, >= 0. floor: nats; what is less likely counts as this.
    Raises: ValueError for a beta or floor out of range.
    """

    def __init__(self, reference: Reference, beta: float, floor: float) -> None:
        if not 0 <= beta < float("inf"):
            raise ValueError(f"beta={beta!r}: allowed is a finite number from 0 on (reward units per nat)")
        if not -float("inf") < floor < 0:
            raise ValueError(f"floor={floor!r}: allowed is a finite number below 0 (nats)")
        self.reference, self.beta, self.floor = reference, beta, floor

    def of(self, observation: Observation, actions: Actions, masks: Masks) -> Floats:
        """Return the bonus (B,) of B actions in B states, reward units."""
        logs = restricted(np.asarray(self.reference.log_probs(observation), dtype=np.float64), masks)
        taken = np.take_along_axis(logs, actions.astype(np.int64)[:, None], axis=1)[:, 0]
        return np.asarray(self.beta * np.maximum(taken, self.floor))


class ReferenceReward(SingleWrapper):
    """Pay gamma^t r_t + beta log pi_ref(a | s) where the environment pays r_t; gamma is the task's.

    J = E[sum gamma^t r_t] - beta KL(pi || pi_ref) = E[sum of these rewards] + beta H(pi), H being the entropy of the
    whole text: an agent that maximises their sum plus beta times entropy maximises J. J discounts rewards but not the
    KL, so the discount is in what is paid here, and the agent has none of its own. The identity holds for policies that
    write no token below the floor.

    Args:
        env: one environment whose actions are tokens; this wrapper comes before those that change actions.
        beta: reward units per nat; None takes the task's.
        reference: None takes the task's.
        floor: nats; a token that the reference (almost) never writes counts as if it were this likely.
    Raises: ValueError for a beta or floor out of range.
    """

    def __init__(
        self, env: Env, beta: float | None = None, reference: Reference | None = None, floor: float = FLOOR
    ) -> None:
        check_below(env, "ReferenceReward")
        super().__init__(env)
        self.reference = reference_of(env, reference)
        self.beta = self.task.beta if beta is None else beta
        self._bonus = Bonus(self.reference, self.beta, floor)
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
    """`ReferenceReward` of a vector environment; rows that take no action get none."""

    def __init__(
        self, env: RowsEnv, beta: float | None = None, reference: Reference | None = None, floor: float = FLOOR
    ) -> None:
        check_below(env, "VectorReferenceReward")
        refuse_together(env, "VectorReferenceReward")
        super().__init__(env)
        self.reference = reference_of(env, reference)
        self.beta = self.task.beta if beta is None else beta
        self._bonus = Bonus(self.reference, self.beta, floor)
        self._times = np.zeros(self.num_envs, dtype=np.int64)

    def step(self, actions: Actions) -> RowsStep:
        """See `TokenVectorEnv.step`."""
        before, masks, idle = self._observation, self._masks(), self._idle
        observation, rewards, terminations, truncations, infos = self._step(actions)
        # The action of a row that takes none may be anything.
        bonus = self._bonus.of(before, np.where(idle, 0, actions), masks)
        paid = self.task.gamma**self._times * rewards + np.where(idle, 0.0, bonus)
        self._times = np.where(idle | terminations | truncations, 0, self._times + 1)
        return observation, paid, terminations, truncations, infos

    def _start(self, rows: slice | Bools | list[int], states: list[TokenState] | None) -> None:
        super()._start(rows, states)
        self._times[rows] = 0 if states is None else [len(state.completion) for state in states]
