"""PPO, A2C, TRPO, MaskablePPO and RecurrentPPO of Stable-Baselines3 and sb3-contrib as agents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO

from textgym.checks import Floats, Ints
from textgym.lm.reference import restricted
from textgym.play import Turn, play_batch
from textgym.rewards.scorer import scorers_restored
from textgym.task import Task
from textgym.vector import batch_env
from textgym.wrappers.actions import TopKTokens
from textgym_agents.protocol import Observation, prompt_lengths
from textgym_agents.sb3.agent import SB3Agent, normalised
from textgym_agents.sb3.config import (
    SB3A2CConfig,
    SB3ActorCriticConfig,
    SB3PPOConfig,
    SB3RecurrentPPOConfig,
    SB3TRPOConfig,
)

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
        logs = restricted(np.asarray(table.reference.log_probs(seen), dtype=np.float64), turn.masks)
        total[:] += np.where(legal, np.exp(np.take_along_axis(logs, tokens, axis=1)), 0.0).sum(0)
        return tokens[:, 0]

    with scorers_restored(task.scorer):
        env = batch_env(task, _ROWS, "train")
        played = play_batch(env, env.reset(seed=0)[0], choose)
    return np.asarray(np.maximum(np.log(np.maximum(total / len(played.rows), 1e-30)), _LEAST))


class _OnPolicy(SB3Agent):
    """An actor-critic whose policy is a distribution over numbered actions."""

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

    def _build(self, env: Any) -> Any:
        model = super()._build(env)
        table = self.interface.choice.table
        if isinstance(table, TopKTokens) and self.config.rank_prior:
            # Before training the output layer is almost nothing but its bias.
            prior = torch.as_tensor(rank_prior(self.task, table), dtype=torch.float32)
            model.policy.action_net.bias.data.copy_(prior)
        return model

    def _shared(self, common: dict[str, Any]) -> dict[str, Any]:
        return {
            **common,
            "n_steps": self._rollout_steps(),
            "gae_lambda": self.config.gae_lambda,
        }

    def _objective(self) -> dict[str, Any]:
        """Weights of the loss. Raises: TypeError for a config without them."""
        config = self.config
        assert isinstance(config, SB3ActorCriticConfig)
        beta = self.task.beta if config.beta is None else config.beta
        entropy = (beta if config.reference_reward else 0.0) if config.entropy is None else config.entropy
        normalise = config.normalize_advantage
        return {
            "ent_coef": entropy,
            "vf_coef": config.value_coefficient,
            "max_grad_norm": config.max_grad_norm,
            "normalize_advantage": not config.reference_reward if normalise is None else normalise,
        }

    def _epochs(self, env: Any) -> dict[str, Any]:
        config = self.config
        assert isinstance(config, SB3PPOConfig)
        size = minibatch_size(self._rollout_steps() * env.num_envs, config.minibatches)
        return {"n_epochs": config.epochs, "clip_range": config.clip_range, "batch_size": size}

    @torch.no_grad()
    def log_probs(self, observation: Observation) -> NDArray[np.float64]:
        """See `Agent.log_probs`; (B, V) float64."""
        return self.interface.token_log_probs(observation, normalised(self._logits(observation)))

    def _logits(self, observation: Observation) -> Any:
        """Of the numbered actions, (B, A)."""
        return self.model.policy.get_distribution(self._inputs(observation)).distribution.logits


def minibatch_size(rollout: int, minibatches: int) -> int:
    """The least divisor of a rollout that leaves at most so many parts of it: no part is smaller than the others."""
    least = max(-(-rollout // minibatches), 2)
    return next((size for size in range(least, rollout) if rollout % size == 0), rollout)


class SB3PPO(_OnPolicy):
    """PPO. Source: Schulman et al. (2017), arXiv:1707.06347; Stable-Baselines3's class, unmodified."""

    name = "sb3-ppo"
    config_type = SB3PPOConfig
    model_type = PPO

    def __init__(self, task: Any, config: SB3PPOConfig | None = None, rows: int | None = None) -> None:
        super().__init__(task, config or SB3PPOConfig(), rows)

    def _make(self, env: Any, policy: str, common: dict[str, Any]) -> Any:
        return self.model_type(policy, env, **self._shared(common), **self._objective(), **self._epochs(env))


class SB3A2C(_OnPolicy):
    """A2C. Source: Mnih et al. (2016), arXiv:1602.01783; Stable-Baselines3's class, unmodified."""

    name = "sb3-a2c"
    config_type = SB3A2CConfig
    model_type = A2C

    def __init__(self, task: Any, config: SB3A2CConfig | None = None, rows: int | None = None) -> None:
        super().__init__(task, config or SB3A2CConfig(), rows)

    def _make(self, env: Any, policy: str, common: dict[str, Any]) -> Any:
        return self.model_type(policy, env, **self._shared(common), **self._objective())


