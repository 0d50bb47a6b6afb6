"""Arguments of the vector environment, checked, its infos, and its rows as single environments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from textgym.checks import MOST_ROWS, Bools, Floats, check_count, not_one_of, shown
from textgym.env import RESET_OPTIONS, as_index, check_options, chosen_prompt
from textgym.episodes import Ending
from textgym.state import Observation, Prompt, TokenState, TokenStore
from textgym.task import Task

Infos = dict[str, Any]
Seeds = int | Sequence[int | None] | None
Shown = Observation | npt.NDArray[np.float32]
"""Tokens, or features of them."""
RowsEnv = VectorEnv[Any, Any, Any]
"""A `TokenVectorEnv`, wrapped or not."""


@dataclass(frozen=True)
class VectorReset:
    """A checked request to reset.

    Args:
        rows: the sub-environments concerned.
        seeds: one per sub-environment, None where the generator is not reseeded.
        prompts: the prompts that were chosen, by row.
    """

    rows: list[int]
    seeds: list[int | None]
    prompts: dict[int, Prompt]


def read_num_envs(num_envs: int) -> int:
    """Return the number of sub-environments. Raises: ValueError unless it is an int in 1..MOST_ROWS."""
    integer = isinstance(num_envs, int | np.integer) and not isinstance(num_envs, bool)
    if not integer or not 1 <= num_envs <= MOST_ROWS:
        raise ValueError(f"num_envs={shown(num_envs)}: allowed is an int in 1..{MOST_ROWS}")
    return int(num_envs)


def read_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """Return the mode itself, or the one of this value. Raises: ValueError for another value."""
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        raise ValueError(not_one_of("autoreset_mode", mode, [each.value for each in AutoresetMode])) from error


def read_rows(rows: Sequence[int] | None, num_envs: int) -> Sequence[int]:
    """Return the rows of a request, all for None. Raises: ValueError, naming the first that is none."""
    every = range(num_envs)
    return every if rows is None else [check_count("rows", row, 0, num_envs - 1) for row in rows]


def refuse_time_limit(options: Infos) -> None:
    """Raise TypeError if Gymnasium hands over a time limit: `gym.make_vec` leaves it to the vector environment."""
    if (limit := options.get("max_episode_steps")) is not None:
        raise TypeError(
            f"max_episode_steps={shown(limit)}: TokenVectorEnv cuts nothing off; allowed are vectorization_mode='sync' "
            "beside it, which does, or the task's own option of length (such as max_new_tokens), which ends texts"
        )


def check_together(score_together: bool, mode: AutoresetMode, task: Task) -> bool:
    """Return `score_together`. Raises: TypeError or ValueError unless it is a bool that fits mode and reward."""
    if not isinstance(score_together, bool):
        raise TypeError(f"score_together={score_together!r:.80}: allowed is True or False")
    if task.scorer.pay == "together" and mode is not AutoresetMode.DISABLED:
        raise ValueError(
            f"autoreset_mode={mode.value!r}: reward {task.scorer.name!r} compares the completions of a batch "
            "(pay='together'); allowed is 'Disabled', with score_together=True"
        )
    if score_together and mode is not AutoresetMode.DISABLED:
        raise ValueError(f"score_together=True: allowed with autoreset_mode='Disabled', not {mode.value!r}")
    if score_together and not task.scorer.pays_at_end:
        raise ValueError(
            f"score_together=True: allowed where the reward pays at the end; {task.scorer.name!r} has "
            f"pay={task.scorer.pay!r}"
        )
    return score_together


def read_reset(task: Task, split: str, num_envs: int, seed: Seeds, options: object) -> VectorReset:
    """Check the arguments of `reset`. Raises: ValueError or TypeError, naming argument and allowed values."""
    choice = check_options(options, (*RESET_OPTIONS, "reset_mask"))
    rows = list(range(num_envs))
    if "reset_mask" in choice:
        rows = _masked_rows(choice.pop("reset_mask"), num_envs)
    seeds = _seeds(seed, num_envs)
    prompts: dict[int, Prompt] = {}
    for name, value in choice.items():
        values = _per_row(name, value, num_envs)
        prompts = {row: chosen_prompt(task, split, name, values[row]) for row in rows}
    return VectorReset(rows, seeds, prompts)


def _masked_rows(mask: object, num_envs: int) -> list[int]:
    what = type(mask).__name__
    if isinstance(mask, np.ndarray):
        what = f"{mask.dtype} array {mask.shape}"
        if mask.dtype == np.bool_ and mask.shape == (num_envs,) and mask.any():
            return [int(row) for row in np.flatnonzero(mask)]
    raise ValueError(f"option reset_mask ({what}): allowed is a bool array ({num_envs},) with at least one True")


def _seeds(seed: Seeds, num_envs: int) -> list[int | None]:
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, list | tuple | np.ndarray):
        if len(seed) != num_envs:
            raise ValueError(f"seed: has {len(seed)} values, allowed is one for each of {num_envs} rows")
        return [None if value is None else _seed(value) for value in seed]
    return [_seed(seed) + row for row in range(num_envs)]


def _seed(value: object) -> int:
    if (seed := as_index(value)) < 0:
        raise ValueError(f"seed={value!r:.80}: allowed are None, an int from 0 on, and one of these for each row")
    return seed


def _per_row(name: str, value: Any, num_envs: int) -> Sequence[Any]:
    """Return one value for each sub-environment; a single value is for all of them."""
    if isinstance(value, str) or np.ndim(value) == 0:
        return [value] * num_envs
    if np.shape(value) != (num_envs,):
        raise ValueError(f"option {name}: has shape {np.shape(value)}, allowed is one value, or ({num_envs},)")
    values: Sequence[Any] = value
    return values


class _Rows:
    """Make the arrays (N,) that hold values in some rows only, and the mask that says in which."""

    def __init__(self, num_envs: int, rows: Sequence[int]) -> None:
        self.num_envs, self.rows, self.at = num_envs, rows, np.array(rows)
        self.mask = np.zeros(num_envs, dtype=np.bool_)
        self.mask[self.at] = True

    def objects(self, values: Sequence[object]) -> npt.NDArray[np.object_]:
        array = np.empty(self.num_envs, dtype=object)  # numpy fills it with None
        for row, value in zip(self.rows, values, strict=True):
            array[row] = value
        return array

    def numbers(self, values: Sequence[int] | Floats, dtype: type) -> npt.NDArray[np.generic]:
        array: npt.NDArray[np.generic] = np.zeros(self.num_envs, dtype=dtype)
        array[self.at] = values
        return array

    def with_masks(self, arrays: Infos) -> Infos:
        return arrays | {f"_{key}": self.mask.copy() for key in arrays}


def reset_infos(num_envs: int, rows: list[int], prompts: Sequence[Prompt]) -> Infos:
    """Return the infos of the episodes that started in `rows`."""
    of = _Rows(num_envs, rows)
    indices = [-1 if prompt.index is None else prompt.index for prompt in prompts]
    texts = [prompt.text for prompt in prompts]
    return of.with_masks({"prompt": of.objects(texts), "prompt_index": of.numbers(indices, int)})


def final_infos(num_envs: int, ending: Ending, store: TokenStore) -> Infos:
    """Return the infos of the episodes that ended."""
    of, judgement = _Rows(num_envs, ending.rows), ending.judgement
    terms = {name: of.numbers(values, float) for name, values in judgement.terms.items()}
    arrays: Infos = {
        "completion": of.objects(judgement.texts),
        "finish_reason": of.objects([store.finish_reason(row) for row in ending.rows]),
        "reward_terms": of.with_masks({**terms}),
    }
    if judgement.written is not None:
        arrays["written"] = of.objects(judgement.written)
    if ending.gold is not None:
        arrays["gold"] = of.numbers(ending.gold, float)
    return of.with_masks(arrays)


def same_step_infos(num_envs: int, rows: list[int], observations: Sequence[Observation], final: Infos) -> Infos:
    """Return the infos of episodes that ended in rows which have been reset in the same step."""
    of = _Rows(num_envs, rows)
    return of.with_masks({"final_obs": of.objects(observations), "final_info": final})


def chain(env: object) -> Iterator[object]:
    """Yield the environment and everything that it wraps, from the outside in."""
    while env is not None:
        yield env
        env = vars(env).get("env")


def found(env: RowsEnv, name: str) -> Any:
    """Return the attribute of the outermost layer that has it. Raises: AttributeError if none has."""
    for layer in chain(env):
        if hasattr(layer, name):
            return getattr(layer, name)
    raise AttributeError(f"{type(env.unwrapped).__name__} and its wrappers have no attribute {name!r}")


def _mask(env: RowsEnv, row: int) -> Bools:
    return np.asarray(found(env, "action_masks")()[row])


def _state(env: RowsEnv, row: int) -> TokenState:
    states: list[TokenState] = found(env, "get_states")([row])
    return states[0]


def _restore(env: RowsEnv, row: int, state: TokenState) -> Shown:
    return row_of(found(env, "set_states")([state], [row]), row)


def _frame(env: RowsEnv, row: int) -> object:
    frames = env.render()
    return None if frames is None else frames[row]


_ROW_METHODS: dict[str, Callable[..., object]] = {
    "action_masks": _mask,
    "get_state": _state,
    "set_state": _restore,
    "render": _frame,
}
ROW_METHODS = tuple(_ROW_METHODS)


def row_method(env: RowsEnv, name: str, row: int) -> Callable[..., object]:
    """Return a method of the single environment, for one row: one of `ROW_METHODS`."""
    return partial(_ROW_METHODS[name], env, row)


def row_of(observation: Shown, row: int) -> Shown:
    """Return a copy of one row of N observations, each a dict of arrays or one array."""
    if isinstance(observation, dict):
        return {name: values[row].copy() for name, values in observation.items()}
    return np.array(observation[row])


def row_values(env: RowsEnv, name: str, rows: Sequence[int]) -> list[object]:
    """Return an attribute of the single environments in these rows. Raises: AttributeError if there is none."""
    if name in ROW_METHODS:
        return [row_method(env, name, row) for row in rows]
    if name in ("observation_space", "action_space"):
        return [getattr(env, f"single_{name}")] * len(rows)
    own: dict[str, Sequence[object]] = getattr(env.unwrapped, "row_attributes", {})
    value = own[name] if name in own else found(env, name)
    return [value[row] for row in rows] if name in own or name in _BY_ROW else [value] * len(rows)


_BY_ROW = ("np_random", "np_random_seed")


def call_rows(env: RowsEnv, name: str, *args: object, **kwargs: object) -> tuple[Any, ...]:
    """Return what a method of the single environments gives in every row, or their attribute, as `SyncVectorEnv.call`.

    Raises: AttributeError for what there is not, and for methods of the vector environment as a whole.
    """
    if name in ("action_masks", "render") and not (args or kwargs):  # once for all rows
        every = found(env, name)()
        return (None,) * env.num_envs if every is None else tuple(every)
    values = row_values(env, name, range(env.num_envs))
    if inspect.ismethod(values[0]):  # of the vector environment as a whole: one call is for all rows
        raise AttributeError(not_one_of("method", name, ROW_METHODS))
    return tuple(value(*args, **kwargs) if callable(value) else value for value in values)
