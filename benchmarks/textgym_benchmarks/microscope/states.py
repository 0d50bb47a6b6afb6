"""One state: the distributions of the policy, the reference and the optimum over the next token, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from textgym.lm.reference import Reference, restricted
from textgym_benchmarks.microscope.exact import ExactState, Floats
from textgym_benchmarks.microscope.trace import Candidate

Observation = Mapping[str, NDArray[Any]]
OPTIMUM_FIELDS = ("optimal_value", "optimal_action_value", "regret", "state_regret")
POLICY_FIELDS = ("policy_value", "policy_action_value", "exact_advantage")
_SLACK = 1e-3  # probabilities of float32 or bfloat16 policies sum to 1 within this


class ExactFields(TypedDict):
    """The fields of a `Step` that the solver knows."""

    optimal_value: float | None
    optimal_action_value: float | None
    regret: float | None
    state_regret: float | None
    policy_value: float | None
    policy_action_value: float | None
    exact_advantage: float | None


_NOTHING = ExactFields(
    optimal_value=None,
    optimal_action_value=None,
    regret=None,
    state_regret=None,
    policy_value=None,
    policy_action_value=None,
    exact_advantage=None,
)


@dataclass(frozen=True)
class View:
    """Log-probabilities (V,) of the next token in one state, nats.

    Attributes:
        log_probs: of the policy; None for an agent that has none. log_reference: of the reference.
    """

    log_probs: Floats | None
    log_reference: Floats

    def log_prob(self, token: int) -> float | None:
        """Of one token."""
        return None if self.log_probs is None else float(self.log_probs[token])

    def log_ratio(self, token: int) -> float | None:
        """The action's log pi(a) - log ref(a); inf where the reference never goes; 0 where neither does."""
        if self.log_probs is None:
            return None
        own, other = float(self.log_probs[token]), float(self.log_reference[token])
        return 0.0 if own == other else own - other

    def rank(self, token: int) -> int | None:
        """1 for the policy's likeliest token; tokens that are equally likely share the best place."""
        return None if self.log_probs is None else 1 + int((self.log_probs > self.log_probs[token]).sum())

    @property
    def entropy(self) -> float | None:
        """Of the policy, nats."""
        return None if self.log_probs is None else expected(self.log_probs, -self.log_probs)

    @property
    def kl(self) -> float | None:
        """KL(pi || ref) over the whole vocabulary, nats."""
        if self.log_probs is None:
            return None
        with np.errstate(invalid="ignore"):
            return expected(self.log_probs, self.log_probs - self.log_reference)


def expected(log_probs: Floats, values: Floats) -> float:
    """The mean of values under a distribution; what has probability 0 does not count, whatever its value."""
    probabilities = np.exp(log_probs)
    taken = probabilities > 0
    return float(probabilities[taken] @ values[taken])


def view_of(
    agent: Any, reference: Reference, observation: Observation, mask: NDArray[np.bool_] | None, step: int
) -> View:
    """What agent and reference say in one state.

    Args:
        observation: a batch of one.
        mask: bool (V,), the tokens that the task's grammar allows; None where every token is.
        step: named in errors.
    Raises: ValueError for log-probabilities that are not numbers <= 0 whose probabilities sum to 1.
    """
    own = agent.log_probs(observation)
    base = _normalised(reference.log_probs(observation), mask, f"the reference's log_probs at step {step}")
    return View(None if own is None else _normalised(own, mask, f"log_probs at step {step}"), base)


def _normalised(table: Any, mask: NDArray[np.bool_] | None, argument: str) -> Floats:
    """One row in double precision, summing to 1 over the tokens that the mask allows."""
    logs = np.asarray(table, dtype=np.float64)
    if logs.ndim != 2 or len(logs) != 1:
        raise ValueError(f"{argument}: shape {logs.shape}, allowed is (1, V)")
    if np.isnan(logs).any() or not abs(np.exp(logs).sum() - 1.0) < _SLACK:
        raise ValueError(f"{argument}: probabilities sum to {np.exp(logs).sum():.6g}, allowed is 1")
    # restricted() with every token allowed takes out the rounding of policies that compute in float32.
    row: Floats = restricted(logs, np.ones_like(logs, np.bool_) if mask is None else mask[None])[0]
    return row


def exact_fields(known: ExactState | None, view: View, token: int, beta: float) -> ExactFields:
    """What the solver says of a state and the token written there."""
    place = None if known is None else known.place(token)
    if known is None or place is None:
        return _NOTHING
    regret = state_regret = None
    if view.log_probs is not None:
        regrets = _regrets(known, view, beta)
        regret, state_regret = float(regrets[place]), expected(view.log_probs[known.actions], regrets)
    values, advantages = known.policy_action_values, known.advantages
    return ExactFields(
        optimal_value=known.value,
        optimal_action_value=float(known.action_values[place]),
        regret=regret,
        state_regret=state_regret,
        policy_value=known.policy_value,
        policy_action_value=None if values is None else float(values[place]),
        exact_advantage=None if advantages is None else float(advantages[place]),
    )


def _regrets(known: ExactState, view: View, beta: float) -> Floats:
    """V*(s) - [Q*(s, a) - beta log(pi(a) / ref(a))] of every legal token; -inf where pi never goes."""
    assert view.log_probs is not None
    if not beta:
        return known.value - known.action_values
    # The same as beta log(pi / pi*), which also has a value where the reference never goes.
    own = view.log_probs[known.actions]
    with np.errstate(invalid="ignore"):
        return np.where(own > -np.inf, beta * (own - known.optimal), -np.inf)


def candidates(
    view: View, known: ExactState | None, action: int, top: int, name: Callable[[int], str]
) -> tuple[tuple[Candidate, ...], float | None, float]:
    """The `top` likeliest tokens of policy, reference and optimum and the action, the policy's likeliest first.

    Args:
        name: from a token to its text.
    Returns: the tokens; the probability of all others by the policy, and by the reference.
    """
    reference = np.exp(view.log_reference)
    own = None if view.log_probs is None else np.exp(view.log_probs)
    optimal, action_values = np.zeros(len(reference)), np.full(len(reference), np.nan)
    if known is not None:
        optimal[known.actions] = np.exp(known.optimal)
        action_values[known.actions] = known.action_values
    chosen = {action}
    for probabilities in (own, reference, optimal if known is not None else None):
        if probabilities is not None:
            likeliest = np.argsort(-probabilities, kind="stable")[:top]
            chosen.update(int(token) for token in likeliest if probabilities[token] > 0)
    first = reference if own is None else own
    order = sorted(chosen, key=lambda token: (-first[token], -reference[token], token))
    shown = tuple(
        Candidate(
            token=token,
            text=name(token),
            probability=None if own is None else float(own[token]),
            reference=float(reference[token]),
            optimal=None if known is None else float(optimal[token]),
            optimal_action_value=None if np.isnan(action_values[token]) else float(action_values[token]),
        )
        for token in order
    )
    return shown, None if own is None else _others(own, order), _others(reference, order)


def _others(probabilities: Floats, shown: list[int]) -> float:
    return max(0.0, 1.0 - float(probabilities[shown].sum()))
