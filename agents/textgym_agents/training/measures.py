"""Measures of a run: evaluations as rows, its cost, its J*, and copies of agents that evaluations would change."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from gymnasium.vector import AutoresetMode

from textgym import TokenVectorEnv
from textgym.checks import Floats, Ints, JsonObject
from textgym.estimates import Estimate, read_samples, write_samples
from textgym.evaluate import EvaluationResult
from textgym.lm.reference import Reference
from textgym.optimum import Optimum, belongs, estimated, fingerprint, optimum_of
from textgym.task import Task
from textgym_agents.protocol import Agent, Metrics
from textgym_agents.registry import load_agent
from textgym_agents.training.folder import run_of
from textgym_agents.training.ranks import Ranks


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        before, after: flat measures before and after learning, under `eval/...`.
        first: the evaluation before learning; None in a run that was resumed. last: the evaluation after it.
        optimum: J*, or why it is not known. seconds: wall time, of all parts of the run.
        learned: the cost of learning, see `LearningMeter.row`.
        iterations, episodes: totals.
    """

    before: Metrics
    after: Metrics
    first: EvaluationResult | None
    last: EvaluationResult
    optimum: Optimum
    seconds: float
    learned: Metrics
    iterations: int
    episodes: int


class LearningMeter:
    """Adds up what every iteration takes, from `start` to `stop`.

    Tokens are those of every completion that the task's reward has scored, the same way for every agent: what a search
    or a choice scores in environments of its own is among them, what a rollout leaves unfinished is not. Where an
    iteration has none scored, because it learns from given texts, it counts those that were read, which the agent
    reports as `tokens`. `learning/scored` counts the completions.

    Args:
        env: that the agent learns in. ranks: the processes that learn together, whose tokens are added up.
    """

    def __init__(self, env: TokenVectorEnv, ranks: Ranks) -> None:
        self._ranks = ranks
        self._scorer = env.unwrapped.task.scorer
        self._sums: Metrics = {
            "learning/tokens": 0,
            "learning/scored": 0,
            "learning/seconds": 0.0,
            "learning/cpu_seconds": 0.0,
        }
        self._before = self._now()

    def start(self) -> None:
        """Begin an iteration."""
        self._before = self._now()

    def stop(self, metrics: Mapping[str, float] | None = None) -> None:
        """End an iteration. Args: metrics: those that the agent reports of it."""
        written, seen, *seconds = (now - then for now, then in zip(self._now(), self._before, strict=True))
        tokens = int(self._ranks.sum(written)) or int((metrics or {}).get("tokens", 0))
        scored = int(self._ranks.sum(seen))
        for name, amount in zip(self._sums, (tokens, scored, *seconds), strict=True):
            self._sums[name] += amount
        self.start()

    def late(self) -> bool:
        """Return whether completions were scored after the last iteration that the agent reported."""
        return self._ranks.any(self._scorer.seen > self._before[1])

    def row(self) -> Metrics:
        """Return the sums so far, under `learning/...`."""
        return dict(self._sums)

    def restore(self, row: Mapping[str, float]) -> None:
        """Go on from the sums of a row that an interrupted run has logged."""
        self._sums = {name: type(start)(row.get(name, start)) for name, start in self._sums.items()}
        self.start()

    def _now(self) -> tuple[float, float, float, float]:
        return self._scorer.tokens, self._scorer.seen, time.monotonic(), time.process_time()


ESTIMATES = ("reward", "gold", "kl", "objective", "optimality", "entropy", "length")
NUMBERS = ("stop_rate", "distinct_1", "distinct_2")


def evaluation_row(evaluation: EvaluationResult) -> Metrics:
    """Return `eval/NAME` for every measure, and `_low` and `_high`, the ends of its 95% interval, unless it is exact.

    `eval/exact` says whether reward, KL and J are expectations by enumeration. `eval/failures/KIND` counts the
    completions that the reward failed on, `eval/answer_tokens` the tokens of those that the policy had scored for an
    answer (a mean).
    """
    row: Metrics = {}
    for name in ESTIMATES:
        estimate: Estimate | None = getattr(evaluation, name)
        if estimate is not None:
            row[f"eval/{name}"] = estimate.mean
            if not estimate.exact:
                row[f"eval/{name}_low"], row[f"eval/{name}_high"] = estimate.low, estimate.high
    row |= {f"eval/{name}": getattr(evaluation, name) for name in NUMBERS}
    row |= {"eval/exact": evaluation.exact, "eval/answer_tokens": evaluation.episodes.answer_tokens}
    row |= {f"eval/terms/{name}": value for name, value in evaluation.reward_terms.items()}
    return row | {f"eval/failures/{kind}": count for kind, count in evaluation.failures.items()}


