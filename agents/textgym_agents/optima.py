"""J* of a run: worked out once, with its own trained policy among those that are sampled, and kept in its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gymnasium.vector import AutoresetMode

from textgym import TokenVectorEnv
from textgym.committed import fingerprint, pays_the_same
from textgym.importance import read_samples, write_samples
from textgym.optima import WELL_KNOWN, Optimum, estimated, optimum_of
from textgym.task import Task
from textgym_agents.protocol import Agent

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
    if getattr(agent, "plans", False) or not getattr(agent, "learns", True):
        return ()
    env = TokenVectorEnv(task, 1, split="eval", autoreset_mode=AutoresetMode.DISABLED)
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
    same = key == fingerprint(task, split) and pays_the_same(task, split, samples)
    return estimated(samples, beta, split) if same else None


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
