"""Train an agent: live table, held-out evaluation, and a complete run folder."""

from __future__ import annotations

from collections.abc import Set
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from textgym.checks import JsonObject, docstring
from textgym.commands.console import UsageError, output, untrusted, use_all_cores
from textgym.commands.flags import (
    EnvId,
    EnvOptions,
    checked_words,
    env_options,
    find_id,
    parse,
    parse_pair,
    typed_flags,
    with_config,
)
from textgym.files import reading
from textgym.rows import check_hub
from textgym_agents.commands.running import (
    TrainDisplay,
    flag_value,
    how_measured,
    interrupted_run,
    live_report,
    measures_table,
    named_agent,
    refuse_change,
    show_estimate,
    watched_run,
)
from textgym_agents.config import LMPPOConfig, MeasureSettings, OnPolicyConfig, TrainSettings
from textgym_agents.registry import (
    agent_class,
    agent_names,
    batch_of,
    config_class,
    make_config,
    make_env,
    with_batch,
    with_model,
)
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.ranks import world
from textgym_agents.training.trust import check_trusted

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


_AGENT = f"One of {', '.join(agent_names())} (`textgym agents` describes them), or my_file:MyAgent."


@dataclass(frozen=True)
class TrainFlags:
    """Train an agent on an environment; the agent's own settings follow below.

    --config FILE.toml sets any of the flags, and its table [env] the environment's options; flags on the command line
    take precedence.

    Example: textgym train Copy-v0 --agent rloo --episodes 2048 --batch 64
    """

    id: EnvId
    """Id of the environment, as in `textgym list`."""
    agent: Annotated[str, tyro.conf.arg(help=_AGENT)] = "lm-ppo"
    episodes: int = 10_000
    """Number of training episodes."""
    out: Path | None = None
    """The run folder; by default the next free runs/NAME-N. Existing files are never overwritten."""
    resume: bool = False
    """Resume the interrupted run in --out, with the ID, agent and settings that it was started with."""
    dry_run: bool = False
    """Train nothing; estimate the memory of the run, for policy-gradient agents on an LM."""
    live: bool = False
    """Show the run in a browser during training, like `textgym report RUN --live`; ends with the training."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; values are JSON or text."""
    measuring: MeasureSettings = field(default_factory=MeasureSettings)


