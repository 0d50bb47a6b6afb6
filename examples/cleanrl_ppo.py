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
from typing import Any, NamedTuple

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


class Batch(NamedTuple):
    """T tokens of N texts. Every tensor is (T, N); `ids` is (T, N, L)."""

    ids: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    rewards: Tensor
    ends: Tensor

    @classmethod
    def empty(cls, steps: int, num_envs: int, length: int) -> Batch:
        """Zeros to write into."""
        shape = (steps, num_envs)
        numbers = [torch.zeros(shape) for _ in range(4)]
        return cls(torch.zeros((*shape, length), dtype=torch.int64), torch.zeros(shape, dtype=torch.int64), *numbers)


class Writer:
    """Writes in N environments, and remembers where every text stands."""

    def __init__(self, args: argparse.Namespace) -> None:
        # SAME_STEP: where a text ends, the next observation is already the next prompt, so no step is wasted.
        self.envs: Any = gym.make_vec(args.env_id, num_envs=args.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        self.vocabulary = int(self.envs.single_action_space.n)  # V
        self.length = self.envs.single_observation_space["input_ids"].shape[0]  # L
        observation, _ = self.envs.reset(seed=args.seed)
        self.ids = tokens(observation, self.vocabulary)  # (N, L)
        self.returns = np.zeros(args.num_envs)  # of the episodes under way
        self.written = np.zeros(args.num_envs, dtype=np.int64)  # tokens of these episodes

    def allowed(self) -> Tensor:
        """The tokens (V,) that may be written."""
        masks = getattr(self.envs.unwrapped, "action_masks", None)
        return torch.from_numpy(masks()[0]) if masks else torch.ones(self.vocabulary, dtype=torch.bool)

    def write(self, agent: Agent, args: argparse.Namespace) -> tuple[Batch, float]:
        """Write T tokens in every environment. Returns: them, and the mean return of the episodes that ended."""
        batch, returns = Batch.empty(args.num_steps, args.num_envs, self.length), []
        for t in range(args.num_steps):
            with torch.no_grad():
                distribution, values = agent(self.ids)
                actions = distribution.sample()  # (N,)
            batch.ids[t], batch.actions[t], batch.values[t] = self.ids, actions, values
            batch.log_probs[t] = distribution.log_prob(actions)
            observation, rewards, terminated, truncated, _ = self.envs.step(actions.numpy())
            # An outer time limit would need the value of the last text in place of 0; TextGym itself never truncates.
            ends = terminated | truncated
            paid = args.gamma**self.written * rewards
            batch.rewards[t], batch.ends[t] = torch.from_numpy(paid), torch.from_numpy(ends)
            self.ids = tokens(observation, self.vocabulary)
            self.returns, self.written = self.returns + paid, self.written + 1
            returns.extend(self.returns[ends].tolist())
            self.returns[ends], self.written[ends] = 0.0, 0
        return batch, float(np.mean(returns)) if returns else float("nan")


def advantages_of(batch: Batch, next_values: Tensor, gae_lambda: float) -> Tensor:
    """Generalised advantage estimation (T, N), from the last step back; next_values (N,) are those after it."""
    advantages, carried = torch.zeros_like(batch.values), torch.zeros_like(next_values)
    for t in reversed(range(len(advantages))):
        alive = 1.0 - batch.ends[t]  # nothing flows back over the end of a text
        delta = batch.rewards[t] + next_values * alive - batch.values[t]
        carried = delta + gae_lambda * alive * carried
        advantages[t], next_values = carried, batch.values[t]
    return advantages


def update(
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    advantages: Tensor,
    generator: np.random.Generator,
    args: argparse.Namespace,
) -> float:
    """Learn from a batch in shuffled mini-batches. Returns: the entropy of the policy on the last of them, nats."""
    # From (T, N, ...) to (T * N, ...).
    ids, actions = batch.ids.flatten(0, 1), batch.actions.flatten()
    old_log_probs, targets = batch.log_probs.flatten(), (advantages + batch.values).flatten()
    advantages = advantages.flatten()
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
    return float(entropy.item())


def main(words: list[str] | None = None) -> list[float]:
    """Trains. Returns: the mean return of the episodes that ended in each iteration."""
    args = parse_args(words)
    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)
    writer = Writer(args)
    agent = Agent(writer.vocabulary, writer.length, args.hidden, writer.allowed())
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    history: list[float] = []
    iterations = args.total_timesteps // (args.num_steps * args.num_envs)
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - iteration / iterations)
        batch, mean_return = writer.write(agent, args)
        history.append(mean_return)
        with torch.no_grad():
            next_values = agent(writer.ids)[1]  # (N,)
        advantages = advantages_of(batch, next_values, args.gae_lambda)
        entropy = update(agent, optimizer, batch, advantages, generator, args)
        if iteration % 10 == 0 or iteration == iterations - 1:
            steps = (iteration + 1) * args.num_steps * args.num_envs
            print(f"step {steps:7d}  mean return {mean_return:.3f}  entropy {entropy:.3f}", flush=True)
    writer.envs.close()
    return history


if __name__ == "__main__":
    main()
