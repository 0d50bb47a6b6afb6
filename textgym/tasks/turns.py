"""Tasks of several turns: what the environment hides has to be asked for, and asking costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from typing import Final, cast, get_args

from textgym.checks import check_count, check_number, not_one_of
from textgym.lm.reference import Reference
from textgym.prompts import PromptSet, Split, prompt_set
from textgym.responders import calculate
from textgym.rewards.base import Column, NamedReward
from textgym.state import Prompt, TokenState
from textgym.task import Task
from textgym.tasks.assemble import assemble, documented
from textgym.tasks.diagnostics.common import BETA, word_vocabulary
from textgym.turns import Reply, Turns
from textgym.vocab import Vocabulary

RIGHT: Final = "right"
WRONG: Final = "wrong"
"""What the environment says to an answer, and ends the episode."""
NO: Final = "no"
THINGS: Final = ("tea", "milk", "juice", "water")
COLOURS: Final = ("red", "blue", "green", "white")
MOSTLY: Final = 0.9
"""How often `paint mostly red` means red."""
SHARED: Final = """
    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = $L. With `segments=True` `segment_ids` tells the environment's words from the policy's.

    ### Episode End
    Terminated after an answer, or after $T; every turn is one word. Never truncated.

    ### Arguments
        cost: reward units that a question costs.
        beta: reward units per nat of KL to the reference.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
"""
"""Sections and arguments that the tasks share; `documented` fills in the names after $."""


@dataclass(frozen=True)
class AskThenAnswer(NamedReward):
    """Pay 1 for an answer that the environment calls right, less `cost` for every question.

    Args:
        cost: reward units a question.
    """

    cost: float
    name = "ask_then_answer"
    maximum = 1.0

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        spoken = cast(Sequence[Sequence[tuple[str, str]]], columns["turns"])
        return [self._pay([word for author, word in turns if author == "environment"]) for turns in spoken]

    def _pay(self, said: Sequence[str]) -> float:
        return float(said[-1] == RIGHT) - self.cost * sum(word not in (RIGHT, WRONG) for word in said)


class Oracle:
    """Says what is hidden, one word at a time.

    Args:
        vocabulary: of the task. hidden: prompt -> weights of what may be hidden, (K,).
        says: the word for an action given what is hidden; "right" and "wrong" end the episode. What it does not have is
            wrong.
        now: what `says` is asked with for each thing that is hidden, turn by turn; None: with what is hidden.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        hidden: Mapping[str, Sequence[float]],
        says: Mapping[tuple[str, int], str],
        now: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._hidden, self._now = hidden, now
        word = {vocabulary.token_text(token): token for token in range(vocabulary.size)}
        self._wrong = Reply((word[WRONG],), ends=True)
        self._replies: dict[tuple[int, int | None], Reply] = {
            (word[action], k): Reply((word[said],), ends=said in (RIGHT, WRONG)) for (action, k), said in says.items()
        }

    def weights(self, prompt: Prompt) -> Sequence[float]:
        """See `textgym.turns.Responder.weights`."""
        if prompt.text not in self._hidden:
            raise ValueError(not_one_of("prompt", prompt.text, self._hidden))
        return self._hidden[prompt.text]

    def replies(self, states: Sequence[TokenState]) -> list[Reply]:
        """See `textgym.turns.Responder.replies`."""
        return [self._replies.get((state.completion[-1], self._known(state)), self._wrong) for state in states]

    def _known(self, state: TokenState) -> int | None:
        return state.hidden if self._now is None or state.hidden is None else self._now[state.hidden][state.replies]


def _one_word_turns(
    name: str,
    actions: Sequence[str],
    spoken: Sequence[str],
    hidden: Mapping[str, Sequence[float]],
    says: Mapping[tuple[str, int], str],
    most: int,
    *,
    cost: float,
    beta: float,
    reference: str | Reference,
    now: Sequence[Sequence[int]] | None = None,
) -> Task:
    """Make a task whose turns are one word each, of the policy as of the environment."""
    check_number("cost", cost, 0, unit="reward units a question")
    asked = dict.fromkeys([*spoken, *(word for prompt in hidden for word in prompt.split())])
    vocabulary = word_vocabulary(actions, asked=[word for word in asked if word not in actions])
    turns = Turns(Oracle(vocabulary, hidden, says, now), most=most, tokens=1, reply_tokens=1)
    prompts: PromptSet = prompt_set([*hidden])
    return assemble(
        name,
        "turns",
        dict.fromkeys(get_args(Split), prompts),
        gold=AskThenAnswer(cost),
        vocabulary=vocabulary,
        turns=turns,
        max_new_tokens=turns.room,
        beta=beta,
        reference=reference,
    )


