"""RLlib's PPO on a TextGym environment, which RLlib makes by itself from its name.

    python -m venv .venv-rllib && .venv-rllib/bin/python -m pip install "textgym[lm,rllib]"
    .venv-rllib/bin/python examples/rllib_ppo.py --env-id textgym:textgym/Copy-v0 --iterations 60

RLlib asks for one version of Gymnasium, older than the newest that TextGym takes: give it an environment of its own.
RLlib has no default network for an observation of two arrays, so the file brings one: an `RLModule` with a policy and a
value. Everything else is RLlib's.

Source: https://docs.ray.io/en/latest/rllib; Schulman et al. (2017), arXiv:1707.06347.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env-id", default="textgym:textgym/Copy-v0", help="module:id of the environment")
    parser.add_argument("--seed", type=int, default=1, help="of prompts, weights and sampling")
    parser.add_argument("--iterations", type=int, default=60, help="rollouts, and updates on each of them")
    parser.add_argument("--num-envs", type=int, default=16, help="texts written side by side")
    parser.add_argument("--num-steps", type=int, default=24, help="tokens of each of them per iteration")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="Adam's")
    return parser.parse_args(words)


class TextModule(TorchRLModule, ValueFunctionAPI):
    """Policy and value of a text: the embeddings of its tokens, and of their places, through two layers."""

    def setup(self) -> None:
        """Builds the layers from the spaces."""
        super().setup()
        self.vocabulary = int(self.action_space.n)  # V
        length = self.observation_space["input_ids"].shape[0]  # L
        hidden = int(self.model_config["hidden"])
        self.embedding = nn.Embedding(self.vocabulary + 1, hidden)  # one more for columns that are no text
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(length * hidden, 2 * hidden), nn.Tanh()
        )  # (B, L, H) -> (B, 2H)
        self.actor, self.critic = nn.Linear(2 * hidden, self.vocabulary), nn.Linear(2 * hidden, 1)
        nn.init.orthogonal_(self.actor.weight, 0.01)  # the first policy is almost uniform

    def _hidden(self, batch: dict[str, Any]) -> Tensor:
        text = batch[Columns.OBS]
        ids = torch.where(text["attention_mask"] == 1, text["input_ids"], self.vocabulary)
        return self.body(self.embedding(ids.long()))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Logits (B, V) of the next token."""
        hidden = self._hidden(batch)
        return {Columns.EMBEDDINGS: hidden, Columns.ACTION_DIST_INPUTS: self.actor(hidden)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """V (B,)."""
        hidden = self._hidden(batch) if embeddings is None else embeddings
        return self.critic(hidden).squeeze(-1)


def main(words: list[str] | None = None) -> list[float]:
    """Trains. Returns: the mean return of the latest episodes after each iteration."""
    args = parse_args(words)
    batch = args.num_envs * args.num_steps
    config = (
        PPOConfig()
        .environment(args.env_id)  # RLlib calls gym.make with it
        .env_runners(num_env_runners=0, num_envs_per_env_runner=args.num_envs)  # 0: in this process
        .rl_module(rl_module_spec=RLModuleSpec(module_class=TextModule, model_config={"hidden": 64}))
        .training(
            gamma=1.0,
            lambda_=0.95,
            lr=args.learning_rate,
            train_batch_size_per_learner=batch,
            minibatch_size=batch // 4,
            num_epochs=4,
            clip_param=0.2,
            entropy_coeff=0.01,
            grad_clip=0.5,
            use_kl_loss=False,
        )
        .reporting(metrics_num_episodes_for_smoothing=batch // 3)
        .debugging(seed=args.seed)
    )
    algorithm = config.build_algo()
    history: list[float] = []
    for iteration in range(args.iterations):
        history.append(float(algorithm.train()["env_runners"]["episode_return_mean"]))
        if iteration % 10 == 0 or iteration == args.iterations - 1:
            steps = (iteration + 1) * batch
            print(f"step {steps:7d}  mean return {history[-1]:.3f}", flush=True)
    algorithm.stop()
    return history


if __name__ == "__main__":
    main()
