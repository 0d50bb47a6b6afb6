"""Answers to chapter 10. Of a wrong one the docstring says which quantity a hint must name."""

import math

import numpy as np
import torch


def probability_ratios__right1(new_logits, old_logits, actions):
    found = []
    for new, old, action in zip(new_logits, old_logits, actions, strict=True):
        p = math.exp(new[action]) / sum(map(math.exp, new))
        found.append(p * sum(map(math.exp, old)) / math.exp(old[action]))
    return found


def probability_ratios__right2(new_logits, old_logits, actions):
    new, old = (
        torch.distributions.Categorical(logits=torch.tensor(each)).log_prob(torch.tensor(actions))
        for each in (new_logits, old_logits)
    )
    return (new - old).exp()


def probability_ratios__wrong1(new_logits, old_logits, actions):
    """rho: no softmax"""
    t = np.arange(len(actions))
    return np.exp(new_logits[t, actions] - old_logits[t, actions])


def probability_ratios__wrong2(new_logits, old_logits, actions):
    """rho: log-ratio"""
    t = np.arange(len(actions))
    new, old = (torch.tensor(each).log_softmax(-1).numpy()[t, actions] for each in (new_logits, old_logits))
    return new - old


def probability_ratios__wrong3(new_logits, old_logits, actions):
    """rho: the other way round"""
    t = np.arange(len(actions))
    new, old = (torch.tensor(each).softmax(-1).numpy()[t, actions] for each in (new_logits, old_logits))
    return old / new


def probability_ratios__wrong4(new_logits, old_logits, actions):
    """rho: of all tokens"""
    return torch.tensor(new_logits).softmax(-1) / torch.tensor(old_logits).softmax(-1)


def clipped_surrogate_loss__right1(ratios, advantages, clip):
    total, outside = 0.0, 0
    for rho, a in zip(ratios, advantages, strict=True):
        bound = 1 + clip if a > 0 else 1 - clip
        total -= a * (min(rho, bound) if a > 0 else max(rho, bound))
        outside += rho < 1 - clip or rho > 1 + clip
    return total / len(ratios), outside / len(ratios)


def clipped_surrogate_loss__right2(ratios, advantages, clip):
    rho, a = torch.tensor(ratios), torch.tensor(advantages)
    loss = torch.max(-rho * a, -rho.clamp(1 - clip, 1 + clip) * a).mean()
    return loss, ((rho - 1).abs() > clip).double().mean()


def clipped_surrogate_loss__wrong1(ratios, advantages, clip):
    """loss: the maximum of gains"""
    kept = np.clip(ratios, 1 - clip, 1 + clip)
    return -np.maximum(ratios * advantages, kept * advantages).mean(), np.mean(abs(ratios - 1) > clip)


def clipped_surrogate_loss__wrong2(ratios, advantages, clip):
    """loss: a sum"""
    kept = np.clip(ratios, 1 - clip, 1 + clip)
    return -np.minimum(ratios * advantages, kept * advantages).sum(), np.mean(abs(ratios - 1) > clip)


def clipped_surrogate_loss__wrong3(ratios, advantages, clip):
    """clip fraction: only where the gradient is cut"""
    kept = np.clip(ratios, 1 - clip, 1 + clip)
    cut = kept * advantages < ratios * advantages
    return -np.minimum(ratios * advantages, kept * advantages).mean(), np.mean(cut)


def clipped_surrogate_loss__wrong4(ratios, advantages, clip):
    """loss: clips the product"""
    gain = np.clip(ratios * advantages, 1 - clip, 1 + clip)
    return -np.minimum(ratios * advantages, gain).mean(), np.mean(abs(ratios - 1) > clip)


def gae_advantages__right1(rewards, values, gamma, lam):
    length = len(rewards)
    deltas = [rewards[t] + (gamma * values[t + 1] if t + 1 < length else 0.0) - values[t] for t in range(length)]
    return [sum((gamma * lam) ** (j - t) * deltas[j] for j in range(t, length)) for t in range(length)]


