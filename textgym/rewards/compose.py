"""Rewards made of rewards: weighted sums, clipping, running normalisation, and chat messages for texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from textgym.checks import check_flag, not_one_of, shown
from textgym.rewards.base import NamedReward, TermReward, Values, reward_term_names, sum_terms
from textgym.rewards.calling import Caller, Columns, is_finite
from textgym.rewards.registry import RewardSpec, make_reward


class Inner(Caller):
    """One reward inside another, built from its spec.

    Args:
        spec: see `make_reward`.
        outer: the name of the reward that holds it, for messages.

    Raises: ValueError if the reward says itself when it is paid (`pay`): such a reward has to be outermost.
    """

    def __init__(self, spec: RewardSpec, outer: str) -> None:
        super().__init__(make_reward(spec))
        pay = getattr(self.reward, "pay", "end")
        if pay != "end":
            raise ValueError(f"reward {self.name!r} in {outer!r} has pay={pay!r}; it has to be the outermost")

    def values(self, prompts: list[str], completions: list[str], columns: Columns) -> Values:
        """Return the reward of B completions, raising as `terms` does."""
        return sum_terms(self.terms(prompts, completions, columns))


class Weighted(TermReward):
    """A weighted sum of rewards.

    Its terms are the weighted values, under the keys of `rewards`; a reward that has terms itself adds one
    for each of them, as "key/term". Where a reward abstains so do its terms; where all do, so does the sum.

    Args:
        rewards: name -> reward, or the spec of one.
        weights: name -> finite weight; 1 where it names none.
        name: what it is logged under.

    Raises: ValueError for no reward, or a weight that is not finite or belongs to no reward.
    """

    def __init__(
        self,
        rewards: Mapping[str, RewardSpec],
        weights: Mapping[str, float] | None = None,
        name: str = "weighted",
    ) -> None:
        if not isinstance(rewards, Mapping) or not rewards:
            raise ValueError(
                f"rewards={shown(rewards)}: a mapping from at least one name to a reward is allowed"
            )
        self.name = name
        self.rewards = {key: Inner(spec, name) for key, spec in rewards.items()}
        self.weights = dict.fromkeys(rewards, 1.0) | _check_weights(weights, rewards)
        self.term_names = tuple(
            _term_name(key, term, inner) for key, inner in self.rewards.items() for term in inner.term_names
        )
        reward_term_names(self)
        self.maximum = self._greatest()

    def _greatest(self) -> float | None:
        """The sum of what each can pay at most, one that abstains nothing; None where one does not say."""
        most = [
            (self.weights[key], getattr(inner.reward, "maximum", None)) for key, inner in self.rewards.items()
        ]
        if any(own is None or weight < 0 for weight, own in most):
            return None
        return float(sum(max(weight * own, 0.0) for weight, own in most if own is not None))

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, Values]:
        """Return the weighted terms of every completion."""
        found: dict[str, Values] = {}
        for key, inner in self.rewards.items():
            weight = self.weights[key]
            for term, values in inner.terms(prompts, completions, columns).items():
                found[_term_name(key, term, inner)] = [None if v is None else weight * v for v in values]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the rewards by name, as JSON values."""
        return {key: inner.state_dict() for key, inner in self.rewards.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        for key, inner in self.rewards.items():
            inner.load_state_dict(state[key])


class Clipped(NamedReward):
    """Another reward, kept within [low, high]. NaN and infinities pass, for they are failures.

    It is one term, under the other reward's name; clip inside a `Weighted` to keep its terms.

    Args:
        reward: a reward, or the spec of one.
        low, high: finite reward units, low <= high.
    """

    def __init__(self, reward: RewardSpec, low: float = -1.0, high: float = 1.0) -> None:
        if not (is_finite(low) and is_finite(high) and low <= high):
            raise ValueError(
                f"low={shown(low)}, high={shown(high)}: finite numbers with low <= high are allowed"
            )
        self.inner = Inner(reward, "clipped")
        self.name = self.inner.name
        self.low, self.high = float(low), float(high)
        own = getattr(self.inner.reward, "maximum", None)
        self.maximum = self.high if own is None else self._clip(float(own))

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Values:
        """Return the clipped reward of every completion."""
        return [self._clip(value) for value in self.inner.values(prompts, completions, columns)]

    def _clip(self, value: float | None) -> float | None:
        if value is None or not math.isfinite(value):
            return value
        return min(max(value, self.low), self.high)

    def state_dict(self) -> Any:
        """Return the other reward's state."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Go back to what `state_dict` returned."""
        self.inner.load_state_dict(state)


def _term_name(key: str, term: str, inner: Inner) -> str:
    return f"{key}/{term}" if inner.has_terms else key


def _check_weights(weights: Any, rewards: Mapping[str, RewardSpec]) -> dict[str, float]:
    weights = {} if weights is None else weights
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"weights={shown(weights)}: None or a mapping from names of rewards to numbers is allowed"
        )
    for key, weight in weights.items():
        if key not in rewards:
            raise ValueError(not_one_of("weights: reward", key, rewards))
        if not is_finite(weight):
            raise ValueError(f"weights[{key!r}]={shown(weight)}: a finite number is allowed")
    return {key: float(weight) for key, weight in weights.items()}


