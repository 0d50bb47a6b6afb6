"""Rows of data: every format gives the same ones, columns have names of their own, and what is missing is said."""

from __future__ import annotations

import csv
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from textgym.preferences import read_demonstrations, read_rankings
from textgym.prompts import read_prompts
from textgym.rows import numbered_rows, row_source

SYSTEM = {"role": "system", "content": 'Be "kind",\nand brief.'}
ASKED = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
ASKED = [*ASKED, {"role": "user", "content": "Go on."}]
PLAIN: list[dict[str, Any]] = [
    {"prompt": "42", "answer": 42, "level": 0.1, "tags": ["a", "b"], "note": "7 or so", "by": "me"},
    {"prompt": 'a "quoted"\nline, é', "answer": None, "level": 1e-7, "tags": [], "note": "8", "by": None},
    {"prompt": " x ", "answer": -1, "level": 2.5, "tags": ["c"], "note": "two", "by": "9"},
]
TURNS: list[dict[str, Any]] = [{"prompt": ASKED, "answer": 1}, {"prompt": [ASKED[1]], "answer": 2}]
FORMATS = ("jsonl", "csv", "tsv", "parquet", "datasets", "folder")


def write(folder: Path, form: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows by other means than those that read them."""
    path = folder / f"rows.{form}"
    if form in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if form == "tsv" else ",")
            writer.writerow(rows[0])
            for row in rows:
                cells = ["" if v is None else v if isinstance(v, str) else json.dumps(v) for v in row.values()]
                writer.writerow(cells)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif form == "parquet":
        pytest.importorskip("pyarrow")
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path)
    else:
        datasets = pytest.importorskip("datasets")
        if form == "datasets":
            datasets.Dataset.from_list(rows).save_to_disk(path)
        else:
            path.mkdir()
            write(path, "parquet", rows)
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [PLAIN, TURNS], ids=["texts", "messages"])
def test_every_format_gives_the_same_rows(tmp_path: Path, form: str, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path, form, rows)
    assert [read() for _, read in numbered_rows(path)] == rows
    texts, columns = read_prompts(path)
    asked = [row["prompt"] for row in rows]
    if rows is TURNS:
        assert json.loads(texts[0]) == ASKED
        assert texts[1] == "Hi"
    else:
        assert texts == asked
    assert columns == {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_columns_have_other_names_and_the_first_rows_are_enough(tmp_path: Path, form: str) -> None:
    rows = [{"question": str(i), "good": "yes", "bad": f"no {i}", "prompt": "hidden"} for i in range(3)]
    path = write(tmp_path, form, rows)
    renamed = f"{path}#prompt=question,chosen=good,rejected=bad,rows=2"
    rankings = read_rankings(renamed).rows
    assert [(each.prompt, each.completions) for each in rankings] == [("0", ("yes", "no 0")), ("1", ("yes", "no 1"))]
    assert [row.completion for row in read_demonstrations(f"{path}#prompt=question,completion=bad").rows][2] == "no 2"
    assert read_prompts(f"{path}#prompt=question")[0] == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"column 'q': not one of bad, good, prompt, question"):
        read_prompts(f"{path}#prompt=q")


def test_a_name_with_a_mark_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a#rows=1.jsonl"
    path.write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
    assert read_prompts(path)[0] == ["x", "y"]


@pytest.mark.parametrize("options", ["rows=0", "rows=x", "a=", "a=b,a=c", "a=b,c"])
def test_what_a_source_cannot_say(options: str) -> None:
    with pytest.raises(ValueError, match=r"rows=|NAME=COLUMN"):
        row_source(f"x.csv#{options}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,a\nx,1\n\ny", "line 4: 1 cells, the header has 2"),
        ("prompt,prompt\nx,1", "line 1: a column's name stands twice"),
        ('prompt\n"x', "line 2: unexpected end of data"),
        ("\ufeffprompt\nx", "line 1: begins with a byte order mark"),
    ],
)
def test_broken_csv_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path}, {said}")):
        read_prompts(path)


def test_a_data_set_that_is_nowhere_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"some/where: .*no such data set in the cache.*HF_HUB_OFFLINE"):
        read_rankings("some/where")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("textgym.lm.causal", "load_causal_lm"),
        ("textgym.lm.scoring", "_tokenizer"),
        ("textgym_agents.rlhf.inputs", "_hub_tokenizer"),
    ],
)
def test_a_model_that_is_nowhere_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, name: str
) -> None:
    pytest.importorskip("torch")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"some/where: .*no such model in the cache.*HF_HUB_OFFLINE"):
        getattr(import_module(where), name)("some/where")


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "#rows=2"])
@pytest.mark.parametrize("asked", [["Hi", "a\nb, é", "c"], [ASKED, [ASKED[1]], ASKED]], ids=["texts", "messages"])
def test_a_data_set_of_the_hub_is_streamed_where_its_first_rows_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, asked: list[Any]
) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": each, "chosen": "yes", "rejected": f"no {i}", "answer": i} for i, each in enumerate(asked)]
    path, load = write(tmp_path, "jsonl", rows), datasets.load_dataset
    read: list[int] = []

    def seen(row: dict[str, Any]) -> dict[str, Any]:
        read.append(row["answer"])
        return row

    def stand_in(name: str, streaming: bool) -> Any:
        assert (name, streaming) == ("some/where", first != "")
        found = load("json", data_files=str(path), streaming=streaming, cache_dir=str(tmp_path / "cache"))
        found["train"] = found["train"].map(seen)
        return found

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    monkeypatch.setattr("textgym.rows.asks_hub", lambda name, kind: (name, kind) == ("some/where", "dataset"))
    for reader in (read_prompts, read_demonstrations, read_rankings):
        read.clear()
        assert reader(f"some/where{first}") == reader(f"{path}{first}")
        if first:
            assert set(read) == {0, 1}  # the third row is never asked for
    assert read_prompts(f"some/where{first}")[1]["answer"] == [0, 1, 2][: 2 if first else 3]


def test_splits_of_a_data_set_have_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    both = {name: datasets.Dataset.from_list([{"prompt": name}]) for name in ("train", "test")}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "d")
    assert read_prompts(tmp_path / "d")[0] == ["train"]
    assert read_prompts(f"{tmp_path / 'd'}#split=test")[0] == ["test"]
    with pytest.raises(ValueError, match=r"split 'tset': not one of test, train. Did you mean 'test'"):
        read_prompts(f"{tmp_path / 'd'}#split=tset")


def saved_table(folder: Path, rows: list[dict[str, Any]], split: str | None) -> Path:
    """Write a folder as `Dataset.save_to_disk` does."""
    pyarrow = pytest.importorskip("pyarrow")
    folder.mkdir()
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(folder / "data.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    unset = dict.fromkeys(("_format_columns", "_format_type")) | {"_format_kwargs": {}, "_output_all_columns": False}
    state = unset | {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "0", "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("split", ["test", "train"])
def test_a_file_without_splits_refuses_one(tmp_path: Path, form: str, split: str) -> None:
    path = write(tmp_path, form, PLAIN)
    said = f"{path}: split '{split}': not one of (none). The data has no splits; leave split= out."
    with pytest.raises(ValueError, match=re.escape(f"eval_prompts='{path}#split={split}': {said}")):
        read_prompts(f"{path}#split={split}", "eval_prompts")
    with pytest.raises(ValueError, match=re.escape(said)):
        read_demonstrations(f"{path}#split={split},completion=note")


def test_a_saved_table_has_the_split_it_was_saved_from_and_no_other(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    plain = saved_table(tmp_path / "plain", PLAIN, None)
    assert read_prompts(plain)[0] == [row["prompt"] for row in PLAIN]
    with pytest.raises(ValueError, match=r"split 'test': not one of \(none\)\. The data has no splits"):
        read_prompts(f"{plain}#split=test")
    named = saved_table(tmp_path / "named", PLAIN, "test")
    assert read_prompts(f"{named}#split=test") == read_prompts(named) == read_prompts(plain)
    with pytest.raises(ValueError, match="split 'train': not one of test"):
        read_prompts(f"{named}#split=train")


def test_lines_of_text_take_a_number_of_rows_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a\n\nb\nc\n")
    assert read_prompts(f"{path}#rows=2")[0] == ["a", "b"]
    for option in ("split=test", "prompt=question"):
        with pytest.raises(
            ValueError, match="lines of text have neither splits nor columns; allowed after # is rows=N"
        ):
            read_prompts(f"{path}#{option}")


def test_a_column_that_is_empty_throughout_is_null_as_one_that_is_not(tmp_path):
    for cell, wanted in (("", None), ("1.5", 1.5)):
        path = tmp_path / "rows.csv"
        path.write_text(f"prompt,margin,answer\nhi,{cell},\nho,,\n")
        rows = [read() for _, read in numbered_rows(path)]
        assert [row["margin"] for row in rows] == [wanted, None]
        assert [row["answer"] for row in rows] == [None, None]


def asked(text: str) -> str:
    return json.dumps([{"role": "user", "content": text}])


def answered(text: str) -> str:
    return json.dumps([{"role": "assistant", "content": text}])


@pytest.mark.parametrize(
    "odd", [answered("cut off")[:-5], "plain", "", "3", str([{"role": "assistant", "content": "a"}])]
)
def test_a_cell_that_is_no_message_among_messages_is_named(tmp_path: Path, odd: str) -> None:
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        rows = [[asked(f"q{i}"), answered(f"a{i}"), answered("no")] for i in range(3)]
        csv.writer(file).writerows([["prompt", "chosen", "rejected"], *rows, [asked("q"), odd, answered("no")]])
    reading = read_rankings(path, on_broken="skip")
    assert [row.prompt for row in reading.rows] == ["q0", "q1", "q2"]
    assert [str(problem.message) for problem in reading.problems] == [
        f'"chosen" is {odd!r:.60}, where a list of messages in JSON is needed, as other rows have one'
    ]


def test_messages_as_pandas_writes_them_are_broken_rows_and_texts_in_brackets_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("prompt,completion\n\"[{'role': 'user', 'content': 'q'}]\",a\n")
    with pytest.raises(ValueError, match=r'x\.csv, line 2: "prompt" is .* where a list of messages in JSON is needed'):
        read_demonstrations(path)
    named = json.dumps([{"name": "bob", "role": "user", "content": "q"}]).replace('"', '""')
    path.write_text(f'prompt,completion\n"{named}",a\n')
    assert [row.prompt for row in read_demonstrations(path).rows] == ["q"]
    path.write_text('prompt,completion\n"[{""role"": is a fragment",a\nExplain this,b\n')
    assert len(read_demonstrations(path).rows) == 2
    path.write_text("prompt,completion\n[INST] q,[1]\n[],[2]\n")
    assert [(row.prompt, row.completion) for row in read_demonstrations(path).rows] == [
        ("[INST] q", "[1]"),
        ("[]", "[2]"),
    ]


def test_a_long_cell_of_csv_is_read(tmp_path: Path) -> None:
    path, before = tmp_path / "x.csv", csv.field_size_limit()
    path.write_text("prompt,answer\n" + "word " * 30_000 + ",1\n")
    (text,), columns = read_prompts(path)
    assert (len(text), columns) == (150_000, {"answer": [1]})
    assert csv.field_size_limit() == before


def test_a_column_may_have_two_names(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("question\n12\n13\n")
    for options in ("prompt=question,answer=question", "answer=question,prompt=question"):
        assert read_prompts(f"{path}#{options}") == (["12", "13"], {"answer": ["12", "13"]})


def test_a_column_of_parquet_that_stands_twice_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_arrays([pyarrow.array(["right"]), pyarrow.array(["wrong"])], names=["prompt", "prompt"])
    import_module("pyarrow.parquet").write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: a column's name stands twice in \['prompt', 'prompt'\]"):
        read_prompts(tmp_path / "x.parquet")