def gae_advantages__right2(rewards, values, gamma, lam):
    # lambda-returns: G_t = r_t + gamma ((1 - lam) V(s_t+1) + lam G_t+1)
    found, later, value = [], 0.0, 0.0
    for reward, own in zip(rewards[::-1], values[::-1], strict=True):
        later = reward + gamma * ((1 - lam) * value + lam * later)
        value = own
        found.append(later - own)
    return np.array(found[::-1])


def gae_advantages__wrong1(rewards, values, gamma, lam):
    """A: bootstraps after the end"""
    following = np.append(values[1:], values[-1])
    deltas, later = rewards + gamma * following - values, 0.0
    found = np.zeros(len(deltas))
    for t in reversed(range(len(deltas))):
        found[t] = later = deltas[t] + gamma * lam * later
    return found


def gae_advantages__wrong2(rewards, values, gamma, lam):
    """A: V of the same state in place of the next"""
    deltas, later = rewards + gamma * values - values, 0.0
    found = np.zeros(len(deltas))
    for t in reversed(range(len(deltas))):
        found[t] = later = deltas[t] + gamma * lam * later
    return found


def gae_advantages__wrong3(rewards, values, gamma, lam):
    """A: sums forwards"""
    deltas, later = rewards + gamma * np.append(values[1:], 0.0) - values, 0.0
    found = np.zeros(len(deltas))
    for t in range(len(deltas)):
        found[t] = later = deltas[t] + gamma * lam * later
    return found


def gae_advantages__wrong4(rewards, values, gamma, lam):
    """A: lambda alone"""
    deltas, later = rewards + gamma * np.append(values[1:], 0.0) - values, 0.0
    found = np.zeros(len(deltas))
    for t in reversed(range(len(deltas))):
        found[t] = later = deltas[t] + lam * later
    return found


def rlhf_token_rewards__right1(score, log_probs, ref_log_probs, beta):
    last = len(log_probs) - 1
    return [
        beta * (base - own) + (score if t == last else 0.0)
        for t, (own, base) in enumerate(zip(log_probs, ref_log_probs, strict=True))
    ]


def rlhf_token_rewards__right2(score, log_probs, ref_log_probs, beta):
    paid = np.zeros(len(log_probs))
    paid[-1] = score
    return torch.tensor(paid) - beta * (torch.tensor(log_probs) - torch.tensor(ref_log_probs))


def rlhf_token_rewards__wrong1(score, log_probs, ref_log_probs, beta):
    """r: the sign of the KL"""
    rewards = beta * (log_probs - ref_log_probs)
    rewards[-1] += score
    return rewards


def rlhf_token_rewards__wrong2(score, log_probs, ref_log_probs, beta):
    """r: the score everywhere"""
    return score - beta * (log_probs - ref_log_probs)


def rlhf_token_rewards__wrong3(score, log_probs, ref_log_probs, beta):
    """r: the last token is not charged"""
    rewards = -beta * (log_probs - ref_log_probs)
    rewards[-1] = score
    return rewards


def rlhf_token_rewards__wrong4(score, log_probs, ref_log_probs, beta):
    """r: probabilities in place of logs"""
    rewards = -beta * (np.exp(log_probs) - np.exp(ref_log_probs))
    rewards[-1] += score
    return rewards


def explained_variance__right1(returns, values):
    errors = [r - v for r, v in zip(returns, values, strict=True)]
    spread = [sum((x - sum(xs) / len(xs)) ** 2 for x in xs) for xs in (errors, list(returns))]
    return 1 - spread[0] / spread[1]


def explained_variance__right2(returns, values):
    table = np.cov(returns, values)
    return (2 * table[0, 1] - table[1, 1]) / table[0, 0]


def explained_variance__wrong1(returns, values):
    """explained variance: R squared of the errors"""
    return 1 - np.mean((returns - values) ** 2) / np.var(returns)


def explained_variance__wrong2(returns, values):
    """explained variance: a squared correlation"""
    if np.ptp(values) == 0:
        return 0.0
    return np.corrcoef(returns, values)[0, 1] ** 2


def explained_variance__wrong3(returns, values):
    """explained variance: deviations in place of variances"""
    return 1 - np.std(returns - values) / np.std(returns)


def explained_variance__wrong4(returns, values):
    """explained variance: what is left"""
    return np.var(returns - values) / np.var(returns)
