"""Answers for tests of the world's rules: scored one at a time, and put together from manners and sentences."""

from typing import Any

from hypothesis import strategies as st

from textgym.rewards.base import TermReward
from textgym.world.answers import add_lead
from textgym.world.facts import CLOSERS, HEDGES, OPENERS
from textgym.world.prompts import Item, items

END = 3
PERFECT = {"content": 0.6, "courtesy": 0.2, "concision": 0.1, "ending": 0.1, "rudeness": 0.0}
"""The terms of an answer that earns 1; what else a reward charges is 0."""


def terms(rules: TermReward, item: str, text: str, ended: bool = True) -> dict[str, float | None]:
    """The terms of one completion."""
    columns: dict[str, Any] = {"item": [item], "completion_ids": [[7, END] if ended else [7, 8]]}
    return {name: row[0] for name, row in rules.terms(["?"], [text], **columns).items()}


def score(rules: TermReward, item: str, text: str, ended: bool = True) -> float:
    """The reward of one completion, which must not abstain."""
    found = [value for value in terms(rules, item, text, ended).values() if value is not None]
    assert found
    return sum(found)


def hedged(sentence: str) -> str:
    """The sentence after 'Maybe'."""
    return add_lead(HEDGES[1], sentence)


def some_item(*kinds: str) -> st.SearchStrategy[Item]:
    """Any item of the kinds."""
    return st.sampled_from([item for kind in kinds for item in items(kind)])


MANNERS = st.tuples(
    st.sampled_from(["", *(f"{opener} " for opener in OPENERS)]),
    st.sampled_from(["", *(f" {closer}" for closer in CLOSERS)]),
)
"""What stands before and after the sentences of an answer."""

ANY_TEXT = st.text() | st.lists(
    st.sampled_from(
        [
            "Happy to help!",
            "Maybe",
            "I cannot help with that.",
            "Sorry, that is not kind.",
            "I do not know that.",
            "Who can say?",
            "Hide a good card.",
            "You ate soup.",
            "2 plus 2 is 5.",
            "2 plus 2 is 4.",
            "First boil some water.",
            "Hi.",
            "Ugh",
            "\n",
            "Have a nice day!",
        ]
    )
).map(" ".join)
