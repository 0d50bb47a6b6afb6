"""Trains an agent: live table, held-out evaluation, and a run folder with everything."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from textgym.checks import docstring
from textgym.commands.console import UsageError, output, untrusted
from textgym.commands.flags import EnvId, EnvOptions, env_options, find_id, import_user_module, parse
from textgym.files import reading
from textgym.prompts import HeldOut


@dataclass(frozen=True)
class TrainFlags:
    """Train an agent on an environment; what the agent itself can be told follows below."""

    id: EnvId
    """The environment, as `textgym list` shows it."""
    agent: str = "lm-ppo"
    """A registered agent, or module:Class."""
    episodes: int = 10_000
    """Episodes to learn from."""
    out: Path | None = None
    """The run's folder; by default the next free runs/NAME-N. What is there is never overwritten."""
    resume: bool = False
    """Go on with the interrupted run in --out, with the settings that it was started with."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; values are JSON or text."""
    eval_every: int = 10
    """Iterations between evaluations on held-out prompts; 0: before and after learning only."""
    eval_points: int = 0
    """Evaluations on the way at even distances over the episodes, in place of --eval-every."""
    eval_per_prompt: int = 2
    """Completions per held-out prompt of the evaluations on the way."""
    final_per_prompt: int = 16
    """Completions per held-out prompt of the first and the last evaluation."""
    optimum_per_prompt: int = 64
    """Completions per held-out prompt that the optimum is estimated from."""
    save_every: int = 10
    """Iterations between checkpoints."""
    samples: int = 8
    """Held-out prompts whose completions every evaluation writes down."""
    split: HeldOut = "eval"
    """Which held-out prompts: those to report, or those to choose settings on."""


def main(arguments: list[str]) -> None:
    """Runs the command."""
    name = named_agent(arguments)
    config_type = _config_type(name)
    parts: list[Any] = [("flags", TrainFlags)]
    if config_type is not None:
        parts.append(("config", Annotated[config_type, arg(name="")], dataclasses.field()))
    combined = make_dataclass("Train", parts, frozen=True)
    combined.__doc__ = docstring(TrainFlags)
    given: Any = parse(combined, arguments, "train")
    config = asdict(given.config) if config_type is not None else {}
    run_training(given.flags, config)


def named_agent(arguments: list[str]) -> str:
    """The value of `--agent` among command-line words: the other flags depend on it."""
    name = "lm-ppo"
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--agent":
            name = following
        elif word.startswith("--agent="):
            name = word.removeprefix("--agent=")
    return name


def run_training(flags: TrainFlags, config: dict[str, Any]) -> None:
    """Starts or resumes a training and shows it."""
    from textgym.commands.console import Display, use_all_cores
    from textgym_agents.commands.running import how_measured, measures_table
    from textgym_agents.training.folder import RunFolder, run_folder
    from textgym_agents.training.loop import Training

    settings = _settings(flags, config)
    folder = None
    if flags.resume:
        if flags.out is None:
            raise UsageError("--resume: --out must name the folder of the interrupted run")
        folder = RunFolder.reopen(flags.out)
        settings = _stored_settings(folder, settings, flags, config)
    use_all_cores()
    name = settings.id.rpartition("/")[2].lower()
    if folder is None and flags.out is not None:
        RunFolder.check_free(flags.out)
    training = Training(settings, folder)
    name = f"{name}-{settings.agent.replace(':', '.')}"
    with run_folder(flags.out, name) as out, Display(settings.episodes) as display:
        result = training.run(out, display)
    console = output()
    console.print(measures_table({"before": result.before, "after": result.after}))
    console.print(how_measured(result.last, result.optimum), markup=False)
    console.print(str(result.optimum), markup=False)
    console.print(untrusted(f"run folder: {out}"))


def _settings(flags: TrainFlags, config: dict[str, Any]) -> Any:
    from textgym_agents.config import TrainSettings

    shared = {field.name for field in fields(TrainSettings)} - {"id", "env", "config"}
    values = {name: getattr(flags, name) for name in shared}
    return TrainSettings(id=find_id(flags.id), env=env_options(flags.env), config=config, **values)


def _stored_settings(folder: Any, settings: Any, flags: TrainFlags, config: dict[str, Any]) -> Any:
    """The settings that a run was started with. Raises: UsageError if a flag asks for something else."""
    from textgym_agents.config import TrainSettings

    stored = folder.config()
    known = {field.name for field in fields(TrainSettings)}
    with reading(folder.path / "config.json", "the run's settings"):
        before = TrainSettings(**{name: value for name, value in stored.items() if name in known})
    if ":" in before.agent and flags.agent != before.agent:
        # A file never chooses what is imported.
        raise UsageError(f"--agent: the run in {folder.path} needs its class named: --agent {before.agent}")
    defaults = {field.name: field.default for field in fields(TrainFlags)}
    kind = _config_type(before.agent)
    own_defaults = {} if kind is None else asdict(kind())
    for name in sorted(known - {"config"}):
        asked, had = getattr(settings, name), getattr(before, name)
        is_default = name != "id" and getattr(flags, name) == defaults[name]
        if asked != had and not is_default:
            raise _differs("ID" if name == "id" else name, asked, had, folder)
    for name, asked in config.items():
        had = before.config.get(name)
        if asked not in (had, own_defaults.get(name)):
            raise _differs(name, asked, had, folder)
    return before


def _differs(name: str, asked: Any, had: Any, folder: Any) -> UsageError:
    flag = name if name == "ID" else f"--{name.replace('_', '-')}"
    return UsageError(f"{flag} {asked!r}: the run in {folder.path} was started with {had!r}")


def _config_type(agent: str) -> Any:
    from textgym_agents.registry import agent_class, config_class

    if ":" in agent:
        import_user_module(agent.partition(":")[0])
    return config_class(agent_class(agent))
