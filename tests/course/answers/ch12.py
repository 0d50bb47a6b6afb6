"""Answers to chapter 12. Of a wrong one the docstring says which quantity a hint must name."""

import math

import numpy as np
import torch


def tempered_log_probs__right1(logits, temperature):
    return torch.tensor(logits / temperature).log_softmax(-1)


def tempered_log_probs__right2(logits, temperature):
    rows = []
    for row in logits:
        total = sum(math.exp(x / temperature) for x in row)
        rows.append([x / temperature - math.log(total) for x in row])
    return rows


def tempered_log_probs__wrong1(logits, temperature):
    """log pi: no temperature"""
    return torch.tensor(logits).log_softmax(-1)


def tempered_log_probs__wrong2(logits, temperature):
    """log pi: divided after the softmax"""
    return torch.tensor(logits).log_softmax(-1) / temperature


def tempered_log_probs__wrong3(logits, temperature):
    """log pi: multiplied"""
    return torch.tensor(logits * temperature).log_softmax(-1)


def tempered_log_probs__wrong4(logits, temperature):
    """log pi: probabilities"""
    return torch.tensor(logits / temperature).softmax(-1)


def tempered_log_probs__wrong5(logits, temperature):
    """log pi: every row over the sum of the first"""
    return logits / temperature - np.log(np.exp(logits[0] / temperature).sum())


def action_mask__right1(tokens, lengths, pad):
    return [[t < n for t in range(tokens.shape[1])] for n in lengths]


def action_mask__right2(tokens, lengths, pad):
    mask = np.zeros(tokens.shape)
    for row, n in enumerate(lengths):
        mask[row, :n] = 1
    return mask


def action_mask__wrong1(tokens, lengths, pad):
    """mask: from ids"""
    return tokens != pad


def action_mask__wrong2(tokens, lengths, pad):
    """mask: one too long"""
    return np.arange(tokens.shape[1]) <= lengths[:, None]


def action_mask__wrong3(tokens, lengths, pad):
    """mask: up to the first pad"""
    return np.cumprod(tokens != pad, axis=1)


def scores_on_tokens__right1(scores, lengths, width):
    return [[s if t == n - 1 else 0.0 for t in range(width)] for s, n in zip(scores, lengths, strict=True)]


def scores_on_tokens__right2(scores, lengths, width):
    return np.eye(width)[lengths - 1] * scores[:, None]


def scores_on_tokens__wrong1(scores, lengths, width):
    """r: the last column"""
    rewards = np.zeros((len(scores), width))
    rewards[:, -1] = scores
    return rewards


def scores_on_tokens__wrong2(scores, lengths, width):
    """r: on all tokens"""
    return (np.arange(width) < lengths[:, None]) * scores[:, None]


def scores_on_tokens__wrong3(scores, lengths, width):
    """r: one after the end"""
    return np.roll(np.eye(width)[lengths - 1] * scores[:, None], 1, axis=1)


def discounted_rewards__right1(rewards, gamma):
    return [[gamma**t * r for t, r in enumerate(row)] for row in rewards]


def discounted_rewards__right2(rewards, gamma):
    factors = np.cumprod(np.concatenate([[1.0], np.full(rewards.shape[1] - 1, gamma)]))
    return rewards * factors


def discounted_rewards__wrong1(rewards, gamma):
    """gamma^t r: from t = 1"""
    return rewards * np.cumprod(np.full(rewards.shape, gamma), axis=1)


def discounted_rewards__wrong2(rewards, gamma):
    """gamma^t r: gamma once, whatever t"""
    return rewards * gamma


def discounted_rewards__wrong3(rewards, gamma):
    """gamma^t r: returns, not rewards"""
    found = rewards * gamma ** np.arange(rewards.shape[1])
    return found[:, ::-1].cumsum(1)[:, ::-1]


def discounted_rewards__wrong4(rewards, gamma):
    """gamma^t r: from the end"""
    return rewards * gamma ** np.arange(rewards.shape[1])[::-1]


def charged_rewards__right1(rewards, log_probs, ref_log_probs, beta):
    return rewards + beta * np.log(np.exp(ref_log_probs) / np.exp(log_probs))


def charged_rewards__right2(rewards, log_probs, ref_log_probs, beta):
    found = torch.tensor(rewards).clone()
    found -= beta * torch.tensor(log_probs)
    found += beta * torch.tensor(ref_log_probs)
    return found


def charged_rewards__wrong1(rewards, log_probs, ref_log_probs, beta):
    """r: the sign"""
    return rewards - beta * (ref_log_probs - log_probs)


def charged_rewards__wrong2(rewards, log_probs, ref_log_probs, beta):
    """r: k3 in place of the log-ratio"""
    ratio = ref_log_probs - log_probs
    return rewards - beta * (np.exp(ratio) - 1 - ratio)


def charged_rewards__wrong3(rewards, log_probs, ref_log_probs, beta):
    """r: the entropy alone"""
    return rewards - beta * log_probs


def charged_rewards__wrong4(rewards, log_probs, ref_log_probs, beta):
    """r: without beta"""
    return rewards - (log_probs - ref_log_probs)


def gae_rows__right1(rewards, values, lengths, lam):
    found = np.zeros(rewards.shape)
    for row, n in enumerate(lengths):
        deltas = rewards[row, :n] + np.append(values[row, 1:n], 0.0) - values[row, :n]
        for t in range(n):
            found[row, t] = sum(lam**k * deltas[t + k] for k in range(n - t))
    return found


