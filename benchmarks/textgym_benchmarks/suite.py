"""A suite as data: cells of (task, reward, agent, settings, budget, seed), and how they are evaluated."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, TypeVar

from textgym_agents.config import check_split
from textgym_agents.training.curriculum import CurriculumSettings

from textgym.checks import JsonObject, did_you_mean
from textgym.prompts import HeldOut
from textgym.rewards.registry import spec_name

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
RewardJson = str | Mapping[str, object] | Sequence[object]
"""A reward as JSON: a registered name, {"name": ..., **parameters}, or a list of these, which is their sum."""

_CURRICULUM = frozenset(each.name for each in fields(CurriculumSettings))
LARGEST_SEED = 2**31 - 1


def reward_label(reward: RewardJson | None) -> str:
    """Return the name of a reward in tables, without modules: "length", "sentiment + length"; "default" for None."""
    return "default" if reward is None else re.sub(r"[^\s:]*:", "", spec_name(reward))


@dataclass(frozen=True)
class Cell:
    """One training to do and to measure: one row of a suite.

    Args:
        id: of the environment, as in "textgym/Copy-v0"; of your own, "module:ID", so that every worker finds it.
        agent: a registered name, or "module:Class".
        episodes: the budget.
        seed: of the agent, 0 to 2^31 - 1.
        reward: the environment's option `reward`; None for the task's own.
        reward_name: the name of the reward in tables.
        env: other options of the environment, JSON values.
        config: settings of the agent and of the curriculum, JSON values, without `seed`.
        label: the name of the agent in tables; "" for `agent`.
    Raises: ValueError for a value that is not allowed.
    """

    id: str
    agent: str
    episodes: int
    seed: int
    reward: RewardJson | None = field(default=None, hash=False)
    reward_name: str = "default"
    env: Mapping[str, object] = field(default_factory=dict, hash=False)
    config: Mapping[str, object] = field(default_factory=dict, hash=False)
    label: str = ""

    def __post_init__(self) -> None:
        for name, least in {"id": 1, "agent": 1, "reward_name": 1, "label": 0}.items():
            text = getattr(self, name)
            if not isinstance(text, str) or len(text) < least:
                raise ValueError(f"{name}={text!r}: allowed is a text" + " that is not empty" * least)
        check_integer("episodes", self.episodes, 1)
        check_integer("seed", self.seed, 0, LARGEST_SEED)
        if self.reward is not None and not isinstance(self.reward, str | Mapping | list | tuple):
            raise ValueError(f"reward={self.reward!r}: allowed is null, a name, {{'name': ..., ...}}, or a list")
        for name, taken in (("env", "reward"), ("config", "seed")):
            options = getattr(self, name)
            if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
                raise ValueError(f"{name}={options!r}: allowed is a mapping of texts to JSON values")
            if taken in options:
                raise ValueError(f"{name}={dict(options)!r}: {taken!r} is a field of the cell itself")
        # Copies, and lists for tuples: a cell reads the same before and after it was written to a file.
        for name in ("reward", "env", "config"):
            value = getattr(self, name)
            try:
                copy = json.loads(json.dumps(value, allow_nan=False))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}={value!r}: allowed are JSON values ({error})") from error
            object.__setattr__(self, name, copy)

    @property
    def name(self) -> str:
        """The name of the agent in tables."""
        return self.label or self.agent

    @property
    def short_id(self) -> str:
        """The id without a module and without `textgym/`."""
        return self.id.rpartition(":")[2].removeprefix("textgym/")

    @property
    def task(self) -> str:
        """The name of the task, with that of a reward that is not its own."""
        return self.short_id if self.reward_name == "default" else f"{self.short_id} {self.reward_name}"

    @property
    def key(self) -> str:
        """The name of the cell's folder: readable words, and a hash of everything but the names that tables show."""
        content = asdict(self)
        del content["label"], content["reward_name"]
        digest = hashlib.sha256(canonical(content).encode()).hexdigest()[:8]
        words = [self.id.rpartition("/")[2], self.reward_name, self.name, f"s{self.seed}", digest]
        return ".".join(re.sub(r"[^a-z0-9_-]+", "-", word.lower()).strip("-")[:40] or "x" for word in words)

    @property
    def options(self) -> JsonObject:
        """The options of the environment, the reward among them."""
        return dict(self.env) | ({} if self.reward is None else {"reward": self.reward})

    def to_json(self) -> JsonObject:
        """Return all fields, and the key."""
        return asdict(self) | {"key": self.key}

    @classmethod
    def from_json(cls, data: object) -> Cell:
        """Return the cell whose data `to_json` wrote. Raises: ValueError for anything else."""
        cell = from_fields(cls, data, also=("key",))
        assert isinstance(data, Mapping)
        if data.get("key", cell.key) != cell.key:
            raise ValueError(f"cell: its key is {data['key']!r}, but its fields make {cell.key!r}")
        return cell


