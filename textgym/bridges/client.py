"""An OpenEnv environment of texts, on a server, as the user of a Text-v0 task."""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.request import urlopen

from textgym.bridges.server import openenv_missing
from textgym.checks import check_count, shown
from textgym.rewards.base import Column

if TYPE_CHECKING:
    from openenv.core import SyncEnvClient

History = tuple[str, ...]
"""The first observation, then what the policy has said turn by turn."""


class _Reached(NamedTuple):
    """A session of the server, and what it has answered: a text, reward units so far, and whether it is over."""

    session: SyncEnvClient
    text: str
    total: float
    done: bool


class OpenEnvUser:
    """Answers turns with what an OpenEnv environment observes; give it to Text-v0 as `responder`.

    The environment must do the same after the same seed and actions. So a state can be restored: where no session has
    come that far, one starts again and repeats the conversation. A turn that it refuses is answered with its error,
    pays nothing and ends nothing. An answer that is too long for a reply is cut.

    Args:
        url: of the server, as "http://127.0.0.1:8000".
        seeds: the prompts are the first observations of the seeds 0, 1, ..., so many of them; equal ones count once.
        action: the field of an action that takes the policy's text. observation: the field of an observation that is
            shown to the policy.
        sessions: of the server, at once.

    Attributes:
        prompts: texts, the task's prompts. cuts: see `textgym.turns.TextResponder`.

    Raises: ValueError for an argument that is not allowed, or observations without such a text; ModuleNotFoundError;
        ConnectionError.
    """

    cuts = True

    def __init__(
        self, url: str, *, seeds: int = 8, action: str = "text", observation: str = "text", sessions: int = 16
    ) -> None:
        try:
            from openenv.core import GenericEnvClient
        except ModuleNotFoundError as error:
            raise openenv_missing("OpenEnvUser") from error
        self._make: Callable[[], SyncEnvClient] = lambda: GenericEnvClient(url).sync()
        self._action, self._observation = action, observation
        self._most = check_count("sessions", sessions)
        self._reached: OrderedDict[History, _Reached] = OrderedDict()
        self._seeds: dict[str, int] = {}
        with self._make() as session:
            for seed in range(check_count("seeds", seeds)):
                self._seeds.setdefault(self._text(session.reset(seed=seed).observation), seed)
        self._check_action(url)
        self.prompts = [*self._seeds]

    def __call__(self, conversations: Sequence[Sequence[dict[str, str]]]) -> list[str | None]:
        """Return what the environment answers to each conversation, None where its episode is over."""
        found = [self._after(_history([each["content"] for each in told])) for told in conversations]
        return [None if each.done else each.text for each in found]

    def reward(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Return the environment's own rewards, summed over each episode: the reward to give to Text-v0.

        Args:
            prompts, completions, columns: see `textgym.rewards.Reward`; the column `turns` is read.
        """
        spoken = cast(Sequence[Sequence[tuple[str, str]]], columns["turns"])
        said = [[text.strip() for author, text in turns if author == "policy"] for turns in spoken]
        return [self._after((prompt, *texts)).total for prompt, texts in zip(prompts, said, strict=True)]

    def close(self) -> None:
        """Give the sessions back to the server."""
        while self._reached:
            self._reached.popitem()[1].session.close()

    def _after(self, history: History) -> _Reached:
        """Return what has been reached behind a history."""
        if history in self._reached:
            self._reached.move_to_end(history)
            return self._reached[history]
        if len(history) == 1:
            full = len(self._reached) >= self._most
            session = self._reached.popitem(last=False)[1].session if full else self._make()
            result, total = session.reset(seed=self._seed(history[0])), 0.0
        else:
            before = self._after(history[:-1])
            if before.done:
                return before
            session = self._reached.pop(history[:-1]).session
            try:
                result, total = session.step({self._action: history[-1]}), before.total
            except RuntimeError as error:  # which the environment goes on after
                return self._keep(history, before._replace(text=f"error: {error}".replace("Server error: ", "")))
            except BaseException:
                session.close()
                raise
        text = self._text(result.observation)
        return self._keep(history, _Reached(session, text, total + float(result.reward or 0.0), bool(result.done)))

    def _keep(self, history: History, reached: _Reached) -> _Reached:
        self._reached[history] = reached
        return reached

    def _check_action(self, url: str) -> None:
        """Raise ValueError unless actions have the field that takes texts, where the server says which they have."""
        fields: dict[str, object] = {}
        with contextlib.suppress(OSError, ValueError, KeyError), urlopen(f"{url.rstrip('/')}/schema") as answer:
            fields = json.load(answer)["action"]["properties"]
        if fields and self._action not in fields:
            raise ValueError(f"action={self._action!r}: actions of the environment have the fields {', '.join(fields)}")

    def _seed(self, prompt: str) -> int:
        if prompt not in self._seeds:
            raise ValueError(f"prompt {shown(prompt)}: allowed are the {len(self._seeds)} prompts of this OpenEnvUser")
        return self._seeds[prompt]

    def _text(self, observation: dict[str, object]) -> str:
        text = observation.get(self._observation)
        if not isinstance(text, str):
            raise ValueError(
                f"observation={self._observation!r}: {shown(text)} is no text; the environment has the fields "
                f"{', '.join(observation)}"
            )
        return text


def _history(texts: Sequence[str]) -> History:
    """Return the prompt and the policy's texts of a conversation in which the two alternate."""
    return (texts[0], *texts[1::2])
