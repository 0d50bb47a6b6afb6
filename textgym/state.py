"""States of the token MDP, the authors of their tokens, and arrays that hold N states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import lt, sub
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from textgym.checks import Bools, Ints, are_integers, shown

FinishReason = Literal["stop", "length"]
Observation = dict[str, npt.NDArray[Any]]

PROMPT, POLICY, ENVIRONMENT = 0, 1, 2
"""Who wrote a token, as `segment_ids` say; padding counts as `PROMPT`."""
UNSET = -1  # a row that was never loaded
RUNNING = 0
_STOP = 1
_LENGTH = 2
# The bitwise or of both codes means that the last token of the budget is a stop id: it counts as a stop.
_REASONS: tuple[FinishReason | None, ...] = (None, "stop", "length", "stop")
_CODES: dict[FinishReason | None, int] = {None: RUNNING, "stop": _STOP, "length": _LENGTH}
_FEW = 6  # rows; numpy's calls for all of them at once cost as much as writing so many one by one
_MOST_KEPT = 2**24  # bytes of padded prompts
# Views would come back from a pickle as arrays of their own, and padded prompts are made anew.
_FLAT = ("_flat_ids", "_flat_mask", "_flat_slot_code", "_flat_authors")
_LISTS = ("_copies", "_rows_parts", "_row_parts", "_padded", "_keeps")
_VIEWS = ("_starts", "mask", "authors", "_slot_code", *_FLAT, *_LISTS)


@dataclass(frozen=True, slots=True)
class Prompt:
    """An encoded prompt: the initial state s_0.

    Args:
        text: the text given by the task, without the chat template.
        ids: token ids, including the chat template.
        index: its index in the task's split; None for a text that the split does not have.
    """

    text: str
    ids: tuple[int, ...]
    index: int | None


@dataclass(frozen=True, slots=True)
class TokenState:
    """A state s_t, immutable and hashable: everything that is needed to continue from it.

    Args:
        prompt: the initial state.
        completion: the token ids generated so far, including the stop id once it is written.
        finish_reason: None while the episode runs.
        potential: phi(s_t), reward units; nonzero only if a reward pays potential differences.
        episode_seed: seed of this episode's reward noise; None in tasks without noise.
        environment: indices in `completion`, ascending, of the tokens written by the environment; the policy wrote the
            others.
        hidden: what the environment knows and the policy does not, see `textgym.turns.Responder`; None in tasks without
            turns.
    """

    prompt: Prompt
    completion: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    potential: float = 0.0
    episode_seed: int | None = None
    environment: tuple[int, ...] = ()
    hidden: int | None = None

    @property
    def replies(self) -> int:
        """Return how often the environment has replied, which is also the number of answered turns."""
        return count_runs(self.environment)

    @property
    def turn(self) -> tuple[int, ...]:
        """Return the tokens that the policy has written since the environment's last reply."""
        return self.completion[self.environment[-1] + 1 if self.environment else 0 :]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Return the whole sequence: prompt ids, then completion ids."""
        return self.prompt.ids + self.completion

    @property
    def authors(self) -> tuple[int, ...]:
        """Return who wrote each of `tokens`: PROMPT, POLICY or ENVIRONMENT."""
        places = range(len(self.completion))
        written = tuple(ENVIRONMENT if place in self.environment else POLICY for place in places)
        return (PROMPT,) * len(self.prompt.ids) + written


def count_runs(places: tuple[int, ...]) -> int:
    """Return the number of runs of consecutive integers among ascending `places`."""
    return bool(places) + sum(map((1).__lt__, map(sub, places[1:], places)))


def segment_ids(mask: npt.NDArray[np.int8], prompt_lengths: Ints) -> npt.NDArray[np.int8]:
    """Return who wrote each token of B sequences in which the environment wrote none, int8 (B, L).

    Args:
        mask: attention mask (B, L). prompt_lengths: (B,), tokens.
    """
    return np.where(np.arange(mask.shape[1]) < prompt_lengths[:, None], PROMPT, POLICY * mask).astype(np.int8)


class TokenStore:
    """The arrays of N episodes and the transition s_{t+1} = s_t + [a_t].

    `append` takes one row or an array of rows, as numpy indexing does: the single and the vector environment share
    the same lines.

    Args:
        rows: N.
        max_prompt_tokens, max_new_tokens: tokens; their sum is L, the width of the arrays.
        size: V, the number of token ids.
        stop_ids: the ids that end an episode.
        pad_id: what fills a row to the right of its sequence.
        segments: whether observations have `segment_ids`.
        turn_tokens: the budget of a turn, tokens; 0 where there is one turn, which has all.
        prompts: how many prompts there are that have an index; each is padded once, as far as 16 MiB reach.

    Attributes:
        ids: int64 (N, L); mask: int8 (N, L), 1 on the sequence.
        authors: int8 (N, L): PROMPT on the prompt, then POLICY or ENVIRONMENT, beyond the sequence too.
        finish: int8 (N,): UNSET, RUNNING, or positive once the episode, or a turn that `reply` answers, has ended.
        potential: float64 (N,), reward units.
        prompts, environment, episode_seeds, hidden: lists of N, as in `TokenState`. replies: int64 (N,), the same.
    """

    def __init__(
        self,
        rows: int,
        max_prompt_tokens: int,
        max_new_tokens: int,
        size: int,
        stop_ids: tuple[int, ...],
        pad_id: int,
        segments: bool = False,
        turn_tokens: int = 0,
        prompts: int = 0,
    ) -> None:
        self.width = max_prompt_tokens + max_new_tokens
        self.turn_tokens, self._one_turn = turn_tokens or max_new_tokens, not turn_tokens
        self.max_prompt_tokens, self.max_new_tokens, self.pad_id = max_prompt_tokens, max_new_tokens, pad_id
        self.segments = segments
        self.ids = np.full((rows, self.width), pad_id, dtype=np.int64)
        self._bytes = np.zeros((3, rows, self.width), dtype=np.int8)  # mask, authors and slot codes
        self.finish = np.full(rows, UNSET, dtype=np.int8)
        self.potential = np.zeros(rows, dtype=np.float64)
        self.prompts: list[Prompt] = [Prompt("", (), None)] * rows
        self.environment: list[tuple[int, ...]] = [()] * rows
        self.episode_seeds: list[int | None] = [None] * rows
        self.hidden: list[int | None] = [None] * rows
        self.replies = np.zeros(rows, dtype=np.int64)
        self._stop_code = np.zeros(size, dtype=np.int8)
        self._stop_code[list(stop_ids)] = _STOP
        self._stops = frozenset(stop_ids)
        self._cursor = np.arange(rows) * self.width  # where the next token goes, in the flat arrays
        # The L values from L - i on are a row whose prompt has i tokens: one write fills it.
        places = np.arange(2 * self.width) - self.width
        codes = np.where(places == self.turn_tokens - 1, _LENGTH, RUNNING)
        starts = np.stack([places < 0, np.where(places < 0, PROMPT, POLICY), codes]).astype(np.int8)
        self._start_values = starts
        self._kept = min(prompts, _MOST_KEPT // (8 * self.width))
        self._make_views()

    def load(self, row: int, prompt: Prompt, episode_seed: int | None = None, hidden: int | None = None) -> None:
        """Start an episode in `row` at s_0 = `prompt`, which holds 1..max_prompt_tokens ids."""
        place = self._place(prompt)
        if place < 0:
            self._pad(self.ids[row], prompt)
        else:
            self.ids[row] = self._padded[place]
        self._start(row, len(prompt.ids))
        self._note(row, prompt, episode_seed, hidden)

    def load_rows(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> None:
        """Start episodes without noise and without anything hidden in M rows, as `load` does in each."""
        places = list(map(self._place, prompts))
        if len(rows) < _FEW or min(places) < 0:
            for row, prompt in zip(rows, prompts, strict=True):
                self.load(row, prompt)
            return
        at = np.array(rows)
        self.ids[at] = self._padded[places]
        self._start(at, np.array([len(prompt.ids) for prompt in prompts]))
        for row, prompt in zip(rows, prompts, strict=True):
            self._note(row, prompt, None, None)

    def _start(self, rows: int | Ints, lengths: int | Ints) -> None:
        """Fill all but the ids of rows whose prompts have so many tokens."""
        self._bytes[:, rows] = self._starts[:, self.width - lengths]
        self._cursor[rows] = rows * self.width + lengths
        self.finish[rows] = RUNNING
        self.replies[rows] = 0
        self.potential[rows] = 0.0

    def _note(self, row: int, prompt: Prompt, episode_seed: int | None, hidden: int | None) -> None:
        self.prompts[row], self.environment[row] = prompt, ()
        self.episode_seeds[row], self.hidden[row] = episode_seed, hidden

    def _place(self, prompt: Prompt) -> int:
        """Return where the padded ids of a prompt are kept, -1 if they are not."""
        place = prompt.index
        if place is None or place >= self._kept:
            return -1
        if self._keeps[place] is not prompt:
            self._pad(self._padded[place], prompt)
            self._keeps[place] = prompt
        return place

    def _pad(self, ids: Ints, prompt: Prompt) -> None:
        length = len(prompt.ids)
        ids[:length] = prompt.ids
        ids[length:] = self.pad_id

    def reply(self, rows: Ints, replies: Sequence[tuple[int, ...]], ends: Bools, last: Bools) -> None:
        """Append tokens that the environment writes to M rows whose turns have ended.

        Args:
            replies: M tuples of ids in 0..V-1, for which there is room.
            ends: (M,) whether the environment ends the episode with them; it then has stopped. last: (M,) whether it
                ends anyway, for the reason that the turn did. Else the policy begins another turn.
        """
        lengths = np.fromiter(map(len, replies), np.int64, len(replies))
        if lengths.any():
            self._write_replies(rows, replies, lengths)
        self.finish[rows[ends]] = _STOP
        going = rows[~(ends | last)]
        if going.size:
            self.finish[going] = RUNNING
            self._slot_code[going] = RUNNING
            budget = np.minimum(self._cursor[going] % self.width + self.turn_tokens, self.width)
            self._slot_code[going, budget - 1] = _LENGTH

    def _write_replies(self, rows: Ints, replies: Sequence[tuple[int, ...]], lengths: Ints) -> None:
        total = int(lengths.sum())
        before = self._cursor[rows]
        at = np.arange(total) + np.repeat(before - (np.cumsum(lengths) - lengths), lengths)
        tokens = np.fromiter(chain.from_iterable(replies), np.int64, total)
        if not 0 <= tokens.min() <= tokens.max() < len(self._stop_code):
            raise ValueError(f"responder: a reply holds an id outside 0..{len(self._stop_code) - 1}")
        self._flat_ids[at] = tokens
        self._flat_mask[at] = 1
        self._flat_authors[at] = ENVIRONMENT
        self._cursor[rows] = before + lengths
        self.replies[rows] += lengths > 0
        for row, start, length in zip(rows.tolist(), (before % self.width).tolist(), lengths.tolist(), strict=True):
            place = start - len(self.prompts[row].ids)
            self.environment[row] += tuple(range(place, place + length))

    @overload
    def append(self, rows: int, tokens: int) -> int: ...

    @overload
    def append(self, rows: npt.NDArray[np.intp], tokens: Ints) -> npt.NDArray[np.int8]: ...

    def append(self, rows: int | npt.NDArray[np.intp], tokens: int | Ints) -> int | npt.NDArray[np.int8]:
        """Append one token, written by the policy, to every row of `rows`, all of them running.

        Args:
            rows: int, or int64 (M,) without repeats.
            tokens: int, or int64 (M,), ids in 0..V-1.
        Returns: int, or int8 (M,): RUNNING, or positive where the episode ends with this token.
        """
        parts = self._row_parts if type(rows) is int else self._rows_parts
        cursor, ids, mask, stop_code, slot_code, finish = parts
        at = cursor[rows]
        ids[at] = tokens
        mask[at] = 1
        finish[rows] = code = stop_code[tokens] | slot_code[at]
        cursor[rows] = at + 1
        return code  # type: ignore[no-any-return]

    def observation(self, row: int) -> Observation:
        """Return a copy of one sequence: input_ids int64 (L,), attention_mask and segment_ids int8 (L,)."""
        copy_ids, copy_mask = self._copies[row]
        observation: Observation = {"input_ids": copy_ids(), "attention_mask": copy_mask()}
        if self.segments:
            observation["segment_ids"] = self.authors[row] * self.mask[row]
        return observation

    def observations(self, copy: bool = True) -> Observation:
        """Return all sequences: input_ids int64 (N, L), attention_mask and segment_ids int8 (N, L).

        Without a copy the first two are the store's own arrays, which change with the next token.
        """
        ids, mask = (self.ids.copy(), self.mask.copy()) if copy else (self.ids, self.mask)
        observation: Observation = {"input_ids": ids, "attention_mask": mask}
        if self.segments:
            observation["segment_ids"] = self.segment_ids()
        return observation

    def segment_ids(self) -> npt.NDArray[np.int8]:
        """Return who wrote each token of all sequences, int8 (N, L), PROMPT in the padding."""
        return self.authors * self.mask

    def completion(self, row: int) -> list[int]:
        """Return the ids generated so far in `row`."""
        return self.completions([row])[0]

    def completions(self, rows: Sequence[int]) -> list[list[int]]:
        """Return the ids generated so far in each of M rows."""
        flat, width, prompts, cursor = self._flat_ids, self.width, self.prompts, self._row_parts[0]
        return [flat[row * width + len(prompts[row].ids) : cursor[row]].tolist() for row in rows]

    def finish_reason(self, row: int) -> FinishReason | None:
        """Return why the episode in `row` ended, None while it runs."""
        reason: FinishReason | None = _REASONS[self.finish[row]]
        return reason

    def state(self, row: int) -> TokenState:
        """Return the state of a loaded row. O(length)."""
        return TokenState(
            prompt=self.prompts[row],
            completion=tuple(self.completion(row)),
            finish_reason=self.finish_reason(row),
            potential=float(self.potential[row]),
            episode_seed=self.episode_seeds[row],
            environment=self.environment[row],
            hidden=self.hidden[row],
        )

    def restore(self, row: int, state: TokenState) -> None:
        """Put a state that `check` has passed into `row`. O(L)."""
        self.load(row, state.prompt, state.episode_seed, state.hidden)
        start, length = len(state.prompt.ids), len(state.tokens)
        self.ids[row, start:length] = state.completion
        self.mask[row, start:length] = 1
        self._cursor[row] += length - start
        self.finish[row] = _CODES[state.finish_reason]
        self.potential[row] = state.potential
        if state.environment:
            self.environment[row], self.replies[row] = state.environment, state.replies
            self.authors[row, [start + place for place in state.environment]] = ENVIRONMENT
            self._slot_code[row] = RUNNING
            self._slot_code[row, min(length - len(state.turn) + self.turn_tokens, self.width) - 1] = _LENGTH

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _VIEWS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_views()

    def _make_views(self) -> None:
        """Make views into the arrays; indexing with one number is several times faster than with two."""
        self._starts = np.lib.stride_tricks.sliding_window_view(self._start_values, self.width, axis=1)
        self.mask, self.authors, self._slot_code = self._bytes
        self._flat_ids, self._flat_mask = self.ids.reshape(-1), self.mask.reshape(-1)
        self._flat_slot_code, self._flat_authors = self._slot_code.reshape(-1), self.authors.reshape(-1)
        self._copies = [(ids.copy, mask.copy) for ids, mask in zip(self.ids, self.mask, strict=True)]
        flat = self._flat_ids, self._flat_mask, self._stop_code, self._flat_slot_code
        self._rows_parts: tuple[Any, ...] = (self._cursor, *flat, self.finish)
        # A memoryview takes and gives Python's numbers, one at a time in half of numpy's time.
        self._row_parts: tuple[Any, ...] = tuple(map(memoryview, self._rows_parts))  # type: ignore[arg-type]
        self._padded = np.empty((self._kept, self.width), dtype=np.int64)
        self._keeps: list[Prompt | None] = [None] * self._kept

    def check(self, state: TokenState) -> None:
        """Raise ValueError if a state does not fit these limits or this vocabulary, or contradicts itself."""
        size, completion, places = len(self._stop_code), state.completion, state.environment
        _check_ids("prompt.ids", state.prompt.ids, 1, self.max_prompt_tokens, size)
        _check_ids("completion", completion, 0, self.max_new_tokens, size)
        if not are_integers(places) or not all(map(lt, (-1, *places), (*places, len(completion)))):
            allowed = f"a tuple of places in 0..{len(completion) - 1}, ascending"
            raise ValueError(f"state: environment={shown(places)}: allowed is {allowed}")
        if not self._stops.isdisjoint(completion[:-1]):
            for place, token in enumerate(completion[:-1]):
                if token in self._stops and place not in places and place + 1 not in places:
                    given = f"completion={shown(completion)}: goes on behind the id {token} at place {place}"
                    raise ValueError(f"state: {given}; allowed is one that stops there")
        turn = state.turn
        stopped, answered = bool(turn) and turn[-1] in self._stops, bool(completion) and not turn
        spent = len(turn) >= self.turn_tokens or len(completion) == self.max_new_tokens
        can_be: dict[FinishReason | None, bool] = {
            None: not (stopped or spent),
            "stop": stopped or answered or (spent and not self._one_turn),
            "length": not stopped and (answered or spent),
        }
        if type(state.finish_reason) not in (str, type(None)) or not can_be.get(state.finish_reason):
            allowed = " or ".join(repr(reason) for reason, fits in can_be.items() if fits)
            given = f"finish_reason={shown(state.finish_reason)} with completion={shown(completion)}"
            raise ValueError(f"state: {given}: allowed is {allowed}")


def _check_ids(name: str, ids: tuple[int, ...], least: int, most: int, size: int) -> None:
    if not (are_integers(ids) and least <= len(ids) <= most and 0 <= min(ids, default=0) <= max(ids, default=0) < size):
        held = f"{len(ids)} values" if isinstance(ids, tuple) else type(ids).__name__
        raise ValueError(
            f"state: {name}={shown(ids)} ({held}): allowed is a tuple of {least}..{most} integers in 0..{size - 1}"
        )
