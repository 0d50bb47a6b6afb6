"""Chapter 10: PPO with a KL penalty."""

import numpy as np
import torch


def probability_ratios(new_logits, old_logits, actions):
    """Return (T,) array of ratios rho_t of the tokens that were taken."""
    new = torch.tensor(new_logits).log_softmax(-1).numpy()
    old = torch.tensor(old_logits).log_softmax(-1).numpy()
    t = np.arange(len(actions))
    return np.exp(new[t, actions] - old[t, actions])


def clipped_surrogate_loss(ratios, advantages, clip):
    """Return PPO's policy loss, a mean over tokens, and the clip fraction."""
    kept = np.clip(ratios, 1 - clip, 1 + clip)
    loss = -np.minimum(ratios * advantages, kept * advantages).mean()
    return loss, np.mean(kept != ratios)


def gae_advantages(rewards, values, gamma, lam):
    """Return (T,) array of GAE advantages of an episode that has ended."""
    advantages, later, next_value = np.zeros(len(rewards)), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_value - values[t]
        advantages[t] = later = delta + gamma * lam * later
        next_value = values[t]
    return advantages


def rlhf_token_rewards(score, log_probs, ref_log_probs, beta):
    """Return (T,) array of token rewards of one answer."""
    rewards = -beta * (log_probs - ref_log_probs)
    rewards[-1] += score
    return rewards


def explained_variance(returns, values):
    """Return the explained variance of a critic."""
    return 1 - np.var(returns - values) / np.var(returns)
