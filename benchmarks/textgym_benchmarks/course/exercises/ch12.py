"""Chapter 12: what goes wrong. The slips are the planted bugs and their neighbours."""

from __future__ import annotations

import numpy as np
import torch
from textgym_agents.lm.maths import clipped_policy_loss, gae

from textgym.checks import Bools, Floats, Ints
from textgym_benchmarks.course.exercises import Case, Exercise

_LENGTHS = np.array([3, 1, 2])


def _real(lengths: Ints, width: int) -> Bools:
    """Return where there are tokens, by a loop."""
    return np.array([[t < length for t in range(width)] for length in lengths])


def _tempered_log_probs() -> list[Case]:
    # By hand: logits log 1, log 2, log 4 at temperature 1/2 are odds of 1 : 4 : 16, at 2 of 1 : sqrt 2 : 2.
    logits = np.log([[1.0, 2.0, 4.0], [4.0, 1.0, 5.0]])
    odds = {
        0.5: [[1.0, 4.0, 16.0], [16.0, 1.0, 25.0]],
        2.0: [[1.0, np.sqrt(2), 2.0], [2.0, 1.0, np.sqrt(5)]],
        1.0: [[1.0, 2.0, 4.0], [4.0, 1.0, 5.0]],
    }
    cases, said = [], "logits log [[1, 2, 4], [4, 1, 5]]"
    for temperature, own in odds.items():
        right = np.log([np.array(row) / sum(row) for row in own])
        cases.append(Case(f"{said}, temperature {temperature}", (logits, temperature), {"log pi": right}))
    return cases


def _action_mask() -> list[Case]:
    tokens = np.array([[1, 2, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0]])  # 0 ends an answer and pads
    inside = np.array([[1, 0, 2], [2, 1, 1]])
    given = [(tokens, _LENGTHS, 0), (inside, np.array([3, 2]), 0), (inside, np.array([1, 3]), 9)]
    return [
        Case(
            f"tokens {ids.tolist()}, lengths {lengths.tolist()}, pad {pad}",
            (ids, lengths, pad),
            {"mask": _real(lengths, ids.shape[1])},
        )
        for ids, lengths, pad in given
    ]


def _scores_on_tokens() -> list[Case]:
    scores = np.array([0.5, -1.0, 2.0])
    right = np.array([[0.0, 0.0, 0.5], [-1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])  # by hand
    return [
        Case("scores 0.5, -1, 2, lengths 3, 1, 2, width 3", (scores, _LENGTHS, 3), {"r": right}),
        Case(
            "scores 0.5, -1, 2, lengths 3, 1, 2, width 5", (scores, _LENGTHS, 5), {"r": np.pad(right, ((0, 0), (0, 2)))}
        ),
    ]


def _discounted_rewards() -> list[Case]:
    rewards = np.array([[1.0, 2.0, 4.0], [3.0, -1.0, 0.0]])
    half = np.array([[1.0, 1.0, 1.0], [3.0, -0.5, 0.0]])  # by hand
    said = f"rewards {rewards.tolist()}"
    return [
        Case(f"{said}, gamma 0.5", (rewards, 0.5), {"gamma^t r": half}),
        Case(f"{said}, gamma 0", (rewards, 0.0), {"gamma^t r": np.array([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])}),
        Case(f"{said}, gamma 1", (rewards, 1.0), {"gamma^t r": rewards.copy()}),
    ]


def _charged_rewards() -> list[Case]:
    rewards = np.array([[0.0, 1.0], [0.5, 0.0]])
    own, base = np.log([[0.5, 0.25], [0.1, 1.0]]), np.log([[0.25, 0.5], [0.1, 1.0]])
    said = f"rewards {rewards.tolist()}, pi [[0.5, 0.25], [0.1, 1]], ref [[0.25, 0.5], [0.1, 1]]"
    two = np.log(2)  # by hand: the log-ratios are log 2, -log 2 and 0
    return [
        Case(
            f"{said}, beta 0.1", (rewards, own, base, 0.1), {"r": np.array([[-0.1 * two, 1 + 0.1 * two], [0.5, 0.0]])}
        ),
        Case(f"{said}, beta 0", (rewards, own, base, 0.0), {"r": rewards.copy()}),
    ]


def _gae_rows() -> list[Case]:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 3, 4)).round(1)
    real = _real(_LENGTHS, 4)
    cases = []
    for lam in (0.9, 0.0, 1.0):
        right = gae(np.where(real, rewards, 0.0), values, _LENGTHS, lam)
        said = f"rewards {rewards.tolist()}, values {values.tolist()}, lengths {_LENGTHS.tolist()}, lambda {lam}"
        cases.append(Case(said, (rewards, values, _LENGTHS, lam), {"A": right}))
    return cases


