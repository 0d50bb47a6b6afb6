"""The race: TextGym's agents beside TRL's trainers on one model and one reward, J against the clock.

    python -m textgym_benchmarks.race --model FOLDER --out runs/race
    python -m textgym_benchmarks.race --model FOLDER --out runs/race --table

The clock counts CPU seconds of one thread, those of evaluations left out, so that other work on the machine does not
move it. Every contestant learns at a constant rate from the prompts of the split "train"; at each mark J is measured on
those of "eval", by the same code for all. Each runs with the best of some trials on another seed, for each reward. The
first line runs what has no result yet; the second prints what is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from textgym_agents.registry import agent_class, make_agent, make_config, make_env

from textgym.checks import Floats, JsonObject
from textgym.commands.console import number, script, table
from textgym.evaluate import evaluate
from textgym.files import make_folder, read_json, write_json
from textgym.optimum import optimum_of
from textgym.rewards import make_reward
from textgym_benchmarks.engines.jobs import fresh_python
from textgym_benchmarks.statistics import leads
from textgym_benchmarks.suites import STORY_REWARDS, stories_env

MARKS: Final = (15, 30, 60, 120, 175)
"""CPU seconds at which J is measured."""
OTHERS: Final = ("trl-rloo", "trl-grpo")
_TRIAL_SEED = 1000
_PER_PROMPT, _SEED = 16, 7_000  # of the evaluations
_EPISODES = 10**7  # more than fit into any race
_CHILD = "import json, sys; from textgym_benchmarks.race import run; print(json.dumps(run(json.loads(sys.argv[2]))))"


@dataclass(frozen=True)
class Racer:
    """One training against the clock.

    Args:
        who: a registered agent, "trl-rloo" or "trl-grpo". reward: a name of `STORY_REWARDS`.
        settings: an agent's own; for TRL's trainers learning_rate, batch, minibatches and group.
        seed: seed of prompts and sampling. marks: CPU seconds, ascending. model: folder of the initial model.
    """

    who: str
    reward: str
    settings: JsonObject
    seed: int
    marks: tuple[int, ...]
    model: str

    @property
    def file(self) -> str:
        """Name of the file that holds its result."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.who}.{self.reward.replace(' ', '-')}.s{self.seed}.{digest}.json"


def run(words: JsonObject) -> JsonObject:
    """Run a racer, given as JSON values. Returns: its `rows`, one for each mark, and J of the `reference`."""
    import torch

    torch.set_num_threads(1)
    entry = Racer(**words)
    task = make_env("textgym/Text-v0", 1, reward=STORY_REWARDS[entry.reward], **stories_env(entry.model)).unwrapped.task
    optimum = optimum_of(task, per_prompt=0)

    def measure(policy: Any) -> JsonObject:
        found = evaluate(policy, task, optimum=optimum, per_prompt=_PER_PROMPT, seed=_SEED)
        assert found.objective is not None
        assert found.kl is not None
        return {"J": found.objective.mean, "reward": found.reward.mean, "kl": found.kl.mean}

    clock = Clock(entry.marks, measure)
    learn = _trl if entry.who in OTHERS else _own
    reference = learn(entry, clock)
    return {"rows": clock.rows, "reference": reference}


class Clock:
    """CPU seconds since the first call of `start`, excluding evaluations.

    Args:
        marks: seconds, ascending. measure: returns what is stored at each.
    """

    def __init__(self, marks: Sequence[int], measure: Callable[[Any], JsonObject]) -> None:
        self.rows: list[JsonObject] = []
        self.measure = measure
        self._marks, self._started = list(marks), 0.0

    def start(self) -> None:
        """Begin."""
        self._started = time.process_time()

    def iteration(self, policy: Callable[[], Any], episodes: int) -> bool:
        """Measure the policy where a mark is passed. Returns: whether that was the last one."""
        now = time.process_time()
        passed = now - self._started
        while self._marks and passed >= self._marks[0]:
            self.rows.append(
                {"mark": self._marks.pop(0), "seconds": passed, "episodes": episodes, **self.measure(policy())}
            )
        self._started += time.process_time() - now
        return not self._marks


def _own(entry: Racer, clock: Clock) -> JsonObject:
    given = {"schedule": "constant", "device": "cpu", **entry.settings, "seed": entry.seed}
    options = stories_env(entry.model)
    batch = int(given.get("batch", 256))
    env = make_env("textgym/Text-v0", batch, reward=STORY_REWARDS[entry.reward], **options)
    agent = make_agent(entry.who, env, make_config(agent_class(entry.who), given))
    reference = clock.measure(agent)
    env.reset(seed=entry.seed)
    clock.start()
    agent.learn(env, _EPISODES, lambda row: clock.iteration(lambda: agent, int(row["episode"])))
    return reference


