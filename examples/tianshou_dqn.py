"""Tianshou's DQN on a TextGym environment, in Tianshou's own vector environment and collector.

    python -m venv .venv-tianshou && .venv-tianshou/bin/python -m pip install textgym "tianshou==2.0.1"
    .venv-tianshou/bin/python examples/tianshou_dqn.py --env-id textgym:textgym/Copy-v0 --epochs 3

`NoInfo`: Tianshou stores infos beside the steps, where texts that come with the last step only would leave arrays of
objects full of holes, which its check for NaN refuses. `OneHotTokens`: its default network takes ids for quantities.

Source: https://tianshou.org; Mnih et al. (2015), doi:10.1038/nature14236.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net

from textgym.wrappers import NoInfo, OneHotTokens


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env-id", default="textgym:textgym/Copy-v0", help="module:id of the environment")
    parser.add_argument("--seed", type=int, default=1, help="of prompts, weights and sampling")
    parser.add_argument("--epochs", type=int, default=3, help="of 3,000 tokens each")
    parser.add_argument("--num-envs", type=int, default=16, help="texts written side by side")
    return parser.parse_args(words)


def make(env_id: str) -> gym.Env[Any, Any]:
    """One environment, as Tianshou reads it."""
    return NoInfo(OneHotTokens(gym.make(env_id)))


def main(words: list[str] | None = None) -> list[float]:
    """Trains. Returns: the mean return of greedy answers before and after."""
    args = parse_args(words)
    np.random.seed(args.seed)  # noqa: NPY002  Tianshou explores by numpy's global generator
    torch.manual_seed(args.seed)
    train, test = (DummyVectorEnv([partial(make, args.env_id)] * args.num_envs) for _ in range(2))
    train.seed(args.seed)
    test.seed(args.seed + 1000)
    single = make(args.env_id)
    shape, actions = single.observation_space.shape, int(single.action_space.n)
    policy = DiscreteQLearningPolicy(
        model=Net(state_shape=shape, action_shape=actions, hidden_sizes=[128, 128]),
        action_space=single.action_space,
        observation_space=single.observation_space,
        eps_training=0.2,
        eps_inference=0.0,
    )
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3), gamma=1.0, target_update_freq=100)
    buffer = VectorReplayBuffer(20_000, args.num_envs)
    collector = Collector(algorithm, train, buffer, exploration_noise=True, raise_on_nan_in_buffer=True)
    tester = Collector(algorithm, test)
    before = float(tester.collect(n_episode=200, reset_before_collect=True).returns.mean())
    algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=collector,
            test_collector=None,
            max_epochs=args.epochs,
            epoch_num_steps=3000,
            collection_step_num_env_steps=96,
            update_step_num_gradient_steps_per_sample=0.2,
            batch_size=128,
            show_progress=False,
            verbose=False,
        )
    )
    after = float(tester.collect(n_episode=200, reset_before_collect=True).returns.mean())
    print(f"mean return {before:.3f} before, {after:.3f} after")
    return [before, after]


if __name__ == "__main__":
    main()
