"""The trace of an episode: what a policy, its reference and the exact solver say about each of its tokens.

Everything is in the units of the objective J = E[sum gamma^t r_t] - beta E[sum KL(pi || ref)]: rewards and values in
units of reward at time 0 (what is paid at step t counts gamma^t of it; with gamma = 1, as in all tasks that come with
the package, that is the reward itself), KL and log-probabilities in nats.

Of a state s_t and the token a that was written there, with l = log pi(a) - log ref(a):

    advantage        (sum_{u >= t} gamma^u r_u - beta sum_{u > t} KL_u) - beta l - V(s_t), GAE(1) with the agent's V
    exact advantage  Q^pi(s_t, a) - beta l - V^pi(s_t): what the one above estimates; its mean under pi is 0
    regret           V*(s_t) - [Q*(s_t, a) - beta l], which is beta log(pi(a) / pi*(a)) for beta > 0: the optimum's
                     value less what this token is worth, at the price that pi pays for it. 0 at every token where
                     pi = pi*; below 0 where pi takes a token less often than pi* does.
    state regret     the mean of that regret under pi, beta KL(pi || pi*) >= 0. Summed over the states of an episode its
                     expectation under pi is J* - J(pi).

Source: advantages: Schulman et al. (2016), arXiv:1506.02438, eq. 16; J* - J = beta KL(pi || pi*): Korbak et al. (2022),
arXiv:2205.11275, section 3, token by token with the chain rule of the KL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from itertools import zip_longest
from typing import Final, Literal

from textgym.checks import JsonObject

FORMAT: Final = 1
Chosen = Literal["sampled", "likeliest", "given"]


@dataclass(frozen=True)
class Candidate:
    """One token that could be written in a state.

    Attributes:
        token: id. text: as the vocabulary writes it.
        probability: pi(a). reference: pi_ref(a). optimal: pi*(a).
        optimal_action_value: Q*(s, a), reward units.
        None: not known, see `Trace.unknown`.
    """

    token: int
    text: str
    probability: float | None
    reference: float
    optimal: float | None
    optimal_action_value: float | None


@dataclass(frozen=True)
class TokenStep:
    """One state s_t and the token that was written there. None: not known, see `Trace.unknown`.

    Attributes:
        step: t. token, text: the action.
        written: the completion so far, decoded: with the prompt, the state.
        log_prob, log_reference, log_ratio: of the action, nats. rank: its place among pi's tokens, 1 the likeliest.
        entropy: of pi at s_t, nats. kl: KL(pi || ref) at s_t over the whole vocabulary, nats.
        reward: what the environment pays for this token, reward units. potential: of the state it leads to, where the
            reward pays potential differences.
        running_return, running_kl: sums of gamma^u r_u and of KL_u over u <= t.
        value: V(s_t) by the agent. advantage: see the module.
        candidates: the likeliest tokens of pi, of the reference and of pi*, and the action; pi's likeliest first.
        rest, reference_rest: probability of all other tokens, by pi and by the reference.
        optimal_value: V*(s_t). optimal_action_value: Q*(s_t, a). regret, state_regret: see the module.
        policy_value: V^pi(s_t). policy_action_value: Q^pi(s_t, a). exact_advantage: see the module.
        reply, reply_ids: what the environment wrote behind this token, the text and the id of each of its tokens.
    """

    step: int
    token: int
    text: str
    written: str
    log_prob: float | None
    log_reference: float
    log_ratio: float | None
    rank: int | None
    entropy: float | None
    kl: float | None
    reward: float
    potential: float | None
    running_return: float
    running_kl: float | None
    value: float | None
    advantage: float | None
    candidates: tuple[Candidate, ...]
    rest: float | None
    reference_rest: float
    optimal_value: float | None = None
    optimal_action_value: float | None = None
    regret: float | None = None
    state_regret: float | None = None
    policy_value: float | None = None
    policy_action_value: float | None = None
    exact_advantage: float | None = None
    reply: tuple[str, ...] = ()
    reply_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Known:
    """Exact values of the prompt by the solver, reward units.

    Attributes:
        states: of the prompt's prefix tree.
        optimum: V*(s_0). reference: V of the reference. policy: V^pi(s_0); None where it is not known.
    """

    states: int
    optimum: float
    reference: float
    policy: float | None


@dataclass(frozen=True)
class Trace:
    """An episode.

    Attributes:
        id, split: the environment. beta: reward units per nat. gamma: discount per token.
        vocabulary, max_new_tokens: its size and the budget, tokens.
        reward_name: how the reward was asked for.
        agent: what the policy was given as. reference: what the KL is measured from.
        seed: of the prompt's draw, the reward's noise and the tokens. chosen: how tokens were.
        prompt: its text. prompt_index: its place in the split, None for a text of one's own.
        prompt_ids, prompt_tokens: the initial state, the chat template included.
        steps: one for every token.
        completion: the finished text. finish_reason: "stop" or "length".
        reward_terms: name -> reward units. gold: None where the task has none.
        total_return: sum of gamma^t r_t. kl: sum of KL_t, nats.
        log_prob, log_reference: of the whole completion, nats.
        objective: total_return - beta kl, one sample of J.
        known: exact values; None where the task is too large to be solved.
        value_meaning: what the agent's V counts, in words.
        unknown: name of a quantity -> why it is None.
    """

    id: str
    split: str
    beta: float
    gamma: float
    vocabulary: int
    max_new_tokens: int
    reward_name: str
    agent: str
    reference: str
    seed: int
    chosen: Chosen
    prompt: str
    prompt_index: int | None
    prompt_ids: tuple[int, ...]
    prompt_tokens: tuple[str, ...]
    steps: tuple[TokenStep, ...]
    completion: str
    finish_reason: str
    reward_terms: dict[str, float]
    gold: float | None
    total_return: float
    kl: float | None
    log_prob: float | None
    log_reference: float
    objective: float | None
    known: Known | None
    value_meaning: str
    unknown: dict[str, str]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Ids of the completion that the policy wrote."""
        return tuple(step.token for step in self.steps)


def parting(one: Trace, other: Trace) -> int | None:
    """Return the first step at which two episodes of the same prompt differ; None where they are the same."""
    pairs = zip_longest(*([(step.token, step.reply) for step in each.steps] for each in (one, other)))
    return next((step for step, (mine, theirs) in enumerate(pairs) if mine != theirs), None)


def trace_json(traces: list[Trace]) -> JsonObject:
    """Return traces of one prompt as JSON values: None where nothing is known, "inf", "-inf" and "nan" as texts."""
    return {
        "format": FORMAT,
        "parting": parting(*traces) if len(traces) == 2 else None,
        "traces": [_plain(trace) for trace in traces],
    }


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
