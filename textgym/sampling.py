"""Sample the completions of policies to a task's prompts, and measure them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from textgym.checks import MOST_ROWS, Bools, Floats, Ints, check_count, equal_parts
from textgym.files import plain
from textgym.lm.reference import Observation, Reference, checked_actions, checked_shape, restricted, said_by
from textgym.parts import Arrays, KeptParts, Part
from textgym.play import LogProbs, Turn, draw, play_batch
from textgym.rewards.scorer import scorers_restored
from textgym.task import Task
from textgym.vector import batch_env

if TYPE_CHECKING:
    from textgym.solver.tree import PrefixTree

_BLOCK = 512  # rows that draw from one stream
_AT_ONCE = 2**24  # log-probabilities of the rows that are played at once; about nine arrays of them are
_ROUNDING = 1e-4  # by which probabilities of one state may miss 1
_LOG = logging.getLogger(__name__)


class Policy(Protocol):
    """A policy that can be evaluated: an agent, or any object that gives log-probabilities or actions."""

    def log_probs(self, observation: Observation) -> LogProbs | None:
        """Return next-token log-probabilities (B, V) in nats, or None if there are none: then `act` is asked."""


class ActingPolicy(Policy, Protocol):
    """A policy that chooses tokens by itself."""

    def act(self, observation: Observation, deterministic: bool = False) -> Ints:
        """Return token ids (B,); the likeliest ones if `deterministic`."""


@runtime_checkable
class CachedPolicy(Protocol):
    """A policy or a reference, or the `policy` of an agent, that keeps what it has read, and says how much it can."""

    def rows_at_once(self, tokens: int) -> int:
        """Return how many rows of so many tokens it can hold at once; what is below 1 counts as 1."""

    def forget(self) -> None:
        """Let go of the rows."""


@runtime_checkable
class SearchingPolicy(Policy, Protocol):
    """A policy that says whether it searches before it acts: then evaluation asks a copy, and in fewer states."""

    plans: ClassVar[bool]


@runtime_checkable
class WholePolicy(Policy, Protocol):
    """A policy that may know of whole answers what it cannot say of tokens, as one that chooses among answers."""

    def edge_log_probs(self, tree: PrefixTree, log_reference: tuple[Floats, ...]) -> tuple[Floats, ...] | None:
        """Return its log-probability on every edge of a task's prefix tree, nats; None: `log_probs` tells it, if any.

        Args:
            log_reference: the same of the reference.
        """

    def sequence_kl(self, task: Task, split: str, seed: int) -> tuple[Floats, Floats] | None:
        """Return its KL to the reference of a whole answer, where `log_probs` gives None; None if it is not known.

        Args:
            split: whose prompts. seed: of the sampling.
        Returns: nats of each prompt (P,), and bootstrap replicates (R, P).
        """


@dataclass(frozen=True)
class PromptEpisodes:
    """P prompts, n completions each; every array is (P, n).

    Attributes:
        returns: discounted sum of rewards, reward units.
        gold: gold reward, NaN where the task has none.
        kl: sum over the states visited of KL(pi || ref), nats; NaN without log-probabilities or without a reference.
        entropy: sum over the states visited of the policy's entropy, nats; NaN without log-probabilities.
        lengths: tokens. stopped: ended by a stop id.
        completions, written: texts, and what the policy wrote of them. terms: reward term -> values.
        tokens: (P, n, T) int64, the tokens written, -1 behind the end. log_probs: (P, n, K) sums of their
            log-probabilities under each of K policies, nats; K = 0 where none was asked for.
        weights: (P,) probability of each prompt. prompts: their texts.
        failures: kind -> completions that the reward failed on, see `textgym.rewards.Scorer`.
        answer_tokens: of the completions that the policy had scored to find an answer, the answers themselves apart; a
            mean, 0 for a policy that just writes.
    """

    returns: Floats
    gold: Floats
    kl: Floats
    entropy: Floats
    lengths: Ints
    stopped: Bools
    completions: NDArray[np.object_]
    written: NDArray[np.object_]
    tokens: Ints
    log_probs: Floats
    terms: dict[str, Floats]
    weights: Floats
    prompts: tuple[str, ...]
    failures: dict[str, int]
    answer_tokens: float = 0.0


def play(
    policy: Policy,
    task: Task,
    *,
    split: str = "eval",
    prompt_index: Ints | None = None,
    per_prompt: int = 16,
    seed: int = 0,
    reference: Reference | None = None,
    deterministic: bool = False,
    others: Sequence[Policy] = (),
    keep: Path | None = None,
) -> PromptEpisodes:
    """Sample `per_prompt` completions of prompts of a split.

    Where the task's grammar leaves only some tokens in a state, policy and reference are renormalised over them. A
    reward that learns is put back to where it was.

    Rows are played in blocks of 512, whose uniforms come from one stream, and where a whole block would not fit in
    parts: of at most 16 million log-probabilities, and of no more rows than a `CachedPolicy` can hold. Parts change
    what is drawn by rounding alone, and where a policy has no log-probabilities. A reward that compares completions, or
    learns, gets whole blocks.

    Args:
        policy: see `Policy`; tokens are drawn here, from its log-probabilities, so that `seed` decides.
        prompt_index: (P,) integers, P >= 1, places in the split in any order, with repetitions; each prompt of the list
            has weight 1 / P. None: every prompt of the split.
        reference: for the KL; None leaves it NaN.
        deterministic: take the likeliest token instead of drawing.
        others: more policies with log-probabilities; each writes `per_prompt` completions too, behind `policy`'s.
            KL and entropy are those of the policy that wrote; `log_probs` has all of them.
        keep: a folder for the parts that have been played. If a call was broken off, the same call goes on from them,
            to the same bits; they are not removed (`textgym.parts.kept_until_done`). None: nothing is kept. Neither is
            anything kept for a policy that acts by itself or searches, or for a reward that compares completions or
            learns.
    Raises: ValueError if `per_prompt` is not in 1..MOST_ROWS, `seed` is below 0, a prompt is not there, one of several
        policies has no log-probabilities, or what a policy says is of another shape, NaN or +inf.
    """
    check_count("per_prompt", per_prompt, 1, MOST_ROWS)
    check_count("seed", seed, 0)
    prompts, policies = task.prompt_set(split), [policy, *others]
    places, weights = np.arange(len(prompts.texts)), np.asarray(prompts.weights)
    if prompt_index is not None:
        places = _places(np.asarray(prompt_index), len(prompts.texts))
        weights = np.full(len(places), 1.0 / len(places))
    rows = np.repeat(places, per_prompt * len(policies))
    numbers = np.tile(np.repeat(np.arange(len(policies)), per_prompt), len(places))
    generator = np.random.default_rng([seed, 3])
    writers = _Writers(policies, reference, deterministic, generator, task.vocabulary.allowed)
    parts = _played(writers, task, split, rows, numbers, seed, keep)
    arrays, terms = (_concatenated(each, len(places)) for each in ([p.arrays for p in parts], [p.terms for p in parts]))
    failures: Counter[str] = sum((Counter(part.facts["failures"]) for part in parts), Counter())
    return PromptEpisodes(
        **arrays,
        terms=terms,
        weights=weights,
        prompts=tuple(prompts.texts[place] for place in places),
        failures=dict(failures),
        answer_tokens=(sum(p.facts["tokens"] for p in parts) - int(arrays["lengths"].sum())) / len(rows),
    )


def _played(
    writers: _Writers, task: Task, split: str, rows: Ints, numbers: Ints, seed: int, keep: Path | None
) -> list[Part]:
    """Play the prompts `rows` (B,), each written by the policy of that number (B,), in blocks and their parts."""
    readers: list[object] = [getattr(each, "policy", each) for each in (*writers.policies, writers.reference)]
    cached = [each for each in readers if isinstance(each, CachedPolicy)]
    most, signs, parts = _rows_at_once(task, len(writers.policies), cached), None, list[Part]()
    with scorers_restored(task.scorer):
        if keep is not None:
            signs = _signs(writers, task, split, rows, numbers, most, seed)
            for each in cached:
                each.forget()
        kept = KeptParts(keep if signs else None, signs or "")
        for start in range(0, len(rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            writers.start(numbers[block])
            for part in equal_parts(len(rows[block]), most):
                first = start + part.start
                found = kept.read(first)
                if found is None:
                    _LOG.info("sampling answers, %d of %d", first, len(rows))
                    found = _play_part(writers, task, split, rows[block][part], part)
                    kept.write(first, found)
                writers.draw(found.facts["times"])
                parts.append(found)
    for each in cached:
        each.forget()
    return parts


def _places(prompt_index: Ints, count: int) -> Ints:
    """Return places in a split of `count` prompts. Raises: ValueError for none, or one that is not there."""
    if prompt_index.ndim != 1 or not prompt_index.size or prompt_index.dtype.kind not in "iu":
        raise ValueError(
            f"prompt_index: {prompt_index.dtype} {prompt_index.shape} array, allowed are one or more integers"
        )
    if prompt_index.min() < 0 or prompt_index.max() >= count:
        raise ValueError(f"prompt_index: holds {prompt_index.min()}..{prompt_index.max()}, allowed is 0..{count - 1}")
    return prompt_index


def _rows_at_once(task: Task, policies: int, cached: Sequence[CachedPolicy]) -> int:
    """Return how many rows of a block are played at once."""
    if not task.scorer.one_by_one:
        return _BLOCK
    tokens = task.max_prompt_tokens + task.max_new_tokens
    most = [_AT_ONCE // (task.vocabulary.size * policies), *(each.rows_at_once(tokens) for each in cached)]
    return max(1, min(_BLOCK, *most))


@dataclass
class _Writers:
    """Choose tokens by the policies of a block's rows, and add up KL, entropy and log-probabilities by row."""

    policies: Sequence[Policy]
    reference: Reference | None
    deterministic: bool
    generator: np.random.Generator
    allowed: Bools
    """Tokens that are ever legal."""

    def start(self, numbers: Ints) -> None:
        """Begin a block; each row is written by the policy of that number."""
        self._block, self._uniforms = numbers, list[Floats]()
        self.seed = int(self.generator.integers(2**31))

    def start_part(self, part: slice) -> None:
        """Begin some rows of the block."""
        self._part, self._numbers = part, self._block[part]
        count, several = len(self._numbers), len(self.policies) > 1
        self.entropy = np.zeros(count)
        self.kl = np.full(count, np.nan if self.reference is None else 0.0)
        self.log_probs = np.zeros((count, len(self.policies) if several else 0))

    def draw(self, times: int) -> None:
        """Draw the uniforms of the block up to a time: of all its rows, so that parts draw what the whole would."""
        while len(self._uniforms) < times:
            self._uniforms.append(self.generator.random(len(self._block)))

    @property
    def times(self) -> int:
        """How many times have been drawn."""
        return len(self._uniforms)

    def choose(self, turn: Turn) -> Ints:
        """Return the next tokens of the running rows."""
        asked = [said_by(policy, copied(turn.observation)) for policy in self.policies]
        tables = [logs for logs in asked if logs is not None]
        self.draw(turn.time + 1)
        uniforms = self._uniforms[turn.time][self._part]
        if not tables and len(asked) == 1:
            return self._act(turn)
        if len(tables) < len(asked):
            raise ValueError(f"policy, others: {list(self.policies)!r:.200}: each of several needs log-probabilities")
        rows = turn.rows
        legal = partial(legal_log_probs, turn.observation, rows, turn.masks, self.allowed)
        several = np.stack([legal(logs) for logs in tables])
        each = np.arange(len(rows))
        logs = several[0] if len(several) == 1 else several[self._numbers[rows], each]
        against = None
        if self.reference is not None:
            against = legal(self.reference.log_probs(turn.observation), "reference")
        if self.deterministic:
            # The policy that is played puts probability 1 on one token: no entropy, and KL = -log ref(a).
            tokens = np.asarray(logs.argmax(1))
            if against is not None:
                self.kl[rows] -= against[each, tokens]
            return tokens
        probs = np.exp(logs)
        finite = np.where(probs > 0, logs, 0.0)
        self.entropy[rows] -= np.einsum("nv,nv->n", probs, finite)
        if against is not None:
            self.kl[rows] += np.einsum("nv,nv->n", probs, finite - np.where(probs > 0, against, 0.0))
        tokens = draw(probs, uniforms[rows])
        if len(several) > 1:
            self.log_probs[rows] += several[:, each, tokens].T
        return tokens

    def _act(self, turn: Turn) -> Ints:
        self.kl[:], self.entropy[:] = np.nan, np.nan
        policy = cast(ActingPolicy, self.policies[0])
        acted = policy.act(turn.observation, deterministic=self.deterministic)
        return checked_actions(acted, turn.observation)[turn.rows]


