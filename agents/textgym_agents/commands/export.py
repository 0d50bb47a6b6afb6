"""Export a run's policy as a plain Hugging Face folder with a model card, also to the hub (`textgym export`)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from textgym.checks import JsonObject, first_line
from textgym.codecs.sources import encodes_prompts
from textgym.commands.console import UsageError, output, untrusted
from textgym.commands.flags import parse
from textgym.evaluate import MEASURES
from textgym.files import read_json, read_lines, reading, sync, write_text
from textgym.interrupts import disk_full_at
from textgym.render import counted
from textgym_agents.commands.running import cell
from textgym_agents.training.folder import RunFolder, run_of


@dataclass(frozen=True)
class ExportFlags:
    """Export an LM agent's policy as a plain Hugging Face folder with a model card; an adapter is merged.

    Example: textgym export runs/demo-1 --out models/helpful
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A run folder, or a checkpoint; the card of a checkpoint has measures if the run has evaluated that iteration."""
    out: Path | None = None
    """The new folder. Existing files are never overwritten."""
    push: str | None = None
    """Also upload the folder to this repository of the Hugging Face hub, USER/NAME, creating it if needed. The token
    comes from HF_TOKEN or `hf auth login`, the server from HF_ENDPOINT."""
    public: bool = False
    """Make a new repository public instead of private."""


def main(arguments: list[str]) -> None:
    """Write the folder, and push it where that was asked for. Raises: UsageError, with what to type."""
    flags = parse(ExportFlags, arguments, "export")
    if flags.out is None:
        raise UsageError("--out: the new folder is missing, as in --out models/helpful")
    if flags.push is not None and flags.push.count("/") != 1:
        raise UsageError(f"--push {flags.push!r}: allowed is USER/NAME, a repository of the hub")
    if os.path.lexists(flags.out):
        raise UsageError(f"--out {str(flags.out)!r}: it exists; allowed is a new folder")
    with disk_full_at(flags.out):
        report = _write(Path(flags.folder), flags.out)
    console, kind = output(), "model and adapter merged" if report["adapter"] else "model"
    console.print(untrusted(f"{report['agent']}: {kind}, {report['parameters']:,} parameters, in {flags.out}"))
    if report["temperature"] != 1.0:
        console.print(
            f"The agent divides its logits by temperature={report['temperature']}; generation_config.json contains it"
        )
    if flags.push is not None:
        console.print(untrusted(f"pushed to {push(flags.out, flags.push, flags.public)}"))


def _write(folder: Path, out: Path) -> JsonObject:
    """Write the folder with its card, or nothing, and return the report of `export_model`."""
    from textgym_agents.lm.checkpoint import export_model

    part = out.with_name(f".{out.name}-part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        report = export_model(folder, part)
        loader = "AutoModelForSeq2SeqLM" if encodes_prompts(part) else "AutoModelForCausalLM"
        write_text(part / "README.md", card(folder, report, loader))
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync(out.parent)
    return report


def card(folder: Path, report: JsonObject, loader: str = "AutoModelForCausalLM") -> str:
    """Return the model card, Markdown, of a run's policy; its numbers are those of the run's last evaluation.

    Those of a kept checkpoint (checkpoints/N) are of its iteration; it has none if that was not evaluated.

    Args:
        folder: of the run, or of a checkpoint of it. report: of `export_model`. loader: the class that reads the model.
    Raises: ValueError that names the file of the run that is damaged.
    """
    run = RunFolder(run_of(folder))
    kept = folder.name if folder.parent.name == "checkpoints" and run.path != folder else ""
    config = run.config() if (run.path / "config.json").is_file() else {}
    row = _evaluated(run, kept) if kept and config else None
    tags = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {'text-generation' if 'Causal' in loader else 'text2text-generation'}",
        "tags: [textgym, reinforcement-learning]",
    ]
    title = f"{report['agent']} on {config['id']}" if "id" in config else str(report["agent"])
    parts = [
        "\n".join([*tags, "---"]),
        f"# {title}",
        f"A policy of {report['parameters']:,} parameters, trained with TextGym, for `{loader}` and "
        "`AutoTokenizer`. `generation_config.json` samples as the agent did: its "
        f"temperature of {report['temperature']}, and {counted(report['suppressed'], 'token')} that it never writes. "
        "A grammar of the task is no part of it.",
        "## Measures",
        f"None: iteration {kept} was not evaluated." if kept and row is None else _measures(run, config, row),
    ]
    samples = [] if kept and row is None else _samples(run, row)
    if samples:
        which = "the last evaluation" if row is None else "this evaluation"
        parts += ["## Samples", f"The first completions of {which}, on held-out prompts:", _fenced(samples)]
    if config:
        parts += ["## Settings", _fenced([json.dumps(config, indent=1)])]
    return "\n\n".join(parts) + "\n"


def _evaluated(run: RunFolder, iteration: str) -> JsonObject | None:
    """Return the row of a run's log that has the evaluation of an iteration; None if there was no evaluation."""
    rows = (row for row in run.metrics() if str(row["iteration"]) == iteration and "eval/reward" in row)
    return next(rows, None)