def gae_rows__right2(rewards, values, lengths, lam):
    real = np.arange(rewards.shape[1]) < lengths[:, None]
    rewards, values = rewards * real, values * real
    deltas = rewards + np.pad(values[:, 1:], ((0, 0), (0, 1))) - values
    wait = np.arange(rewards.shape[1])[None, :] - np.arange(rewards.shape[1])[:, None]
    return deltas @ np.where(wait >= 0, float(lam) ** np.maximum(wait, 0), 0.0).T


def gae_rows__wrong1(rewards, values, lengths, lam):
    """A: V of the padding after the end"""
    found, later = np.zeros(rewards.shape), 0.0
    real = np.arange(rewards.shape[1]) < lengths[:, None]
    following = np.pad(values[:, 1:], ((0, 0), (0, 1)))
    for t in reversed(range(rewards.shape[1])):
        later = real[:, t] * (rewards[:, t] + following[:, t] - values[:, t] + lam * later)
        found[:, t] = later
    return found


def gae_rows__wrong2(rewards, values, lengths, lam):
    """A: rows are joined"""
    found, later, following = np.zeros(rewards.shape), 0.0, 0.0
    for row in reversed(range(len(rewards))):
        for t in reversed(range(lengths[row])):
            later = rewards[row, t] + following - values[row, t] + lam * later
            found[row, t] = later
            following = values[row, t]
    return found


def gae_rows__wrong3(rewards, values, lengths, lam):
    """A: no critic"""
    found = np.zeros(rewards.shape)
    for row, n in enumerate(lengths):
        later = 0.0
        for t in reversed(range(n)):
            later = rewards[row, t] + lam * later
            found[row, t] = later
    return found


def whitened__right1(advantages, mask):
    count = mask.sum()
    mean = (advantages * mask).sum() / count
    variance = ((advantages - mean) ** 2 * mask).sum() / count
    return (advantages - mean) / np.sqrt(variance) * mask


def whitened__right2(advantages, mask):
    found = np.zeros(advantages.shape)
    real = torch.tensor(advantages[mask])
    found[mask] = ((real - real.mean()) / real.std(unbiased=False)).numpy()
    return found


def whitened__wrong1(advantages, mask):
    """A: over the padding"""
    return mask * (advantages - advantages.mean()) / advantages.std()


def whitened__wrong2(advantages, mask):
    """A: each row by itself"""
    found = np.zeros(advantages.shape)
    for row, own in enumerate(mask):
        real = advantages[row, own]
        found[row, own] = (real - real.mean()) / (real.std() + 1e-8)
    return found


def whitened__wrong3(advantages, mask):
    """A: the variance, not its root"""
    real = advantages[mask]
    return mask * (advantages - real.mean()) / real.var()


def whitened__wrong4(advantages, mask):
    """A: the padding is moved"""
    real = advantages[mask]
    return (advantages - real.mean()) / real.std()


def ppo_losses__right1(log_probs, old_log_probs, advantages, clip):
    ratio = (log_probs - old_log_probs).exp()
    return torch.max(-ratio * advantages, -ratio.clip(1 - clip, 1 + clip) * advantages)


def ppo_losses__right2(log_probs, old_log_probs, advantages, clip):
    found = []
    for new, old, a in zip(log_probs.tolist(), old_log_probs.tolist(), advantages.tolist(), strict=True):
        rho = math.exp(new - old)
        found.append(-a * (min(rho, 1 + clip) if a > 0 else max(rho, 1 - clip)))
    return found


def ppo_losses__wrong1(log_probs, old_log_probs, advantages, clip):
    """loss: ratios of 1"""
    ratio = torch.exp(log_probs - log_probs.detach())
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def ppo_losses__wrong2(log_probs, old_log_probs, advantages, clip):
    """loss: the maximum"""
    ratio = torch.exp(log_probs - old_log_probs)
    return -torch.maximum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def ppo_losses__wrong3(log_probs, old_log_probs, advantages, clip):
    """loss: turned round"""
    ratio = torch.exp(old_log_probs - log_probs)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def ppo_losses__wrong4(log_probs, old_log_probs, advantages, clip):
    """loss: a mean"""
    ratio = torch.exp(log_probs - old_log_probs)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def micro_batch_loss__right1(losses, mask, tokens):
    return losses[mask].sum() / tokens


def micro_batch_loss__right2(losses, mask, tokens):
    return sum(float(x) for row, real in zip(losses, mask, strict=True) for x in row[real]) / tokens


def micro_batch_loss__wrong1(losses, mask, tokens):
    """loss: over the rectangle"""
    return (losses * mask).mean()


def micro_batch_loss__wrong2(losses, mask, tokens):
    """loss: a mean of its own"""
    return losses[mask].mean()


def micro_batch_loss__wrong3(losses, mask, tokens):
    """loss: means of rows"""
    return ((losses * mask).sum(1) / mask.sum(1)).mean()


def micro_batch_loss__wrong4(losses, mask, tokens):
    """loss: no mask"""
    return losses.sum() / tokens


def mean_kl__right1(log_ratios, mask):
    return np.where(mask, log_ratios, 0.0).sum(1).mean()


def mean_kl__right2(log_ratios, mask):
    return sum(sum(row[real]) for row, real in zip(log_ratios, mask, strict=True)) / len(mask)


def mean_kl__wrong1(log_ratios, mask):
    """KL: per token"""
    return log_ratios[mask].mean()


def mean_kl__wrong2(log_ratios, mask):
    """KL: a mean of means"""
    return np.mean([row[real].mean() for row, real in zip(log_ratios, mask, strict=True)])


def mean_kl__wrong3(log_ratios, mask):
    """KL: absolute values"""
    return (abs(log_ratios) * mask).sum() / len(mask)


def mean_kl__wrong4(log_ratios, mask):
    """KL: of the batch"""
    return (log_ratios * mask).sum()
