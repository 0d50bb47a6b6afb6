"""Rewards by name with JSON parameters."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from textgym.checks import did_you_mean, docstring, not_one_of, shown

RewardSpec: TypeAlias = Callable[..., Any] | str | Mapping[str, Any]
"""A reward object, a registered name (or "module:attribute"), or {"name": ..., **parameters}."""

# A text is "module:attribute", imported when first asked for, so that importing textgym stays light.
_FACTORIES: dict[str, Callable[..., Any] | str] = {}


def register_reward(name: str, factory: Callable[..., Any] | str) -> None:
    """Make `factory(**parameters)` available under `name`.

    Args:
        name: what specs call it; not empty, without ":".
        factory: a class or function that returns a reward, or "module:attribute" that names one. Its
            parameters should be JSON values, so that specs survive being saved.

    Raises: ValueError for a bad name, or one that is registered for something else.
    """
    if not isinstance(name, str) or not name or ":" in name:
        raise ValueError(f"name={shown(name)}: a text that is not empty and has no ':' is allowed")
    if not callable(factory) and not (isinstance(factory, str) and ":" in factory):
        raise ValueError(f"factory={shown(factory)}: a callable or the text 'module:attribute' is allowed")
    if _FACTORIES.get(name, factory) != factory:
        raise ValueError(f"name={name!r} is registered already, for {_FACTORIES[name]!r}")
    _FACTORIES[name] = factory


def reward_names() -> tuple[str, ...]:
    """Return every registered name, sorted."""
    return tuple(sorted(_FACTORIES))


def describe_reward(name: str) -> str:
    """Return two lines about a registered reward: name and parameters as in a call, and what it pays.

    Raises: ValueError for an unknown name.
    """
    if name not in _FACTORIES:
        raise ValueError(not_one_of("reward", name, _FACTORIES))
    target = _load(_FACTORIES[name])
    parameters = inspect.signature(target).parameters.values()
    listed = ", ".join(str(each.replace(annotation=each.empty)) for each in parameters)
    summary, _, _ = docstring(target).partition("\n")
    return f"{name}({listed})\n    {summary}"


def make_reward(spec: RewardSpec, argument: str = "reward") -> Any:
    """Build a reward.

    Args:
        spec: one of
            - a reward (any callable with the signature of `Reward`), returned as it is;
            - a registered name, or "module:attribute" of your own: a reward, or a class that makes one;
            - {"name": one of those names, **parameters}. Composed rewards take specs as parameters:
              {"name": "weighted", "rewards": {"words": {"name": "contains_all", "words": ["yes"]}}}.
        argument: its name, for messages.

    Returns: the reward, a callable.
    Raises: ValueError for an unknown name or parameter, or a value the reward does not allow;
        TypeError if `spec` is none of these.
    """
    if isinstance(spec, str):
        return _build(spec, {}, argument)
    if isinstance(spec, Mapping):
        parameters = dict(spec)
        name = parameters.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(
                f"{argument}={shown(dict(spec))}: the key 'name' with a registered name is needed"
            )
        return _build(name, parameters, argument)
    if inspect.isclass(spec):
        raise TypeError(
            f"{argument}={spec.__name__} is a class; an instance is allowed: {spec.__name__}(...)"
        )
    if callable(spec):
        return spec
    raise TypeError(
        f"{argument}={shown(spec)}: a callable, a registered name or {{'name': ..., **parameters}} is allowed"
    )


def spec_name(spec: RewardSpec) -> str:
    """How a reward was asked for, in a word: its registered name, or the name of its class."""
    if isinstance(spec, str):
        return spec
    return str(spec["name"]) if isinstance(spec, Mapping) and "name" in spec else type(spec).__name__


def _build(name: str, parameters: dict[str, Any], argument: str) -> Any:
    factory = _FACTORIES.get(name)
    if factory is None and ":" not in name:
        raise ValueError(not_one_of(argument, name, _FACTORIES))
    target = _load(name if factory is None else factory)
    if factory is None and not inspect.isclass(target):
        if parameters:
            raise ValueError(
                f"reward {name!r} is no class and takes no parameters; got {shown(list(parameters))}"
            )
        return make_reward(target)
    _check_parameters(name, target, parameters)
    return make_reward(target(**parameters))


def _load(factory: Callable[..., Any] | str) -> Any:
    if not isinstance(factory, str):
        return factory
    module, _, attribute = factory.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"reward {factory!r} cannot be imported: {error}") from error


def _check_parameters(name: str, factory: Callable[..., Any], parameters: dict[str, Any]) -> None:
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
        raise ValueError(
            f"reward {name!r}: {error}.{hint} Parameters: {signature}. Got: {shown(list(parameters))}"
        ) from error
