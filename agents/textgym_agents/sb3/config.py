"""Settings of the Stable-Baselines3 agents: validated, saved as JSON, shown as flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textgym_agents.config import MOST, at_least_one, not_negative, positive, require, share

Kind = Literal["mean", "last", "gru", "transformer"]
"""How a token sequence becomes a vector: pooled embeddings, last token, GRU, transformer."""


@dataclass(frozen=True)
class SB3Config:
    """Settings shared by all Stable-Baselines3 agents.

    Raises: ValueError that names the setting, its value and what is allowed.
    """

    batch: int = 64
    """Number of sub-environments."""
    learning_rate: float = 1e-3
    """Constant learning rate."""
    features: Kind = "gru"
    """How a token sequence becomes a vector: pooled embeddings, last token, GRU, transformer; not with lm_features."""
    width: int = 64
    """Width of embeddings and features; not with lm_features."""
    top_k: int | None = None
    """Number actions by rank among the reference's k most likely legal tokens; None: all allowed tokens."""
    lm_features: bool = False
    """Observe the reference LM's last hidden state instead of the tokens."""
    reference_reward: bool = True
    """Learn from gamma^t r + beta log pi_ref(a | s), which is J without its entropy term, without any other discount.
    False: learn from the reward alone, discounted by the task's gamma."""
    beta: float | None = None
    """KL coefficient of reference_reward, reward units per nat; None: the task's beta."""
    device: str = "cpu"
    """Device to compute on: auto, cpu, cuda or mps."""
    seed: int = 0
    """Seed of prompts, networks, sampling and mini-batches."""

    def __post_init__(self) -> None:
        at_least_one(self, "batch", "width", "top_k")
        positive(self, "learning_rate")
        not_negative(self, "beta")
        holds = self.beta is None or self.reference_reward
        require("beta", self.beta, holds, "None where reference_reward is False")
        require("seed", self.seed, 0 <= self.seed < 2**31, "an integer in 0..2^31 - 1")
        for name, default in (("features", SB3Config.features), ("width", SB3Config.width)):
            value = getattr(self, name)
            # A network of features reads tokens, and there are none.
            holds = not self.lm_features or value == default
            require(name, value, holds, f"{default!r} where lm_features is True")


@dataclass(frozen=True)
class SB3OnPolicyConfig(SB3Config):
    """Settings of agents that learn from their latest rollout only. Raises: as `SB3Config` does."""

    n_steps: int | None = None
    """Steps per rollout and sub-environment; at least the task's max_new_tokens, which is the default (None)."""
    gae_lambda: float = 0.95
    """Lambda of GAE."""
    rank_prior: bool = True
    """With top_k: start from the reference's mean probabilities of the ranks. False, which needs top_k: start from
    equal ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "n_steps")
        share(self, "gae_lambda")
        prior = self.rank_prior
        require("rank_prior", prior, prior or self.top_k is not None, "True where top_k is None")


@dataclass(frozen=True)
class SB3ActorCriticConfig(SB3OnPolicyConfig):
    """Settings of actor-critics with an entropy bonus. Raises: as `SB3Config` does."""

    entropy: float | None = None
    """Entropy coefficient; None: beta with reference_reward, so that a single step optimises J, else 0."""
    value_coefficient: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Clip gradients to this global norm."""
    normalize_advantage: bool | None = None
    """Normalise advantages; None: only without reference_reward, whose entropy coefficient is in units of the
    reward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "entropy", "value_coefficient")
        positive(self, "max_grad_norm")


@dataclass(frozen=True)
class SB3PPOConfig(SB3ActorCriticConfig):
    """Settings of PPO and MaskablePPO. Raises: as `SB3Config` does."""

    epochs: int = 2
    """Passes over a rollout."""
    minibatches: int = 4
    """Mini-batches per pass, with one optimiser step each."""
    clip_range: float = 0.2
    """Clip range of PPO (epsilon)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "epochs", "minibatches")
        positive(self, "clip_range")


@dataclass(frozen=True)
class SB3RecurrentPPOConfig(SB3PPOConfig):
    """Settings of RecurrentPPO. Raises: as `SB3Config` does."""

    lstm_width: int = 64
    """Width of the LSTM's state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "lstm_width")


@dataclass(frozen=True)
class SB3A2CConfig(SB3ActorCriticConfig):
    """Settings of A2C. Raises: as `SB3Config` does."""

    learning_rate: float = 3e-3
    """Constant learning rate of RMSprop."""
    gae_lambda: float = 1.0
    """Lambda of GAE."""


@dataclass(frozen=True)
class SB3TRPOConfig(SB3OnPolicyConfig):
    """Settings of TRPO, which has no entropy bonus. Raises: as `SB3Config` does."""

    target_kl: float = 0.01
    """Maximum KL of an update, nats per token."""
    critic_updates: int = 10
    """Passes of the value function over a rollout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "target_kl")
        at_least_one(self, "critic_updates")


@dataclass(frozen=True)
class SB3OffPolicyConfig(SB3Config):
    """Settings of agents that learn from a replay buffer. Raises: as `SB3Config` does."""

    replay: int | None = None
    """Capacity of the replay buffer, transitions; None: chosen from vocabulary and horizon."""
    learning_starts: int = 256
    """Steps before the first update, summed over the sub-environments."""
    minibatch: int = 128
    """Transitions per optimiser step."""
    gradient_steps: int = 8
    """Optimiser steps after each step of all sub-environments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        replay = self.replay
        require("replay", replay, replay is None or replay >= self.batch, "None or an integer >= batch")
        require("learning_starts", self.learning_starts, self.learning_starts >= 0, "an integer >= 0")
        at_least_one(self, "minibatch", "gradient_steps")


@dataclass(frozen=True)
class SB3DQNConfig(SB3OffPolicyConfig):
    """Settings of DQN. Raises: as `SB3Config` does."""

    target_update: int = 512
    """Steps between updates of the target network, summed over the sub-environments."""
    exploration_share: float = 0.5
    """Share of the budget during which epsilon falls from 1."""
    exploration_final: float = 0.05
    """Final value of epsilon."""
    max_grad_norm: float = 10.0
    """Clip gradients to this global norm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "target_update", most=MOST)
        share(self, "exploration_share", "exploration_final")
        positive(self, "max_grad_norm")


@dataclass(frozen=True)
class SB3QRDQNConfig(SB3DQNConfig):
    """Settings of QRDQN. Raises: as `SB3Config` does."""

    quantiles: int = 25
    """Number of quantiles of the return per action."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "quantiles")


@dataclass(frozen=True)
class SB3ContinuousConfig(SB3OffPolicyConfig):
    """Settings of agents whose action is a point that is mapped to the nearest legal token (no re-ranking).

    Raises: as `SB3Config` does.
    """

    dimensions: int = 8
    """Dimensions of the action space."""
    tau: float = 0.01
    """Soft-update rate of the target network at each optimiser step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "dimensions")
        share(self, "tau")


@dataclass(frozen=True)
class SB3NoisyConfig(SB3ContinuousConfig):
    """Settings of DDPG and TD3, which explore by action noise. Raises: as `SB3Config` does."""

    noise: float = 0.3
    """Standard deviation of the exploration noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "noise")