def optimum_summary(optimum: Optimum) -> JsonObject:
    """Return J* and the reference's J as JSON values, and how they were found.

    `value` is None, and `unknown` the reason, if J* is not known; `policies` is the number of policies sampled for it,
    including the reference.
    """
    return {
        "value": None if optimum.value is None else asdict(optimum.value),
        "reference": None if optimum.reference is None else asdict(optimum.reference),
        "effective_samples": optimum.effective_samples,
        "beta": optimum.beta,
        "exact": optimum.exact,
        "committed": optimum.committed,
        "policies": None if optimum.samples is None else optimum.samples.policies,
        "unknown": optimum.unknown,
    }


def spread(weights: Floats, count: int) -> list[int]:
    """Return up to `count` different prompts, at even distances over the distribution that they are drawn from."""
    return [int(index) for index in np.unique(_places(weights, count))]


def prompts_of(weights: Floats, count: int) -> tuple[Ints, Floats]:
    """Return prompts and their weights: all that have one where `count` reaches, else `spread` ones, by their hits."""
    drawn = np.flatnonzero(weights)
    if count >= len(drawn):
        return drawn, weights[drawn] / weights.sum()
    chosen, hits = np.unique(_places(weights, count), return_counts=True)
    return chosen, hits / count


def _places(weights: Floats, count: int) -> Ints:
    places = (np.arange(count) + 0.75) / max(count, 1)
    chosen = np.searchsorted(np.cumsum(weights), places * weights.sum(), side="right")
    return np.asarray(np.minimum(chosen, len(weights) - 1))


def sample_rows(evaluation: EvaluationResult, count: int) -> Iterator[JsonObject]:
    """Yield the first completion of some prompts: prompt, completion, reward, terms, and gold where there is one."""
    episodes = evaluation.episodes
    for index in spread(episodes.weights, count):
        row = {
            "prompt": episodes.prompts[index],
            "completion": str(episodes.completions[index, 0]),
            "reward": float(episodes.returns[index, 0]),
            "terms": {name: float(values[index, 0]) for name, values in episodes.terms.items()},
        }
        if not np.isnan(episodes.gold[index, 0]):
            row["gold"] = float(episodes.gold[index, 0])
        yield row


def changes_by_acting(agent: Agent, task: Task) -> bool:
    """Return whether acting changes what an agent does later: it keeps what a search finds, or draws tokens itself."""
    if agent.plans:
        return True
    env = TokenVectorEnv(task, 1, split="eval", segments=True, autoreset_mode=AutoresetMode.DISABLED)
    return agent.log_probs(env.reset(seed=0)[0]) is None


@contextmanager
def to_evaluate(agent: Agent, name: str, env: TokenVectorEnv) -> Iterator[Agent]:
    """Yield the agent, or a saved and loaded copy where acting changes it.

    Learning does not depend on how often the agent is evaluated, and an evaluation not on those before it.

    Args:
        name: a registered name, or "module:Class". env: an environment of the task.
    """
    if not changes_by_acting(agent, env.unwrapped.task):
        yield agent
        return
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent")
        yield load_agent(Path(folder) / "agent", env, name)


FILE = "optimum.safetensors"


def unsettled(optimum: Optimum) -> Optimum:
    """Return an optimum without its J*, for evaluations before it is worked out."""
    return replace(optimum, value=None, unknown="it is worked out after learning")


def proposals_of(agent: Agent, task: Task) -> tuple[Agent, ...]:
    """Return the agent as a proposal for `optimum_of`; nothing where it only acts, searches, or has learned nothing."""
    return (agent,) if agent.learns and not changes_by_acting(agent, task) else ()


def keep_optimum(folder: Path, task: Task, optimum: Optimum) -> None:
    """Write the samples that an optimum rests on into a run's folder; nothing where it is exact or committed."""
    if optimum.samples is not None and not optimum.committed:
        write_samples(optimum.samples, folder / FILE, fingerprint(task, optimum.split))


def kept_optimum(folder: Path, task: Task, split: str, beta: float) -> Optimum | None:
    """Return the optimum that a run has kept, at any beta > 0; None where there is none, or it is of another task.

    Args: folder: the run's, or that of one of its checkpoints.

    Raises: ValueError naming the file if it is damaged.
    """
    path = run_of(folder) / FILE
    if not path.is_file() or not beta > 0:
        return None
    samples, key = read_samples(path)
    return estimated(samples, beta, split) if belongs(samples, key, task, split) else None


def optimum_for(
    agent: Agent,
    task: Task,
    reference: Reference | None,
    folder: Path,
    *,
    beta: float,
    split: str,
    per_prompt: int,
    seed: int,
    keep: Path | None = None,
) -> Optimum:
    """Return the optimum that an agent is measured against: the one its run has kept, or `optimum_of` with it.

    Args:
        reference: pi_ref where it is not the task's; None for the task's.
        folder: of the agent's run; there may be none.
        beta, split, per_prompt, seed, keep: see `optimum_of`.
    """
    kept = kept_optimum(folder, task, split, beta)
    if kept is not None:
        return kept
    work_out = partial(optimum_of, beta=beta, split=split, per_prompt=per_prompt, seed=seed, keep=keep)
    found = work_out(task, (), reference)
    proposals = proposals_of(agent, task) if found.improvable else ()
    return work_out(task, proposals, reference) if proposals else found
