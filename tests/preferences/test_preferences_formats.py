"""Every format: rows by hand, what is written, and that reading gives back what was written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.preferences import (
    Demonstration,
    Ranking,
    pairs,
    read_demonstrations,
    read_rankings,
    write_demonstrations,
    write_rankings,
)

USER, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "y"), ("assistant", "n"))
)
SYSTEM = {"role": "system", "content": "s"}
PAIR = Ranking("Hi", ("y", "n"))


def put(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "format", "ranking"),
    [
        ({"prompt": "Hi", "chosen": "y", "rejected": "n"}, "trl", PAIR),
        ({"rejected": "n", "id": 3, "chosen": "y", "prompt": "Hi", "margin": None}, "trl", PAIR),
        (
            {
                "prompt": "",
                "chosen": "y",
                "rejected": "n",
                "margin": 2,
                "chosen_ended": True,
                "rejected_ended": False,
            }
            | {"chosen_score": 1, "rejected_score": 1.5},
            "trl",
            Ranking("", ("y", "n"), (True, False), 2.0, (1.0, 1.5)),
        ),
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: y",
                "rejected": "\n\nHuman: Hi\n\nAssistant: n",
                "margin": 0.5,
            },
            "transcripts",
            Ranking("\n\nHuman: Hi\n\nAssistant:", (" y", " n"), margin=0.5),
        ),
        ({"prompt": "Hi", "completions": ["y", "n"]}, "rankings", PAIR),
        (
            {"prompt": "Hi", "completions": ["c", "a", "b"], "ranks": [3, 1, 2.5]}
            | {"scores": [0.1, 0.3, 0.2], "ended": [False, True, True]},
            "rankings",
            Ranking("Hi", ("a", "b", "c"), (True, True, False), scores=(0.3, 0.2, 0.1)),
        ),
        ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, "messages", PAIR),
        ({"chosen": [USER, YES], "rejected": [USER, NO]}, "messages", PAIR),
        ({"prompt": "Hi", "chosen": [USER, YES], "rejected": [USER, NO]}, "messages", PAIR),
        ({"prompt": "Hi", "chosen": [YES], "rejected": [NO], "messages": [USER, YES]}, "messages", PAIR),
    ],
)
def test_rows_by_hand(tmp_path, row, format, ranking):
    reading = read_rankings(put(tmp_path / "x.jsonl", row))
    assert (reading.format, reading.rows, reading.problems) == (format, [ranking], [])
    # Preferences are demonstrations of their best completion.
    best = Demonstration(ranking.prompt, ranking.completions[0], (ranking.ended or (True,))[0])
    assert read_demonstrations(tmp_path / "x.jsonl").rows == [best]


@pytest.mark.parametrize(
    ("row", "ended"),
    [
        ({"prompt": "Hi", "completion": "y"}, True),
        ({"prompt": "Hi", "completion": "y", "ended": False}, False),
        ({"prompt": [USER], "completion": [YES]}, True),
        ({"messages": [USER, YES], "id": 1}, True),
    ],
)
def test_demonstrations_by_hand(tmp_path, row, ended):
    assert read_demonstrations(put(tmp_path / "x.jsonl", row)).rows == [Demonstration("Hi", "y", ended)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": [USER, SYSTEM], "chosen": [YES], "rejected": [NO]}, "by: user, system; allowed"),
        ({"prompt": [SYSTEM, USER, YES], "chosen": [YES], "rejected": [NO]}, "the last message of a prompt"),
        ({"chosen": [USER, YES, USER, NO], "rejected": [USER, NO]}, "the prompts differ"),
        ({"prompt": [], "chosen": [YES], "rejected": [NO]}, "there are no messages"),
        ({"prompt": [USER], "chosen": [], "rejected": [NO]}, '"chosen" must end in a message of the assistant'),
        ({"prompt": [USER], "chosen": [USER], "rejected": [NO]}, '"chosen" must end in a message of the assistant'),
        ({"chosen": [YES], "rejected": [NO]}, "no message of the user"),
        ({"prompt": "Ho", "chosen": [USER, YES], "rejected": [USER, NO]}, "the prompts differ"),
        ({"chosen": [USER, YES], "rejected": [USER | {"content": "Ho"}, NO]}, "the prompts differ"),
        ({"prompt": [USER], "chosen": [{"role": "assistant"}], "rejected": [NO]}, 'of "chosen" is null'),
        ({"prompt": ["Hi"], "chosen": [YES], "rejected": [NO]}, 'without the texts "role" and "content"'),
        (
            {"prompt": [USER], "chosen": 3, "rejected": [NO]},
            '"chosen" is a number, allowed is a text or a list of messages',
        ),
        ({"prompt": [USER], "chosen": [YES], "rejected": [YES]}, "are identical"),
    ],
)
def test_conversations_of_other_shapes_are_problems(tmp_path, row, said):
    (problem,) = read_rankings(put(tmp_path / "x.jsonl", row), on_broken="skip").problems
    assert said in problem.message


def test_a_system_message_and_several_turns_become_one_prompt(tmp_path):
    turns = [SYSTEM, USER, NO, {"role": "user", "content": "Why?"}]
    path = put(tmp_path / "x.jsonl", {"chosen": [*turns, YES], "rejected": [*turns, NO]})
    (ranking,) = read_rankings(path).rows
    assert json.loads(ranking.prompt) == turns
    assert ranking.completions == (YES["content"], NO["content"])
    (row,) = read_demonstrations(put(tmp_path / "y.jsonl", {"messages": [*turns, YES]})).rows
    assert row == Demonstration(ranking.prompt, YES["content"])


# Characters of every kind but half ones; what white space and control characters do is the point.
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\n\r\x00\x85\u2028\ufeff"\\:'), max_size=20)
ANSWER = TEXT.filter(lambda text: text.strip())
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def rankings(draw, most=4, prompts=TEXT):
    texts = draw(st.lists(ANSWER, min_size=2, max_size=most, unique=True))
    each = {"min_size": len(texts), "max_size": len(texts)}
    ended = draw(st.none() | st.lists(st.booleans(), **each).map(tuple))
    scores = draw(st.none() | st.lists(FINITE, **each).map(tuple))
    return Ranking(draw(prompts), tuple(texts), ended, draw(st.none() | FINITE), scores)


def back(tmp_path_factory, rows, format):
    path = tmp_path_factory.mktemp("round") / "x.jsonl"
    assert write_rankings(path, rows, format) == len(rows)
    reading = read_rankings(path)
    assert reading.format == format
    return reading.rows


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(rankings(), min_size=1, max_size=3))
def test_rankings_come_back(tmp_path_factory, rows):
    assert back(tmp_path_factory, rows, "rankings") == rows


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(rankings(most=2), min_size=1, max_size=3))
def test_trl_pairs_come_back(tmp_path_factory, rows):
    assert back(tmp_path_factory, rows, "trl") == rows


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(rankings(most=2, prompts=TEXT.map(lambda text: f"{text}\n\nAssistant:")), min_size=1, max_size=3))
def test_hh_pairs_come_back(tmp_path_factory, rows):
    assert back(tmp_path_factory, rows, "transcripts") == rows


@settings(deadline=None, max_examples=60)
@given(st.lists(st.builds(Demonstration, TEXT, ANSWER, st.booleans()), min_size=1, max_size=3))
def test_demonstrations_come_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("round") / "x.jsonl"
    assert write_demonstrations(path, rows) == len(rows)
    assert read_demonstrations(path).rows == rows


def test_rankings_of_more_are_written_as_pairs(tmp_path):
    ranking = Ranking("p", ("a", "b", "c"), (True, True, False), scores=(1.0, 0.5, 0.7))
    assert write_rankings(tmp_path / "x.jsonl", [ranking, PAIR], "trl") == 4
    assert read_rankings(tmp_path / "x.jsonl").rows == [*pairs(ranking), PAIR]
    keys = [set(json.loads(line)) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert keys[3] == {"prompt", "chosen", "rejected"}
