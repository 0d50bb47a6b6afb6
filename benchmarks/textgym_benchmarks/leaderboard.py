"""The leaderboard: an entry is one file, which one command runs beside `lm-ppo` and another one reruns.

    python -m textgym_benchmarks.leaderboard run benchmarks/entries/rloo.py
    python -m textgym_benchmarks.leaderboard check benchmarks/entries/rloo.py
    python -m textgym_benchmarks.leaderboard table

`run` writes the results of an entry to a JSON file beside it; `check` exits with code 1 if other seeds do not reproduce
them; `table` rewrites docs/leaderboard.md. The first two resume an interrupted run.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes, Positional, Suppress

from textgym.checks import Floats, JsonObject, check_number
from textgym.commands.console import script
from textgym.files import plain, read_json, reading, write_json, write_text
from textgym_benchmarks.commands.bench import LiveTable
from textgym_benchmarks.pages import interval, markdown
from textgym_benchmarks.results.format import FORMAT
from textgym_benchmarks.results.rows import settled
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.run.runner import BenchInterrupted, run_suite
from textgym_benchmarks.selection import LARGEST_ENTRY, Entrant, check_day, read_entrant
from textgym_benchmarks.statistics import Interval, leads, mean_of_runs
from textgym_benchmarks.suite import Cell, Evaluation, Suite, check_integer, from_fields
from textgym_benchmarks.suite_folder import RUN_COUNTED

ENTRIES: Final = Path("benchmarks/entries")
PAGE: Final = Path("docs/leaderboard.md")
CHECK_SEED: Final = 1000  # the first one of `check`


@dataclass(frozen=True)
class Challenge:
    """What all entries are asked.

    Args:
        id: of the environment. episodes: the budget.
        level: the optimality that time is taken to. seeds: the fewest of a claim, and of a rerun.
        unit, unit_settings: the agent whose CPU time to the level is the unit.
        evaluation: how a policy is measured; its points are the marks.
    """

    id: str = "textgym/Helpful-v0"
    episodes: int = 20_480
    level: float = 0.9
    unit: str = "lm-ppo"
    unit_settings: Mapping[str, object] = field(default_factory=lambda: {"learning_rate": 5e-4})
    seeds: int = 5
    evaluation: Evaluation = field(default_factory=lambda: Evaluation(16, 8, 16, optimum_per_prompt=0, samples=0))


HELPFUL: Final = Challenge()


@dataclass(frozen=True)
class SeedOutcome:
    """What a training came to.

    Args:
        seed: its seed. optimality: after learning.
        seconds: CPU seconds of learning to the level; None where it was not reached.
    """

    seed: int
    optimality: float
    seconds: float | None

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, 0)
        check_number("optimality", self.optimality)
        check_number("seconds", 1.0 if self.seconds is None else self.seconds, 1e-9)


@dataclass(frozen=True)
class Attempt:
    """An entry beside the unit, with the same seeds, in one run. Args: started: the day. machine, versions: its own."""

    started: str
    machine: str
    versions: Mapping[str, str]
    entry: tuple[SeedOutcome, ...]
    unit: tuple[SeedOutcome, ...]

    def __post_init__(self) -> None:
        if self.seeds != [each.seed for each in self.unit] or len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"entry: has the seeds {self.seeds}; allowed are different ones, which `unit` has too")
        check_day("started", self.started)
        if not isinstance(self.machine, str) or not isinstance(self.versions.get("source"), str):
            raise ValueError(
                f"machine={self.machine!r}, versions={self.versions!r}: allowed are texts, one the source's"
            )

    @classmethod
    def from_json(cls, data: JsonObject) -> Attempt:
        """Return what `asdict` made JSON of. Raises: ValueError, TypeError or KeyError for anything else."""
        runs = {side: tuple(from_fields(SeedOutcome, each) for each in data[side]) for side in ("entry", "unit")}
        return from_fields(cls, {**data, **runs})

    @property
    def seeds(self) -> list[int]:
        """Those of both."""
        return [each.seed for each in self.entry]

    @property
    def optimality(self) -> Floats:
        """(S,) of the entry, after learning."""
        return np.array([each.optimality for each in self.entry])

    @property
    def ratios(self) -> Floats:
        """(S,) time of the entry over the unit's, to the level; NaN for a seed in which one of them never was there."""
        pairs = zip(self.entry, self.unit, strict=True)
        return np.array([own.seconds / unit.seconds if own.seconds and unit.seconds else np.nan for own, unit in pairs])

    @property
    def score(self) -> Interval:
        """Mean optimality after learning, with its bootstrap interval over seeds."""
        return _interval(self.optimality)

    @property
    def ratio(self) -> Interval:
        """Geometric mean of `ratios`, with its interval by a bootstrap over seeds, paired; None where one is NaN."""
        if np.isnan(self.ratios).any():
            return Interval(None, None, None)
        logs = _interval(np.log(self.ratios))
        return Interval(*(float(np.exp(end)) for end in (logs.value, logs.low, logs.high)))  # type: ignore[arg-type]

    @property
    def missed(self) -> int:
        """Seeds in which the entry did not reach the level."""
        return sum(each.seconds is None for each in self.entry)


