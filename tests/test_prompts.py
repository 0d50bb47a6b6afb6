"""Prompts from lists and files, with columns and weights."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textgym.prompts import prompt_set, read_prompts
from textgym.task import make_task


def test_a_set_by_hand() -> None:
    prompts = prompt_set(["a", "b", "a", "c"], {"answer": [1, 2, 3, 4]}, weights=[1, 2, 1, 0])
    assert prompts.weights.tolist() == [0.25, 0.5, 0.25, 0.0]
    assert prompts.cumulative == [0.25, 0.75, 1.0, 1.0]
    assert prompts.index == {"a": 0, "b": 1, "c": 3}
    assert prompts.columns == {"answer": (1, 2, 3, 4)}
    assert len(prompts) == 4
    assert repr(prompts) == "PromptSet(4 prompts, 'a', ...)"
    assert not prompts.weights.flags.writeable
    assert pickle.loads(pickle.dumps(prompts)).cumulative == prompts.cumulative


@pytest.mark.parametrize("scale", [1e-308, 1.0, 1e308])
def test_weights_of_any_size_are_shares(scale: float) -> None:
    prompts = prompt_set(["a", "b", "c", "d"], weights=[scale, scale, scale, 0])
    np.testing.assert_allclose(prompts.weights, [1 / 3, 1 / 3, 1 / 3, 0])
    assert prompts.cumulative[-1] == 1


def test_texts_may_come_one_at_a_time_as_those_of_a_task() -> None:
    made = prompt_set((text for text in ("a", "b")), {"answer": [1, 2]}, [1, 3])
    assert (made.texts, made.columns["answer"], made.weights.tolist()) == (("a", "b"), (1, 2), [0.25, 0.75])
    assert prompt_set(map(str, range(2))).texts == ("0", "1")


@pytest.mark.parametrize(
    ("texts", "columns", "weights", "message"),
    [
        ([], None, None, "the list is empty"),
        ("text", None, None, "not a list of strings"),
        (["a", 3], None, None, "not a list of strings"),
        (["a"], {"completions": [1]}, None, "'completions' is taken"),
        (["a"], {"answer": [1, 2]}, None, "'answer' must be a list with one value for each of the 1"),
        (["a"], {"answer": "x"}, None, "'answer' must be a list"),
        (["a", "b"], None, [1.0], "must be 2 numbers"),
        (["a"], None, [0.0], "not all 0"),
        (["a"], None, [-1.0], "not negative"),
        (["a"], None, [float("nan")], "finite"),
    ],
)
def test_bad_sets_are_refused(texts: Any, columns: Any, weights: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        prompt_set(texts, columns, weights)


def test_files(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\n\n  two \u2028 still two\n", encoding="utf-8")
    assert read_prompts(lines) == (["one", "  two \u2028 still two"], {})
    objects = tmp_path / "prompts.jsonl"
    objects.write_text('{"prompt": "1 + 1", "answer": 2}\n\n{"answer": 4, "prompt": "2 + 2"}\n', encoding="utf-8")
    assert read_prompts(str(objects)) == (["1 + 1", "2 + 2"], {"answer": [2, 4]})
    task = make_task("Text", prompts=str(objects), eval_prompts=lines)
    assert task.prompts["train"].columns == {"answer": (2, 4)}
    assert task.prompts["eval"].texts[0] == "one"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 3}', "line 2: must be an object with a string"),
        ("p.jsonl", '{"prompt": "a"}\nnonsense', "line 2: not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "x": 1}', r"line 2: has the keys \['prompt', 'x'\]"),
        (
            "p.json",
            "a",
            "allowed are a list of texts, the path of a .txt, .jsonl, .csv, .tsv or .parquet file, and a data",
        ),
        ("p.csv", "question\nx", r"line 2: has the keys \['question'\]; needed is \"prompt\", or #prompt=KEY behind"),
        ("p.csv", "prompt,a\nx,1\ny", "line 3: 1 cells, the header has 2"),
        ("p.txt", "", "the list is empty"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        make_task("Text", prompts=path)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_prompts(tmp_path / "none.txt")


def test_what_is_chosen_of_a_file_is_parted_by_commas(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("question,n\na,1\nb,2\n")
    assert read_prompts(f"{tmp_path}/p.csv#prompt=question,rows=1")[0] == ["a"]
    with pytest.raises(ValueError, match=r"behind # commas part what is chosen, as in a\.csv#prompt=text,rows=9"):
        read_prompts(f"{tmp_path}/p.csv#prompt=question#rows=1")


def test_weights_of_the_text_task() -> None:
    task = make_task("Text", prompts=["a", "b"], weights=[3, 1])
    np.testing.assert_array_equal(task.prompts["train"].weights, [0.75, 0.25])
