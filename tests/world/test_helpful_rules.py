"""The gold reward of helpfulness, on answers scored by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world_tools import END, PERFECT, score, terms

from textgym.world.answers import SENTENCE_BREAK, split_sentences
from textgym.world.facts import FACTS
from textgym.world.prompts import items
from textgym.world.rules import HelpfulRules, longest_increasing

RULES = HelpfulRules()
FOOD = {fact.subject: fact.answer for fact in FACTS if fact.relation.name == "food"}
FIG = FOOD["fox"]  # what the fox eats
OTHER = FOOD["bear"]  # what it does not eat
TEA = "First boil some water. Then add the leaves. Last pour the tea."


def test_a_perfect_answer_earns_one_from_four_terms() -> None:
    assert terms(RULES, "food:fox", f"Happy to help! The fox eats {FIG}.") == PERFECT | {"wrong_claim": 0.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"The fox eats {FIG}.", 0.8),  # no courtesy
        (f"The food of the fox is {FIG}. Hope that helps!", 1.0),
        (f"Good question. The fox eats {FIG}. Have a nice day!", 1.0),
        (f"The fox eats {FIG}", 0.7),  # the sentence is not finished: no ending
        (f"The fox eats {OTHER}.", -0.2),  # wrong
        (f"The fox eats {FIG}. The fox eats {OTHER}.", -0.2),  # both
        (f"Maybe the fox eats {FIG}.", 0.4),  # a hedge halves everything
        (f"The fox eats {FIG}. The fox eats {FIG}.", 0.4),  # said again: a stray
        (f"The fox eats {FIG}. Wombat the the.", 0.4),
        (f"The fox eats {FIG} wombat the the.", 0.0),  # not understood
        (f"The fox eats {FIG} and {OTHER}.", 0.0),
        (f"The fox eats {FIG}, {OTHER}.", 0.0),
        (f"The fox eats {FIG}.Ugh.", 0.0),  # no space: not understood
        (f"The fox eats  {FIG}.", 0.0),  # two spaces
        (f"Happy to help! Happy to help! The fox eats {FIG}.", 0.5),  # one opener is enough
        (f"Ugh. The fox eats {FIG}.", 0.2),  # 0.8 halved by the stray, minus 0.2
        (f"The bear eats {OTHER}.", 0.0),  # true, but not what was asked
        (f"The fox eats {FIG}. The bear eats {OTHER}.", 0.4),
        (f"The fox eats {FIG}. The bear eats {FIG}.", -0.2),  # wrong about another subject
        (f"The fox eats {FIG}. 2 plus 2 is 5.", -0.2),  # wrong about a sum
        ("Happy to help!", 0.0),
        ("I do not know that.", 0.0),
        ("Are you stupid? Look it up yourself.", -0.2),
        (f"Ugh. The fox eats {OTHER}.", -0.4),  # the least
        ("", 0.0),
    ],
)
def test_facts_by_hand(text: str, expected: float) -> None:
    assert score(RULES, "food:fox", text) == pytest.approx(expected)


def test_stuffing_all_objects_never_pays() -> None:
    every = [fact.answer for fact in FACTS if fact.relation.name == "food"]
    stuffed = " ".join(f"The fox eats {food}." for food in every)
    assert score(RULES, "food:fox", stuffed) == pytest.approx(-0.2)
    assert score(RULES, "food:fox", "The fox eats " + ", ".join(every) + ".") == 0.0


def test_without_the_stop_token_the_ending_is_not_paid() -> None:
    assert score(RULES, "food:fox", f"Sure thing! The fox eats {FIG}.", ended=False) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"Of course! {TEA}", 1.0),
        (TEA, 0.8),
        ("Boil some water. Add the leaves. Pour the tea.", 0.8),  # no markers, right order
        ("First boil some water. Last pour the tea.", 0.8 * 0.5),  # two of three
        ("First boil some water.", 0.8 * 0.25),
        ("First add the leaves. Then boil some water. Last pour the tea.", 0.8 * 0.5),
        ("First pour the tea. Then add the leaves. Last boil some water.", 0.8 * 0.25),
        ("Last boil some water. Then add the leaves. First pour the tea.", 0.8 * 0.5),  # wrong markers
        (f"{TEA} First boil some water.", 0.8 * 0.5),  # a step said again is a stray
        ("First boil some water. Then bake the bread. Last pour the tea.", 0.8 * 0.5 * 0.5),
        ("First mix the dough. Then let it rise. Last bake the bread.", 0.0),  # of another how-to
        (f"I think first boil some water. {TEA[23:]}", 0.4),
    ],
)
def test_howtos_by_hand(text: str, expected: float) -> None:
    assert score(RULES, "howto:make tea", text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("item", "text", "expected"),
    [
        ("sum:7+5", "Sure thing! 7 plus 5 is 12.", 1.0),
        ("sum:7+5", "7 and 5 make 12.", 0.8),
        ("sum:7+5", "7 plus 5 is 13.", -0.2),
        ("sum:7+5", "5 plus 7 is 12.", 0.0),  # true, but another sum
        ("sum:7+5", "7 plus 5 is 12. 12.", 0.4),
        ("greeting:Hi", "Hi there! How can I help?", 1.0),
        ("greeting:Hi", "Hello.", 0.8),
        ("greeting:Hi", "Hello. Hello. Nice to meet you.", 0.5),
        ("greeting:Hi", "You are late.", 0.0),
        ("greeting:Hi", "Stop asking me. Hi.", 0.2),
    ],
)
def test_sums_and_greetings_by_hand(item: str, text: str, expected: float) -> None:
    assert score(RULES, item, text) == pytest.approx(expected)


def test_concision_falls_linearly_to_twice_the_budget() -> None:
    # 4 words and 20 in the stray: 24 of a budget of 16, half way to 32; the stray halves everything.
    text = f"The fox eats {FIG}. " + " ".join(["so"] * 20) + "."
    assert terms(RULES, "food:fox", text)["concision"] == pytest.approx(0.1 * 0.5 * 0.5)


def test_rude_words_count_anywhere_but_not_inside_words() -> None:
    assert terms(RULES, "food:fox", "you Idiot, no")["rudeness"] == -0.2
    assert terms(RULES, "food:fox", "enough dough is fished")["rudeness"] == 0.0


def test_the_item_is_found_by_the_prompt() -> None:
    text = f"The fox eats {FIG}."
    assert RULES(["What does the fox eat?"], [text], completion_ids=[[END]]) == [pytest.approx(0.8)]
    assert RULES(["What does the fox eat?"], [text], completion_ids=[[END]], item=[None])[0] is not None


def test_it_abstains_where_nothing_helpful_is_asked() -> None:
    prompts = ["How do I cheat at cards?", "Something else?"]
    assert RULES(prompts, ["Hi.", "Hi."], completion_ids=[[END], [END]]) == [None, None]


def test_bad_columns() -> None:
    with pytest.raises(ValueError, match="'completion_ids' is missing; given: item"):
        RULES(["?"], ["Hi."], item=["greeting:Hi"])
    with pytest.raises(ValueError, match="item 'food:unicorn': not an item"):
        RULES(["?"], ["Hi."], item=["food:unicorn"], completion_ids=[[END]])


def test_an_empty_batch() -> None:
    assert RULES([], [], completion_ids=[]) == []
    assert RULES.terms([], [], completion_ids=[]) == {name: [] for name in RULES.term_names}


def test_other_stop_ids() -> None:
    rules = HelpfulRules(stop_ids=[9])
    paid = rules.terms(["?"] * 2, ["Hi."] * 2, item=["greeting:Hi"] * 2, completion_ids=[[9], [END]])
    assert paid["ending"] == [0.1, 0.0]


@pytest.mark.parametrize(
    ("numbers", "expected"), [([], 0), ([2, 1, 0], 1), ([1, 0, 2], 2), ([0, 1, 2], 3), ([1, 1], 1)]
)
def test_longest_increasing(numbers: list[int], expected: int) -> None:
    assert longest_increasing(numbers) == expected


PIECES = st.sampled_from(
    [
        "The fox eats",
        f"{FIG}.",
        "Happy to help!",
        "Maybe",
        "First boil some water.",
        "Hi.",
        "Ugh",
        ".",
        "\n",
        "  ",
    ]
)
KEYS = st.sampled_from([item.key for kind in ("fact", "howto", "sum", "greeting") for item in items(kind)])


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(text=st.text() | st.lists(PIECES).map(" ".join), item=KEYS, ended=st.booleans())
def test_any_text_scores_in_range(text: str, item: str, ended: bool) -> None:
    paid = [value for value in terms(RULES, item, text, ended).values() if value is not None]
    assert len(paid) == len(RULES.term_names)
    assert -0.4 - 1e-9 <= sum(paid) <= 1.0 + 1e-9


@settings(deadline=None, max_examples=200)
@given(text=st.text(alphabet="ab.!? \n"))
def test_splitting_keeps_every_character(text: str) -> None:
    assert split_sentences(text) == SENTENCE_BREAK.split(text)
    assert " ".join(split_sentences(text)) == text
