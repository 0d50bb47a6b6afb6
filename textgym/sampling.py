"""Plays a policy over a task's prompts, the same number of times each, and records what an evaluation needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from textgym.lm.reference import Reference, restricted
from textgym.task import Task
from textgym.vector import TokenVectorEnv

_ROWS_AT_ONCE = 512


class Policy(Protocol):
    """What can be evaluated: an agent, or anything that gives log-probabilities or actions."""

    def log_probs(self, observation: dict[str, NDArray[Any]]) -> NDArray[np.floating[Any]] | None:
        """Next-token log-probabilities (B, V) in nats, or None if there are none: then `act` is asked.

        Such a policy may have an attribute `sequence_kl`: its KL to the reference in nats per whole answer.
        """


@dataclass(frozen=True)
class Episodes:
    """P prompts, n completions each; every array is (P, n).

    Attributes:
        returns: discounted sum of rewards, reward units.
        gold: gold reward, NaN where the task has none.
        kl: sum over the states visited of KL(pi || ref), nats; the policy's `sequence_kl` where it has no
            log-probabilities; NaN without that or without a reference.
        entropy: sum over the states visited of the policy's entropy, nats; NaN without log-probabilities.
        lengths: tokens. stopped: ended by a stop id.
        completions: texts. terms: reward term -> values.
        weights: (P,) probability of each prompt. prompts: their texts.
        failures: kind -> completions that the reward failed on, see `textgym.rewards.Scorer`.
        answer_tokens: of the completions that the policy had scored to find an answer, the answers themselves apart; a
            mean, 0 for a policy that just writes.
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
    failures: dict[str, int]
    answer_tokens: float = 0.0


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

    Where the task's grammar leaves only some tokens in a state, policy and reference are renormalised over them.

    Args:
        policy: see `Policy`; tokens are drawn here, from its log-probabilities, so that `seed` decides.
        reference: for the KL; None leaves it NaN.
        deterministic: take the likeliest token instead of drawing.
    Raises: ValueError if `per_prompt` < 1.
    """
    if per_prompt < 1:
        raise ValueError(f"per_prompt={per_prompt!r}: allowed is an integer >= 1")
    prompts = task.prompt_set(split)
    order = np.repeat(np.arange(len(prompts.texts)), per_prompt)
    recorder = _Recorder(task, split, policy, reference, deterministic)
    shape = (len(prompts.texts), per_prompt)
    return _play(recorder, order, seed, shape, np.asarray(prompts.weights), tuple(prompts.texts))


def play_prompts(
    policy: Any,
    task: Task,
    prompt_index: NDArray[np.int64],
    *,
    split: str = "eval",
    seed: int = 0,
    reference: Reference | None = None,
    deterministic: bool = False,
) -> Episodes:
    """Samples one completion for each of some prompts of a split, in any order, with repetitions.

    Args:
        prompt_index: (N,) int64, N >= 1, places in the split.
        policy, reference, deterministic: see `play`.
    Returns: arrays (N, 1); every prompt of the list has weight 1 / N.
    Raises: ValueError if there is no prompt, or one that the split does not have.
    """
    texts = task.prompt_set(split).texts
    order = np.asarray(prompt_index)
    if order.ndim != 1 or not order.size or order.dtype.kind not in "iu":
        raise ValueError(f"prompt_index: {order.dtype} {order.shape} array, allowed are one or more integers")
    if order.min() < 0 or order.max() >= len(texts):
        raise ValueError(f"prompt_index: holds {order.min()}..{order.max()}, allowed is 0..{len(texts) - 1}")
    recorder = _Recorder(task, split, policy, reference, deterministic)
    weights = np.full(len(order), 1.0 / len(order))
    return _play(recorder, order, seed, (len(order), 1), weights, tuple(texts[i] for i in order))


def _play(
    recorder: _Recorder,
    order: NDArray[np.int64],
    seed: int,
    shape: tuple[int, int],
    weights: NDArray[np.float64],
    texts: tuple[str, ...],
) -> Episodes:
    generator = np.random.default_rng([seed, 3])
    # Looking at a policy must not move a reward that learns, such as a running normalisation.
    scorer = recorder.task.scorer
    before, tokens = scorer.state_dict(), scorer.tokens
    parts = []
    for start in range(0, len(order), _ROWS_AT_ONCE):
        recorder.run(order[start : start + _ROWS_AT_ONCE], generator)
        parts.append((recorder.arrays, recorder.terms))
    failures = dict(scorer.failures - Counter(before["failures"]))
    scorer.load_state_dict(before)
    names = [field.name for field in fields(Episodes) if field.name in parts[0][0]]
    arrays = {name: np.concatenate([part[name] for part, _ in parts]).reshape(shape) for name in names}
    terms = {name: np.concatenate([part[name] for _, part in parts]).reshape(shape) for name in parts[0][1]}
    answer_tokens = (scorer.tokens - tokens - int(arrays["lengths"].sum())) / len(order)
    return Episodes(
        **arrays, terms=terms, weights=weights, prompts=texts, failures=failures, answer_tokens=answer_tokens
    )


class _Recorder:
    """One batch of episodes and what was seen of them."""

    def __init__(
        self, task: Task, split: str, policy: Any, reference: Reference | None, deterministic: bool
    ) -> None:
        self.task, self._split, self._policy = task, split, policy
        self._reference, self._deterministic = reference, deterministic
        self.arrays: dict[str, NDArray[Any]] = {}
        self.terms: dict[str, NDArray[np.float64]] = {}

    def run(self, prompt_index: NDArray[np.int64], generator: np.random.Generator) -> None:
        """Plays one episode from each of these prompts, and starts the records anew."""
        count = len(prompt_index)
        env = TokenVectorEnv(self.task, count, split=self._split, autoreset_mode=AutoresetMode.DISABLED)
        observation, _ = env.reset(
            seed=int(generator.integers(2**31)), options={"prompt_index": prompt_index}
        )
        self._start(count)
        active, discount = np.ones(count, dtype=np.bool_), 1.0
        while active.any():
            masks = env.action_masks()[active] if self.task.mask is not None else None
            actions = self._act(observation, active, masks, generator)
            observation, rewards, terminated, truncated, infos = env.step(actions)
            self.arrays["returns"] += discount * rewards
            self.arrays["lengths"] += active
            discount *= self.task.gamma
            self._finish(infos)
            active &= ~(terminated | truncated)
        env.close()

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
        self,
        observation: dict[str, NDArray[Any]],
        active: NDArray[np.bool_],
        masks: NDArray[np.bool_] | None,
        generator: np.random.Generator,
    ) -> NDArray[np.int64]:
        log_probs = self._policy.log_probs(observation)
        uniforms = generator.random(len(active))
        if log_probs is None:
            known = getattr(self._policy, "sequence_kl", np.nan) if self._reference is not None else np.nan
            self.arrays["kl"][:], self.arrays["entropy"][:] = known, np.nan
            return np.asarray(self._policy.act(observation, deterministic=self._deterministic))
        rows = np.flatnonzero(active)
        logs = restricted(np.asarray(log_probs[rows]), masks)
        actions = np.zeros(len(active), dtype=np.int64)
        if self._deterministic:
            # The policy that is played puts probability 1 on one token: no entropy, and KL = -log ref(a).
            actions[rows] = logs.argmax(1)
            if self._reference is not None:
                against = restricted(self._reference.log_probs(observation)[rows], masks)
                self.arrays["kl"][rows] -= against[np.arange(len(rows)), actions[rows]]
            return actions
        probs = np.exp(logs)
        finite = np.where(probs > 0, logs, 0.0)
        self.arrays["entropy"][rows] -= np.einsum("nv,nv->n", probs, finite)
        if self._reference is not None:
            against = restricted(self._reference.log_probs(observation)[rows], masks)
            against = np.where(probs > 0, against, 0.0)
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