def _interval(values: Floats) -> Interval:
    return Interval(*(float(each[0]) for each in mean_of_runs(values[:, None], np.random.default_rng(0))))


def digest(path: Path) -> str:
    """Return 12 hexadecimal digits of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


@dataclass(frozen=True)
class EntryFlags:
    """How to run an entry."""

    entry: Positional[Path]
    """The entry's file, NAME.py."""
    seeds: int = 5
    """Number of seeds, at least five."""
    first_seed: int | None = None
    """First seed; by default 0 for `run` and 1000 for `check`, which may not use seeds of the claim."""
    out: Path | None = None
    """Folder of the results; by default runs/leaderboard-NAME."""
    workers: int | None = None
    """Number of simultaneous trainings; by default one per core."""
    challenge: Suppress[Challenge] = HELPFUL
    engine: Suppress[str] = "pool"

    def chosen(self, first: int) -> range:
        """Return the seeds. Args: first: where `first_seed` does not say. Raises: ValueError for too few."""
        check_integer("seeds", self.seeds, self.challenge.seeds)
        first = first if self.first_seed is None else self.first_seed
        return range(first, first + self.seeds)


def attempt(flags: EntryFlags, seeds: Sequence[int]) -> Attempt:
    """Run an entry and the unit, seed by seed, or go on with it. Raises: ValueError for one that is bad or failed."""
    path, challenge, entrant = flags.entry, flags.challenge, read_entrant(flags.entry)
    out = flags.out or Path("runs") / f"leaderboard-{path.stem}"
    sides = ((entrant.agent, entrant.settings), (challenge.unit, challenge.unit_settings))
    pairs = [
        [Cell(challenge.id, who, challenge.episodes, seed, config=given) for who, given in sides] for seed in seeds
    ]
    cells = {cell.key: cell for pair in pairs for cell in pair}  # each once, where the entry is the unit
    name = f"{path.stem}-{digest(path)}".lower().replace("_", "-").lstrip("-")
    suite = Suite(name, tuple(cells.values()), "An entry of the leaderboard.", challenge.evaluation)
    how = (None, flags.engine, flags.workers)
    results = run_suite(suite, out, *how, retry_failed=True, watcher=LiveTable(), function=RUN_COUNTED)
    found = {result.cell.key: result for result in results}
    own, unit = (tuple(outcome(found[pair[side].key], challenge) for pair in pairs) for side in (0, 1))
    if len({(each.machine, each.versions.get("source")) for each in results}) > 1:
        raise ValueError(f"out={str(out)!r}: holds runs of several sources or machines; allowed is a new folder")
    day = min((each.folder / "result.json").stat().st_mtime for each in results if each.folder is not None)
    started = f"{datetime.fromtimestamp(day, UTC):%Y-%m-%d}"
    return Attempt(started, results[0].machine, dict(results[0].versions), own, unit)


def outcome(result: Result, challenge: Challenge) -> SeedOutcome:
    """Return what a training came to. Raises: ValueError where it failed or broke a rule that can be counted."""
    who = f"{result.cell.agent}, seed {result.cell.seed}"
    if result.measures is None or result.timing is None:
        error = result.error or {"type": "no result", "message": result.state}
        raise ValueError(f"{who}: {error['type']}: {str(error['message']).splitlines()[0]}")
    measures, allowed = result.measures, challenge.episodes
    used = max(measures["scored"], measures["episodes"])  # the latter, by its own word, where it learns from texts
    if measures["after"]["answer_tokens"]:
        raise ValueError(f"{who}: it had other texts scored to find an answer; allowed is the first one it writes")
    if used > allowed:
        raise ValueError(f"{who}: {used:,} completions were scored while it learned; allowed {allowed:,}")
    scores = [point["optimality"] for point in measures["curve"]]
    if None in scores:
        raise ValueError(f"{who}: its optimality is not known; allowed are agents with log_probs, on the task's model")
    if (seconds := settled(result.timing["curve_cpu_seconds"], scores, challenge.level)) == 0:
        raise ValueError(f"{who}: is at the level before it learns; allowed is one whose time to it can be told")
    return SeedOutcome(result.cell.seed, float(measures["after"]["optimality"]["mean"]), seconds)


