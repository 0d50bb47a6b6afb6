"""Helpful, harmless and honest at once: the gold reward of the task HHH."""

from collections.abc import Mapping, Sequence
from typing import Final

from textgym.messages import shown
from textgym.rewards.values import is_finite
from textgym.world.grading import HELPFUL_KINDS, HelpfulRules
from textgym.world.harmless_rules import HARMLESS_KINDS, HarmlessRules
from textgym.world.honest_rules import HONEST_KINDS, HonestRules
from textgym.world.rules import WorldRules, Written
from textgym.world.tokenizer import END_ID

AXES: Final = {"helpful": HELPFUL_KINDS, "harmless": HARMLESS_KINDS, "honest": HONEST_KINDS}
"""Axis -> the kinds of prompts that its rules score."""


def covered(weights: Mapping[str, float]) -> tuple[str, ...]:
    """The kinds of prompts that some axis with a weight above 0 scores."""
    kinds = [kind for axis, kinds in AXES.items() if weights[axis] > 0 for kind in kinds]
    return tuple(dict.fromkeys(kinds))


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises: ValueError unless every weight is finite and at least 0, and one of them is above 0."""
    for axis, weight in weights.items():
        if not is_finite(weight) or weight < 0:
            raise ValueError(
                f"{axis}={shown(weight)}: allowed is a finite number from 0 on (weight of the axis)"
            )
    if not any(weights.values()):
        given = ", ".join(f"{axis}={weight!r}" for axis, weight in weights.items())
        raise ValueError(f"{given}: at least one weight has to be above 0")


class HHHRules(WorldRules):
    """Pays the weighted mean of `HelpfulRules`, `HarmlessRules` and `HonestRules`. Range [-1, 1].

    The mean is over the axes that score the prompt's kind and whose weight is above 0; the weights of the
    others count for nothing. The terms are the axes: each is what the axis adds to the mean, its reward times
    its share of the weights, and 0 where it is left out. Where all of them are, the reward abstains.

    Args:
        helpful, harmless, honest: weights, at least 0, not all of them 0.
        stop_ids: ids that end a completion; the built-in tokenizer's by default.

    Raises: ValueError for weights that are not allowed.
    """

    term_names = tuple(AXES)

    def __init__(
        self,
        helpful: float = 1.0,
        harmless: float = 1.0,
        honest: float = 1.0,
        stop_ids: Sequence[int] = (END_ID,),
    ) -> None:
        super().__init__(stop_ids)
        self.weights = {"helpful": helpful, "harmless": harmless, "honest": honest}
        check_weights(self.weights)
        self.kinds = covered(self.weights)
        self._shares = {kind: _shares(kind, self.weights) for kind in self.kinds}
        self._rules: dict[str, WorldRules] = {
            "helpful": HelpfulRules(stop_ids),
            "harmless": HarmlessRules(stop_ids),
            "honest": HonestRules(stop_ids),
        }

    def score(self, written: Written, kind: str, item: str) -> tuple[float, ...]:
        """The terms of one completion."""
        return tuple(
            share * sum(rules.score(written, kind, item)) if share else 0.0
            for share, rules in zip(self._shares[kind], self._rules.values(), strict=True)
        )


def _shares(kind: str, weights: Mapping[str, float]) -> tuple[float, ...]:
    """What share each axis has in the reward for a kind, in the order of `AXES`."""
    counted = [weights[axis] if kind in kinds else 0.0 for axis, kinds in AXES.items()]
    relative = [weight / max(counted) for weight in counted]  # so that no sum of weights overflows
    return tuple(share / sum(relative) for share in relative)
