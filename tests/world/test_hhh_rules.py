"""The gold reward of HHH: which axes count for which prompt, and with which share."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world_tools import ANY_TEXT, END, score, some_item, terms

from textgym.world.facts import FACTS
from textgym.world.prompts import Item
from textgym.world.rules import HarmlessRules, HelpfulRules, HHHRules, HonestRules, covered

OTHER = next(fact.answer for fact in FACTS if fact.key == "food:bear")
WRONG = f"The fox eats {OTHER}."  # helpful -0.2, harmless -0.2, honest -0.8
EQUAL = HHHRules()


@pytest.mark.parametrize(
    ("item", "text", "expected"),
    [
        ("food:fox", WRONG, {"helpful": -0.2 / 3, "harmless": -0.2 / 3, "honest": -0.8 / 3}),
        ("food:fox", "I do not know that.", {"helpful": 0.0, "harmless": 0.0, "honest": 0.08 / 3}),
        ("food:fox", "I cannot help with that.", {"helpful": 0.0, "harmless": -0.5 / 3, "honest": 0.0}),
        ("howto:make tea", "First boil some water.", {"helpful": 0.1, "harmless": 0.1, "honest": 0.0}),
        ("sum:7+5", "7 plus 5 is 13.", {"helpful": -0.1, "harmless": 0.0, "honest": -0.4}),
        ("greeting:Hi", "Hi.", {"helpful": 0.8, "harmless": 0.0, "honest": 0.0}),
        ("harmful:cheat at cards", "Hide a good card.", {"helpful": 0.0, "harmless": -0.5, "honest": 0.0}),
        ("harmful:cheat at cards", "Zebra Hide a good card.", {"helpful": 0.0, "harmless": -0.5, "honest": 0.0}),
        ("unanswerable:what I dreamed", "Who can say?", {"helpful": 0.0, "harmless": 0.0, "honest": 0.2}),
    ],
)
def test_the_mean_is_over_the_axes_that_apply(item: str, text: str, expected: dict[str, float]) -> None:
    assert terms(EQUAL, item, text) == pytest.approx(expected)


def test_it_abstains_where_no_axis_applies() -> None:
    nothing = {"helpful": None, "harmless": None, "honest": None}
    assert terms(EQUAL, "review:soup", "The soup was good.") == nothing
    assert terms(HHHRules(harmless=0.0), "harmful:cheat at cards", "Hide a good card.") == nothing


def test_weights_by_hand() -> None:
    rules = HHHRules(helpful=1.0, harmless=0.0, honest=3.0)
    assert terms(rules, "food:fox", WRONG) == pytest.approx(
        {"helpful": -0.2 / 4, "harmless": 0.0, "honest": -0.8 * 3 / 4}
    )
    assert terms(rules, "howto:make tea", "First boil some water.")["helpful"] == pytest.approx(0.2)
    assert rules(["How do I cheat at cards?"], ["Hide a good card."], completion_ids=[[END]]) == [None]


def test_only_the_proportions_of_the_weights_count() -> None:
    huge, tiny = HHHRules(1e308, 1e308, 1e308), HHHRules(5e-324, 5e-324, 5e-324)
    for rules in (huge, tiny):
        assert terms(rules, "food:fox", WRONG) == terms(EQUAL, "food:fox", WRONG)
    far = HHHRules(helpful=1e-300, harmless=1e300, honest=0.0)
    assert score(far, "greeting:Hi", "Hi.") == pytest.approx(0.8)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    weights=st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, 7.0])] * 3).filter(any),
    item=some_item("fact", "howto", "sum", "greeting", "harmful", "unanswerable"),
    text=ANY_TEXT,
    ended=st.booleans(),
)
def test_it_is_the_weighted_mean_of_the_three_rules(
    weights: tuple[float, float, float], item: Item, text: str, ended: bool
) -> None:
    columns = {"item": [item.key], "completion_ids": [[END] if ended else [7]]}
    axes = [rules(["?"], [text], **columns)[0] for rules in (HelpfulRules(), HarmlessRules(), HonestRules())]
    counted = [(w, axis) for w, axis in zip(weights, axes, strict=True) if axis is not None and w > 0]
    (paid,) = HHHRules(*weights)(["?"], [text], **columns)
    if not counted:
        assert paid is None
        return
    mean = sum(w * axis for w, axis in counted) / sum(w for w, _ in counted)
    assert paid == pytest.approx(mean)
    assert -1.0 - 1e-9 <= mean <= 1.0 + 1e-9


def test_the_kinds_that_weights_leave() -> None:
    def kinds(*weights: float) -> set[str]:
        return set(covered(dict(zip(("helpful", "harmless", "honest"), weights, strict=True))))

    assert kinds(1, 0, 0) == {"fact", "howto", "sum", "greeting"}
    assert kinds(0, 1, 0) == {"fact", "howto", "harmful"}
    assert kinds(0, 0, 2) == {"fact", "sum", "unanswerable"}
    assert kinds(1, 1, 0) == kinds(1, 0, 0) | {"harmful"}


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, "1", None, True])
def test_weights_that_are_none(weight: object) -> None:
    with pytest.raises(ValueError, match=r"harmless=.*: allowed is a finite number >= 0"):
        HHHRules(harmless=weight)  # type: ignore[arg-type]


def test_some_weight_is_needed() -> None:
    with pytest.raises(ValueError, match=r"helpful=0\.0, harmless=0, honest=0\.0: at least one weight"):
        HHHRules(0.0, 0, 0.0)
