"""The same tasks with larger actions: a turn of the policy at once, or its whole answer.

What an episode pays is the same, and so is the distribution of returns under a policy over tokens. At gamma 1 its
REINFORCE gradient is, too: the log-probability of a turn is the sum of those of its tokens, and all of them have the
same return.
"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction

from textgym.checks import shown
from textgym.state import TokenState
from textgym.wrappers.base import Actions, Env, Shown, SingleWrapper, Step


class TurnEnv(SingleWrapper):
    """A task whose action is a whole turn of the policy; where the environment does not answer, that is an answer.

    ### Action Space
    `MultiDiscrete([V] * T)`, T the budget of a turn. The turn is what stands up to and with the first id that ends it
    (`written`); the ids behind that are not read.

    ### Rewards
    Those of a turn's tokens, added up. All else is as in `TokenEnv`.

    Args:
        env: a `TokenEnv`, as it is or as `gym.make` returns it.
    Raises: TypeError for an environment that does not show tokens or take them; ValueError for a task whose gamma is
        not 1.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        task = self.task
        if task.gamma != 1:
            raise ValueError(f"gamma={task.gamma}: a turn is one step here; allowed is 1")
        self._ends = frozenset(task.vocabulary.stop_ids if task.turns is None else task.turns.ends)
        self._budget = task.max_new_tokens if task.turns is None else task.turns.tokens
        self.action_space = spaces.MultiDiscrete(np.full(self._budget, task.vocabulary.size))

    def written(self, action: Actions) -> list[int]:
        """Return the ids of an action that are written: up to the first that ends a turn.

        Args:
            action: integer (T,), ids in 0..V-1.
        Raises: InvalidAction for anything else.
        """
        ids = np.asarray(action)
        whole = np.issubdtype(ids.dtype, np.integer) and ids.shape == (self._budget,)
        if not whole or not ((ids >= 0) & (ids < self.task.vocabulary.size)).all():
            raise InvalidAction(
                f"action {shown(action)}: allowed are {self._budget} token ids in 0..{self.task.vocabulary.size - 1}"
            )
        found: list[int] = ids.tolist()
        end = next((place for place, token in enumerate(found) if token in self._ends), len(found))
        return found[: end + 1]

    def step(self, action: Actions) -> Step:
        """Write a turn.

        Args:
            action: integer (T,), see `written`.
        Returns: observation, reward, terminated, truncated and info of the turn's last token, with its whole reward.
        Raises: InvalidAction, see `written`; ResetNeeded, see `TokenEnv.step`.
        """
        total = 0.0
        for token in self.written(action):
            observation, reward, terminated, truncated, info = self._step(token)
            total += reward
        return observation, total, terminated, truncated, info

    def set_state(self, state: TokenState) -> Shown:
        """Go on from a state, as `TokenEnv.set_state`.

        Args:
            state: one in which a turn begins, or the episode is over.
        Returns: the observation of that state.
        Raises: ValueError for another state, or one that does not fit the task.
        """
        if state.turn and state.finish_reason is None:
            raise ValueError(f"state: its turn has {len(state.turn)} tokens already; allowed is one that begins")
        return super().set_state(state)


class AnswerEnv(TurnEnv):
    """A task whose action is a whole answer, so that an episode is one step: a contextual bandit.

    Args:
        env: as of `TurnEnv`.
    Raises: as `TurnEnv`; ValueError for a task with turns, in which no answer is whole before the environment has
        spoken.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        if self.task.turns is not None:
            raise ValueError(f"task {self.task.name!r}: its environment answers in turns; allowed is a TurnEnv")
