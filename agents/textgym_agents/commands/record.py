"""Record an agent's episodes as a Minari dataset: tokens, rewards and log-probabilities."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from textgym.checks import JsonObject
from textgym.commands.console import UsageError, output, untrusted
from textgym.commands.flags import EnvId, EnvOptions, find_id, parse
from textgym.interrupts import disk_full_at
from textgym.prompts import Split
from textgym_agents.commands.policies import guided, open_policy


@dataclass(frozen=True)
class RecordFlags:
    """Record an agent's episodes as a Minari dataset, which behaviour-cloning and dpo take as --data."""

    id: EnvId
    """The environment, as `textgym list` shows it."""
    out: Path | None = None
    """The dataset's folder, named like a Minari id: helpful-ppo-v0. What is there is never overwritten."""
    agent: str = "reference"
    """A checkpoint or run folder, a .zip of Stable-Baselines3, or an agent that needs no learning: reference, random,
    or module:Class."""
    agent_class: str | None = None
    """module:Class of the agent in the folder, where it is no registered one; the agent of a .zip, as sb3-ppo."""
    trust_pickle: bool = False
    """Read a .zip of Stable-Baselines3, which runs whatever code is in the file."""
    guide: int = 0
    """Let the agent's own critic choose among its so many likeliest tokens (value-guided decoding); 0: not."""
    episodes: int = 1000
    """How many."""
    per_prompt: int = 1
    """Consecutive episodes that answer the same prompt; 2 or more for pairs."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; by default those of the run, where --agent is one."""
    split: Split = "train"
    """Which prompts: those of training, held-out ones, or those to choose settings on."""
    seed: int = 0
    """Seeds prompts and tokens."""
    deterministic: bool = False
    """Take the likeliest token instead of drawing."""
    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(RecordFlags, arguments, "record")
    if flags.out is None:
        raise UsageError("--out: the dataset's folder is missing, as in --out recordings/helpful-v0")
    env_id = find_id(flags.id)
    env, agent = open_policy(
        env_id, flags.agent, flags.env, flags.agent_class, trust_pickle=flags.trust_pickle
    )
    agent = guided(env, agent, flags.guide)
    from textgym_agents.datasets import record

    with disk_full_at(flags.out):
        dataset = record(
            agent,
            env,
            flags.episodes,
            flags.out,
            per_prompt=flags.per_prompt,
            seed=flags.seed,
            deterministic=flags.deterministic,
            split=flags.split,
        )
    returns = [float(episode.rewards.sum()) for episode in dataset.iterate_episodes()]
    report: JsonObject = {
        "out": str(flags.out),
        "dataset": dataset.id,
        "episodes": int(dataset.total_episodes),
        "tokens": int(dataset.total_steps),
        "return": sum(returns) / len(returns),
        "megabytes": sum(path.stat().st_size for path in flags.out.rglob("*") if path.is_file()) / 1e6,
    }
    if flags.json:
        print(json.dumps({"id": env_id, "agent": flags.agent, "split": flags.split} | report, indent=2))
        return
    console = output()
    console.print(untrusted(f"{flags.agent} on {env_id}, {flags.split} prompts"))
    console.print(
        f"{report['episodes']} episodes, {report['tokens']} tokens, mean return {report['return']:.3f}, "
        f"{report['megabytes']:.1f} MB",
        markup=False,
    )
    console.print(untrusted(f"dataset {report['dataset']} in {flags.out}"))
