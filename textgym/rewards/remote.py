"""Rewards that wait for an answer from elsewhere, many at once, with retries and a cache; a judge behind an API."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from textgym.checks import JsonObject, check_count, check_number, is_finite, shown, users_line
from textgym.files import json_object, value_at
from textgym.registry import load_target
from textgym.rewards.base import Column, Failed, NamedReward, RewardError, TryAgainError, Values, read_column
from textgym.rewards.calling import Faults, as_number, find_faults

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Ask = Callable[..., Awaitable[object]]
Session = TypeVar("Session")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds before a retry
_PASSING = (408, 409, 425, 429)  # statuses that may pass
_PLACE = re.compile(r"\{(\w+)\}")
_TEXTS = ("prompt", "completion")


@dataclass
class _Line(Generic[Session]):
    """What the batches share that are asked about in one loop of events; the last one closes it."""

    limit: asyncio.Semaphore
    scores: sqlite3.Connection
    session: Session
    stack: AsyncExitStack
    batches: int = 0


class Asking(NamedReward, ABC, Generic[Session]):
    """Asks for every completion by itself, many at once, with retries and a cache.

    Equal completions are asked for once. One whose last try fails has failed alone: what becomes of it is for the
    environment's `on_error` to say.

    Args:
        name: what it is logged under, and its scores are kept under.
        columns: data columns that it asks with.
        at_once: the most calls that wait at the same time, those of other batches included (as `grouped` makes them).
        retries: further tries after a failed one, after pauses from half a second to eight, a little longer at random.
        seconds: that a try may take.
        cache: SQLite file of the scores so far, made if there is none, which a resumed run reads; None: no cache.
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
        self._random = random.Random(name)
        self._lines: dict[asyncio.AbstractEventLoop, _Line[Session]] = {}
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
        async with self._line() as line:
            known = read_scores(line.scores, keys)
            self.counts["cached"] += sum(key in known for key in keys)
            # Equal completions are asked for once.
            missing = {key: each for key, each in zip(keys, asked, strict=True) if key not in known}

            async def kept(key: str, prompt: str, completion: str, row: JsonObject) -> float | None:
                async with line.limit:
                    score = await self._tried(prompt, completion, row, line.session)
                if not isinstance(score, Failed):
                    # It is there at once, whatever happens to this process next.
                    line.scores.execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", (key, score))
                return score

            found = await asyncio.gather(*(kept(key, *each) for key, each in missing.items()))
        known |= dict(zip(missing, found, strict=True))
        return [known[key] for key in keys]

    @asynccontextmanager
    async def _line(self) -> AsyncIterator[_Line[Session]]:
        loop = asyncio.get_running_loop()
        if loop not in self._lines:
            stack = AsyncExitStack()
            limit, scores = asyncio.Semaphore(self.at_once), stack.enter_context(opened(self.cache))
            self._lines[loop] = _Line(limit, scores, self.connect(stack), stack)
        line = self._lines[loop]
        line.batches += 1
        try:
            yield line
        finally:
            line.batches -= 1
            if not line.batches:
                del self._lines[loop]
                await line.stack.aclose()

    @abstractmethod
    def connect(self, stack: AsyncExitStack) -> Session:
        """Return what is asked over in one loop of events; `stack` closes it."""

    @abstractmethod
    async def ask(self, prompt: str, completion: str, row: JsonObject, session: Session) -> float | None:
        """Return the score of a completion. Raises: `TryAgainError`; RewardError where no try would help."""

    def identity(self) -> JsonObject:
        """Return what its scores belong to, beside the texts."""
        return {"name": self.name}

    def key(self, prompt: str, completion: str, row: JsonObject) -> str:
        """Return the name of a score in the cache."""
        own = [self.identity(), prompt, completion, row]  # str() of an array leaves out entries and digits
        text = json.dumps(own, sort_keys=True, default=lambda each: getattr(each, "tolist", each.__str__)())
        return hashlib.sha256(text.encode()).hexdigest()

    async def _tried(self, prompt: str, completion: str, row: JsonObject, session: Session) -> float | None:
        """Return the score of a completion, after retries."""
        for attempt in range(self.retries + 1):
            self.counts["calls"] += 1
            try:
                return await asyncio.wait_for(self.ask(prompt, completion, row, session), self.seconds)
            except TimeoutError:
                problem = TryAgainError(f"no answer within {self.seconds:g} s", "timeout")
            except TryAgainError as error:
                problem = error
            except RewardError as error:
                return self._failed(str(error), error.kind)
            if attempt < self.retries:
                self.counts["retries"] += 1
                pause = max(min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE), problem.wait)
                # Stretched, so that those who were refused together do not come back together.
                await asyncio.sleep(pause * self._random.uniform(1.0, 1.25))
        return self._failed(f"{problem} ({self.retries + 1} tries)", problem.kind)

    def _failed(self, message: str, kind: str) -> Failed:
        self.counts["failed"] += 1
        return Failed(RewardError(f"reward {self.name!r}: {message}", kind))


