"""Off-policy estimators on a task without an exact solution, such as Helpful, against values that are sampled.

    textgym demo
    python -m textgym_benchmarks.ope_sampled runs/demo-1 --out runs/ope
    python -m textgym_benchmarks.ope_sampled runs/demo-1 --out runs/ope --table

The reference of a trained run writes the logs. Six policies are judged whose log-probabilities lie between those of the
reference and of the run's policy. What each is worth is the mean over fresh completions of its own, with its standard
error. The second line draws the logs, writes the results and prints them; the third prints what is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import tyro
from rich.console import Console
from textgym_agents.commands.policies import open_policy
from textgym_agents.datasets.logged import prefixes
from textgym_agents.datasets.off_policy import Logged
from textgym_agents.lm.agent import LMAgent
from textgym_agents.lm.sequences import Sequences
from textgym_agents.training.folder import RunFolder

from textgym.checks import Floats, Ints, JsonObject
from textgym.commands.console import number, script, table
from textgym.files import json_line, make_folder, write_text
from textgym.lm.reference import Observation, Reference
from textgym.sampling import play
from textgym_benchmarks.ope import bootstrap_counts, judged_rows, print_study, study_rows

PARTS: Final = (0.1, 0.25, 0.4, 0.6, 0.8, 1.0)
"""Weights of the run's log-probabilities against its reference's."""
_ROWS = 64  # completions that are scored at once


class Mixture:
    """The policy whose log-probabilities lie between those of two, normalised.

    Args: part: weight of the second, in [0, 1].
    """

    def __init__(self, first: Reference, second: Reference, part: float) -> None:
        self._first, self._second, self._part = first, second, part

    def log_probs(self, observation: Observation) -> Floats:
        """See `textgym.lm.reference.Reference.log_probs`."""
        first, second = (np.asarray(each.log_probs(observation), np.float64) for each in (self._first, self._second))
        mixed = (1 - self._part) * first + self._part * second
        return mixed - np.logaddexp.reduce(mixed, axis=1, keepdims=True)


class _Kept:
    """A reference that is asked twice for the same states, and answers once. Args: inner: the one that answers."""

    def __init__(self, inner: Reference) -> None:
        self._inner, self._seen = inner, dict[str, np.ndarray]()

    def log_probs(self, observation: Observation) -> Floats:
        if not self._seen or any(not np.array_equal(each, observation[name]) for name, each in self._seen.items()):
            self._seen = {name: np.array(each) for name, each in observation.items()}
            self._logs = np.asarray(self._inner.log_probs(observation), dtype=np.float64)
        return self._logs


@torch.no_grad()
def mixed_log_probs(agent: LMAgent, sequences: Sequences, parts: Sequence[float]) -> list[Floats]:
    """Return log-probabilities of the tokens of completions (B, T) under the mixtures of an agent and its reference.

    Args: parts: weights of the agent's; 0 is the reference itself.
    """
    found = [np.zeros((len(sequences.lengths), int(sequences.lengths.max()))) for _ in parts]
    for start in range(0, len(sequences.lengths), _ROWS):
        chosen = sequences.rows(np.arange(start, min(start + _ROWS, len(sequences.lengths))))
        rows, columns = chosen.places()
        ids = torch.tensor(chosen.input_ids)
        at = torch.tensor(rows), torch.tensor(columns - 1)
        first, second = (
            each.distribution(each.features(ids, *at)).double() for each in (agent.reference, agent.policy)
        )
        for each, part in zip(found, parts, strict=True):
            logs = torch.log_softmax((1 - part) * first + part * second, -1)
            taken = logs.gather(1, torch.tensor(chosen.input_ids[rows, columns])[:, None]).squeeze(1)
            each[start + rows, columns - chosen.starts[rows]] = taken.numpy()
    return found


@dataclass(frozen=True, eq=False)
class SampledPool:
    """B completions of the reference, from which logs are drawn. T is the longest.

    Attributes:
        lengths: (B,). states, edges: (B, T), as in `Logged`. returns: (B,), paid at the end.
        base: (B, T), log-probabilities under the reference; logs: the same under each of the policies, nats.
    """

    lengths: Ints
    states: Ints
    edges: Ints
    returns: Floats
    base: Floats
    logs: list[Floats]

    @classmethod
    def of(cls, agent: LMAgent, episodes: int, seed: int) -> SampledPool:
        """Return completions of an agent's reference to prompts of the split "train", drawn by their weights."""
        task, generator = agent.task, np.random.default_rng([seed, 33])
        prompts, encoded = task.prompt_set("train"), task.encoded("train")
        places = generator.choice(len(prompts.texts), episodes, p=prompts.weights)
        found = play(agent.reference, task, split="train", prompt_index=places, per_prompt=1, seed=seed)
        written = [tokens[tokens >= 0] for tokens in found.tokens[:, 0]]
        rows = [(encoded[place].ids, tokens) for place, tokens in zip(places, written, strict=True)]
        sequences = Sequences.of(rows, task.vocabulary.pad_id)
        base, *logs = mixed_log_probs(agent, sequences, (0.0, *PARTS))
        numbers, times = prefixes(sequences.input_ids), np.arange(base.shape[1])
        columns = np.minimum(sequences.starts[:, None] + times, numbers.shape[1] - 2)
        held = times < sequences.lengths[:, None]
        states, edges = (np.where(held, np.take_along_axis(numbers, columns + more, 1), 0) for more in (0, 1))
        return cls(sequences.lengths, states, edges, found.returns[:, 0], base, logs)

    def log(self, drawn: Ints, policy: int, beta: float) -> Logged:
        """Return a log of some of them, as a policy sees it. Args: beta: of the KL that rewards are less."""
        own, base = self.logs[policy][drawn], self.base[drawn]
        ends = np.arange(base.shape[1]) == self.lengths[drawn, None] - 1
        rewards = np.where(ends, self.returns[drawn, None], 0.0) - beta * (own - base)
        fixed = (self.lengths[drawn], self.states[drawn], self.edges[drawn])
        return Logged(*fixed, rewards, own, base, base.sum(1), self.returns[drawn])


