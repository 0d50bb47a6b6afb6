"""Rewards made of rewards: weighted, clipped, normalised, grouped by prompt, with noise, for chat messages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import numpy as np

from textgym.checks import JsonObject, check_flag, check_number, is_finite, not_one_of, shown
from textgym.rewards.base import (
    Column,
    Failed,
    NamedReward,
    Reward,
    TermReward,
    Values,
    as_text,
    reward_name,
    reward_term_names,
    sum_terms,
)
from textgym.rewards.calling import Begun, Inner, answered, ask_together
from textgym.rewards.registry import RewardSpec, make_reward

Pay = Literal["end", "together", "every", "difference"]
"""When a reward is paid, see `Scorer`."""
NOISE = "noise"
"""The term with the noise; evaluation and J* exclude it."""


class Weighted(TermReward):
    """A weighted sum of rewards.

    Its terms are the weighted values, under the keys of `rewards`; a reward with terms of its own adds one for each of
    them, as "key/term". If a reward abstains, so do its terms; if all abstain, so does the sum. `async def` rewards
    wait at once.

    Args:
        rewards: name -> reward, or the spec of one; or a list of them, by their own names, the second as "name_2".
        weights: name -> finite weight, by default 1; or a list with one for each reward.
        name: the name under which it is logged.
    Raises: ValueError for no reward, one that is paid at every token or noisy, or a weight that is not finite or
        belongs to no reward.
    """

    def __init__(
        self,
        rewards: Mapping[str, RewardSpec] | Sequence[RewardSpec],
        weights: Mapping[str, float] | Sequence[float] | None = None,
        name: str = "weighted",
    ) -> None:
        if not isinstance(rewards, Mapping | list | tuple) or not rewards:
            raise ValueError(f"rewards={shown(rewards)}: allowed is a mapping from at least one name, or a list")
        if not isinstance(rewards, Mapping):
            rewards = _named(rewards)
        if isinstance(weights, list | tuple) and len(weights) == len(rewards):
            weights = dict(zip(rewards, weights, strict=True))
        self.name = name
        self.rewards = {key: Inner(spec, name) for key, spec in rewards.items()}
        self.weights = dict.fromkeys(rewards, 1.0) | _check_weights(weights, rewards)
        self.term_names = tuple(
            _term_name(key, term, inner) for key, inner in self.rewards.items() for term in inner.term_names
        )
        reward_term_names(self)
        together = any(inner.pay == "together" for inner in self.rewards.values())
        self.pay: Pay = "together" if together else "end"
        self.needs_timeout = any(inner.needs_timeout for inner in self.rewards.values())
        # One that abstains pays nothing.
        most = [
            None if inner.maximum is None or self.weights[key] < 0 else self.weights[key] * inner.maximum
            for key, inner in self.rewards.items()
        ]
        self.maximum = None if None in most else float(sum(max(own or 0.0, 0.0) for own in most))

    def terms(self, prompts: list[str], completions: list[str], **columns: Column) -> dict[str, Values]:
        """Return the weighted terms of every completion."""
        return cast("dict[str, Values]", answered(lambda: self.begin(prompts, completions, **columns)))

    def begin(self, prompts: list[str], completions: list[str], **columns: Column) -> Begun:
        """Begin to ask for the terms of every completion, see `Reward`."""
        asked = [(inner, prompts, completions, columns) for inner in self.rewards.values()]
        return ask_together(asked, self._weighted)

    def _weighted(self, answers: list[dict[str, Values]]) -> dict[str, Values]:
        found: dict[str, Values] = {}
        for (key, inner), terms in zip(self.rewards.items(), answers, strict=True):
            weight = self.weights[key]
            for term, values in terms.items():
                found[_term_name(key, term, inner)] = [
                    v if v is None or isinstance(v, Failed) else weight * v for v in values
                ]
        return found

    def spent(self) -> dict[str, float]:
        """Return what scoring has cost so far, all rewards together."""
        found: Counter[str] = Counter()
        for inner in self.rewards.values():
            found.update(inner.spent())
        return dict(found)

    def state_dict(self) -> JsonObject:
        """Return the states of the rewards by name, as JSON values."""
        return {key: inner.state_dict() for key, inner in self.rewards.items()}

    def load_state_dict(self, state: JsonObject) -> None:
        """Go back to a state that `state_dict` returned."""
        for key, inner in self.rewards.items():
            inner.load_state_dict(state[key])


def _term_name(key: str, term: str, inner: Inner) -> str:
    return f"{key}/{term}" if inner.has_terms else key


def _named(specs: Sequence[RewardSpec]) -> dict[str, RewardSpec]:
    """Return the rewards of a list by name."""
    found: dict[str, RewardSpec] = {}
    for spec in specs:
        reward, number = make_reward(spec, "rewards"), 1
        name = own = reward_name(reward)
        while name in found:
            number += 1
            name = f"{own}_{number}"
        found[name] = reward
    return found


def _check_weights(weights: object, rewards: Mapping[str, RewardSpec]) -> dict[str, float]:
    weights = {} if weights is None else weights
    if not isinstance(weights, Mapping):
        allowed = f"None, a number for each of {len(rewards)} rewards, or a mapping from their names to numbers"
        raise ValueError(f"weights={shown(weights)}: {allowed} is allowed")
    for key in weights:
        if key not in rewards:
            raise ValueError(not_one_of("weights: reward", key, rewards))
    return {key: check_number(f"weights[{key!r}]", weight) for key, weight in weights.items()}


class Wrapped(NamedReward):
    """Another reward in another form: it has that reward's name, and its state."""

    def __init__(self, reward: RewardSpec, outer: str, noise: bool = False) -> None:
        self.inner = Inner(reward, outer, noise)
        self.needs_timeout = self.inner.needs_timeout
        self.name = self.inner.name
        self.pay: Pay = self.inner.pay

    def spent(self) -> dict[str, float]:
        """Return what the other reward has cost so far."""
        return self.inner.spent()

    def state_dict(self) -> object:
        """Return the other reward's state."""
        return self.inner.state_dict()

    def load_state_dict(self, state: JsonObject) -> None:
        """Go back to a state that `state_dict` returned."""
        self.inner.load_state_dict(state)


