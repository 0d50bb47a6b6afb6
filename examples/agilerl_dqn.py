"""AgileRL's DQN on TextGym's vector environment, in AgileRL's own training loop, with the mask of actions.

    python -m venv .venv-agilerl && .venv-agilerl/bin/python -m pip install textgym "agilerl==2.58.0" peft
    .venv-agilerl/bin/python examples/agilerl_dqn.py --env-id textgym:textgym/Copy-v0 --max-steps 12000

`VectorActionMaskInfo`: AgileRL looks for `action_mask`, int8, in the infos. SAME_STEP: its replay buffer would keep the
steps on which NEXT_STEP mode does nothing but reset. AgileRL 2.58 imports PEFT without asking for it.

Source: https://docs.agilerl.com; Mnih et al. (2015), doi:10.1038/nature14236.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
import torch
from agilerl.algorithms import DQN
from agilerl.components.replay_buffer import ReplayBuffer
from agilerl.training.train_off_policy import train_off_policy
from gymnasium.vector import AutoresetMode

from textgym.wrappers import VectorActionMaskInfo, VectorOneHotTokens


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env-id", default="textgym:textgym/Copy-v0", help="module:id of the environment")
    parser.add_argument("--seed", type=int, default=1, help="of prompts, weights and sampling")
    parser.add_argument("--max-steps", type=int, default=12_000, help="tokens to write")
    parser.add_argument("--num-envs", type=int, default=16, help="texts written side by side")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> list[float]:
    """Trains. Returns: the mean return of greedy answers before and after."""
    args = parse_args(words)
    np.random.seed(args.seed)  # noqa: NPY002  AgileRL draws from numpy's global generator
    torch.manual_seed(args.seed)
    envs = gym.make_vec(args.env_id, num_envs=args.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=args.seed)
    env = VectorActionMaskInfo(VectorOneHotTokens(envs))
    agent = DQN(
        env.single_observation_space,
        env.single_action_space,
        net_config={"encoder_config": {"hidden_size": [128]}, "head_config": {"hidden_size": [128]}},
        batch_size=128,
        lr=1e-3,
        learn_step=args.num_envs,
        gamma=1.0,
        tau=0.02,
    )
    before = agent.test(env, loop=12)
    population, _ = train_off_policy(
        env,
        args.env_id,
        "DQN",
        [agent],
        ReplayBuffer(max_size=20_000),
        max_steps=args.max_steps,
        evo_steps=args.max_steps // 2,
        eval_steps=8,
        eps_end=0.1,
        eps_decay=0.99,
        verbose=False,
    )
    after = population[0].test(env, loop=12)
    print(f"mean return {before:.3f} before, {after:.3f} after")
    return [before, after]


if __name__ == "__main__":
    main()