@dataclass(frozen=True)
class _ResumeFlags(TrainFlags):
    """Resume an interrupted training."""

    id: EnvId = ""
    """The environment; by default that of the run in --out."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    words = checked_words(with_config(arguments))
    before = _run_to_resume(words)
    again = [] if before is None else [f"--agent={before.agent}"]
    arguments, words = [*arguments, *again], [*words, *again]
    form, usual = (TrainFlags, None) if before is None else (_ResumeFlags, _ResumeFlags(measuring=_measuring(before)))
    kind, config = _config_type(named_agent(words)), {}
    if kind is None:
        flags = parse(form, arguments, "train", default=usual)
    else:
        had = None if before is None else make_config(agent_class(before.agent), before.config)
        both = None if usual is None or had is None else (usual, had)
        flags, own = parse_pair(form, kind, arguments, "train", docstring(TrainFlags), named_agent(words), both)
        config = asdict(own)
    typed = typed_flags(words) | ({"id"} if flags.id else set())
    run_training(flags if before is None or flags.id else replace(flags, id=before.id), config, typed)


def _run_to_resume(words: list[str]) -> TrainSettings | None:
    """Return what the run was started with that --resume goes on with, None without; its agent need not be named again.

    Raises: UsageError if another agent is named, or none where the run's is a class of the user's.
    """
    out, agent = flag_value(words, "--out"), flag_value(words, "--agent")
    if out is None or "--resume" not in words:
        return None
    before = _started_with(interrupted_run(Path(out)))
    if agent is None and ":" in before.agent:
        # A file never chooses what is imported.
        raise UsageError(f"--agent: the run in {out} needs its class named: --agent {before.agent}")
    if agent not in (None, before.agent):
        raise UsageError(f"--agent {agent}: the run in {out} was started with --agent {before.agent}")
    return before


def _measuring(settings: TrainSettings) -> MeasureSettings:
    return MeasureSettings(**{each.name: getattr(settings, each.name) for each in fields(MeasureSettings)})


def run_training(flags: TrainFlags, config: JsonObject, typed: Set[str]) -> None:
    """Start or resume a training and show it. Args: typed: names of the flags that were."""
    if flags.dry_run and flags.resume:
        raise UsageError("--dry-run: allowed without --resume, with the ID and the settings of the run")
    if flags.dry_run:
        show_memory(flags, config)
        return
    settings = TrainSettings(
        find_id(flags.id), flags.agent, flags.episodes, config, _environment(flags, config), **asdict(flags.measuring)
    )
    from textgym_agents.training.loop import Training  # imports torch

    folder = None
    if flags.resume:
        folder = interrupted_run(flags.out)
        settings = _stored_settings(folder, settings, config, typed)
    use_all_cores()
    if folder is None and flags.out is not None:
        RunFolder.check_free(flags.out)
    training = Training(settings, folder, typed=flags.id if ":" in flags.id else "")
    if not training.leads:
        training.follow()
        return
    name = f"{settings.id.rpartition('/')[2].lower()}-{settings.agent.replace(':', '.')}"
    display = TrainDisplay(settings.episodes)
    with watched_run(flags.out, name, display) as out, live_report(out, display) if flags.live else nullcontext():
        result = training.run(out, display)
    console = output()
    console.print(measures_table({"before": result.before, "after": result.after}))
    console.print(how_measured(result.last, result.optimum), markup=False)
    console.print(str(result.optimum), markup=False)
    console.print(untrusted(f"run folder: {out}"))


def _environment(flags: TrainFlags, config: JsonObject) -> JsonObject:
    """Return the options of the environment, see `with_model`. Raises: FileNotFoundError if a model is nowhere."""
    check_hub("model", config.get("model"), "model")
    return with_model(find_id(flags.id), env_options(flags.env), config.get("model"))


def show_memory(flags: TrainFlags, config: JsonObject) -> None:
    """Print what a run will need in memory. Raises: UsageError if it is not a policy gradient on a causal LM."""
    from textgym.task import has_language_model, reference_model

    kind = agent_class(flags.agent)
    settings = make_config(kind, config)
    task = make_env(find_id(flags.id), 1, **_environment(flags, config)).unwrapped.task
    model = config.get("model") or (str(reference_model(task)) if has_language_model(task) else None)
    if model is None or not isinstance(settings, OnPolicyConfig):
        raise UsageError(f"--dry-run: {flags.agent} on {flags.id} is no policy gradient on a language model")
    settings = replace(settings, batch=batch_of(settings, flags.episodes))
    show_estimate(model, settings, task.max_prompt_tokens, task.max_new_tokens, task.mask is not None)


def _started_with(folder: RunFolder) -> TrainSettings:
    stored, known = folder.config(), {each.name for each in fields(TrainSettings)}
    with reading(folder.path / "config.json", "the run's settings"):
        return TrainSettings(**{name: value for name, value in stored.items() if name in known})


def _stored_settings(folder: RunFolder, settings: TrainSettings, config: JsonObject, typed: Set[str]) -> TrainSettings:
    """Return the settings that a run was started with. Raises: UsageError if a flag that is typed asks for others."""
    before, known = _started_with(folder), {each.name for each in fields(TrainSettings)}
    if "env" not in typed:  # options that are typed are the stored ones
        check_trusted(folder.path, before.env)
    for name in sorted(known & typed):
        refuse_change(folder, name, getattr(settings, name), getattr(before, name))
    # A batch that is left to the budget is compared as what it comes to.
    asked, stored = (with_batch(replace(before, config=each), world()).config for each in (config, before.config))
    made = make_config(agent_class(before.agent), stored)
    had = {} if made is None else asdict(made)  # a file may hold what was given alone
    for name in config.keys() & typed:
        refuse_change(folder, name, asked[name], had.get(name))
    return before


def _config_type(agent: str) -> type[DataclassInstance] | None:
    if agent == TrainFlags.agent:  # a mistyped flag, or --help, need not wait until torch is imported
        return LMPPOConfig
    return config_class(agent_class(agent))
