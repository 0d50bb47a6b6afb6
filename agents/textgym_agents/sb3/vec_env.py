"""TextGym's vector environment as a Stable-Baselines3 one, and its rows as single environments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from textgym.checks import Bools, Ints, not_one_of
from textgym.vector import refuse_together
from textgym.vector_io import ROW_METHODS, Infos, chain, found, row_method, row_of, row_values
from textgym.wrappers.base import Actions, RowsEnv, Shown


def rows_of(infos: Infos, num_envs: int, outer: Bools | None = None) -> list[Infos]:
    """Return a vector environment's infos as one dict a row, with Python's own numbers.

    Args: outer: (N,) rows that have what has no mask of its own, as Gymnasium's statistics of episodes.
    """
    rows: list[Infos] = [{} for _ in range(num_envs)]
    for name, values in infos.items():
        mask = infos.get(f"_{name}", None if name.startswith("_") else outer)
        if mask is None:
            continue
        nested = rows_of(values, num_envs, mask) if isinstance(values, dict) else None
        for row in np.flatnonzero(mask):
            value = values[row] if nested is None else nested[row]
            rows[row][name] = value.item() if isinstance(value, np.generic) else value
    return rows


_MODES = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)


class SB3VecEnv(VecEnv):
    """Equivalent to `DummyVecEnv` of N environments, but with a single call per step.

    Args:
        env: a vector environment of TextGym in SAME_STEP or DISABLED mode, with or without vector wrappers. In DISABLED
            mode finished rows are reset here.
    Raises: ValueError if `env` is not a vector environment, resets itself one step late, or has copy=False.
    """

    actions: Actions

    def __init__(self, env: RowsEnv) -> None:
        mode = getattr(env, "metadata", {}).get("autoreset_mode")
        if not hasattr(env, "num_envs") or mode not in _MODES:
            raise ValueError(
                f"env={env!r:.80}: Stable-Baselines3 needs a vector environment with "
                "autoreset_mode=SAME_STEP or DISABLED; textgym_agents.registry.make_env(id, num_envs) makes one"
            )
        refuse_together(env, "Stable-Baselines3")
        if not getattr(env.unwrapped, "copy", True):
            raise ValueError("copy=False: Stable-Baselines3 keeps observations while it steps; allowed is True")
        self.venv = env
        self._resets_itself = mode is AutoresetMode.SAME_STEP
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    # Stepping

    def reset(self) -> Shown:
        """Start N episodes, with the seeds and options that were set. Returns: N observations."""
        options = _merged(self._options)
        seeds = list(self._seeds) if any(seed is not None for seed in self._seeds) else None
        observation, infos = self.venv.reset(seed=seeds, options=options or None)  # type: ignore[arg-type]
        self._start_names = {name.lstrip("_") for name in infos}
        self._note_starts(infos)
        self._reset_seeds()
        self._reset_options()
        shown: Shown = observation
        return shown

    def step_async(self, actions: Actions) -> None:
        """Keep the actions (N, ...) for `step_wait`."""
        self.actions = actions

    def step_wait(self) -> tuple[Shown, NDArray[np.float32], Bools, list[Infos]]:
        """Step all rows. Returns: N observations, rewards float32 (N,), dones bool (N,) and N infos."""
        observation, rewards, terminations, truncations, infos = self.venv.step(self.actions)
        dones = np.asarray(terminations | truncations)
        cut = truncations & ~terminations
        rows = rows_of({name: value for name, value in infos.items() if name.lstrip("_") not in _LAST}, self.num_envs)
        if self._resets_itself:  # then the others are of the new episode
            for row, last in enumerate(rows_of(infos.get("final_info", {}), self.num_envs)):
                if dones[row]:
                    rows[row] = {name: rows[row][name] for name in rows[row].keys() - self._start_names} | last
        for row, info in enumerate(rows):
            info["TimeLimit.truncated"] = bool(cut[row])
        if dones.any():
            observation = self._restart(observation, infos, np.flatnonzero(dones), rows)
        return observation, np.asarray(rewards, dtype=np.float32), dones, rows

    def _restart(self, observation: Shown, infos: Infos, ended: Ints, rows: list[Infos]) -> Shown:
        """Note the last observation of every ended row. Returns: the observations after their reset."""
        if self._resets_itself:
            for row in ended:
                rows[row]["terminal_observation"] = infos["final_obs"][row]
        else:
            for row in ended:
                rows[row]["terminal_observation"] = row_of(observation, row)
            mask = np.zeros(self.num_envs, dtype=np.bool_)
            mask[ended] = True
            observation, infos = self.venv.reset(options={"reset_mask": mask})
        self._note_starts(infos, ended)
        return observation

    def _note_starts(self, infos: Infos, ended: Iterable[int] | None = None) -> None:
        starts = {name: value for name, value in infos.items() if name.lstrip("_") in self._start_names}
        every = rows_of(starts, self.num_envs)
        for row in range(self.num_envs) if ended is None else ended:
            self.reset_infos[row] = every[row]

    def close(self) -> None:
        """Close the vector environment."""
        self.venv.close()

    # The environments behind it

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[object]:
        """Return an attribute, `attr_name`, of the rows `indices`. Raises: AttributeError where there is none."""
        return row_values(self.venv, attr_name, list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Set `attr_name` to a value that all rows share. Raises: ValueError for `indices` of some rows only."""
        if sorted(self._get_indices(indices)) != list(range(self.num_envs)):
            raise ValueError(f"indices={indices!r}: {attr_name!r} is shared by all rows, allowed is None")
        setattr(self.venv, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: object
    ) -> list[object]:
        """Return what `method_name`, a method of single environments, gives in the rows `indices`.

        Raises: AttributeError for one that the vector environment cannot answer row by row.
        """
        rows = list(self._get_indices(indices))
        if method_name == "action_masks" and not (method_args or method_kwargs):
            masks = found(self.venv, "action_masks")()  # once for all rows
            return [masks[row] for row in rows]
        if method_name in ("get_wrapper_attr", "has_wrapper_attr"):
            if method_name.startswith("has"):
                return [self.has_attr(method_args[0])] * len(rows)
            return self.get_attr(method_args[0], indices)
        if method_name not in ROW_METHODS:
            raise AttributeError(not_one_of("method_name", method_name, ROW_METHODS))
        return [row_method(self.venv, method_name, row)(*method_args, **method_kwargs) for row in rows]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Return whether a (vector) wrapper of `wrapper_class` is around the rows `indices`, bool for each."""
        wrapped = any(isinstance(layer, wrapper_class) for layer in chain(self.venv))
        return [wrapped] * len(list(self._get_indices(indices)))

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return one picture a row, in render mode "rgb_array"."""
        frames: Any = self.venv.render()
        return list(frames)


_LAST = ("final_obs", "final_info")


def _merged(options: list[Infos]) -> Infos:
    """Return options per row as the vector environment takes them. Raises: ValueError unless all name the same."""
    names = set(options[0])
    if any(set(each) != names for each in options):
        raise ValueError("options: the rows have different names, allowed are the same names in every row")
    return {name: [each[name] for each in options] for name in names}
