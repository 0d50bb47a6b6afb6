"""The world's data: counts, distinctness and splits."""

from collections import Counter

import pytest

from textgym.world.facts import (
    CORPUS_SHARES,
    FACTS,
    HARMFUL,
    HOWTO_MISTAKES,
    HOWTOS,
    PEOPLE,
    PERSONAS,
    RELATIONS,
    RIVERS,
    TOWNS,
    UNANSWERABLE,
    step_sentences,
)
from textgym.world.prompts import KINDS, PHRASINGS, find_item, items, phrase, prompts


def test_counts() -> None:
    assert len(FACTS) == 96
    assert Counter(fact.relation.name for fact in FACTS) == dict.fromkeys(
        ("river", "craft", "job", "instrument", "food", "home"), 16
    )
    assert len(HOWTOS) == 25
    assert len(HARMFUL) == 20
    assert len(UNANSWERABLE) == 25
    assert len(items("sum")) == 100
    assert all(len(set(forms)) == 6 for forms in PHRASINGS.values())


def test_names_are_words_and_distinct() -> None:
    names = TOWNS + RIVERS + PEOPLE
    assert len(set(names)) == 48
    assert all(name.isalpha() and name.istitle() for name in names)


def test_objects_are_single_words_and_distinct_within_a_relation() -> None:
    for relation in RELATIONS:
        objects = [fact.answer for fact in FACTS if fact.relation is relation]
        assert sorted(objects) == sorted(relation.objects)
        assert len(set(objects)) == 16
        assert not any(" " in word for word in objects)


def test_statements_end_with_their_object() -> None:
    assert all(frame.endswith(" {y}.") for relation in RELATIONS for frame in relation.frames)


def test_every_step_belongs_to_one_howto_and_is_short() -> None:
    steps = [step for steps in HOWTOS.values() for step in steps]
    assert len(set(steps)) == 75
    assert all(2 <= len(step.split()) <= 4 for step in steps)


def test_step_sentences() -> None:
    assert step_sentences(("a b", "c d", "e f")) == ["First a b.", "Then c d.", "Last e f."]
    assert step_sentences(("a b", "c d")) == ["First a b.", "Last c d."]


@pytest.mark.parametrize(
    ("kind", "count", "held_out"),
    [
        ("fact", 96, 24),
        ("howto", 25, 6),
        ("sum", 100, 26),
        ("greeting", 8, 2),
        ("harmful", 20, 5),
        ("unanswerable", 25, 6),
        ("review", 16, 4),
    ],
)
def test_about_a_quarter_is_held_out(kind: str, count: int, held_out: int) -> None:
    assert len(items(kind)) == count
    assert sum(item.held_out for item in items(kind)) == held_out


def test_four_subjects_of_every_class_are_held_out() -> None:
    held = {(item.group, item.subject) for item in items("fact") if item.held_out}
    assert Counter(group for group, _ in held) == dict.fromkeys([r.name for r in RELATIONS], 4)
    assert {s for g, s in held if g == "river"} == {s for g, s in held if g == "craft"}


def test_a_held_out_sum_is_held_out_either_way_round() -> None:
    held = {item.subject for item in items("sum") if item.held_out}
    assert {" plus ".join(reversed(subject.split(" plus "))) for subject in held} == held


@pytest.mark.parametrize("kind", KINDS)
def test_splits_share_no_item_and_no_phrasing(kind: str) -> None:
    train, held_out = prompts([kind], "train"), prompts([kind], "eval")
    assert not {p.item for p in train} & {p.item for p in held_out}
    assert {p.item for p in train} | {p.item for p in held_out} == {item.key for item in items(kind)}
    by_key = {item.key: item for item in items(kind)}
    for split, numbers in ((train, range(4)), (held_out, range(4, 6))):
        assert len(split) == len({p.item for p in split}) * len(numbers)
        assert {p.text for p in split} == {phrase(by_key[p.item], n) for p in split for n in numbers}


def test_prompts_of_a_kind_share_its_weight() -> None:
    found = prompts({"fact": 3.0, "greeting": 1.0}, "train")
    assert sum(p.weight for p in found) == pytest.approx(1.0)
    assert sum(p.weight for p in found if p.kind == "fact") == pytest.approx(0.75)
    assert len({p.weight for p in found if p.kind == "fact"}) == 1


def test_prompt_columns() -> None:
    prompt = next(p for p in prompts(["sum"], "train") if p.item == "sum:7+6")
    assert prompt.columns == {"kind": "sum", "item": "sum:7+6", "answer": ("13",)}
    tea = next(p for p in prompts(["howto"], "train") if p.item == "howto:make tea")
    assert tea.text == "How do I make tea?"
    assert tea.columns["answer"] == ("boil some water", "add the leaves", "pour the tea")


def test_every_prompt_asks_for_one_item() -> None:
    asked = [(phrase(item, n), item.key) for kind in KINDS for item in items(kind) for n in range(6)]
    assert len({text for text, _ in asked}) == len(asked)
    assert all(find_item(text) == key for text, key in asked)
    assert find_item("What is love?") is None


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="split 'test': not a split"):
        prompts(["fact"], "test")
    with pytest.raises(ValueError, match="kind 'facts': not a kind"):
        prompts(["facts"], "train")
    with pytest.raises(ValueError, match="every share above 0"):
        prompts({"fact": 0.0}, "train")
    with pytest.raises(ValueError, match="at least one kind"):
        prompts([], "train")


def test_shares_are_distributions() -> None:
    assert sum(persona.share for persona in PERSONAS) == pytest.approx(1.0)
    assert sum(CORPUS_SHARES.values()) == pytest.approx(1.0)
    assert sum(HOWTO_MISTAKES.values()) == pytest.approx(1.0)
    assert set(CORPUS_SHARES) == set(KINDS)
    assert all(set(persona.right) == set(KINDS) for persona in PERSONAS)
