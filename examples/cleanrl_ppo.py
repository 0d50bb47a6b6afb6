"""PPO in one file on a TextGym environment, written against Gymnasium and torch alone.

It reads from top to bottom, in the manner of CleanRL: copy it and change what you like. Run it as

    python examples/cleanrl_ppo.py --env-id textgym:textgym/Copy-v0 --total-timesteps 100000

An observation is a text so far: token ids, padded on the right, and a mask that says which of them are text. An action
is the next token. A reward is discounted from the start of its text, so what is paid for token t counts gamma^t of it,
and values are sums of such rewards: in these units nothing is discounted a second time.

Which tokens may be written does not change in the tasks used here, so the mask of allowed actions is read once; an
environment without `action_masks` allows all.

Source: Schulman et al. (2017), arXiv:1707.06347; Huang et al. (2022), The 37 Implementation Details of PPO.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.distributions import Categorical


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env-id", default="textgym:textgym/Copy-v0", help="module:id of the environment")
    parser.add_argument("--seed", type=int, default=1, help="of prompts, weights and sampling")
    parser.add_argument("--total-timesteps", type=int, default=100_000, help="tokens to write")
    parser.add_argument("--num-envs", type=int, default=64, help="texts written side by side")
    parser.add_argument("--num-steps", type=int, default=12, help="tokens of each of them per iteration")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="Adam's, falling to 0")
    parser.add_argument("--gamma", type=float, default=1.0, help="discount per token")
    parser.add_argument("--gae-lambda", type=float, default=0.95, help="lambda of GAE")
    parser.add_argument("--update-epochs", type=int, default=4, help="passes over a batch")
    parser.add_argument("--num-minibatches", type=int, default=4, help="optimiser steps per pass")
    parser.add_argument("--clip-coef", type=float, default=0.2, help="range of the probability ratio")
    parser.add_argument("--ent-coef", type=float, default=0.01, help="weight of the entropy bonus")
    parser.add_argument("--vf-coef", type=float, default=0.5, help="weight of the value loss")
    parser.add_argument("--max-grad-norm", type=float, default=0.5, help="gradients are scaled down to it")
    parser.add_argument("--hidden", type=int, default=64, help="width of the network")
    return parser.parse_args(words)


class Agent(nn.Module):
    """Policy and value of a text: the embeddings of its tokens, and of their places, through two layers.

    Args:
        vocabulary: V, tokens. length: L, columns of an observation. allowed: (V,) bool.
    """

    def __init__(self, vocabulary: int, length: int, hidden: int, allowed: Tensor) -> None:
        super().__init__()
        self.register_buffer("allowed", allowed)
        self.embedding = nn.Embedding(vocabulary + 1, hidden)  # one more for columns that are no text
        self.body = nn.Sequential(
            nn.Flatten(),  # (B, L, H) -> (B, L * H)
            nn.Linear(length * hidden, 2 * hidden),
            nn.Tanh(),
            nn.Linear(2 * hidden, 2 * hidden),
            nn.Tanh(),
        )
        self.actor = nn.Linear(2 * hidden, vocabulary)
        self.critic = nn.Linear(2 * hidden, 1)
        nn.init.orthogonal_(self.actor.weight, 0.01)  # the first policy is almost uniform
        nn.init.zeros_(self.actor.bias)

    def forward(self, ids: Tensor) -> tuple[Categorical, Tensor]:
        """The distribution of the next token and the value (B,) of texts (B, L) int64, see `tokens`."""
        hidden = self.body(self.embedding(ids))  # (B, 2H)
        logits = self.actor(hidden).masked_fill(~self.allowed, -1e9)  # (B, V)
        return Categorical(logits=logits), self.critic(hidden).squeeze(-1)


def tokens(observation: dict[str, np.ndarray], vocabulary: int) -> Tensor:
    """Ids (B, L) with V in all columns that are no text: what stands there must not be read."""
    return torch.from_numpy(np.where(observation["attention_mask"] == 1, observation["input_ids"], vocabulary))


def main(words: list[str] | None = None) -> list[float]:
    """Trains. Returns: the mean return of the episodes that ended in each iteration."""
    args = parse_args(words)
    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)

    # SAME_STEP: where a text ends, the next observation is already the next prompt, so no step is wasted.
    envs: Any = gym.make_vec(args.env_id, num_envs=args.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    vocabulary = int(envs.single_action_space.n)  # V
    length = envs.single_observation_space["input_ids"].shape[0]  # L
    observation, _ = envs.reset(seed=args.seed)
    masks = getattr(envs.unwrapped, "action_masks", None)
    allowed = torch.from_numpy(masks()[0]) if masks else torch.ones(vocabulary, dtype=torch.bool)

    agent = Agent(vocabulary, length, args.hidden, allowed)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    # T steps of N environments.
    shape = (args.num_steps, args.num_envs)
    all_ids = torch.zeros((*shape, length), dtype=torch.int64)  # (T, N, L)
    all_actions = torch.zeros(shape, dtype=torch.int64)  # (T, N), as all that follow
    all_log_probs, all_values, all_rewards, all_ends = (torch.zeros(shape) for _ in range(4))

    next_ids = tokens(observation, vocabulary)  # (N, L)
    running = np.zeros(args.num_envs)  # returns of the episodes under way
    written = np.zeros(args.num_envs, dtype=np.int64)  # tokens of these episodes
    history: list[float] = []
    iterations = args.total_timesteps // (args.num_steps * args.num_envs)
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - iteration / iterations)

        # Write T tokens in every environment.
        returns: list[float] = []
        for t in range(args.num_steps):
            with torch.no_grad():
                distribution, values = agent(next_ids)
                actions = distribution.sample()  # (N,)
            all_ids[t], all_actions[t], all_values[t] = next_ids, actions, values
            all_log_probs[t] = distribution.log_prob(actions)
            observation, rewards, terminated, truncated, _ = envs.step(actions.numpy())
            # An outer time limit would need the value of the last text in place of 0; TextGym itself never truncates.
            ends = terminated | truncated
            paid = args.gamma**written * rewards
            all_rewards[t], all_ends[t] = torch.from_numpy(paid), torch.from_numpy(ends)
            next_ids = tokens(observation, vocabulary)
            running, written = running + paid, written + 1
            returns.extend(running[ends].tolist())
            running[ends], written[ends] = 0.0, 0
        history.append(float(np.mean(returns)) if returns else float("nan"))

        # Generalised advantage estimation, from the last step back to the first.
        advantages = torch.zeros(shape)
        with torch.no_grad():
            next_values, carried = agent(next_ids)[1], torch.zeros(args.num_envs)  # (N,)
        for t in reversed(range(args.num_steps)):
            alive = 1.0 - all_ends[t]  # nothing flows back over the end of a text
            delta = all_rewards[t] + next_values * alive - all_values[t]
            carried = delta + args.gae_lambda * alive * carried
            advantages[t], next_values = carried, all_values[t]
        targets = advantages + all_values

        # From (T, N, ...) to a batch (T * N, ...), in shuffled mini-batches.
        ids, actions = all_ids.reshape(-1, length), all_actions.reshape(-1)
        old_log_probs, advantages, targets = (x.reshape(-1) for x in (all_log_probs, advantages, targets))
        for _ in range(args.update_epochs):
            for chosen in np.array_split(generator.permutation(len(actions)), args.num_minibatches):
                distribution, values = agent(ids[chosen])
                ratio = (distribution.log_prob(actions[chosen]) - old_log_probs[chosen]).exp()  # (b,)
                scaled = advantages[chosen]
                scaled = (scaled - scaled.mean()) / (scaled.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.minimum(ratio * scaled, clipped * scaled).mean()
                value_loss = 0.5 * (values - targets[chosen]).square().mean()
                entropy = distribution.entropy().mean()
                loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        if iteration % 10 == 0 or iteration == iterations - 1:
            steps = (iteration + 1) * args.num_steps * args.num_envs
            print(f"step {steps:7d}  mean return {history[-1]:.3f}  entropy {entropy.item():.3f}", flush=True)
    envs.close()
    return history


if __name__ == "__main__":
    main()
