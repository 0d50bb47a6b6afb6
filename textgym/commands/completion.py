"""`textgym completion`: a shell script that completes commands, flags, ids and names."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import tyro

from textgym.commands.console import note, one_line
from textgym.commands.flags import parse
from textgym.registry import AGENTS, COMMANDS, TASKS

Shell = Literal["bash", "zsh", "fish"]
_FLAG: Final = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_WORD: Final = re.compile(r"[\w.+@/:-]+")
_GLOBAL: Final = ("--debug", "--help", "--version")  # in place of a command, or before it

# Bash's, which zsh reads by its own bashcompinit. A word that is no flag and no value of --agent is an id or a file.
_BASH: Final = """\
_textgym() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words
    if [[ $COMP_CWORD -eq 1 ]]; then words="{commands}"
    elif [[ $before == --agent ]]; then words="{agents}"
    elif [[ $word == -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    else words="{ids}"
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _textgym textgym
"""


_ZSH: Final = """\
autoload -U +X compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
"""


@dataclass(frozen=True)
class CompletionFlags:
    """Print a script with which a shell completes `textgym` commands, flags, ids and agents.

    Agent flags are those of `lm-ppo`. Every command is asked for its flags, which takes seconds: save the script in a
    file, and print it again after an update.

    Example: textgym completion bash
    """

    shell: Annotated[Shell, tyro.conf.Positional]
    """Shell that runs the script. bash: run `textgym completion bash > ~/.textgym-completion`, and add `.
    ~/.textgym-completion` to .bashrc; zsh: the same with `textgym completion zsh` and .zshrc; fish: run `textgym
    completion fish > ~/.config/fish/completions/textgym.fish`."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    shell = parse(CompletionFlags, arguments, "completion").shell
    flags = {name: flags_of(name) for name in sorted(COMMANDS)}
    print(script(shell, flags, sorted(AGENTS), sorted(TASKS)), end="")


def flags_of(command: str) -> list[str]:
    """Return the flags that a command's `--help` shows, sorted; none where it fails, as without a package."""
    text = io.StringIO()
    try:
        with contextlib.suppress(SystemExit, ImportError), contextlib.redirect_stdout(text):
            COMMANDS.load(command)(["--help"])
    except Exception as error:  # a plug-in's
        note(f"{command} --help: {one_line(error)}")
    starts = (re.split(r"\s{2,}", line.strip("│ "))[0] for line in text.getvalue().splitlines())
    return sorted({flag for start in starts if start.startswith("-") for flag in _FLAG.findall(start)})


def script(shell: Shell, flags: Mapping[str, Sequence[str]], agents: Iterable[str], ids: Iterable[str]) -> str:
    """Return the script, without names that a shell could take for more than a word: it runs what they say.

    Args:
        flags: of each command. agents, ids: values of `--agent` and of other words.
    """
    flags = {name: own for name, own in flags.items() if _WORD.fullmatch(name)}
    agents, ids = ([name for name in names if _WORD.fullmatch(name)] for names in (agents, ids))
    if shell == "fish":
        return "".join(f"{line}\n" for line in _fish(flags, agents, ids))
    cases = "\n".join(f'            {name}) words="{" ".join(own)}" ;;' for name, own in flags.items())
    text = _BASH.format(commands=" ".join((*flags, *_GLOBAL)), agents=" ".join(agents), ids=" ".join(ids), cases=cases)
    return text if shell == "bash" else _ZSH + text


def _fish(flags: Mapping[str, Sequence[str]], agents: Iterable[str], ids: Iterable[str]) -> Iterable[str]:
    first = "complete -c textgym -n __fish_use_subcommand"
    yield f"{first} -f -a '{' '.join(flags)}'"
    yield from (f"{first} -l {flag.removeprefix('--')}" for flag in _GLOBAL)
    yield f"complete -c textgym -n 'not __fish_use_subcommand' -a '{' '.join(ids)}'"
    for name, own in flags.items():
        behind = f"complete -c textgym -n '__fish_seen_subcommand_from {name}'"
        for flag in own:
            values = f" -x -a '{' '.join(agents)}'" if flag == "--agent" else ""
            yield f"{behind} -l {flag.removeprefix('--')}{values}"
