"""Answers to chapter 8. Of a wrong one the docstring says which quantity a hint must name."""

import math
from itertools import combinations, pairwise

import numpy as np
import torch


def reward_score__right1(hidden, length, weights):
    return sum(float(w) * float(h) for w, h in zip(weights, hidden[length - 1], strict=True))


def reward_score__right2(hidden, length, weights):
    head = torch.nn.Linear(len(weights), 1, bias=False, dtype=torch.float64)
    head.weight.data[0] = torch.tensor(weights)
    return head(torch.tensor(hidden))[length - 1, 0]


def reward_score__wrong1(hidden, length, weights):
    """r: reads the padding"""
    return hidden[-1] @ weights


def reward_score__wrong2(hidden, length, weights):
    """r: the last but one"""
    return hidden[length - 2] @ weights


def reward_score__wrong3(hidden, length, weights):
    """r: mean over tokens"""
    return (hidden[:length] @ weights).mean()


def reward_score__wrong4(hidden, length, weights):
    """r: a vector of scores"""
    return hidden[:length] @ weights


def preference_gradient__right1(weights, preferred, other):
    w = torch.tensor(weights, requires_grad=True)
    loss = torch.nn.functional.softplus(w @ torch.tensor(other) - w @ torch.tensor(preferred))
    loss.backward()
    return loss, w.grad


def preference_gradient__right2(weights, preferred, other):
    d = float(np.dot(weights, preferred) - np.dot(weights, other))
    return math.log1p(math.exp(-d)), [(o - p) / (1 + math.exp(d)) for p, o in zip(preferred, other, strict=True)]


def preference_gradient__wrong1(weights, preferred, other):
    """grad w: the sign"""
    d = weights @ (preferred - other)
    return np.logaddexp(0, -d), (preferred - other) / (1 + np.exp(d))


def preference_gradient__wrong2(weights, preferred, other):
    """loss: of the pair the other way round"""
    d = weights @ (other - preferred)
    return np.logaddexp(0, -d), -(other - preferred) / (1 + np.exp(d))


def preference_gradient__wrong3(weights, preferred, other):
    """grad w: the inner derivative is forgotten"""
    d = weights @ (preferred - other)
    return np.logaddexp(0, -d), -weights / (1 + np.exp(d))


def preference_gradient__wrong4(weights, preferred, other):
    """loss: the logarithm is forgotten"""
    d = weights @ (preferred - other)
    return -1 / (1 + np.exp(-d)), -(preferred - other) / (1 + np.exp(d))


def ranking_loss__right1(scores):
    r = torch.tensor(scores)
    logits = r[:, None] - r[None, :]
    above = torch.ones(len(r), len(r)).triu(1).bool()
    return -torch.nn.functional.logsigmoid(logits[above]).mean()


def ranking_loss__right2(scores):
    pairs = list(combinations(scores, 2))
    return sum(-math.log(1 / (1 + math.exp(worse - better))) for better, worse in pairs) / len(pairs)


def ranking_loss__wrong1(scores):
    """loss: a sum"""
    return sum(math.log1p(math.exp(worse - better)) for better, worse in combinations(scores, 2))


def ranking_loss__wrong2(scores):
    """loss: over K, not over pairs"""
    return sum(math.log1p(math.exp(worse - better)) for better, worse in combinations(scores, 2)) / len(scores) ** 2


def ranking_loss__wrong3(scores):
    """loss: Plackett-Luce"""
    return sum(np.log(np.exp(scores[i:]).sum()) - scores[i] for i in range(len(scores))) / len(scores)


def calibration_error__right1(margins, edges):
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    place = np.searchsorted(edges, sure) - 1
    gap = sure - (margins > 0)
    return sum(abs(gap[place == k].sum()) for k in range(len(edges) - 1)) / len(margins)


def calibration_error__right2(margins, edges):
    bins = [[] for _ in edges[1:]]
    for margin in margins:
        sure = 1 / (1 + math.exp(-abs(margin)))
        bins[next(k for k in range(len(bins)) if edges[k] < sure <= edges[k + 1])].append((sure, margin > 0))
    total = 0.0
    for own in filter(None, bins):
        total += len(own) * abs(sum(s for s, _ in own) / len(own) - sum(r for _, r in own) / len(own))
    return total / len(margins)


def calibration_error__wrong1(margins, edges):
    """ECE: bins count alike"""
    sure = 1 / (1 + np.exp(-abs(margins)))
    gaps = []
    for low, high in pairwise(edges):
        inside = (sure > low) & (sure <= high)
        gaps.append(abs(sure[inside].mean() - (margins[inside] > 0).mean()) if inside.any() else 0.0)
    return np.mean(gaps)


def calibration_error__wrong2(margins, edges):
    """ECE: a mean over pairs, without bins"""
    return np.mean(abs(1 / (1 + np.exp(-abs(margins))) - (margins > 0)))


def calibration_error__wrong3(margins, edges):
    """ECE: signs cancel"""
    return (1 / (1 + np.exp(-abs(margins))) - (margins > 0)).mean()


def calibration_error__wrong4(margins, edges):
    """ECE: a pair of confidence 1 falls out of the last bin"""
    sure, total = 1 / (1 + np.exp(-abs(margins))), 0.0
    for low, high in pairwise(edges):
        inside = (sure >= low) & (sure < high)
        if inside.any():
            total += inside.sum() * abs(sure[inside].mean() - (margins[inside] > 0).mean())
    return total / len(margins)


def margin_with_flips__right1(margin, flips):
    odds = math.exp(margin)
    return math.log(((1 - flips) * odds + flips) / ((1 - flips) + flips * odds))


def margin_with_flips__right2(margin, flips):
    wins = 0.5 + (1 - 2 * flips) * 0.5 * math.tanh(margin / 2)
    return torch.logit(torch.tensor(wins, dtype=torch.float64))


def margin_with_flips__wrong1(margin, flips):
    """margin: shortened by the flips"""
    return (1 - flips) * margin


def margin_with_flips__wrong2(margin, flips):
    """margin: p', not its logit"""
    p = 1 / (1 + math.exp(-margin))
    return (1 - flips) * p + flips * (1 - p)


def margin_with_flips__wrong3(margin, flips):
    """margin: labels lost, not turned round"""
    p = (1 - flips) / (1 + math.exp(-margin))
    return math.log(p / (1 - p))


def margin_with_flips__wrong4(margin, flips):
    """margin: the bound"""
    return min(margin, math.log((1 - flips) / flips)) if flips else margin
