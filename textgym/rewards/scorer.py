"""Call a reward safely: check all that it returns, and handle every failure as configured."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import add
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np

from textgym.checks import JsonObject, TextGymWarning, check_choice, check_number, users_line
from textgym.rewards.base import Columns, RewardError, Scores, Values
from textgym.rewards.calling import Caller, Faults, check_batch, copy_columns, find_faults
from textgym.rewards.compose import Pay
from textgym.rewards.registry import RewardSpec, make_reward

if TYPE_CHECKING:
    from textgym.rewards.deadline import Deadline

OnError = Literal["raise", "skip", "penalty"]
_MEMORY = {"cut", "scores"}


class Scorer:
    """Scores batches of completions with a reward that may fail.

    The kinds of failures are "raises" (also SystemExit, but KeyboardInterrupt stops the run), "wrong_type",
    "wrong_length", "nan", "inf" (of either sign), "timeout", and "dies" (the process in which a `timeout` runs the
    reward). None is not a failure: it abstains, pays 0, and its term is NaN.

    Only the completions concerned fail. If the reward failed as a whole and `on_error` is not "raise", it is called
    again for one completion at a time. A bad completion thus does not affect the others, and a batch scores like its
    completions alone. After "timeout" and "dies", and for a reward that compares completions (`pay` is "together"), the
    whole batch has failed.

    Args:
        reward: a reward, or the spec of one (see `make_reward`).
        on_error: "raise": raise RewardError; "skip": pay 0; "penalty": pay `penalty`. In the latter two cases the terms
            of the completion are NaN, and the first failure of each kind warns.
        penalty: finite, reward units.
        timeout: maximum seconds per batch, above 0; the reward then runs in a child process and must be picklable.
            None: no limit, no process.

    Attributes:
        failures: kind -> number of completions that could not be scored because of it.
        scored: number of completions seen, including failed ones.
        tokens: tokens of these completions; if `pay` scores every prefix, one for each. `load_state_dict` does not
            change it, so it includes completions that were scored as a trial. seen: completions, likewise.
        term_names: the keys of `Scores.terms`.
        pay: when the environment asks for scores and what it pays: "end": when a text ends; "together": when the whole
            batch has ended, for a reward that compares the completions of a batch; "every" and "difference": see
            `Dense` and `Shaped`.
        pays_at_end: whether every text is scored once, when finished.
        gamma: discount of the potential, if `pay` is "difference".
    Raises: ValueError or TypeError for a bad argument.
    """

    def __init__(
        self,
        reward: RewardSpec,
        on_error: OnError = "raise",
        penalty: float = -1.0,
        timeout: float | None = None,
    ) -> None:
        check_choice("on_error", on_error, get_args(OnError))
        self.penalty = check_number("penalty", penalty)
        self.reward = make_reward(reward)
        self._caller = Caller(self.reward)
        self.name = self._caller.name
        self.term_names = self._caller.term_names
        self.pay: Pay = getattr(self.reward, "pay", "end")
        if self.pay not in get_args(Pay):
            raise ValueError(f"reward {self.name!r} has pay={self.pay!r}: one of {get_args(Pay)} is allowed")
        self.pays_at_end = self.pay in ("end", "together")
        self.gamma = float(getattr(self.reward, "gamma", 1.0))
        self.on_error: OnError = on_error
        self.failures: Counter[str] = Counter()
        self.scored = self.tokens = self.seen = 0
        self._warned: set[str] = set()
        self._undoes = on_error != "raise" and _has_state(lasting(self._caller.state_dict()))
        self._deadline: Deadline | None = None
        if timeout is None and getattr(self.reward, "needs_timeout", False):
            raise ValueError(f"timeout=None: reward {self.name!r} may take for ever; allowed is a number of seconds")
        if timeout is not None:
            from textgym.rewards.deadline import (
                Deadline,
            )  # imports multiprocessing, which most runs never need

            self._deadline = Deadline(self.reward, timeout)

    def score(self, prompts: Sequence[str], completions: Sequence[str], columns: Columns | None = None) -> Scores:
        """Score B completions. The caller's lists are never changed, whatever the reward does.

        Args:
            prompts: B texts.
            completions: B texts.
            columns: name -> B values; including `completion_ids` if the reward needs it.
        Returns: B totals, and the terms.
        Raises: RewardError if the reward fails and `on_error` is "raise"; ValueError if completions or a column do not
            have B values.
        """
        columns = {} if columns is None else columns
        check_batch(prompts, completions, columns)
        count = len(prompts)
        if count == 0:
            return Scores(np.zeros(0), {name: np.zeros(0) for name in self.term_names})
        self.scored += count
        self.seen += count
        ids = cast("Sequence[Sequence[int]]", columns.get("completion_ids", ()))
        self.tokens += sum(map(len, ids)) if self.pays_at_end else len(ids)
        faults: Faults = {}
        try:
            terms = self._ask(prompts, completions, columns, faults)
        except RewardError as error:
            terms = self._after_failure(error, prompts, completions, columns, faults)
        return self._scores(terms, count, faults)

    def spent(self) -> dict[str, float]:
        """Return the cost of scoring so far: calls, tokens, money; {} if the reward does not report it."""
        return self._caller.spent() if self._deadline is None else self._deadline.spent()

    def counts(self) -> dict[str, float]:
        """Return "failures/KIND" -> completions, of all so far, and "spent/NAME" -> what `spent` says."""
        failures = {f"failures/{kind}": float(count) for kind, count in self.failures.items()}
        return failures | {f"spent/{name}": value for name, value in self.spent().items()}

    def state_dict(self) -> JsonObject:
        """Return what changes during scoring, as JSON values: the counts and the reward's own state."""
        reward = self._caller.state_dict()
        return {"scored": self.scored, "failures": dict(self.failures), "reward": reward}

    def load_state_dict(self, state: JsonObject) -> None:
        """Restore a state returned by `state_dict`."""
        self.scored = int(state["scored"])
        self.failures = Counter(state["failures"])
        self._caller.load_state_dict(state["reward"])

    def load_shares(self, states: Sequence[JsonObject], rank: int, world: int) -> None:
        """Go on as one of several processes from the states of as many, or of others; their counts together stay.

        Args: states: of each process, as `state_dict` returned them. rank: of this process, 0..world - 1.
        """
        self.load_state_dict(states[rank if len(states) == world else 0])
        if len(states) != world:  # the first process takes all counts
            own = states if rank == 0 else []
            self.scored = sum(int(state["scored"]) for state in own)
            self.failures = sum((Counter(state["failures"]) for state in own), Counter())

    @property
    def one_by_one(self) -> bool:
        """Whether a completion gets the same score whatever is scored with it, and was before it."""
        return self.pay != "together" and not _has_state(lasting(self.state_dict()["reward"]))

    def close(self) -> None:
        """End the child process, if there is one; it is restarted when needed."""
        if self._deadline is not None:
            self._deadline.close()

    def _ask(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Columns, faults: Faults
    ) -> dict[str, Values]:
        if self._deadline is not None:
            arguments = {"prompts": list(prompts), "completions": list(completions), **copy_columns(columns)}
            result = self._deadline.call(self._caller.method, arguments)
            return self._caller.read(result, len(prompts), faults)
        before = copy.deepcopy(lasting(self._caller.state_dict())) if self._undoes else None
        try:
            return self._caller.terms(prompts, completions, columns, faults)
        except BaseException as error:
            if before is not None:  # as a child process forgets what it has not answered
                self._caller.load_state_dict(cast("JsonObject", _put_back(before, self._caller.state_dict())))
            if isinstance(error, RewardError | KeyboardInterrupt):
                raise
            message = f"reward {self.name!r} raised {type(error).__name__}: {error}{users_line(error)}"
            raise RewardError(message, "raises") from error

    def _after_failure(
        self,
        error: RewardError,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Columns,
        faults: Faults,
    ) -> dict[str, Values]:
        """Ask again one by one where that helps, and note a fault for every completion without an answer."""
        count = len(prompts)
        terms: dict[str, Values] = {name: [None] * count for name in self.term_names}
        faults.clear()
        final = self.on_error == "raise" or count == 1 or self.pay == "together"
        for index in range(count):
            if final or error.kind in ("timeout", "dies"):
                faults[index] = error
                continue
            own: Faults = {}
            part = slice(index, index + 1)
            column = {name: values[part] for name, values in columns.items()}
            try:
                answer = self._ask(prompts[part], completions[part], column, own)
            except RewardError as again:
                faults[index] = error = again
                continue
            for name in self.term_names:
                terms[name][index] = answer[name][0]
            if own:
                faults[index] = own[0]
        return terms

    def _scores(self, terms: dict[str, Values], count: int, faults: Faults) -> Scores:
        lists = list(terms.values())
        table = np.array(lists, np.float64)
        arrays = dict(zip(terms, table, strict=True))
        try:
            totals = _sum(lists)
            plain = math.isfinite(sum(totals)) and not faults
        except TypeError:  # a term abstained
            plain = False
        if plain:
            return Scores(np.array(totals), arrays)
        for name, values in terms.items():
            find_faults(values, name, faults)
        totals = _sum(np.where(np.isnan(table), 0.0, table).tolist())
        find_faults(list(totals), self.name, faults)
        total = np.array(totals)
        if faults:
            self._settle(faults)
            failed = list(faults)
            total[failed] = self.penalty if self.on_error == "penalty" else 0.0
            for array in arrays.values():
                array[failed] = np.nan
        return Scores(total, arrays)

    def _settle(self, faults: Faults) -> None:
        """Count the faults, then raise the first or warn about the first of each kind."""
        self.failures.update(error.kind for error in faults.values())
        if self.on_error == "raise":
            error = faults[min(faults)]
            # What was raised names its line; what was returned, the function.
            if error.kind not in ("raises", "timeout", "dies") and self._caller.place:
                raise RewardError(f"{error}{self._caller.place}", error.kind, error.index) from error.__cause__
            raise error
        pay = self.penalty if self.on_error == "penalty" else 0.0
        for _, error in sorted(faults.items()):
            if error.kind not in self._warned:
                self._warned.add(error.kind)
                warnings.warn(
                    f"{error}. on_error={self.on_error!r} pays {pay}; Scorer.failures counts the further "
                    f"failures of kind {error.kind!r} without a warning",
                    TextGymWarning,
                    stacklevel=4,
                )


