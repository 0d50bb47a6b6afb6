"""Sample candidates from a policy, rank them with a noisy annotator, and write the rankings; or check such a file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.table import Table
from rich.text import Text

from textgym.checks import MOST_ROWS, JsonObject, shown
from textgym.commands.console import UsageError, number, output, table, untrusted
from textgym.commands.flags import EnvOptions, find_id, parse
from textgym.interrupts import disk_full_at
from textgym.prompts import Split
from textgym.rows import SUFFIXES
from textgym_agents.commands.policies import open_policy

if TYPE_CHECKING:
    from textgym.preferences import Collected, Demonstration, Ranking, Reading

_LISTED = 20  # broken rows that are shown
_SHOWN = 160  # characters of an example's text


def check_file(path: Path, as_json: bool) -> None:
    """Print what the file holds. Raises: UsageError, after that, if a row is broken."""
    from textgym.preferences import read_demonstrations, read_rankings

    reading: Reading[Ranking] | Reading[Demonstration] = read_rankings(path, on_broken="skip")
    if not reading.rows:
        demonstrations = read_demonstrations(path, on_broken="skip")
        reading = demonstrations if demonstrations.rows else reading
    report = _report(reading)
    if as_json:
        problems = [asdict(problem) for problem in reading.problems]
        print(json.dumps(report | {"problems": problems}, indent=2, allow_nan=False))
    else:
        console = output()
        console.print(untrusted(f"{path}: format {reading.format or 'unknown'}"))
        console.print(_table(report))
        for problem in reading.problems[:_LISTED]:
            console.print(untrusted(f"line {problem.line}: {problem.message}"))
        if len(reading.problems) > _LISTED:
            console.print(f"and {len(reading.problems) - _LISTED} more")
    if reading.problems:
        total = len(reading.rows) + len(reading.problems)
        raise UsageError(
            f"{path}: {len(reading.problems)} of {total} rows are broken (--on-broken skip trains without them)"
        )


def _report(reading: Reading[Ranking] | Reading[Demonstration]) -> JsonObject:
    from textgym.preferences import Ranking, disagreement
    from textgym.preferences.data import longer_wins, several_turns, text_lengths

    rows = reading.rows
    report: JsonObject = {
        "format": reading.format,
        "rows": len(rows),
        "broken": len(reading.problems),
        "characters": text_lengths(rows),
    }
    if not rows or not isinstance(rows[0], Ranking):
        return report
    sizes = [len(row.completions) for row in rows]
    report |= {
        "prompts": len({row.prompt for row in rows}),
        "completions": [min(sizes), max(sizes)],
        "longer_wins": longer_wins(rows),
        "cut_off": sum(not ended for row in rows for ended in row.ended or ()),
    }
    if reading.format == "transcripts":
        report["several_turns"] = several_turns(rows)
    if any(row.scores for row in rows):
        report["disagreement"] = disagreement(rows)
    return report


def _table(report: JsonObject) -> Table:
    found = table("what", number("value"))
    found.add_row("good rows", str(report["rows"]))
    found.add_row("broken rows", str(report["broken"]))
    if "prompts" in report:
        low, high = report["completions"]
        found.add_row("different prompts", str(report["prompts"]))
        found.add_row("completions in a row", str(low) if low == high else f"{low} to {high}")
    for name, values in report["characters"].items():
        lengths = f"{values['mean']:.0f} / {values['median']:.0f} / {values['max']:.0f}"
        found.add_row(f"{name}: mean / median / longest, characters", lengths)
    for name, label, form in (
        ("longer_wins", "the longer one is preferred, of all pairs", ".3f"),
        ("disagreement", "preferred against its score, of all pairs", ".3f"),
        ("cut_off", "completions marked as cut off", ""),
        ("several_turns", "rows that part before the last turn", ""),
    ):
        if name in report:
            found.add_row(label, f"{report[name]:{form}}")
    return found


@dataclass(frozen=True)
class PreferencesFlags:
    """Collect preferences: sample candidates from a policy and let a Bradley-Terry annotator rank them by gold reward.

    Example: textgym preferences Helpful-v0 --n 100 --out preferences.jsonl
    """

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")] = ""
    """The environment, as in `textgym list`; omit it with --check."""
    out: Path | None = None
    """The .jsonl file to write. Existing files are never overwritten."""
    policy: str = "reference"
    """A checkpoint or run folder, a Stable-Baselines3 .zip, or an agent that needs no learning: reference, random, or
    module:Class."""
    agent_class: str | None = None
    """module:Class of the agent in the folder, if it is not registered; for a .zip the agent's name, as in sb3-ppo."""
    trust_pickle: bool = False
    """Load a Stable-Baselines3 .zip, which runs any code in the file."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; by default those of the run, if --policy is one."""
    split: Split = "train"
    """Prompts: train, eval (held-out), or tune (for choosing settings)."""
    n: int = 1000
    """Number of prompts to draw; some may give no ranking."""
    candidates: int = 2
    """Number of completions to rank for each prompt."""
    noise: float = 0.0
    """Temperature of the annotator, reward units; 0: no mistakes."""
    keep_ties: bool = False
    """Rank completions of equal gold reward at random instead of keeping only one of them."""
    format: Literal["trl", "transcripts", "rankings"] = "trl"
    """trl: prompt, chosen, rejected. transcripts: chosen and rejected dialogues. rankings: prompt, completions."""
    seed: int = 0
    """Seed of prompts, completions and annotator."""
    examples: int = 3
    """Number of rankings to show."""
    check: Path | None = None
    """Read this file of preferences or demonstrations, and report its contents and problems."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("candidates", 2), ("examples", 0)):
            if not least <= getattr(self, name) <= MOST_ROWS:
                raise UsageError(f"{name}={shown(getattr(self, name))}: allowed is an integer in {least}..{MOST_ROWS}")
        if self.seed < 0:
            raise UsageError(f"seed={shown(self.seed)}: allowed is an integer >= 0")
        if not 0 <= self.noise < math.inf:
            raise UsageError(f"noise={self.noise!r}: allowed is a finite number >= 0")
        if self.check is not None and (self.id or self.out is not None):
            raise UsageError("--check: reads a file, without an ID and without --out")
        if self.check is None and not self.id:
            raise UsageError("ID: the environment is missing (or --check FILE)")
        if self.check is None and self.out is None:
            raise UsageError("--out: the file to write is missing, as in --out preferences.jsonl")
        if self.out is not None and self.out.suffix in SUFFIXES[1:]:
            raise UsageError(f"--out {str(self.out)!r}: rows are written as JSON lines, so the name must end in .jsonl")
        if self.out is not None and self.out.exists():
            raise UsageError(f"--out {str(self.out)!r}: is there already and is not overwritten; choose another name")


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(PreferencesFlags, arguments, "preferences")
    if flags.check is not None:
        check_file(flags.check, flags.json)
        return
    env_id = find_id(flags.id)
    collected, report = _collect(flags, env_id)
    if flags.json:
        print(json.dumps({"id": env_id} | report, indent=2, allow_nan=False))
        return
    console = output()
    title = f"{flags.policy} on {env_id}, {flags.split} prompts, {flags.candidates} candidates, noise {flags.noise:g}"
    console.print(untrusted(title))
    console.print(_counts(report))
    for ranking in collected.rankings[: flags.examples]:
        console.print(_example(ranking))
    console.print(untrusted(f"{report['rows']} rows in {flags.out} (format {flags.format})"))


def _collect(flags: PreferencesFlags, env_id: str) -> tuple[Collected, JsonObject]:
    """Collect and write. Raises: UsageError if no prompt gave a ranking."""
    from textgym.preferences import Ranking, collect, disagreement, write_rankings
    from textgym.preferences.data import as_dialogue

    assert flags.out is not None
    # Before the work, which would be lost.
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    env, policy = open_policy(
        env_id, flags.policy, flags.env, flags.agent_class, "--policy", flags.trust_pickle, flags.split
    )
    task = env.unwrapped.task
    if flags.format == "transcripts":
        for text in task.prompts[flags.split].texts:
            as_dialogue(Ranking(text, ("a", "b")))
    collected = collect(
        task,
        policy,
        n=flags.n,
        candidates=flags.candidates,
        noise=flags.noise,
        split=flags.split,
        seed=flags.seed,
        keep_ties=flags.keep_ties,
    )
    lost = {f"prompts_{reason}": collected.dropped.get(reason, 0) for reason in ("alike", "tied")}
    if not collected.rankings:
        raise UsageError(
            f"none of {collected.prompts} prompts gave a ranking: of {lost['prompts_alike']} the answers were all "
            f"alike or empty, of {lost['prompts_tied']} all equally good (--keep-ties lets a coin rank those)"
        )
    rankings = collected.rankings
    if flags.format == "transcripts":
        rankings = [as_dialogue(ranking) for ranking in rankings]
    with disk_full_at(flags.out):
        rows = write_rankings(flags.out, rankings, flags.format)
    report = {
        "out": str(flags.out),
        "rows": rows,
        "rankings": len(rankings),
        "prompts": collected.prompts,
        **lost,
        "ties": collected.tied,
        "short": collected.short,
        "cut_off": sum(not ended for ranking in rankings for ended in ranking.ended or ()),
        "completions": sum(len(ranking.completions) for ranking in rankings),
        "disagreement": disagreement(rankings),
        "failures": collected.failures,
    }
    return collected, report


def _counts(report: JsonObject) -> Table:
    found = table("what", number("count"))
    for name, value in (
        ("rows written", report["rows"]),
        ("rankings", report["rankings"]),
        ("prompts drawn", report["prompts"]),
        ("  without two different answers", report["prompts_alike"]),
        ("  all answers tied in gold", report["prompts_tied"]),
        ("answers left out as tied", report["ties"]),
        ("rankings of fewer candidates", report["short"]),
        ("answers cut off", f"{report['cut_off']} of {report['completions']}"),
        ("failures of the gold reward", sum(report["failures"].values())),
        ("annotator against gold, of all pairs", f"{report['disagreement']:.3f}"),
    ):
        found.add_row(name, str(value))
    return found


def _example(ranking: Ranking) -> Text:
    assert ranking.scores is not None
    text = untrusted(f"prompt   {_cut(ranking.prompt)}")
    for completion, score in zip(ranking.completions, ranking.scores, strict=True):
        text.append("\n").append_text(untrusted(f"{score:7.3f}  {_cut(completion)}"))
    return text.append("\n")


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
