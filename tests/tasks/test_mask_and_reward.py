"""Whatever a mask lets end is paid in full: schemas and patterns drawn from all that is taken, and walks to an end."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tasks.drawn_grammars import BYTE, FULL, PROMPT, SCHEMAS, STRINGS, VOCABULARY, ends

from textgym.grammar import GrammarMask, json_grammar, regex_grammar
from textgym.rewards import JsonSchema, Pattern
from textgym.state import TokenState

CLOSING = [BYTE[bytes([byte])] for byte in b'"]}0']
# Spaces and line ends that engines disagree on; odd cases; edges of Unicode; what has to be escaped.
ODD = (
    *"\u00a0\u2003\u2028\u2029\u0085\u180e\u200b\ufeff\x7f\x0b\x0c\r\t",
    *"\u212a\u017f\u00df\u1e9e\u0130\u0660\u00bd\u0915\u4e2d\U00010d4a",
    *'\ud7ff\ue000\uffff\U0010ffff\U0001f600&|~[]/\\"aK5_',
    "e\u0301",
)
# What JSON writes with a backslash.
ESCAPED = tuple(map(json.dumps, ['"', "\\", 'a"b', "a\\b", '""', "\0", "\n", "\x1f", "\x1fa"]))
NUMBERS = (
    *[
        "-0",
        "0",
        "1e999",
        "-1e400",
        "1e-999",
        "1E99999999999999999999",
        "0e5",
        "-0.0",
        "1.0",
        "100",
        "5.06",
        "0.3",
    ],
    *["0.30000000000000000001", "0.29999999999999999999", "9007199254740992", "9007199254740993"],
    "1" * 25,
    "9" * 4301,
)
TEXTS = (
    *NUMBERS,
    *["{}", "[]", "null", "true", '{"a":1}', '{"a":1,"a":1}', '{"b":1,"b":2}', "[[],{}]", '[{"a":1,"a":2}]'],
)


def walked(mask: GrammarMask, draw: random.Random, steps: int = 80) -> str | None:
    """A text that a walk under the mask ends with; None where it is too long for that."""
    ids: tuple[int, ...] = ()
    for step in range(steps):
        row = mask([TokenState(PROMPT, ids)])[0]
        legal = np.flatnonzero(row).tolist()
        going = [i for i in legal if i not in VOCABULARY.stop_ids]
        if not going or (len(going) < len(legal) and draw.random() < 0.3):
            return str(VOCABULARY.decode([ids])[0])
        closing = [i for i in CLOSING if row[i]]
        hurry = 0.3 if step < steps // 2 else 0.95
        ids += (draw.choice(closing if closing and draw.random() < hurry else going),)
    return None


def texts_of(mask: GrammarMask, seed: int, candidates: tuple[str, ...]) -> list[str]:
    draw = random.Random(seed)
    found = {text for text in (walked(mask, draw) for _ in range(4)) if text is not None}
    return sorted(found | {text for text in draw.sample(candidates, 12) if ends(mask, text)})


def check_schema(schema: dict[str, Any], seed: int, seen: Counter[str]) -> None:
    try:
        mask = GrammarMask(VOCABULARY, json_grammar(schema))
    except ValueError:
        seen["refused"] += 1
        return
    odd = tuple(json.dumps(text, ensure_ascii=False) for text in ODD)
    texts = texts_of(mask, seed, TEXTS + odd)
    texts += [text for text in ESCAPED if ends(mask, text) and text not in texts]
    seen["ended" if texts else "endless"] += 1
    seen["texts"] += len(texts)
    paid = JsonSchema(schema)(["p"] * len(texts), texts)
    assert paid == [1.0] * len(texts), dict(zip(texts, paid, strict=True))


def check_pattern(pattern: str, seed: int, seen: Counter[str]) -> None:
    try:
        mask = GrammarMask(VOCABULARY, regex_grammar(pattern))
    except ValueError:
        seen["refused"] += 1
        return
    texts = texts_of(mask, seed, ODD)
    seen["ended" if texts else "endless"] += 1
    seen["texts"] += len(texts)
    paid = Pattern(pattern)(["p"] * len(texts), texts)
    assert paid == [1.0] * len(texts), dict(zip(texts, paid, strict=True))
    # And the mask leaves nothing out: a short text that matches can be written.
    matching = [text for text in ODD if Pattern(pattern)(["p"], [text]) == [1.0]]
    assert all(ends(mask, text) for text in matching[:4]), matching[:4]


def sweep(check: Any, strategy: Any, examples: int) -> Counter[str]:
    """How many of the drawn ones are refused, end, and never end within a walk."""
    seen: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(strategy, st.integers(0, 2**32))
    def run(drawn: Any, seed: int) -> None:
        check(drawn, seed, seen)

    run()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "strategy"),
    [pytest.param(check_schema, SCHEMAS, marks=pytest.mark.long), (check_schema, STRINGS), (check_pattern, FULL)],
    ids=["schemas", "strings", "patterns"],
)
def test_fifty_masks_let_nothing_end_that_is_not_paid(check: Any, strategy: Any) -> None:
    seen = sweep(check, strategy, 50)
    assert seen["ended"] > 15, seen


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("check", "strategy"),
    [(check_schema, SCHEMAS), (check_schema, STRINGS), (check_pattern, FULL)],
    ids=["schemas", "strings", "patterns"],
)
def test_two_thousand_masks_let_nothing_end_that_is_not_paid(check: Any, strategy: Any) -> None:
    seen = sweep(check, strategy, 2000)
    print(dict(seen))
    assert seen["ended"] > 800, seen
