"""Wrappers that add beta log pi_ref(a | s) to the reward: the part of J that no policy is needed for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.lm.reference import Observation, Reference, restricted
from textgym.wrappers.base import Masks, RowsWrapper, SingleWrapper, check_below, reference_of

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

    def of(self, observation: Observation, actions: Any, masks: Masks) -> NDArray[np.float64]:
        """The bonus (B,) of B actions in B states, reward units."""
        logs = restricted(np.asarray(self.reference.log_probs(observation), dtype=np.float64), masks)
        taken = np.take_along_axis(logs, np.asarray(actions, dtype=np.int64)[:, None], axis=1)[:, 0]
        return np.asarray(self.beta * np.maximum(taken, self.floor))


class ReferenceReward(SingleWrapper):
    """Adds beta log pi_ref(a | s) to every reward.

    J = E[R] - beta KL(pi || pi_ref) = E[sum of these rewards] + beta H(pi), H being the entropy of the whole text: an
    agent that maximises reward plus beta times entropy maximises J. The identity holds at gamma = 1, for policies that
    write no token below the floor.

    Args:
        env: one environment whose actions are tokens; this wrapper comes before those that change actions.
        beta: reward units per nat; None takes the task's.
        reference: None takes the task's.
        floor: nats; a token that the reference (almost) never writes counts as if it were this likely.
    Raises: ValueError for a beta or floor out of range.
    """

    def __init__(
        self, env: Any, beta: float | None = None, reference: Reference | None = None, floor: float = FLOOR
    ) -> None:
        check_below(env, "ReferenceReward")
        super().__init__(env)
        self.reference = reference_of(env, reference)
        self.beta = env.unwrapped.task.beta if beta is None else beta
        self._bonus = Bonus(self.reference, self.beta, floor)

    def step(self, action: Any) -> Any:
        """See `TokenEnv.step`."""
        before, masks = self._observation, self._masks()
        observation, reward, *rest = self.env.step(action)
        bonus = self._bonus.of(before, [action], masks)[0]
        return (self._see(observation), float(reward) + float(bonus), *rest)


class VectorReferenceReward(RowsWrapper):
    """`ReferenceReward` of a vector environment; rows that take no action get none."""

    def __init__(
        self, env: Any, beta: float | None = None, reference: Reference | None = None, floor: float = FLOOR
    ) -> None:
        check_below(env, "VectorReferenceReward")
        super().__init__(env)
        self.reference = reference_of(env, reference)
        self.beta = self.unwrapped.task.beta if beta is None else beta  # type: ignore[attr-defined]
        self._bonus = Bonus(self.reference, self.beta, floor)

    def step(self, actions: Any) -> Any:
        """See `TokenVectorEnv.step`."""
        before, masks, idle = self._observation, self._masks(), self._idle
        observation, rewards, *rest = self._stepped(actions)
        # The action of a row that takes none may be anything.
        bonus = self._bonus.of(before, np.where(idle, 0, actions), masks)
        return (observation, rewards + np.where(idle, 0.0, bonus), *rest)
