"""The command line and what it is connected to: closed, full and narrow streams, words that are not UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import threading

import pytest
from cli_tools import COMMAND, assert_one_line, environment, run, shell
from textgym_agents.conformance.run import CHECKS

from textgym.commands.flags import checked_words, env_options
from textgym.rewards import describe_reward

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="redirections of a POSIX shell"),
]
HELLO = ("play", "Text-v0", "--seed", "0", "--env", "reference=uniform")


@pytest.mark.long
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_without_an_output_there_is_nothing_to_say(closed):
    for words in (("--help",), ("list", "--json")):
        done = shell(f'"$@" {closed}', *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("nowhere", ["2>&-", "2>/dev/full"])
def test_without_an_error_stream_an_error_is_an_exit_code(nowhere):
    for unbuffered in ("", "1"):
        assert shell(f'"$@" {nowhere}', "lst", PYTHONUNBUFFERED=unbuffered).returncode == 2


@pytest.mark.long
def test_a_closed_input_is_an_empty_one():
    closed, empty = (shell(f'"$@" {source}', *HELLO) for source in ("<&-", "</dev/null"))
    assert (closed.returncode, closed.stderr) == (0, "")
    assert "reward" in closed.stdout
    assert closed.stdout == empty.stdout


def test_no_file_takes_the_place_of_a_closed_stream():
    # What a library in C prints would land in it.
    code = "import sys; from textgym.cli import main; main(['--version']); sys.exit(open('/dev/null').fileno())"
    done = subprocess.run(
        ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", COMMAND[0], "-P", "-c", code],
        env=environment(),
        check=False,
    )
    assert done.returncode > 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")  # noqa: PTH110
@pytest.mark.parametrize(
    ("words", "unbuffered"), [(("list",), ""), (("--version",), ""), (("--version",), "1"), (("list", "--help"), "")]
)
def test_a_full_output_is_named(words, unbuffered):
    done = shell('"$@" >/dev/full', *words, PYTHONUNBUFFERED=unbuffered)
    assert_one_line(done.returncode, done.stderr, "standard output: No space left on device")


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")  # noqa: PTH110
def test_a_training_whose_output_is_full_names_no_folder_as_full(tmp_path):
    words = ("train", "Bandit-v0", "--agent", "q-learning", "--batch", "8", "--episodes", "16", "--out", "r")
    done = shell('"$@" >/dev/full', *words, cwd=tmp_path)
    said = "error: standard output: No space left on device; make space, then go on with: textgym train"
    assert_one_line(done.returncode, done.stderr, said)
    assert "r: No space" not in done.stderr


@pytest.mark.parametrize("stream", ["stdout", "both"])
def test_a_reader_who_leaves_ends_it_quietly(stream):
    both = "2>&1" if stream == "both" else ""
    done = shell(f'"$@" {both} | true; exit ${{PIPESTATUS[0]}}', "list")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.long
def test_help_does_not_depend_on_how_python_was_started():
    both = '"$@" --help && "$@" list --help'
    plain, stripped = (shell(both, PYTHONOPTIMIZE=level) for level in ("0", "2"))
    assert (stripped.returncode, stripped.stdout) == (0, plain.stdout)


@pytest.mark.long
def test_rewards_and_checks_say_what_they_are_without_docstrings():
    # Of other packages the bytecode with docstrings is there; to compile them without takes 7 seconds.
    code = (
        "import importlib._bootstrap_external as files\n"
        "cached = files.cache_from_source\n"
        "files.cache_from_source = lambda path: cached(path, optimization=None if '/textgym' in path else '')\n"
        "from textgym.rewards import describe_reward, reward_names\n"
        "from textgym_agents.conformance.run import CHECKS\n"
        "import json\n"
        "print(json.dumps([{name: describe_reward(name) for name in reward_names()}, [one.asks for one in CHECKS]]))"
    )
    stripped = environment() | {"PYTHONOPTIMIZE": "2"}
    done = subprocess.run([COMMAND[0], "-c", code], env=stripped, check=True, capture_output=True)
    rewards, asked = json.loads(done.stdout)
    assert len(rewards) > 20
    assert rewards == {name: describe_reward(name) for name in rewards}
    assert asked == [one.asks for one in CHECKS]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_utf_8_shows_escapes(encoding):
    words = ("--prompt", "Grüße 日本 \u20ac", "--env", "reference=uniform", "max_prompt_tokens=80")
    done = shell('"$@" </dev/null', "play", "Helpful-v0", *words, PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u65e5\\u672c" in done.stdout


@pytest.mark.parametrize("words", [("report", b"caf\xe9"), ("list", b"--out=\xff")])
def test_words_that_are_not_utf_8_are_refused(words):
    done = shell('"$@"', *words)
    assert_one_line(done.returncode, done.stderr, "\\x", "allowed are words and names in UTF-8")


def test_a_folder_whose_name_is_not_utf_8_may_be_worked_in(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102  (bytes)
    words = ("preferences", "Bandit-v0", "--policy", "random", "--n", "4", "--out", "p.jsonl")
    done = shell('"$@"', *words, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(folder) == [b"p.jsonl"]  # noqa: PTH208


@pytest.mark.parametrize("words", [("--out=~/p.jsonl",), ("--out", "~/p.jsonl")])
def test_the_home_folder_of_a_flag_is_the_home_folder(capsys, monkeypatch, tmp_path, words):
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    given = ("preferences", "Bandit-v0", "--policy", "random", "--n", "4")
    code, out, _ = run(capsys, *given, *words)
    assert code == 0
    assert str(tmp_path / "home" / "p.jsonl") in out.replace("\n", "")
    assert (tmp_path / "home" / "p.jsonl").exists()
    assert not list((tmp_path / "work").iterdir())


def test_the_home_folder_of_an_option_and_of_a_word_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert env_options(["prompts=~/p.txt", "a=~", "b=x~/y"]) == {
        "prompts": f"{tmp_path}/p.txt",
        "a": "~",
        "b": "x~/y",
    }
    assert checked_words(["~/r", "~x", "--out", "~/o"]) == [f"{tmp_path}/r", "~x", "--out", f"{tmp_path}/o"]


def test_an_error_that_ends_a_thread_is_one_line(capsys, monkeypatch):
    def described(name: str) -> dict[str, str]:
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        return {}

    monkeypatch.setattr("textgym.commands.list.TASKS", ["Stop"])
    monkeypatch.setattr("textgym.commands.list._describe", described)
    before = threading.excepthook
    code, _, err = run(capsys, "list", "--json")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("textgym: warning: division by zero (")
    assert threading.excepthook is before


def test_a_home_folder_that_nobody_has_is_refused(capsys):
    assert_one_line(*run(capsys, "report", "x", "--out=~nobody-at-all/r")[::2], "--out '~nobody-at-all/r'", "home")


@pytest.mark.parametrize("out", ["pipe", "/dev/null"])
def test_inspect_replaces_no_pipe_and_no_device(tmp_path, out):
    os.mkfifo(tmp_path / "pipe")
    done = shell('"$@"', "inspect", "Bandit-v0", "--out", out, cwd=tmp_path)
    assert_one_line(done.returncode, done.stderr, f"out {out!r}", "no file")


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (MemoryError(), "out of memory: a smaller batch"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "fewer workers",
        ),
        (OSError(12, "Cannot allocate memory"), "out of memory"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (OSError(24, "Too many open files", "a.json"), "ulimit -n"),
    ],
)
def test_what_the_machine_has_no_more_of_names_a_remedy(capsys, monkeypatch, error, helps):
    def broken(name: str) -> None:
        raise error

    monkeypatch.setattr("textgym.commands.list._row", broken)
    code, _, err = run(capsys, "list")
    assert_one_line(code, err, helps, str(error))
    assert "--debug" not in err
