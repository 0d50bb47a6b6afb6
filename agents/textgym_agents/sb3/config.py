"""The settings of Stable-Baselines3's agents: validated, saved as JSON, shown as flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textgym_agents.config import MOST, at_least_one, not_negative, positive, require, share

Kind = Literal["mean", "last", "gru", "transformer"]
"""How a token sequence becomes a vector: pooled embeddings, last token, GRU, transformer."""


@dataclass(frozen=True)
class SB3Config:
    """Settings that all of Stable-Baselines3's agents have.

    Raises: ValueError that names the setting, its value and what is allowed.
    """

    batch: int = 64
    """Sub-environments."""
    learning_rate: float = 1e-3
    """Step size of the optimiser, constant."""
    features: Kind = "gru"
    """How a token sequence becomes a vector: pooled embeddings, last token, GRU, transformer; not with lm_features."""
    width: int = 64
    """Of embeddings and features; not with lm_features."""
    top_k: int | None = None
    """Actions are ranks among the reference's k likeliest legal tokens; None: all allowed tokens."""
    lm_features: bool = False
    """Observe the reference LM's last hidden state in place of the tokens."""
    reference_reward: bool = True
    """Learn from gamma^t r + beta log pi_ref(a | s), J without its entropy term, and discount nothing else. False: from
    the reward alone, discounted by the task's gamma."""
    beta: float | None = None
    """KL coefficient of reference_reward, reward units per nat; None takes the task's."""
    device: str = "cpu"
    """auto, cpu, cuda, mps."""
    seed: int = 0
    """Seeds prompts, networks, sampling and mini-batches."""

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
    """Settings of agents that learn from their latest rollout alone. Raises: as `SB3Config` does."""

    n_steps: int | None = None
    """Steps per rollout and sub-environment; None and the least: the task's max_new_tokens."""
    gae_lambda: float = 0.95
    """Lambda of GAE."""
    rank_prior: bool = True
    """With top_k, start from the mean probabilities that the reference gives to the ranks; False, which needs top_k,
    starts from equal ones."""

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
    """Entropy coefficient; None takes beta with reference_reward, so that a single step optimises J, else 0."""
    value_coefficient: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this global norm."""
    normalize_advantage: bool | None = None
    """None: without reference_reward only, whose entropy coefficient is in units of the reward."""

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
    """Parts of a rollout, one optimiser step each."""
    clip_range: float = 0.2
    """PPO's epsilon."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "epochs", "minibatches")
        positive(self, "clip_range")


@dataclass(frozen=True)
class SB3RecurrentPPOConfig(SB3PPOConfig):
    """Settings of RecurrentPPO. Raises: as `SB3Config` does."""

    lstm_width: int = 64
    """Of the LSTM's state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "lstm_width")


@dataclass(frozen=True)
class SB3A2CConfig(SB3ActorCriticConfig):
    """Settings of A2C. Raises: as `SB3Config` does."""

    learning_rate: float = 3e-3
    """Step size of RMSprop, constant."""
    gae_lambda: float = 1.0
    """Lambda of GAE."""


@dataclass(frozen=True)
class SB3TRPOConfig(SB3OnPolicyConfig):
    """Settings of TRPO, which has no entropy bonus. Raises: as `SB3Config` does."""

    target_kl: float = 0.01
    """Nats per token that an update may move the policy by."""
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
    """Transitions that are kept; None chooses from vocabulary and horizon."""
    learning_starts: int = 256
    """Steps, of all sub-environments together, before the first update."""
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
    """Steps, of all sub-environments together, between copies of the network to the target."""
    exploration_share: float = 0.5
    """Share of the budget over which epsilon falls from 1."""
    exploration_final: float = 0.05
    """Epsilon after that."""
    max_grad_norm: float = 10.0
    """Gradients are scaled down to this global norm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "target_update", most=MOST)
        share(self, "exploration_share", "exploration_final")
        positive(self, "max_grad_norm")


@dataclass(frozen=True)
class SB3QRDQNConfig(SB3DQNConfig):
    """Settings of QRDQN. Raises: as `SB3Config` does."""

    quantiles: int = 25
    """Quantiles of the return that each action has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "quantiles")


@dataclass(frozen=True)
class SB3ContinuousConfig(SB3OffPolicyConfig):
    """Settings of agents whose action is a point, mapped to the nearest legal token (no re-ranking).

    Raises: as `SB3Config` does.
    """

    dimensions: int = 8
    """Of the space of points."""
    tau: float = 0.01
    """Share of the network that goes into the target at each optimiser step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "dimensions")
        share(self, "tau")


@dataclass(frozen=True)
class SB3NoisyConfig(SB3ContinuousConfig):
    """Settings of DDPG and TD3, which explore by noise; SAC explores by itself. Raises: as `SB3Config` does."""

    noise: float = 0.3
    """Standard deviation of the exploration noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "noise")