@dataclass(frozen=True)
class Evaluation:
    """How the cells of a suite are measured.

    Args:
        points: of the learning curve, at equal distances over the budget.
        per_prompt: completions per prompt, at the points of the curve.
        final_per_prompt: the same, before and after learning.
        optimum_per_prompt: completions of the reference per prompt that J* is estimated from; with 0 it is not,
            and only solved and committed ones are known.
        samples: prompts whose answers before and after learning are kept.
        split: whose prompts are answered: "eval", the held-out ones; or "tune", to choose settings on: there every cell
            runs with a seed `TUNE_SEEDS` above its own, as some tasks have the same prompts in all splits.
    Raises: ValueError for a number out of range, or another split.
    """

    points: int = 8
    per_prompt: int = 4
    final_per_prompt: int = 16
    optimum_per_prompt: int = 128
    samples: int = 6
    split: HeldOut = "eval"

    def __post_init__(self) -> None:
        for name in ("points", "per_prompt", "final_per_prompt"):
            check_integer(name, getattr(self, name), 1)
        for name in ("optimum_per_prompt", "samples"):
            check_integer(name, getattr(self, name), 0)
        check_split(self.split)

    @classmethod
    def from_json(cls, data: object) -> Evaluation:
        """Return the settings from data, a JSON object of its fields. Raises: ValueError for anything else."""
        return from_fields(cls, data)


@dataclass(frozen=True)
class Suite:
    """A benchmark: cells in the order in which tables show them.

    Args:
        name: lower-case letters, digits and dashes.
        cells: at least one, all different.
        description: one line for people.
        evaluation: how the cells are measured.
    Raises: ValueError for a name that is not allowed, no cell, or the same cell twice.
    """

    name: str
    cells: tuple[Cell, ...]
    description: str = ""
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise ValueError(f"name={self.name!r}: allowed are lower-case letters, digits and dashes")
        if not isinstance(self.description, str):
            raise ValueError(f"description={self.description!r}: allowed is a text")
        object.__setattr__(self, "cells", tuple(self.cells))
        if not self.cells:
            raise ValueError("cells=(): a suite has at least one cell")
        key, count = Counter(cell.key for cell in self.cells).most_common(1)[0]
        if count > 1:
            raise ValueError(f"cells: {key} stands there twice")

    def to_json(self) -> JsonObject:
        """Return all fields, those of the cells included."""
        return {
            "name": self.name,
            "description": self.description,
            "evaluation": asdict(self.evaluation),
            "cells": [cell.to_json() for cell in self.cells],
        }

    @classmethod
    def from_json(cls, data: object) -> Suite:
        """Return the suite whose data `to_json` wrote, whatever stands beside its fields. Raises: ValueError."""
        if not isinstance(data, Mapping) or not isinstance(data.get("cells"), list):
            raise ValueError("suite: allowed is an object with a list 'cells'")
        cells = tuple(Cell.from_json(cell) for cell in data["cells"])
        evaluation = Evaluation.from_json(data.get("evaluation", {}))
        return cls(data.get("name", ""), cells, str(data.get("description", "")), evaluation)


def parted(settings: Mapping[str, object]) -> tuple[JsonObject, JsonObject]:
    """Return a cell's settings in two: those of its agent, and those of the curriculum."""
    drawn = {name: value for name, value in settings.items() if name in _CURRICULUM}
    return {name: value for name, value in settings.items() if name not in drawn}, drawn


def canonical(data: object) -> str:
    """Return the one text of a JSON value: keys sorted, no blanks."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ValueError unless `value` is an integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or value > (most or value):
        allowed = f"an integer >= {least}" if most is None else f"an integer from {least} to {most}"
        raise ValueError(f"{name}={value!r}: allowed is {allowed}")


def from_fields(kind: type[T], data: object, also: tuple[str, ...] = ()) -> T:
    """Return a dataclass of JSON values from an object with its fields, and keys of `also`, which are left out.

    Raises: ValueError for anything else.
    """
    what = kind.__name__.lower()
    if not isinstance(data, Mapping):
        raise ValueError(f"{what}: holds a {type(data).__name__}, allowed is a JSON object")
    allowed = [each.name for each in fields(kind)]
    for key in data:
        if key not in allowed and key not in also:
            raise ValueError(f"{what}: {key!r} is not one of {', '.join(allowed)}.{did_you_mean(key, allowed)}")
    try:
        return kind(**{key: value for key, value in data.items() if key in allowed})
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error
