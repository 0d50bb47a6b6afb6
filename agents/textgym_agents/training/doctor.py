"""The doctor: diagnoses a run from its metrics, during training or afterwards."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final, SupportsFloat

from textgym.checks import JsonObject
from textgym.task import Task
from textgym_agents.protocol import Callback, Metrics
from textgym_agents.training.conditions import CONDITIONS, Condition
from textgym_agents.training.evidence import FEW, Row, rounding, unbroken

_RECENT: Final = 30  # rows that are kept, beside the first few and as many evaluations
_WORTH: Final = ("objective/rlhf_reward", "objective/scores")
_QUIET: Final = 10  # rows without it after which a condition counts as over

_NAMES: Final[Mapping[str, str]] = {
    "reward": "objective/scores",
    "reward_std": "objective/scores_std",
    "kl": "objective/kl",
    "entropy": "policy/entropy_avg",
    "learning_rate": "lr",
    "grad_norm": "policy/grad_norm",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "val/cut_rate",
    "clip_ratio": "policy/clipfrac_avg",
    "clip_ratio/region_mean": "policy/clipfrac_avg",
    "frac_reward_zero_std": "val/equal_groups",
    "loss": "loss/policy_avg",
    "sampling/sampling_logp_difference/mean": "sampler/mismatch_mean",
    "eval_reward": "eval/reward",
    "probe": "eval/gold",
    "probe_low": "eval/gold_low",
    "probe_high": "eval/gold_high",
    "sb3/train/explained_variance": "val/explained_variance",
    "sb3/train/value_loss": "loss/value_avg",
    "sb3/train/clip_fraction": "policy/clipfrac_avg",
    "sb3/train/learning_rate": "lr",
}
"""Names of TRL's and of Stable-Baselines3's metrics, and a probe's, to those that the conditions need."""


def as_number(value: object) -> float | None:
    """Return a metric as a float: of NumPy's scalars, tensors and arrays with one element, too; None for another value.

    NaN for None: so logs write what is no finite number.
    """
    if value is None:
        return math.nan
    if not isinstance(value, SupportsFloat):
        return None
    try:
        return float(getattr(value, "item", lambda: value)())
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def translated(metrics: Mapping[str, object], max_grad_norm: float | None = None) -> dict[str, float]:
    """Return the numbers of an iteration by the names that the conditions need, with what follows from finite ones.

    Args:
        max_grad_norm: what gradients are scaled down to, where the row does not say by how much they were.
    """
    row = {name: number for name, value in metrics.items() if (number := as_number(value)) is not None}
    found = {_NAMES.get(name, name): number for name, number in row.items()}
    known = {name: number for name, number in found.items() if math.isfinite(number)}
    length, entropy, norm = (known.get(name) for name in ("completion_length", "objective/entropy", "policy/grad_norm"))
    cut = row.get("completions/clipped_ratio", math.nan)
    if length and "kl" in row:  # TRL's is a mean over tokens
        found["objective/kl"] = row["kl"] * length
    elif math.isfinite(row.get("kl", math.nan)):
        del found["objective/kl"]
    if length and entropy is not None:
        found.setdefault("policy/entropy_avg", entropy / length)
    if math.isfinite(cut):
        found["val/num_eos_tokens"] = 1.0 - cut
    if norm is not None and max_grad_norm:
        found.setdefault("policy/grad_scale", min(1.0, max_grad_norm / max(norm, 1e-8)))
    failures = [number for name, number in found.items() if name.startswith("reward/failures/")]
    if failures or "learning/tokens" in found:  # `textgym train` logs failures once there are some
        found["reward/failures"] = sum(failures)
    return found


def prompt_signs(task: Task) -> Metrics:
    """Return how often a training prompt is opened by the chat template or BOS, a mean, as "prompt/openings".

    Nothing where the tokenizer has neither. A template that the tokenizer has and the task leaves out counts as 0, and
    so does a BOS that it has and the template does not write; what the texts hold already counts as one more.
    """
    vocabulary = task.vocabulary
    template, leading = vocabulary.config.get("chat_template"), vocabulary.codec.leading()[:1]
    control = {*vocabulary.before_ids, *vocabulary.after_ids} & vocabulary.codec.control_ids
    marks = [name for token in control if (name := vocabulary.codec.token(token))]
    used = vocabulary.conversation is not None
    found = []
    for prompt in task.encoded("train")[:256]:
        counts = []
        if used or template:
            counts.append(used * (1 + any(mark in prompt.text for mark in marks)))
        for bos in leading:
            opened = next((at for at, token in enumerate(prompt.ids) if token != bos), len(prompt.ids))
            counts.append(opened + prompt.text.startswith(str(vocabulary.codec.token(bos))))
        found += [max(counts, key=lambda count: abs(count - 1))] if counts else []
    return {"prompt/openings": fmean(found)} if found else {}


