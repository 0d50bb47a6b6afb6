"""Play an episode yourself: choose every token, with the reference's probabilities beside it."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import cast

import gymnasium as gym
import numpy as np
from rich.table import Table

from textgym.checks import Floats, JsonObject, check_count
from textgym.commands.console import note, one_line, output, untrusted
from textgym.commands.flags import EnvId, EnvOptions, env_options, find_id, parse
from textgym.env import TokenEnv
from textgym.lm.reference import Reference, UniformReference, over_legal
from textgym.render import counted
from textgym.state import Observation
from textgym.task import Task, make_reference

_LOG = logging.getLogger(__name__)
_HELP = (
    "A number takes that token; other text is written literally (=TEXT writes TEXT even if it is a number); "
    "an empty line ends the answer; :quit leaves."
)


@dataclass(frozen=True)
class PlayFlags:
    """Play an episode yourself, token by token, and see the reward. Without a terminal, lines are read from stdin.

    Example: textgym play Helpful-v0 --split train
    """

    id: EnvId
    """Id of the environment, as in `textgym list`."""
    prompt: str | None = None
    """Start from this text instead of a drawn prompt."""
    prompt_index: int | None = None
    """Start from the prompt with this index in the split."""
    seed: int | None = None
    """Seed of the drawn prompt."""
    split: str = "train"
    """Split that the prompt is drawn from: train, eval, or tune where the task has it."""
    top: int = 10
    """Number of the reference's most likely tokens to show."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; values are JSON or text."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(PlayFlags, arguments, "play")
    check_count("top", flags.top)
    env = cast(
        TokenEnv, gym.make(find_id(flags.id), split=flags.split, **env_options(flags.env, taken=("split",))).unwrapped
    )
    choice = {"prompt": flags.prompt, "prompt_index": flags.prompt_index}
    observation, _ = env.reset(
        seed=flags.seed, options={name: value for name, value in choice.items() if value is not None}
    )
    _Game(env, _reference(env.task), flags.top).play(observation)


def _reference(task: Task) -> Reference:
    """Return the task's reference, or the uniform one where the model cannot be run here."""
    try:
        return make_reference(task)
    except ModuleNotFoundError as error:
        note(f"all tokens are shown as equally likely: {one_line(error)}")
        return UniformReference(task.vocabulary.allowed)


class _Game:
    """One episode between a person and an environment."""

    def __init__(self, env: TokenEnv, reference: Reference, top: int) -> None:
        self._env, self._reference, self._top = env, reference, top
        self._task = env.task
        self._console = output()
        self._log_prob = 0.0
        self._info: JsonObject | None = None
        self._reward = 0.0

    def play(self, observation: Observation) -> None:
        """Ask for tokens until the episode ends or the person leaves."""
        self._console.print(_HELP, style="dim", markup=False)
        while self._info is None:
            log_probs = self._next_log_probs(observation)
            choices = self._show(log_probs)
            tokens = self._tokens(self._ask(), choices)
            if tokens is None:
                break
            for place, token in enumerate(tokens):
                if place:
                    log_probs = self._next_log_probs(observation)
                observation = self._append(token, float(log_probs[token]))
                if self._info is not None:
                    break
        self._show_end()

    def _next_log_probs(self, observation: Observation) -> Floats:
        batch = {name: np.asarray(value)[None] for name, value in observation.items()}
        table = np.asarray(self._reference.log_probs(batch), dtype=np.float64)
        masks = None if self._task.mask is None else self._env.action_masks()[None]
        log_probs: Floats = over_legal(table, masks, self._task.vocabulary.allowed)[0]
        return log_probs

    def _show(self, log_probs: Floats) -> list[int]:
        """Print the state and the likeliest tokens, and return their ids."""
        state = self._env.get_state()
        written = self._task.vocabulary.decode([state.completion])[0]
        self._console.print()
        self._console.print(untrusted("prompt  ", "dim") + untrusted(state.prompt.text))
        self._console.print(untrusted("answer  ", "dim") + untrusted(written, "bold") + untrusted("_", "dim"))
        masked = np.where(self._env.action_masks(), log_probs, -np.inf)
        likeliest = np.argsort(-masked, kind="stable")[: self._top]
        choices = [int(token) for token in likeliest if np.isfinite(masked[token])]
        for number, token in enumerate(choices, 1):
            text = untrusted(repr(self._task.vocabulary.token_text(token)), "bold")
            self._console.print(untrusted(f"{number:4}  {np.exp(log_probs[token]):6.3f}  ") + text)
        return choices

    def _ask(self) -> str | None:
        """Return one line, or None at the end of the input."""
        left = self._task.max_new_tokens - len(self._env.get_state().completion)
        if sys.stdin.isatty():
            self._console.print(untrusted(f"{counted(left, 'token')} left > ", "dim"), end="")
        _LOG.info("")  # whoever thinks is not waiting
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None

    def _tokens(self, line: str | None, choices: list[int]) -> list[int] | None:
        """Return the token ids that a line asks for, possibly none; None to leave."""
        vocabulary = self._task.vocabulary
        if line == ":quit":
            return None
        if not line:
            # The end of the input ends the answer too: a script need not know the stop token.
            return [vocabulary.stop_ids[0]] if vocabulary.stop_ids else None
        if line.isdecimal() and len(line) <= 9 and 1 <= int(line) <= len(choices):
            return [choices[int(line) - 1]]
        try:
            ids = vocabulary.codec.encode(line.removeprefix("="))
        except (ValueError, UnicodeError) as error:
            note(f"this text cannot be encoded ({error})")
            return []
        if not ids:
            note("this text has no tokens in this vocabulary")
        return list(ids)

    def _append(self, token: int, log_prob: float) -> Observation:
        observation, reward, terminated, truncated, info = self._env.step(token)
        self._log_prob += log_prob
        self._reward += float(reward)
        if terminated or truncated:
            self._info = info
        return observation

    def _show_end(self) -> None:
        if self._info is None:
            self._console.print("\nquit before the end: no reward", markup=False)
            return
        state = self._env.get_state()
        table = Table.grid(padding=(0, 2))
        table.add_row("prompt", untrusted(state.prompt.text))
        table.add_row("answer", untrusted(self._info["completion"], "bold"))
        table.add_row("ended by", f"{state.finish_reason}, {counted(len(state.completion), 'token')}")
        table.add_row("reward", f"{self._reward:.4g}")
        for name, value in self._info["reward_terms"].items():
            table.add_row(untrusted(f"  {name}"), f"{value:.4g}")
        if "gold" in self._info:
            table.add_row("gold", f"{self._info['gold']:.4g}")
        table.add_row("reference", f"gives this answer a log-probability of {self._log_prob:.2f} nats")
        self._console.print()
        self._console.print(table)