def legal_log_probs(
    observation: Observation, rows: Ints, masks: Bools | None, allowed: Bools, table: object, argument: str = "policy"
) -> LogProbs:
    """Return the log-probabilities of some rows over their legal tokens, normalised as the solver does.

    What is a distribution, but for rounding, keeps its bits.

    Args:
        rows: (n,) of 0..B-1. masks: (n, V) what the task's grammar allows in them; None without one.
        allowed: (V,) tokens that are ever legal.
        table: what `log_probs(observation)` said, (B, V) nats. argument: the policy's name in messages.
    Returns: (n, V), a new array.
    Raises: ValueError for another shape, NaN, +inf, or a row without any probability.
    """
    logs: LogProbs = checked_shape(table, observation, len(allowed), argument)[rows]
    logs = logs if logs.dtype.kind == "f" else logs.astype(np.float64)
    if masks is None and not allowed.all() and (logs[:, ~allowed] > -np.inf).any():
        masks = np.broadcast_to(allowed, logs.shape)
    logs = restricted(logs, masks)
    with np.errstate(over="ignore", invalid="ignore"):
        totals = np.exp(logs.astype(np.float32, copy=False)).sum(1)  # what overflows is normalised below
        off = ~(np.abs(totals - 1) <= _ROUNDING)
        nothing = np.isneginf(logs[off]).all(1).any()
        if off.any():
            logs[off] = restricted(logs[off], np.ones_like(logs[off], dtype=np.bool_))
    if nothing or np.isnan(logs[off]).any():
        raise ValueError(f"{argument}: log_probs holds NaN or +inf, or a row of -inf; allowed are numbers <= 0")
    return logs