class Changed(Wrapped):
    """A reward derived from another one by changing its calls or its values; `async def` ones wait together."""

    def begin(self, prompts: Sequence[object], completions: Sequence[object], **columns: Column) -> Begun:
        """Begin to score every completion, see `Reward`."""
        return self.inner.begin_values(prompts, completions, columns, self.change)

    def change(self, values: Values) -> Values:
        """Return what this pays where the other reward pays `values`."""
        return values

    def __call__(self, prompts: Sequence[object], completions: Sequence[object], **columns: Column) -> Values:
        """Return the reward of every completion."""
        return cast("Values", answered(lambda: self.begin(prompts, completions, **columns)))


class Clipped(Changed):
    """Clips another reward to [low, high]. NaN and infinities are not clipped, because they are failures.

    It is one term, under the other reward's name; clip inside a `Weighted` to keep its terms.

    Args:
        reward: a reward, or the spec of one.
        low, high: finite reward units, low <= high.
    Raises: as `make_reward` does; ValueError for other bounds, or a reward that is paid at every token or noisy.
    """

    def __init__(self, reward: RewardSpec, low: float = -1.0, high: float = 1.0) -> None:
        if not (is_finite(low) and is_finite(high) and low <= high):
            raise ValueError(f"low={shown(low)}, high={shown(high)}: finite numbers with low <= high are allowed")
        super().__init__(reward, "clipped")
        self.low, self.high = float(low), float(high)
        own = self.inner.maximum
        self.maximum = self.high if own is None else self._clip(float(own))

    def change(self, values: Values) -> Values:
        """Return the values, clipped."""
        return [self._clip(value) for value in values]

    def _clip(self, value: float | None) -> float | None:
        if value is None or not math.isfinite(value):
            return value
        return min(max(value, self.low), self.high)


class Grouped(Changed):
    """Calls another reward once per prompt of a batch, with all completions of that prompt.

    That reward may compare them, for example rank them or pay for what none of the others has. It is called in the
    order in which prompts first appear; if it is `async def`, the prompts wait together.

    Args:
        reward: a reward, or the spec of one.
    Raises: as `make_reward` does; ValueError for a reward that is paid at every token or noisy.
    """

    def __init__(self, reward: RewardSpec) -> None:
        super().__init__(reward, "grouped")
        self.pay = "together"
        self.maximum = self.inner.maximum

    def begin(self, prompts: Sequence[object], completions: Sequence[object], **columns: Column) -> Begun:
        """Begin to score every completion, see `Reward`."""
        rows: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):  # a text, or the messages of a conversation
            rows.setdefault(repr(prompt), []).append(row)
        asked = []
        for own in rows.values():
            given = {name: _of_rows(values, own) for name, values in columns.items()}
            asked.append((self.inner, [prompts[row] for row in own], [completions[row] for row in own], given))
        place = np.argsort([row for own in rows.values() for row in own])

        def spread(answers: list[dict[str, Values]]) -> Values:
            values = [value for terms in answers for value in sum_terms(terms)]
            return [values[at] for at in place]

        return ask_together(asked, spread)


def _of_rows(column: Column, rows: Sequence[int]) -> Column:
    """Return a column's values in some rows; what is no list, as the state that TRL's trainers hand over, as it is."""
    is_list = isinstance(column, Sequence | np.ndarray) and not isinstance(column, str | bytes)
    return [column[row] for row in rows] if is_list else column


