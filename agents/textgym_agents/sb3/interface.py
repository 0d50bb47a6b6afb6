"""Between a model of Stable-Baselines3 and TextGym: what it observes, and which tokens its actions are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textgym.references import make_reference
from textgym.wrappers import (
    VectorAllowedActions,
    VectorEmbeddingActions,
    VectorLMFeatures,
    VectorReferenceReward,
    VectorTopKActions,
    token_embedding,
)
from textgym.wrappers.choices import AllowedTokens, Choice, Nearest, Numbered, Table, TopKTokens
from textgym_agents.protocol import Observation
from textgym_agents.sb3.config import SB3Config
from textgym_agents.sb3.prompts import PromptFinder
from textgym_agents.sb3.tally import Tally
from textgym_agents.sb3.vec_env import SB3VecEnv


class Interface:
    """The wrappers that an agent learns through, and the same mechanisms for acting from plain observations.

    Args:
        task: what `env.unwrapped.task` holds.
        config: says which wrappers.
        dimensions: of the points that are actions; None for numbered actions.
    """

    def __init__(self, task: Any, config: SB3Config, dimensions: int | None) -> None:
        self._task, self._config = task, config
        needed = config.top_k is not None or config.lm_features or config.reference_reward
        # One to learn with and one to act with: neither loses its cache to the other.
        self._learning: Any = make_reference(task, device=config.device) if needed else None
        copy = getattr(self._learning, "copy", None)
        self._acting: Any = self._learning if copy is None else copy()
        self._embedding = None if dimensions is None else token_embedding(task, dimensions, config.seed)
        self.choice = self._choice(self._acting)
        self.finder = PromptFinder(task)

    def _choice(self, reference: Any) -> Choice:
        table = self._table(reference)
        return Numbered(table) if self._embedding is None else Nearest(table, self._embedding)

    def _table(self, reference: Any) -> Table:
        allowed = self._task.vocabulary.allowed
        k = self._config.top_k
        return AllowedTokens(allowed) if k is None else TopKTokens(reference, allowed, k)

    def wrap(self, env: Any) -> tuple[SB3VecEnv, Tally]:
        """A vector environment as the model learns in it, and the tally of its episodes."""
        config = self._config
        tally = Tally(env)
        wrapped: Any = tally
        if config.reference_reward:
            wrapped = VectorReferenceReward(wrapped, config.beta, self._learning)
        if self._embedding is not None:
            table = self._table(self._learning)
            wrapped = VectorEmbeddingActions(wrapped, embedding=self._embedding, table=table)
        elif config.top_k is not None:
            wrapped = VectorTopKActions(wrapped, config.top_k, self._learning)
        else:
            wrapped = VectorAllowedActions(wrapped)
        if config.lm_features:
            wrapped = VectorLMFeatures(wrapped, self._learning)
        return SB3VecEnv(wrapped), tally

    def inputs(self, observation: Observation, device: torch.device) -> Any:
        """What the model's policy reads in B states."""
        if self._config.lm_features:
            return torch.as_tensor(self._acting.features(observation), device=device)
        names = ("input_ids", "attention_mask")
        return {name: torch.as_tensor(np.asarray(observation[name]), device=device) for name in names}

    def masks(self, observation: Observation) -> NDArray[np.bool_] | None:
        """The task's grammar in B states, bool (B, V); None where there is none."""
        if self._task.mask is None:
            return None
        return np.asarray(self._task.vocabulary.allowed & self._task.mask(self.finder.states(observation)))

    def tokens(self, observation: Observation, actions: Any) -> NDArray[np.int64]:
        """The tokens (B,) that B actions stand for."""
        return self.choice.take(actions, observation, self.masks(observation))

    def legal(self, observation: Observation) -> NDArray[np.bool_]:
        """Which actions the task suggests, bool (B, A)."""
        return np.asarray(self.choice.table.tokens(observation, self.masks(observation))[1])

    def token_log_probs(self, observation: Observation, logs: NDArray[Any]) -> NDArray[np.float64]:
        """Log-probabilities of tokens (B, V) from those of numbered actions (B, A); -inf elsewhere.

        A token that several actions stand for has the sum of their probabilities.
        """
        tokens, _ = self.choice.table.tokens(observation, self.masks(observation))
        result = np.full((len(logs), self._task.vocabulary.size), -np.inf)
        np.logaddexp.at(result, (np.arange(len(logs))[:, None], tokens), logs.astype(np.float64))
        return result

    def certain(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-probabilities (B, V) of a policy that takes these tokens for sure."""
        result = np.full((len(tokens), self._task.vocabulary.size), -np.inf)
        result[np.arange(len(tokens)), tokens] = 0.0
        return result