def _whitened() -> list[Case]:
    advantages = np.array([[1.0, 3.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]])
    mask = _real(np.array([2, 1]), 4)
    right = np.where(mask, (advantages - 3.0) / np.sqrt(8 / 3), 0.0)  # by hand: 1, 3 and 5
    narrow = np.array([[0.5, -1.5], [2.0, 0.0]])
    return [
        Case("advantages [[1, 3, 0, 0], [5, 0, 0, 0]], of which 1, 3 and 5 are real", (advantages, mask), {"A": right}),
        Case(
            "the same, and one column of padding less",
            (advantages[:, :3].copy(), mask[:, :3].copy()),
            {"A": right[:, :3].copy()},
        ),
        Case(
            "advantages [[0.5, -1.5], [2, 0]], all real",
            (narrow, np.ones((2, 2), dtype=bool)),
            {"A": (narrow - 0.25) / np.std([0.5, -1.5, 2, 0])},
        ),
    ]


def _ppo_losses() -> list[Case]:
    old = torch.log(torch.tensor([0.2, 0.2, 0.4, 0.4], dtype=torch.float64))
    new = torch.log(torch.tensor([0.3, 0.1, 0.42, 0.2], dtype=torch.float64))
    advantages = torch.tensor([1.0, 1.0, -2.0, -1.0], dtype=torch.float64)
    by_hand = np.array([-1.2, -0.5, 2.1, 0.8])
    same = (old.clone(), old.clone(), advantages.clone(), 0.2)
    loss = clipped_policy_loss(new - old, -advantages, 0.1).numpy()
    return [
        Case(
            "pi 0.3, 0.1, 0.42, 0.2, old pi 0.2, 0.2, 0.4, 0.4, A 1, 1, -2, -1, clip 0.2",
            (new, old, advantages, 0.2),
            {"loss": by_hand},
        ),
        Case("ratios of 1, A 1, 1, -2, -1, clip 0.2", same, {"loss": np.array([-1.0, -1.0, 2.0, 1.0])}),
        Case(
            "pi 0.3, 0.1, 0.42, 0.2, old pi 0.2, 0.2, 0.4, 0.4, A -1, -1, 2, 1, clip 0.1",
            (new.clone(), old.clone(), -advantages, 0.1),
            {"loss": loss},
        ),
    ]


def _micro_batch_loss() -> list[Case]:
    losses = torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    wider = torch.nn.functional.pad(losses, (0, 2), value=7.0), torch.nn.functional.pad(mask, (0, 2))
    return [  # by hand: 1 + 2 + 3 = 6
        Case(
            "losses [[1, 2, 9], [3, 9, 9]], of which 1, 2 and 3 are real, 12 tokens", (losses, mask, 12), {"loss": 0.5}
        ),
        Case("the same, and two more columns of padding", (*wider, 12), {"loss": 0.5}),
        Case(
            "losses [[1, 2, 9], [3, 9, 9]], of which 1, 2 and 3 are real, 3 tokens",
            (losses.clone(), mask.clone(), 3),
            {"loss": 2.0},
        ),
    ]


def _mean_kl() -> list[Case]:
    ratios = np.array([[0.5, 0.1, 0.6], [0.4, 0.0, 0.0], [-0.3, 0.2, 0.0]])
    mask = _real(_LENGTHS, 3)
    noisy = np.where(mask, ratios, 5.0)
    return [  # by hand: (1.2 + 0.4 - 0.1) / 3
        Case(f"log-ratios {ratios.tolist()}, answers of 3, 1 and 2 tokens", (ratios, mask), {"KL": 0.5}),
        Case("the same, with other numbers in the padding", (noisy, mask.copy()), {"KL": 0.5}),
    ]


