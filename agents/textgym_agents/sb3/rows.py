"""One row of a vector environment, seen as the single environment that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

ROW_METHODS = ("action_masks", "get_state", "set_state", "render")


def chain(env: Any) -> Iterator[Any]:
    """The environment and everything that it wraps, from the outside in."""
    while env is not None:
        yield env
        env = vars(env).get("env")


def found(env: Any, name: str) -> Any:
    """The attribute of the outermost layer that has it. Raises: AttributeError if none has."""
    for layer in chain(env):
        if hasattr(layer, name):
            return getattr(layer, name)
    raise AttributeError(f"{type(env.unwrapped).__name__} and its wrappers have no attribute {name!r}")


def row_method(env: Any, name: str, row: int) -> Callable[..., Any]:
    """A method of the single environment, for one row: one of `ROW_METHODS`."""
    if name == "action_masks":
        return partial(_mask, env, row)
    if name == "get_state":
        return partial(_state, env, row)
    if name == "set_state":
        return partial(_restore, env, row)
    return partial(_frame, env, row)


def _mask(env: Any, row: int) -> Any:
    return found(env, "action_masks")()[row]


def _state(env: Any, row: int) -> Any:
    return found(env, "get_states")([row])[0]


def _restore(env: Any, row: int, state: Any) -> Any:
    observation = found(env, "set_states")([state], [row])
    return row_of(observation, row)


def _frame(env: Any, row: int) -> Any:
    frames = env.render()
    return None if frames is None else frames[row]


def row_of(observation: Any, row: int) -> Any:
    """A copy of one row of N observations, each a dict of arrays or one array."""
    if isinstance(observation, dict):
        return {name: values[row].copy() for name, values in observation.items()}
    return observation[row].copy()


def rows_of(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """A vector environment's infos as one dict a row, with Python's own numbers."""
    rows: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for name, values in infos.items():
        mask = infos.get(f"_{name}")
        if mask is None:
            continue
        nested = rows_of(values, num_envs) if isinstance(values, dict) else None
        for row in np.flatnonzero(mask):
            if nested is not None:
                rows[row][name] = nested[row]
            else:
                value = values[row]
                rows[row][name] = value.item() if isinstance(value, np.generic) else value
    return rows