def check_seeds(claim: Attempt, seeds: Sequence[int]) -> None:
    """Raise ValueError if a seed of a rerun is one of the claim's."""
    if both := {*claim.seeds} & {*seeds}:
        raise ValueError(f"first_seed: the claim has seed {min(both)}, too; allowed are other ones")


def faults(claim: Attempt, rerun: Attempt) -> list[str]:
    """Return in what a rerun is worse than what was claimed, each by more than chance explains; [] for nothing.

    Optimality, and the logarithm of the ratio of times over the seeds that have one: Welch's 95% interval of the
    difference, which has to reach 0. The rerun may miss the level in one seed more.

    Args: claim, rerun: with different seeds, two at least.
    """
    found = []
    ahead, low, high = leads(claim.optimality[:, None], rerun.optimality[:, None])[:, 0]
    if low > 0:
        means = f"claimed {claim.optimality.mean():.3f}, rerun {rerun.optimality.mean():.3f}"
        found.append(f"optimality: {means}, {ahead:.3f} [{low:.3f}, {high:.3f}] lower")
    if rerun.missed > claim.missed * len(rerun.entry) / len(claim.entry) + 1:
        counts = [f"{each.missed} of {len(each.entry)} seeds" for each in (claim, rerun)]
        found.append(f"level: claimed to be missed in {counts[0]}, rerun in {counts[1]}")
    if claim.ratio.value is None:
        return found
    own, other = (np.log(each.ratios[~np.isnan(each.ratios)])[:, None] for each in (claim, rerun))  # (S, 1), (S', 1)
    if len(other) < 2:
        return found or ["time: fewer than two seeds of the rerun have a ratio; more seeds may tell"]
    slower, low, high = np.exp(leads(other, own)[:, 0])
    if low > 1:
        means = f"claimed {np.exp(own.mean()):.2f} of the unit's, rerun {np.exp(other.mean()):.2f}"
        found.append(f"time: {means}, {slower:.2f} [{low:.2f}, {high:.2f}] times as long")
    return found


@dataclass(frozen=True)
class Claimed:
    """What the JSON file beside an entry holds.

    Args:
        entrant: what its file said. source: `digest` of that file. challenge: as JSON.
        claim: by its author. rerun: with other seeds, one that reproduced it; None so far.
    Raises: ValueError for a rerun that has a seed of the claim, or does not reproduce it.
    """

    entrant: Entrant
    source: str
    challenge: JsonObject
    claim: Attempt
    rerun: Attempt | None = None

    def __post_init__(self) -> None:
        if self.rerun is not None:
            check_seeds(self.claim, self.rerun.seeds)
            if problems := faults(self.claim, self.rerun):
                raise ValueError(f"{self.entrant.agent}: does not reproduce: {'; '.join(problems)}")


def read_claim(path: Path, challenge: Challenge = HELPFUL) -> Claimed:
    """Return the claim beside an entry's file. Raises: ValueError for none, or that of another file or challenge."""
    place = path.with_suffix(".json")
    if not place.is_file():
        raise ValueError(f"{place}: is not there; `run` writes it")
    data = read_json(place)
    with reading(place, "the claim"):
        if data.pop("format") != FORMAT:
            raise ValueError(f"its format is another than {FORMAT}")
        entrant, rerun = from_fields(Entrant, data["entrant"]), data["rerun"]
        rerun = None if rerun is None else Attempt.from_json(rerun)
        parts = {"entrant": entrant, "claim": Attempt.from_json(data["claim"]), "rerun": rerun}
        found = from_fields(Claimed, data | parts)
    if found.source != digest(path):
        raise ValueError(f"{place}: is of another version of {path.name}; `run` writes it anew")
    if found.challenge != plain(asdict(challenge)):
        raise ValueError(f"{place}: is of another task, budget or evaluation; `run` writes it anew")
    for ran in filter(None, (found.claim, found.rerun)):
        check_integer(f"{place}: seeds", len(ran.entry), challenge.seeds)
    return found