class RunningNorm(NamedReward):
    """Another reward, less its running mean and divided by its running standard deviation.

    The statistics are those of all finite values so far, the batch at hand included, so such a reward is no
    fixed function of the text. None abstains and is not counted; NaN and infinities pass, for they are
    failures.

    Args:
        reward: a reward, or the spec of one.
        center: subtract the mean; False only scales.
        frozen: use the statistics without adding to them (evaluation).

    Attributes:
        count: how many values were seen.
        mean: their mean, reward units.
        squares: the sum of their squared differences from the mean.

    Source: Welford (1962) as merged by Chan, Golub and LeVeque (1979), eq. 2.1.
    """

    def __init__(self, reward: RewardSpec, center: bool = True, frozen: bool = False) -> None:
        check_flag("center", center)
        check_flag("frozen", frozen)
        self.inner = Inner(reward, "running_norm")
        self.name = self.inner.name
        self.center = center
        self.frozen = frozen
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation of the values so far; 1 while they do not differ."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > 0.0 else 1.0

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Values:
        """Return the normalised reward of every completion."""
        values = self.inner.values(prompts, completions, columns)
        if not self.frozen:
            self._add([value for value in values if value is not None and math.isfinite(value)])
        shift, scale = (self.mean if self.center else 0.0), self.std
        return [None if value is None else (value - shift) / scale for value in values]

    def _add(self, values: list[float]) -> None:
        if not values:
            return
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        count = self.count + len(values)
        difference = mean - self.mean
        self.squares += squares + difference**2 * self.count * len(values) / count
        self.mean += difference * len(values) / count
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics, as JSON values."""
        return {
            "count": self.count,
            "mean": self.mean,
            "squares": self.squares,
            "frozen": self.frozen,
            "inner": self.inner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        self.count = int(state["count"])
        self.mean = float(state["mean"])
        self.squares = float(state["squares"])
        self.frozen = bool(state["frozen"])
        self.inner.load_state_dict(state["inner"])


def as_text(message: Any, role: str) -> str:
    """Return the text of a prompt or a completion, whichever of TRL's two forms it has.

    Args:
        message: a text; or a list of messages {"role": ..., "content": a text or a list of parts with "text"}.
        role: "user": the last message of that role (a prompt is what is answered); "assistant": all of them,
            one a line (a completion may be interrupted by tools).

    Raises: ValueError for anything else.
    """
    if isinstance(message, str):
        return message
    if not isinstance(message, list) or not all(isinstance(m, Mapping) and "role" in m for m in message):
        raise ValueError(f"{message!r:.80} is neither a text nor a list of messages with role and content")
    found = [_content(one.get("content")) for one in message if one["role"] == role]
    return (found[-1] if found else "") if role == "user" else "\n".join(found)


class _Converted(NamedReward):
    """Another reward, asked in another form."""

    outer: ClassVar[str]

    def __init__(self, reward: RewardSpec) -> None:
        self.inner = Inner(reward, self.outer)
        self.name = self.inner.name

    def state_dict(self) -> Any:
        """Return the other reward's state."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Go back to what `state_dict` returned."""
        self.inner.load_state_dict(state)


class FromMessages(_Converted):
    """A reward of texts, for TRL's conversational data: messages are turned into texts first.

    Texts pass as they are, so one object serves both kinds of data.

    Args:
        reward: a reward, or the spec of one.
    """

    outer = "from_messages"

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> Values:
        """Score every completion, read as `as_text` does."""
        texts = [as_text(completion, "assistant") for completion in completions]
        return self.inner.values([as_text(prompt, "user") for prompt in prompts], texts, columns)


class ToMessages(_Converted):
    """A reward of messages, written for TRL's conversational data: texts are wrapped into messages for it.

    Args:
        reward: a reward of lists of messages, or the spec of one.
    """

    outer = "to_messages"

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Values:
        """Score every completion, as an assistant's only message that answers a user's only one."""
        asked: list[Any] = [[{"role": "user", "content": text}] for text in prompts]
        answered: list[Any] = [[{"role": "assistant", "content": text}] for text in completions]
        return self.inner.values(asked, answered, columns)


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):  # None: a message that only calls tools
        return content or ""
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise ValueError(f"content={content!r:.80}: a text or a list of parts is allowed")