def study_run(
    agent: LMAgent, repetitions: int, size: int, episodes: int, per_prompt: int, seed: int = 0
) -> Iterator[JsonObject]:
    """Yield what `textgym_benchmarks.ope.study` does, of policies between an agent's reference and its policy.

    Rows of a policy have `kl`, nats, and `truth_error`, the standard error of their `truth`, too.

    Args:
        repetitions: logs. size: episodes of each, drawn without replacement from a pool of `episodes`.
        per_prompt: fresh completions of every policy to every prompt.
    Raises: ValueError for a task that pays before the end, with turns or a mask, or that discounts.
    """
    task, generator = agent.task, np.random.default_rng([seed, 34])
    if task.scorer.pay != "end" or task.turns is not None or task.mask is not None or task.gamma != 1:
        raise ValueError(
            f"task {task.name!r}: allowed are tasks that pay at the end, undiscounted, without turns or mask"
        )
    least = getattr(task.reward, "minimum", None)
    pool = SampledPool.of(agent, episodes, seed)
    worth = [sampled_worth(agent, part, per_prompt, seed + 1 + place) for place, part in enumerate(PARTS)]
    truths = {name: [each[name] for each in worth] for name in ("reward", "objective")}

    def draw() -> Iterator[tuple[str, int, Logged]]:
        drawn = generator.choice(episodes, size, replace=False)
        for place in range(len(PARTS)):
            for measure, beta in (("reward", 0.0), ("objective", task.beta)):
                yield measure, place, pool.log(drawn, place, beta)

    span = truths["objective"][-1] - float(pool.returns.mean())
    for row in judged_rows(
        (draw() for _ in range(repetitions)),
        bootstrap_counts(seed, size),
        truths,
        span,
        PARTS,
        -np.inf if least is None else float(least),
    ):
        if "share" in row:
            own = worth[PARTS.index(row["share"])]
            row |= {"kl": own["kl"], "truth_error": own[f"{row['measure']}_error"], "size": size}
        yield row | {"task": task.name}


def sampled_worth(agent: LMAgent, part: float, per_prompt: int, seed: int) -> dict[str, float]:
    """Return E[R], J and KL of a mixture by fresh completions, with standard errors of the first two."""
    task, kept = agent.task, _Kept(agent.reference)
    found = play(
        Mixture(kept, agent.policy, part), task, split="train", per_prompt=per_prompt, seed=seed, reference=kept
    )
    result = {"kl": float(found.weights @ found.kl.mean(1))}
    for name, each in (("reward", found.returns), ("objective", found.returns - task.beta * found.kl)):
        errors = found.weights**2 @ each.var(1, ddof=1) / per_prompt
        result |= {name: float(found.weights @ each.mean(1)), f"{name}_error": float(np.sqrt(errors))}
    return result


def print_truths(rows: Sequence[JsonObject]) -> None:
    """Print KL, E[R] and J of every policy, with two standard errors, and the effective samples of logs."""
    shown = table("policy", *(number(f"{part:g}") for part in PARTS))
    by = {
        (row["measure"], row["share"]): row
        for row in rows
        if row.get("estimator") == "importance sampling" and "share" in row
    }
    shown.add_row("KL, nats", *(f"{by['reward', part]['kl']:.2f}" for part in PARTS))
    for measure, title in (("reward", "E[R]"), ("objective", "J")):
        own = [by[measure, part] for part in PARTS]
        shown.add_row(title, *(f"{row['truth']:.3f} ± {2 * row['truth_error']:.3f}" for row in own))
        shown.add_row(f"effective samples, {title}", *(f"{row['samples']:.0f}" for row in own))
    Console(highlight=False, width=150).print(shown)


@dataclass(frozen=True)
class SampledStudyFlags:
    """Measure off-policy estimators on the task of a trained run, or print the results."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of the run; its agent must be based on a language model."""
    out: Path = Path("runs/ope")
    """Folder of the results."""
    repetitions: int = 500
    """Number of logs."""
    size: int = 500
    """Number of episodes per log."""
    episodes: int = 20_480
    """Number of completions of the reference from which logs are drawn."""
    per_prompt: int = 16
    """Number of new completions of each policy per prompt."""
    table: bool = False
    """Print the existing results and run nothing."""


def main() -> None:
    """Run the script."""
    flags = tyro.cli(SampledStudyFlags)
    path = flags.out / "sampled.jsonl"
    if not flags.table:
        make_folder(flags.out)
        _, agent = open_policy(str(RunFolder(Path(flags.run)).config()["id"]), flags.run)
        if not isinstance(agent, LMAgent):
            raise ValueError(f"run={flags.run!r}: allowed is one of an agent on a language model")
        rows = study_run(agent, flags.repetitions, flags.size, flags.episodes, flags.per_prompt)
        write_text(path, "".join(map(json_line, rows)))
    found = study_rows(path)
    print_truths(found)
    for measure in ("objective", "reward"):
        print_study(found, measure, PARTS)


if __name__ == "__main__":
    script(main)