def copied(observation: Observation) -> Observation:
    """Return an observation that a policy may write into."""
    return {name: array.copy() for name, array in observation.items()}


def _signs(writers: _Writers, task: Task, split: str, rows: Ints, numbers: Ints, most: int, seed: int) -> str | None:
    """Return a digest of a sampling: the task, how it plays, and what every policy says of the first states.

    None where one says nothing, or searches, or a score depends on more than the text.
    """
    if not task.scorer.one_by_one:
        return None
    env = batch_env(task, min(len(rows), 8), split)
    observation, _ = env.reset(seed=seed, options={"prompt_index": rows[: env.num_envs]})
    env.close()
    prompts = task.prompt_set(split)
    what = [task.name, task.reward_name, task.max_new_tokens, task.gamma, split, seed, writers.deterministic, most]
    what += [rows.tolist(), numbers.tolist(), prompts.texts, plain(prompts.columns)]
    digest = hashlib.sha256(json.dumps(what, default=lambda value: type(value).__qualname__).encode())
    for policy in (*writers.policies, *([] if writers.reference is None else [writers.reference])):
        searches = isinstance(policy, SearchingPolicy) and policy.plans
        logs = None if searches else said_by(policy, copied(observation))
        if logs is None:
            return None
        digest.update(np.asarray(logs).tobytes())
    return digest.hexdigest()[:24]


