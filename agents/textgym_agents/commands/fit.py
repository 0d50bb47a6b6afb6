"""Train on data: a language model on demonstrations (`sft`), a reward model on preferences (`reward-model`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from textgym.checks import JsonObject
from textgym.commands.console import UsageError, output, untrusted
from textgym.commands.flags import parse_pair, typed_flags, with_config
from textgym.rows import check_hub
from textgym_agents.commands.running import (
    FitDisplay,
    flag_value,
    interrupted_run,
    measures_table,
    refuse_change,
    watched_run,
)
from textgym_agents.rlhf.settings import FitSettings, RewardModelSettings, SFTSettings
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.loop import SilentWatcher, Watcher
from textgym_agents.training.ranks import leads

Settings = TypeVar("Settings", bound=FitSettings)
_SFT = """Fine-tune a language model on demonstrations; the loss is on the completions' tokens only.

--data is a .jsonl, .csv or .parquet file, or a data set (docs/own_task.md): "prompt" and "completion", or preferences,
of which the best answers are used. world:TASK, as in world:Helpful, takes demonstrations of the built-in world.
--config FILE.toml sets any of the flags; flags on the command line take precedence.

Example: textgym sft --data world:Helpful --out runs/sft"""
_SFT_MEASURES = {
    "loss": "loss, nats per token",
    "perplexity": "perplexity",
    "token_accuracy": "token accuracy",
}
_REWARD_MODEL = """Train a reward model on rankings: a transformer with a linear head on the last token.

--data is a .jsonl, .csv or .parquet file, or a data set (docs/own_task.md): "prompt", "chosen" and "rejected"; or
"chosen" and "rejected" as transcripts with a common beginning; or "prompt" and "completions", best first.
--config FILE.toml sets any of the flags; flags on the command line take precedence.

Example: textgym reward-model --data preferences.jsonl --base stories260K --margin 0.1"""
_REWARD_MODEL_MEASURES = {
    "accuracy": "accuracy, pairs",
    "log_loss": "log loss, nats",
    "ece": "calibration error (ECE)",
    "length_spearman": "rank correlation with length",
    "longer_accuracy": "accuracy of 'longer is better'",
}


@dataclass(frozen=True)
class OutFlags:
    """Where to write the run."""

    out: Path | None = None
    """The run folder; by default the next free runs/NAME-N. Existing files are never overwritten."""
    resume: bool = False
    """Resume the interrupted run in --out, with the settings that it was started with."""


def sft(arguments: list[str]) -> None:
    """Run `textgym sft`."""

    def train(settings: SFTSettings, out: Path, watcher: Watcher, resume: bool) -> JsonObject:
        from textgym_agents.rlhf.sft import train_sft

        return train_sft(settings, out, watcher, resume)

    _, out = _fit(SFTSettings, arguments, "sft", _SFT, train, _SFT_MEASURES)
    output().print(untrusted(f"model: {out / 'model'}"))


def reward_model(arguments: list[str]) -> None:
    """Run `textgym reward-model`."""

    def train(settings: RewardModelSettings, out: Path, watcher: Watcher, resume: bool) -> JsonObject:
        from textgym_agents.rlhf.reward_model import train_reward_model

        return train_reward_model(settings, out, watcher, resume)

    result, out = _fit(RewardModelSettings, arguments, "reward-model", _REWARD_MODEL, train, _REWARD_MODEL_MEASURES)
    for name in (*result["models"], "reliability.png"):
        if (out / name).exists():
            label = "model" if name in result["models"] else "calibration"
            output().print(untrusted(f"{label}: {out / name}"))


def _fit(
    kind: type[Settings],
    arguments: list[str],
    command: str,
    text: str,
    train: Callable[[Settings, Path, Watcher, bool], JsonObject],
    measures: Mapping[str, str],
) -> tuple[JsonObject, Path]:
    """Train, print the measures, and return the result and the run's folder."""
    arguments = _with_data(arguments)
    settings, flags = parse_pair(kind, OutFlags, arguments, command, text)
    if flags.resume:
        typed = typed_flags(with_config(arguments))
        settings = _stored(settings, interrupted_run(flags.out), command, typed)
    check_hub("data", settings.data, "dataset")
    check_hub("base", settings.base, "model")
    if not leads():
        train(settings, flags.out or Path("runs", command), SilentWatcher(), flags.resume)
        raise SystemExit(0)
    display = FitDisplay()
    with watched_run(flags.out, command, display) as out:
        result = train(settings, out, display, flags.resume)
    console, data = output(), result["data"]
    if data["held_out_rows"]:
        both = {when: result[when] for when in ("before", "after")}
        console.print(measures_table(both, labels=measures, title="held-out prompts"))
    else:
        console.print("no prompts were held out, so there is no evaluation")
    console.print(
        untrusted(
            f"{data['train_rows']} training rows, {data['held_out_rows']} held out; "
            f"{data['broken_rows']} left out, {data['rows_cut']} cut to {data['max_length']} tokens"
        )
    )
    console.print(untrusted(f"{result['steps']} steps in {result['seconds']:.0f} s; run folder: {out}"))
    return result, out


def _with_data(arguments: list[str]) -> list[str]:
    """Return command-line words with the data, which have to be there, of a run to go on with."""
    out = flag_value(arguments, "--out")
    if "--resume" not in with_config(arguments) or flag_value(arguments, "--data") or not out:
        return arguments
    return [*arguments, "--data", str(interrupted_run(Path(out)).config().get("data", "?"))]  # ?: of another command


def _stored(asked: Settings, folder: RunFolder, command: str, typed: Set[str]) -> Settings:
    """Return the settings that a run was started with.

    Raises: UsageError if the run is another command's, or a flag that is typed asks for something else.
    """
    config = folder.config()
    if config.get("command") != command:
        held = config.get("command", "another command")
        raise UsageError(f"--resume: {folder.path} holds a run of {held}, not of {command}")
    values = {}
    for field in fields(asked):
        had = values[field.name] = config.get(field.name, field.default)
        if field.name in typed:
            refuse_change(folder, field.name, getattr(asked, field.name), had)
    return type(asked)(**values)
