"""Chapter 9: the KL-regularised objective."""

import numpy as np


def kl_objective(policy, reference, returns, beta):
    """Return J."""
    written = policy > 0
    kl = np.sum(policy[written] * np.log(policy[written] / reference[written]))
    return policy @ returns - beta * kl


def gibbs_policy(reference, returns, beta):
    """Return a tuple: pi* (N,) and J*."""
    top = returns.max()
    weights = reference * np.exp((returns - top) / beta)
    return weights / weights.sum(), top + beta * np.log(weights.sum())


def soft_induction(first, second, returns, beta):
    """Return a tuple: V*(s_0) and pi*(a_0) (K,)."""
    after = beta * np.log((second * np.exp(returns / beta)).sum(axis=1))
    weights = first * np.exp(after / beta)
    return beta * np.log(weights.sum()), weights / weights.sum()


def kl_estimates(log_policy, log_reference):
    """Return a tuple: the means of k1, k2 and k3 over n samples."""
    log_r = log_reference - log_policy
    k1 = -log_r
    k2 = log_r**2 / 2
    k3 = (np.exp(log_r) - 1) - log_r
    return k1.mean(), k2.mean(), k3.mean()


def best_of_n_policy(reference, returns, n):
    """Return (N,) array: with what probability best-of-n writes each text."""
    found = np.zeros(len(reference))
    for level in np.unique(returns):
        here = returns == level
        below = reference[returns < level].sum()
        up_to = below + reference[here].sum()
        found[here] = (up_to**n - below**n) * reference[here] / reference[here].sum()
    return found
