"""Small token MDPs for the tests of the solver, and brute force over their trajectories in plain Python."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
from gymnasium.vector import AutoresetMode

from textgym import TokenVectorEnv, make_task
from textgym.lm.reference import NGramReference

WORDS = ("a", "b", "c", "<end>")
STOP = 3


def uneven(prompts, completions, **columns):
    """Differs by prompt, by letter, by place and by length: nothing about it is symmetric."""
    return [
        (1.0 if prompt == "a" else -0.5) * text.split().count("a")
        + 0.3 * text.endswith("b")
        - 0.2 * (len(ids) == 2) * (ids[-1] == STOP)
        for prompt, text, ids in zip(prompts, completions, columns["completion_ids"], strict=True)
    ]


class Paid:
    """`uneven`, paid in another way."""

    name = "paid"

    def __init__(self, pay, gamma=1.0):
        self.pay, self.gamma = pay, gamma

    def __call__(self, prompts, completions, **columns):
        return uneven(prompts, completions, **columns)


def small_task(**options):
    settings = {"reward": uneven, "max_new_tokens": 3, "beta": 0.4, "weights": [1, 3], **options}
    mask = settings.pop("mask", None)
    settings = {"prompts": ["a", "b c"], "tokenizer": WORDS, **settings}
    return replace(make_task("Text", stop="<end>", **settings), mask=mask)


def bigram(seed=0, size=4):
    """A reference that depends on the last token."""
    return NGramReference(np.random.default_rng(seed).dirichlet(np.full(size, 0.8), size=size))


class Table:
    """A policy with its own random distribution in every state, by hashing the tokens."""

    def __init__(self, seed=0, size=4):
        self.seed, self.size = seed, size

    def distribution(self, tokens):
        return np.random.default_rng([self.seed, *tokens, 99]).dirichlet(np.ones(self.size))

    def log_probs(self, observation):
        rows = zip(observation["input_ids"], observation["attention_mask"], strict=True)
        return np.log([self.distribution(ids[mask == 1].tolist()) for ids, mask in rows])


def completions(horizon=3, going_on=(0, 1, 2)):
    """Every completion: tokens that go on, then the stop id or the last token of the budget."""
    for length in range(1, horizon + 1):
        for body in itertools.product(going_on, repeat=length - 1):
            lasts = [STOP] if length < horizon else [*going_on, STOP]
            for last in lasts:
                yield (*body, last)


def log_probability(policy, prompt_ids, completion):
    """The sum of log-probabilities along a completion, asking state by state."""
    total, tokens = 0.0, list(prompt_ids)
    for token in completion:
        ids = np.array([tokens])
        table = policy.log_probs({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        total += float(table[0, token])
        tokens.append(token)
    return total


def score(task, prompt, completion):
    """The discounted return of a completion whose reward comes at the end."""
    text = " ".join(WORDS[i] for i in completion if i != STOP)
    (reward,) = uneven([prompt.text], [text], completion_ids=[list(completion)])
    return task.gamma ** (len(completion) - 1) * reward


def soft_optimum(task, reference, prompt, beta):
    """beta log sum_y ref(y) exp(R(y) / beta), and Gibbs' probabilities, by listing the completions."""
    weights = {
        y: math.exp(log_probability(reference, prompt.ids, y) + score(task, prompt, y) / beta)
        for y in completions(task.max_new_tokens)
    }
    partition = math.fsum(weights.values())
    return beta * math.log(partition), {y: weight / partition for y, weight in weights.items()}


def no_repeats(states):
    """A token may not follow itself; the first token is no stop."""
    masks = np.ones((len(states), 4), dtype=bool)
    for row, state in enumerate(states):
        masks[row, state.tokens[-1] if state.completion else STOP] = False
    return masks


def batch_env(task, count=8):
    """An environment that shows segments and does not reset by itself."""
    return TokenVectorEnv(task, count, segments=True, autoreset_mode=AutoresetMode.DISABLED)


class Answers:
    """A policy with the same answer whatever it is asked."""

    def __init__(self, table):
        self.table = table

    def log_probs(self, observation):
        return self.table


def odd_grammar(states):
    """After an even number of tokens a, c or <end>; after an odd one b or c."""
    even, odd = [True, False, True, True], [False, True, True, False]
    return np.array([odd if len(state.completion) % 2 else even for state in states])
