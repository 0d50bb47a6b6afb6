"""The leaderboard: an entry is one file, which a command runs beside `lm-ppo`, and another one reruns.

    python -m textgym_benchmarks.leaderboard run benchmarks/entries/rloo.py
    python -m textgym_benchmarks.leaderboard check benchmarks/entries/rloo.py
    python -m textgym_benchmarks.leaderboard table

`run` writes what an entry claims to a JSON file beside it; `check` refuses, with exit code 1, what other seeds do not
reproduce; `table` writes docs/leaderboard.md anew. The first two go on where they were broken off.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

import numpy as np
import tyro
from textgym_agents.registry import agent_class, make_config
from tyro.conf import OmitArgPrefixes, Positional, Suppress

from textgym.checks import Floats, JsonObject
from textgym.files import plain, read_json, reading, write_json, write_text
from textgym.registry import import_user_module
from textgym_benchmarks.commands.bench import LiveTable
from textgym_benchmarks.pages import interval, markdown
from textgym_benchmarks.results.format import FORMAT
from textgym_benchmarks.results.rows import settled
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.run.runner import BenchInterrupted, run_suite
from textgym_benchmarks.statistics import Interval, leads, mean_of_runs
from textgym_benchmarks.suite import Cell, Evaluation, Suite, check_integer, from_fields
from textgym_benchmarks.suite_folder import RUN_COUNTED

LARGEST: Final = 100_000  # bytes of an entry's file
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
class Entrant:
    """What the dictionary ENTRY of an entry's file says.

    Args:
        agent: a registered name, or a class of the same file.
        settings: of the agent, JSON values, without `seed`.
        author, description: one line. date: of the entry, as in 2026-11-27.
    Raises: ValueError for another value.
    """

    agent: str
    author: str
    date: str
    description: str
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("agent", "author", "date", "description"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value.splitlines()) != 1:
                raise ValueError(f"{name}={value!r}: allowed is a text of one line")
        if not isinstance(self.settings, Mapping) or "seed" in self.settings:
            raise ValueError(f"settings={self.settings!r}: allowed are JSON values by name, and no seed")
        try:
            date.fromisoformat(self.date)
        except ValueError as error:
            raise ValueError(f"date={self.date!r}: allowed is a date such as 2026-11-27") from error


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


@dataclass(frozen=True)
class Attempt:
    """An entry beside the unit, with the same seeds, in one run. Args: started: the day. machine, versions: its own."""

    started: str
    machine: str
    versions: Mapping[str, str]
    entry: tuple[SeedOutcome, ...]
    unit: tuple[SeedOutcome, ...]

    def __post_init__(self) -> None:
        seeds = [each.seed for each in self.entry]
        if seeds != [each.seed for each in self.unit] or len({*seeds}) < len(seeds):
            raise ValueError(f"entry: has the seeds {seeds}; allowed are different ones, which `unit` has too")

    @classmethod
    def from_json(cls, data: JsonObject) -> Attempt:
        """Return what `asdict` made JSON of. Raises: ValueError, TypeError or KeyError for anything else."""
        runs = {side: tuple(from_fields(SeedOutcome, each) for each in data[side]) for side in ("entry", "unit")}
        return from_fields(cls, {**data, **runs})

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


def read_entrant(path: Path) -> Entrant:
    """Return what an entry's file says; its agent is the name that workers find it by.

    Raises: ValueError that names the file and what is wrong with it.
    """
    if path.suffix != ".py" or not path.stem.isidentifier() or not path.is_file():
        raise ValueError(f"{path}: allowed is a file NAME.py that is there, its name a word of Python")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: has {path.stat().st_size:,} bytes; allowed are {LARGEST:,}")
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        module = import_user_module(path.stem)
        if Path(str(module.__file__)).resolve() != path.resolve():
            raise ValueError(f"there is another module {path.stem!r} ({module.__file__}); rename the file")
        found = from_fields(Entrant, getattr(module, "ENTRY", None))
        if ":" in found.agent:
            raise ValueError(f"agent={found.agent!r}: allowed is a registered name, or a class of this file")
        name = f"{path.stem}:{found.agent}" if isinstance(getattr(module, found.agent, None), type) else found.agent
        make_config(agent_class(name), found.settings)
    except Exception as error:  # the author's code
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    return Entrant(**{**asdict(found), "agent": name})


@dataclass(frozen=True)
class EntryFlags:
    """How an entry is run."""

    entry: Positional[Path]
    """The file, NAME.py."""
    seeds: int = 5
    """How many, five at least."""
    first_seed: int | None = None
    """The first of them; by default 0 for `run` and 1000 for `check`, which may take none of the claim's."""
    out: Path | None = None
    """Folder of the results; by default runs/leaderboard-NAME."""
    workers: int | None = None
    """Trainings at once; by default one for each core."""
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
    """

    entrant: Entrant
    source: str
    challenge: JsonObject
    claim: Attempt
    rerun: Attempt | None = None


def read_claim(path: Path, challenge: Challenge = HELPFUL) -> Claimed:
    """Return the claim beside an entry's file. Raises: ValueError for none, or that of another file or challenge."""
    place = path.with_suffix(".json")
    if not place.is_file():
        raise ValueError(f"{place}: is not there; `run` writes it")
    data = read_json(place)
    with reading(place, "the claim"):
        if data.pop("format") != FORMAT:
            raise ValueError(f"its format is another than {FORMAT}")
        entrant, rerun = from_fields(Entrant, data["entrant"]), data["rerun"] and Attempt.from_json(data["rerun"])
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
    if both := {each.seed for each in found.claim.entry} & {*seeds}:
        raise ValueError(f"first_seed: the claim has seed {min(both)}, too; allowed are other ones")
    rerun = attempt(flags, seeds)
    if problems := faults(found.claim, rerun):
        raise ValueError(f"{flags.entry}: does not reproduce: {'; '.join(problems)}")
    _write(flags.entry, replace(found, rerun=rerun))
    print(f"{flags.entry}: reproduces: {_told(rerun, flags.challenge)}")


def _told(ran: Attempt, asked: Challenge) -> str:
    time = f"CPU time to {asked.level} in units of {asked.unit}'s {time_shown(ran)}"
    return f"optimality {interval(ran.score, 3)} after {asked.episodes:,} episodes, {time}"


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
        largest=LARGEST,
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
    main()