@dataclass
class Alarm:
    """One period in which something was wrong.

    Args:
        since, last: iterations. number: the value found at first.
        row: the last row that showed it, counted from 1.
        broken: name in the row of the metric that was not a finite number; empty if the condition was found.
    """

    since: int
    last: int
    number: float
    row: int
    broken: str = ""

    @property
    def found(self) -> str:
        """The number, and the metric that is none."""
        return f"{self.broken} is {self.number:.3g}" if self.broken else f"{self.number:.3g}"


@dataclass(frozen=True)
class Diagnosis:
    """What is known about a condition.

    Args:
        alarms: its alarms, oldest first.
        missing: the metrics for lack of which it was never judged.
        rows: number of rows seen.
        hindered: metrics that change the meaning of its number, so that it is not judged.
    """

    condition: Condition
    alarms: tuple[Alarm, ...]
    missing: tuple[str, ...]
    rows: int
    hindered: tuple[str, ...] = ()

    @property
    def judged(self) -> bool:
        """Whether the condition could be judged."""
        return bool(self.alarms) or not (self.missing or self.hindered)

    @property
    def verdict(self) -> str:
        """The text for a table: ok, the alarm with its number, or why the condition was not judged."""
        if not self.judged:
            needs = f"needs {', '.join(self.missing)}" if self.missing else f"not with {', '.join(self.hindered)}"
            return f"not judged: {needs}"
        if not self.alarms:
            return "ok"
        last = max(self.alarms, key=lambda alarm: alarm.row)
        if self.rows - last.row <= _QUIET:
            return f"ALARM since iteration {last.since}: {last.found}"
        return f"ok; ALARM in iterations {last.since} to {last.last}: {last.found}"

    @property
    def reasons(self) -> tuple[str, ...]:
        """What the alarms mean, and what to change."""
        return tuple(dict.fromkeys(_reason(self.condition, alarm) for alarm in self.alarms))

    def json(self) -> JsonObject:
        """Return the diagnosis as JSON values; where a metric is no finite number, null and that metric."""
        return {
            "condition": self.condition.name,
            "verdict": "alarm" if self.alarms else "ok" if self.judged else "not judged",
            "needs": list(self.missing),
            "hindered": list(self.hindered),
            "alarms": [
                {"since": each.since, "last": each.last, "number": None if each.broken else each.number}
                | ({"broken": each.broken} if each.broken else {})
                for each in self.alarms
            ],
            "meaning": self.condition.meaning,
            "advice": self.condition.advice,
        }


def _reason(condition: Condition, alarm: Alarm) -> str:
    if not alarm.broken:
        return f"{condition.meaning}; {condition.advice}"
    return (
        "no finite number, so this cannot be judged; "
        "look at what the reward returns, lower learning_rate, or compute in float32"
    )


def _to_stderr(line: str) -> None:
    print(f"textgym: {line}", file=sys.stderr, flush=True)


