"""Between a model of Stable-Baselines3 and TextGym: observations, actions as tokens, counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textgym.episodes import observation_space
from textgym.task import make_reference
from textgym.wrappers import (
    VectorAllowedActions,
    VectorEmbeddingActions,
    VectorLMFeatures,
    VectorReferenceReward,
    VectorTopKActions,
    token_embedding,
)
from textgym.wrappers.actions import AllowedTokens, Choice, Nearest, Numbered, Table, TopKTokens
from textgym_agents.protocol import Metrics, Observation, StateFinder
from textgym_agents.sb3.config import SB3Config
from textgym_agents.sb3.vec_env import SB3VecEnv


class Tally(VectorWrapper):
    """Counts the episodes that end, and notes the first one of every row since `begin`. Shows tokens without segments.

    Later episodes of a row end within a rollout only if they are short: a mean over them would be one of short texts.

    Args:
        env: a vector environment in SAME_STEP or DISABLED mode, whose ended rows are reset at once.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        if getattr(env.unwrapped, "segments", False):
            self.single_observation_space = observation_space(env.unwrapped.task)
            self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.begin()

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """See `TokenVectorEnv.reset`."""
        observation, infos = self.env.reset(seed=seed, options=options)
        return _tokens(observation), infos

    def begin(self) -> None:
        """Forgets what was counted."""
        self.episodes = 0
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        self._first = np.zeros(self.num_envs, dtype=np.bool_)

    def step(self, actions: Any) -> Any:
        """See `TokenVectorEnv.step`."""
        observation, rewards, terminations, truncations, infos = self.env.step(actions)
        if "final_obs" in infos:
            for row in np.flatnonzero(infos["_final_obs"]):
                infos["final_obs"][row] = _tokens(infos["final_obs"][row])
        running = ~self._first
        gamma = self.env.unwrapped.task.gamma  # type: ignore[attr-defined]
        self._returns += np.where(running, np.asarray(rewards) * gamma**self._lengths, 0.0)
        self._lengths += running
        ended = np.asarray(terminations | truncations)
        self.episodes += int(ended.sum())
        self._first |= ended
        return _tokens(observation), rewards, terminations, truncations, infos

    def metrics(self, scores: str) -> Metrics:
        """Means over the first episodes: returns under the name `scores`, and lengths in tokens."""
        if not self._first.any():
            return {}
        return {
            scores: float(self._returns[self._first].mean()),
            "completion_length": float(self._lengths[self._first].mean()),
        }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)


def _tokens(observation: Observation) -> Observation:
    return {name: observation[name] for name in ("input_ids", "attention_mask")}


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
        self._finder = StateFinder(task)

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
        tokens = _tokens(observation)
        return {name: torch.as_tensor(np.asarray(array), device=device) for name, array in tokens.items()}

    def masks(self, observation: Observation) -> NDArray[np.bool_] | None:
        """The task's grammar in B states, bool (B, V); None where there is none."""
        if self._task.mask is None:
            return None
        states = [state for _, state in self._finder.states(observation)]
        return np.asarray(self._task.vocabulary.allowed & self._task.mask(states))

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
