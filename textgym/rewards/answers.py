r"""Final answers, arithmetic expressions and steps in texts: what marks them, what they are worth, and pay for them.

The form is that of GSM8K and MATH: steps, and at the end `#### 42` or \boxed{42}.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, cast

from textgym.checks import check_flag
from textgym.rewards.base import Column, NamedReward, Values, check_column, read_column
from textgym.rewards.calling import Begun, Inner
from textgym.rewards.compose import Changed
from textgym.rewards.numbers import last_number, right_number, whole_number
from textgym.rewards.registry import RewardSpec, make_reward

_MARK: Final = re.compile(r"\\(?:boxed|fbox)\s*\{|####|<answer>")
_WRITTEN: Final = re.compile(r"[0-9+\-*/()\s]{1,300}")
_NESTED: Final = 50  # brackets
_SIGNS: Final = str.maketrans({"\u00d7": "*", "\u00f7": "/", "\u2212": "-"})
_OPERATIONS: Final[dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_EQUATION: Final = re.compile(
    r"([-\u2212]?(?:[0-9(]|\.(?=[0-9]))[0-9+\-*/()\u00d7\u00f7\u2212., ]{0,200})="
    r"\s*([-\u2212]?[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?)"
    # The number ends there, and nothing more is calculated.
    r"(?![0-9^%/]|[.,][0-9]|[eE][-+]?[0-9]|\s*[-+*/x\u00d7\u00f7\u2212]\s*[0-9(]|\s*\\(?:times|cdot|div))"
)
_LIST_MARK: Final = re.compile(r"\s*(?:[-*\u2022]|\(?[0-9]{1,3}[.)])\s+(?![-+*/\u00d7\u00f7\u2212=])")
_UNFINISHED: Final = re.compile(
    r"(?:[\w.]|[\w)}\]]\s*[+/^\u00d7\u00f7]\s*|(?:[0-9)}\]]|\b[A-Za-z])\s*[-\u2212]\s*|[0-9)}\]]\s*[*x=]\s*"
    r"|\\(?:times|cdot|div)\s*)$"
)
"""What an equation goes on from: the numbers behind it are not all of its left side."""
_DECIMAL: Final = re.compile(r"([0-9]*)\.([0-9]+)")


def final_answer(text: str) -> str:
    r"""Return what a text marks as its final answer, or all of it where it marks nothing.

    The last mark counts: `#### x` (to the end of the line), \boxed{x}, or <answer>x</answer>. One that is not closed
    marks nothing that can be right: "".
    """
    found = _marked(text)
    return text if found is None else found[1]


def _marked(text: str) -> tuple[str, str] | None:
    """Return the last answer that a text marks, as LaTeX and as it is; None without a mark."""
    mark = None
    for mark in _MARK.finditer(text):  # noqa: B007
        pass
    if mark is None:
        return None
    rest = text[mark.end() :]
    if mark[0] == "####":
        line = rest.strip().partition("\n")[0].strip()
        return line, line
    if mark[0] == "<answer>":
        inside, closed, _ = rest.partition("</answer>")
        return (inside.strip(), inside.strip()) if closed else ("", "")
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            bare = rest[:place].strip()
            return bare if whole_number(bare) is not None else f"\\boxed{{{bare}}}", bare
    return "", ""


def vote(text: str) -> Fraction | int | str:
    """Return what a text counts as in a vote: its final answer as a number where it is one, else as a text.

    Where nothing is marked the last number is the answer, but an expression without a result is a text.
    """
    answer = final_answer(text).strip()
    expression = evaluated(answer.rstrip(" ="))
    number = last_number(answer) if expression is None or expression[1].total() == 1 else None
    return answer if number is None else number


class FinalAnswer(Changed):
    r"""Scores only the final answers of completions, and of a column of right answers, with another reward.

    A final answer stands behind the last `####`, in the last \boxed{} or between <answer> and </answer>; a text without
    such a mark is asked about as it is, so that `arithmetic` reads its last number. So right answers may be solutions
    as GSM8K and MATH have them. What stands in \boxed{} keeps it for rewards that read LaTeX: `arithmetic`,
    `math_verify`, and those of your own that have no attribute `reads_latex`, or one that is true.

    Args:
        reward: a reward, or the spec of one, as "arithmetic" or "math_verify".
        column: data column with the right answers, which the other reward reads.
        marked: whether completions have to mark their answer: one without a mark is read as if it was empty.
    Raises: as `make_reward` does; ValueError for a bad column, a reward that is paid at every token, or a `marked` that
        is no bool.
    """

    def __init__(self, reward: RewardSpec = "arithmetic", column: str = "answer", marked: bool = False) -> None:
        check_column(column)
        check_flag("marked", marked)
        self.marked = marked
        reward = make_reward(reward)
        super().__init__(reward, "final_answer")
        self.column, self.maximum = column, self.inner.maximum
        self.needs_timeout = bool(getattr(reward, "needs_timeout", False))
        self._place = 0 if _reads_latex(reward) else 1  # of what `_marked` returns

    def begin(self, prompts: Sequence[object], completions: list[str], **columns: Column) -> Begun:  # type: ignore[override]
        """Begin to ask about every final answer, see `Reward`."""
        if self.column in columns:
            right = columns[self.column]
            columns |= {self.column: [final_answer(each) if isinstance(each, str) else each for each in right]}
        found = [_marked(text) for text in completions]
        plain = [""] * len(completions) if self.marked else completions
        cut = [text if part is None else part[self._place] for text, part in zip(plain, found, strict=True)]
        return super().begin(prompts, cut, **columns)


def _reads_latex(reward: object) -> bool:
    """Return whether a reward, or one that it is made of, reads LaTeX: as it says, or as one of the user's may."""
    several, one = getattr(reward, "rewards", None), getattr(reward, "inner", None)
    parts = [
        each for each in [*(several.values() if isinstance(several, dict) else ()), one] if isinstance(each, Inner)
    ]
    if parts:
        return any(_reads_latex(part.reward) for part in parts)
    return bool(getattr(reward, "reads_latex", not isinstance(reward, NamedReward)))