def _play_part(writers: _Writers, task: Task, split: str, places: Ints, part: slice) -> Part:
    """Return the fields of `PromptEpisodes` that are arrays, and the reward terms, of a part (B,) of a block."""
    scorer = task.scorer
    before, scored = scorer.failures.copy(), scorer.tokens
    env = batch_env(task, len(places), split)
    observation, _ = env.reset(seed=writers.seed + part.start, options={"prompt_index": places})
    writers.start_part(part)
    played = play_batch(env, observation, writers.choose)
    env.close()
    tokens = np.full((len(places), task.max_new_tokens), -1, dtype=np.int64)
    tokens[played.rows, played.times] = played.actions
    arrays = {
        "returns": played.returns(task.gamma),
        "gold": played.final.gold,
        "kl": writers.kl,
        "entropy": writers.entropy,
        "lengths": played.lengths,
        "stopped": played.final.finish_reasons == "stop",
        "completions": played.final.completions,
        "written": played.final.written,
        "tokens": tokens,
        "log_probs": writers.log_probs,
    }
    facts = {"failures": scorer.failures - before, "tokens": scorer.tokens - scored, "times": writers.times}
    return Part(arrays, played.final.terms, facts)


def _concatenated(parts: Sequence[Arrays], prompts: int) -> Arrays:
    """Join the arrays of batches, (P, n, ...)."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: array.reshape(prompts, len(array) // prompts, *array.shape[1:]) for name, array in joined.items()}
