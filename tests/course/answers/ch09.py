"""Answers to chapter 9. Of a wrong one the docstring says which quantity a hint must name."""

import math

import numpy as np
import torch


def kl_of(policy, reference):
    return sum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True) if p > 0)


def kl_objective__right1(policy, reference, returns, beta):
    return sum(p * r for p, r in zip(policy, returns, strict=True)) - beta * kl_of(policy, reference)


def kl_objective__right2(policy, reference, returns, beta):
    p, q = torch.tensor(policy), torch.tensor(reference)
    kl = torch.xlogy(p, p).sum() - torch.xlogy(p, q).sum()
    return torch.tensor(returns) @ p - beta * kl


def kl_objective__wrong1(policy, reference, returns, beta):
    """J: 0 log 0 is NaN"""
    with np.errstate(divide="ignore", invalid="ignore"):
        return policy @ (returns - beta * np.log(policy / reference))


def kl_objective__wrong2(policy, reference, returns, beta):
    """J: the price is paid to the policy"""
    return policy @ returns + beta * kl_of(policy, reference)


def kl_objective__wrong3(policy, reference, returns, beta):
    """J: a plain mean of the log-ratios"""
    with np.errstate(divide="ignore"):
        return policy @ returns - beta * np.mean(np.log(policy / reference))


def kl_objective__wrong4(policy, reference, returns, beta):
    """J: in bits"""
    return policy @ returns - beta * kl_of(policy, reference) / math.log(2)


def gibbs_policy__right1(reference, returns, beta):
    with np.errstate(divide="ignore"):
        logits = torch.log(torch.tensor(reference)) + torch.tensor(returns) / beta
    return torch.softmax(logits, 0), beta * torch.logsumexp(logits, 0)


def gibbs_policy__right2(reference, returns, beta):
    logits = np.log(reference) + returns / beta
    log_z = np.logaddexp.reduce(logits)
    return np.exp(logits - log_z), beta * log_z


def gibbs_policy__wrong1(reference, returns, beta):
    """pi*: overflows"""
    with np.errstate(over="ignore", invalid="ignore"):
        weights = reference * np.exp(returns / beta)
        return weights / weights.sum(), beta * np.log(weights.sum())


def gibbs_policy__wrong2(reference, returns, beta):
    """pi*: multiplied by beta"""
    weights = reference * np.exp(returns * beta)
    return weights / weights.sum(), beta * np.log(weights.sum())


def gibbs_policy__wrong3(reference, returns, beta):
    """J*: no beta in front of log Z"""
    logits = np.log(reference) + returns / beta
    log_z = np.logaddexp.reduce(logits)
    return np.exp(logits - log_z), log_z


def gibbs_policy__wrong4(reference, returns, beta):
    """J*: the return without its price"""
    logits = np.log(reference) + returns / beta
    policy = np.exp(logits - np.logaddexp.reduce(logits))
    return policy, policy @ returns


def soft_induction__right1(first, second, returns, beta):
    texts = first[:, None] * second * np.exp(returns / beta)  # Gibbs over whole texts, summed over the second word
    return beta * np.log(texts.sum()), texts.sum(axis=1) / texts.sum()


def soft_induction__right2(first, second, returns, beta):
    def soft(probabilities, values):
        return beta * math.log(sum(p * math.exp(v / beta) for p, v in zip(probabilities, values, strict=True)))

    after = [soft(second[i], returns[i]) for i in range(len(first))]
    start = soft(first, after)
    return start, [p * math.exp((v - start) / beta) for p, v in zip(first, after, strict=True)]


def soft_induction__wrong1(first, second, returns, beta):
    """V*: the reference goes on"""
    after = (second * returns).sum(axis=1)
    weights = first * np.exp(after / beta)
    return beta * np.log(weights.sum()), weights / weights.sum()


def soft_induction__wrong2(first, second, returns, beta):
    """V*: a hard maximum at the end"""
    weights = first * np.exp(returns.max(axis=1) / beta)
    return beta * np.log(weights.sum()), weights / weights.sum()


