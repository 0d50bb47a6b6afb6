"""PPO, A2C, TRPO, MaskablePPO and RecurrentPPO of Stable-Baselines3 and sb3-contrib as agents."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from textgym.checks import Floats, Ints, token_counts
from textgym.lm.reference import over_legal
from textgym.play import Turn, play_batch
from textgym.rewards.scorer import scorers_restored
from textgym.state import POLICY
from textgym.task import Task
from textgym.vector import batch_env
from textgym.wrappers.actions import TopKTokens
from textgym_agents.protocol import Observation, prompt_lengths
from textgym_agents.sb3.agent import Arguments, SB3Agent
from textgym_agents.sb3.config import (
    SB3A2CConfig,
    SB3ActorCriticConfig,
    SB3OnPolicyConfig,
    SB3PPOConfig,
    SB3RecurrentPPOConfig,
    SB3TRPOConfig,
)
from textgym_agents.sb3.vec_env import SB3VecEnv

_ROWS = 64
_LEAST = np.log(1e-4)  # a rank that is never written is not put out of reach


def rank_prior(task: Task, table: TopKTokens) -> Floats:
    """Return logarithms of the reference's mean probabilities by rank, along its likeliest texts of 64 prompts.

    Args:
        table: the ranks of the task's reference.
    Returns: (k,) float64, nats.
    """
    total = np.zeros(table.size)

    def choose(turn: Turn) -> Ints:
        seen = turn.seen()
        tokens, legal = table.tokens(seen, turn.masks)
        said = np.asarray(table.reference.log_probs(seen), dtype=np.float64)
        logs = over_legal(said, turn.masks, task.vocabulary.allowed)
        total[:] += np.where(legal, np.exp(np.take_along_axis(logs, tokens, axis=1)), 0.0).sum(0)
        return tokens[:, 0]

    with scorers_restored(task.scorer):
        env = batch_env(task, _ROWS, "train")
        played = play_batch(env, env.reset(seed=0)[0], choose)
    return np.asarray(np.maximum(np.log(np.maximum(total / len(played.rows), 1e-30)), _LEAST))


class _OnPolicy(SB3Agent):
    """An actor-critic whose policy is a distribution over numbered actions."""

    config: SB3OnPolicyConfig
    model: OnPolicyAlgorithm
    objective_tokens = 1  # the entropy bonus leaves out the entropy of later states

    def _rollout_steps(self) -> int:
        horizon = super()._rollout_steps()
        asked = self.config.n_steps
        if asked is not None and asked < horizon:
            raise ValueError(
                f"n_steps={asked}: a rollout starts with fresh prompts, and an episode of {self.task.name!r} takes up "
                f"to {horizon} steps; allowed is an integer >= {horizon}"
            )
        return horizon if asked is None else int(asked)

    def _build(self, env: SB3VecEnv) -> BaseAlgorithm:
        model = super()._build(env)
        table = self.interface.choice.table
        if isinstance(table, TopKTokens) and self.config.rank_prior:
            # Before training the output layer is almost nothing but its bias.
            prior = torch.as_tensor(rank_prior(self.task, table), dtype=torch.float32)
            model.policy.get_parameter("action_net.bias").data.copy_(prior)
        return model

    def _arguments(self, env: SB3VecEnv) -> Arguments:
        return {"n_steps": self._rollout_steps(), "gae_lambda": self.config.gae_lambda}

    @torch.no_grad()
    def log_probs(self, observation: Observation) -> Floats:
        """See `Agent.log_probs`; (B, V) float64."""
        logs = torch.log_softmax(self._logits(observation).double(), -1)
        return self.interface.token_log_probs(observation, logs.cpu().numpy())

    def _logits(self, observation: Observation) -> Tensor:
        """Return the logits of the numbered actions, (B, A)."""
        return _logits_of(self.model.policy.get_distribution(self._inputs(observation)))


def _logits_of(distribution: Distribution) -> Tensor:
    """Return the logits (B, A) of a distribution over numbered actions."""
    categorical = distribution.distribution
    assert isinstance(categorical, torch.distributions.Categorical)
    logits: Tensor = categorical.logits
    return logits


class _ActorCritic(_OnPolicy):
    """An actor-critic with an entropy bonus."""

    config: SB3ActorCriticConfig

    def _arguments(self, env: SB3VecEnv) -> Arguments:
        config = self.config
        beta = self.task.beta if config.beta is None else config.beta
        entropy = (beta if config.reference_reward else 0.0) if config.entropy is None else config.entropy
        normalise = config.normalize_advantage
        return super()._arguments(env) | {
            "ent_coef": entropy,
            "vf_coef": config.value_coefficient,
            "max_grad_norm": config.max_grad_norm,
            "normalize_advantage": not config.reference_reward if normalise is None else normalise,
        }


def minibatch_size(rollout: int, minibatches: int) -> int:
    """Return the least divisor of a rollout that leaves at most so many parts: no part is smaller than the others."""
    least = max(-(-rollout // minibatches), 2)
    return next((size for size in range(least, rollout) if rollout % size == 0), rollout)


class SB3PPO(_ActorCritic):
    """PPO, Stable-Baselines3's class, unmodified.

    Raises: ValueError for a device that is not there, or settings that do not fit the task.
    Source: Schulman et al. (2017), arXiv:1707.06347.
    """

    name = "sb3-ppo"
    config: SB3PPOConfig
    config_type: ClassVar[type[SB3PPOConfig]] = SB3PPOConfig
    model_type: ClassVar[type[OnPolicyAlgorithm]] = PPO

    def _arguments(self, env: SB3VecEnv) -> Arguments:
        config = self.config
        size = minibatch_size(self._rollout_steps() * env.num_envs, config.minibatches)
        own = {"n_epochs": config.epochs, "clip_range": config.clip_range, "batch_size": size}
        return super()._arguments(env) | own


class SB3A2C(_ActorCritic):
    """A2C, Stable-Baselines3's class, unmodified.

    Raises: ValueError for a device that is not there, or settings that do not fit the task.
    Source: Mnih et al. (2016), arXiv:1602.01783.
    """

    name = "sb3-a2c"
    config_type = SB3A2CConfig
    model_type = A2C


class SB3TRPO(_OnPolicy):
    """TRPO, sb3-contrib's class, unmodified.

    Raises: ValueError for a device that is not there, or settings that do not fit the task.
    Source: Schulman et al. (2015), arXiv:1502.05477.
    """

    name = "sb3-trpo"
    objective_tokens = 0  # no entropy at all
    config: SB3TRPOConfig
    config_type = SB3TRPOConfig
    model_type = TRPO

    def _arguments(self, env: SB3VecEnv) -> Arguments:
        return super()._arguments(env) | {
            "n_critic_updates": self.config.critic_updates,
            "target_kl": self.config.target_kl,
            "batch_size": minibatch_size(self._rollout_steps() * env.num_envs, 4),
        }


class SB3MaskablePPO(SB3PPO):
    """PPO that gives illegal actions probability 0, sb3-contrib's class, unmodified.

    Raises: ValueError for a device that is not there, or settings that do not fit the task.
    Source: Huang and Ontanon (2020), arXiv:2006.14171.
    """

    name = "sb3-maskable-ppo"
    model_type = MaskablePPO

    def _logits(self, observation: Observation) -> Tensor:
        legal, policy = self.interface.legal(observation), self.model.policy
        assert isinstance(policy, MaskableActorCriticPolicy)
        distribution = policy.get_distribution(self._inputs(observation), action_masks=legal)
        logits = _logits_of(distribution)
        return logits.masked_fill(~torch.as_tensor(legal, device=logits.device), -torch.inf)


class SB3RecurrentPPO(SB3PPO):
    """PPO with an LSTM over the states of an episode, sb3-contrib's class, unmodified.

    What it does in a state depends on those before it, from the prompt on. They are rebuilt from the observation, which
    needs `segment_ids` to say where the prompt ends: make the environment with `segments=True`.

    Raises: ValueError for a device that is not there, or settings that do not fit the task.
    Source: Schulman et al. (2017), arXiv:1707.06347.
    """

    name = "sb3-recurrent-ppo"
    config: SB3RecurrentPPOConfig
    config_type = SB3RecurrentPPOConfig
    model_type = RecurrentPPO
    policies = ("MlpLstmPolicy", "MultiInputLstmPolicy")

    def _policy_arguments(self) -> Arguments:
        return super()._policy_arguments() | {"lstm_hidden_size": self.config.lstm_width}

    def _logits(self, observation: Observation) -> Tensor:
        policy, count = self.model.policy, len(observation["input_ids"])
        assert isinstance(policy, RecurrentActorCriticPolicy)
        lengths = token_counts(observation)
        steps = lengths - prompt_lengths(observation)
        rows, written = np.arange(count), observation["segment_ids"] == POLICY
        shape = (policy.lstm_actor.num_layers, count, policy.lstm_actor.hidden_size)
        state = torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device)
        starts = torch.zeros(count, device=self.device)
        logits = torch.zeros(0)
        for behind in range(int(steps.max()), -1, -1):
            # Row by row the states from s_0 on in which the policy wrote; a younger row has not begun yet.
            ends = np.maximum(lengths - behind, 1)
            acts = (behind == 0) | (written[rows, np.minimum(ends, lengths - 1)] & (steps >= behind))
            inputs = self._inputs(_shortened(observation, ends))
            distribution, after = policy.get_distribution(inputs, state, starts)  # type: ignore[arg-type]
            keep = torch.as_tensor(acts, device=self.device)[None, :, None]
            state = torch.where(keep, after[0], state[0]), torch.where(keep, after[1], state[1])
            logits = _logits_of(distribution)
        return logits


def _shortened(observation: Observation, lengths: Ints) -> Observation:
    mask = (np.arange(observation["input_ids"].shape[1]) < lengths[:, None]).astype(np.int8)
    return {"input_ids": observation["input_ids"], "attention_mask": mask}
