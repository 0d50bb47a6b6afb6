"""Answers to chapter 5. Of a wrong one the docstring says which quantity a hint must name."""

import math

import numpy as np


def q_update__right1(q, s, a, r, s_next, ended, alpha, gamma):
    return (1 - alpha) * q[s][a] + alpha * (r + gamma * max(q[s_next]) * (not ended))


def q_update__right2(q, s, a, r, s_next, ended, alpha, gamma):
    error = r - q[s, a]
    if not ended:
        error += gamma * np.max(q[s_next])
    return q[s, a] + alpha * error


def q_update__wrong1(q, s, a, r, s_next, ended, alpha, gamma):
    """Q(s, a): a future after the end"""
    return q[s, a] + alpha * (r + gamma * q[s_next].max() - q[s, a])


def q_update__wrong2(q, s, a, r, s_next, ended, alpha, gamma):
    """Q(s, a): the same action again, SARSA with no choice"""
    return q[s, a] + alpha * (r + (0 if ended else gamma * q[s_next, a]) - q[s, a])


def q_update__wrong3(q, s, a, r, s_next, ended, alpha, gamma):
    """Q(s, a): the old value is not taken off"""
    return q[s, a] + alpha * (r + (0 if ended else gamma * q[s_next].max()))


def q_update__wrong4(q, s, a, r, s_next, ended, alpha, gamma):
    """Q(s, a): the row of the action, not of the next state"""
    return q[s, a] + alpha * (r + (0 if ended else gamma * q[a].max()) - q[s, a])


def q_update__wrong5(q, s, a, r, s_next, ended, alpha, gamma):
    """Q(s, a): an end is worth 1"""
    return q[s, a] + alpha * ((1.0 if ended else r + gamma * q[s_next].max()) - q[s, a])


def epsilon_greedy__right1(q, epsilon):
    winners = [i for i, value in enumerate(q) if value == max(q)]
    return [epsilon / len(q) + (1 - epsilon) / len(winners) * (i in winners) for i in range(len(q))]


def epsilon_greedy__right2(q, epsilon):
    pi = np.full(len(q), epsilon / len(q))
    best = np.flatnonzero(np.isclose(q, q.max()))
    pi[best] += (1 - epsilon) / len(best)
    return pi


def epsilon_greedy__wrong1(q, epsilon):
    """pi: ties go to the first"""
    pi = np.full(len(q), epsilon / len(q))
    pi[q.argmax()] += 1 - epsilon
    return pi


def epsilon_greedy__wrong2(q, epsilon):
    """pi: the others share epsilon"""
    pi = np.full(len(q), epsilon / (len(q) - 1))
    pi[q.argmax()] = 1 - epsilon
    return pi


def epsilon_greedy__wrong3(q, epsilon):
    """pi: Boltzmann in place of it"""
    weights = np.exp(q - q.max())
    return weights / weights.sum()


def exploration_schedule__right1(kind, start, end, progress):
    share = np.clip(progress, 0, 1)
    if kind == "linear":
        return (1 - share) * start + share * end
    return math.exp((1 - share) * math.log(start) + share * math.log(end))


def exploration_schedule__right2(kind, start, end, progress):
    if progress >= 1:
        return end
    return {"linear": start - progress * (start - end), "exponential": start ** (1 - progress) * end**progress}[kind]


def exploration_schedule__wrong1(kind, start, end, progress):
    """epsilon: always linear"""
    return start + (end - start) * min(progress, 1)


def exploration_schedule__wrong2(kind, start, end, progress):
    """epsilon: no end"""
    return start + (end - start) * progress if kind == "linear" else start * (end / start) ** progress


def exploration_schedule__wrong3(kind, start, end, progress):
    """epsilon: it rises"""
    progress = min(progress, 1)
    return end + (start - end) * progress if kind == "linear" else end * (start / end) ** progress


def puct_scores__right1(q, prior, visits, c):
    total = sum(visits)
    return [value + c * p * math.sqrt(total) / (1 + n) for value, p, n in zip(q, prior, visits, strict=True)]


def puct_scores__right2(q, prior, visits, c):
    bonus = np.divide(np.sqrt(np.sum(visits)), visits + 1.0)
    return np.add(q, np.multiply(c * bonus, prior))


def puct_scores__wrong1(q, prior, visits, c):
    """score: UCB1 in place of it"""
    return q + c * np.sqrt(np.log(visits.sum()) / (1 + visits))


def puct_scores__wrong2(q, prior, visits, c):
    """score: the bonus alone"""
    return c * prior * np.sqrt(visits.sum()) / (1 + visits)


def puct_scores__wrong3(q, prior, visits, c):
    """score: no root"""
    return q + c * prior * visits.sum() / (1 + visits)


def chance_to_find__right1(epsilons, actions, depth):
    missed = 1.0
    for epsilon in epsilons:
        missed *= 1 - (epsilon / actions) ** depth
    return 1 - missed


def chance_to_find__right2(epsilons, actions, depth):
    return -np.expm1(np.log1p(-((epsilons / actions) ** depth)).sum())


def chance_to_find__wrong1(epsilons, actions, depth):
    """chance: a sum"""
    return ((epsilons / actions) ** depth).sum()


def chance_to_find__wrong2(epsilons, actions, depth):
    """chance: of one text"""
    return (epsilons.mean() / actions) ** depth


def chance_to_find__wrong3(epsilons, actions, depth):
    """chance: that it is missed"""
    return np.prod(1 - (epsilons / actions) ** depth)
