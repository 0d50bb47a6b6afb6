"""The vector environment: N texts, written in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from textgym.checks import Bools, Floats, Ints, check_flag, shown
from textgym.env import NO_MODE, TokenEnv, find_task, why_reset
from textgym.episodes import Ending, Episodes, action_space, observation_space
from textgym.render import Frame, check_render_mode, frame_image, frame_text, print_frame
from textgym.state import RUNNING, UNSET, Observation, Prompt, TokenState
from textgym.task import Task
from textgym.vector_io import (
    Infos,
    Seeds,
    call_rows,
    check_together,
    final_infos,
    read_mode,
    read_num_envs,
    read_reset,
    read_rows,
    refuse_time_limit,
    reset_infos,
    same_step_infos,
)


class TokenVectorEnv(VectorEnv[Observation, Ints, npt.NDArray[Any]]):
    """N `TokenEnv` in one object, equivalent to `SyncVectorEnv` of N `TokenEnv` except for speed.

    ### Description
    See `TokenEnv`. Sub-environment i is seeded with seed + i and draws its prompts from its own generator.
    The rewards of all episodes that end at a step are computed in one call. There is one intended difference from
    `SyncVectorEnv`: with autoreset disabled, a finished sub-environment is absorbing until it is reset. Its action is
    ignored, its observation stays, its reward is 0, terminated stays True, and the infos do not include it.

    ### Action Space
    `MultiDiscrete([V] * N)`: an integer array (N,). `action_masks()` is bool (N, V). In NEXT_STEP mode the
    action of a sub-environment that is about to be reset is ignored.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (N, L), int64), attention_mask=Box(0, 1, (N, L), int8))`, with `segments=True` also
    `segment_ids=Box(0, 2, (N, L), int8)`, see `TokenEnv`. Observations are copies; with `copy=False` they are, as
    in `SyncVectorEnv`, the environment's own arrays, which the next step changes: copy what you keep.

    ### Rewards
    float64 (N,), as in `TokenEnv`. With `score_together=True` a row that ends gets 0 and waits: the step that
    ends the last row scores all of them in one call, and returns the rewards and the last infos of all. Each
    reward belongs to the last action of its row, however long ago that was, and is discounted by the row's own
    length. `settle` pays the waiting rows earlier, as after an outer truncation of the others. Wrappers that add
    rewards up as they come, such as `RecordEpisodeStatistics`, miss what is paid after a row's end.

    ### Starting State
    As in `TokenEnv`. Options of `reset`: `{"prompt": text}` or a list of N texts, `{"prompt_index": i}` or
    int (N,), and `{"reset_mask": bool (N,)}` to reset some sub-environments only.

    ### Episode End
    As in `TokenEnv`. In SAME_STEP mode the last observation and info are under `final_obs` and `final_info`.

    ### Arguments
    `num_envs`: N; `autoreset_mode`: an `AutoresetMode` or its value ("NextStep", "SameStep", "Disabled");
    `score_together`: score all rows in one call when the last one ends, allowed where autoreset is disabled and
    the reward pays at the end; `copy`: whether observations are copies; the others as in `TokenEnv`.
    Raises: as `TokenEnv` does; ValueError or TypeError for `num_envs`, a mode, `score_together` or a time limit.

    ### Version History
    - v0: first version.
    """

    metadata: dict[str, Any] = {**TokenEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        task: str | Task = "Text",
        num_envs: int = 1,
        *,
        split: str = "train",
        segments: bool = False,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        score_together: bool = False,
        copy: bool = True,
        render_mode: str | None = None,
        **task_options: Any,
    ) -> None:
        check_render_mode(render_mode, self.metadata["render_modes"])
        refuse_time_limit(task_options)
        check_flag("copy", copy)
        self.copy = copy
        num_envs = read_num_envs(num_envs)
        self.autoreset_mode = read_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.task = find_task(task, task_options)
        self.score_together = check_together(score_together, self.autoreset_mode, self.task)
        self.episodes = Episodes(self.task, split, num_envs, segments)
        self.split, self.segments, self.num_envs, self.render_mode = split, segments, num_envs, render_mode
        self.single_observation_space = observation_space(self.task, segments)
        self.single_action_space = action_space(self.task)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._store = self.episodes.store
        self._all_rows = np.arange(num_envs)
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int | None] = [None] * num_envs
        self.row_attributes: dict[str, tuple[object, ...]] = {}
        self._last_rewards = np.full(num_envs, np.nan)  # for frames; NaN where none was paid, or is not known
        self._waiting = np.zeros(num_envs, dtype=np.bool_)

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None) -> tuple[Observation, Infos]:
        """Start episodes in all sub-environments, or in those of `options["reset_mask"]`.

        Args:
            seed: seed of all generators: sub-environment i gets seed + i, or seed[i].
            options: see "Starting State". They are not changed.
        Returns: the observations, and the infos described in "Starting State".
        Raises: ValueError or TypeError, naming the argument and what is allowed; RuntimeError for rows whose rewards
            have not been paid yet, see `settle`.
        """
        request = read_reset(self.task, self.split, self.num_envs, seed, options)
        self._check_paid("reset", request.rows)
        for row in request.rows:
            if (own := request.seeds[row]) is not None:
                # As `seeding.np_random` makes them, in three fifths of its time.
                self._generators[row] = np.random.Generator(np.random.PCG64(np.random.SeedSequence(own)))
                self._seeds[row] = own
        infos = self._restart(request.rows, request.prompts)
        return self._store.observations(self.copy), infos

    def step(self, actions: Ints) -> tuple[Observation, Floats, Bools, Bools, Infos]:
        """Append one token to every running text.

        Args:
            actions: integer (N,), ids in 0..V-1 in rows whose episode is running.
        Returns: observations, rewards (N,), terminated (N,), truncated (N,) and infos.
        Raises: ResetNeeded before the first reset, and after an error of the reward; InvalidAction, naming the first.
        """
        store = self._store
        rows, idle = self._running_rows()
        tokens = self._tokens(actions, rows)
        rewards = np.zeros(self.num_envs)
        ended: list[int] = []
        infos: Infos = {}
        paid = rows
        try:
            if rows.size:
                codes = store.append(rows, tokens)
                ends = self.episodes.answer(rows[codes.nonzero()])
                paid = rows if self.episodes.pays_every_step else ends
            if self.score_together:
                paid = self._due(paid)
            if paid.size:
                self._check_compared()
                rewards[paid], ending = self.episodes.settle(paid.tolist())
                self._waiting[paid] = False
                ended, infos = [] if ending is None else ending.rows, self._last_infos(ending)
        except BaseException:
            # Rows that were not paid cannot be reset by themselves.
            if self.autoreset_mode is not AutoresetMode.DISABLED:
                store.finish[:] = UNSET
            raise
        terminations = store.finish != RUNNING
        if self.render_mode is not None:
            self._last_rewards[rows] = np.where(self._waiting[rows], np.nan, rewards[rows])
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and idle:
            terminations[idle] = False
            infos.update(self._restart(idle, {}))
        elif self.autoreset_mode is AutoresetMode.SAME_STEP and ended:
            last = [store.observation(row) for row in ended]
            infos = {**same_step_infos(self.num_envs, ended, last, infos), **self._restart(ended, {})}
        if self.render_mode == "human":
            self.render()
        return store.observations(self.copy), rewards, terminations, np.zeros(self.num_envs, np.bool_), infos

    def settle(self) -> tuple[Floats, Infos]:
        """Score the rows that wait for others to end, with `score_together=True`.

        If the reward fails, the rows keep waiting.

        Returns: rewards (N,), 0 in rows that do not wait, and the last infos, as returned by `step`.
        """
        rewards = np.zeros(self.num_envs)
        rows = np.flatnonzero(self._waiting)
        if not rows.size:
            return rewards, {}
        rewards[rows], ending = self.episodes.settle(rows.tolist())
        self._waiting[:] = False
        self._last_rewards[rows] = rewards[rows]
        return rewards, self._last_infos(ending)

    @contextmanager
    def scoring_together(self) -> Iterator[None]:
        """Score all rows in one call within this block, if the reward pays at the end and resets are disabled.

        Rows that still wait at the end of the block, for example after an interrupt, are not scored.
        """
        before = self.score_together
        disabled = self.autoreset_mode is AutoresetMode.DISABLED
        self.score_together = before or (disabled and not self.episodes.pays_every_step)
        try:
            yield
        finally:
            self.score_together = before
            self._waiting[:] = False

    def action_masks(self) -> Bools:
        """Return the tokens that the task suggests, bool (N, V), as used by `action_space.sample(mask=)`.

        The other tokens are legal actions, too.
        """
        return self.episodes.masks(range(self.num_envs))

    def segment_ids(self) -> npt.NDArray[np.int8]:
        """Return who wrote each token of the sequences, int8 (N, L), as in observations with `segments=True`."""
        return self._store.segment_ids()

    def get_states(self, rows: Sequence[int] | None = None) -> list[TokenState]:
        """Return the states of these rows (None: all). Raises: ResetNeeded for one never reset; ValueError for none."""
        rows = read_rows(rows, self.num_envs)
        if any(self._store.finish[row] == UNSET for row in rows):
            raise ResetNeeded(why_reset(UNSET))
        return [self._store.state(row) for row in rows]

    def set_states(self, states: Sequence[TokenState], rows: Sequence[int] | None = None) -> Observation:
        """Continue from these states in these sub-environments (None: in all).

        Returns: the observations of all sub-environments.
        Raises: ValueError for a state or row that does not fit; RuntimeError for rows that wait, see `settle`.
        """
        rows = read_rows(rows, self.num_envs)
        self._check_paid("set_states", rows)
        if len(states) != len(rows):
            raise ValueError(f"states: {len(states)} states for {len(rows)} rows, allowed is one for each")
        for state in states:
            self.episodes.check(state)
        for row, state in zip(rows, states, strict=True):
            self._store.restore(row, state)
        self._last_rewards[rows] = np.nan
        return self._store.observations(self.copy)

    def render(self) -> tuple[Frame, ...] | None:
        """Return the result of `TokenEnv.render` for every sub-environment; None after printing."""
        if self.render_mode is None:
            gym.logger.warn(NO_MODE)
            return None
        rewards = [None if reward != reward else reward for reward in self._last_rewards.tolist()]
        frames = [frame_text(self.task, *each) for each in zip(self.get_states(), rewards, strict=True)]
        if self.render_mode == "human":
            print_frame("\n".join(frames) + "\n", "")
            return None
        return tuple(frames) if self.render_mode == "ansi" else tuple(map(frame_image, frames))

    def call(self, name: str, *args: object, **kwargs: object) -> tuple[Any, ...]:
        """Return the attribute, or the result of the method, `name` of every `TokenEnv`, as `SyncVectorEnv.call` does.

        Raises: AttributeError for another name than those of attributes, `action_masks`, `get_state`, `set_state` and
            `render`.
        """
        return call_rows(self, name, *args, **kwargs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return the attribute `name` of every row. Raises: AttributeError if there is none."""
        return call_rows(self, name)

    def set_attr(self, name: str, values: object) -> None:
        """Set an attribute of every row: `np_random`, or one of your own, which `get_attr` returns.

        Args: name: name of the attribute. values: a list or tuple of N values, or one value for all rows.
        Raises: ValueError for another number of values, or an attribute that the environment has had from its start.
        """
        rows = tuple(values) if isinstance(values, list | tuple) else (values,) * self.num_envs
        if len(rows) != self.num_envs:
            raise ValueError(
                f"values: {len(rows)} values, allowed is one, or a list of one for each of {self.num_envs}"
            )
        if name == "np_random":
            generators = [each for each in rows if isinstance(each, np.random.Generator)]
            if len(generators) < self.num_envs:
                raise ValueError(f"np_random={shown(values)}: allowed are numpy's Generators")
            self._generators[:], self._seeds[:] = generators, [-1] * self.num_envs
        elif hasattr(self, name):
            raise ValueError(f"name={name!r}: is set when the environment is made; allowed are np_random and new names")
        else:
            self.row_attributes[name] = rows

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Return the generators of the sub-environments."""
        return tuple(self._generator(row) for row in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """Return the seeds of the sub-environments."""
        return tuple(self._seeds[row] for row in range(self.num_envs) if self._generator(row))

    def _due(self, ended: Ints) -> Ints:
        """Note that these rows wait. Return all rows that wait once no row runs any more, until then none."""
        self._waiting[ended] = True
        if (self._store.finish == RUNNING).any():
            return ended[:0]
        return np.flatnonzero(self._waiting)

    def _last_infos(self, ending: Ending | None) -> Infos:
        return {} if ending is None else final_infos(self.num_envs, ending, self._store)

    def _check_compared(self) -> None:
        scorer = self.task.scorer
        if scorer.pay == "together" and not self.score_together:
            raise ValueError(
                f"reward {scorer.name!r} compares the completions of a batch (pay='together'); "
                "allowed is an environment with score_together=True"
            )

    def _check_paid(self, what: str, rows: Sequence[int]) -> None:
        waiting = [row for row in rows if self._waiting[row]]
        if waiting:
            raise RuntimeError(
                f"{what}: rows {waiting} have ended and wait for their rewards (score_together=True); allowed are "
                "rows that have been paid: step until the last row ends, or call settle()"
            )

    def _restart(self, rows: list[int], chosen: Mapping[int, Prompt]) -> Infos:
        generators = [self._generators[row] or self._generator(row) for row in rows]
        return reset_infos(self.num_envs, rows, self.episodes.start(rows, generators, chosen))

    def _generator(self, row: int) -> np.random.Generator:
        generator = self._generators[row]
        if generator is None:
            generator, self._seeds[row] = seeding.np_random()
            self._generators[row] = generator
        return generator

    def _running_rows(self) -> tuple[Ints, list[int]]:
        """Return the rows to step, and the ended ones. Raises: ResetNeeded if a row was never reset."""
        finish = self._store.finish
        if not np.count_nonzero(finish):
            return self._all_rows, []
        if finish.min() == UNSET:
            raise ResetNeeded(why_reset(UNSET))
        return (finish == RUNNING).nonzero()[0], finish.nonzero()[0].tolist()

    def _tokens(self, actions: Ints, rows: Ints) -> Ints:
        """Return the actions of `rows`, int64. Raises: InvalidAction."""
        try:
            array = np.asarray(actions)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidAction(f"actions {actions!r:.80}: not an array of integers ({error})") from error
        if array.dtype.kind not in "iu" or array.shape != (self.num_envs,):
            raise InvalidAction(
                f"actions: {array.dtype} {array.shape} array, allowed is one integer for each of "
                f"{self.num_envs} sub-environments"
            )
        tokens = (array if rows is self._all_rows else array[rows]).astype(np.int64, copy=False)
        size = self.task.vocabulary.size
        # Seen as unsigned, negative numbers are the largest: one comparison serves both ends of the range.
        if tokens.size and tokens.view(np.uint64).max() >= size:
            at = int(np.flatnonzero((tokens < 0) | (tokens >= size))[0])
            raise InvalidAction(
                f"actions[{rows[at]}] = {tokens[at]}: no token id in 0..{size - 1} (the vocabulary has {size} tokens)"
            )
        return tokens


def batch_env(task: Task, rows: int, split: str) -> TokenVectorEnv:
    """Make an environment that plays a batch to its end: no resets, one reward call if the reward pays at the end."""
    together, mode = task.scorer.pays_at_end, AutoresetMode.DISABLED
    return TokenVectorEnv(task, rows, split=split, segments=True, autoreset_mode=mode, score_together=together)


def scoring_together(env: VectorEnv[Any, Any, Any]) -> AbstractContextManager[None]:
    """Return a block in which `env` scores all rows in one call, if its type is exactly `TokenVectorEnv`.

    Wrappers and subclasses see rewards step by step and may depend on that, so nothing changes for them. In this block,
    add what `step` pays to rows that have ended, and what `settle_rest` returns, to the last actions of these rows.
    """
    return env.scoring_together() if type(env) is TokenVectorEnv else nullcontext()


def settle_rest(env: VectorEnv[Any, Any, Any]) -> tuple[Floats, Infos]:
    """Pay the rows of a vector environment that still wait, see `TokenVectorEnv.settle`; zeros if none does."""
    inner = env.unwrapped
    return inner.settle() if isinstance(inner, TokenVectorEnv) else (np.zeros(env.num_envs), {})


def refuse_together(env: object, who: str) -> None:
    """Raise ValueError if `env` was made with `score_together=True`, because `who` credits rewards step by step."""
    if getattr(getattr(env, "unwrapped", env), "score_together", False):
        raise ValueError(
            f"env: has score_together=True, which pays a row after its last action; {who} credits rewards "
            "step by step, allowed is score_together=False"
        )
