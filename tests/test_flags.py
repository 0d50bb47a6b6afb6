"""Words of the command line: flags that are given several times, home folders, names that are not UTF-8."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro
from cli_tools import run
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.commands.console import UsageError
from textgym.commands.flags import EnvId, checked_words, env_options, merged, parse, parse_pair, with_config


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ID", "--env", "a=1"], ["ID", "--env", "a=1"]),
        (["ID", "--env", "a=1", "b=2", "--n", "3"], ["ID", "--env", "a=1", "b=2", "--n", "3"]),
        (["ID", "--env", "a=1", "--n", "3", "--env", "b=2"], ["ID", "--n", "3", "--env", "a=1", "b=2"]),
        (["ID", "--env=a=1", "--env", "b=2"], ["ID", "--env", "a=1", "b=2"]),
        (["ID", "--n", "3"], ["ID", "--n", "3"]),
    ],
)
def test_a_repeated_flag_keeps_all_its_words(words, expected):
    assert merged(words, "--env") == expected


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(word=st.binary(max_size=12).map(os.fsdecode), flag=st.sampled_from(["", "--out", "--agent", "--prompt"]))
def test_words_stay_as_they_are_unless_they_are_no_utf_8_or_name_the_home_folder(word, flag):
    try:
        word.encode()
    except UnicodeEncodeError:
        with pytest.raises(UsageError, match="UTF-8"):
            checked_words([flag, word])
        return
    assert checked_words([word]) == [word] or word.startswith(("--", "~/"))
    if not word.startswith("~"):
        assert checked_words([flag, word]) == [flag, word] or "=~" in word


@given(rest=st.text("ab/~= ", max_size=6).map("~/{}".format))
def test_the_home_folder_is_written_out_in_the_values_of_flags_that_may_name_files(rest):
    home = os.path.expanduser("~")  # noqa: PTH111
    there = str(Path(home + rest.removeprefix("~")))
    assert checked_words(["--out", rest]) == ["--out", there]
    assert checked_words([f"--out={rest}"]) == [f"--out={there}"]
    assert checked_words(["ID", rest]) == ["ID", there if rest.startswith("~/") else rest]
    for words in (["--prompt", rest], [f"--completion={rest}"]):
        assert checked_words(words) == words


def test_help_of_a_part_leaves_out_what_it_raises(capsys):
    @dataclass(frozen=True)
    class Part:
        """Settings of a part.

        Raises: ValueError for a number out of range.
        """

        number: int = 1

    @dataclass(frozen=True)
    class First:
        """Settings of the command."""

        other: int = 1

    with pytest.raises(SystemExit):
        parse_pair(First, Part, ["--help"], "train", "A text.", "own options")
    out = capsys.readouterr().out
    assert "Settings of a part." in out
    assert "Raises" not in out


def test_a_file_of_settings_knows_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.toml").write_text('id = "Text-v0"\n[env]\nprompts = "~/p.txt"\nbeta = 0.1\n')
    words = with_config(["--config", str(tmp_path / "run.toml")])
    assert env_options(words[words.index("--env") + 1 :]) == {"prompts": str(tmp_path / "p.txt"), "beta": 0.1}


@dataclass(frozen=True)
class Own:
    """Flags of a command."""

    id: EnvId
    words: tuple[str, ...] = ()
    counts: tuple[int, ...] | None = None
    maybe: bool | None = None
    sure: bool = False
    number: int = 1
    each: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    name: str = ""


def test_a_flag_that_takes_a_word_each_time_keeps_doing_so(tmp_path):
    assert parse(Own, ["--each", "a", "--each", "b", "ID"], "own") == Own("ID", each=("a", "b"))
    (tmp_path / "run.toml").write_text('id = "File-v0"\neach = ["a", "b"]\n')
    assert parse(Own, ["--config", str(tmp_path / "run.toml")], "own") == Own("File-v0", each=("a", "b"))
    assert parse(Own, ["--config", str(tmp_path / "run.toml"), "--each", "c", "ID"], "own") == Own("ID", each=("c",))


def test_a_file_with_a_list_for_one_word_is_refused(tmp_path):
    (tmp_path / "run.toml").write_text('id = "File-v0"\nname = ["a", "b"]\n')
    with pytest.raises(UsageError, match="Unrecognized options: b"):
        parse(Own, ["--config", str(tmp_path / "run.toml")], "own")


def test_a_date_in_a_file_is_named(tmp_path):
    (tmp_path / "run.toml").write_text("[env]\nwhen = 2020-01-02\n")
    with pytest.raises(UsageError, match=r"run\.toml: env\.when holds what is no JSON, such as a date \(2020-01-02\)"):
        with_config(["--config", str(tmp_path / "run.toml")])


def test_every_flag_of_several_words_may_be_repeated():
    words = ["ID", "--words", "a", "--number", "2", "--words", "b", "--counts", "1", "--counts=2"]
    assert parse(Own, words, "own") == Own("ID", ("a", "b"), (1, 2), number=2)


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ([], ["--number", "2"]),
        (["--number", "2"], []),
        (["--sure", "--number=2"], []),
        (["--no-sure"], ["--number", "2"]),
    ],
)
def test_an_id_on_the_command_line_wins_over_the_file_s_wherever_it_stands(tmp_path, before, behind):
    (tmp_path / "run.toml").write_text('id = "File-v0"\nwords = ["a"]\n')
    config = ["--config", str(tmp_path / "run.toml")]
    found = parse(Own, [*config, *before, "Typed-v0", *behind], "own")
    assert (found.id, found.words) == ("Typed-v0", ("a",))
    assert found.number == (2 if any("number" in word for word in [*before, *behind]) else 1)
    assert parse(Own, [*config, *before, *behind, "--words", "b", "c"], "own").id == "File-v0"


def test_a_flag_that_is_mistyped_beside_a_file_is_named(tmp_path):
    (tmp_path / "run.toml").write_text('id = "File-v0"\n')
    with pytest.raises(UsageError, match=r"--numbr.*Did you mean '--number'"):
        parse(Own, ["--config", str(tmp_path / "run.toml"), "--numbr", "2"], "own")


@pytest.mark.parametrize("value", [True, False])
def test_a_file_has_flags_that_are_yes_no_or_neither(tmp_path, value):
    (tmp_path / "run.toml").write_text(f"id = 'A'\nmaybe = {str(value).lower()}\nsure = {str(value).lower()}\n")
    assert parse(Own, ["--config", str(tmp_path / "run.toml")], "own") == Own("A", maybe=value, sure=value)


def test_the_first_word_may_have_another_key(tmp_path):
    @dataclass(frozen=True)
    class Judge:
        """Flags of a command."""

        data: Annotated[str, tyro.conf.Positional]
        id: str = ""

    (tmp_path / "run.toml").write_text('id = "Copy-v0"\ndata = "log.jsonl"\n')
    config = ["--config", str(tmp_path / "run.toml")]
    assert parse(Judge, config, "ope", first="data") == Judge("log.jsonl", "Copy-v0")
    assert parse(Judge, ["own.jsonl", *config], "ope", first="data") == Judge("own.jsonl", "Copy-v0")


@pytest.mark.parametrize(
    "words", [["solve", "Stop-v0", "--env", "split=eval"], ["regret", "Stop-v0", "--env", "num_envs=3"]]
)
def test_what_a_command_says_itself_is_no_option_of_the_environment(words, capsys):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert f"--env '{words[-1]}': {words[-1].partition('=')[0]} is no option here" in err
