"""Rewards that wait for an answer from elsewhere, many at once, with retries and a cache; a judge behind an API."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from textgym.checks import JsonObject, check_count, check_number, is_finite, shown, users_line
from textgym.files import json_object
from textgym.registry import load_target
from textgym.rewards.base import Column, Failed, NamedReward, RewardError, Values, read_column

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Ask = Callable[..., Awaitable[object]]
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds before a retry
_PASSING = (408, 409, 425, 429)  # statuses that may pass
_PLACE = re.compile(r"\{(\w+)\}")
_TEXTS = ("prompt", "completion")


class TryAgainError(RuntimeError):
    """A try has failed, and another one may not.

    Args:
        kind: of the failure, see `RewardError`. wait: seconds that whoever was asked wants to be left alone.
    """

    def __init__(self, message: str, kind: str = "raises", wait: float = 0.0) -> None:
        super().__init__(message)
        self.kind, self.wait = kind, wait


class Asking(NamedReward, ABC):
    """Asks for every completion by itself, many at once, with retries and a cache.

    Equal completions are asked for once. One whose last try fails has failed alone: what becomes of it is for the
    environment's `on_error` to say.

    Args:
        name: what it is logged under, and its scores are kept under.
        columns: data columns that it asks with.
        at_once: the most calls that wait at the same time.
        retries: further tries after a failed one, after pauses from half a second to eight.
        seconds: that a try may take.
        cache: file of an SQLite database with the scores so far, made if there is none; None: no cache. A run that is
            resumed takes its scores from there.
    Raises: ValueError for an argument that is not allowed; OSError or ValueError for a bad cache.
    """

    def __init__(
        self, name: str, columns: Sequence[str], at_once: int, retries: int, seconds: float, cache: str | None
    ) -> None:
        if isinstance(columns, str) or not all(isinstance(each, str) for each in columns):
            raise ValueError(f"columns={shown(columns)}: allowed is a list of names of data columns")
        self.name, self.columns = name, tuple(columns)
        self.at_once, self.retries = check_count("at_once", at_once), check_count("retries", retries, 0)
        self.seconds = check_number("seconds", seconds, 1e-3)
        self.cache = None if cache is None else Path(cache).absolute()
        self.counts = dict.fromkeys(("calls", "retries", "cached", "failed"), 0.0)
        with opened(self.cache):  # what is wrong with it is said before any work
            pass

    def spent(self) -> dict[str, float]:
        """Return what this process has spent: calls, retries, scores from the cache, completions that failed."""
        return dict(self.counts)

    async def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> Values:
        """Return the scores of B completions; None where one abstains, `Failed` where its last try failed."""
        rows = zip(*(read_column(columns, name, self.name) for name in self.columns), strict=True)
        given = [dict(zip(self.columns, row, strict=True)) for row in rows] or [{} for _ in prompts]
        asked = list(zip(prompts, completions, given, strict=True))
        keys = [self.key(*each) for each in asked]
        limit = asyncio.Semaphore(self.at_once)
        with opened(self.cache) as scores:
            known = read_scores(scores, keys)
            self.counts["cached"] += sum(key in known for key in keys)
            # Equal completions are asked for once.
            missing = {key: each for key, each in zip(keys, asked, strict=True) if key not in known}

            async def kept(key: str, prompt: str, completion: str, row: JsonObject) -> float | None:
                async with limit:
                    score = await self._tried(prompt, completion, row)
                if not isinstance(score, Failed):
                    # It is there at once, whatever happens to this process next.
                    scores.execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", (key, score))
                return score

            async with self.session():
                found = await asyncio.gather(*(kept(key, *each) for key, each in missing.items()))
        known |= dict(zip(missing, found, strict=True))
        return [known[key] for key in keys]

    def session(self) -> AbstractAsyncContextManager[object]:
        """Return what a batch is asked within."""
        return nullcontext()

    @abstractmethod
    async def ask(self, prompt: str, completion: str, row: JsonObject) -> float | None:
        """Return the score of a completion. Raises: `TryAgainError`; RewardError where no try would help."""

    def identity(self) -> JsonObject:
        """Return what its scores belong to, beside the texts."""
        return {"name": self.name}

    def key(self, prompt: str, completion: str, row: JsonObject) -> str:
        """Return the name of a score in the cache."""
        text = json.dumps([self.identity(), prompt, completion, row], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    async def _tried(self, prompt: str, completion: str, row: JsonObject) -> float | None:
        """Return the score of a completion, after retries."""
        for attempt in range(self.retries + 1):
            self.counts["calls"] += 1
            try:
                return await asyncio.wait_for(self.ask(prompt, completion, row), self.seconds)
            except TimeoutError:
                problem = TryAgainError(f"no answer within {self.seconds:g} s", "timeout")
            except TryAgainError as error:
                problem = error
            except RewardError as error:
                return self._failed(str(error), error.kind)
            if attempt < self.retries:
                self.counts["retries"] += 1
                await asyncio.sleep(max(min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE), problem.wait))
        return self._failed(f"{problem} ({self.retries + 1} tries)", problem.kind)

    def _failed(self, message: str, kind: str) -> Failed:
        self.counts["failed"] += 1
        return Failed(RewardError(f"reward {self.name!r}: {message}", kind))


class Concurrent(Asking):
    """Asks an async function of yours for every completion by itself, many at once, with retries and a cache.

    The function is `async def score(prompt, completion, **row)`, where `row` has the completion's values of `columns`;
    it returns a number, or None to abstain.

    Args:
        score: the function, or "module:function".
        columns, at_once, retries, seconds, cache: see `Asking`. A score belongs to name, prompt, completion and the
            values of `columns`: after a change of the function, give it another name.
        name: what it is logged under; None: the function's.
    Raises: as `Asking` does; TypeError for what is no function.
    """

    def __init__(
        self,
        score: Ask | str,
        columns: Sequence[str] = (),
        at_once: int = 64,
        retries: int = 3,
        seconds: float = 60.0,
        cache: str | None = None,
        name: str | None = None,
    ) -> None:
        self._score = load_target(score, "score") if isinstance(score, str) else score
        if not callable(self._score):
            raise TypeError(f"score={shown(score)}: allowed is an async function, or 'module:function'")
        own = str(getattr(self._score, "__name__", type(self._score).__name__))
        super().__init__(name or own, columns, at_once, retries, seconds, cache)

    async def ask(self, prompt: str, completion: str, row: JsonObject) -> float | None:
        """See `Asking.ask`."""
        try:
            value = await self._score(prompt, completion, **row)
        except Exception as error:
            raise TryAgainError(f"{type(error).__name__}: {error}{users_line(error)}") from error
        if value is not None and not is_finite(value):
            raise RewardError(f"{value!r:.80} for a score; a finite number or None is allowed", "wrong_type")
        return None if value is None else float(value)


class Judge(Asking):
    """Asks a language model behind an API such as OpenAI's for a score, by a rubric.

    The answer has to be one JSON object with a number "score" in range, and nothing around it; any other is asked for
    again. Needs `pip install "textgym[judge]"`.

    Args:
        model: its name, as the server knows it.
        rubric: what it is told, with {prompt}, {completion} and {NAME} for a data column; or the path of a text file,
            *.txt or *.md. The form of the answer is added to it.
        base_url: of the server, as in "http://127.0.0.1:8000/v1"; None: OpenAI's.
        key: the environment variable that holds the server's key; None for a server that needs none.
        low, high: ends of the range of scores, reward units.
        prices: currency units for a million tokens that the judge reads, and that it writes; `spent` has "cost" then.
        at_once, retries, seconds, cache, name: see `Asking`. A score belongs to model, rubric and range, too.
    Raises: ValueError for an argument that is not allowed; ModuleNotFoundError.
    """

    def __init__(
        self,
        model: str,
        rubric: str,
        base_url: str | None = None,
        key: str | None = "OPENAI_API_KEY",
        low: float = 0.0,
        high: float = 1.0,
        prices: Sequence[float] | None = None,
        at_once: int = 64,
        retries: int = 3,
        seconds: float = 60.0,
        cache: str | None = None,
        name: str = "judge",
    ) -> None:
        try:
            import openai  # noqa: F401
        except ModuleNotFoundError as error:
            message = 'reward "judge" needs openai, which is not installed: pip install "textgym[judge]"'
            raise ModuleNotFoundError(message, name="openai") from error
        for argument, value in {"model": model, "rubric": rubric}.items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"{argument}={shown(value)}: allowed is a text")
        self.model, self.base_url, self.key_name = model, base_url, key
        self.rubric = Path(rubric).read_text(encoding="utf-8") if rubric.endswith((".txt", ".md")) else rubric
        self.low, self.high = check_number("low", low), check_number("high", high)
        self.maximum = self.high
        if self.low >= self.high:
            raise ValueError(f"low={low}: allowed is less than high={high}")
        self.prices = None if prices is None else tuple(check_number("prices", price, 0) for price in prices)
        if self.prices is not None and len(self.prices) != 2:
            raise ValueError(f"prices={shown(prices)}: allowed are two numbers, for tokens read and written")
        places = dict.fromkeys(_PLACE.findall(self.rubric))
        if not {"prompt", "completion"} & places.keys():
            raise ValueError("rubric: allowed is a text with {completion} in it, and perhaps {prompt}")
        self._secret()
        columns = [each for each in places if each not in _TEXTS]
        super().__init__(name, columns, at_once, retries, seconds, cache)
        self.counts |= {"tokens_read": 0.0, "tokens_written": 0.0}
        self._client: AsyncOpenAI | None = None

    def spent(self) -> dict[str, float]:
        """See `Asking.spent`; also tokens that were read and written, and their cost where `prices` are known."""
        cost = {}
        if self.prices is not None:
            read, written = self.counts["tokens_read"], self.counts["tokens_written"]
            cost = {"cost": (self.prices[0] * read + self.prices[1] * written) / 1e6}
        return self.counts | cost

    def identity(self) -> JsonObject:
        """See `Asking.identity`."""
        return {"name": self.name, "model": self.model, "rubric": self.rubric, "range": [self.low, self.high]}

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        """Connect for a batch: a client belongs to the loop of events that it was made in."""
        from openai import AsyncOpenAI

        async with AsyncOpenAI(api_key=self._secret(), base_url=self.base_url, max_retries=0) as self._client:
            yield
        self._client = None

    async def ask(self, prompt: str, completion: str, row: JsonObject) -> float | None:
        """See `Asking.ask`."""
        import openai

        texts = {"prompt": prompt, "completion": completion, **row}
        told = _PLACE.sub(lambda place: str(texts[place[1]]), self.rubric)
        form = f'Answer with one JSON object and nothing else: {{"score": NUMBER}}, from {self.low:g} to {self.high:g}.'
        assert self._client is not None
        try:
            answer = await self._client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": f"{told}\n\n{form}"}], temperature=0.0
            )
        except openai.APIStatusError as error:
            message = self._hidden(f"the server answered {error.status_code}: {error.message:.300}")
            if error.status_code in _PASSING or error.status_code >= 500:
                raise TryAgainError(message, wait=_pause(error.response.headers.get("retry-after"))) from None
            raise RewardError(message, "raises") from None
        except openai.APITimeoutError:
            raise TryAgainError("no answer in time", "timeout") from None
        except openai.APIError as error:  # no connection, or half an answer
            raise TryAgainError(self._hidden(f"{type(error).__name__}: {error.message:.300}")) from None
        except ValueError as error:  # what is no JSON
            raise TryAgainError(self._hidden(f"a broken answer: {error!s:.300}"), "wrong_type") from None
        if answer.usage is not None:
            self.counts["tokens_read"] += answer.usage.prompt_tokens
            self.counts["tokens_written"] += answer.usage.completion_tokens
        return self._read(answer.choices[0].message.content if answer.choices else None)

    def _read(self, text: str | None) -> float:
        """Return the score that an answer holds. Raises: TryAgainError for any other form."""
        try:
            score = json_object(text or "").get("score")
        except ValueError:
            score = None
        if not is_finite(score) or not self.low <= score <= self.high:
            allowed = f'{{"score": NUMBER}} from {self.low:g} to {self.high:g}'
            raise TryAgainError(self._hidden(f"the judge answered {text!r:.120}; allowed is {allowed}"), "wrong_type")
        return float(score)

    def _secret(self) -> str:
        """Return the server's key, which nothing keeps. Raises: ValueError where the environment has none."""
        if self.key_name is None:
            return "none"
        secret = os.environ.get(self.key_name)
        if not secret:
            raise ValueError(
                f"key={self.key_name!r}: the environment has no such variable; export it, or say key=None for a server "
                "that needs none"
            )
        return secret

    def __getstate__(self) -> JsonObject:
        return {name: value for name, value in vars(self).items() if not name.startswith("_client")}

    def _hidden(self, message: str) -> str:
        """Return a message without the key, which a server may send back."""
        return message.replace(self._secret(), "(the key)") if self.key_name is not None else message


def _pause(header: str | None) -> float:
    """Return the seconds of a header Retry-After, half a minute at most; 0 where there is none that is a number."""
    try:
        return min(max(float(header or 0), 0.0), 30.0)
    except ValueError:
        return 0.0


# The scores that are kept


@contextmanager
def opened(path: Path | None) -> Iterator[sqlite3.Connection]:
    """Open a database of scores, made if there is none; None: one in memory, forgotten afterwards.

    Raises: ValueError naming a file that is no such database.
    """
    with closing(sqlite3.connect(path or ":memory:", timeout=60.0, isolation_level=None)) as database:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL)")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"cache={str(path)!r}: it is no database of scores ({error})") from error
        yield database


def read_scores(database: sqlite3.Connection, keys: Sequence[str]) -> dict[str, float | None]:
    """Return those of some scores that a database has."""
    found: dict[str, float | None] = {}
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        marks = ", ".join("?" * len(part))
        found |= dict(database.execute(f"SELECT key, score FROM scores WHERE key IN ({marks})", part))
    return found
