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


def padded(every):
    """Prompts with completions as one batch (B, L); and the row, the column and the action of every state (N,)."""
    tokens = [each.prompt + each.completion for each in every]
    ids = torch.zeros((len(every), max(map(len, tokens))), dtype=torch.long)
    for row, each in zip(ids, tokens, strict=True):
        row[: len(each)] = torch.tensor(each)
    places = [
        (row, len(each.prompt) - 1 + step, action)
        for row, each in enumerate(every)
        for step, action in enumerate(each.completion)
    ]
    return ids, *torch.tensor(places).T


def state_log_probs(policy, every):
    """(T, V) log-probabilities in the states of each trajectory, one plain forward pass, differentiable.

    What stands behind a state changes nothing in it, so that shorter ones may be padded on the right.
    """
    ids, rows, columns, _ = padded(every)
    logits = policy.model(ids).logits[rows, columns]
    return torch.log_softmax(logits / policy.temperature, -1).split([len(each.completion) for each in every])


def beside(agent, other):
    """Every trajectory, the agent's log-probabilities (T, V) in its states, differentiable, and another policy's."""
    every = trajectories(agent.task)
    with torch.no_grad():
        fixed = state_log_probs(other, every)
    return zip(every, state_log_probs(agent.policy, every), fixed, strict=True)


def exact_objective(agent, beta=BETA):
    """J = sum over trajectories of rho(x) P(y) (gamma^t R - beta * KL of the states on the way), differentiable."""
    total = torch.zeros(())
    for trajectory, own, base in beside(agent, agent.reference):
        actions = torch.tensor(trajectory.completion)
        probability = 0.5 * own.gather(1, actions[:, None]).sum().exp()
        kl = (own.exp() * (own - base)).sum()
        paid = agent.task.gamma ** (len(trajectory.completion) - 1) * trajectory.score
        total = total + probability * (paid - beta * kl)
    return total


@torch.no_grad()
def full_rollout(agent):
    """All trajectories as one rollout, and their probabilities (B,)."""
    every = trajectories(agent.task)
    ids, rows, columns, actions = padded(every)
    own = state_log_probs(agent.policy, every)
    taken = torch.cat(own).gather(1, actions[:, None]).squeeze(1)
    lengths = np.array([len(each.completion) for each in every])
    rewards = np.zeros(len(rows))
    rewards[np.cumsum(lengths) - 1] = [each.score for each in every]
    rollout = Rollout(
        input_ids=ids,
        rows=rows.numpy(),
        columns=columns.numpy(),
        steps=np.concatenate([np.arange(length) for length in lengths]),
        actions=actions,
        log_probs=taken,
        values=torch.zeros(len(rows)),
        features=agent.policy.features(ids, rows, columns),
        rewards=rewards,
        lengths=lengths,
        bootstrap=np.zeros(len(every)),
        truncated=np.zeros(len(every), dtype=bool),
        stopped=np.array([each.completion[-1] == STOP for each in every]),
    )
    return rollout, 0.5 * np.exp(np.bincount(rollout.rows, taken.double().numpy()))


def first_metrics(agent, env):
    """The metrics of the first iteration."""
    seen = []
    agent.learn(env, env.num_envs, seen.append)
    return seen[0]
