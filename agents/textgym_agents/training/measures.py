"""What a run measures: evaluations as rows, its cost, its J*, and looks at an agent that do not move it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from textgym import TokenVectorEnv
from textgym.estimates import Estimate, read_samples, write_samples
from textgym.evaluate import EvaluationResult
from textgym.optimum import WELL_KNOWN, Optimum, belongs, estimated, fingerprint, optimum_of
from textgym.task import Task
from textgym_agents.protocol import Agent, Metrics
from textgym_agents.registry import load_agent

_PREFIX = "learning/"


class LearningMeter:
    """Adds up what every iteration takes, from `start` to `stop`.

    Tokens are those of every completion that the task's reward has scored, the same way for every agent: what a search
    or a choice scores in environments of its own is among them, what a rollout leaves unfinished is not. Where an
    iteration has none scored, because it learns from given texts, it counts those that were read, which the agent
    reports as `tokens`.

    Args:
        env: that the agent learns in.
    """

    def __init__(self, env: Any) -> None:
        self._scorer = env.unwrapped.task.scorer
        self._tokens = 0
        self._seconds = self._cpu_seconds = 0.0
        self._marks = self._now()

    def start(self) -> None:
        """Learning goes on."""
        self._marks = self._now()

    def stop(self, metrics: Mapping[str, float] | None = None) -> None:
        """An iteration is over. Args: metrics: what the agent says of it."""
        metrics = metrics or {}
        scored, seconds, cpu_seconds = (
            now - then for now, then in zip(self._now(), self._marks, strict=True)
        )
        self._tokens += int(scored) or int(metrics.get("tokens", 0))
        self._seconds += seconds
        self._cpu_seconds += cpu_seconds
        self.start()

    def row(self) -> Metrics:
        """The sums so far, under `learning/...`."""
        return {
            f"{_PREFIX}tokens": self._tokens,
            f"{_PREFIX}seconds": self._seconds,
            f"{_PREFIX}cpu_seconds": self._cpu_seconds,
        }

    def restore(self, row: Mapping[str, Any]) -> None:
        """Goes on from the sums of a row that an interrupted run has logged."""
        self._tokens = int(row.get(f"{_PREFIX}tokens", 0))
        self._seconds = float(row.get(f"{_PREFIX}seconds", 0.0))
        self._cpu_seconds = float(row.get(f"{_PREFIX}cpu_seconds", 0.0))
        self.start()

    def _now(self) -> tuple[float, float, float]:
        return self._scorer.tokens, time.monotonic(), time.process_time()


ESTIMATES = ("reward", "gold", "kl", "objective", "optimality", "entropy", "length")
NUMBERS = ("stop_rate", "distinct_1", "distinct_2")


def evaluation_row(evaluation: EvaluationResult) -> Metrics:
    """`eval/NAME` for every measure, with `_low` and `_high` for the ends of its 95% interval unless it is exact.

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


def optimum_summary(optimum: Optimum) -> dict[str, Any]:
    """J* and the reference's J as JSON values, and how they were found.

    `value` is None, and `unknown` the reason, where J* is not known; `policies` counts those that were sampled for it,
    the reference among them.
    """
    estimates = {
        name: None if estimate is None else asdict(estimate)
        for name, estimate in (("value", optimum.value), ("reference", optimum.reference))
    }
    numbers = {"effective_samples": optimum.effective_samples, "beta": optimum.beta}
    policies = None if optimum.samples is None else optimum.samples.policies
    known = {"exact": optimum.exact, "committed": optimum.committed, "policies": policies}
    return estimates | numbers | known | {"unknown": optimum.unknown}


def spread(weights: NDArray[np.float64], count: int) -> list[int]:
    """Up to `count` different prompts, at even distances over the distribution that they are drawn from."""
    places = (np.arange(count) + 0.75) / max(count, 1)
    chosen = np.searchsorted(np.cumsum(weights), places * weights.sum(), side="right")
    return sorted({int(index) for index in np.minimum(chosen, len(weights) - 1)})


def sample_rows(evaluation: EvaluationResult, count: int) -> Iterator[dict[str, Any]]:
    """The first completion of some prompts: prompt, completion, reward, terms, and gold where there is one."""
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


def is_moved_by_questions(agent: Agent, task: Any) -> bool:
    """Whether acting changes what an agent does later: it keeps what a search finds, or draws its tokens itself."""
    if agent.plans:
        return True
    env = TokenVectorEnv(task, 1, split="eval", segments=True, autoreset_mode=AutoresetMode.DISABLED)
    return agent.log_probs(env.reset(seed=0)[0]) is None


@contextmanager
def at_rest(agent: Agent, name: str, env: Any) -> Iterator[Agent]:
    """The agent as it can be evaluated: a saved and loaded copy where questions would move it.

    So learning does not depend on how often it is looked at, and an evaluation not on those before it.

    Args:
        name: a registered name, or "module:Class". env: an environment of the task.
    """
    if not is_moved_by_questions(agent, env.unwrapped.task):
        yield agent
        return
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent")
        yield load_agent(Path(folder) / "agent", env, name)


FILE = "optimum.safetensors"


def needs_proposals(optimum: Optimum) -> bool:
    """Whether samples of a trained policy would tell more: J* was sampled here, and not from enough."""
    samples = optimum.samples
    if samples is None or optimum.committed or samples.policies > 1:
        return False
    return optimum.value is None or (optimum.effective_samples or 0.0) < WELL_KNOWN


def unsettled(optimum: Optimum) -> Optimum:
    """Return an optimum without its J*, for evaluations before it is worked out."""
    return replace(optimum, value=None, unknown="it is worked out after learning")


def proposals_of(agent: Agent, task: Task) -> tuple[Agent, ...]:
    """The agent as a proposal for `optimum_of`; nothing where it only acts, searches, or has learned nothing."""
    if agent.plans or not agent.learns:
        return ()
    env = TokenVectorEnv(task, 1, split="eval", segments=True, autoreset_mode=AutoresetMode.DISABLED)
    return () if agent.log_probs(env.reset(seed=0)[0]) is None else (agent,)


def keep_optimum(folder: Path, task: Task, optimum: Optimum) -> None:
    """Write the samples that an optimum rests on into a run's folder; nothing where it is exact or committed."""
    if optimum.samples is not None and not optimum.committed:
        write_samples(optimum.samples, folder / FILE, fingerprint(task, optimum.split))


def kept_optimum(folder: Path, task: Task, split: str, beta: float) -> Optimum | None:
    """Return the optimum that a run has kept, at any beta > 0; None where there is none, or it is of another task.

    Raises: ValueError naming the file if it is damaged.
    """
    path = folder / FILE
    if not path.is_file() or not beta > 0:
        return None
    samples, key = read_samples(path)
    return estimated(samples, beta, split) if belongs(samples, key, task, split) else None


def optimum_for(
    agent: Agent, task: Task, reference: Any, folder: Path | None = None, **settings: Any
) -> Optimum:
    """Return the optimum that an agent is measured against: the one its run has kept, or `optimum_of` with it.

    Args:
        reference: pi_ref where it is not the task's; None for the task's.
        folder: of the agent's run, where there is one.
        settings: of `optimum_of`; beta and split are needed.
    """
    kept = None if folder is None else kept_optimum(folder, task, settings["split"], settings["beta"])
    if kept is not None:
        return kept
    found = optimum_of(task, (), reference, **settings)
    proposals = proposals_of(agent, task) if needs_proposals(found) else ()
    return optimum_of(task, proposals, reference, **settings) if proposals else found