@documented(SHARED, L="2 * difficulty + 3", T="`difficulty` + 1 turns")
def twenty_questions_task(
    difficulty: int = 2, *, cost: float = 0.05, beta: float = 0.05, reference: str | Reference = "uniform"
) -> Task:
    """Make the task TwentyQuestions.

    ### Description
    The environment thinks of a number below 2 ** difficulty. A question, as `<4`, is answered by `yes` or `no`;
    naming a number ends the episode with `right` or `wrong`. Halving what is left finds it with `difficulty`
    questions; a guess without any is right once in 2 ** difficulty.

    ### Action Space
    `Discrete(V)`: the questions `<1`, `<2`, ..., the numbers `0`, `1`, ...; the words of the environment and the prompt
    are not allowed.

    ### Rewards
    Paid at the end: 1 where the number is right, less `cost` for every question.

    ### Starting State
    The prompt `guess`, in all splits; each number is equally likely.

    ### Arguments
        difficulty: 1..4, bits of the number.
    """
    count = 2 ** check_count("difficulty", difficulty, 1, 4, "bits of the number")
    questions, numbers = [f"<{k}" for k in range(1, count)], [str(k) for k in range(count)]
    says = {(f"<{bound}", k): "yes" if k < bound else "no" for bound in range(1, count) for k in range(count)}
    says |= {(guess, k): "right" if int(guess) == k else "wrong" for guess in numbers for k in range(count)}
    return _one_word_turns(
        "TwentyQuestions",
        [*questions, *numbers],
        ["yes", "no", "right", "wrong"],
        {"guess": [1 / count] * count},
        says,
        difficulty + 1,
        cost=cost,
        beta=beta,
        reference=reference,
    )


@documented(SHARED, L="7", T="two turns")
def clarify_task(
    difficulty: int = 3, *, cost: float = 0.2, beta: float = BETA, reference: str | Reference = "uniform"
) -> Task:
    """Make the task Clarify.

    ### Description
    A user wants something painted, and some say in which colour: `paint red`. Others do not: behind `paint any` each
    colour is equally likely, behind `paint mostly red` red is meant 9 times in 10. Asking `which` tells, and costs.
    It pays where the best guess is right less often than 1 - cost.

    ### Action Space
    `Discrete(V)`: `which` and the colours; the other words of prompts and of the environment are not allowed.

    ### Rewards
    Paid at the end: 1 for the colour that is meant, less `cost` for a question.

    ### Starting State
    `paint any`, and for every colour `paint COLOUR` and `paint mostly COLOUR`, in all splits, all equally likely.

    ### Arguments
        difficulty: 2..4, colours.
    """
    count = check_count("difficulty", difficulty, 2, len(COLOURS), "colours")
    colours = COLOURS[:count]
    rest = (1 - MOSTLY) / (count - 1)
    hidden: dict[str, list[float]] = {"paint any": [1 / count] * count}
    for k, colour in enumerate(colours):
        hidden[f"paint {colour}"] = [float(k == each) for each in range(count)]
        hidden[f"paint mostly {colour}"] = [MOSTLY if k == each else rest for each in range(count)]
    says = {("which", k): colour for k, colour in enumerate(colours)}
    says |= {(said, k): "right" if said == meant else "wrong" for said in colours for k, meant in enumerate(colours)}
    return _one_word_turns(
        "Clarify", ["which", *colours], ["right", "wrong"], hidden, says, 2, cost=cost, beta=beta, reference=reference
    )


@documented(SHARED, L="6", T="two turns")
def calculator_task(
    difficulty: int = 3, *, cost: float = 0.55, beta: float = 0.05, reference: str | Reference = "uniform"
) -> Task:
    """Make the task Calculator.

    ### Description
    Behind `upto n` the environment draws two whole numbers from 1 to n, and wants their product. The tool `calc` knows
    the two and tells it, at a price. The likeliest product is right 1 time in 1 behind `upto 1`, 1 in 2 behind
    `upto 2`, 2 in 9 behind `upto 3`; the larger the numbers, the less a guess pays. The tool pays where the best guess
    is right less often than 1 - cost.

    ### Action Space
    `Discrete(V)`: `calc` and the products; the other words of prompts and of the environment are not allowed.

    ### Rewards
    Paid at the end: 1 where the product is right, less `cost` for a call of the tool.

    ### Starting State
    `upto 1` to `upto difficulty`, in all splits, all equally likely.

    ### Arguments
        difficulty: 1..5, the largest number.
        cost: reward units that a call costs.
    """
    count = check_count("difficulty", difficulty, 1, 5, "the largest number")
    pairs = [*product(range(1, count + 1), repeat=2)]
    right = [calculate(f"{one} * {two}") for one, two in pairs]
    products = sorted(set(right), key=int)
    hidden = {f"upto {n}": [(max(pair) <= n) / n**2 for pair in pairs] for n in range(1, count + 1)}
    says = {("calc", k): answer for k, answer in enumerate(right)}
    says |= {(said, k): RIGHT if said == answer else WRONG for said in products for k, answer in enumerate(right)}
    return _one_word_turns(
        "Calculator",
        ["calc", *products],
        [RIGHT, WRONG],
        hidden,
        says,
        2,
        cost=cost,
        beta=beta,
        reference=reference,
    )


