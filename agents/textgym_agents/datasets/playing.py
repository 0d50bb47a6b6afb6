"""Plays an agent and keeps all of its episodes: observations, tokens, rewards, log-probabilities and infos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.lm.reference import Reference, restricted
from textgym.vector import batch_env
from textgym_agents.algorithms.fixed import reference_of
from textgym_agents.protocol import Observation

_ROWS_AT_ONCE = 256
_BYTES_AT_ONCE = 2**28  # of observations that are held until their episodes have ended


@dataclass(frozen=True)
class RecordedEpisode:
    """One finished episode of T tokens.

    Attributes:
        input_ids: (T + 1, L) int64. attention_mask: (T + 1, L) int8. Of s_0 to s_T, as the environment gave them.
        actions: (T,) int64.
        rewards: (T,) float64.
        log_probs: (T,) float64, of each action under the policy that was played, nats; NaN where it has none.
        reference_log_probs: (T,) float64, the same of the reference.
        prompt, prompt_index: what reset said; -1 for a text that the split does not have.
        completion, finish_reason, reward_terms: what the last step said.
        gold: gold reward; None where the task has none.
        episode_seed: of the noise of the reward; None in tasks without.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int8]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    log_probs: NDArray[np.float64]
    reference_log_probs: NDArray[np.float64]
    prompt: str
    prompt_index: int
    completion: str
    finish_reason: str
    reward_terms: dict[str, float]
    gold: float | None
    episode_seed: int | None


