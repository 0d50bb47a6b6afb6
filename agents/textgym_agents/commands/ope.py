"""Evaluate a policy from logged episodes (`ope`) with all estimators of `textgym_agents.datasets.off_policy`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
import tyro

from textgym.checks import Floats, JsonObject, check_count, check_number
from textgym.commands.console import UsageError, note, number, output, table, untrusted
from textgym.commands.flags import EnvOptions, find_id, parse
from textgym.evaluate import exact_values
from textgym.files import plain
from textgym.optimum import solvable
from textgym.prompts import Split
from textgym.solver import solve
from textgym.task import Task
from textgym_agents.commands.policies import open_policy, run_options
from textgym_agents.config import MOST
from textgym_agents.protocol import Agent
from textgym_agents.training.folder import RunFolder, run_of

if TYPE_CHECKING:
    from textgym_agents.datasets.off_policy import Judged

BIASED: Final = ("truncated", "fitted Q")
"""Estimators whose intervals need not cover, see docs/ope.md."""


@dataclass(frozen=True)
class OpeFlags:
    """Evaluate a policy from episodes of another one: E[R] and J by every estimator, with 95% intervals.

    DATA is a Minari dataset or a file with columns prompt, completion_ids, token_logprobs and reward, as `textgym
    record` writes it. If the task can be solved, the true values are shown beside the estimates.

    Example: textgym ope recordings/copy-v0 --agent random --id Copy-v0
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """The log: the folder of a Minari dataset, or a .jsonl, .csv or .parquet file of rows."""
    agent: str = "reference"
    """The policy to evaluate: a checkpoint or run folder, or an agent that needs no learning."""
    id: str = ""
    """Id of the environment, as in `textgym list`; by default that of the run."""
    agent_class: str | None = None
    """module:Class of the agent in the folder, if it is not a registered one."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; by default those of the run, if --agent is one."""
    split: Split = "train"
    """Split of the log's prompts; the true values are for those of its prompts that are in the log."""
    group: int = 1
    """Number of consecutive episodes with the same prompt (--per-prompt of `textgym record`); resampled together."""
    minimum: float | None = None
    """Minimum possible return, for the lower bound; by default the one that the reward declares."""
    seed: int = 0
    """Seed of the bootstrap."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_count("seed", self.seed, 0, MOST)
        check_count("group", self.group)
        if self.minimum is not None:
            check_number("minimum", self.minimum, unit="reward units")


def main(arguments: list[str]) -> None:
    """Run `textgym ope`."""
    flags = parse(OpeFlags, arguments, "ope", first="data")
    env_id = find_id(flags.id or _own_id(Path(flags.agent)))
    env, agent = open_policy(env_id, flags.agent, flags.env, flags.agent_class, split=flags.split)
    from textgym_agents.algorithms.fixed import reference_of
    from textgym_agents.datasets.logged import logged
    from textgym_agents.datasets.off_policy import judge, lower_bound
    from textgym_agents.datasets.reading import read_recording

    task = env.unwrapped.task
    recording = read_recording(flags.data, task)
    try:
        rewards = logged(recording, agent, task)
    except ValueError as error:
        raise ValueError(f"data={flags.data!r}: {error}") from error
    charged = logged(recording, agent, task, reference_of(agent, task))
    judged = {"reward": judge(rewards, flags.seed, flags.group), "objective": judge(charged, flags.seed, flags.group)}
    least, no_bound = _least(task, recording.returns) if flags.minimum is None else (flags.minimum, "")
    weights = rewards.weights
    known = not np.isnan(weights).any()
    judged_at_all = judged["reward"]["importance sampling"].estimate is not None
    bound = lower_bound(rewards, least, flags.group) if judged_at_all and least is not None else None
    sequences = recording.sequences
    prompts = [tuple(ids[:start]) for ids, start in zip(sequences.input_ids.tolist(), sequences.starts, strict=True)]
    report: JsonObject = {
        "id": env_id,
        "data": flags.data,
        "agent": flags.agent,
        "episodes": len(weights),
        "logged_reward": float(recording.returns.mean()),
        "mean_weight": float(weights.mean()) if known else None,
        "lower_bound": bound,
        "truth": _truth(agent, task, flags.split, prompts),
    }
    estimates = {name: {key: asdict(each) for key, each in found.items()} for name, found in judged.items()}
    if flags.json:
        print(json.dumps(plain(report | {"estimates": estimates}), indent=2, allow_nan=False))
        return
    console = output()
    console.print(untrusted(f"{flags.agent} on {env_id}, evaluated from {len(weights)} episodes of {flags.data}"))
    shown = table("estimator", *map(number, ("E[R] [95%]", "J [95%]", "samples")), collapse_padding=True)
    for name in judged["reward"]:
        both = [judged[key][name] for key in ("reward", "objective")]
        sizes = ", ".join(f"{each.effective_samples:.0f}" for each in both)
        shown.add_row(name, *(str(each.estimate or "not known") for each in both), sizes.replace("nan", "-"))
    shown.add_row("lower bound, 95%", "not known" if bound is None else f"{bound:.3f}", "", "")
    if report["truth"] is not None:
        shown.add_row("truth", *(f"{report['truth'][name]:.3f}" for name in ("reward", "objective")), "")
    console.print(shown)
    console.print("samples: effective sample sizes for E[R] and J", markup=False)
    console.print(f"logged policy: mean return {report['logged_reward']:.3f}", markup=False)
    for why in dict.fromkeys(each.why for found in judged.values() for each in found.values() if each.why):
        console.print(f"not known: {why}", markup=False)
    if known and least is None:
        console.print(f"no lower bound: {no_bound}; pass --minimum", markup=False)
    if flags.group == 1 and (count := _together(prompts)) > 1:
        note(f"every {count} consecutive episodes have the same prompt: use --group {count} to resample them together")
    _warn(judged["reward"], weights)


def _warn(judged: Mapping[str, Judged], weights: Floats) -> None:
    """Say on standard error which intervals are not to be trusted; weights (B,) of NaN are those that are not known."""
    if shown := [name for name in BIASED if judged[name].estimate]:
        whose = (
            f"intervals of {' and '.join(shown)} ignore their" if shown[1:] else f"interval of {shown[0]} ignores its"
        )
        note(f"the {whose} bias and may miss the true value (docs/ope.md)")
    if abs(weights.mean() - 1) > 4 * weights.std() / np.sqrt(len(weights)) + 1e-6:
        note(
            f"the mean weight is {weights.mean():.3f}, not 1: the policy writes texts that are not in the log, or its "
            "log-probabilities belong to other tokens; do not trust the intervals above"
        )


def _own_id(run: Path) -> str:
    """Return the id of a run. Raises: UsageError if there is none."""
    if run_options(run) is None or "id" not in (config := RunFolder(run_of(run)).config()):
        raise UsageError("--id: the environment is missing, as in --id Copy-v0; only a run folder names its own")
    return str(config["id"])


def _least(task: Task, returns: Floats) -> tuple[float | None, str]:
    """Return the least return that the reward declares, or None and why there is none. Args: returns: of the log."""
    least = getattr(task.reward, "minimum", None)
    if least is None or task.noisy or task.scorer.pay == "every":
        return None, "the reward declares no minimum"
    failed = {"penalty": task.penalty, "skip": 0.0}.get(task.on_error, float(least))
    declared = min(float(least), failed, 0.0 if task.gamma < 1 else failed)
    if returns.min() < declared:
        return None, f"a return in the log is less than the {declared:g} that the reward declares"
    return declared, ""


def _together(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many episodes in a row answer each prompt; 1 where that differs, or there is one prompt."""
    lengths = {len(list(same)) for _, same in groupby(prompts)}
    return lengths.pop() if len(lengths) == 1 and len({*prompts}) > 1 else 1


def _truth(agent: Agent, task: Task, split: str, prompts: Sequence[tuple[int, ...]]) -> JsonObject | None:
    """Return the exact E[R] and J of an agent on the log's prompts.

    None where the task cannot be solved, the split lacks a prompt, or the agent does not tell.
    """
    places = {prompt.ids: place for place, prompt in enumerate(task.encoded(split))}
    if not solvable(task, split) or not places.keys() >= {*prompts}:
        return None
    found = exact_values(agent, solve(task, agent.own_reference(), split=split))
    if found is None:
        return None
    chosen = [places[ids] for ids in prompts]
    values = {"reward": found.prompt_returns, "objective": found.prompt_objectives}
    return {name: float(each[chosen].mean()) for name, each in values.items()}
