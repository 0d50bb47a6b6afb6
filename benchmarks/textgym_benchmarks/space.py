"""What a study searches: a range or a set of values for each setting, by default or in words."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Final

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from textgym_agents.registry import agent_class, config_class, make_config

from textgym.checks import is_finite
from textgym.files import json_value

_SPACE: Final[Mapping[str, BaseDistribution]] = {
    "learning_rate": FloatDistribution(3e-5, 1e-2, log=True),
    "batch": CategoricalDistribution((32, 64, 128, 256)),
    "epochs": IntDistribution(1, 4),
    "minibatches": CategoricalDistribution((1, 2, 4, 8)),
    "group": CategoricalDistribution((2, 4, 8, 16)),
    "kl": CategoricalDistribution(("exact", "k1", "k2", "k3", "k3-ratio")),
    "lam": FloatDistribution(0.9, 1.0),
    "gae_lambda": FloatDistribution(0.9, 1.0),
    "clip": FloatDistribution(0.1, 0.4),
    "clip_range": FloatDistribution(0.1, 0.4),
    "value_coefficient": FloatDistribution(1e-3, 1.0, log=True),
    "value_rate": FloatDistribution(1.0, 100.0, log=True),
    "updates": IntDistribution(1, 4),
    "gradient_steps": CategoricalDistribution((2, 4, 8, 16)),
    "best_share": FloatDistribution(0.1, 1.0),
}


def default_space(agent: str, config: Mapping[str, object]) -> dict[str, BaseDistribution]:
    """Return what is searched where nobody says: the settings that decide how an agent learns, by name.

    A learning rate with a number is searched from a tenth of it to ten times; what the agent refuses is left out.

    Args: config: settings of all trials, which are not searched. Raises: ValueError if nothing is left.
    """
    kind = config_class(agent_class(agent))
    own = {} if kind is None else {each.name: each.default for each in fields(kind)}
    space = {name: found for name, found in _SPACE.items() if name in own}
    rate = own.get("learning_rate")
    if isinstance(rate, float):
        space["learning_rate"] = FloatDistribution(rate / 10, min(10 * rate, 1.0), log=True)
    taken = ((name, _taken(agent, config, name, found)) for name, found in space.items() if name not in config)
    space = {name: found for name, found in taken if found is not None}
    if not space:
        have = ", ".join(own) or "none"
        raise ValueError(f"space: nothing of {agent} is searched by default; name some of its settings ({have})")
    return space


def _taken(agent: str, config: Mapping[str, object], name: str, searched: BaseDistribution) -> BaseDistribution | None:
    """Return what an agent with some settings takes of what is searched; None where nothing is left to choose."""
    own, kept = searched._asdict(), []
    for value in own.get("choices", (own.get("low"), own.get("high"))):
        with contextlib.suppress(TypeError, ValueError):
            make_config(agent_class(agent), {**config, name: value})
            kept.append(value)
    return None if len(kept) < 2 else CategoricalDistribution(kept) if "choices" in own else searched


def read_space(words: Mapping[str, str]) -> dict[str, BaseDistribution]:
    """Return what is searched from texts by setting: "LOW..HIGH" or values with commas, as in "exact,k1".

    A range of integers is one of integers. Another is searched on a logarithmic scale where HIGH is ten LOW or more.

    Raises: ValueError for another form.
    """
    return {name: _read(name, text) for name, text in words.items()}


def _read(name: str, text: str) -> BaseDistribution:
    low, dots, high = text.partition("..")
    values = [_value(word) for word in ((low, high) if dots else text.split(","))]
    if not dots:
        if len({json.dumps(value) for value in values}) < len(values) or "" in values:
            raise ValueError(f"{name}={text!r}: allowed are different values, as in 1,2,4")
        return CategoricalDistribution(values)
    first, last = values
    if not (is_finite(first) and is_finite(last) and first < last):
        raise ValueError(f"{name}={text!r}: allowed is LOW..HIGH of two numbers, the greater one last")
    if isinstance(first, int) and isinstance(last, int):
        return IntDistribution(first, last)
    return FloatDistribution(first, last, log=0 < 10 * first <= last)


def _value(word: str) -> bool | int | float | str | None:
    try:
        value = json_value(word)
    except ValueError:
        return word
    return value if value is None or isinstance(value, bool | int | float) else word
