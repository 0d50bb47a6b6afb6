"""Where transcripts are split into prompt and answers: by hand, and on real data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from textgym.codecs.chat import write_dialogue
from textgym.preferences import Ranking, read_rankings
from textgym.preferences.data import as_dialogue, split_transcripts, transcripts

DATA = Path(os.environ.get("TEXTGYM_SHARED", Path(__file__).parents[3] / "shared"))
HARMLESS = DATA / "data" / "hh-harmless-1500.jsonl"
ASKED = "\n\nHuman: Hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        # The usual row, and one that parts inside a word: "No" is not part of the prompt.
        (f"{ASKED} Hello.", f"{ASKED} Bye.", ASKED),
        (f"{ASKED} Nobody.", f"{ASKED} Nothing.", ASKED),
        # One answer begins with the other.
        (f"{ASKED} No", f"{ASKED} No.", ASKED),
        # A second turn that both share, up to inside the answers.
        (
            f"{ASKED} A\n\nHuman: B{ASKED} C",
            f"{ASKED} A\n\nHuman: B{ASKED} CD",
            f"{ASKED} A\n\nHuman: B{ASKED}",
        ),
        # They part before the last turn: in an answer, in a question, and inside the name of a turn.
        (f"{ASKED} A{ASKED} C", f"{ASKED} B{ASKED} C", ASKED),
        (f"{ASKED} A\n\nHuman: B\n\nAssistant: C", f"{ASKED} A\n\nHuman: D\n\nAssistant: C", ASKED),
        (f"{ASKED} A\n\nAssistant: C", f"{ASKED} A\n\nAssist", ASKED),
    ],
)
def test_the_prompt_ends_where_a_shared_turn_begins(chosen, rejected, prompt):
    expected = (prompt, chosen[len(prompt) :], rejected[len(prompt) :])
    assert split_transcripts(chosen, rejected) == expected
    assert split_transcripts(rejected, chosen) == (prompt, expected[2], expected[1])


@pytest.mark.parametrize("pair", [("", ""), ("a", "b"), ("\n\nHuman: Hi", "\n\nHuman: Hi"), (ASKED, f" {ASKED}")])
def test_without_a_shared_turn_there_is_no_prompt(pair):
    with pytest.raises(ValueError, match="no common prefix"):
        split_transcripts(*pair)


def test_long_transcripts_take_no_quadratic_time():
    turns = ASKED * 40_000  # 10^6 characters; all the turns but the last are shared
    assert split_transcripts(f"{turns} A", f"{turns} B") == (turns, " A", " B")
    assert split_transcripts(f"{ASKED} A{turns}", f"{ASKED} B{turns}")[0] == ASKED


def test_a_plain_prompt_becomes_a_dialogue():
    plain = Ranking("Hi", ("Hello.", "Bye."), (True, False))
    dialogue = as_dialogue(plain)
    assert dialogue == Ranking(ASKED, (" Hello.", " Bye."), (True, False))
    assert as_dialogue(dialogue) == dialogue
    assert transcripts(dialogue) == (f"{ASKED} Hello.", f"{ASKED} Bye.")


@pytest.mark.parametrize(
    "ranking",
    [Ranking("Hi", ("a", "b")), Ranking(ASKED, (f" a{ASKED} b", f" a{ASKED} c")), Ranking("", ("a", "b"))],
)
def test_what_would_be_read_otherwise_is_not_written(ranking):
    with pytest.raises(ValueError, match="in the format transcripts"):
        transcripts(ranking)


@pytest.mark.skipif(not HARMLESS.exists(), reason=f"{HARMLESS} is not there")
def test_real_transcripts():
    reading = read_rankings(HARMLESS, on_broken="skip")
    sources = [json.loads(line) for line in HARMLESS.read_text(encoding="utf-8").splitlines()]
    assert (reading.format, len(reading.rows), len(sources)) == ("transcripts", 1496, 1500)
    empty = [problem.line for problem in reading.problems]
    assert [n for n, row in enumerate(sources, 1) if not row["chosen"].split("Assistant:")[-1].strip()] == empty
    assert all(problem.message == "the chosen answer is empty" for problem in reading.problems)
    good = [row for n, row in enumerate(sources, 1) if n not in empty]
    for ranking, row in zip(reading.rows, good, strict=True):
        assert ranking.prompt.startswith("\n\nHuman:")
        assert ranking.prompt.endswith("\n\nAssistant:")
        assert [ranking.prompt + text for text in ranking.completions] == [row["chosen"], row["rejected"]]
    # All rows but one part in their last turn.
    further = [ranking for ranking in reading.rows if any("\n\nAssistant:" in text for text in ranking.completions)]
    assert [ranking.completions[1][:25] for ranking in further] == [" A drag king is the oppos"]


def test_a_prompt_of_messages_becomes_a_turn_each():
    messages = [("user", "Hi"), ("assistant", "Yo"), ("user", "Hm")]
    prompt = write_dialogue([{"role": role, "content": text} for role, text in messages])
    dialogue = as_dialogue(Ranking(prompt, ("a", "b")))
    assert transcripts(dialogue)[0] == "\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: Hm\n\nAssistant: a"
    told = write_dialogue([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    with pytest.raises(ValueError, match="has a system message, which transcripts do not know"):
        as_dialogue(Ranking(told, ("a", "b")))