@dataclass(eq=False)
class Doctor:
    """A callback that reports what is wrong with a training, once for each onset.

        agent.learn(env, 4096, Doctor())
        trainer = GRPOTrainer(model, reward, args=config, train_dataset=prompts, callbacks=[Doctor()])

    It never stops a training. Conditions that it cannot judge, because a metric is missing, are in `findings`.

    Args:
        task: the task whose prompts are checked; None: none are.
        say: called with each line; by default lines go to the standard error.
        then: called with the same metrics; its result is returned.
        max_grad_norm: see `translated`; inside a trainer of transformers it is the trainer's own.
    """

    task: Task | None = None
    say: Callable[[str], None] = _to_stderr
    then: Callback | None = None
    max_grad_norm: float | None = None
    iteration: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._rows: list[Row] = []
        self._count = self._scored = self._varied = self._golds = 0
        self._seen: set[str] = set()
        self._alarms: dict[str, list[Alarm]] = {condition.name: [] for condition in CONDITIONS}
        self._signs = {} if self.task is None else prompt_signs(self.task)

    def __call__(self, metrics: Metrics) -> bool | None:
        """Take the metrics of an iteration, as the callback of `Agent.learn`."""
        for line in self.see(metrics):
            self.say(line)
        return None if self.then is None else self.then(metrics)

    def on_log(self, args: object, state: object, control: object, logs: Metrics | None = None, **_: object) -> None:
        """Take a row of the log of a trainer of transformers; see `transformers.TrainerCallback`."""
        self.max_grad_norm = getattr(args, "max_grad_norm", None)
        if logs is not None and getattr(state, "is_world_process_zero", True):
            self({**logs, "iteration": getattr(state, "global_step", self.iteration + 1)})

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Do nothing at the other events of a `transformers.TrainerCallback`."""
        if name.startswith("on_"):
            return lambda *args, **parts: None
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def see(self, metrics: Mapping[str, object]) -> list[str]:
        """Take the metrics of an iteration, and return a line for each condition that has set in."""
        numbers = self._signs | translated(metrics, self.max_grad_norm)
        row = {name: number for name, number in numbers.items() if math.isfinite(number)}
        broken = {name: name for name in numbers.keys() - row.keys()}
        broken |= {_NAMES[name]: name for name in metrics if _NAMES.get(name) in broken}
        self.iteration = int(row["iteration"]) if "iteration" in row else self.iteration + 1
        self._count += 1
        if "objective/scores_std" in row:  # numbers that outlast the rows
            self._scored += 1
            self._varied += row["objective/scores_std"] > rounding([row])
            row |= {"doctor/scored": self._scored, "doctor/varied": self._varied}
        if "eval/gold" in row:
            self._golds += 1
            row |= {"doctor/golds": self._golds}
        self._rows = _kept([*self._rows, row])
        self._seen |= numbers.keys()
        lines = []
        for condition in CONDITIONS:
            name = next((name for name in condition.finite or condition.needs[:1] if name in broken), None)
            if name is not None:
                lines += self._heard(condition, numbers[name], broken[name])
            elif (
                not (self._missing(condition) or self._hindered(condition))
                and (number := condition.check(self._rows)) is not None
            ):
                lines += self._heard(condition, number)
        return lines

    def findings(self) -> list[Diagnosis]:
        """Return what is known of every condition."""
        return [
            Diagnosis(each, tuple(self._alarms[each.name]), self._missing(each), self._count, self._hindered(each))
            for each in CONDITIONS
        ]

    def _missing(self, condition: Condition) -> tuple[str, ...]:
        return tuple(name for name in condition.needs if name not in self._seen)

    def _hindered(self, condition: Condition) -> tuple[str, ...]:
        return tuple(name for name in condition.without if name in self._seen)

    def _heard(self, condition: Condition, number: float, broken: str = "") -> list[str]:
        """Return a line where an alarm sets in; note that it lasts where it is not over."""
        alarms = self._alarms[condition.name]
        for alarm in alarms:
            if bool(alarm.broken) == bool(broken) and self._count - alarm.row <= _QUIET:
                alarm.last, alarm.row = self.iteration, self._count
                return []
        alarms.append(alarm := Alarm(self.iteration, self.iteration, number, self._count, broken))
        return [f"iteration {self.iteration}, {condition.name} ({alarm.found}): {_reason(condition, alarm)}"]


def _kept(rows: list[Row]) -> list[Row]:
    """Return the first few rows, the last ones, and of the others what conditions look back at.

    That is the first evaluation and the last ones, with the rows beside them; the last batch whose scores differed; and
    the few at which J, or the reward where it is not known, was best, and those at which the gold reward was.
    """
    if len(rows) <= 4 * _RECENT:
        return rows
    measured = [place for place, row in enumerate(rows) if "eval/reward" in row or "eval/gold" in row]
    beside = {place + step for place in (*measured[:1], *measured[-_RECENT:]) for step in range(-FEW, 2)}
    varied = [place for place, row in enumerate(rows) if row.get("objective/scores_std", 0.0) > 0][-1:]
    name = next((each for each in _WORTH if any(each in row for row in rows)), _WORTH[-1])
    best = {*_best(rows, name, FEW, ""), *(at for n in (1, FEW) for at in _best(rows, "eval/gold", n, "doctor/golds"))}
    last = range(len(rows) - _RECENT, len(rows))
    return [rows[place] for place in sorted({*range(FEW), *beside, *varied, *best, *last} & {*range(len(rows))})]


def _best(rows: Sequence[Row], name: str, count: int, counter: str) -> Sequence[int]:
    """Return the places of the `count` rows with a metric, one behind the other (`unbroken`), in which it was best."""
    known = [place for place, row in enumerate(rows) if name in row]
    starts = unbroken([rows[place] for place in known], counter, count)
    runs = (known[at : at + count] for at in starts)
    return max(runs, key=lambda run: sum(rows[place][name] for place in run), default=[])
