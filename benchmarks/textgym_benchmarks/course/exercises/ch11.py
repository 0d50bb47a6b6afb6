"""Chapter 11: RLHF in three stages, and DPO."""

from __future__ import annotations

import math

import numpy as np
import torch

from textgym.checks import Floats
from textgym_benchmarks.course.exercises import Case, Exercise


def _sft() -> list[Case]:
    cases = []
    for seed, (prompt, answer, size) in enumerate([(2, 3, 4), (5, 1, 3), (3, 20, 8)]):
        rng = np.random.default_rng(seed)
        log_probs = np.log(rng.dirichlet(np.ones(size), prompt + answer))
        tokens = rng.integers(size, size=prompt + answer)
        is_answer = np.arange(prompt + answer) >= prompt
        right = -math.fsum(float(log_probs[t, tokens[t]]) for t in range(prompt, prompt + answer)) / answer
        said = f"a prompt of {prompt} tokens and an answer of {answer}"
        cases.append(Case(said, (log_probs, tokens, is_answer), {"loss": right}))
    return cases


def _penalised() -> list[Case]:
    given = [
        (1.0, ((0.5, 0.25), (0.25, 0.25)), 0.1, 1.0 - 0.1 * math.log(2)),
        (0.3, ((0.1, 0.5, 0.8), (0.2, 0.5, 0.4)), 0.5, 0.3),  # log 1/2 + log 1 + log 2
        (-2.0, ((0.9,), (0.3,)), 2.0, -2.0 - 2.0 * math.log(3)),
    ]
    return [
        Case(
            f"score {score}, pi {policy}, ref {reference}, beta {beta}",
            (score, np.log(policy), np.log(reference), beta),
            {"reward": right},
        )
        for score, (policy, reference), beta, right in given
    ]


def _pairs(seed: int, count: int) -> list[Floats]:
    """Return log pi and log ref of preferred and other answers: policy, policy, reference, reference, (count,) each."""
    rng = np.random.default_rng(seed)
    return [-rng.exponential(5, count).round(1) for _ in range(4)]


def _dpo() -> list[Case]:
    logs = np.log(np.array([[0.2], [0.1], [0.1], [0.2]]))
    by_hand = math.log1p(0.25**0.5)  # the margin is 0.5 log 4, and -log sigmoid(m) = log(1 + exp(-m))
    equal = [*_pairs(0, 3)[:2]] * 2
    cases = [
        Case("log pi log 0.2 and log 0.1, log ref log 0.1 and log 0.2, beta 0.5", (*logs, 0.5), {"loss": by_hand}),
        Case("pi = ref in three pairs, beta 0.1", (*equal, 0.1), {"loss": math.log(2)}),
    ]
    for seed, beta in ((1, 0.1), (2, 1.0)):
        given = _pairs(seed, 2)
        margins = [beta * (a - b - c + d) for a, b, c, d in zip(*given, strict=True)]
        right = math.fsum(math.log1p(math.exp(-margin)) for margin in margins) / 2
        said = f"log pi {given[0].tolist()} and {given[1].tolist()}, "
        said += f"log ref {given[2].tolist()} and {given[3].tolist()}, beta {beta}"
        cases.append(Case(said, (*given, beta), {"loss": right}))
    return cases


def _weights() -> list[Case]:
    """Return cases whose right answers come from autograd."""
    cases = []
    for seed, beta in ((3, 0.1), (4, 0.5)):
        a, b, c, d = (torch.from_numpy(each) for each in _pairs(seed, 2))
        a.requires_grad_()
        losses = torch.nn.functional.softplus(-beta * ((a - c) - (b - d)))
        (gradient,) = torch.autograd.grad(losses.sum(), a)
        chosen, rejected = (a - c).detach().numpy(), (b - d).numpy()
        said = f"log-ratios {chosen.round(1).tolist()} and {rejected.round(1).tolist()}, beta {beta}"
        cases.append(Case(said, (chosen, rejected, beta), {"weight": -gradient.numpy()}))
    even = np.zeros(2)
    cases.append(Case("pi = ref, beta 0.2", (even, even, 0.2), {"weight": np.full(2, 0.1)}))
    return cases


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-values)))


EXERCISES = (
    Exercise(
        "sft_loss",
        "The loss of supervised fine-tuning.",
        _sft,
        {
            "the prompt is learnt, too": lambda logs, tokens, answer: -logs[np.arange(len(tokens)), tokens].mean(),
            "it is divided by all tokens, those of the prompt included": lambda logs, tokens, answer: (
                -logs[np.arange(len(tokens)), tokens][answer].sum() / len(tokens)
            ),
            "the sum is returned, not the mean": lambda logs, tokens, answer: (
                -logs[np.arange(len(tokens)), tokens][answer].sum()
            ),
        },
    ),
    Exercise(
        "penalised_reward",
        "What PPO maximises for one answer.",
        _penalised,
        {
            "the KL is paid to the policy, not charged": lambda score, policy, reference, beta: (
                score + beta * (policy - reference).sum()
            ),
            "the mean over the tokens is charged": lambda score, policy, reference, beta: (
                score - beta * (policy - reference).mean()
            ),
        },
    ),
    Exercise(
        "dpo_loss",
        "The loss of DPO.",
        _dpo,
        {
            "the reference is left out": lambda pc, pr, rc, rr, beta: np.logaddexp(0, -beta * (pc - pr)).mean(),
            "preferred and rejected are swapped": lambda pc, pr, rc, rr, beta: np.logaddexp(
                0, beta * ((pc - rc) - (pr - rr))
            ).mean(),
            "beta is left out": lambda pc, pr, rc, rr, beta: np.logaddexp(0, -((pc - rc) - (pr - rr))).mean(),
        },
    ),
    Exercise(
        "dpo_weight",
        "The weight of a pair in the gradient of DPO.",
        _weights,
        {
            "pairs that are in the right order count most": lambda chosen, rejected, beta: (
                beta * _sigmoid(beta * (chosen - rejected))
            ),
            "the factor beta in front is left out": lambda chosen, rejected, beta: _sigmoid(beta * (rejected - chosen)),
        },
    ),
)
