"""Small agents of every kind, and all groups of trajectories of the enumerated task as one rollout."""

import itertools
from dataclasses import fields, replace

import numpy as np
import torch
from agents.enumerated import BETA, beside, exact_objective, full_rollout, tiny_agent, tiny_task
from lm.tiny_models import tiny_llama
from textgym_agents.lm.metrics import UpdateMeter
from textgym_agents.lm.rollout import micro_batches, score_reference, token_kl


def small_agent(kind, task=None, **config):
    """An agent of this class with the parameters of `tiny_agent`, so that it has left its reference."""
    settings = {"whiten": False, "batch": 16, "minibatches": 1, "device": "cpu", **config}
    known = {field.name for field in fields(kind.config_type)}
    settings = {name: value for name, value in settings.items() if name in known or name in config}
    agent = kind(task or tiny_task(), kind.config_type(**settings), model=tiny_llama(4))
    agent.policy.load_state_dict(tiny_agent().policy.state_dict())
    agent.value_scale = 1.0
    return agent


def take(rollout, rows):
    """Some rows of a rollout, in any order and with repetitions."""
    ends = np.cumsum(rollout.lengths)
    states = np.concatenate([np.arange(ends[row] - rollout.lengths[row], ends[row]) for row in rows])
    lengths = rollout.lengths[rows]
    return replace(
        rollout,
        input_ids=rollout.input_ids[rows],
        rows=np.repeat(np.arange(len(rows)), lengths),
        columns=rollout.columns[states],
        steps=rollout.steps[states],
        actions=rollout.actions[states],
        log_probs=rollout.log_probs[states],
        values=rollout.values[states],
        features=rollout.features[states],
        rewards=rollout.rewards[states],
        lengths=lengths,
        bootstrap=rollout.bootstrap[rows],
        truncated=rollout.truncated[rows],
        stopped=rollout.stopped[rows],
    )


def pairs_rollout(agent):
    """All ordered pairs of completions of the same prompt, and half of each pair's probability for both rows."""
    rollout, probabilities = full_rollout(agent)
    prompts = np.array_split(np.arange(len(probabilities)), 2)  # they come prompt by prompt, equally many of each
    pairs = np.array([pair for own in prompts for pair in itertools.product(own, repeat=2)])
    given = probabilities / 0.5
    weights = 0.5 * given[pairs].prod(1) / 2
    return take(rollout, pairs.ravel()), np.repeat(weights, 2)


def expected_gradient(agent, rollout, weights, make_targets=None):
    """The gradient of the agent's own loss, summed over the tokens of weighted rows."""
    kind = agent.config.kl
    reference = score_reference(agent.reference, rollout, 4096, kind == "exact")
    kl = token_kl(rollout, agent.policy, agent.reference, reference, kind)
    targets = (make_targets or agent._targets)(rollout, kl)
    (part,) = micro_batches(rollout, np.arange(len(rollout.lengths)), len(rollout.lengths))
    features = agent.policy.features(part.input_ids, part.rows, part.columns)
    loss = agent._loss(features, part.states, rollout, targets, reference, UpdateMeter())
    factors = torch.tensor(weights[rollout.rows], dtype=torch.float32)[part.states]
    agent.policy.zero_grad()
    (loss * factors).sum().backward()
    return flat_gradient(agent)


def flat_gradient(agent):
    return torch.cat([p.grad.flatten().clone() for p in agent.policy.model.parameters()])


def objective_gradient(agent):
    agent.policy.zero_grad()
    exact_objective(agent).backward()
    return flat_gradient(agent)


def opposite_kl_gradient(agent):
    """The gradient that k3 in the loss follows: that of the scores, and minus that of beta KL(reference || policy)."""
    total = torch.zeros(())
    for trajectory, own, base in beside(agent, agent.reference):
        taken = own.gather(1, torch.tensor(trajectory.completion)[:, None]).sum()
        opposite = (base.exp() * (base - own)).sum()
        probability = 0.5 * taken.exp()
        total = total + probability * trajectory.score - BETA * probability.detach() * opposite
    agent.policy.zero_grad()
    total.backward()
    return flat_gradient(agent)
