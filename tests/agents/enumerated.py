"""A token MDP small enough to list every trajectory: the yardstick of the policy-gradient tests."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from lm.tiny_models import tiny_llama
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.rollout import Rollout

from textgym import make_task

WORDS = ("a", "b", "c", "<end>")
STOP = 3
HORIZON = 3
BETA = 0.3


def count_a(prompts, completions, **columns):
    """Pays for the letter a, more for an early stop, and differs by prompt: nothing about it is symmetric."""
    return [
        text.split().count("a") * (1.0 if prompt == "a b" else -0.5) + 0.25 * (len(text.split()) == 1)
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def tiny_task(**options):
    settings = {"reward": count_a, "max_new_tokens": HORIZON, "beta": BETA, **options}
    return make_task("Text", prompts=["a b", "c"], tokenizer=WORDS, stop="<end>", **settings)


def tiny_agent(task=None, shift=0.3, **config):
    """An agent whose policy has moved away from its reference, so that every KL is positive."""
    settings = {
        "whiten": False,
        "lam": 1.0,
        "value_coefficient": 0.0,
        "batch": 16,
        "minibatches": 1,
        **config,
    }
    agent = LMPPO(task or tiny_task(), LMPPOConfig(device="cpu", **settings), model=tiny_llama(len(WORDS)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in agent.policy.model.parameters():
            parameter.add_(shift * torch.randn(parameter.shape, generator=generator))
    agent.value_scale = 1.0
    return agent


@dataclass
class Trajectory:
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    score: float


def trajectories(task):
    """Every completion of every prompt: up to a stop token, or HORIZON tokens."""
    result = []
    for prompt in task.encoded("train"):
        for length in range(1, HORIZON + 1):
            for body in itertools.product(range(STOP), repeat=length - 1):
                lasts = [STOP] if length < HORIZON else [0, 1, 2, STOP]
                for last in lasts:
                    completion = (*body, last)
                    text = " ".join(WORDS[i] for i in completion if i != STOP)
                    (score,) = count_a([prompt.text], [text])
                    result.append(Trajectory(prompt.ids, completion, score))
    return result


def state_log_probs(policy, trajectory):
    """(T, V) log-probabilities in the states of one trajectory, one plain forward pass, differentiable."""
    ids = torch.tensor([trajectory.prompt + trajectory.completion])
    start = len(trajectory.prompt) - 1
    logits = policy.model(ids).logits[0, start : start + len(trajectory.completion)]
    return torch.log_softmax(logits / policy.temperature, -1)


def exact_objective(agent, beta=BETA):
    """J = sum over trajectories of rho(x) P(y) (gamma^t R - beta * KL of the states on the way), differentiable."""
    total = torch.zeros(())
    for trajectory in trajectories(agent.task):
        own = state_log_probs(agent.policy, trajectory)
        with torch.no_grad():
            base = state_log_probs(agent.reference, trajectory)
        actions = torch.tensor(trajectory.completion)
        probability = 0.5 * own.gather(1, actions[:, None]).sum().exp()
        kl = (own.exp() * (own - base)).sum()
        paid = agent.task.gamma ** (len(trajectory.completion) - 1) * trajectory.score
        total = total + probability * (paid - beta * kl)
    return total


def full_rollout(agent):
    """All trajectories as one rollout, and their probabilities (B,)."""
    every = trajectories(agent.task)
    width = max(len(t.prompt) + len(t.completion) for t in every)
    ids = torch.zeros((len(every), width), dtype=torch.long)
    parts = {name: [] for name in ("rows", "columns", "steps", "rewards", "log_probs", "features")}
    probabilities = []
    for row, trajectory in enumerate(every):
        tokens = trajectory.prompt + trajectory.completion
        ids[row, : len(tokens)] = torch.tensor(tokens)
        count = len(trajectory.completion)
        with torch.no_grad():
            own = state_log_probs(agent.policy, trajectory)
        taken = own.gather(1, torch.tensor(trajectory.completion)[:, None]).squeeze(1)
        probabilities.append(0.5 * float(taken.sum().exp()))
        parts["rows"] += [row] * count
        parts["columns"] += range(len(trajectory.prompt) - 1, len(tokens) - 1)
        parts["steps"] += range(count)
        parts["rewards"] += [0.0] * (count - 1) + [trajectory.score]
        parts["log_probs"].append(taken)
        columns = torch.arange(len(trajectory.prompt) - 1, len(tokens) - 1)
        with torch.no_grad():
            parts["features"].append(agent.policy.features(ids[row : row + 1], torch.zeros_like(columns), columns))
    rollout = Rollout(
        input_ids=ids,
        rows=np.array(parts["rows"]),
        columns=np.array(parts["columns"]),
        steps=np.array(parts["steps"]),
        actions=torch.tensor([a for t in every for a in t.completion]),
        log_probs=torch.cat(parts["log_probs"]),
        values=torch.zeros(len(parts["rows"])),
        features=torch.cat(parts["features"]),
        rewards=np.array(parts["rewards"]),
        lengths=np.array([len(t.completion) for t in every]),
        bootstrap=np.zeros(len(every)),
        truncated=np.zeros(len(every), dtype=bool),
        stopped=np.array([t.completion[-1] == STOP for t in every]),
    )
    return rollout, np.array(probabilities)


def first_metrics(agent, env):
    """The metrics of the first iteration."""
    seen = []
    agent.learn(env, env.num_envs, seen.append)
    return seen[0]
