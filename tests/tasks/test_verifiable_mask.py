"""The grammar mask: every legal continuation and no other, proved by enumeration; odd states and vocabularies."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from core_tools import hugging_face
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from textgym.grammar import GrammarMask, json_grammar, regex_grammar, token_bytes
from textgym.state import Prompt, TokenState
from textgym.vocab import Vocabulary, load_vocabulary

SHARED = Path(os.environ.get("TEXTGYM_SHARED", Path(__file__).resolve().parents[3] / "shared"))
PROMPT = Prompt("p", (0,), None)
FORM = {
    "type": "object",
    "properties": {
        "name": {"enum": ["fox", "bear"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 20},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}


def states(completions: Any) -> list[TokenState]:
    return [TokenState(PROMPT, tuple(completion)) for completion in completions]


def pieces(*tokens: str) -> Vocabulary:
    """A vocabulary of tokens that stand one after the other, with two stop tokens and an unused row."""
    ids = {token: i for i, token in enumerate([*tokens, "<stop>", "<halt>"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=tokens[0]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<stop>", "<halt>"])
    return load_vocabulary(tokenizer, stop=["<stop>", "<halt>"], vocab_size=len(ids) + 1)


def no_integer(text: str) -> Any:
    raise ValueError(text)


def is_legal(text: str, schema: Any) -> bool:
    """By the words of the documentation, and without the grammar."""
    try:
        value = json.loads(text, parse_float=no_integer)
    except ValueError:
        return False
    ordered = True
    if isinstance(value, dict):
        keys = [key for key in schema["properties"] if key in value]
        ordered = list(value) == keys
    if text == "-0" and schema.get("minimum", 0) < 0:
        return True
    compact = json.dumps(value, separators=(",", ":"), ensure_ascii=False) == text
    return compact and ordered and jsonschema.Draft202012Validator(schema).is_valid(value)


# Schema, tokens, how many of them the longest legal text has, how many ways to write legal texts there are.
CASES = {
    # -1 -0 0 1 2 10 11, and 12 in two ways.
    "numbers": (
        {"type": "integer", "minimum": -1, "maximum": 12},
        ("-", "0", "1", "2", "12", " ", ".", "e"),
        3,
        9,
    ),
    # [] 1, [0] 2, [1] 2, [0,0] 3, [0,1] 3 * 2, [1,0] 1, [1,1] 2.
    "lists": (
        {"type": "array", "items": {"enum": [0, 1]}, "maxItems": 2},
        ("[", "]", ",", "0", "1", "0,", "1]", " ", "[0"),
        5,
        17,
    ),
    # "a" 1, "b a" 2, 7 1, null 2.
    "texts": ({"enum": ["a", "b a", 7, None]}, ('"', "a", "b", " ", '"b', "null", "7", "l", "nu"), 5, 6),
    # {"b":true} 1, {"a":0,"b":true} 2; never the other way round.
    "objects": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 1}, "b": {"type": "boolean"}},
            "required": ["b"],
            "additionalProperties": False,
        },
        ("{", "}", '"a":', '"b":true', "0,", '{"a":0,', " "),
        5,
        3,
    ),
}


def enumerated(
    tokens: tuple[str, ...], longest: int, legal: Any, joined: str = ""
) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
    """All complete token strings, and all that some complete one begins with."""
    complete: set[tuple[int, ...]] = set()
    begun: set[tuple[int, ...]] = set()
    for length in range(longest + 1):
        for ids in itertools.product(range(len(tokens)), repeat=length):
            if legal(joined.join(tokens[i] for i in ids)):
                complete.add(ids)
                begun.update(ids[:end] for end in range(length + 1))
    return complete, begun


def check_everywhere(mask: GrammarMask, size: int, complete: Any, begun: Any, longest: int) -> None:
    """At every token string shorter than the longest complete one: exactly its legal continuations."""
    vocabulary = mask.vocabulary
    stops = np.isin(np.arange(vocabulary.size), vocabulary.stop_ids)
    asked = [ids for n in range(longest) for ids in itertools.product(range(size), repeat=n)]
    asked = [ids for ids in asked if ids in begun or ids[:-1] in begun]
    asked += sorted(complete)
    assert len(asked) > 30, "a test of nothing"
    for ids, got in zip(asked, mask(states(asked)), strict=True):
        want = np.array([(*ids, i) in begun for i in range(vocabulary.size)])
        want |= stops & ((ids in complete) or ids not in begun)
        assert np.array_equal(got, want), ids


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_legal_continuation_and_no_other(name: str) -> None:
    schema, tokens, longest, count = CASES[name]
    complete, begun = enumerated(tokens, longest, lambda text: is_legal(text, schema))
    assert len(complete) == count
    assert max(map(len, complete)) <= longest  # so that no legal text is too long to be found
    for places in (1, 100_000):
        mask = GrammarMask(pieces(*tokens), json_grammar(schema), places)
        check_everywhere(mask, len(tokens), complete, begun, longest)


def test_the_same_with_spaces_between_words() -> None:
    schema = {"enum": ["a", "a b", "b b", "a b a"]}
    words = ('"a"', '"a', '"b', "a", "b", 'b"', 'a"', '"')
    complete, begun = enumerated(words, 3, lambda text: is_legal(text, schema), " ")
    assert len(complete) == 4
    mask = GrammarMask(load_vocabulary([*words, "<stop>"], stop="<stop>"), json_grammar(schema))
    got = mask(states(sorted(begun)))
    for ids, row in zip(sorted(begun), got, strict=True):
        allowed = {i for i in range(len(words)) if (*ids, i) in begun}
        found = set(np.flatnonzero(row[:-1]).tolist())
        # Where a word's quote can be closed by no word of this vocabulary the mask does not see it coming.
        assert allowed <= found, ids
        assert bool(row[-1]) == (ids in complete or not found), ids


@pytest.mark.parametrize(("pattern", "texts"), [("a(b|cc)?", {"a", "ab", "acc"}), ("[ab]{1,2}", {"a", "b", "aa"})])
def test_the_same_for_regular_expressions(pattern: str, texts: set[str]) -> None:
    tokens = ("a", "b", "c", "cc", "ab")
    complete, begun = enumerated(tokens, 4, lambda text: re.fullmatch(pattern, text) is not None)
    assert texts <= {"".join(tokens[i] for i in ids) for ids in complete}
    check_everywhere(GrammarMask(pieces(*tokens), regex_grammar(pattern)), 5, complete, begun, 4)


def vocabularies() -> list[Any]:
    small = SHARED / "models" / "stories260K"
    missing = pytest.mark.skipif(not small.is_dir(), reason=f"{small} is missing (set TEXTGYM_SHARED)")
    return [
        pytest.param({"stop": ["<|end|>", "<|pad|>"], "vocab_size": 1100}, id="builtin"),
        pytest.param({"tokenizer": str(small), "vocab_size": 600}, id="stories260K", marks=missing),
    ]


@pytest.mark.parametrize("options", vocabularies())
def test_sampling_under_the_mask_writes_valid_json_in_every_tokenizer(options: dict[str, Any]) -> None:
    vocabulary = load_vocabulary(**options)
    mask = GrammarMask(vocabulary, json_grammar(FORM))
    generator = np.random.default_rng(0)
    rows: list[tuple[int, ...]] = [()] * 64
    finished = []
    for _ in range(60):
        masks = mask(states(rows))
        assert masks.shape == (len(rows), vocabulary.size)
        assert not (masks & ~vocabulary.allowed).any()
        rows = [(*ids, int(generator.choice(np.flatnonzero(row)))) for ids, row in zip(rows, masks, strict=True)]
        finished += [ids for ids in rows if ids[-1] in vocabulary.stop_ids]
        rows = [ids for ids in rows if ids[-1] not in vocabulary.stop_ids]
        if not rows:
            break
    texts = vocabulary.decode(finished)
    assert len(texts) == 64
    assert all(is_legal(text, FORM) for text in texts)
    assert {ids[-1] for ids in finished} == set(vocabulary.stop_ids)
    assert len({text for text in texts if "fox" in text}) > 5


@pytest.mark.parametrize("options", vocabularies())
def test_every_tokenisation_of_a_legal_text_is_allowed(options: dict[str, Any]) -> None:
    vocabulary = load_vocabulary(**options)
    table = token_bytes(vocabulary)
    mask = GrammarMask(vocabulary, json_grammar(FORM))
    text = b'{"name":"bear","count":20}'

    def after(ids: tuple[int, ...], written: int) -> set[int]:
        spelled = table.inner if written else table.first
        return {i for i, piece in enumerate(spelled) if piece and text.startswith(piece, written)}

    ids: tuple[int, ...] = ()
    written = 0
    generator = np.random.default_rng(1)
    while written < len(text):
        row = mask(states([ids]))[0]
        allowed = after(ids, written)
        assert row[sorted(allowed)].all()
        token = int(generator.choice(sorted(allowed)))
        written += len((table.inner if ids else table.first)[token])
        ids = (*ids, token)
    row = mask(states([ids]))[0]
    assert set(np.flatnonzero(row)) == set(vocabulary.stop_ids)


def test_an_object_has_the_keys_that_its_schema_names_or_one() -> None:
    vocabulary = pieces("{", "}", '"a":', '"b":', "1", ",")
    named = {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": {"const": 1}}
    rows = GrammarMask(vocabulary, json_grammar(named))(states([(0,), (0, 2, 4)]))
    assert [np.flatnonzero(row).tolist() for row in rows] == [[1, 2], [1]]
    # What is required is named too, and keys that nothing names cannot stand twice.
    required = {"type": "object", "required": ["b"], "properties": {"a": {"const": 1}}}
    rows = GrammarMask(vocabulary, json_grammar(required))(states([(0,), (0, 2, 4), (0, 2, 4, 5)]))
    assert [np.flatnonzero(row).tolist() for row in rows] == [[2, 3], [5], [3]]
    for free in ({"type": "object", "additionalProperties": {"const": 1}}, {"type": "object"}, {}):
        rows = GrammarMask(vocabulary, json_grammar(free))(states([(0,), (0, 3, 4)]))
        assert {1, 2, 3} >= set(np.flatnonzero(rows[0]).tolist()) > {1}
        assert 5 not in np.flatnonzero(rows[1])


def test_states_in_any_order_have_the_masks_of_states_in_order() -> None:
    vocabulary = load_vocabulary()
    grammar = json_grammar(FORM)
    ids = vocabulary.codec.encode('{"name":"fox","count":17}')
    line = [tuple(ids[:end]) for end in range(len(ids) + 1)]
    fresh = np.stack([GrammarMask(vocabulary, grammar)(states([each]))[0] for each in line])
    mask = GrammarMask(vocabulary, grammar, places=3)
    for order in (range(len(line)), reversed(range(len(line))), [5, 2, 9, 2, 5, 0, 9]):
        for i in order:
            assert np.array_equal(mask(states([line[i]]))[0], fresh[i])
    assert np.array_equal(mask(states(line)), fresh)
    assert len(mask._kept) == 3


def test_a_step_costs_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = pieces("a", "b")
    mask = GrammarMask(vocabulary, regex_grammar("[ab]*"), places=8)
    taken: list[int] = []
    once = GrammarMask._after
    monkeypatch.setattr(
        GrammarMask, "_after", lambda self, place, token: taken.append(token) or once(self, place, token)
    )
    for length in range(200):
        mask(states([(0,) * length, (1,) * length]))
    assert len(taken) == 2 * 199
    mask(states([(0,) * 100]))  # not kept any more, so from the start
    assert len(taken) == 2 * 199 + 100


def test_what_leaves_no_text_is_passed_over_and_what_is_illegal_leaves_stop_tokens() -> None:
    vocabulary = load_vocabulary(vocab_size=1030)
    mask = GrammarMask(vocabulary, json_grammar(FORM))
    user = vocabulary.codec.token_id("<|user|>")
    brace, letter = vocabulary.codec.encode("{")[0], vocabulary.codec.encode("x")[0]
    plain, passed, unused = mask(states([(brace,), (user, brace, user), (1029, brace)]))
    assert np.array_equal(plain, passed)
    assert np.array_equal(plain, unused)
    assert not plain[user]
    for illegal in [(letter,), (letter, brace), (brace, brace), (letter,) * 100]:
        assert np.flatnonzero(mask(states([illegal]))[0]).tolist() == list(vocabulary.stop_ids)


@pytest.mark.parametrize(("pattern", "dead"), [("ac", (0,)), ("a(b|c)d", (0, 1)), ("cab", ())])
def test_where_no_token_has_the_byte_that_must_come_only_stop_tokens_are_allowed(
    pattern: str, dead: tuple[int, ...]
) -> None:
    mask = GrammarMask(pieces("a", "b"), regex_grammar(pattern))
    further = [dead, (*dead, 0), (*dead, 1, 0), dead]
    assert [np.flatnonzero(row).tolist() for row in mask(states(further))] == [[2, 3]] * 4
    for length, token in enumerate(dead):
        assert np.flatnonzero(mask(states([dead[:length]]))[0]).tolist() == [token]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 1029), max_size=12), min_size=1, max_size=4))
def test_any_state_has_a_mask(completions: list[list[int]]) -> None:
    masks = ANY(states(completions))
    assert masks.any(1).all()
    assert np.array_equal(masks, np.concatenate([ANY(states([each])) for each in completions]))


ANY = GrammarMask(load_vocabulary(vocab_size=1030), regex_grammar(r"(?s).*[.!]"), places=5)


def test_bytes_of_more_than_one_token() -> None:
    vocabulary = load_vocabulary()
    mask = GrammarMask(vocabulary, json_grammar({"enum": ["\u00e9", "\U0001f600"]}))
    quote, ids = vocabulary.codec.encode('"')[0], vocabulary.codec.encode("\U0001f600")
    rows = mask(states([(quote,), (quote, ids[0]), (quote, *ids[:2])]))
    assert len(ids) > 2
    assert [vocabulary.codec.token(i) for i in np.flatnonzero(rows[0])] == ["\u00c3", "\u00f0"]
    assert rows[1:, list(vocabulary.stop_ids)].sum() == 0
    assert np.flatnonzero(rows[2])[0] == ids[2]


def test_masks_can_be_copied_and_pickled() -> None:
    mask = GrammarMask(load_vocabulary(), json_grammar(FORM), places=7)
    asked = states([(), tuple(mask.vocabulary.codec.encode('{"name":'))])
    for again in (pickle.loads(pickle.dumps(mask)), copy.deepcopy(mask)):
        assert again.places == 7
        assert np.array_equal(again(asked), mask(asked))


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {}},
        {"type": "array", "uniqueItems": True},
        {"oneOf": [{"type": "number"}, {"type": "integer"}]},
        # The mask writes {"a":null} for the first, which is valid against both.
        {"oneOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "required": ["b", "a"]}]},
        {"$defs": {"a": {"$id": "https://example.org"}}},
        {"minimum": 2**53 + 1},
        {"const": [0.1 + 0.2]},
        {"type": "string", "pattern": "a(?i:b)"},
        3,
    ],
)
def test_schemas_that_are_no_grammar(schema: Any, capfd: Any) -> None:
    with pytest.raises(ValueError, match=r"^schema="):
        json_grammar(schema)
    assert capfd.readouterr().err == ""


def test_what_is_refused() -> None:
    for pattern in (r"\bcat\b", "a(?i)b", r"[^\s\S]"):
        with pytest.raises(ValueError, match=r"pattern=.*cannot be made a grammar"):
            regex_grammar(pattern)
    for pattern in ("(?=a)", "(", r"(a)\1", "a{,2}"):
        with pytest.raises(ValueError, match=r"pattern=.*(re2|count elsewhere)"):
            regex_grammar(pattern)
    with pytest.raises(ValueError, match="'patternProperties' is not allowed"):
        json_grammar({"patternProperties": {}})
    with pytest.raises(ValueError, match="needs a stop token"):
        GrammarMask(load_vocabulary(stop=()), regex_grammar("a"))
    with pytest.raises(ValueError, match="places=0"):
        GrammarMask(load_vocabulary(), regex_grammar("a"), places=0)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<s>": 2}, unk_token="a"))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")])
    tokenizer.add_special_tokens(["<s>"])
    with pytest.raises(ValueError, match="no grammar can follow it"):
        GrammarMask(load_vocabulary(tokenizer, stop="<s>"), regex_grammar("a"))
    cleaning = load_vocabulary(hugging_face(tokenizer, clean_up_tokenization_spaces=True), stop="<s>")
    with pytest.raises(ValueError, match="clean_up_tokenization_spaces=True removes spaces"):
        GrammarMask(cleaning, regex_grammar("a"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs llguidance.*pip install "textgym\[rewards\]"'):
        json_grammar(FORM)
