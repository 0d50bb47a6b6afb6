"""How often graders of numbers err: false positives and false negatives on labelled answers, with intervals.

`python -m textgym_benchmarks.graders` reads `graders.jsonl` beside this file and prints a table; `--forms` adds which
forms each grader gets wrong. `--write` makes the answers anew. Their labels are known by how they are made: a right
answer states the right number in one of many forms, a wrong one states another number, several, or none.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from textgym.commands.console import script
from textgym.estimates import Estimate, interval, resampled_counts
from textgym.files import json_object
from textgym.rewards import RewardSpec, make_reward

ANSWERS: Final = Path(__file__).with_name("graders.jsonl")
EACH: Final = 16
"""Answers of every form."""
GRADERS: Final[Mapping[str, RewardSpec]] = {
    "arithmetic": "arithmetic",
    "final_answer": "final_answer",
    "final_answer, marked and whole": {
        "name": "final_answer",
        "reward": {"name": "arithmetic", "read": "whole"},
        "marked": True,
    },
    "math_verify": "math_verify",
    "final_answer of math_verify": {"name": "final_answer", "reward": "math_verify"},
}


@dataclass(frozen=True)
class Labelled:
    """An answer with its label.

    Args:
        answer: the right number, as a data column has it.
        text: the answer to grade.
        right: whether it is right.
        form: how it is written.
    """

    answer: str
    text: str
    right: bool
    form: str


Write = Callable[[int, int], str]
"""Writes the number of the first argument, or states it wrongly; the second is another number, close by."""
# N is the right number in forms of right answers, and O another one; in those of wrong answers they stand for the same.
WHOLE: Final[Mapping[str, tuple[bool, Write]]] = {
    "bare": (True, lambda n, o: f"{n}"),
    "commas": (True, lambda n, o: f"{n:,}"),
    "zeros": (True, lambda n, o: f"{n}.0"),
    "two zeros": (True, lambda n, o: f"The result is {n:,}.00."),
    "sentence": (True, lambda n, o: f"The answer is {n}."),
    "sentence after": (True, lambda n, o: f"{n} is the answer, since nothing else is left to add."),
    "dollars": (True, lambda n, o: f"She pays ${n:,}."),
    "units": (True, lambda n, o: f"It is {n} km"),
    "things": (True, lambda n, o: f"So there are {n:,} apples left!"),
    "equation": (True, lambda n, o: f"{n - 7} + 7 = {n}"),
    "steps": (True, lambda n, o: f"First {o} - 3 = {o - 3}.\nThen {n - 4} + 4 = {n}.\nSo it is {n}."),
    "hashes": (True, lambda n, o: f"{n - 5} + 5 = {n}\n#### {n}"),
    "hashes, commas": (True, lambda n, o: f"Add {o} up.\n#### {n:,}"),
    "hashes, unit": (True, lambda n, o: f"We take {o} first.\n#### {n} apples"),
    "hashes, then words": (True, lambda n, o: f"#### {n}\nI have checked this {o % 7 + 2} times."),
    "boxed": (True, lambda n, o: rf"We get $\boxed{{{n}}}$."),
    "boxed, unit": (True, lambda n, o: rf"$\boxed{{{n}\text{{ cm}}}}$"),
    "boxed, dollars": (True, lambda n, o: rf"The price is $\boxed{{\${n}}}$."),
    "boxed, then words": (True, lambda n, o: rf"\boxed{{{n}}}, which is less than {n + o}."),
    "tags": (True, lambda n, o: f"<think>{o}?</think><answer>{n}</answer>"),
    "bold": (True, lambda n, o: f"The total is **{n}**."),
    "latex comma": (True, lambda n, o: rf"$\boxed{{{n + 1000:,}}}$".replace(",", "{,}")),
    "negated first": (True, lambda n, o: f"Not {o}, but {n}."),
    "corrected": (True, lambda n, o: f"{o}... wait, I forgot one. It is {n}."),
    "reason behind": (True, lambda n, o: f"The answer is {n}, because {n - 3} and 3 make it."),
    "count behind": (True, lambda n, o: f"The answer is {n}. I have checked it {o % 7 + 2} times."),
    "power of ten": (True, lambda n, o: rf"$\boxed{{{n % 9 + 1} \times 10^{{3}}}}$"),
    "other number": (False, lambda n, o: f"{o}"),
    "other sentence": (False, lambda n, o: f"The answer is {o}."),
    "other, commas": (False, lambda n, o: f"So {o:,} apples are left."),
    "other, hashes": (False, lambda n, o: f"{o - 5} + 5 = {o}\n#### {o}"),
    "other, boxed": (False, lambda n, o: rf"First {n} of them. Then $\boxed{{{o}}}$."),
    "ten times": (False, lambda n, o: f"The answer is {n}0."),
    "a tenth": (False, lambda n, o: f"The answer is {n / 10}."),
    "other sign": (False, lambda n, o: f"The answer is -{n}."),
    "sign in words": (False, lambda n, o: f"The answer is minus {n}."),
    "digit before": (False, lambda n, o: f"#### {o % 9 + 1}{n}"),
    "decimals": (False, lambda n, o: f"It comes to {n}.{o % 9 + 1}"),
    "million": (False, lambda n, o: f"It is {n} million."),
    "exponent": (False, lambda n, o: f"It is {n}e3."),
    "power": (False, lambda n, o: f"The answer is 2^{n}."),
    "quotient": (False, lambda n, o: f"The answer is 1/{n}."),
    "right first": (False, lambda n, o: f"I thought of {n}, but it is {o}."),
    "right before hashes": (False, lambda n, o: f"{n - 2} + 2 = {n}\n#### {o}"),
    "right behind": (False, lambda n, o: f"The answer is {o}. I had {n} in mind before."),
    "right behind hashes": (False, lambda n, o: f"#### {o}\nAnother try gave {n}"),
    "right behind boxed": (False, lambda n, o: rf"\boxed{{{o}}} rather than {n}"),
    "not that": (False, lambda n, o: f"The answer is {o}, not {n}."),
    "not that, hashes": (False, lambda n, o: f"#### {o}, not {n}"),
    "either": (False, lambda n, o: f"It is {o} or {n}."),
    "either, hashes": (False, lambda n, o: f"#### {o} or {n}"),
    "between": (False, lambda n, o: f"It is between {n - 5} and {n}."),
    "range": (False, lambda n, o: f"It is {n - 5}-{n}."),
    "no answer": (False, lambda n, o: f"I cannot tell how many of the {n} are meant"),
    "equation of another": (False, lambda n, o: f"x = {o} = {n} {'+' if o > n else '-'} {abs(o - n)}"),
    "not equal": (False, lambda n, o: f"The answer is not {n}."),
    "empty": (False, lambda n, o: ""),
}
Part = Callable[[Fraction], str]
PARTS: Final[Mapping[str, tuple[bool, Part]]] = {
    "decimal": (True, lambda q: f"The answer is {float(q)}."),
    "decimal, zeros": (True, lambda q: f"#### {float(q)}0"),
    "fraction": (True, lambda q: f"It is {q}."),
    "fraction, not reduced": (True, lambda q: f"#### {2 * q.numerator}/{2 * q.denominator}"),
    "boxed fraction": (True, lambda q: rf"So $\boxed{{\frac{{{q.numerator}}}{{{q.denominator}}}}}$."),
    "boxed dfrac": (True, lambda q: rf"\boxed{{\dfrac{{{3 * q.numerator}}}{{{3 * q.denominator}}}}}"),
    "boxed decimal": (True, lambda q: rf"\boxed{{{float(q)}}}"),
    "percent": (True, lambda q: f"That is {float(100 * q):g}%."),
    "boxed percent": (True, lambda q: rf"\boxed{{{float(100 * q):g}\%}}"),
    "inverted": (False, lambda q: f"It is {q.denominator}/{q.numerator}."),
    "boxed, inverted": (False, lambda q: rf"\boxed{{\frac{{{q.denominator}}}{{{q.numerator}}}}}"),
    "numerator": (False, lambda q: f"#### {q.numerator}"),
    "percent without sign": (False, lambda q: f"The answer is {float(100 * q):g}."),
    "other decimal": (False, lambda q: f"The answer is {float(q) + 0.01:g}"),
    "negative fraction": (False, lambda q: rf"\boxed{{-\frac{{{q.numerator}}}{{{q.denominator}}}}}"),
    "cut off": (False, lambda q: rf"So $\boxed{{\frac{{{q.numerator}}}{{{q.denominator}}}"),
}
"""The same for numbers with a fractional part."""


def labelled(each: int = EACH, seed: int = 0) -> Iterator[Labelled]:
    """Make answers with their labels.

    Args:
        each: answers of every form. seed: of the numbers.
    Returns: the answers, form by form.
    """
    generator = np.random.default_rng(seed)
    for form, (right, write) in WHOLE.items():
        for _ in range(each):
            n = int(generator.integers(12, 100 if generator.random() < 0.5 else 20_000))
            o = n + int(generator.choice([-10, -2, -1, 1, 2, 10, 100]))
            text = write(n, o)
            n = n + 1000 if form == "latex comma" else (n % 9 + 1) * 1000 if form == "power of ten" else n
            yield Labelled(str(n), text, right, form)
    for form, (right, part) in PARTS.items():
        for _ in range(each):
            below = int(generator.choice([4, 5, 8, 20]))
            above = int(generator.choice([k for k in range(1, 2 * below) if math.gcd(k, below) == 1 and k != 1]))
            yield Labelled(str(Fraction(above, below)), part(Fraction(above, below)), right, form)


def read_answers(path: Path = ANSWERS) -> list[Labelled]:
    """Return the labelled answers of a file. Raises: FileNotFoundError; ValueError for a line that is none."""
    return [Labelled(**json_object(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def write_answers(path: Path = ANSWERS) -> None:
    """Write the labelled answers, one a line."""
    lines = [json.dumps(vars(answer), ensure_ascii=False, separators=(",", ":")) for answer in labelled()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def graded(spec: RewardSpec, answers: Sequence[Labelled]) -> list[bool]:
    """Return whether a grader takes each answer for right.

    Args:
        spec: of a reward with a column `answer`.
        answers: what it grades.
    Raises: as `make_reward` does.
    """
    texts = [each.text for each in answers]
    values = make_reward(spec)([""] * len(texts), texts, answer=[each.answer for each in answers])
    return [value == 1 for value in values]


def mistakes(answers: Sequence[Labelled], taken: Sequence[bool], right: bool) -> dict[str, float]:
    """Return the share of mistakes in every form, of right answers or of wrong ones.

    Args:
        answers: with their labels. taken: whether the grader takes each for right.
        right: True for false negatives, False for false positives.
    """
    found: dict[str, list[bool]] = {}
    for each, took in zip(answers, taken, strict=True):
        if each.right == right:
            found.setdefault(each.form, []).append(took != right)
    return {form: sum(errors) / len(errors) for form, errors in found.items()}


def rate(shares: Mapping[str, float], seed: int = 0) -> Estimate:
    """Return the mean of the forms' shares of mistakes, with a 95% interval from resampling the forms.

    Answers of one form are graded alike, so that the forms, and not the answers, are what has been drawn.

    Args:
        shares: form -> share. seed: of the bootstrap.
    """
    values = np.array([*shares.values()])
    drawn = resampled_counts(np.random.default_rng(seed), len(values)) @ values / len(values)
    return interval(float(values.mean()), drawn)


@dataclass(frozen=True)
class Graders:
    """Print how often number graders are wrong."""

    forms: bool = False
    """Also print which forms each grader gets wrong."""
    write: bool = False
    """Write the labelled answers anew."""


def main() -> None:
    """Measure and print."""
    settings, console = tyro.cli(Graders, description=__doc__), Console()
    if settings.write:
        write_answers()
    answers = read_answers()
    table = Table("grader", "false positives", "false negatives")
    listed: list[str] = []
    for name, spec in GRADERS.items():
        try:
            taken = graded(spec, answers)
        except ModuleNotFoundError as error:
            print(error, file=sys.stderr)
            continue
        found = [mistakes(answers, taken, right) for right in (False, True)]
        table.add_row(name, *(str(rate(shares)) for shares in found))
        for kind, shares in zip(table.columns[1:], found, strict=True):
            forms = ", ".join(f"{form} {share:.0%}" for form, share in shares.items() if share)
            listed.append(f"{name}, {kind.header}: {forms}")
    console.print(f"{len(answers)} answers, {sum(each.right for each in answers)} of them right")
    console.print(table)
    if settings.forms:
        console.print("\n".join(listed), markup=False)


if __name__ == "__main__":
    script(main)
