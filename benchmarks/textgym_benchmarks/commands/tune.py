"""Tune the settings of an agent by trials."""

from __future__ import annotations

import json
import logging
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from textgym.checks import JsonObject
from textgym.commands.console import UsageError, duration, folded, number, output, table, untrusted
from textgym.commands.flags import EnvId, EnvOptions, env_options, find_id, parse
from textgym_benchmarks.selection import full_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution

    from textgym_benchmarks.tune import StudyPlan, TrialOutcome, Tuning

_SHOWN = 5  # trials in the last table
_Words = Annotated[tuple[str, ...], tyro.conf.arg(metavar="SETTING=VALUE")]


@dataclass(frozen=True)
class TuneFlags:
    """Tune the settings of an agent: Optuna proposes settings, and each trial is scored on the prompts of the split
    "tune". A trial that falls behind half of the others is stopped early. The same command resumes a study.

    Example: textgym tune Copy-v0 --agent rloo --episodes 2048 --trials 20
    """

    id: EnvId
    """Id of the environment, as in `textgym list`."""
    agent: str = "lm-ppo"
    """Name of the agent, as in `textgym agents`, or my_file:MyAgent."""
    episodes: int = 4096
    """Episodes of each training."""
    trials: int = 20
    """Number of settings to try, besides the agent's own; a higher number continues an existing study."""
    seeds: int = 1
    """Number of trainings per trial; the score is their mean J."""
    search: _Words = ()
    """Settings to search: NAME=LOW..HIGH, on a logarithmic scale for a factor of ten or more, or NAME=A,B,C. By default
    the learning rate and the other settings that decide how the agent learns."""
    set: _Words = ()
    """Settings shared by all trials, as in whiten=false."""
    model: str | None = None
    """Folder or hub id of the causal LM that all trials start from, as in `textgym train`; a task of your own also
    takes its tokenizer."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; values are JSON or text."""
    engine: Literal["serial", "pool", "ray"] = "pool"
    """Where to run trials: serial (this process), pool (processes of this machine), or ray."""
    workers: int | None = None
    """Number of processes; by default one per core."""
    address: str | None = None
    """Address of a Ray cluster, as in ray://host:10001; by default Ray is started on this machine."""
    out: Path | None = None
    """Folder of the study, by default runs/tune-ID-AGENT. Existing results are never overwritten."""
    seed: int = 0
    """Seed of the proposals."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(TuneFlags, arguments, "tune")
    if flags.trials < 1:
        raise UsageError(f"--trials {flags.trials}: allowed is an integer >= 1")
    space = {}
    for word in flags.search:
        name, equals, values = word.partition("=")
        if not (equals and name and values):
            raise UsageError(f"--search {word!r}: allowed is NAME=LOW..HIGH or NAME=A,B,C")
        space[name] = values
    from textgym_agents.registry import with_model

    from textgym_benchmarks.engines import make_engine
    from textgym_benchmarks.tune import StudyPlan, Tuning

    config = env_options(flags.set, "--set", taken=())
    if flags.model is not None and config.setdefault("model", flags.model) != flags.model:
        raise UsageError(f"--model {flags.model!r}: --set has model={config['model']!r}; allowed is one of the two")
    env = with_model(find_id(flags.id), env_options(flags.env), config.get("model"))
    plan = StudyPlan(
        full_id(flags.id), flags.agent, flags.episodes, flags.seeds, config, env, space=space, seed=flags.seed
    )
    words = plan.id.rpartition("/")[2].lower(), plan.agent.replace(":", ".")
    out = flags.out or Path("runs") / f"tune-{'-'.join(words)}"
    tuning = Tuning(plan, out)
    searched = ", ".join(plan.distributions)
    output().print(untrusted(f"study: {out}; {plan.agent} on {plan.id}; searched: {searched}"), soft_wrap=True)
    logging.getLogger(__name__).info("trials")
    try:
        for event in tuning.run(make_engine(flags.engine, flags.workers, flags.address), flags.trials):
            output().print(untrusted(_line(event)), soft_wrap=True)
    except KeyboardInterrupt as interrupt:
        count = len(tuning.outcomes())
        raise KeyboardInterrupt(
            f"{count} of {flags.trials} trials have ended; the same command with the same folder ({out}) goes on"
        ) from interrupt
    show(tuning)


def _line(event: TrialOutcome | str) -> str:
    if isinstance(event, str):
        return f"{event} starts"
    score = "" if event.objective is None else f", J {event.objective:.4f}"
    settings = "".join(f", {name}={_shown(value)}" for name, value in event.settings.items())
    return f"{event.name} {event.state}{score}, {duration(event.seconds)} of CPU time{settings} {event.error}".rstrip()


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show(tuning: Tuning) -> None:
    """Print the best trials and what mattered, write the page, and say how to measure what was found."""
    console, outcomes, defaults = output(), tuning.outcomes(), tuning.defaults()
    done = [each for each in outcomes if each.state == "done"]
    names = list(tuning.plan.distributions)
    best = table("trial", number("J"), number("optimality"), *map(folded, names))
    for each in [*done[:_SHOWN], *([] if defaults is None else [defaults])]:
        scores = ("-" if score is None else f"{score:.3f}" for score in (each.objective, each.optimality))
        best.add_row(each.name, *scores, *(_shown(each.settings.get(name, "")) for name in names))
    console.print(best)
    if importance := tuning.importance():
        shares = ", ".join(f"{name} {share:.2f}" for name, share in importance.items())
        console.print(f"importance of the settings for the best trials: {shares}", soft_wrap=True)
    counts = ", ".join(
        f"{sum(each.state == state for each in outcomes)} {state}" for state in ("done", "pruned", "failed")
    )
    console.print(f"trials: {counts}")
    if done:
        best_of_all, said = done[0], "The best of many J overestimates the J of its settings."
        own, found = (None if each is None else each.objective for each in (defaults, done[0]))
        if defaults is not None and own is not None and found is not None and own >= found:
            best_of_all, said = defaults, "No trial is better than the default settings."
        console.print(
            f"{said} To evaluate on the reported prompts: {_command(tuning.plan, best_of_all.settings)}",
            soft_wrap=True,
            markup=False,
        )
    console.print(untrusted(f"page: {write_page(tuning)}"), soft_wrap=True)


def write_page(tuning: Tuning) -> Path:
    """Write the page of the trials so far into the study's folder, and return it. Raises: FileExistsError."""
    from textgym_benchmarks.pages import environment, shared_assets, write_folder

    done = [each for each in tuning.outcomes() if each.objective is not None]
    importance = tuning.importance()
    order = sorted(tuning.plan.distributions, key=lambda name: -importance.get(name, 0.0))
    page = environment("textgym_benchmarks.pages").get_template("tune.html")
    values = {"outcomes": tuning.outcomes(), "defaults": tuning.defaults(), "importance": importance, "names": order}
    plots = [_plot(name, tuning.plan.distributions[name], done) for name in order]
    text = page.render(kind="study", root="", plan=tuning.plan, plots=plots, **values)
    write_folder(tuning.out / "page", {"index.html": text, **shared_assets()}, "study")
    return tuning.out / "page" / "index.html"


