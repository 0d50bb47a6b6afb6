"""Reasoning: reach a number by arithmetic, and word problems in the form of GSM8K."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import combinations, islice
from pathlib import Path
from typing import Any, Final, TypeVar, Unpack

import numpy as np

from textgym.checks import Bools, check_count
from textgym.lm.reference import Reference
from textgym.prompts import PromptSet, PromptSource, prompt_set, refuse_held_out
from textgym.rewards import RewardSpec
from textgym.rows import SUFFIXES, numbered_rows, row_source
from textgym.state import TokenState
from textgym.task import Task
from textgym.tasks.assemble import SHARED, Options, assemble, documented, with_options
from textgym.tasks.diagnostics.common import SHARED as WORDS
from textgym.tasks.diagnostics.common import word_vocabulary
from textgym.tasks.text import text_task
from textgym.vocab import Vocabulary

T = TypeVar("T")
FAMILY: Final = "verifiable"
LARGEST: Final = 10
"""Of the numbers of Countdown, which begin with 1."""
TARGETS: Final = 99
"""The largest target of Countdown."""
OPERATORS: Final = ("+", "-", "*", "/")
TRAINED: Final = {2: 90, 3: 500, 4: 500}
"""Prompts of Countdown in `train` by difficulty; there are 127 at difficulty 2."""
ASKED: Final = 8
"""Prompts of Countdown in `eval`, and in `tune`."""


class ExpressionMask:
    """A task's `mask`: what an expression that uses each of the prompt's numbers at most once can go on with.

    Brackets stand around operations only, and open ones can always be closed.

    Args:
        vocabulary: of the task; its only stop token ends an expression.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        names = {vocabulary.token_text(token): token for token in range(vocabulary.size)}
        self._numbers = {names[str(number)] for number in range(1, LARGEST + 1)}
        self._operators = [names[sign] for sign in OPERATORS]
        self._open, self._close, (self._stop,) = names["("], names[")"], vocabulary.stop_ids

    def __call__(self, states: Sequence[TokenState]) -> Bools:
        """Return the tokens that may come next, bool (B, V), for B states that run."""
        masks = np.zeros((len(states), self.vocabulary.size), np.bool_)
        for mask, state in zip(masks, states, strict=True):
            mask[self._legal(state)] = True
        return masks

    def _legal(self, state: TokenState) -> list[int]:
        unused = Counter(token for token in state.prompt.ids[1:] if token in self._numbers)
        groups: list[bool] = []  # the open brackets; True where an operator has come since
        begins = True
        for token in state.completion:
            begins = token == self._open or token in self._operators
            if token in self._numbers:
                unused[token] -= 1
            elif token == self._open:
                groups.append(False)
            elif token == self._close:
                groups[-1:] = []  # one that the mask did not leave may close none
            elif groups:
                groups[-1] = True
        left, owed = unused.total(), groups.count(False)  # every bracket without an operator needs one more number
        if begins:
            found = [token for token, count in unused.items() if count > 0]
            return [*found, *[self._open] * (left >= 2 + owed)] or [self._stop]
        found = [self._close if groups else self._stop] if all(groups[-1:]) else []
        return found + self._operators * (left > owed - (not all(groups[-1:]))) or [self._stop]


@documented(WORDS, V="V", L="difficulty + 2 + 4 * difficulty - 2")
def countdown_task(difficulty: int = 2, *, beta: float = 0.05, reference: str | Reference = "uniform") -> Task:
    """Make the task Countdown.

    ### Description
    The policy is given a target and some numbers, `24 from 1 3 8`, and writes an expression that comes to the target,
    as `3 * 8 =`, with each number used at most once. Every target can be reached with all of the numbers. The uniform
    reference reaches one target in 6 at difficulty 2 and one in 50 at difficulty 3. At difficulty 4 the prompts of
    `eval` have 1.2 million states, more than evaluation solves.

    ### Action Space
    `Discrete(V)`: the numbers from 1 to 10, `+`, `-`, `*`, `/`, `(`, `)`, and the stop token `=`; the words of the
    prompts are not allowed. The mask leaves the tokens that a legal expression can go on with: each number as often as
    it is given, brackets around operations alone.

    ### Rewards
    Paid at the end: 1 for an expression that comes to the target, else 0; exactly, as fractions. See
    `textgym.rewards.answers.Countdown`. The gold reward is the same.

    ### Starting State
    Target and numbers, all equally likely; 90 in `train` at difficulty 2 and 500 beyond, 8 in `eval` and 8 in `tune`,
    all different.

    ### Episode End
    Terminated by the stop token `=`, which comes at the latest after 4 * difficulty - 2 tokens. Never truncated.

    ### Arguments
        difficulty: 2..4, how many numbers are given.
    """
    count = check_count("difficulty", difficulty, 2, 4, "numbers")
    actions = [*map(str, range(1, LARGEST + 1)), *OPERATORS, "(", ")", "="]
    asked = [*map(str, range(LARGEST + 1, TARGETS + 1)), "from"]
    vocabulary = word_vocabulary(actions, asked=asked, stop="=")
    task = assemble(
        "Countdown",
        FAMILY,
        _countdown_prompts(count),
        gold="countdown",
        vocabulary=vocabulary,
        max_new_tokens=4 * count - 2,
        beta=beta,
        reference=reference,
    )
    return replace(task, mask=ExpressionMask(vocabulary))


