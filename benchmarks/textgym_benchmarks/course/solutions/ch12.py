"""Chapter 12: what goes wrong."""

import numpy as np
import torch


def tempered_log_probs(logits, temperature):
    """Return (N, V) log-probabilities of the policy that samples at this temperature."""
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def action_mask(tokens, lengths, pad):
    """Return (B, T) of truth values: where the policy has written a token."""
    return np.arange(tokens.shape[1]) < lengths[:, None]


def scores_on_tokens(scores, lengths, width):
    """Return (B, width) rewards: the score of each answer on its last token."""
    rewards = np.zeros((len(scores), width))
    rewards[np.arange(len(scores)), lengths - 1] = scores
    return rewards


def discounted_rewards(rewards, gamma):
    """Return (B, T) gamma^t r_t, t from 0."""
    return rewards * gamma ** np.arange(rewards.shape[1])


def charged_rewards(rewards, log_probs, ref_log_probs, beta):
    """Return (B, T) rewards less beta times the log-ratio."""
    return rewards - beta * (log_probs - ref_log_probs)


def gae_rows(rewards, values, lengths, lam):
    """Return (B, T) GAE advantages of finished answers, 0 after their ends; nothing is discounted."""
    advantages = np.zeros(rewards.shape)
    for row, length in enumerate(lengths):
        later, next_value = 0.0, 0.0
        for t in reversed(range(length)):
            later = rewards[row, t] + next_value - values[row, t] + lam * later
            advantages[row, t] = later
            next_value = values[row, t]
    return advantages


def whitened(advantages, mask):
    """Return (B, T) advantages with mean 0 and standard deviation 1 over real tokens, 0 elsewhere."""
    real = advantages[mask]
    return np.where(mask, (advantages - real.mean()) / max(real.std(), 1e-8), 0.0)


def ppo_losses(log_probs, old_log_probs, advantages, clip):
    """Return PPO's clipped loss of every token."""
    ratio = torch.exp(log_probs - old_log_probs)
    kept = torch.clamp(ratio, 1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantages, kept * advantages)


def micro_batch_loss(losses, mask, tokens):
    """Return what a micro-batch adds to the mean over all real tokens of its batch."""
    return (losses * mask).sum() / tokens


def mean_kl(log_ratios, mask):
    """Return the KL of a batch in nats per answer."""
    return (log_ratios * mask).sum() / len(mask)