class RunningNorm(Changed):
    """Normalises another reward by its running mean and running standard deviation.

    The statistics cover all finite values so far, including the current batch, so such a reward is not a fixed function
    of the text. None abstains and is not counted; NaN and infinities pass through, because they are failures.

    Args:
        reward: a reward, or the spec of one.
        center: whether to subtract the mean; False only scales.
        frozen: whether to use the statistics of a loaded state without updating them (evaluation).

    Attributes:
        count: number of values seen.
        mean: their mean, reward units.
        squares: the sum of their squared differences from the mean.
    Raises: as `make_reward` does; ValueError for a flag that is no bool, or a reward paid at every token or noisy.
    Source: Welford (1962) as merged by Chan, Golub and LeVeque (1979), eq. 2.1.
    """

    def __init__(self, reward: RewardSpec, center: bool = True, frozen: bool = False) -> None:
        check_flag("center", center)
        check_flag("frozen", frozen)
        super().__init__(reward, "running_norm")
        self.center = center
        self.frozen = frozen
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation of the values so far; 1 while they do not differ."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > 1e-12 * abs(self.mean) else 1.0  # what is less is rounding

    def change(self, values: Values) -> Values:
        """Return the values, normalised."""
        if not self.frozen:
            self._add([value for value in values if value is not None and math.isfinite(value)])
        shift, scale = (self.mean if self.center else 0.0), self.std
        return [v if v is None or isinstance(v, Failed) else (v - shift) / scale for v in values]

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

    def state_dict(self) -> JsonObject:
        """Return the statistics and the other reward's state, as JSON values."""
        state = {name: getattr(self, name) for name in ("count", "mean", "squares")}
        return {**state, "inner": self.inner.state_dict()}

    def load_state_dict(self, state: JsonObject) -> None:
        """Go back to a state that `state_dict` returned."""
        self.count = int(state["count"])
        self.mean = float(state["mean"])
        self.squares = float(state["squares"])
        self.inner.load_state_dict(state["inner"])


class Blurred(Wrapped, TermReward):
    """Pays another reward plus normal noise.

    Its terms are those of the other reward and `noise`. A task with it is noisy: its episodes have seeds, and its
    optimum is that of the mean, `expected`.

    Args:
        reward: a reward, or the spec of one; where it abstains, so does this.
        deviation: standard deviation of the noise, reward units, finite and >= 0.

    Attributes:
        expected: the reward without the noise.
        normal_noise: `deviation`.
        maximum: that of the mean, which J* is of.
    Raises: ValueError for another deviation, or a reward that has a term `noise` already.
    """

    noisy = True

    def __init__(self, reward: RewardSpec, deviation: float) -> None:
        super().__init__(reward, "blurred")
        if NOISE in self.inner.term_names:
            raise ValueError(f"reward {self.inner.name!r} has a term {NOISE!r} already; allowed is one without")
        self.name = "blurred"
        self.expected: Reward = self.inner.reward
        self.deviation = self.normal_noise = check_number("deviation", deviation, 0, unit="reward units")
        self.term_names = (*self.inner.term_names, NOISE)
        self.maximum = self.inner.maximum

    def terms(self, prompts: list[str], completions: list[str], **columns: Column) -> dict[str, Values]:
        """Return the other reward's terms and the noise, None where all of those abstain.

        Raises: ValueError without the column `episode_seeds`, which noisy tasks have, or for an episode without a seed.
        """
        if "episode_seeds" not in columns:
            raise ValueError("episode_seeds: the column is missing; allowed is a noisy task, which has it")
        seeds = cast("Sequence[int | None]", columns.pop("episode_seeds"))
        if None in seeds:
            raise ValueError(
                "episode_seeds: an episode has none; allowed is a state with the `episode_seed` of its noise"
            )
        terms = self.inner.terms(prompts, completions, columns)
        paid = [any(value is not None for value in values) for values in zip(*terms.values(), strict=True)]
        noise = [float(np.random.default_rng(seed).normal(0.0, self.deviation)) for seed in seeds]
        return terms | {NOISE: [blur if there else None for blur, there in zip(noise, paid, strict=True)]}


class FromMessages(Changed):
    """Applies a reward of texts to TRL's conversational data: messages are converted to texts first.

    Texts pass as they are, so one object serves both kinds of data.

    Raises: as `make_reward` does; ValueError for a reward that is paid at every token.
    """

    def __init__(self, reward: RewardSpec) -> None:
        super().__init__(reward, "from_messages", noise=True)  # for trainers, which have no noisy tasks

    def begin(self, prompts: Sequence[object], completions: Sequence[object], **columns: Column) -> Begun:
        """Begin to score every completion, read as `as_text` does."""
        texts = [as_text(completion, "assistant") for completion in completions]
        return super().begin([as_text(prompt, "user") for prompt in prompts], texts, **columns)


class ToMessages(Changed):
    """Applies a reward of lists of messages, as in TRL, to texts, which are wrapped into messages first.

    Raises: as `make_reward` does; ValueError for a reward that is paid at every token or noisy.
    """

    def __init__(self, reward: RewardSpec) -> None:
        super().__init__(reward, "to_messages")

    def begin(self, prompts: Sequence[object], completions: Sequence[object], **columns: Column) -> Begun:
        """Begin to score every completion, as an assistant's only message that answers a user's only one."""
        asked = [[{"role": "user", "content": text}] for text in prompts]
        answers = [[{"role": "assistant", "content": text}] for text in completions]
        return super().begin(asked, answers, **columns)
