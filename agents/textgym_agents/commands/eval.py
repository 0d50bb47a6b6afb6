"""Evaluate a policy on held-out prompts: reward, KL, objective and optimality, with intervals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from textgym.checks import MOST_ROWS, shown
from textgym.commands.console import UsageError, output, untrusted
from textgym.commands.flags import EnvId, EnvOptions, find_id, parse
from textgym.evaluate import evaluate
from textgym.files import plain
from textgym.prompts import Split
from textgym_agents.commands.policies import guided, open_policy


@dataclass(frozen=True)
class EvalFlags:
    """Evaluate a policy on an environment: reward, gold, KL, objective J, optimality, length, diversity."""

    id: EnvId
    """The environment, as `textgym list` shows it."""
    agent: str = "reference"
    """A checkpoint or run folder, a .zip of Stable-Baselines3, or an agent that needs no learning: reference, random,
    or module:Class."""
    agent_class: str | None = None
    """module:Class of the agent in the folder, where it is no registered one; the agent of a .zip, as sb3-ppo."""
    trust_pickle: bool = False
    """Read a .zip of Stable-Baselines3, which runs whatever code is in the file."""
    guide: int = 0
    """Let the agent's own critic choose among its so many likeliest tokens (value-guided decoding); 0: not."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; by default those of the run, where --agent is one."""
    split: Split = "eval"
    """Which prompts: held-out ones, those of training, or those to choose settings on."""
    per_prompt: int = 16
    """Completions per prompt."""
    optimum_per_prompt: int = 128
    """Completions per prompt that the optimum is estimated from, where it is neither solved nor committed."""
    beta: float | None = None
    """Reward units per nat of KL; by default the task's."""
    seed: int = 0
    """Seeds the sampling."""
    deterministic: bool = False
    """Take the likeliest token instead of drawing."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        for name in ("per_prompt", "optimum_per_prompt"):
            if not 1 <= getattr(self, name) <= MOST_ROWS:
                raise UsageError(
                    f"{name}={shown(getattr(self, name))}: allowed is an integer in 1..{MOST_ROWS}"
                )
        if self.beta is not None and not 0 <= self.beta < float("inf"):
            raise UsageError(f"beta={self.beta!r}: allowed is a finite number >= 0")


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(EvalFlags, arguments, "eval")
    env_id = find_id(flags.id)
    env, agent = open_policy(
        env_id, flags.agent, flags.env, flags.agent_class, trust_pickle=flags.trust_pickle
    )
    agent = guided(env, agent, flags.guide)
    from textgym_agents.algorithms.fixed import reference_of
    from textgym_agents.commands.running import how_measured, measures_table
    from textgym_agents.training.measures import evaluation_row, optimum_for, optimum_summary

    task = env.unwrapped.task
    beta = task.beta if flags.beta is None else flags.beta
    optimum = optimum_for(
        agent,
        task,
        getattr(agent, "own_reference", lambda: None)(),
        Path(flags.agent),
        beta=beta,
        split=flags.split,
        per_prompt=flags.optimum_per_prompt,
        seed=flags.seed,
    )
    evaluation = evaluate(
        agent,
        task,
        reference_of(agent, task),
        optimum,
        beta=beta,
        split=flags.split,
        per_prompt=flags.per_prompt,
        seed=flags.seed,
        deterministic=flags.deterministic,
    )
    if flags.json:
        report = {"id": env_id, "agent": flags.agent, "split": flags.split, "seed": flags.seed}
        report |= evaluation.summary() | {"optimum": optimum_summary(optimum)}
        print(json.dumps(plain(report), indent=2, allow_nan=False))
        return
    console = output()
    console.print(untrusted(f"{flags.agent} on {env_id}, {flags.split} prompts"))
    console.print(measures_table({"estimate [95% interval]": evaluation_row(evaluation)}))
    console.print(how_measured(evaluation, optimum), markup=False)
    console.print(str(optimum), markup=False)
    if optimum.value is None and evaluation.objective is not None:
        console.print(f"J* is at least {evaluation.objective.low:.3f}: this policy reaches it")
