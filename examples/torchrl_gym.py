"""PPO with TorchRL on a TextGym environment: `GymEnv`, a collector, TorchRL's own loss and advantages.

    pip install "textgym[lm,torchrl]"
    python examples/torchrl_gym.py --env-id textgym:textgym/Copy-v0 --total-timesteps 30000

`GymEnv` makes one environment; `SerialEnv` holds several of them. Faster, with the same tensors: the native vector
environment, `GymWrapper(gym.make_vec(env_id, num_envs, autoreset_mode=AutoresetMode.DISABLED), ...)`.

Source: https://docs.pytorch.org/rl; Schulman et al. (2017), arXiv:1707.06347.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, SerialEnv
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

TEXT = ["input_ids", "attention_mask"]  # what a network reads


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env-id", default="textgym:textgym/Copy-v0", help="module:id of the environment")
    parser.add_argument("--seed", type=int, default=1, help="of prompts, weights and sampling")
    parser.add_argument("--total-timesteps", type=int, default=30_000, help="tokens to write")
    parser.add_argument("--num-envs", type=int, default=16, help="texts written side by side")
    parser.add_argument("--num-steps", type=int, default=24, help="tokens of each of them per iteration")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="Adam's")
    return parser.parse_args(words)


class TextNetwork(nn.Module):
    """Embeddings of the tokens, and of their places, through two layers.

    Args:
        vocabulary: V, tokens. length: L, columns of an observation. outputs: width of the result.
    """

    def __init__(self, vocabulary: int, length: int, outputs: int, hidden: int = 64) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary + 1, hidden)  # one more for columns that are no text
        self.body = nn.Sequential(nn.Linear(length * hidden, 2 * hidden), nn.Tanh(), nn.Linear(2 * hidden, outputs))
        nn.init.orthogonal_(self.body[-1].weight, 0.01)  # the first policy is almost uniform

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(..., outputs) of texts (..., L): what stands where there is no text is not read."""
        ids = torch.where(attention_mask == 1, input_ids, self.vocabulary)
        return self.body(self.embedding(ids).flatten(-2))  # (..., L * H) -> (..., outputs)


def main(words: list[str] | None = None) -> list[float]:
    """Trains. Returns: the mean return of the episodes that ended in each iteration."""
    args = parse_args(words)
    torch.manual_seed(args.seed)
    # Actions are token ids, as Gymnasium has them, not one-hot vectors.
    env = SerialEnv(args.num_envs, partial(GymEnv, args.env_id, categorical_action_encoding=True))
    env.set_seed(args.seed)
    vocabulary, length = int(env.action_spec.space.n), env.observation_spec["input_ids"].shape[-1]

    actor = ProbabilisticActor(
        TensorDictModule(TextNetwork(vocabulary, length, vocabulary), in_keys=TEXT, out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
    )
    critic = ValueOperator(TextNetwork(vocabulary, length, 1), in_keys=TEXT)
    advantage = GAE(gamma=1.0, lmbda=0.95, value_network=critic)
    loss_module = ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_coeff=0.01, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=args.learning_rate)

    per_batch = args.num_envs * args.num_steps
    total = args.total_timesteps // per_batch * per_batch
    history: list[float] = []
    collector = Collector(env, actor, frames_per_batch=per_batch, total_frames=total)
    for batch in collector:  # (N, T)
        # TextGym pays tasks like Copy at the end of a text, so the reward there is the return.
        ended = batch["next", "done"]
        history.append(float(batch["next", "reward"][ended].mean()))
        for _ in range(4):
            with torch.no_grad():
                advantage(batch)
            for rows in torch.randperm(per_batch).chunk(4):
                losses = loss_module(batch.reshape(-1)[rows])
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(loss_module.parameters(), 0.5)
                optimizer.step()
        if len(history) % 10 == 1 or len(history) * per_batch == total:
            print(f"step {len(history) * per_batch:7d}  mean return {history[-1]:.3f}", flush=True)
    collector.shutdown()
    return history


if __name__ == "__main__":
    main()
