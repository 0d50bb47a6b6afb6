"""Files of data: whatever is in them, they are read or refused in one line that says where."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from textgym.files import json_value, read_json, read_lines, replace_folder
from textgym.preferences import read_demonstrations, read_rankings
from textgym.prompts import read_prompts

PROMPTS = b'{"prompt": "1+1", "answer": 2}\n{"prompt": "2", "answer": 4.5}\r\n\n{"prompt": "\xc3\xa9", "answer": 0}'
TEXTS = "one\r\n\ntwo \u2028 still two\nthree".encode()
RANKINGS = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "q", "chosen": "c", "rejected": "d"}'
DEMONSTRATIONS = b'{"prompt": "p", "completion": "a"}\n{"prompt": "q", "completion": "b", "ended": true}\n'
OBJECT = b'{\n "agent": "ppo",\n "beta": 0.1\n}\n'
READERS: dict[str, tuple[str, bytes, Callable[[Path], Any]]] = {
    "prompts": ("p.jsonl", PROMPTS, read_prompts),
    "texts": ("p.txt", TEXTS, read_prompts),
    "rankings": ("r.jsonl", RANKINGS, read_rankings),
    "demonstrations": ("d.jsonl", DEMONSTRATIONS, read_demonstrations),
    "object": ("agent.json", OBJECT, read_json),
    "rows": ("metrics.jsonl", DEMONSTRATIONS, read_lines),
}
# What editors, other programs and other readers leave in files.
PIECES = [
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0", b"\r", b"\r\n", b"\n", b"\x1a", b"\xe9", b"\xed\xa0\x80"),
    *(rb'"\ud83d"', rb"\u0000", b"NaN", b"-Infinity", b"1e999", b"9" * 4400, b"[" * 5000, b'{"a":' * 5000),
    *(b'"prompt": "x", ', b'"answer": 1, ', b'"chosen": "z", ', b"null", b"true", b"{", b"}", b'"', b",", b"]"),
]  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read(tmp_path: Path, name: str) -> None:
    file, data, read = READERS[name]
    (tmp_path / file).write_bytes(data)
    assert read(tmp_path / file)


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, cut, piece in edits:
        at = place % (len(data) + 1)
        data = data[:at] + piece + data[at + cut :]
    return data


EDITS = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 12), st.sampled_from(PIECES) | st.binary(max_size=3)),
    min_size=1,
    max_size=3,
)


def check_edits(folder: Path, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(READERS)), EDITS)
    @example("prompts", [(0, 0, b"\xef\xbb\xbf")])
    @example("demonstrations", [(1, 0, b'"chosen": "z", ')])
    @example("prompts", [(19, 0, b"9" * 4400)])
    @example("texts", [(0, 0, b"\xff\xfe")])
    @example("object", [(0, 0, b"[" * 100_000)])
    def read_edited(name: str, edits: list[tuple[int, int, bytes]]) -> None:
        file, data, read = READERS[name]
        (folder / file).write_bytes(edited(data, edits))
        said = ""
        try:
            read(folder / file)
        except ValueError as error:
            said = str(error) or "nothing is said"
        if said:
            assert str(folder / file) in said
            assert "\n" not in said
            assert len(said) < 600
            assert name == "object" or re.search(r", line \d+: ", said)

    read_edited()


@pytest.mark.slow
def test_an_edited_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    check_edits(tmp_path, 200)


@pytest.mark.sweep
def test_thousands_of_edited_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    check_edits(tmp_path, 5000)


REFUSED = {
    "byte order mark": (b"\xef\xbb\xbfHello", 1, "byte order mark"),
    "UTF-16": ("Hello".encode("utf-16"), 1, "UTF-16; save it as UTF-8"),
    "UTF-16 without a mark": (b"one\n" + "two".encode("utf-16-le"), 2, "NUL byte"),
    "Latin-1": (b"one\n\ncaf\xe9", 3, "not UTF-8 (byte 4 of the line)"),
    "Mac line ends": (b"one\rtwo", 1, "carriage return"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_text_file_that_is_refused(tmp_path: Path, name: str) -> None:
    data, line, said = REFUSED[name]
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(f"{path}, line {line}: ") + ".*" + re.escape(said)):
        read_prompts(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('{"prompt":"a","prompt":"b"}', "a key stands twice"),
        ('{"prompt":"a","answer":NaN}', "NaN is no JSON"),
        ('{"prompt":"a","answer":1e999}', "1e999 is out of a float's range"),
        ('{"prompt":"a","answer":-' + "9" * 4301 + "}", "at most 4300"),
        (r'{"prompt":"\ud83d"}', "a lone surrogate"),
        (r'{"prompt":"a","\udc00":1}', "a lone surrogate"),
        ("[1]", "holds a list"),
        ("1", "holds a number"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_readers_differ_on_is_refused_with_its_line(tmp_path: Path, value: str, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt":"x"}\n\n' + value + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}, line 3: .*{said}"):
        read_prompts(path)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert json_value(r'["\ud83d\ude00", "\\ud83d"]') == ["\U0001f600", "\\ud83d"]


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
))  # fmt: skip
def test_every_value_is_read_as_it_was_written(value: Any) -> None:
    assert json_value(json.dumps(value)) == value


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, reader: str) -> None:
    file, _, read = READERS[reader]
    os.mkfifo(tmp_path / f"pipe-{file}")  # nobody will ever write to it
    (tmp_path / f"folder-{file}").mkdir()
    for name in (f"pipe-{file}", f"folder-{file}"):
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
            read(tmp_path / name)
    if reader != "rows":
        with pytest.raises((FileNotFoundError, ValueError), match=re.escape(str(tmp_path / "none"))):
            read(tmp_path / f"none-{file}")


def test_a_folder_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        replace_folder(tmp_path / "new", write)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize(("folder", "files"), [(0o750, [0o640, 0o740]), (0o700, [0o600, 0o700])])
def test_whoever_may_read_a_folder_may_read_its_files(tmp_path: Path, folder: int, files: list[int]) -> None:
    def write(new: Path) -> None:
        new.chmod(folder)
        for name, mode in (("a.safetensors", 0o600), ("b.sh", 0o700)):
            (new / name).touch(mode)

    replace_folder(tmp_path / "new", write)
    assert [stat.S_IMODE(each.stat().st_mode) for each in sorted((tmp_path / "new").iterdir())] == files
