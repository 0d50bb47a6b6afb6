"""Wrappers whose actions stand for tokens: allowed ones, the reference's likeliest, points among embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textgym.lm.reference import Reference
from textgym.wrappers.base import RowsWrapper, SingleWrapper, check_below, reference_of
from textgym.wrappers.choices import AllowedTokens, Choice, Nearest, Numbered, TopKTokens
from textgym.wrappers.embeddings import token_embedding


class _Chosen(SingleWrapper):
    """One environment whose actions go through a `Choice`."""

    def __init__(self, env: Any, choice: Choice) -> None:
        super().__init__(env)
        self.choice = choice
        self.action_space = choice.space

    def step(self, action: Any) -> Any:
        """See `TokenEnv.step`; the action stands for a token."""
        token = self.choice.take(np.asarray(action)[None], self._observation, self._masks())[0]
        observation, *rest = self.env.step(int(token))
        return (self._see(observation), *rest)

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions the task suggests here, bool (A,)."""
        return np.asarray(self.choice.table.tokens(self._observation, self._masks())[1][0])


class _ChosenRows(RowsWrapper):
    """N environments whose actions go through a `Choice`."""

    def __init__(self, env: Any, choice: Choice) -> None:
        super().__init__(env)
        self.choice = choice
        self.single_action_space = choice.space
        self.action_space = batch_space(choice.space, self.num_envs)

    def step(self, actions: Any) -> Any:
        """See `TokenVectorEnv.step`; the actions stand for tokens."""
        return self._stepped(self.choice.take(actions, self._observation, self._masks()))

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions the task suggests, bool (N, A)."""
        return np.asarray(self.choice.table.tokens(self._observation, self._masks())[1])


def _top_k(env: Any, k: int, reference: Reference) -> Numbered:
    return Numbered(TopKTokens(reference, env.unwrapped.task.vocabulary.allowed, k))


class TopKActions(_Chosen):
    """Action r is the token of rank r among the reference's k likeliest legal ones; 0 is the likeliest.

    Where fewer than k tokens are legal, ranks begin again at the likeliest; `action_masks` leaves those out.

    Args:
        env: one environment whose actions are tokens. k: ranks. reference: None takes the task's.
    """

    def __init__(self, env: Any, k: int, reference: Reference | None = None) -> None:
        check_below(env, "TopKActions")
        self.reference = reference_of(env, reference)
        super().__init__(env, _top_k(env, k, self.reference))


class VectorTopKActions(_ChosenRows):
    """`TopKActions` of a vector environment: one batch through the reference a step."""

    def __init__(self, env: Any, k: int, reference: Reference | None = None) -> None:
        check_below(env, "VectorTopKActions")
        self.reference = reference_of(env, reference)
        super().__init__(env, _top_k(env, k, self.reference))


class AllowedActions(_Chosen):
    """Action i is the i-th allowed token: control tokens and unused rows of the vocabulary cannot be taken."""

    def __init__(self, env: Any) -> None:
        check_below(env, "AllowedActions")
        super().__init__(env, Numbered(AllowedTokens(env.unwrapped.task.vocabulary.allowed)))


class VectorAllowedActions(_ChosenRows):
    """`AllowedActions` of a vector environment."""

    def __init__(self, env: Any) -> None:
        check_below(env, "VectorAllowedActions")
        super().__init__(env, Numbered(AllowedTokens(env.unwrapped.task.vocabulary.allowed)))


def _nearest(env: Any, dimensions: int, seed: int, embedding: Any, table: Any) -> Nearest:
    task = env.unwrapped.task
    points = token_embedding(task, dimensions, seed) if embedding is None else embedding
    return Nearest(AllowedTokens(task.vocabulary.allowed) if table is None else table, points)


class EmbeddingActions(_Chosen):
    """An action is a point in [-1, 1]^D and stands for the nearest legal token: Wolpertinger without re-ranking.

    Args:
        env: one environment whose actions are tokens.
        dimensions: D. seed: of the embedding, where the reference is no LM.
        embedding: (V, D) float inside [-1, 1]; None takes `token_embedding`.
        table: the tokens to choose from; None takes all allowed ones.
    Source: Dulac-Arnold et al. (2015), arXiv:1512.07679, section 4, with k = 1.
    """

    def __init__(
        self, env: Any, dimensions: int = 8, seed: int = 0, embedding: Any = None, table: Any = None
    ) -> None:
        check_below(env, "EmbeddingActions")
        super().__init__(env, _nearest(env, dimensions, seed, embedding, table))


class VectorEmbeddingActions(_ChosenRows):
    """`EmbeddingActions` of a vector environment."""

    def __init__(
        self, env: Any, dimensions: int = 8, seed: int = 0, embedding: Any = None, table: Any = None
    ) -> None:
        check_below(env, "VectorEmbeddingActions")
        super().__init__(env, _nearest(env, dimensions, seed, embedding, table))
