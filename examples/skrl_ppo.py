"""skrl's PPO on TextGym's vector environment: skrl's own wrapper, memory and trainer.

    python -m venv .venv-skrl && .venv-skrl/bin/python -m pip install textgym "skrl[torch]==2.1.1"
    .venv-skrl/bin/python examples/skrl_ppo.py --env-id textgym:textgym/Copy-v0 --timesteps 2000

SAME_STEP: a text's last step is marked `terminated`, and the next observation is the next prompt; in NEXT_STEP mode
skrl would learn from the steps on which nothing but a reset happens.

Source: https://skrl.readthedocs.io; Schulman et al. (2017), arXiv:1707.06347.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import Tensor, nn

from textgym.wrappers import VectorOneHotTokens


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env-id", default="textgym:textgym/Copy-v0", help="module:id of the environment")
    parser.add_argument("--seed", type=int, default=1, help="of prompts, weights and sampling")
    parser.add_argument("--timesteps", type=int, default=1500, help="tokens to write in every row")
    parser.add_argument("--num-envs", type=int, default=32, help="texts written side by side")
    return parser.parse_args(words)


class Policy(CategoricalMixin, Model):
    """Logits of the next token."""

    def __init__(self, env: Any) -> None:
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device=env.device)
        CategoricalMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(self.num_observations, 128), nn.Tanh(), nn.Linear(128, self.num_actions))

    def compute(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, V)."""
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    """V of a text."""

    def __init__(self, env: Any) -> None:
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device=env.device)
        DeterministicMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(self.num_observations, 128), nn.Tanh(), nn.Linear(128, 1))

    def compute(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, dict[str, Tensor]]:
        """V (B, 1)."""
        return self.net(inputs["observations"]), {}


def mean_return(agent: PPO, env: Any, steps: int = 90) -> float:
    """The mean return of the texts that end within some steps, sampled."""
    returns, running = [], torch.zeros(env.num_envs)
    observation, _ = env.reset()
    for t in range(steps):
        with torch.no_grad():
            actions, _ = agent.act(observation, None, timestep=t, timesteps=steps)
        observation, rewards, terminated, truncated, _ = env.step(actions)
        running += rewards.flatten()
        ended = (terminated | truncated).flatten()
        returns += running[ended].tolist()
        running[ended] = 0.0
    return float(np.mean(returns))


def main(words: list[str] | None = None) -> list[float]:
    """Trains. Returns: the mean return before and after."""
    args = parse_args(words)
    set_seed(args.seed)
    envs = gym.make_vec(args.env_id, num_envs=args.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=args.seed)
    env = wrap_env(VectorOneHotTokens(envs))
    cfg = PPO_CFG(rollouts=12, learning_epochs=4, mini_batches=4, discount_factor=1.0, learning_rate=2e-3)
    cfg.entropy_loss_scale = 0.01
    cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
    agent = PPO(
        models={"policy": Policy(env), "value": Value(env)},
        memory=RandomMemory(memory_size=cfg.rollouts, num_envs=env.num_envs, device=env.device),
        observation_space=env.observation_space,
        action_space=env.action_space,
        device=env.device,
        cfg=cfg,
    )
    trainer = SequentialTrainer(
        env=env,
        agents=agent,
        cfg={
            "timesteps": args.timesteps,
            "headless": True,
            "disable_progressbar": True,
            "close_environment_at_exit": False,
        },
    )
    before = mean_return(agent, env)
    trainer.train()
    after = mean_return(agent, env)
    print(f"mean return {before:.3f} before, {after:.3f} after")
    return [before, after]


if __name__ == "__main__":
    main()
