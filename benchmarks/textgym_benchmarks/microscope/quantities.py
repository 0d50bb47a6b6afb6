"""The quantities of a step that a page colours tokens by and lists in its table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

# level: from least to greatest; size: from 0; cost: from 0, and bad; signed: around 0; loss: signed, and bad.
Kind = Literal["level", "size", "cost", "signed", "loss"]


@dataclass(frozen=True)
class Quantity:
    """One field of a `Step`.

    Attributes:
        name: of the field. label: for people. kind: which colours serve it. group: what it is said of.
        meaning: a sentence.
    """

    name: str
    label: str
    kind: Kind
    group: Literal["token", "state", "episode", "solver"]
    meaning: str


QUANTITIES = (
    Quantity("kl", "KL", "size", "state", "KL(π ‖ ref) at this state, over the whole vocabulary, in nats."),
    Quantity(
        "log_ratio", "Log-ratio", "signed", "token",
        "log π(a) - log ref(a), in nats: above 0 where π writes this token more often than the reference.",
    ),
    Quantity("entropy", "Entropy", "size", "state", "Entropy of π at this state, in nats."),
    Quantity("reward", "Reward", "signed", "token", "What the environment pays for this token."),
    Quantity("value", "V", "level", "state", "V(s) by the agent, before the token is written."),
    Quantity(
        "advantage", "Advantage", "signed", "token",
        "What came of this token, less V(s): one sample, made with the agent's own V.",
    ),
    Quantity(
        "regret", "Regret", "loss", "solver",
        "V*(s) - [Q*(s, a) - β log-ratio] = β log(π / π*): above 0 where π writes this token more often than the "
        "optimum does.",
    ),
    Quantity(
        "state_regret", "Regret of the state", "cost", "solver",
        "β KL(π ‖ π*), the mean regret at this state. Summed over an episode it is J* - J on average.",
    ),
    Quantity("optimal_value", "V*", "level", "solver", "Value of this state under the optimum."),
    Quantity("optimal_action_value", "Q*", "level", "solver", "Value of this token under the optimum."),
    Quantity("policy_value", "V of π", "level", "solver", "Exact value of this state under π."),
    Quantity("policy_action_value", "Q of π", "level", "solver", "Exact value of this token under π."),
    Quantity(
        "exact_advantage", "Exact advantage", "signed", "solver",
        "Q of π - β log-ratio - V of π: what this token adds to J; its mean under π is 0.",
    ),
    Quantity("running_return", "Return so far", "level", "episode", "Rewards up to this token."),
    Quantity("running_kl", "KL so far", "size", "episode", "Sum of the KL of the states up to this one, in nats."),
)  # fmt: skip


def quantities_json() -> list[dict[str, Any]]:
    """The quantities as JSON values."""
    return [asdict(quantity) for quantity in QUANTITIES]