class Concurrent(Asking[None]):
    """Calls your async function for each completion, many at once, with retries and a cache.

    The function is `async def score(prompt, completion, **row)`, where `row` has the completion's values of `columns`;
    it returns a number, or None to abstain.

    Args:
        score: the function, or "module:function".
        columns, at_once, retries, seconds, cache: see `Asking`. Scores are kept by name: change it with the function.
        name: what it is logged under; None: the function's.
    Raises: as `Asking` does; TypeError for what is no function; ValueError for a cache of one without a name.
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
        if cache and name is None and not (hasattr(self._score, "__name__") and own.isidentifier()):
            raise ValueError(f"cache={cache!r}: scores are kept under a name, and {shown(score)} has none; give it one")
        super().__init__(name or own, columns, at_once, retries, seconds, cache)

    def connect(self, stack: AsyncExitStack) -> None:
        """See `Asking.connect`; the function connects by itself."""

    async def ask(self, prompt: str, completion: str, row: JsonObject, session: None) -> float | None:
        """See `Asking.ask`."""
        try:
            value = await self._score(prompt, completion, **row)
        except Exception as error:
            raise TryAgainError(f"{type(error).__name__}: {error}{users_line(error)}") from error
        faults: Faults = {}
        found = [as_number(value, 0, self.name, faults)]
        find_faults(found, self.name, faults)
        if faults:
            raise RewardError(f"{value!r:.80} for a score; a finite number or None is allowed", faults[0].kind)
        return found[0]


class Judge(Asking["AsyncOpenAI"]):
    """Asks a language model behind an API such as OpenAI's for a score based on a rubric.

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
        if base_url is not None and not str(base_url).startswith(("http://", "https://")):
            raise ValueError(f"base_url={shown(base_url)}: allowed is None, or what begins with http:// or https://")
        self.model, self.base_url, self.key_name = model, base_url, key
        self.rubric = Path(rubric).read_text(encoding="utf-8") if rubric.endswith((".txt", ".md")) else rubric
        self.low = check_number("low", low)
        self.maximum = self.high = check_number("high", high)
        if self.low >= self.high:
            raise ValueError(f"low={low}: allowed is less than high={high}")
        if prices is not None and not (isinstance(prices, list | tuple) and len(prices) == 2):
            raise ValueError(f"prices={shown(prices)}: allowed are two numbers, for tokens read and written")
        self.prices = None if prices is None else tuple(check_number("prices", price, 0) for price in prices)
        places = dict.fromkeys(_PLACE.findall(self.rubric))
        if "completion" not in places:
            raise ValueError("rubric: allowed is a text with {completion} in it, and perhaps {prompt}")
        self._secret()
        super().__init__(name, [each for each in places if each not in _TEXTS], at_once, retries, seconds, cache)
        self.counts |= dict.fromkeys(("tokens_read", "tokens_written", "unmetered"), 0.0)

    def spent(self) -> dict[str, float]:
        """See `Asking.spent`; also tokens, answers that do not say theirs, and the cost where `prices` are known."""
        if self.prices is None:
            return dict(self.counts)
        read, written = self.counts["tokens_read"], self.counts["tokens_written"]
        return self.counts | {"cost": (self.prices[0] * read + self.prices[1] * written) / 1e6}

    def identity(self) -> JsonObject:
        """See `Asking.identity`."""
        return {"name": self.name, "model": self.model, "rubric": self.rubric, "range": [self.low, self.high]}

    def connect(self, stack: AsyncExitStack) -> AsyncOpenAI:
        """See `Asking.connect`."""
        from openai import AsyncOpenAI

        client = AsyncOpenAI(api_key=self._secret(), base_url=self.base_url, max_retries=0)
        stack.push_async_callback(client.close)
        return client

    async def ask(self, prompt: str, completion: str, row: JsonObject, session: AsyncOpenAI) -> float | None:
        """See `Asking.ask`."""
        import openai

        texts = {"prompt": prompt, "completion": completion, **row}
        told = _PLACE.sub(lambda place: str(texts[place[1]]), self.rubric)
        form = f'Answer with one JSON object and nothing else: {{"score": NUMBER}}, from {self.low:g} to {self.high:g}.'
        try:
            answer = await session.chat.completions.with_raw_response.create(
                model=self.model, messages=[{"role": "user", "content": f"{told}\n\n{form}"}], temperature=0.0
            )
            body = answer.http_response.text
        except openai.APIStatusError as error:
            message = f"the server answered {error.status_code}: {self._cut(error.message)}"
            if error.status_code in _PASSING or error.status_code >= 500:
                raise TryAgainError(message, wait=_pause(error.response.headers.get("retry-after"))) from None
            raise RewardError(message, "raises") from None
        except openai.APITimeoutError:
            raise TryAgainError("no answer in time", "timeout") from None
        except Exception as error:  # no connection, half an answer, or what the client cannot send
            raise TryAgainError(f"{type(error).__name__}: {self._cut(str(error))}") from None
        return self._read(body)

    def _read(self, body: str) -> float:
        """Return the score that an answer holds, and count its tokens. Raises: TryAgainError for any other form."""
        text, read, written = read_answer(body)
        self.counts["tokens_read"] += read or 0
        self.counts["tokens_written"] += written or 0
        self.counts["unmetered"] += None in (read, written)
        score = None
        with suppress(ValueError):
            score = json_object(text or "").get("score")
        if not is_finite(score) or not self.low <= score <= self.high:
            said, form = self._cut(text or body, 120), f'{{"score": NUMBER}} from {self.low:g} to {self.high:g}'
            raise TryAgainError(f"the judge answered {said!r}; allowed is {form}", "wrong_type")
        return float(score)

    def _secret(self) -> str:
        """Return the server's key, which nothing keeps. Raises: ValueError where the environment has none."""
        if self.key_name is None:
            return "none"
        name = self.key_name if isinstance(self.key_name, str) else ""
        secret = os.environ.get(name)
        if not secret:
            # What does not look like such a name may be the key itself.
            given = repr(name) if re.fullmatch("[A-Z]+(_[A-Z]+)+", name) else "(not shown)"
            raise ValueError(f"key={given}: the environment has no such variable; allowed is one that it has, or None")
        return secret

    def _cut(self, text: str, most: int = 300) -> str:
        """Return the beginning of what a server has sent, without the key, or eight or more of its first characters."""
        if self.key_name is not None:
            secret, text = self._secret(), text[:10_000]
            # Errors and JSON quote what a server was sent.
            forms = {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], secret.replace("/", r"\/")}
            parts = {form[:end] for form in forms for end in range(min(8, len(form)), len(form) + 1)}
            for part in sorted(parts, key=len, reverse=True):
                text = text.replace(part, "(the key)")
        return text[:most]


def read_answer(body: str) -> tuple[str | None, int | None, int | None]:
    """Return the text of a chat completion, and its tokens read and written; None for each that it does not have."""
    answer = None
    with suppress(ValueError, RecursionError):
        answer = json.loads(body)
    text = value_at(answer, "choices", 0, "message", "content")
    counts = [value_at(answer, "usage", name) for name in ("prompt_tokens", "completion_tokens")]
    read, written = (each if type(each) is int and 0 <= each < 2**53 else None for each in counts)
    return text if isinstance(text, str) else None, read, written


def _pause(header: str | None) -> float:
    """Return the seconds of a header Retry-After, a number or a date; half a minute at most, and 0 for any other."""
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(str(header)).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), 30.0)


@contextmanager
def opened(path: Path | None) -> Iterator[sqlite3.Connection]:
    """Open a database of scores, made if there is none; None: one in memory, forgotten afterwards.

    Raises: ValueError naming a file that is no such database.
    """
    with ExitStack() as stack:
        try:
            database = stack.enter_context(closing(sqlite3.connect(path or ":memory:", 60.0, isolation_level=None)))
            database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL")
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