class SB3TRPO(_OnPolicy):
    """TRPO. Source: Schulman et al. (2015), arXiv:1502.05477; sb3-contrib's class, unmodified."""

    name = "sb3-trpo"
    objective_tokens = 0  # no entropy at all
    config_type = SB3TRPOConfig
    model_type = TRPO

    def __init__(self, task: Any, config: SB3TRPOConfig | None = None, rows: int | None = None) -> None:
        super().__init__(task, config or SB3TRPOConfig(), rows)

    def _make(self, env: Any, policy: str, common: dict[str, Any]) -> Any:
        config = self.config
        assert isinstance(config, SB3TRPOConfig)
        critic: dict[str, Any] = {"n_critic_updates": config.critic_updates, "target_kl": config.target_kl}
        size = minibatch_size(self._rollout_steps() * env.num_envs, 4)
        return self.model_type(policy, env, **self._shared(common), **critic, batch_size=size)


class SB3MaskablePPO(_OnPolicy):
    """PPO that gives illegal actions probability 0. Source: Huang and Ontanon (2020), arXiv:2006.14171; sb3-contrib's
    class, unmodified.
    """

    name = "sb3-maskable-ppo"
    config_type = SB3PPOConfig
    model_type = MaskablePPO

    def __init__(self, task: Any, config: SB3PPOConfig | None = None, rows: int | None = None) -> None:
        super().__init__(task, config or SB3PPOConfig(), rows)

    def _make(self, env: Any, policy: str, common: dict[str, Any]) -> Any:
        return self.model_type(policy, env, **self._shared(common), **self._objective(), **self._epochs(env))

    def _logits(self, observation: Observation) -> Any:
        legal = self.interface.legal(observation)
        policy = self.model.policy
        logits = policy.get_distribution(self._inputs(observation), action_masks=legal).distribution.logits
        return logits.masked_fill(~torch.as_tensor(legal, device=logits.device), -torch.inf)


class SB3RecurrentPPO(_OnPolicy):
    """PPO with an LSTM over the states of an episode; sb3-contrib's class, unmodified.

    What it does in a state depends on those before it, from the prompt on. They are rebuilt from the observation, which
    needs `segment_ids` to say where the prompt ends: make the environment with `segments=True`.
    """

    name = "sb3-recurrent-ppo"
    config_type = SB3RecurrentPPOConfig
    model_type = RecurrentPPO

    def __init__(
        self, task: Any, config: SB3RecurrentPPOConfig | None = None, rows: int | None = None
    ) -> None:
        super().__init__(task, config or SB3RecurrentPPOConfig(), rows)

    def _make(self, env: Any, policy: str, common: dict[str, Any]) -> Any:
        config = self.config
        assert isinstance(config, SB3RecurrentPPOConfig)
        kwargs = {**common["policy_kwargs"], "lstm_hidden_size": config.lstm_width}
        shared = {**self._shared(common), "policy_kwargs": kwargs}
        return self.model_type(
            policy.replace("Policy", "LstmPolicy"), env, **shared, **self._objective(), **self._epochs(env)
        )

    def _logits(self, observation: Observation) -> Any:
        policy, count = self.model.policy, len(observation["input_ids"])
        lengths = np.count_nonzero(observation["attention_mask"], axis=1)
        steps = lengths - prompt_lengths(observation)
        shape = (policy.lstm_actor.num_layers, count, policy.lstm_actor.hidden_size)
        state = torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device)
        starts = torch.zeros(count, device=self.device)
        logits: list[Any] = []
        for behind in range(int(steps.max()), -1, -1):
            # Row by row the states from s_0 on; a row whose episode is younger has not begun yet.
            begun = steps >= behind
            inputs = self._inputs(_shortened(observation, np.where(begun, lengths - behind, 1)))
            distribution, after = policy.get_distribution(inputs, state, starts)
            keep = torch.as_tensor(begun, device=self.device)[None, :, None]
            state = tuple(torch.where(keep, new, old) for new, old in zip(after, state, strict=True))  # type: ignore[assignment]
            logits = [distribution.distribution.logits]
        return logits[0]


def _shortened(observation: Observation, lengths: NDArray[np.int64]) -> Observation:
    mask = (np.arange(observation["input_ids"].shape[1]) < lengths[:, None]).astype(np.int8)
    return {"input_ids": observation["input_ids"], "attention_mask": mask}
