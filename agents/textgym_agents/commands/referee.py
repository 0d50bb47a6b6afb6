"""Compare all policy-gradient estimators with the exact gradient of a solvable task, for samples of several ages."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
from rich.console import Console

from textgym.checks import JsonObject, check_count, check_number
from textgym.commands.console import UsageError, number, table
from textgym.commands.flags import EnvId, EnvOptions, env_options, find_id, parse
from textgym.files import make_folder, plain, write_json
from textgym_agents.exact.referee import Verdict, referee
from textgym_agents.exact.samples import samples_of
from textgym_agents.lm.agent import LMAgent
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.processors import Cut, Processors
from textgym_agents.registry import agent_class, load_agent, make_agent, make_config, make_env


@dataclass(frozen=True)
class RefereeFlags:
    """Compare every policy-gradient estimator with the exact gradient, by enumeration.

    An agent learns for a while. The wanted gradient is that of its last policy; the samples come from the policies some
    updates earlier. Completions are drawn only as a check, and where a row says so.

    Example: textgym referee Stop-v0 --stale 0 1 4
    """

    id: EnvId
    """A solvable task; a short name is enough."""
    agent: str = "rloo"
    """A policy-gradient agent on a language model, whose updates produce the policies."""
    checkpoint: Path | None = None
    """Folder of a saved agent to start from; by default a new agent with batches of 64 episodes."""
    updates: int = 8
    """Number of updates before the policy whose gradient is wanted."""
    stale: tuple[int, ...] = (0, 1, 2, 4)
    """Ages of the samples, in updates."""
    top_p: float | None = None
    """Draw samples with top-p; the wanted gradient is that of the policy without it."""
    group: int = 4
    """Number of completions of a prompt to compare."""
    env: EnvOptions = ()
    """Options of the task, as in difficulty=2."""
    seed: int = 0
    """Seed of the training and the check."""
    json: bool = False
    """Print JSON."""
    out: Path | None = None
    """Folder for referee.json and referee.png, a picture of the cosines."""

    def __post_init__(self) -> None:
        check_count("updates", self.updates, 0)
        check_count("group", self.group, 2)
        if not self.stale or not all(0 <= age <= self.updates for age in self.stale):
            raise ValueError(f"stale={self.stale}: allowed are integers in 0..updates={self.updates}")
        if self.top_p is not None:
            check_number("top_p", self.top_p, 1e-9, 1)


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(RefereeFlags, arguments, "referee")
    if flags.out is not None and (flags.out / "referee.json").exists():
        raise UsageError(f"--out {flags.out}: holds a referee.json; allowed is another folder")
    found = judge(flags)
    report = [{"stale": age, "rows": [_row(each) for each in rows]} for age, rows in found.items()]
    if flags.out is not None:
        make_folder(flags.out)
        asked = plain(asdict(flags) | {"id": find_id(flags.id)})
        told = {name: value for name, value in asked.items() if name not in ("stale", "json", "out")}
        write_json(flags.out / "referee.json", told | {"ages": report})
        draw(found, flags.out / "referee.png")
    if flags.json:
        print(json.dumps(report, indent=2))
        return
    cut = "" if flags.top_p is None else f", drawn with top-p {flags.top_p}"
    for age, rows in found.items():
        _print(f"{find_id(flags.id)}, age of the samples: {age}{cut}", rows)
    if flags.out is not None:
        Console().print(f"written to {flags.out}", markup=False)


def judge(flags: RefereeFlags) -> dict[int, list[Verdict]]:
    """Return the table of each age. Raises: UsageError for an agent that is no policy gradient on a language model."""
    kind = agent_class(flags.agent)
    settings: dict[str, object] = {"batch": 64, "seed": flags.seed, "device": "cpu"}
    if not issubclass(kind, LMAgent):
        raise UsageError(f"--agent {flags.agent}: allowed is a policy gradient on a language model, such as rloo")
    env = make_env(find_id(flags.id), 64, **env_options(flags.env))
    made = (
        make_agent(kind, env, make_config(kind, settings))
        if flags.checkpoint is None
        else load_agent(flags.checkpoint, env, flags.agent)
    )
    agent = cast("LMAgent", made)
    policies: list[LMPolicy] = [copy.deepcopy(agent.policy)]
    env.reset(seed=flags.seed)

    def after(metrics: object) -> bool:
        policies.append(copy.deepcopy(agent.policy))
        return len(policies) > flags.updates

    if flags.updates:
        agent.learn(env, env.num_envs * flags.updates, after)
    while len(policies) <= flags.updates:  # an update may take more episodes than there are environments
        agent.learn(env, env.num_envs, after)
    current = policies[-1]
    found = {}
    for age in flags.stale:
        behaviour = copy.deepcopy(policies[-1 - age])
        if flags.top_p is not None:
            behaviour.cut = Cut(agent.task, Processors(top_p=flags.top_p))
        samples = samples_of(agent.task, current, behaviour, agent.reference)
        found[age] = referee(samples, flags.group, seed=flags.seed)
    return found


def _row(verdict: Verdict) -> JsonObject:
    """Return a verdict as JSON values; NaN is null."""
    moments = asdict(verdict.moments) | {"variance_per_sample": verdict.moments.variance_per_sample}
    values = {"part": verdict.part, "source": verdict.source, **moments}
    values |= {"sampled": verdict.sampled[0], "sampled_error": verdict.sampled[1]}
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in values.items()
    }


def _print(title: str, rows: Sequence[Verdict]) -> None:
    heads = ("bias", "cosine", "variance", "along", "sampled")
    shown = table("of", "estimator", *(number(head) for head in heads), title=title)
    for row in rows:
        each = row.moments
        drawn = each.bias_error > 0
        bias = _with_error(each.relative_bias, each.bias_error * each.relative_bias / each.bias if drawn else 0.0)
        spread = f"{each.variance_per_sample:.3g}" + f" ± {each.samples * each.variance_error:.1g}" * drawn
        name = each.estimator + ", Monte Carlo" * drawn
        shown.add_row(
            row.part, name, bias, _figure(each.cosine), spread, _figure(each.along), _with_error(*row.sampled)
        )
    console = Console(highlight=False)
    console.print(shown)
    console.print(
        "bias: |E g - gradient| over |gradient|; variance: of one estimate, times its completions; along: E g along "
        "the gradient, in its units; sampled: that of 20,000 completions that were drawn, with its standard error, as "
        "is every other ±. Empty: the gradient is 0, or values are means of completions, which are not drawn. A row "
        "of Monte Carlo has too many groups to sum over. The papers are in --json and in docs/referee.md.",
        markup=False,
    )


def _with_error(value: float, error: float) -> str:
    return _figure(value) + (f" ± {error:.1g}" if error else "") if not np.isnan(value) else ""


def _figure(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"


def draw(found: Mapping[int, Sequence[Verdict]], path: Path) -> None:
    """Draw the cosines of all estimators at all ages. Raises: ModuleNotFoundError without matplotlib."""
    import matplotlib.pyplot as plt

    names = [row.moments.estimator for row in next(iter(found.values()))]
    cosines = np.array([[row.moments.cosine for row in rows] for rows in found.values()]).T
    figure, axes = plt.subplots(figsize=(4 + 0.7 * len(found), 0.26 * len(names) + 1), layout="constrained")
    image = axes.imshow(cosines, cmap="RdYlBu", vmin=-1, vmax=1, aspect="auto")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xticks(range(len(found)), [str(age) for age in found])
    axes.set_xlabel("age of the samples, updates")
    for (row, column), value in np.ndenumerate(cosines):
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, label="cosine to the exact gradient")
    figure.savefig(path, dpi=150)
    plt.close(figure)