def _write(path: Path, found: Claimed) -> None:
    write_json(path.with_suffix(".json"), {"format": FORMAT, **plain(asdict(found))})


def run(flags: OmitArgPrefixes[EntryFlags]) -> None:
    """Run an entry beside lm-ppo and write what it claims to NAME.json."""
    entry, ran = flags.entry, attempt(flags, flags.chosen(0))
    _write(entry, Claimed(read_entrant(entry), digest(entry), plain(asdict(flags.challenge)), ran))
    print(f"{entry.with_suffix('.json')}: {_told(ran, flags.challenge)}")


def check(flags: OmitArgPrefixes[EntryFlags]) -> None:
    """Run an entry with other seeds, and refuse it where it does not reproduce what NAME.json claims."""
    found, seeds = read_claim(flags.entry, flags.challenge), flags.chosen(CHECK_SEED)
    check_seeds(found.claim, seeds)
    rerun = attempt(flags, seeds)
    _write(flags.entry, replace(found, rerun=rerun))
    print(f"{flags.entry}: reproduces: {_told(rerun, flags.challenge, found.claim)}")


def _told(ran: Attempt, asked: Challenge, *before: Attempt) -> str:
    time = f"CPU time to {asked.level} in units of {asked.unit}'s {time_shown(ran)}"
    seconds = f"CPU seconds to {asked.level} by seed: {seconds_shown(ran, *before)}"
    return f"optimality {interval(ran.score, 3)} after {asked.episodes:,} episodes, {time}\n{seconds}"


def seconds_shown(ran: Attempt, *before: Attempt) -> str:
    """Return the CPU seconds of an entry to the level, seed by seed, and their median.

    Args: ran: its attempt. before: others, which count where they have its source and machine.
    """
    place = ran.machine, ran.versions["source"]
    alike = [each for each in (*before, ran) if (each.machine, each.versions["source"]) == place]
    seconds = {own.seed: math.inf if own.seconds is None else own.seconds for each in alike for own in each.entry}
    shown = [
        "never" if math.isinf(each) else f"{each:.1f}" for each in (*seconds.values(), np.median([*seconds.values()]))
    ]
    return f"{', '.join(f'{seed}: {each}' for seed, each in zip(seconds, shown, strict=False))}; median {shown[-1]}"


def time_shown(ran: Attempt) -> str:
    """Return the ratio of times with its interval, or in how many seeds the level was not reached, and by whom."""
    if ran.ratio.value is not None:
        return interval(ran.ratio)
    missed = {who: sum(each.seconds is None for each in runs) for who, runs in (("", ran.entry), ("unit ", ran.unit))}
    return ", ".join(f"{who}not reached {count} of {len(ran.entry)}" for who, count in missed.items() if count)


def page(entries: Path = ENTRIES, challenge: Challenge = HELPFUL) -> str:
    """Return the page of the leaderboard from the claims beside the entries, which it does not import."""
    if not (files := sorted(entries.glob("*.py"))):
        raise ValueError(f"{entries}: holds no entry; allowed is the folder of a checkout as the current one")
    claims = {path.stem: read_claim(path, challenge) for path in files if path.with_suffix(".json").is_file()}
    reruns = {name: each.rerun for name, each in claims.items() if each.rerun is not None}
    ratios = {name: each.ratio.value for name, each in reruns.items()}
    return markdown("textgym_benchmarks.results", "leaderboard.md").render(
        challenge=challenge,
        claims=claims,
        reruns=reruns,
        waiting=[path.stem for path in files if path.stem not in reruns],
        by_time=sorted(reruns, key=lambda name: (ratios[name] is None, ratios[name], name)),
        by_score=sorted(reruns, key=lambda name: (-reruns[name].optimality.mean(), name)),
        time_shown=time_shown,
        check_seed=CHECK_SEED,
        largest=LARGEST_ENTRY,
    )


def table() -> None:
    """Write docs/leaderboard.md from the claims beside the entries."""
    write_text(PAGE, page())


def main() -> None:
    """Run the script."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # workers learn on the CPU, whose seconds are counted
    try:
        tyro.extras.subcommand_cli_from_dict({"run": run, "check": check, "table": table})
    except (ValueError, BenchInterrupted) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    script(main)