def _trl(entry: Racer, clock: Clock) -> JsonObject:
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback, logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options = stories_env(entry.model)
    env = make_env("textgym/Text-v0", 4, reward=STORY_REWARDS[entry.reward], **options)
    judge: Any = make_agent("rloo", env, make_config(agent_class("rloo"), {"device": "cpu"}))
    task = env.unwrapped.task
    reference = clock.measure(judge)
    given: Any = entry.settings
    kind = entry.who.removeprefix("trl-").upper()
    with tempfile.TemporaryDirectory() as folder:
        config = getattr(trl, f"{kind}Config")(
            output_dir=folder,
            per_device_train_batch_size=given["batch"] // given["minibatches"],
            steps_per_generation=given["minibatches"],
            num_generations=given["group"],
            learning_rate=given["learning_rate"],
            lr_scheduler_type="constant",
            max_completion_length=task.max_new_tokens,
            beta=task.beta,
            max_steps=_EPISODES,
            seed=entry.seed,
            use_cpu=True,
            bf16=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        data = Dataset.from_dict({"prompt": list(task.prompts["train"].texts)})
        reward = make_reward(STORY_REWARDS[entry.reward])
        trainer = getattr(trl, f"{kind}Trainer")(entry.model, reward, config, data)

        def policy() -> Any:
            judge.policy.model.load_state_dict(trainer.model.state_dict())
            judge.policy.forget()
            return judge

        class Laps(TrainerCallback):
            def on_step_end(self, args: object, state: Any, control: Any, **others: object) -> None:
                if state.global_step % given["minibatches"] == 0:
                    control.should_training_stop = clock.iteration(
                        policy, state.global_step // given["minibatches"] * given["batch"]
                    )

        trainer.add_callback(Laps())
        clock.start()
        trainer.train()
    return reference


def trial_settings(count: int, seed: int = 0) -> list[JsonObject]:
    """Return so many settings for TRL's trainers: rates from 3e-5 to 1e-3 at even ratios, all else drawn."""
    generator = np.random.default_rng(seed)

    def draw(*values: int) -> int:
        return int(generator.choice(values))

    return [
        {
            "learning_rate": float(f"{rate:.3g}"),
            "batch": draw(64, 128, 256),
            "minibatches": draw(1, 2, 4),
            "group": draw(4, 8, 16),
        }
        for rate in np.geomspace(3e-5, 1e-3, count)
    ]


def own_settings(count: int, agent: str = "rloo") -> list[JsonObject]:
    """Return up to so many settings of an agent with one pass: batches of 256 or 64, groups, reaches of an update."""
    known = make_config(agent_class(agent), {})
    found: list[JsonObject] = [
        {"epochs": 1},
        {"epochs": 1, "batch": 64, "minibatches": 1, "group": 8},
        {"epochs": 1, "batch": 64, "minibatches": 2, "update_kl": 3.0, "group": 8},
        {"epochs": 1, "batch": 64, "minibatches": 2, "update_kl": 6.0},
    ]
    found += [{"epochs": 1, "update_kl": reach} for reach in np.geomspace(0.4, 8.0, max(count - 4, 0)).tolist()]
    kept = [{name: value for name, value in each.items() if hasattr(known, name)} for each in found[:count]]
    return [each for place, each in enumerate(kept) if each not in kept[:place]]


@dataclass(frozen=True)
class RaceFlags:
    """Race TextGym's agents against TRL's trainers, or print the results."""

    model: Path
    """Folder of a causal LM of stories."""
    out: Path = Path("runs/race")
    """Folder of the results, with one file per training."""
    agents: tuple[str, ...] = ("rloo",)
    """Registered names of TextGym's agents."""
    rewards: tuple[str, ...] = ("three words", "sentiment", "speech")
    """Names of `STORY_REWARDS`."""
    trials: int = 4
    """Number of trials per contestant and reward."""
    seeds: int = 5
    """Number of seeds of the race."""
    marks: tuple[int, ...] = MARKS
    """CPU seconds at which J is measured, ascending; trials end with the second."""
    workers: int = 2
    """Number of simultaneous trainings, one core each."""
    table: bool = False
    """Print the existing results and run nothing."""


def main() -> None:
    """Run the script."""
    flags = tyro.cli(RaceFlags)
    make_folder(flags.out)
    trials = [
        Racer(who, reward, settings, _TRIAL_SEED, flags.marks[:2], str(flags.model))
        for reward in flags.rewards
        for who in (*flags.agents, *OTHERS)
        for settings in (trial_settings(flags.trials) if who in OTHERS else own_settings(flags.trials, who))
    ]
    if not flags.table:
        run_all(trials, flags.out, flags.workers)
    entries = race_entries(flags, results(trials, flags.out))
    if not flags.table:
        run_all(entries, flags.out, flags.workers)
    for reward in flags.rewards:
        print_table(reward, results([each for each in entries if each.reward == reward], flags.out))


def race_entries(flags: RaceFlags, trials: Sequence[RaceResult]) -> list[Racer]:
    """Return who races, with the best settings of the trials for each reward; an agent without trials has defaults."""
    found: list[Racer] = []
    for reward in flags.rewards:
        given: dict[str, JsonObject] = {who: {} for who in flags.agents}
        for who in (*flags.agents, *OTHERS):
            own = [each for each in trials if (each.entry.who, each.entry.reward) == (who, reward)]
            if own:
                given[who] = max(own, key=lambda each: each.curve.mean()).entry.settings
        for seed in range(flags.seeds):
            found += [
                Racer(who, reward, settings, seed, flags.marks, str(flags.model)) for who, settings in given.items()
            ]
    return found


def run_all(entries: Iterable[Racer], out: Path, workers: int) -> None:
    """Run what has no result yet, each in a process of its own."""
    console = Console(stderr=True, highlight=False)

    def run_one(entry: Racer) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [*fresh_python(_CHILD), json.dumps(asdict(entry))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        write_json(out / entry.file, {"entry": asdict(entry), **json.loads(done.stdout.splitlines()[-1])})
        console.print(f"{entry.who}, {entry.reward}, seed {entry.seed}, {entry.settings}", markup=False)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run_one, (each for each in entries if not (out / each.file).exists())))


