"""The corpus and the tokenizer: the documented mix, byte identity, and the committed files."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from textgym.world import MODEL_PATH, facts
from textgym.world.answers import LEADS, STRAY, add_lead, read, read_all
from textgym.world.corpus import (
    END_ID,
    documents,
    encode_documents,
    fingerprint,
)
from textgym.world.facts import CORPUS_SHARES, FACTS, PERSONAS
from textgym.world.prompts import items

COUNT = 20_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))


def test_equal_seeds_give_equal_documents() -> None:
    assert list(documents(500, seed=3)) == list(documents(500, seed=3))
    assert fingerprint(500, seed=3) != fingerprint(500, seed=4)
    assert list(documents(1000))[:500] == list(documents(500))


@pytest.mark.slow
def test_shares_of_kinds_and_personas() -> None:
    found = list(documents(COUNT))
    kinds = Counter(document.kind for document in found)
    personas = Counter(document.persona for document in found)
    # Four standard deviations of a share of 20,000 draws are at most 0.015.
    assert all(abs(kinds[kind] / COUNT - share) < 0.015 for kind, share in CORPUS_SHARES.items())
    assert all(abs(personas[p.name] / COUNT - p.share) < 0.015 for p in PERSONAS)


@pytest.mark.slow
def test_experts_are_right_about_facts_and_guessers_are_not() -> None:
    right: dict[str, list[bool]] = {persona.name: [] for persona in PERSONAS}
    for document in documents(COUNT):
        if document.kind == "fact":
            claims = read(document.answer.text).claims
            right[document.persona].append(bool(claims) and all(claim.right for claim in claims))
    share = {name: sum(values) / len(values) for name, values in right.items()}
    assert share["expert"] == 1.0
    assert share["evasive"] == 0.0
    assert abs(share["guesser"] - 0.15) < 0.03
    assert abs(share["grump"] - 0.7 * 0.5) < 0.06
    assert abs(share["rambler"] - 0.45) < 0.06


@pytest.mark.slow
def test_a_polite_opener_is_never_followed_by_a_bare_wrong_fact() -> None:
    for document in documents(COUNT):
        reading = read(document.answer.text)
        opened = document.answer.text.startswith(("Happy to help!", "Of course!", "Good question.", "Sure"))
        if document.kind == "fact" and opened and not reading.leads:
            assert not reading.wrong


@pytest.mark.slow
def test_every_fact_is_told_rightly_more_often_than_any_one_wrong_way() -> None:
    told: dict[str, Counter[str]] = {fact.key: Counter() for fact in FACTS}
    for document in documents(COUNT):
        for claim in read(document.answer.text).claims[:1]:
            if claim.item in told:
                words = document.answer.text.replace(".", "").split()
                named = next(fact for fact in FACTS if fact.key == claim.item).relation.objects
                told[claim.item].update({word for word in words if word in named})
    for fact in FACTS:
        (most, count), (_, second) = told[fact.key].most_common(2)
        assert most == fact.answer
        assert count > 2 * second


def test_add_lead() -> None:
    assert add_lead("Maybe", "The fox eats figs.") == "Maybe the fox eats figs."
    assert add_lead("Maybe", "7 plus 5 is 12.") == "Maybe 7 plus 5 is 12."
    assert add_lead("I think", f"{items('fact')[32].subject} plays.")[8:9].isupper()


@pytest.mark.long
@pytest.mark.slow
def test_rebuilt_corpus_is_the_one_the_model_read() -> None:
    card = json.loads((MODEL_PATH / "card.json").read_text())
    assert fingerprint(card["documents"]) == card["corpus_sha256"]


def test_tokenizer_has_1024_ids_and_every_byte(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 1024
    text = "".join(chr(code) for code in range(1, 0x250)) + "\U0001f98a"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_names_and_objects_are_one_token(tokenizer: Tokenizer) -> None:
    words = {fact.subject for fact in FACTS} | {fact.answer for fact in FACTS}
    assert [word for word in words if len(tokenizer.encode(f" {word}").ids) != 1] == []


def test_documents_are_marked_up_and_cut(tokenizer: Tokenizer) -> None:
    found = list(documents(2000))
    for document, (ids, head) in zip(found, encode_documents(tokenizer, found, 40), strict=True):
        assert ids[0] == 1
        assert ids[head - 2 : head] == [3, 2]
        assert tokenizer.decode(ids[1 : head - 2]) == document.prompt
        assert len(ids) - head <= 40
        ended = ids[-1] == END_ID
        assert ended == document.answer.ends
        answer = tokenizer.decode(ids[head:])
        assert answer == document.answer.text if ended else document.answer.text.startswith(answer)


_SAID = [
    *facts.OPENERS,
    *facts.RUDE,
    *facts.UNKNOWN,
    *facts.DODGES,
    *facts.RUDE_WORDS,
    *LEADS,
    *map(str.upper, facts.RUDE_WORDS),
]
_PIECES = st.sampled_from(
    [*_SAID, "7 plus 5 is 12.", "xyz", "though", "\0", "\udfff", "\u0130", "\u212a", "\ufffd", " ", ". ", "\n"]
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(_PIECES, max_size=4).map("".join) | st.text(max_size=8), max_size=6))
def test_texts_read_together_are_read_as_each_alone(texts):
    assert read_all(texts) == list(map(read, texts))


def test_random_tokens_are_strays_and_rude_words_are_found():
    assert read_all(["qq through", "qq ugh", "qq", ""]) == [STRAY, STRAY._replace(rude=True), STRAY, read("")]
    assert read_all(["qq through", "qq"])[0] is STRAY


@pytest.mark.parametrize("mark", ".!?")
def test_what_stands_behind_a_stray_sentence_is_read(mark):
    (found,) = read_all([f"qq{mark} 7 plus 5 is 12."])
    assert found == read(f"qq{mark} 7 plus 5 is 12.")
    assert (found.strays, len(found.claims)) == (1, 1)