def _countdown_prompts(count: int) -> dict[str, PromptSet]:
    """Return the splits of Countdown: different numbers, and a target that needs no less than the mask allows."""
    generator, found = np.random.default_rng(count), dict[str, tuple[list[int], int]]()
    sizes = {"eval": ASKED, "tune": ASKED, "train": TRAINED[count]}
    while len(found) < sum(sizes.values()):
        numbers = sorted(generator.choice(LARGEST, count, replace=False).tolist())
        numbers = [number + 1 for number in numbers]
        reached = sorted(
            {int(v) for v in reachable(tuple(map(Fraction, numbers))) if v.denominator == 1 and 1 <= v <= TARGETS}
        )
        target = int(generator.choice([value for value in reached if value not in numbers]))
        found[f"{target} from {' '.join(map(str, numbers))}"] = (numbers, target)
    rows, splits = iter(found.items()), dict[str, PromptSet]()
    for split, size in sizes.items():
        part = list(islice(rows, size))
        columns: dict[str, Sequence[object]] = {
            "numbers": [numbers for _, (numbers, _) in part],
            "target": [target for _, (_, target) in part],
        }
        splits[split] = prompt_set([text for text, _ in part], columns)
    return splits


@lru_cache(maxsize=20_000)
def reachable(given: tuple[Fraction, ...]) -> frozenset[Fraction]:
    """Return every value of an expression that uses each of some numbers exactly once; they are in ascending order."""
    if len(given) == 1:
        return frozenset(given)
    found: set[Fraction] = set()
    for i, j in combinations(range(len(given)), 2):
        a, b = given[i], given[j]
        rest = given[:i] + given[i + 1 : j] + given[j + 1 :]
        for value in {a + b, a - b, b - a, a * b, *([a / b] if b else []), *([b / a] if a else [])}:
            found |= reachable(tuple(sorted((*rest, value))))
    return frozenset(found)


NAMES: Final = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Kim", "Leo")
THINGS: Final = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
Step = tuple[str, Callable[[int, int], int], str]
STEPS: Final[Sequence[Step]] = (
    ("{name} finds {k} more.", int.__add__, "+"),
    ("A friend brings {k} {things}.", int.__add__, "+"),
    ("{name} gives {k} away.", int.__sub__, "-"),
    ("{k} of them get lost.", int.__sub__, "-"),
    ("Then {name} gets {k} times as many as that.", int.__mul__, "*"),
    ("{name} shares them out evenly over {k} boxes and keeps one box.", int.__floordiv__, "/"),
)
"""What happens next in a word problem of Gsm, and the operation that it stands for."""
REWARD: Final[RewardSpec] = {"name": "final_answer", "reward": "arithmetic"}
KEYS: Final = (("question", "answer"), ("problem", "solution"))
"""The columns of GSM8K and of MATH."""
HELD_OUT: Final = 100
"""Word problems of Gsm in `eval`, and in `tune`."""


