"""Play a policy over a task's prompts and record what an evaluation needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from textgym.checks import MOST_ROWS, shown
from textgym.lm.reference import Reference, restricted
from textgym.task import Task
from textgym.vector import batch_env

_ROWS_AT_ONCE = 512


class Policy(Protocol):
    """What can be evaluated: an agent, or anything that gives log-probabilities or actions."""

    def log_probs(self, observation: dict[str, NDArray[Any]]) -> NDArray[np.floating[Any]] | None:
        """Next-token log-probabilities (B, V) in nats, or None if there are none: then `act` is asked.

        Such a policy may have `sequence_kl(task, split, seed) -> (kl, replicates)`: its KL to the reference in nats per
        whole answer for every prompt (P,), and bootstrap replicates of it (R, P). One whose answers are drawn whole may
        have `edge_log_probs(tree, log_reference)`, its log-probability on every edge of a task's prefix tree.
        """


@dataclass(frozen=True)
class Episodes:
    """P prompts, n completions each; every array is (P, n).

    Attributes:
        returns: discounted sum of rewards, reward units.
        gold: gold reward, NaN where the task has none.
        kl: sum over the states visited of KL(pi || ref), nats; NaN without log-probabilities or without a reference.
        entropy: sum over the states visited of the policy's entropy, nats; NaN without log-probabilities.
        lengths: tokens. stopped: ended by a stop id.
        completions: texts. terms: reward term -> values.
        tokens: (P, n, T) int64, what was written, -1 behind the end. log_probs: (P, n, K) sums of the log-probabilities
            of what was written under each of K policies, nats; K = 0 where none was asked for.
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
    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float64]
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
    others: Sequence[Any] = (),
) -> Episodes:
    """Samples `per_prompt` completions of every prompt of a split.

    Where the task's grammar leaves only some tokens in a state, policy and reference are renormalised over them.

    Args:
        policy: see `Policy`; tokens are drawn here, from its log-probabilities, so that `seed` decides.
        reference: for the KL; None leaves it NaN.
        deterministic: take the likeliest token instead of drawing.
        others: more policies with log-probabilities; each writes `per_prompt` completions too, behind `policy`'s.
            KL and entropy are those of the policy that wrote; `log_probs` has all of them.
    Raises: ValueError if `per_prompt` is not in 1..MOST_ROWS, or one of several policies has no log-probabilities.
    """
    if not 1 <= per_prompt <= MOST_ROWS:
        raise ValueError(f"per_prompt={shown(per_prompt)}: allowed is an integer in 1..{MOST_ROWS}")
    prompts, policies = task.prompt_set(split), [policy, *others]
    count = per_prompt * len(policies)
    order = np.repeat(np.arange(len(prompts.texts)), count)
    recorder = _Recorder(task, split, policies, reference, deterministic)
    writers = np.tile(np.repeat(np.arange(len(policies)), per_prompt), len(prompts.texts))
    shape = (len(prompts.texts), count)
    return _play(recorder, order, seed, shape, np.asarray(prompts.weights), tuple(prompts.texts), writers)


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
    recorder = _Recorder(task, split, [policy], reference, deterministic)
    weights = np.full(len(order), 1.0 / len(order))
    writers = np.zeros(len(order), dtype=np.int64)
    return _play(recorder, order, seed, (len(order), 1), weights, tuple(texts[i] for i in order), writers)


