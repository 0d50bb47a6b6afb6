"""Episodes of an environment whose policy is somewhere else, and sends texts or several tokens at once."""

from __future__ import annotations

from collections.abc import Mapping

from gymnasium.error import ResetNeeded

from textgym.checks import JsonObject, check_count, not_one_of, shown
from textgym.env import TokenEnv, why_reset
from textgym.turns import Spoken


class SpokenEpisodes:
    """Plays one episode after the other. What is refused leaves the episode as it is.

    Args:
        env: the environment.

    Attributes:
        text: what the environment has said last: the prompt, then its reply to the last turn, "" where it has none.
        reward: reward units of the last action. ended: whether the episode has. info: of the last step.
    """

    def __init__(self, env: TokenEnv) -> None:
        self.env = env
        self.text, self.reward, self.ended = "", 0.0, False
        self.info: JsonObject = {}
        turns, vocabulary = env.task.turns, env.task.vocabulary
        self._budget = env.task.max_new_tokens if turns is None else turns.tokens
        self._ends = frozenset(vocabulary.stop_ids if turns is None else turns.ends)

    def begin(self, seed: int | None = None, options: Mapping[str, object] | None = None) -> None:
        """Start an episode. Args and Raises: as `textgym.TokenEnv.reset`."""
        seed = None if seed is None else check_count("seed", seed, 0)
        _, self.info = self.env.reset(seed=seed, options=None if options is None else dict(options))
        self.text, self.reward, self.ended = str(self.info["prompt"]), 0.0, False

    def act(self, action: Mapping[str, object]) -> None:
        """Take an action {"tokens": ids} or {"text": text}; what is None counts as not there.

        Raises: ValueError for any other; as `take` and `say`.
        """
        for name in action:
            if name not in ("tokens", "text"):
                raise ValueError(not_one_of("action", name, ("tokens", "text")))
        given = {name: value for name, value in action.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"action={shown(given)}: allowed is one of tokens and text")
        (self.take if "tokens" in given else self.say)(*given.values())

    def say(self, text: object) -> None:
        """Write a text as the rest of a turn, and end the turn.

        Raises: ValueError for a text that is no turn of this task; as `take`.
        """
        vocabulary = self.env.task.vocabulary
        if not isinstance(text, str):
            raise ValueError(f"text={shown(text)}: allowed is a text")
        left = self._left()
        try:
            ids = list(vocabulary.codec.encode(text))
        except (ValueError, UnicodeError) as error:
            raise ValueError(f"text={shown(text)}: allowed is what this vocabulary can write ({error})") from error
        if len(ids) < left and not self._ends.intersection(ids):
            ids += vocabulary.stop_ids[:1]
        if len(ids) > left or (len(ids) < left and not self._ends.intersection(ids)):
            allowed = f"1..{left}" if vocabulary.stop_ids else f"{left}"
            raise ValueError(f"text={shown(text)}: a turn of {len(ids)} tokens, allowed are {allowed} here")
        self.take(ids)

    def take(self, tokens: object) -> None:
        """Append tokens, none behind the end of a turn.

        Args:
            tokens: a list of ids in 0..V-1.
        Raises: ValueError for anything else; ResetNeeded before `begin`, and after the end of an episode.
        """
        left = self._left()
        if not isinstance(tokens, list | tuple) or not tokens:
            raise ValueError(f"tokens={shown(tokens)}: allowed is a list of at least one token id")
        for place, token in enumerate(tokens):
            check_count(f"tokens[{place}]", token, 0, self.env.task.vocabulary.size - 1, "token ids")
            if place + 1 < len(tokens) and (token in self._ends or place + 1 >= left):
                raise ValueError(
                    f"tokens={shown(tokens)}: the turn ends with the first {place + 1}; allowed are no more than these"
                )
        self.reward = 0.0
        for token in tokens:
            self._append(token)
        self.text = self._reply()

    def _append(self, token: int) -> None:
        _, reward, self.ended, _, self.info = self.env.step(token)
        self.reward += float(reward)

    def _left(self) -> int:
        """Return how many tokens the turn may have yet."""
        state = self.env.get_state()
        if state.finish_reason is not None:
            raise ResetNeeded(why_reset(1))
        return self._budget - len(state.turn)

    def _reply(self) -> str:
        """Return what the environment wrote in answer to the last token."""
        state, task = self.env.get_state(), self.env.task
        if task.turns is None or not state.completion:
            return ""
        (said,) = Spoken([state.completion], [state.environment], task.vocabulary, task.turns.responder)
        author, text = said[-1]
        return text.strip() if author == "environment" else ""
