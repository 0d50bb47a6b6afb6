"""Play an agent and keep all of its episodes: observations, tokens, rewards, log-probabilities and infos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textgym.checks import Floats, Ints
from textgym.lm.reference import Reference, restricted
from textgym.play import PlayedBatch, Turn, draw, play_batch, reset_groups
from textgym.rewards.scorer import scorers_restored
from textgym.task import Task
from textgym.vector import batch_env
from textgym_agents.algorithms.fixed import reference_of
from textgym_agents.protocol import Agent, Observation

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

    input_ids: Ints
    attention_mask: NDArray[np.int8]
    actions: Ints
    rewards: Floats
    log_probs: Floats
    reference_log_probs: Floats
    prompt: str
    prompt_index: int
    completion: str
    finish_reason: str
    reward_terms: dict[str, float]
    gold: float | None
    episode_seed: int | None


def play_episodes(
    agent: Agent,
    task: Task,
    episodes: int,
    *,
    split: str = "train",
    per_prompt: int = 1,
    seed: int = 0,
    deterministic: bool = False,
) -> Iterator[RecordedEpisode]:
    """Play episodes of an agent. The same seed gives the same ones, if its `log_probs` are not None.

    Tokens are drawn here, from the agent's log-probabilities over what the task's grammar allows; an agent without any
    is asked to act. A reward that learns, such as a running normalisation, is put back to where it was.

    Args:
        agent: has `log_probs` and `act`.
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
    return _batches(agent, task, episodes, split, per_prompt, seed, deterministic)


def _batches(
    agent: Agent, task: Task, episodes: int, split: str, per_prompt: int, seed: int, deterministic: bool
) -> Iterator[RecordedEpisode]:
    generator, reference = np.random.default_rng([seed, 8]), reference_of(agent, task)
    budget = task.max_new_tokens
    episode_bytes = 9 * (task.max_prompt_tokens + budget) * (budget + 1)
    at_once = max(min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // episode_bytes) // per_prompt, 1) * per_prompt
    for start in range(0, episodes, at_once):
        recorder = _Recorder(agent, reference, deterministic, generator)
        env = batch_env(task, min(at_once, episodes - start), split)
        with scorers_restored(task.scorer):
            observation, infos = reset_groups(env, int(generator.integers(2**31)), per_prompt)
            seeds = [state.episode_seed for state in env.get_states()]
            played = play_batch(env, observation, recorder.choose)
        env.close()
        prompts = list(zip(infos["prompt"], infos["prompt_index"].tolist(), seeds, strict=True))
        yield from recorder.episodes(played, prompts, gold=task.gold is not None)


class _Recorder:
    """Choose the tokens of a batch, and keep what was seen and how likely they were, step by step."""

    def __init__(
        self, agent: Agent, reference: Reference, deterministic: bool, generator: np.random.Generator
    ) -> None:
        self._agent, self._reference = agent, reference
        self._deterministic, self._generator = deterministic, generator
        self._observations: list[Observation] = []
        self._log_probs: list[Floats] = []
        self._reference_log_probs: list[Floats] = []

    def choose(self, turn: Turn) -> Ints:
        """Return the next tokens of the running rows."""
        uniforms, each = self._generator.random(len(turn.running)), np.arange(len(turn.rows))
        log_probs = self._agent.log_probs(turn.observation)
        own = np.full(len(turn.rows), np.nan)
        if log_probs is None:
            acted = self._agent.act(turn.observation, deterministic=self._deterministic)
            tokens = np.asarray(acted)[turn.rows]
        elif self._deterministic:
            tokens = restricted(np.asarray(log_probs)[turn.rows], turn.masks).argmax(1)
            own[:] = 0.0
        else:
            logs = restricted(np.asarray(log_probs)[turn.rows], turn.masks)
            tokens = draw(np.exp(logs.astype(np.float64)), uniforms[turn.rows])
            own[:] = logs[each, tokens]
        base = restricted(np.asarray(self._reference.log_probs(turn.observation))[turn.rows], turn.masks)
        self._observations.append(turn.observation)
        self._log_probs.append(own)
        self._reference_log_probs.append(base[each, tokens].astype(np.float64))
        return tokens

    def episodes(
        self, played: PlayedBatch, prompts: list[tuple[str, int, int | None]], gold: bool
    ) -> Iterator[RecordedEpisode]:
        """Yield the rows of a batch; `prompts` has text, index and seed of each, `gold` says whether there is any."""
        seen, final = [*self._observations, played.observation], played.final
        log_probs, reference = np.concatenate(self._log_probs), np.concatenate(self._reference_log_probs)
        for row, (prompt, index, seed) in enumerate(prompts):
            own = np.flatnonzero(played.rows == row)
            yield RecordedEpisode(
                input_ids=np.stack([each["input_ids"][row] for each in seen[: len(own) + 1]]),
                attention_mask=np.stack([each["attention_mask"][row] for each in seen[: len(own) + 1]]),
                actions=played.actions[own],
                rewards=played.rewards[own],
                log_probs=log_probs[own],
                reference_log_probs=reference[own],
                prompt=prompt,
                prompt_index=index,
                completion=str(final.completions[row]),
                finish_reason=str(final.finish_reasons[row]),
                reward_terms={name: float(values[row]) for name, values in final.terms.items()},
                gold=float(final.gold[row]) if gold else None,
                episode_seed=seed,
            )
