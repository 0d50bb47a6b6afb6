"""The command line: what it prints, and that every error is one line."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_tools import BLOCK, assert_one_line, child, run
from textgym_agents.registry import agent_class, config_class

import textgym
from textgym.commands.completion import flags_of, script
from textgym.commands.console import EXTRAS, one_line
from textgym.commands.serve import ServeFlags
from textgym.registry import AGENTS, COMMANDS, TASKS

HOSTILE = "[red]hi[/red] \x1b[31m\u202e"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


# Finding commands


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_command(capsys, words):
    code, out, err = run(capsys, *words)
    assert code == 0
    assert not err
    for name in ("list", "play", "train", "eval", "demo"):
        assert name in COMMANDS
        assert f"  {name} " in out
        assert COMMANDS.summary(name).split(",")[0] in out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(capsys, name):
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert f"usage: textgym {name}" in out


def test_version(capsys):
    assert run(capsys, "--version")[1].startswith("textgym ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lst",), ["'lst'", "Did you mean 'list'?"]),
        (("--verbose",), ["flag '--verbose'"]),
        (("list", "--jsn"), ["--jsn", "Did you mean '--json'?"]),
        (("list", "more"), ["more"]),
        (("play",), ["ID"]),
        (("play", "Helpfull-v0"), ["'Helpfull-v0'", "Did you mean 'textgym/Helpful-v0'?"]),
        (("play", "textgym/Helpful-v9"), ["Did you mean 'textgym/Helpful-v0'?"]),
        (("play", "no_such_module:X-v0"), ["module 'no_such_module'"]),
        (("play", "Helpful-v0", "--split", "tain"), ["Did you mean 'train'?"]),
        (("play", "Helpful-v0", "--top", "many"), ["--top"]),
        (("play", "Helpful-v0", "--top", "0"), ["top=0"]),
        (("play", "Helpful-v0", "--prompt-index", "-3"), ["prompt_index=-3"]),
        (("play", "Helpful-v0", "--env", "max_new_tokens"), ["NAME=VALUE"]),
        (("play", "Helpful-v0", "--env", "max_new_token=3"), ["Did you mean 'max_new_tokens'?"]),
        (("train", "Helpful-v0", "--agent", "lm-pp"), ["Did you mean 'lm-ppo'?"]),
        (("train", "Helpful-v0", "--agent=nowhere:X"), ["module 'nowhere'"]),
        (("train", "Helpful-v0", "--bach", "3"), ["Did you mean '--batch'?"]),
        (("train", "Helpful-v0", "--batch", "0"), ["batch=0"]),
        (("train", "Helpful-v0", "--batch", "x"), ["--batch"]),
        (("train", "Helpful-v0", "--kl", "k9"), ["'k9'"]),
        (("train", "Helpful-v0", "--episodes", "0"), ["episodes=0"]),
        (("train", "Helpful-v0", "--resume"), ["--out"]),
        (("train", "Helpful-v0", "--resume", "--out", "nothing"), ["nothing", "holds no run"]),
        (("eval", "Helpful-v0", "--agent", "nobody"), ["'nobody'", "reference"]),
        (("eval", "Helpful-v0", "--agent", "."), ["no saved agent"]),
        (("eval", "Helpful-v0", "--agent", "reference", "--per-prompt", "0"), ["per_prompt=0"]),
        (("demo", "--episodes", "-1"), ["episodes=-1"]),
        (("report", "nothing"), ["nothing", "allowed is a suite's folder"]),
        (
            ("preferences", "--check", "nothing.jsonl"),
            ["nothing.jsonl", "(textgym preferences --help shows an example)"],
        ),
    ],
)
def test_errors_are_one_line(capsys, words, said):
    code, out, err = run(capsys, *words)
    assert_one_line(code, err, *said)
    assert re.search(
        r"textgym \w+|--\w|Did you mean|allowed|not one of|run the command", err.partition("error: ")[2]
    ), err
    assert not out
    assert not Path("runs").exists()


@pytest.mark.parametrize("words", [("--debug", "play", "Nothing-v0"), ("play", "Nothing-v0", "--debug")])
def test_debug_shows_where(capsys, words):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "Traceback" in err
    assert "UsageError" in err


def test_what_an_error_quotes_cannot_steer_the_terminal(capsys):
    code, _, err = run(capsys, "play", f"x{HOSTILE}\ny")
    assert_one_line(code, err, "\\x1b", "[red]")
    assert "\x1b" not in err
    assert "\u202e" not in err


def test_an_unexpected_error_is_one_line_too(capsys, monkeypatch):
    def broken(name: str) -> None:
        raise KeyError("boo\nfar")

    monkeypatch.setattr("textgym.commands.list._row", broken)
    assert_one_line(*run(capsys, "list")[::2], "KeyError", "--debug")


def test_ctrl_c_is_one_line(capsys, monkeypatch):
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("textgym.commands.list._row", interrupted)
    assert run(capsys, "list") == (130, "", "textgym: interrupted\n")


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("torch", ("train", "Helpful-v0"), "lm"),
        ("transformers", ("eval", "Helpful-v0", "--agent", "reference"), "lm"),
    ],
)
def test_a_missing_extra_names_the_pip_command(module, words, extra):
    done = child(*words, before=BLOCK.format(module=module))
    assert_one_line(done.returncode, done.stderr, f'pip install "textgym[{extra}]"', module)


def test_every_package_of_an_extra_is_named_by_an_extra_that_brings_it():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    modules = {"google_re2": "re2", "pillow": "PIL", "openenv_core": "openenv"}

    def own(requirements):
        names = [re.match(r"[\w-]+", each)[0].replace("-", "_") for each in requirements]
        return {modules.get(name, name) for name in names} - {"textgym"}

    def brought(extra):
        inner = ",".join(re.findall(r"textgym\[(.*?)\]", ",".join(extras[extra])))
        return own(extras[extra]).union(*(brought(each) for each in inner.split(",") if each))

    used = {module for extra in extras for module in own(extras[extra])}
    used -= own(extras["test"]) | own(extras["docs"])  # tools of this repository, which no command imports
    named = {module: extra for extra, found in EXTRAS.items() for module in found}
    assert used - {*named} == set()
    assert [module for module in used if module not in brought(named[module])] == []
    assert own(project["dependencies"]) & {*named} == set()
    assert one_line(ModuleNotFoundError("no", name="trl.trainer")).endswith('pip install "textgym[interop]"')


# list


@pytest.mark.slow
def test_list_imports_no_torch():
    done = child("list", before="import atexit; atexit.register(lambda: print('torch' in sys.modules))")
    assert done.returncode == 0
    assert done.stdout.endswith("False\n")
    assert "textgym/Helpful-v0" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("module", ["re2", "jsonschema", "llguidance", "vaderSentiment"])
def test_list_says_what_cannot_be_built_without_an_extra(module):
    done = child("list", before=BLOCK.format(module=module))
    assert done.returncode == 0
    failing = {name for name in TASKS if module in TASKS.entry(name).needs}
    assert failing
    assert set(re.findall(r"^textgym/(\S+): .*textgym\[rewards\]", done.stdout, re.MULTILINE)) == failing


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_list_fits_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = run(capsys, "list")
    assert max(map(len, out.splitlines())) <= columns
    row = next(line for line in out.splitlines() if "textgym/Helpful-v0" in line)
    shown = row.split()
    assert [*shown[:2], *shown[3:5]] == ["textgym/Helpful-v0", "alignment", "1024", "40"]
    assert "Answer questions about the built-in world" in row or columns < 100
    assert shown[2] == "rules" or columns < 80  # where there is little room, a word goes on in the next line


def test_list_as_json(capsys):
    rows = {row["id"]: row for row in json.loads(run(capsys, "list", "--json")[1])}
    task = textgym.make_task("Text")
    row = rows["textgym/Text-v0"]
    assert (row["vocabulary"], row["horizon"]) == (task.vocabulary.size, task.max_new_tokens)
    assert row["family"] == "text"
    assert row["prompts"] == {"train": 4, "eval": 4, "tune": 4}


# play

WORDS = (
    "--env",
    'tokenizer=["<end>","a","b"]',
    "stop=<end>",
    'prompts=["a"]',
    "max_new_tokens=4",
    "reference=uniform",
)
LENGTH = 'reward={"name":"length","target":2,"unit":"tokens"}'


def play(monkeypatch, capsys, lines: str, *words: str) -> tuple[int, str, str]:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return run(capsys, "play", "Text-v0", *words)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["so"], ["solve"]),
        (["solve", "Sto"], ["Stop-v0"]),
        (["train", "Stop-v0", "--agent", "rl"], ["rloo"]),
        (["solve", "Stop-v0", "--compl"], ["--completions"]),
        (["list", "--compl"], []),
    ],
)
def test_bash_completes_with_the_printed_script(typed, offered):
    text = script("bash", {name: flags_of(name) for name in ("list", "solve", "train")}, ["grpo", "rloo"], ["Stop-v0"])
    text += f"COMP_WORDS=(textgym {' '.join(typed)}); COMP_CWORD={len(typed)}; _textgym; echo ${{COMPREPLY[@]}}\n"
    found = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert (found.stdout.split(), found.stderr) == (offered, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_no_name_of_a_plug_in_is_taken_for_a_command_of_the_shell(shell, tmp_path):
    odd = ["$(touch${IFS}x)", 'a"b', "a'b", "`id`", "a;b"]
    text = script(shell, {name: ["--agent"] for name in ["train", *odd]}, ["rloo", *odd], ["ns/Stop-v0", *odd])
    assert not any(name in text for name in odd)
    assert all(name in text for name in ("rloo", "ns/Stop-v0", "train"))
    if shell == "bash":
        text += "COMP_WORDS=(textgym train --agent r); COMP_CWORD=3; _textgym; echo ${COMPREPLY[@]}\n"
        found = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert (found.stdout, found.stderr, [*tmp_path.iterdir()]) == ("rloo\n", "", [])


def test_a_plug_in_without_help_has_no_flags_and_the_others_theirs(monkeypatch, capsys):
    monkeypatch.setattr("textgym.commands.completion.COMMANDS", SimpleNamespace(load=lambda name: lambda words: 1 / 0))
    assert flags_of("boom") == []
    assert "boom --help: division by zero" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["", " "])
def test_no_host_is_not_every_address_of_the_machine(host):
    with pytest.raises(ValueError, match=r"host='.*': allowed is an address, as"):
        ServeFlags("Stop-v0", host=host)


@pytest.mark.parametrize("agent", sorted(AGENTS))
def test_every_agent_shows_its_settings_as_flags_of_train(capsys, agent):
    code, out, _ = run(capsys, "train", "Stop-v0", "--agent", agent, "--help")
    assert code == 0
    assert "--eval-every" in out


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(capsys, shell):
    code, text, _ = run(capsys, "completion", shell)
    assert code == 0
    assert all(re.search(rf"\b{name}\b", text) for name in (*COMMANDS, "version", "debug"))
    assert "Helpful-v0" in text


def test_play_by_numbers(monkeypatch, capsys):
    # The choices are <end>, a, b in this order: the reference is uniform.
    code, out, err = play(monkeypatch, capsys, "2\n3\n1\n", *WORDS, LENGTH)
    assert (code, err) == (0, "")
    assert "0.333" in out
    assert "answer     a b" in out
    assert "stop, 3 tokens" in out
    # Three choices of probability 1/3: 3 log(1/3) = -3.30.
    assert "-3.30" in out


def test_a_number_of_thousands_of_digits_is_a_text(monkeypatch, capsys):
    code, out, err = play(monkeypatch, capsys, "9" * 5000 + "\n2\n1\n", *WORDS, LENGTH)
    assert code == 0
    assert "cannot be encoded" in err
    assert "answer     a" in out


@pytest.mark.parametrize(
    ("lines", "ends"),
    [
        ("a b\n\n", "stop, 3 tokens"),  # by text, and an empty line
        ("", "stop, 1 token"),  # the end of the input
        ("a b a b a b\n", "length, 4 tokens"),  # a text that is too long
    ],
)
def test_an_answer_ends(monkeypatch, capsys, lines, ends):
    code, out, _ = play(monkeypatch, capsys, lines, *WORDS)
    assert code == 0
    assert re.search(rf"{ends}\b", out)


def test_quit_leaves_without_a_reward(monkeypatch, capsys):
    code, out, _ = play(monkeypatch, capsys, "2\n:quit\n", *WORDS)
    assert code == 0
    assert "no reward" in out
    assert "stop," not in out


def test_equals_writes_a_number_as_text(monkeypatch, capsys):
    words = ("--prompt", "Hello.", "--env", "reference=uniform")
    _, out, _ = play(monkeypatch, capsys, "=7\n\n", *words)
    assert "answer     7" in out


def test_hostile_text_is_shown_as_it_is(monkeypatch, capsys):
    words = ("--prompt", HOSTILE, "--env", "reference=uniform", "max_prompt_tokens=80")
    _, out, _ = play(monkeypatch, capsys, f"{HOSTILE}\n\n", *words)
    assert "[red]hi[/red] \\x1b[31m\\u202e" in out
    assert "\x1b" not in out
    assert "\u202e" not in out


@pytest.mark.slow
def test_play_without_torch_says_so_and_goes_on():
    done = child("play", "Helpful-v0", before=BLOCK.format(module="torch"), stdin="\n")
    assert done.returncode == 0
    assert 'pip install "textgym[lm]"' in done.stderr
    assert done.stderr.count("\n") == 1
    assert "stop, 1 token" in done.stdout


@pytest.mark.slow
def test_the_help_of_a_training_needs_no_torch():
    done = child("train", "--help", before=BLOCK.format(module="torch"))
    assert (done.returncode, done.stderr) == (0, "")
    for field in fields(config_class(agent_class("lm-ppo"))):  # what the agent itself says that it takes
        assert (
            f"--{field.name.replace('_', '-')}" in done.stdout or f"--no-{field.name.replace('_', '-')}" in done.stdout
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("train", "Text-v0", "--model", "some/none"), "model=some/none"),
        (("train", "Text-v0", "--env", "reference=some/none"), "reference=some/none"),
        (("train", "Text-v0", "--env", "eval_prompts=some/none#split=test"), "eval_prompts=some/none"),
        (("eval", "Helpful-v0", "--agent", "hf:some/none"), "agent=some/none"),
        (("sft", "--data", "some/none"), "data=some/none"),
        (("reward-model", "--data", "some.jsonl", "--base", "some/none"), "base=some/none"),
    ],
)
def test_a_name_that_nobody_has_is_refused_before_torch_is_imported(words, named):
    done = child(*words, before=BLOCK.format(module="torch"))
    assert_one_line(done.returncode, done.stderr, f"{named}: there is no such file or folder", "in the cache")


def test_play_shows_every_reward_term(monkeypatch, capsys):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("Hello! How can I help you?\n\n"))
    code, out, _ = run(capsys, "play", "Helpful-v0", "--prompt-index", "0", "--top", "3")
    assert code == 0
    for name in ("reward", "content", "courtesy", "concision", "ending", "rudeness", "wrong_claim", "gold"):
        assert name in out


@pytest.mark.slow
def test_a_package_that_an_environment_misses_is_named_with_what_to_install():
    done = child("play", "Json-v0", before=BLOCK.format(module="llguidance"))
    assert_one_line(done.returncode, done.stderr, "llguidance", 'pip install "textgym[rewards]"')
    assert "--debug" not in done.stderr