def lasting(state: object) -> object:
    """Return a reward's state without the scores that learned ones remember, which change no score."""
    if isinstance(state, dict):
        return None if state.keys() >= _MEMORY else {name: lasting(own) for name, own in state.items()}
    return state


def _put_back(before: object, now: object) -> object:
    """Return a state as it was, with the scores that learned rewards have learned since."""
    if isinstance(now, dict) and now.keys() >= _MEMORY:
        return now
    if isinstance(now, dict) and isinstance(before, dict):
        return {name: _put_back(own, now.get(name)) for name, own in before.items()}
    return before


def _has_state(state: object) -> bool:
    return any(map(_has_state, state.values())) if isinstance(state, dict) else state is not None


@contextmanager
def scorers_restored(*scorers: Scorer | None) -> Iterator[None]:
    """Restore counts and running statistics of scorers at the end of the block, even after an error.

    Evaluating a policy thus does not change a reward with running statistics, such as a normalisation.
    """
    before = [(scorer, copy.deepcopy(scorer.state_dict())) for scorer in scorers if scorer is not None]
    try:
        yield
    finally:
        for scorer, state in before:
            scorer.load_state_dict(state)


def _sum(lists: Sequence[Values]) -> list[float]:
    """Add K lists of B values up, the first one first; what overflows becomes inf, for the caller to find.

    Python's numbers do so without a warning, and for a few texts faster than numpy, which would have to be told.
    """
    total, *others = cast("list[list[float]]", lists)
    for each in others:
        total = list(map(add, total, each))
    return total
