"""Chapter 11: RLHF in three stages, and DPO."""

import numpy as np


def sft_loss(log_probs, tokens, is_answer):
    """Return the mean negative log-probability of the answer's tokens, nats."""
    each = log_probs[np.arange(len(tokens)), tokens]
    return -each[is_answer].mean()


def penalised_reward(score, log_policy, log_reference, beta):
    """Return the score less beta times log(pi / ref) of the answer."""
    return score - beta * (log_policy - log_reference).sum()


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    """Return the mean DPO loss of N pairs."""
    chosen = policy_chosen - reference_chosen
    rejected = policy_rejected - reference_rejected
    return np.log(1 + np.exp(-beta * (chosen - rejected))).mean()


def dpo_weight(chosen, rejected, beta):
    """Return (N,) array: -dL/dc of each pair's own DPO loss."""
    return beta / (1 + np.exp(beta * (chosen - rejected)))