def _play(
    recorder: _Recorder,
    order: NDArray[np.int64],
    seed: int,
    shape: tuple[int, int],
    weights: NDArray[np.float64],
    texts: tuple[str, ...],
    writers: NDArray[np.int64],
) -> Episodes:
    generator = np.random.default_rng([seed, 3])
    # Looking at a policy must not move a reward that learns, such as a running normalisation.
    scorer = recorder.task.scorer
    before, tokens = scorer.state_dict(), scorer.tokens
    parts = []
    try:
        for start in range(0, len(order), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            recorder.run(order[part], generator, writers[part])
            parts.append((recorder.arrays, recorder.terms))
        failures = dict(scorer.failures - Counter(before["failures"]))
    finally:
        scorer.load_state_dict(before)
    names = [field.name for field in fields(Episodes) if field.name in parts[0][0]]
    joined = {name: np.concatenate([part[name] for part, _ in parts]) for name in names}
    arrays = {name: array.reshape(shape + array.shape[1:]) for name, array in joined.items()}
    terms = {name: np.concatenate([part[name] for _, part in parts]).reshape(shape) for name in parts[0][1]}
    answer_tokens = (scorer.tokens - tokens - int(arrays["lengths"].sum())) / len(order)
    return Episodes(
        **arrays, terms=terms, weights=weights, prompts=texts, failures=failures, answer_tokens=answer_tokens
    )


class _Recorder:
    """One batch of episodes and what was seen of them."""

    def __init__(
        self,
        task: Task,
        split: str,
        policies: Sequence[Any],
        reference: Reference | None,
        deterministic: bool,
    ) -> None:
        self.task, self._split, self._policies = task, split, policies
        self._reference, self._deterministic = reference, deterministic
        self.arrays: dict[str, NDArray[Any]] = {}
        self.terms: dict[str, NDArray[np.float64]] = {}

    def run(
        self, prompt_index: NDArray[np.int64], generator: np.random.Generator, writers: NDArray[np.int64]
    ) -> None:
        """Plays one episode from each of these prompts, by the policy of that number; starts the records anew."""
        count = len(prompt_index)
        env = batch_env(self.task, count, self._split)
        observation, _ = env.reset(
            seed=int(generator.integers(2**31)), options={"prompt_index": prompt_index}
        )
        self._start(count)
        active, step = np.ones(count, dtype=np.bool_), 0
        while active.any():
            masks = env.action_masks()[active] if self.task.mask is not None else None
            actions = self._act(observation, active, masks, generator, writers)
            self.arrays["tokens"][active, step] = actions[active]
            observation, rewards, terminated, truncated, infos = env.step(actions)
            self.arrays["lengths"] += active
            # A reward belongs to its row's last action, also where it comes after others have ended.
            self.arrays["returns"] += self.task.gamma ** (self.arrays["lengths"] - 1) * rewards
            step += 1
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
            "tokens": np.full((count, self.task.max_new_tokens), -1, dtype=np.int64),
            "log_probs": np.zeros((count, len(self._policies) if len(self._policies) > 1 else 0)),
        }
        self.terms = {}

    def _act(
        self,
        observation: dict[str, NDArray[Any]],
        active: NDArray[np.bool_],
        masks: NDArray[np.bool_] | None,
        generator: np.random.Generator,
        writers: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        asked = [policy.log_probs(observation) for policy in self._policies]
        uniforms = generator.random(len(active))
        if asked[0] is None:
            if len(asked) > 1:
                raise ValueError(
                    f"policy={self._policies[0]!r:.80} has no log-probabilities; among several all need them"
                )
            self.arrays["kl"][:], self.arrays["entropy"][:] = np.nan, np.nan
            return np.asarray(self._policies[0].act(observation, deterministic=self._deterministic))
        rows = np.flatnonzero(active)
        several = np.stack([restricted(_table(logs, self._policies)[rows], masks) for logs in asked])
        logs = several[0] if len(several) == 1 else several[writers[rows], np.arange(len(rows))]
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
        if len(several) > 1:
            self.arrays["log_probs"][rows] += several[:, np.arange(len(rows)), actions[rows]].T
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


def _table(logs: NDArray[np.floating[Any]] | None, policies: Sequence[Any]) -> NDArray[np.floating[Any]]:
    if logs is None:
        raise ValueError(f"others={list(policies[1:])!r:.200}: each needs log-probabilities, one has none")
    return np.asarray(logs)


def _draw(probs: NDArray[np.floating[Any]], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """One index a row by inverting the cumulative distribution; never one of probability 0."""
    cumulative = np.cumsum(probs, axis=1, dtype=np.float64)
    targets = uniforms * cumulative[:, -1] * (1 - 1e-12)
    return np.asarray((cumulative <= targets[:, None]).sum(1))
