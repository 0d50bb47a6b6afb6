"""The interface of Stable-Baselines3 models to TextGym: features of token sequences, actions as tokens, counts."""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn

from textgym.checks import Bools, Floats, Ints, check_batch, not_one_of
from textgym.episodes import observation_space
from textgym.lm.causal import CausalLM
from textgym.lm.reference import Reference, restricted
from textgym.state import Observation as TokenArrays
from textgym.task import Task, make_reference
from textgym.wrappers import VectorAllowedActions, VectorEmbeddingActions, VectorTopKActions, token_embedding
from textgym.wrappers.actions import AllowedTokens, Choice, Nearest, Numbered, Table, TopKTokens
from textgym.wrappers.base import Actions, Masks, RowsEnv, RowsStep, RowsWrapper
from textgym.wrappers.reference import VectorLMFeatures, VectorReferenceReward
from textgym_agents.protocol import Metrics, Observation
from textgym_agents.sb3.config import Kind, SB3Config
from textgym_agents.sb3.vec_env import SB3VecEnv
from textgym_agents.tabular.policies import Grammar

_TOKENS = ("input_ids", "attention_mask")


class TokenFeatures(BaseFeaturesExtractor):
    """Maps token sequences to vectors. The attention mask gives the lengths; padding has no influence.

    Args:
        observation_space: `Dict(input_ids, attention_mask)`, as in TextGym's environments.
        kind: "mean" pools embeddings of token and position over the sequence; "last" uses those of the last token;
            "gru" the last state of a recurrent network; "transformer" the last token of a causal transformer.
        width: width of embeddings and features. layers: of GRU or transformer. heads: of the transformer.
    Raises: ValueError for an unknown kind, a space without tokens, or heads that do not divide the width.
    """

    def __init__(
        self, observation_space: object, kind: Kind = "gru", width: int = 64, layers: int = 1, heads: int = 4
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(not_one_of("kind", kind, get_args(Kind)))
        if not isinstance(observation_space, spaces.Dict) or set(observation_space.spaces) != set(_TOKENS):
            raise ValueError(f"observation_space={observation_space!r:.80}: allowed is Dict(input_ids, attention_mask)")
        if kind == "transformer" and width % heads:
            raise ValueError(f"heads={heads!r}: allowed is a divisor of width={width}")
        super().__init__(observation_space, features_dim=width)
        ids = observation_space["input_ids"]
        assert isinstance(ids, spaces.Box)
        self.kind = kind
        self.tokens = nn.Embedding(int(ids.high.max()) + 1, width)
        self.positions = nn.Embedding(int(ids.shape[0]), width)
        if kind == "gru":
            self.gru = nn.GRU(width, width, layers, batch_first=True)
        elif kind == "transformer":
            layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Return features (B, width) of an observation: ids (B, L) and masks (B, L), of any number type."""
        # The padding of recurrent rollouts is states without any token.
        lengths = observation["attention_mask"].long().sum(1).clamp(min=1)  # (B,)
        longest = int(lengths.max())
        ids = observation["input_ids"][:, :longest].long()
        seen = torch.arange(longest, device=ids.device) < lengths[:, None]  # (B, T)
        # Padding reads token 0: the ids there may be anything.
        embedded = self.tokens(ids * seen) + self.positions.weight[:longest]  # (B, T, width)
        last = (lengths - 1)[:, None, None].expand(-1, 1, embedded.shape[2])
        if self.kind == "mean":
            mean: Tensor = (embedded * seen[..., None]).sum(1) / lengths[:, None]
            return mean
        if self.kind == "gru":
            embedded = self.gru(embedded)[0]
        elif self.kind == "transformer":
            causal = nn.Transformer.generate_square_subsequent_mask(longest, device=ids.device)
            embedded = self.encoder(embedded, mask=causal, is_causal=True)
        state: Tensor = embedded.gather(1, last)[:, 0]
        return state


class Tally(RowsWrapper):
    """Count the episodes that end, and note the first one of every row since `begin`. Show tokens without segments.

    Later episodes of a row end within a rollout only if they are short: a mean over them would be one of short texts.

    Args:
        env: a vector environment in SAME_STEP or DISABLED mode, whose ended rows are reset at once.
    """

    def __init__(self, env: RowsEnv) -> None:
        super().__init__(env)
        if getattr(env.unwrapped, "segments", False):
            self.single_observation_space = observation_space(self.task)
            self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.begin()

    def begin(self) -> None:
        """Forget what was counted."""
        self.episodes = 0
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        self._first = np.zeros(self.num_envs, dtype=np.bool_)

    def step(self, actions: Actions) -> RowsStep:
        """See `TokenVectorEnv.step`."""
        observation, rewards, terminations, truncations, infos = self._step(actions)
        if "final_obs" in infos:
            for row in np.flatnonzero(infos["_final_obs"]):
                infos["final_obs"][row] = _tokens(infos["final_obs"][row])
        running = ~self._first
        self._returns += np.where(running, np.asarray(rewards) * self.task.gamma**self._lengths, 0.0)
        self._lengths += running
        ended = np.asarray(terminations | truncations)
        self.episodes += int(ended.sum())
        self._first |= ended
        return observation, rewards, terminations, truncations, infos

    def metrics(self, scores: str) -> Metrics:
        """Return means over the first episodes: returns under the name `scores`, and lengths in tokens."""
        if not self._first.any():
            return {}
        return {
            scores: float(self._returns[self._first].mean()),
            "completion_length": float(self._lengths[self._first].mean()),
        }

    def _see(self, observation: TokenArrays) -> TokenArrays:
        self._observation = _tokens(observation)
        return self._observation


def _tokens(observation: Observation) -> TokenArrays:
    return {name: observation[name] for name in _TOKENS}


class Interface:
    """The wrappers that an agent learns through, and the same mechanisms for acting from plain observations.

    Args:
        task: what `env.unwrapped.task` holds.
        config: says which wrappers.
        dimensions: of the points that are actions; None for numbered actions.
    """

    def __init__(self, task: Task, config: SB3Config, dimensions: int | None) -> None:
        self._task, self._config = task, config
        needed = config.top_k is not None or config.lm_features or config.reference_reward
        # One to learn with and one to act with: neither loses its cache to the other.
        self._learning = make_reference(task, device=config.device) if needed else None
        shared = self._learning
        self._acting = shared.copy() if isinstance(shared, CausalLM) else shared
        self._embedding = None if dimensions is None else token_embedding(task, dimensions, config.seed)
        table = self._table(self._acting)
        self.choice: Choice = Numbered(table) if self._embedding is None else Nearest(table, self._embedding)
        self._grammar = Grammar(task)

    def _table(self, reference: Reference | None) -> Table:
        allowed, k = self._task.vocabulary.allowed, self._config.top_k
        if k is None or reference is None:
            return AllowedTokens(allowed)
        return TopKTokens(reference, allowed, k)

    def wrap(self, env: RowsEnv) -> tuple[SB3VecEnv, Tally]:
        """Return a vector environment as the model learns in it, and the tally of its episodes."""
        config = self._config
        tally = Tally(env)
        wrapped: RowsEnv = tally
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

    def inputs(self, observation: Observation, device: torch.device) -> PyTorchObs:
        """Return what the model's policy reads in B states: features (B, H), or tokens and mask (B, L)."""
        check_batch(observation)
        if self._config.lm_features:
            assert isinstance(self._acting, CausalLM)
            return torch.as_tensor(self._acting.features(observation), device=device)
        tokens = _tokens(observation)
        return {name: torch.as_tensor(np.asarray(array), device=device) for name, array in tokens.items()}

    def masks(self, observation: Observation) -> Masks:
        """Return the task's grammar in B states, bool (B, V); None where there is none."""
        return self._grammar.legal(observation)

    def tokens(self, observation: Observation, actions: Actions) -> Ints:
        """Return the tokens (B,) that B actions stand for."""
        return self.choice.take(actions, observation, self.masks(observation))

    def legal(self, observation: Observation) -> Bools:
        """Return which actions the task suggests, bool (B, A)."""
        return np.asarray(self.choice.table.tokens(observation, self.masks(observation))[1])

    def token_log_probs(self, observation: Observation, logs: Floats) -> Floats:
        """Return log-probabilities of tokens (B, V) from those of numbered actions (B, A); -inf elsewhere.

        A token that several actions stand for has the sum of their probabilities. What tokens have that the task does
        not allow, as in a model that numbers all of them, is shared out among the others.
        """
        tokens, _ = self.choice.table.tokens(observation, self.masks(observation))
        result = np.full((len(logs), self._task.vocabulary.size), -np.inf)
        np.logaddexp.at(result, (np.arange(len(logs))[:, None], tokens), logs)
        allowed = np.broadcast_to(self._task.vocabulary.allowed, result.shape)
        return restricted(result, allowed) if np.isfinite(result[~allowed]).any() else result

    def certain(self, tokens: Ints) -> Floats:
        """Return log-probabilities (B, V) of a policy that takes these tokens for sure."""
        result = np.full((len(tokens), self._task.vocabulary.size), -np.inf)
        result[np.arange(len(tokens)), tokens] = 0.0
        return result