def evaluated(expression: str) -> tuple[Fraction, Counter[int]] | None:
    """Return the value of an expression of whole numbers, + - * / and brackets, and the numbers that it is made of.

    Args:
        expression: at most 300 characters; operators may also be \u00d7, \u00f7 and \u2212; numbers have no sign.
    Returns: None for anything else, and for a division by 0.
    """
    text = expression.translate(_SIGNS).strip()
    if not _WRITTEN.fullmatch(text) or text.count("(") > _NESTED:
        return None
    numbers: Counter[int] = Counter()
    try:
        return _value(ast.parse(" ".join(text.split()), mode="eval").body, numbers), numbers
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _value(node: ast.expr, numbers: Counter[int]) -> Fraction:
    """Return a node's value and count its numbers. Raises: ValueError for what is no number and no operation."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers[node.value] += 1
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left, numbers), _value(node.right, numbers))
    raise ValueError


@dataclass(frozen=True)
class Countdown(NamedReward):
    """Pays 1 for an expression of the given numbers, each used at most once, that equals the target, else 0.

    An expression has whole numbers, + - * / and brackets; what follows a `=` is not read. Reasoning before it needs
    `final_answer` around this reward.

    Args:
        numbers: data column with a list of whole numbers for every prompt; None abstains.
        target: data column with the whole number to reach; None abstains.
    Raises: ValueError for a bad column.
    """

    numbers: str = "numbers"
    target: str = "target"
    name = "countdown"
    maximum = 1.0

    def __post_init__(self) -> None:
        for argument in ("numbers", "target"):
            check_column(getattr(self, argument), argument)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> Values:
        """Score every completion. Raises: ValueError if a column is missing, or holds what is no number."""
        given = cast("Sequence[Sequence[int] | None]", read_column(columns, self.numbers, self.name))
        targets = read_column(columns, self.target, self.name)
        rows = zip(completions, given, targets, strict=True)
        return [
            None
            if own is None or target is None
            else float(_reaches(text, [right_number(n, self.numbers) for n in own], right_number(target, self.target)))
            for text, own, target in rows
        ]


def _reaches(text: str, given: Sequence[Fraction | int], target: Fraction | int) -> bool:
    boxed = re.fullmatch(r"\\boxed\{(.*)\}", text.strip(), re.DOTALL)
    found = evaluated((boxed[1] if boxed else text).partition("=")[0])
    return found is not None and found[0] == target and found[1] <= Counter(given)


@dataclass(frozen=True)
class RightSteps(NamedReward):
    """Pays the share of a solution's steps that the completion contains: a process reward. Range [0, 1].

    A step is a line, ended by its line break, with an equation, as `3 + 4 = 7`, that holds. It counts where a step of
    the solution has the same result, each of them once, so neither wrong equations nor repetitions pay. With `shaped`
    around it every step is paid when its line ends.

    Args:
        column: data column with the solution of every prompt, as GSM8K writes it; None, or one without equations,
            abstains.
    Raises: ValueError for a bad column.
    """

    column: str = "answer"
    name = "steps"
    maximum = 1.0

    def __post_init__(self) -> None:
        check_column(self.column)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> Values:
        """Score every completion. Raises: ValueError if the column is missing."""
        solutions = read_column(columns, self.column, self.name)
        return [self._share(text, solution) for text, solution in zip(completions, solutions, strict=True)]

    def _share(self, text: str, solution: object) -> float | None:
        wanted = results(str(solution)) if solution is not None else Counter[Fraction]()
        made = results(text.rpartition("\n")[0])
        return (wanted & made).total() / wanted.total() if wanted else None


def results(text: str) -> Counter[Fraction]:
    """Return the results of the equations in a text that hold, one of each line: its last."""
    found: Counter[Fraction] = Counter()
    for line in (" ".join(each.split()) for each in text.splitlines()):
        mark = _LIST_MARK.match(line)
        values = [_holds(*each) for each in _equations(line[mark.end() :] if mark else line)]
        found.update([value for value in values if value is not None][-1:])
    return found


def _equations(line: str) -> list[tuple[str, str]]:
    """Return both sides of the equations in a line; a part of a longer calculation is none."""
    found = _EQUATION.finditer(line)
    return [
        (each[1], each[2]) for each in found if not _UNFINISHED.search(line, max(each.start() - 20, 0), each.start())
    ]


def _holds(left: str, right: str) -> Fraction | None:
    """Return the value of both sides of an equation; None where they differ, or nothing is calculated."""
    left = left.replace(",", "").translate(_SIGNS)
    calculated = len(re.findall(r"[0-9.]+", left)) > 1
    exact = _DECIMAL.sub(lambda each: f"({int(each[1] + each[2])}/{10 ** len(each[2])})", left)
    known, wanted = evaluated(f"0{exact}" if exact.startswith("-") else exact), whole_number(right)
    return known[0] if calculated and known is not None and known[0] == wanted else None
