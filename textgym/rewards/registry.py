"""Make rewards, and other registered objects, by name with JSON parameters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from textgym.checks import did_you_mean, docstring, shown
from textgym.registry import REWARDS, Entry, Factory, Registry, load_target
from textgym.rewards.base import Reward

RewardSpec: TypeAlias = Factory | str | Mapping[str, Any] | Sequence[Any]
"""A reward object, a registered name (or "module:attribute"), {"name": ..., **parameters}, or a list of these."""


def register_reward(name: str, factory: Factory | str) -> None:
    """Register `factory(**parameters)` under `name`.

    Args:
        name: the name in specs: a text without spaces, ":" and "/".
        factory: a class or function that returns a reward, or "module:attribute" that names one. Its parameters should
            be JSON values, so that specs can be saved.
    Raises: ValueError for a bad name, or one that is taken by another factory.
    """
    REWARDS.add(Entry(name, factory))


def reward_names() -> tuple[str, ...]:
    """Return all registered names, sorted."""
    return tuple(sorted(REWARDS))


def describe_reward(name: str) -> str:
    """Return two lines about a registered reward: name and parameters as in a call, and what it pays.

    Raises: ValueError for an unknown name.
    """
    target = _load(REWARDS, name, "reward")
    parameters = inspect.signature(target).parameters.values()
    listed = ", ".join(str(each.replace(annotation=each.empty)) for each in parameters)
    summary, _, _ = docstring(target).partition("\n")
    return f"{name}({listed})\n    {summary}"


def make_reward(spec: RewardSpec, argument: str = "reward") -> Reward:
    """Build a reward.

    Args:
        spec: one of
            - a reward (any callable with the signature of `Reward`), returned as it is;
            - a registered name, or "module:attribute" of your own: a reward, or a class that makes one;
            - a list of these, which is a `Weighted` sum with weights of 1;
            - {"name": one of those names, **parameters}. Composed rewards take specs as parameters:
              {"name": "weighted", "rewards": {"words": {"name": "contains_all", "words": ["yes"]}}}.
        argument: its name, for messages.
    Returns: the reward, a callable.
    Raises: ValueError for an unknown name or parameter, or a value the reward does not allow;
        TypeError if `spec` is none of these.
    """
    if isinstance(spec, list | tuple):
        if not spec:
            raise ValueError(f"{argument}=[]: allowed is a list of at least one reward")
        made = [make_reward(each, f"{argument}[{place}]") for place, each in enumerate(spec)]
        spec = {"name": "weighted", "rewards": made}
    found: Reward = make(REWARDS, spec, argument)
    return found


def make(registry: Registry[Entry], spec: object, argument: str) -> Factory:
    """Build what a registry has a name for.

    Args:
        registry: has the names.
        spec: as of `make_reward`, a list excepted.
        argument: its name, for messages.
    Returns: a callable.
    Raises: as `make_reward`.
    """
    if isinstance(spec, str):
        return _build(registry, spec, {}, argument)
    if isinstance(spec, Mapping):
        parameters = dict(spec)
        name = parameters.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"{argument}={shown(dict(spec))}: the key 'name' with a registered name is needed")
        return _build(registry, name, parameters, argument)
    if inspect.isclass(spec):
        raise TypeError(f"{argument}={spec.__name__} is a class; an instance is allowed: {spec.__name__}(...)")
    if callable(spec):
        return spec
    end = ", or a list" if registry is REWARDS else ""
    raise TypeError(
        f"{argument}={shown(spec)}: allowed is a callable, a registered name, {{'name': ..., **parameters}}{end}"
    )


def spec_name(spec: RewardSpec) -> str:
    """Return the name of a reward in a spec: its registered name, or the name of its class."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, list | tuple):
        return " + ".join(map(spec_name, spec))
    return str(spec["name"]) if isinstance(spec, Mapping) and "name" in spec else type(spec).__name__


def _build(registry: Registry[Entry], name: str, parameters: Mapping[str, object], argument: str) -> Factory:
    target = _load(registry, name, argument)
    if name not in registry and not inspect.isclass(target):
        if parameters:
            kind = registry.kind
            raise ValueError(f"{kind} {name!r} is no class and takes no parameters; got {shown(list(parameters))}")
        return make(registry, target, argument)
    _check_parameters(f"{registry.kind} {name!r}", target, parameters)
    return make(registry, target(**parameters), argument)


def _load(registry: Registry[Entry], name: str, argument: str) -> Factory:
    try:
        return load_target(name, argument) if ":" in name else registry.load(name, argument)
    except ImportError as error:
        raise ValueError(f"{argument} {name!r} cannot be imported: {error}") from error


def _check_parameters(what: str, factory: Factory, parameters: Mapping[str, object]) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**parameters)
    except TypeError as error:
        allowed = list(signature.parameters)
        unknown = [key for key in parameters if key not in allowed]
        hint = did_you_mean(unknown[0], allowed) if unknown else ""
        raise ValueError(f"{what}: {error}.{hint} Parameters: {signature}. Got: {shown(list(parameters))}") from error
