"""Plays a policy over a task's prompts, the same number of times each, and records what an evaluation needs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from textgym.lm.reference import Reference
from textgym.task import Task
from textgym.vector import TokenVectorEnv

_ROWS_AT_ONCE = 512


class Policy(Protocol):
    """What can be evaluated: an agent, or anything that gives log-probabilities or actions."""

    def log_probs(self, observation: dict[str, NDArray[Any]]) -> NDArray[np.floating[Any]] | None:
        """Next-token log-probabilities (B, V) in nats, or None if there are none: then `act` is asked."""


@dataclass(frozen=True)
class Episodes:
    """P prompts, n completions each; every array is (P, n).

    Attributes:
        returns: discounted sum of rewards, reward units.
        gold: gold reward, NaN where the task has none.
        kl: sum over the states visited of KL(pi || ref), nats; NaN without a reference or log-probabilities.
        entropy: sum over the states visited of the policy's entropy, nats; NaN without log-probabilities.
        lengths: tokens. stopped: ended by a stop id.
        completions: texts. terms: reward term -> values.
        weights: (P,) probability of each prompt. prompts: their texts.
    """

    returns: NDArray[np.float64]
    gold: NDArray[np.float64]
    kl: NDArray[np.float64]
    entropy: NDArray[np.float64]
    lengths: NDArray[np.int64]
    stopped: NDArray[np.bool_]
    completions: NDArray[np.object_]
    terms: dict[str, NDArray[np.float64]]
    weights: NDArray[np.float64]
    prompts: tuple[str, ...]


def play(
    policy: Any,
    task: Task,
    *,
    split: str = "eval",
    per_prompt: int = 16,
    seed: int = 0,
    reference: Reference | None = None,
    deterministic: bool = False,
) -> Episodes:
    """Samples `per_prompt` completions of every prompt of a split.

    Args:
        policy: see `Policy`; tokens are drawn here, from its log-probabilities, so that `seed` decides.
        reference: for the KL; None leaves it NaN.
        deterministic: take the likeliest token instead of drawing.
    Raises: ValueError if `per_prompt` < 1.
    """
    if per_prompt < 1:
        raise ValueError(f"per_prompt={per_prompt!r}: allowed is an integer >= 1")
    prompts = task.prompt_set(split)
    shape = (len(prompts.texts), per_prompt)
    order = np.repeat(np.arange(shape[0]), per_prompt)
    generator = np.random.default_rng([seed, 3])
    # Looking at a policy must not move a reward that learns, such as a running normalisation.
    before = task.scorer.state_dict()
    parts = [
        _Recorder(task, split, policy, reference, deterministic).run(
            order[start : start + _ROWS_AT_ONCE], generator
        )
        for start in range(0, len(order), _ROWS_AT_ONCE)
    ]
    task.scorer.load_state_dict(before)
    names = [field.name for field in fields(Episodes) if field.name not in ("terms", "weights", "prompts")]
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]).reshape(shape) for name in names}
    terms = {
        name: np.concatenate([part.terms[name] for part in parts]).reshape(shape) for name in parts[0].terms
    }
    return Episodes(**arrays, terms=terms, weights=np.asarray(prompts.weights), prompts=tuple(prompts.texts))


class _Recorder:
    """One batch of episodes and what was seen of them."""

    def __init__(
        self, task: Task, split: str, policy: Any, reference: Reference | None, deterministic: bool
    ) -> None:
        self._task, self._split, self._policy = task, split, policy
        self._reference, self._deterministic = reference, deterministic
        self.arrays: dict[str, NDArray[Any]] = {}
        self.terms: dict[str, NDArray[np.float64]] = {}

    def run(self, prompt_index: NDArray[np.int64], generator: np.random.Generator) -> _Recorder:
        """Plays one episode from each of these prompts."""
        count = len(prompt_index)
        env = TokenVectorEnv(self._task, count, split=self._split, autoreset_mode=AutoresetMode.DISABLED)
        observation, _ = env.reset(
            seed=int(generator.integers(2**31)), options={"prompt_index": prompt_index}
        )
        self._start(count)
        active, discount = np.ones(count, dtype=np.bool_), 1.0
        while active.any():
            actions = self._act(observation, active, generator)
            observation, rewards, terminated, truncated, infos = env.step(actions)
            self.arrays["returns"] += discount * rewards
            self.arrays["lengths"] += active
            discount *= self._task.gamma
            self._finish(infos)
            active &= ~(terminated | truncated)
        env.close()
        return self

    def _start(self, count: int) -> None:
        self.arrays = {
            "returns": np.zeros(count),
            "gold": np.full(count, np.nan),
            "kl": np.zeros(count) if self._reference is not None else np.full(count, np.nan),
            "entropy": np.zeros(count),
            "lengths": np.zeros(count, dtype=np.int64),
            "stopped": np.zeros(count, dtype=np.bool_),
            "completions": np.full(count, "", dtype=object),
        }
        self.terms = {}

    def _act(
        self, observation: dict[str, NDArray[Any]], active: NDArray[np.bool_], generator: np.random.Generator
    ) -> NDArray[np.int64]:
        log_probs = self._policy.log_probs(observation)
        uniforms = generator.random(len(active))
        if log_probs is None:
            self.arrays["kl"][:] = self.arrays["entropy"][:] = np.nan
            return np.asarray(self._policy.act(observation, deterministic=self._deterministic))
        rows = np.flatnonzero(active)
        logs = np.asarray(log_probs[rows])
        actions = np.zeros(len(active), dtype=np.int64)
        if self._deterministic:
            # The policy that is played puts probability 1 on one token: no entropy, and KL = -log ref(a).
            actions[rows] = logs.argmax(1)
            if self._reference is not None:
                self.arrays["kl"][rows] -= self._reference.log_probs(observation)[rows, actions[rows]]
            return actions
        probs = np.exp(logs)
        finite = np.where(probs > 0, logs, 0.0)
        self.arrays["entropy"][rows] -= np.einsum("nv,nv->n", probs, finite)
        if self._reference is not None:
            against = np.where(probs > 0, self._reference.log_probs(observation)[rows], 0.0)
            self.arrays["kl"][rows] += np.einsum("nv,nv->n", probs, finite - against)
        actions[rows] = _draw(probs, uniforms[rows])
        return actions

    def _finish(self, infos: dict[str, Any]) -> None:
        if "completion" not in infos:
            return
        rows = np.flatnonzero(infos["_completion"])
        self.arrays["completions"][rows] = infos["completion"][rows]
        self.arrays["stopped"][rows] = infos["finish_reason"][rows] == "stop"
        if "gold" in infos:
            self.arrays["gold"][rows] = infos["gold"][rows]
        for name, values in infos["reward_terms"].items():
            if not name.startswith("_"):
                self.terms.setdefault(name, np.full(len(self.arrays["returns"]), np.nan))[rows] = values[rows]


def _draw(probs: NDArray[np.floating[Any]], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """One index a row by inverting the cumulative distribution; never one of probability 0."""
    cumulative = np.cumsum(probs, axis=1, dtype=np.float64)
    targets = uniforms * cumulative[:, -1] * (1 - 1e-12)
    return np.asarray((cumulative <= targets[:, None]).sum(1))