def _measures(run: RunFolder, config: JsonObject, row: JsonObject | None) -> str:
    """Return a table of the measures before and after learning, J*, and the command that shows them.

    Args:
        row: of the log, with the evaluation of a kept checkpoint; None for the run's last evaluation.
    """
    path, agent, per_prompt = run.path / "result.json", "RUN", "final_per_prompt"
    if row is None and not path.is_file():
        return "None: the policy is of no finished run."
    with reading(path if path.is_file() else run.path, "the result"):
        result = read_json(path) if path.is_file() else _unfinished(config)
        before, after, optimum, beta = (result[name] for name in ("before", "after", "optimum", "beta"))
        if row is not None:
            before, after, agent = run.metrics()[0], row, f"RUN/checkpoints/{row['iteration']}"
            per_prompt = "final_per_prompt" if row["episode"] >= config["episodes"] else "eval_per_prompt"
        names = [name.removeprefix("eval/") for name in after if name.startswith("eval/terms/")]
        terms = {name: name.replace("terms/", "term ", 1).replace("|", "\\|") for name in names}
        head = "after" if row is None else f"iteration {row['iteration']}"
        lines = [f"| measure | before | {head} |", "|---|--:|--:|"]
        lines += [
            f"| {label} | {cell(before, name)} | {cell(after, name)} |"
            for name, label in (MEASURES | terms).items()
            if after.get(f"eval/{name}") is not None
        ]
        value = optimum["value"]
        if value is not None:
            star = {f"eval/J{end}": value[key] for end, key in (("", "mean"), ("_low", "low"), ("_high", "high"))}
            shown = f"{value['mean']:z.3f}" if optimum["exact"] else cell(star, "J")
            lines.append(f"| optimum J\\*, {'exact' if optimum['exact'] else 'estimated'} | | {shown} |")
        options = [f"{name}={json.dumps(option)}" for name, option in config["env"].items()]
        words = ["textgym", "eval", config["id"], "--agent", agent, "--split", config["split"]]
        words += ["--per-prompt", str(config[per_prompt]), "--seed", str(config["config"].get("seed", 0))]
        words += ["--optimum-per-prompt", str(config["optimum_per_prompt"])]
        words += ["--beta", str(beta), *(["--env", *options] if options else [])]
    how = (
        "exact, over all answers"
        if after.get("eval/exact")
        else "sampled, with 95% intervals where more than one a prompt"
    )
    unknown = "" if value is not None or not optimum["unknown"] else f" J\\* is not known: {optimum['unknown']}."
    return "\n".join(lines) + f"\n\nJ = reward - {beta} KL; {how}.{unknown} The same numbers: `{shlex.join(words)}`"


def _unfinished(config: JsonObject) -> JsonObject:
    """Return what the result of a run that has not ended would say of its J."""
    own, split = config["config"].get("beta"), config["split"]
    beta = config["task"][split]["beta"] if own is None else own
    optimum = {"value": None, "unknown": ""}
    return {"before": {}, "after": {}, "optimum": optimum, "beta": beta}


def _samples(run: RunFolder, row: JsonObject | None) -> list[str]:
    """Return the completions of the evaluation in a row of the log, or of the last one, a line of JSON each."""
    path = run.path / "samples.jsonl"
    if not path.is_file():
        return []
    with reading(path, "the samples"):
        rows = read_lines(path)
        iteration = rows[-1]["iteration"] if row is None else row["iteration"]
        names = ("prompt", "completion", "reward")
        chosen = [{name: each[name] for name in names} for each in rows if each["iteration"] == iteration]
        return [json.dumps(each, ensure_ascii=False) for each in chosen]


def _fenced(lines: list[str]) -> str:
    """Return JSON as a block of code; no line of JSON can end it."""
    return "\n".join(["~~~json", *lines, "~~~"])


def push(folder: Path, repository: str, public: bool) -> str:
    """Upload a folder to a model repository of the hub, which is made if there is none. Returns: its address.

    Raises: UsageError, with what to type, where the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export by TextGym")
    except Exception as error:  # those of its HTTP client, which is another one in other versions, are no OSError
        again = shlex.join(["hf", "upload", repository, str(folder)])
        raise UsageError(
            f"--push {repository!r}: {first_line(error)}; the model is in {folder}: after `hf auth login`, {again}"
        ) from error
    return str(address)