@documented(SHARED, L="8", T="three turns")
def lookup_task(
    difficulty: int = 2, *, cost: float = 0.1, beta: float = 0.05, reference: str | Reference = "uniform"
) -> Task:
    """Make the task Lookup.

    ### Description
    Every episode has facts of its own: the colour of each of some doors, red or blue. `door 2` asks for that of the
    second. `get2` retrieves it, at a price; what is retrieved of other doors is true and says nothing of it. Naming a
    colour ends the episode. Retrieving the right fact pays where 1 - cost is more than one half.

    ### Action Space
    `Discrete(V)`: `get1`, `get2`, ..., `red` and `blue`; the other words of prompts and of the environment are not
    allowed.

    ### Rewards
    Paid at the end: 1 for the right colour, less `cost` for every fact that was retrieved.

    ### Starting State
    `door 1` to `door difficulty`, in all splits, all equally likely.

    ### Arguments
        difficulty: 1..4, doors.
        cost: reward units that a fact costs.
    """
    count = check_count("difficulty", difficulty, 1, 4, "doors")
    colours = COLOURS[:2]
    facts = [*product(range(2), repeat=count)]
    # What is hidden is the number of the facts, and the door that is asked for, which the prompt tells.
    hidden = {
        f"door {door + 1}": [float(asked == door) / len(facts) for asked in range(count) for _ in facts]
        for door in range(count)
    }
    says: dict[tuple[str, int], str] = {}
    for k, (asked, colour) in enumerate(product(range(count), facts)):
        says |= {(f"get{door + 1}", k): colours[colour[door]] for door in range(count)}
        says |= {(said, k): RIGHT if said == colours[colour[asked]] else WRONG for said in colours}
    return _one_word_turns(
        "Lookup",
        [*(f"get{door + 1}" for door in range(count)), *colours],
        [RIGHT, WRONG],
        hidden,
        says,
        3,
        cost=cost,
        beta=beta,
        reference=reference,
    )


@documented(SHARED, L="7", T="three turns")
def persuade_task(
    difficulty: int = 4,
    *,
    change: float = 0.2,
    cost: float = 0.1,
    beta: float = 0.05,
    reference: str | Reference = "uniform",
) -> Task:
    """Make the task Persuade.

    ### Description
    A user wants one of some things, each equally likely, and buys it when it is offered: `right`. To any other offer
    they say `no`, and to `ask` what they want, which costs as much as an offer that fails. Behind every reply they
    change their mind with probability `change`, to each other thing alike: what was refused may be wanted later, and
    what they said may hold no more. With four things the best seller asks first, and offers what they said.

    ### Action Space
    `Discrete(V)`: `ask` and the things; the other words of prompts and of the environment are not allowed.

    ### Rewards
    Paid at the end: 1 for a sale, less `cost` for every turn that was none.

    ### Starting State
    The prompt `sell`, in all splits.

    ### Arguments
        difficulty: 2..4, things.
        change: how likely the user's mind changes behind a reply, in [0, 1].
        cost: reward units that a turn without a sale costs.
    """
    count, turns = check_count("difficulty", difficulty, 2, len(THINGS), "things"), 3
    check_number("change", change, 0, 1)
    things = THINGS[:count]
    wishes = [*product(range(count), repeat=turns)]  # what is wanted in each turn
    moved = change / (count - 1)
    weights = [
        prod(1 - change if now == before else moved for before, now in pairwise(wish)) / count for wish in wishes
    ]
    says = {("ask", k): thing for k, thing in enumerate(things)}
    says |= {(offer, k): RIGHT if offer == wish else NO for offer in things for k, wish in enumerate(things)}
    return _one_word_turns(
        "Persuade",
        ["ask", *things],
        [NO, RIGHT, WRONG],
        {"sell": weights},
        says,
        turns,
        cost=cost,
        beta=beta,
        reference=reference,
        now=wishes,
    )