def _plot(name: str, kind: BaseDistribution, outcomes: Sequence[TrialOutcome]) -> JsonObject:
    """Return the points of a picture of J over a setting: x and y in percent of the way from least to greatest."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    rows = [(each.settings[name], each.objective or 0.0, each) for each in outcomes if name in each.settings]
    if isinstance(kind, CategoricalDistribution):
        marks = [json.dumps(choice).strip('"') for choice in kind.choices]
        places = [(kind.choices.index(value) + 0.5) / len(marks) for value, _, _ in rows]
    else:
        assert isinstance(kind, FloatDistribution | IntDistribution)
        scale = math.log if kind.log else float
        marks = [f"{kind.low:g}", f"{kind.high:g}"]
        places = [(scale(value) - scale(kind.low)) / (scale(kind.high) - scale(kind.low)) for value, _, _ in rows]
    low, high = min((y for _, y, _ in rows), default=0.0), max((y for _, y, _ in rows), default=1.0)
    points = [
        {"x": 100 * x, "y": 100 * (high - y) / ((high - low) or 1.0), "of": each, "value": value}
        for x, (value, y, each) in zip(places, rows, strict=True)
    ]
    ends = not isinstance(kind, CategoricalDistribution)
    return {"name": name, "points": points, "marks": marks, "ends": ends, "low": low, "high": high}


def _command(plan: StudyPlan, settings: JsonObject) -> str:
    """Return the command line that trains with some settings."""
    words = ["textgym", "train", plan.id, "--agent", plan.agent, "--episodes", str(plan.episodes)]
    for name, value in {**plan.config, **settings}.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    env = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in plan.env.items()]
    return shlex.join([*words, *(["--env", *env] if env else [])])
