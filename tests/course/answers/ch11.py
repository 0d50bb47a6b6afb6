"""Answers to chapter 11. Of a wrong one the docstring says which quantity a hint must name."""

import math

import numpy as np


def sft_loss__right1(log_probs, tokens, is_answer):
    picked = [-row[token] for row, token, counts in zip(log_probs, tokens, is_answer, strict=True) if counts]
    return sum(picked) / len(picked)


def sft_loss__right2(log_probs, tokens, is_answer):
    import torch

    labels = torch.where(torch.from_numpy(is_answer), torch.from_numpy(tokens), -100)
    return torch.nn.functional.cross_entropy(torch.from_numpy(log_probs), labels)


def sft_loss__wrong1(log_probs, tokens, is_answer):
    """loss: the prompt counts"""
    return -log_probs[np.arange(len(tokens)), tokens].mean()


def sft_loss__wrong2(log_probs, tokens, is_answer):
    """loss: the sign"""
    return log_probs[np.arange(len(tokens)), tokens][is_answer].mean()


def sft_loss__wrong3(log_probs, tokens, is_answer):
    """loss: one place too late"""
    return -log_probs[:-1][np.arange(len(tokens) - 1), tokens[1:]][is_answer[1:]].mean()


def penalised_reward__right1(score, log_policy, log_reference, beta):
    for own, other in zip(log_policy, log_reference, strict=True):
        score -= beta * (own - other)
    return score


def penalised_reward__right2(score, log_policy, log_reference, beta):
    return score - beta * math.log(np.prod(np.exp(log_policy)) / np.prod(np.exp(log_reference)))


def penalised_reward__wrong1(score, log_policy, log_reference, beta):
    """reward: the sign"""
    return score + beta * (log_policy - log_reference).sum()


def penalised_reward__wrong2(score, log_policy, log_reference, beta):
    """reward: a KL in place of the sampled log-ratio"""
    return score - beta * (np.exp(log_policy) * (log_policy - log_reference)).sum()


def penalised_reward__wrong3(score, log_policy, log_reference, beta):
    """reward: the last token alone"""
    return score - beta * (log_policy[-1] - log_reference[-1])


def dpo_loss__right1(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    ratio = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    return -np.mean(np.log(1 / (1 + np.exp(-beta * ratio))))


def dpo_loss__right2(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    import torch

    given = [torch.as_tensor(x) for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)]
    return -torch.nn.functional.logsigmoid(beta * (given[0] - given[2] - given[1] + given[3])).mean()


def dpo_loss__wrong1(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    """loss: no reference"""
    return np.logaddexp(0, -beta * (policy_chosen - policy_rejected)).mean()


def dpo_loss__wrong2(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    """loss: the sum of the pairs"""
    ratio = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    return np.logaddexp(0, -beta * ratio).sum()


def dpo_loss__wrong3(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    """loss: no logarithm"""
    ratio = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    return -(1 / (1 + np.exp(-beta * ratio))).mean()


def dpo_weight__right1(chosen, rejected, beta):
    wins, loses = np.exp(beta * chosen), np.exp(beta * rejected)
    return beta * loses / (wins + loses)


def dpo_weight__right2(chosen, rejected, beta):
    import torch

    c = torch.tensor(chosen, requires_grad=True)
    losses = -torch.nn.functional.logsigmoid(beta * (c - torch.tensor(rejected)))
    losses.sum().backward()
    return -c.grad


def dpo_weight__wrong1(chosen, rejected, beta):
    """weight: the probability of being right"""
    return beta / (1 + np.exp(-beta * (chosen - rejected)))


def dpo_weight__wrong2(chosen, rejected, beta):
    """weight: no beta in front"""
    return 1 / (1 + np.exp(beta * (chosen - rejected)))


def dpo_weight__wrong3(chosen, rejected, beta):
    """weight: all pairs alike"""
    return np.full(len(chosen), beta)
