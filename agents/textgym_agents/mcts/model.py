"""The true model: an environment of the agent's own, put into any states and stepped from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from textgym import TokenVectorEnv
from textgym.state import TokenState
from textgym_agents.protocol import Observation

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
LogProbs = Callable[[Observation, Bools | None], Floats]


@dataclass(frozen=True)
class Arrival:
    """Where n moves led.

    Attributes:
        states: n states. rewards: (n,) what was paid, discounted to time 0. finished: (n,).
        observation: arrays (n, L). masks: (n, V) tokens that the grammar allows next, None for all.
    """

    states: list[TokenState]
    rewards: Floats
    finished: Bools
    observation: Observation
    masks: Bools | None


class Model:
    """Up to `rows` states at a time, stepped together.

    Args:
        task: the task. split: whose prompts the states have. rows: at most so many at once.

    Attributes:
        scored: completions that the reward was asked for.
    """

    def __init__(self, task: Any, split: str, rows: int) -> None:
        self.task, self.split, self.rows, self.scored = task, split, rows, 0
        self._env = TokenVectorEnv(task, rows, split=split, autoreset_mode=AutoresetMode.DISABLED)
        # What is not used has ended: it is neither moved nor scored.
        self._parked = TokenState(task.encoded(split)[0], (), "length")

    def place(self, states: Sequence[TokenState]) -> Arrival:
        """Puts n running states into the first rows."""
        count = len(states)
        observation = self._env.set_states([*states, *[self._parked] * (self.rows - count)])
        seen = {name: array[:count] for name, array in observation.items()}
        return Arrival(
            list(states), np.zeros(count), np.zeros(count, dtype=np.bool_), seen, self._masks(count)
        )

    def step(self, states: Sequence[TokenState], tokens: Ints) -> Arrival:
        """One token from each of n states. In noisy tasks `states` say which noise: see `with_seeds`."""
        count = len(states)
        self._env.set_states([*states, *[self._parked] * (self.rows - count)])
        observation, rewards, finished = self._advance(count, tokens)
        discounts = self.task.gamma ** np.array([len(state.completion) for state in states])
        return Arrival(
            self._env.get_states(range(count)), discounts * rewards, finished, observation, self._masks(count)
        )

    def roll_out(self, arrival: Arrival, log_probs: LogProbs, generator: np.random.Generator) -> Floats:
        """Goes on from where the last move arrived, by a policy.

        Returns: (n,) returns from there on, discounted to time 0.
        """
        count, observation, masks = len(arrival.finished), arrival.observation, arrival.masks
        discounts = self.task.gamma ** np.array([len(state.completion) for state in arrival.states])
        active, tokens, returns = ~arrival.finished, np.zeros(count, dtype=np.int64), np.zeros(count)
        while active.any():
            seen = {name: array[active] for name, array in observation.items()}
            logs = log_probs(seen, None if masks is None else masks[active])
            # The Gumbel-max trick: the argmax of log-probabilities plus Gumbel noise is a sample.
            tokens[active] = (logs + generator.gumbel(size=logs.shape)).argmax(1)
            observation, rewards, finished = self._advance(count, tokens)
            returns += discounts * rewards
            discounts = discounts * self.task.gamma
            active = ~finished
            masks = self._masks(count) if active.any() else None
        return returns

    def with_potential(self, state: TokenState) -> TokenState:
        """A state found by its tokens, as the environment has it: pay by differences remembers the last score."""
        if self.task.scorer.pay != "difference" or not state.completion:
            return state
        reached = TokenState(state.prompt)
        for token in state.completion:
            (reached,) = self.step([reached], np.array([token])).states
        return reached

    def with_seeds(self, states: Sequence[TokenState], generator: np.random.Generator) -> list[TokenState]:
        """The same states, in noisy tasks with noise drawn anew: what this episode's will be nobody knows."""
        if not self.task.noisy:
            return list(states)
        seeds = generator.integers(2**63, size=len(states)).tolist()
        return [
            TokenState(s.prompt, s.completion, s.finish_reason, s.potential, seed)
            for s, seed in zip(states, seeds, strict=True)
        ]

    def _advance(self, count: int, tokens: Ints) -> tuple[Observation, Floats, Bools]:
        actions = np.zeros(self.rows, dtype=np.int64)
        actions[:count] = tokens
        observation, rewards, finished, _, infos = self._env.step(actions)
        self.scored += int(infos["_completion"].sum()) if "completion" in infos else 0
        return {name: array[:count] for name, array in observation.items()}, rewards[:count], finished[:count]

    def _masks(self, count: int) -> Bools | None:
        return None if self.task.mask is None else self._env.action_masks()[:count]