def play_episodes(
    agent: Any,
    task: Any,
    episodes: int,
    *,
    split: str = "train",
    per_prompt: int = 1,
    seed: int = 0,
    deterministic: bool = False,
) -> Iterator[RecordedEpisode]:
    """Episodes of an agent. The same seed gives the same ones, if its `log_probs` are not None.

    Tokens are drawn here, from the agent's log-probabilities over what the task's grammar allows; an agent without any
    is asked to act. A reward that learns, such as a running normalisation, is put back to where it was.

    Args:
        agent: has `log_probs` and `act`. task: what `env.unwrapped.task` holds.
        episodes: how many. split: of the prompts, which are drawn by their weights.
        per_prompt: consecutive episodes that answer the same prompt; divides `episodes`.
        seed: of prompts and tokens.
        deterministic: take the likeliest token, whose log-probability then is 0.
    Raises: ValueError for an argument out of range.
    """
    for name, value, least in (("episodes", episodes, 1), ("per_prompt", per_prompt, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}={value!r}: allowed is an integer >= {least}")
    if episodes % per_prompt:
        raise ValueError(f"episodes={episodes}: allowed are multiples of per_prompt={per_prompt}")
    return _play(_Player(agent, task, split, per_prompt, deterministic), episodes, seed)


def _play(player: _Player, episodes: int, seed: int) -> Iterator[RecordedEpisode]:
    generator = np.random.default_rng([seed, 8])
    scorer = player.task.scorer
    at_once = player.rows_at_once()
    for start in range(0, episodes, at_once):
        before = scorer.state_dict()
        played = player.run(min(at_once, episodes - start), generator)
        scorer.load_state_dict(before)
        yield from played


@dataclass
class _Trace:
    """What was seen of the rows of a batch, step by step."""

    observations: list[Observation] = field(default_factory=list)
    actions: list[NDArray[np.int64]] = field(default_factory=list)
    rewards: list[NDArray[np.float64]] = field(default_factory=list)
    log_probs: list[NDArray[np.float64]] = field(default_factory=list)
    reference: list[NDArray[np.float64]] = field(default_factory=list)


class _Player:
    def __init__(self, agent: Any, task: Any, split: str, per_prompt: int, deterministic: bool) -> None:
        self.task, self._agent, self._split = task, agent, split
        self._per_prompt, self._deterministic = per_prompt, deterministic
        self._reference: Reference = reference_of(agent, task)

    def rows_at_once(self) -> int:
        """Episodes of a batch: whole groups, and as few as memory asks for."""
        budget = int(self.task.max_new_tokens)
        episode = 9 * (int(self.task.max_prompt_tokens) + budget) * (budget + 1)  # bytes
        rows = min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // episode)
        return max(rows // self._per_prompt, 1) * self._per_prompt

    def run(self, count: int, generator: np.random.Generator) -> list[RecordedEpisode]:
        """One batch of episodes."""
        env = batch_env(self.task, count, self._split)
        observation, start = env.reset(seed=int(generator.integers(2**31)))
        if self._per_prompt > 1:
            shared = np.repeat(start["prompt_index"][:: self._per_prompt], self._per_prompt)
            observation, start = env.reset(options={"prompt_index": shared})
        seeds = [state.episode_seed for state in env.get_states()]
        trace = _Trace([observation])
        said: list[dict[str, Any]] = [{}] * count
        lengths, late = np.zeros(count, dtype=np.int64), np.zeros(count)
        active = np.ones(count, dtype=np.bool_)
        while active.any():
            masks = env.action_masks()[active] if self.task.mask is not None else None
            actions = self._choose(observation, active, masks, generator.random(count), trace)
            observation, rewards, terminated, truncated, infos = env.step(actions)
            trace.observations.append(observation)
            trace.rewards.append(np.asarray(rewards, dtype=np.float64))
            lengths += active
            late[~active] += rewards[~active]
            for row in np.flatnonzero(infos.get("_completion", ())).tolist():
                said[row] = _said(infos, row)
            active &= ~(terminated | truncated)
        env.close()
        opened = [(start["prompt"][row], int(start["prompt_index"][row])) for row in range(count)]
        for row in np.flatnonzero(late).tolist():
            trace.rewards[lengths[row] - 1][row] += late[row]  # of its last action
        return [
            _episode(trace, row, int(lengths[row]), said[row], *opened[row], seeds[row])
            for row in range(count)
        ]

    def _choose(
        self,
        observation: Observation,
        active: NDArray[np.bool_],
        masks: NDArray[np.bool_] | None,
        uniforms: NDArray[np.float64],
        trace: _Trace,
    ) -> NDArray[np.int64]:
        """The next token of every row; says in `trace` how likely it was."""
        rows, count = np.flatnonzero(active), len(active)
        actions = np.zeros(count, dtype=np.int64)
        own, reference = np.full(count, np.nan), np.full(count, np.nan)
        log_probs = self._agent.log_probs(observation)
        if log_probs is None:
            chosen = np.asarray(self._agent.act(observation, deterministic=self._deterministic))
            actions[rows] = chosen[rows]
        else:
            logs = restricted(np.asarray(log_probs)[rows], masks)
            actions[rows] = logs.argmax(1) if self._deterministic else _draw(logs, uniforms[rows])
            own[rows] = 0.0 if self._deterministic else logs[np.arange(len(rows)), actions[rows]]
        against = restricted(np.asarray(self._reference.log_probs(observation))[rows], masks)
        reference[rows] = against[np.arange(len(rows)), actions[rows]]
        trace.actions.append(actions)
        trace.log_probs.append(own)
        trace.reference.append(reference)
        return actions


def _draw(log_probs: NDArray[np.floating[Any]], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """One index a row by inverting the cumulative distribution; never one of probability 0."""
    cumulative = np.cumsum(np.exp(log_probs.astype(np.float64)), axis=1)
    targets = uniforms * cumulative[:, -1] * (1 - 1e-12)
    return np.asarray((cumulative <= targets[:, None]).sum(1))


def _said(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """What the infos of a vector environment say about the end of one row."""
    terms = infos["reward_terms"]
    return {
        "completion": str(infos["completion"][row]),
        "finish_reason": str(infos["finish_reason"][row]),
        "reward_terms": {
            name: float(values[row]) for name, values in terms.items() if not name.startswith("_")
        },
        "gold": float(infos["gold"][row]) if "gold" in infos else None,
    }


def _episode(
    trace: _Trace, row: int, length: int, said: dict[str, Any], prompt: str, index: int, seed: int | None
) -> RecordedEpisode:
    """One row of a trace, up to its end."""

    def of(arrays: list[NDArray[Any]]) -> NDArray[Any]:
        return np.array([array[row] for array in arrays[:length]])

    seen = trace.observations[: length + 1]
    return RecordedEpisode(
        np.stack([observation["input_ids"][row] for observation in seen]),
        np.stack([observation["attention_mask"][row] for observation in seen]),
        of(trace.actions),
        of(trace.rewards),
        of(trace.log_probs),
        of(trace.reference),
        prompt,
        index,
        episode_seed=seed,
        **said,
    )