@documented(SHARED)
@with_options(reward="rules", max_new_tokens=64, reference=None)
def gsm_task(
    prompts: PromptSource | None = None,
    eval_prompts: PromptSource | None = None,
    tune_prompts: PromptSource | None = None,
    *,
    difficulty: int = 2,
    problems: int = 1000,
    seed: int = 0,
    **options: Unpack[Options],
) -> Task:
    r"""Make the task Gsm.

    ### Description
    The policy solves a word problem in the form of GSM8K: steps of whole numbers and then `#### 42`. The problems are
    made of sentences of our own, as many as are asked for; or they are those of a file, as of GSM8K or MATH. The task
    is made for language models that can read, with reference=FOLDER_OR_HUB_ID: the built-in reference model hardly ever
    gets a problem right, and reads 256 tokens, too few beyond difficulty 5.

    ### Action Space
    `Discrete(V)`: the next token, one id of the reference's vocabulary; V = 1024 for the built-in one.

    ### Rewards
    Paid once, at the end of the episode: 1 for the right final answer, else 0: what stands behind the last `####` or in
    the last \boxed{}, or else the last number. See `textgym.rewards.answers.FinalAnswer` around
    `textgym.rewards.Arithmetic`, or around `math_verify` where the answers are a file's `solution`. The gold reward is
    the same. The column `answer` has the whole solution, so that the reward `steps` can pay every step of it.

    ### Starting State
    A problem of the split, all equally likely: `problems` in `train`, 100 in `eval` and 100 in `tune`, all different.

    ### Arguments
        prompts: None: problems of our own; or a .jsonl, .csv, .tsv or .parquet file with the columns `question` and
            `answer`, as GSM8K has, or `problem` and `solution`, as MATH has; or what `textgym.prompts.read_prompts`
            takes, with a column `answer`.
        eval_prompts: the same, held out; None: the same prompts.
        tune_prompts: the same, held out to choose settings on; None: the same prompts, where eval_prompts is None too,
            else there is no split "tune".
        difficulty: 1..8, operations of a problem of our own.
        problems: how many of our own are in `train`.
        seed: of our own problems.
        max_prompt_tokens: tokens; 0: as long as the longest prompt.
        reference: "builtin", "uniform" or a model's folder or hub id, whose tokenizer and chat template are taken.
    """
    check_count("difficulty", difficulty, 1, 8, "operations")
    check_count("problems", problems, 1, 20_000)
    check_count("seed", seed, 0)
    if prompts is None:
        refuse_held_out(eval_prompts=eval_prompts, tune_prompts=tune_prompts)
        texts, answers = zip(*_problems(difficulty, problems + 2 * HELD_OUT, seed), strict=True)
        parts = {"eval_": slice(HELD_OUT), "tune_": slice(HELD_OUT, 2 * HELD_OUT), "": slice(2 * HELD_OUT, None)}
        data: dict[str, Any] = {f"{split}prompts": texts[part] for split, part in parts.items()}
        data |= {f"{split}columns": {"answer": answers[part]} for split, part in parts.items()}
        return replace(text_task(**data, gold=REWARD, **options), name="Gsm", family=FAMILY)
    held_out = (None if source is None else _renamed(source) for source in (eval_prompts, tune_prompts))
    renamed, gold = _renamed(prompts), REWARD
    if isinstance(renamed, str | Path) and "answer=solution" in str(renamed):
        gold = {"name": "final_answer", "reward": "math_verify"}
        options["timeout"] = options.get("timeout") or 60.0
    return replace(text_task(renamed, *held_out, gold=gold, **options), name="Gsm", family=FAMILY)


def _renamed(source: PromptSource) -> PromptSource:
    """Return a source of rows with its columns under our names, where they are those of GSM8K or MATH."""
    if not isinstance(source, str | Path):
        return source
    place = row_source(source).place
    if row_source(source).suffix not in SUFFIXES or not Path(place).is_file():
        return source
    mark = "#" if str(place) == str(source) else ","
    for _, read in islice(numbered_rows(source), 1):
        with suppress(ValueError):  # of a broken row, which the reader of prompts names
            keys = read().keys()
            return next((f"{source}{mark}prompt={q},answer={a}" for q, a in KEYS if {q, a} <= keys), source)
    return source


def _problems(operations: int, count: int, seed: int) -> list[tuple[str, str]]:
    """Return different word problems with their solutions."""
    generator, found = np.random.default_rng([seed, operations]), dict[str, str]()
    while len(found) < count:
        found.setdefault(*_problem(operations, generator))
    return list(found.items())


def _problem(operations: int, generator: np.random.Generator) -> tuple[str, str]:
    """Return a word problem, and its solution: a line with an equation for each operation, then `#### ANSWER`."""
    name, things = _drawn(NAMES, generator), _drawn(THINGS, generator)
    value = int(generator.integers(2, 21))
    told, lines = [f"{name} has {value} {things}."], list[str]()
    while len(lines) < operations:
        sentence, operate, sign = _drawn(STEPS, generator)
        fitting = {"+": range(2, 21), "-": range(2, value), "*": range(2, 5) if value <= 50 else (), "/": range(2, 6)}
        allowed = [k for k in fitting[sign] if sign != "/" or (value % k == 0 and value > k)]
        if allowed:
            k = _drawn(allowed, generator)
            told.append(sentence.format(name=name, things=things, k=k))
            lines.append(f"{value} {sign} {k} = {operate(value, k)}")
            value = operate(value, k)
    return " ".join([*told, f"How many {things} does {name} have now?"]), "\n".join([*lines, f"#### {value}"])


def _drawn(among: Sequence[T], generator: np.random.Generator) -> T:
    """Return one of them: what `generator.choice` draws, without an array made of them at every call."""
    return among[int(generator.integers(len(among)))]