def soft_induction__wrong3(first, second, returns, beta):
    """pi*: the reference of the first word is left out"""
    after = beta * np.log((second * np.exp(returns / beta)).sum(axis=1))
    weights = np.exp(after / beta)
    return beta * np.log((first * weights).sum()), weights / weights.sum()


def soft_induction__wrong4(first, second, returns, beta):
    """V*: no reference of the second word"""
    after = beta * np.log(np.exp(returns / beta).sum(axis=1))
    weights = first * np.exp(after / beta)
    return beta * np.log(weights.sum()), weights / weights.sum()


def soft_induction__wrong5(first, second, returns, beta):
    """V*: the sum over the first word"""
    after = beta * np.log((second * np.exp(returns / beta)).sum(axis=0))
    weights = first * np.exp(after / beta)
    return beta * np.log(weights.sum()), weights / weights.sum()


def kl_estimates__right1(log_policy, log_reference):
    l = [p - q for p, q in zip(log_policy, log_reference, strict=True)]  # noqa: E741
    n = len(l)
    return sum(l) / n, sum(x * x for x in l) / (2 * n), sum(math.exp(-x) - 1 + x for x in l) / n


def kl_estimates__right2(log_policy, log_reference):
    ratio = torch.tensor(log_policy - log_reference)
    return ratio.mean(), ratio.square().mean() / 2, (torch.expm1(-ratio) + ratio).mean()


def kl_estimates__wrong1(log_policy, log_reference):
    """k1: the other sign"""
    log_r = log_reference - log_policy
    return log_r.mean(), (log_r**2).mean() / 2, (np.exp(log_r) - 1 - log_r).mean()


def kl_estimates__wrong2(log_policy, log_reference):
    """k2: the square of the mean"""
    log_r = log_reference - log_policy
    return -log_r.mean(), log_r.mean() ** 2 / 2, (np.exp(log_r) - 1 - log_r).mean()


def kl_estimates__wrong3(log_policy, log_reference):
    """k3: the ratio upside down"""
    log_r = log_policy - log_reference
    return log_r.mean(), (log_r**2).mean() / 2, (np.exp(log_r) - 1 - log_r).mean()


def kl_estimates__wrong4(log_policy, log_reference):
    """k2: not halved"""
    log_r = log_reference - log_policy
    return -log_r.mean(), (log_r**2).mean(), (np.exp(log_r) - 1 - log_r).mean()


def best_of_n_policy__right1(reference, returns, n):
    found = []
    for p, own in zip(reference, returns, strict=True):
        below, up_to = reference[returns < own].sum(), reference[returns <= own].sum()
        found.append((up_to**n - below**n) * p / (up_to - below))
    return found


def best_of_n_policy__right2(reference, returns, n):
    order = np.argsort(returns, kind="stable")
    found = np.zeros(len(reference))
    below, start = 0.0, 0
    while start < len(order):
        level = [i for i in order[start:] if returns[i] == returns[order[start]]]
        mass = sum(reference[i] for i in level)
        for i in level:
            found[i] = ((below + mass) ** n - below**n) * reference[i] / mass
        below, start = below + mass, start + len(level)
    return found


def best_of_n_policy__wrong1(reference, returns, n):
    """best-of-n: in the sample at all"""
    return 1 - (1 - reference) ** n


def best_of_n_policy__wrong2(reference, returns, n):
    """best-of-n: a level's probability for each of its texts"""
    below = np.array([reference[returns < own].sum() for own in returns])
    up_to = np.array([reference[returns <= own].sum() for own in returns])
    return up_to**n - below**n


def best_of_n_policy__wrong3(reference, returns, n):
    """best-of-n: the best text of all, always"""
    return (returns == returns.max()) / np.sum(returns == returns.max())


def best_of_n_policy__wrong4(reference, returns, n):
    """best-of-n: ties are broken by the order of the list"""
    order = np.argsort(returns, kind="stable")
    up_to = np.cumsum(reference[order])
    found = np.zeros(len(reference))
    found[order] = up_to**n - np.append(0.0, up_to[:-1]) ** n
    return found
