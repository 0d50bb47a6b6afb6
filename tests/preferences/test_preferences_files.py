"""Broken rows, each with file and line; and files that nobody sees half of."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.preferences import (
    Demonstration,
    Ranking,
    read_demonstrations,
    read_rankings,
    write_demonstrations,
    write_rankings,
)
from textgym.preferences.files import _read_ranking

GOOD = b'{"prompt": "p", "chosen": "a", "rejected": "b"}'
TRANSCRIPTS = rb'{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}'
RANKED = b'{"prompt": "p", "completions": ["a", "b"]}'


def trl(**changed):
    return json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"} | changed).encode()


def ranked(**changed):
    return json.dumps({"prompt": "p", "completions": ["a", "b", "c"]} | changed).encode()


BROKEN = {
    "missing key": (b'{"prompt": "p", "chosen": "a"}', "the keys are 'prompt', 'chosen'; needed are"),
    "no keys": (b"{}", "the keys are none"),
    "null": (trl(rejected=None), '"rejected" is null, allowed is a text'),
    "number": (trl(chosen=3), '"chosen" is a number'),
    "object": (trl(prompt={}), '"prompt" is an object'),
    "truth": (trl(prompt=True), '"prompt" is true or false'),
    "cut off": (b'{"prompt": "p", "chos', "not JSON (Unterminated string"),
    "two objects": (GOOD + GOOD, "not JSON (Extra data"),
    "deep": (b"[" * 100_000, "not JSON (nested too deeply)"),
    "a key twice": (b'{"prompt": "p", "chosen": "a", "chosen": "c", "rejected": "b"}', "a key stands twice"),
    "list": (b'["p", "a", "b"]', "holds a list"),
    "text": (b'"p"', "holds a text"),
    "latin-1": (b'{"prompt": "\xe9", "chosen": "a", "rejected": "b"}', "not UTF-8 (byte 13 of the line)"),
    "utf-16": ('{"prompt": "p"}'.encode("utf-16"), "not UTF-8 (byte 1 of the line)"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, "byte order mark"),
    "surrogate": (
        rb'{"prompt": "p", "chosen": "\ud83d", "rejected": "b"}',
        "a text holds a lone surrogate",
    ),
    "identical": (trl(chosen="b"), "identical"),
    "identical transcripts": (TRANSCRIPTS.replace(b" a", b" b"), "transcript are identical"),
    "empty": (trl(rejected=" \n"), "the rejected answer is empty"),
    "empty transcript": (TRANSCRIPTS.replace(b" a", b""), "the chosen answer is empty"),
    "no prefix": (b'{"chosen": "yes", "rejected": "no"}', "no common prefix"),
    "NaN margin": (trl(margin=float("nan")), "NaN is no JSON"),
    "text margin": (trl(margin="1"), '"margin" is a text'),
    "true margin": (trl(margin=True), '"margin" is true or false'),
    "large score": (trl(chosen_score=10**400, rejected_score=0), '"chosen_score" is too large'),
    "one score": (trl(chosen_score=1.0), '"chosen_score" stands alone'),
    "ended": (trl(chosen_ended=1, rejected_ended=0), '"chosen_ended" is a number'),
    "one completion": (ranked(completions=["a"]), "completions: 1 given"),
    "completions": (ranked(completions="abc"), '"completions" is a text'),
    "completion": (ranked(completions=["a", 3]), "a completion is a number"),
    "tie": (ranked(ranks=[1, 2, 1]), '"ranks" has a tie'),
    "ranks": (ranked(ranks=[1, 2]), '"ranks" has 2 values for 3'),
    "scores": (ranked(scores=[1, 2, None]), 'a value of "scores" is null'),
    "ended list": (ranked(ended=True), '"ended" is true or false'),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_a_problem_with_its_line(tmp_path, name):
    line, said = BROKEN[name]
    path = tmp_path / "x.jsonl"
    # A byte order mark can only be at the beginning.
    number = 1 if name == "byte order mark" else 3
    lines = [line, b"", GOOD, GOOD] if number == 1 else [GOOD, b"", line, GOOD]
    path.write_bytes(b"\r\n".join(lines))
    reading = read_rankings(path, on_broken="skip")
    assert reading.rows == [Ranking("p", ("a", "b"))] * 2
    (problem,) = reading.problems
    assert (problem.path, problem.line) == (str(path), number)
    assert said in problem.message
    assert "\n" not in problem.message
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_rankings(path)
    assert str(caught.value) == f"{path}, line {number}: {problem.message}"


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_first_good_row_says_the_format(tmp_path, first):
    path = tmp_path / "x.jsonl"
    rows, names = [GOOD, TRANSCRIPTS, RANKED], ["trl", "transcripts", "rankings"]
    path.write_bytes(b"\n".join([b"{}", rows[first], *rows]))
    reading = read_rankings(path, on_broken="skip")
    assert (reading.format, len(reading.rows), len(reading.problems)) == (names[first], 2, 3)
    assert f"the file's first good row is of format {names[first]}" in reading.problems[1].message
    with pytest.raises(ValueError, match=r"line 1: .* \(and 2 more broken rows\)"):
        read_rankings(path)


@pytest.mark.parametrize("content", [b"", b"\n \r\n"])
@pytest.mark.parametrize("read", [read_rankings, read_demonstrations])
def test_an_empty_file_is_a_problem(tmp_path, content, read):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    reading = read(path, on_broken="skip")
    assert (reading.rows, [(p.line, p.message) for p in reading.problems]) == ([], [(1, "the file is empty")])
    with pytest.raises(ValueError, match="line 1: the file is empty"):
        read(path)


def test_a_broken_demonstration_is_a_problem(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"prompt": "p", "completion": ""}\n{"text": "t"}\n{"messages": 3}\n{"prompt": "p", "completion": "c"}'
    )
    reading = read_demonstrations(path, on_broken="skip")
    assert reading.rows == [Demonstration("p", "c")]
    assert [problem.message.partition(";")[0] for problem in reading.problems] == [
        "the completion is empty",
        "the keys are 'text'",
        '"messages" is a number, allowed is a list',
    ]


def test_arguments_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: there is no such file"):
        read_rankings(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"on_broken 'skp'.* Did you mean 'skip'"):
        read_rankings(tmp_path / "none.jsonl", on_broken="skp")
    with pytest.raises(ValueError, match=r"format 'TRL'"):
        write_rankings(tmp_path / "x.jsonl", [], "TRL")


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([GOOD, TRANSCRIPTS, RANKED]), max_size=6))
def test_any_bytes_are_rows_or_problems(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("bytes") / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    there = sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
    reading = read_rankings(path, on_broken="skip")
    assert len(reading.rows) + len(reading.problems) == max(there, 1)
    numbers = [problem.line for problem in reading.problems]
    assert numbers == sorted(set(numbers))


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "new" / "x.jsonl"
    assert write_rankings(path, [Ranking("p", ("a", "b"))]) == 1
    before = path.read_bytes()

    def rows():
        yield Ranking("p", ("c", "d"))
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_rankings(path, rows())
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["x.jsonl"]


@pytest.mark.slow
def test_reading_is_quick(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes((trl(chosen="good answer " * 20, rejected="bad answer " * 20) + b"\n") * 20_000)
    start = time.perf_counter()
    assert len(read_rankings(path).rows) == 20_000
    # 100,000 rows in some seconds; a laptop takes about 0.2 s for these.
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.parquet"])
def test_the_name_of_a_table_is_refused(tmp_path, name):
    for write, row in (
        (write_rankings, Ranking("p", ("a", "b"))),
        (write_demonstrations, Demonstration("p", "a", True)),
    ):
        with pytest.raises(ValueError, match=r"^path='.*x\.\w+': rows are written as JSON lines"):
            write(tmp_path / name, [row])
    assert not list(tmp_path.iterdir())


def test_a_rank_that_is_no_number_is_refused():
    # A table can hold NaN where JSON cannot.
    with pytest.raises(ValueError, match=r'a value of "ranks" is nan, allowed is a finite number'):
        _read_ranking({"prompt": "p", "completions": ["a", "b", "c"], "ranks": [float("nan"), 2, 1]}, "rankings")