def _scan(rewards: Floats, values: Floats, lengths: Ints, lam: float, reset: bool) -> Floats:
    """Return GAE that takes V of the padding for what follows; `reset`: later advantages are 0 there."""
    result, later = np.zeros(rewards.shape), np.zeros(len(rewards))
    real = _real(lengths, rewards.shape[1])
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        later = (real[:, t] if reset else 1.0) * (rewards[:, t] + following - values[:, t] + lam * later)
        result[:, t] = later
    return np.asarray(result * real)


EXERCISES = (
    Exercise(
        "tempered_log_probs",
        "Score tokens with the distribution that samples them.",
        _tempered_log_probs,
        {
            "the temperature is left out": lambda logits, temperature: (
                logits - np.log(np.exp(logits).sum(1, keepdims=True))
            ),
            "log-probabilities are divided, which then do not sum to 1": lambda logits, temperature: (
                (logits - np.log(np.exp(logits).sum(1, keepdims=True))) / temperature
            ),
        },
    ),
    Exercise(
        "action_mask",
        "A mask from lengths.",
        _action_mask,
        {
            "the mask is read off the ids, where the end token is the padding": lambda tokens, lengths, pad: (
                tokens != pad
            ),
            "the last token, the end, is left out": lambda tokens, lengths, pad: _real(lengths - 1, tokens.shape[1]),
        },
    ),
    Exercise(
        "scores_on_tokens",
        "The score on the last token.",
        _scores_on_tokens,
        {
            "the score stands in the last column, which may be padding": lambda scores, lengths, width: (
                scores[:, None] * (np.arange(width) == width - 1)
            ),
            "the score stands on the first token": lambda scores, lengths, width: (
                scores[:, None] * (np.arange(width) == 0)
            ),
        },
    ),
    Exercise(
        "discounted_rewards",
        "Discount from time 0.",
        _discounted_rewards,
        {
            "the first reward is discounted": lambda rewards, gamma: (
                rewards * float(gamma) ** np.arange(1, rewards.shape[1] + 1)
            ),
            "gamma is applied twice": lambda rewards, gamma: (
                rewards * float(gamma) ** (2 * np.arange(rewards.shape[1]))
            ),
        },
    ),
    Exercise(
        "charged_rewards",
        "Subtract the price of the KL from the rewards.",
        _charged_rewards,
        {
            "the KL is paid out instead of charged": lambda rewards, own, base, beta: rewards + beta * (own - base),
            "probabilities are subtracted, not their logarithms": lambda rewards, own, base, beta: (
                rewards - beta * (np.exp(own) - np.exp(base))
            ),
        },
    ),
    Exercise(
        "gae_rows",
        "GAE without values from the padding.",
        _gae_rows,
        {
            "V of the padding is taken for V after the end of a short row": lambda r, v, n, lam: _scan(
                r, v, n, lam, True
            ),
            "advantages of the padding leak into the row": lambda r, v, n, lam: _scan(r, v, n, lam, False),
        },
    ),
    Exercise(
        "whitened",
        "Standardise real tokens.",
        _whitened,
        {
            "the zeros of the padding count in mean and deviation": lambda advantages, mask: (
                mask * (advantages - advantages.mean()) / advantages.std()
            ),
            "the padding does not stay 0": lambda advantages, mask: (
                (advantages - advantages[mask].mean()) / advantages[mask].std()
            ),
        },
    ),
    Exercise(
        "ppo_losses",
        "Ratios to the policy that sampled.",
        _ppo_losses,
        {
            "old log-probabilities are computed anew, so that every ratio is 1": lambda new, old, a, clip: -a,
            "the larger of the two products is taken": lambda new, old, a, clip: (
                -torch.maximum((new - old).exp() * a, (new - old).exp().clamp(1 - clip, 1 + clip) * a)
            ),
        },
    ),
    Exercise(
        "micro_batch_loss",
        "A mean over the tokens of the whole batch.",
        _micro_batch_loss,
        {
            "it is a mean over the rectangle, padding included": lambda losses, mask, tokens: (losses * mask).mean(),
            "it is the mean of this micro-batch alone": lambda losses, mask, tokens: (losses * mask).sum() / mask.sum(),
            "losses of the padding are added": lambda losses, mask, tokens: losses.sum() / tokens,
        },
    ),
    Exercise(
        "mean_kl",
        "The KL per answer.",
        _mean_kl,
        {
            "it is a mean over tokens": lambda ratios, mask: ratios[mask].mean(),
            "the padding is counted": lambda ratios, mask: ratios.sum() / len(ratios),
        },
    ),
)