class RaceResult(NamedTuple):
    """What an entry has come to: J at its marks (M,), and J of the reference."""

    entry: Racer
    curve: Floats
    reference: float


def results(entries: Iterable[Racer], out: Path) -> list[RaceResult]:
    """Return the results that are there."""
    found: list[RaceResult] = []
    for entry in entries:
        if (out / entry.file).exists():
            read = read_json(out / entry.file)
            curve = np.array([row["J"] for row in read["rows"]])
            found.append(RaceResult(entry, curve, read["reference"]["J"]))
    return found


def seconds_until(level: float, marks: Sequence[int], curve: Sequence[float] | Floats) -> float | None:
    """Return when a curve first reaches a level, seconds, by straight lines between 0 and the marks; None for never.

    Args: curve: (M + 1,) J at 0 and at each mark.
    """
    for before, (start, end) in enumerate(pairwise((0, *marks))):
        low, high = curve[before], curve[before + 1]
        if low >= level:
            return float(start)
        if high >= level:
            return float(start + (end - start) * (level - low) / (high - low))
    return None


def print_table(reward: str, found: Sequence[RaceResult]) -> None:
    """Print J at the marks and, of several seeds, by how much the first contestant leads."""
    names = list(dict.fromkeys(each.entry.who for each in found))
    curves = {name: np.array([each.curve for each in found if each.entry.who == name]) for name in names}
    if not found:
        return
    reference = float(np.mean([each.reference for each in found]))
    seeds = ", ".join(f"{name} {len(rows)}" for name, rows in curves.items())
    marks = found[0].entry.marks
    shown = table("", *(number(f"{mark} s") for mark in marks), title=f"J, {reward}")
    for name, rows in curves.items():
        shown.add_row(name, *(f"{value:.3f}" for value in rows.mean(0)))
    for name in [each for each in names[1:] if min(len(curves[each]), len(curves[names[0]])) > 1]:
        ahead = leads(curves[names[0]], curves[name]).T
        shown.add_row(f"{names[0]} - {name}", *(f"{m:+.3f} [{low:+.3f}, {high:+.3f}]" for m, low, high in ahead))
    console = Console(highlight=False)
    console.print(shown)
    console.print(f"J of the reference: {reference:.3f}; seeds: {seeds}", markup=False)
    for name in names[1:]:
        last, own = curves[name].mean(0)[-1], curves[names[0]].mean(0)
        after = seconds_until(last, marks, [reference, *own])
        when = f"after {after:.0f} s (read off between the marks)" if after is not None else "at no mark"
        console.print(f"{names[0]} reaches the last J of {name}, {last:.3f}, {when}", markup=False)
    for name in names:
        console.print(f"{name}: {next(each.entry.settings for each in found if each.entry.who == name)}", markup=False)


if __name__ == "__main__":
    script(main)
