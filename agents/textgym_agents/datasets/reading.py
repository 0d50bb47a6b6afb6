"""Read logged episodes of a task: Minari datasets, and rows of prompts, completions and rewards.

Rows are those of `textgym.rows`, JSON lines above all. Each has `prompt`; `reward`, or `rewards`, one a token; and
`completion_ids` as they were sampled, the stop id included, or `completion`, a text (which is encoded: perhaps not as
it was sampled), or both. `token_logprobs`, in nats under the policy that wrote them, are one a token, or their sum;
they need `completion_ids`. `ended` is false for a text that was cut off. Every other key is left alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from textgym.checks import Bools, Floats, Ints, JsonObject, check_count, check_number, shown, token_counts
from textgym.episodes import action_space, observation_space
from textgym.files import read_json
from textgym.preferences import Demonstration, Problem
from textgym.preferences.files import OnBroken
from textgym.rewards import TextGymWarning
from textgym.rows import holds_rows, numbered_rows, row_source
from textgym.state import ENVIRONMENT, POLICY, PROMPT
from textgym.task import Task, refuse_turns
from textgym_agents.datasets.recording import minari, vocabulary_digest
from textgym_agents.lm.sequences import Sequences, encode_texts

_METADATA = "metadata.json"


@dataclass(frozen=True)
class Recording:
    """B recorded episodes, in which the policy wrote N tokens. Missing values are unknown.

    Attributes:
        sequences: their prompts and completions, with rewards.
        log_probs: (N,) float64, nats under the policy that wrote them, in the order of `sequences.places()`; NaN where
            that is not known.
        log_prob_sums: (B,) float64, the sums of `log_probs`, which may be known where their parts are not.
        sampled: (B,) bool, whether the tokens are those that were sampled, not a text's that was encoded again.
        authors: (B, L) int8, who wrote each token of `sequences.input_ids`, as `segment_ids` say; None where that is
            not known.
    """

    sequences: Sequences
    log_probs: Floats = field(default_factory=partial(np.zeros, 0))
    log_prob_sums: Floats = field(default_factory=partial(np.zeros, 0))
    sampled: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))
    authors: NDArray[np.int8] | None = None

    @property
    def returns(self) -> Floats:
        """The sum over t of gamma^t r_t (B,), reward units."""
        return self.sequences.returns

    def best(self, share: float, by_prompt: bool = False) -> Ints:
        """Return the places of the share of episodes with the greatest returns, in order; of equals the first ones.

        Args: by_prompt: take this share of the episodes of each prompt, one at least, and not of all together.
        """
        groups = self._by_prompt() if by_prompt else [list(range(len(self.returns)))]
        kept = [
            np.array(own)[
                np.argsort(-self.returns[own], kind="stable")[: max(int(np.ceil(share * len(own) - 1e-9)), 1)]
            ]
            for own in groups
        ]
        return np.sort(np.concatenate(kept))

    def _by_prompt(self) -> list[list[int]]:
        """Return the places of the episodes of each prompt."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, (ids, start) in enumerate(zip(self.sequences.input_ids, self.sequences.starts, strict=True)):
            groups.setdefault(tuple(ids[:start].tolist()), []).append(place)
        return [*groups.values()]

    def pairs(self) -> Ints:
        """Return places (n, 2) of episodes that answer the same prompt: its first and second, third and fourth, ...

        Warns of episodes that are left without a partner. Raises: ValueError if there is no pair.
        """
        found = [own[i : i + 2] for own in self._by_prompt() for i in range(0, len(own) - 1, 2)]
        if not found:
            raise ValueError(
                "no two of its episodes answer the same prompt, allowed are datasets with pairs (per_prompt=2)"
            )
        alone = len(self.returns) - 2 * len(found)
        if alone:
            warnings.warn(
                f"{alone} of {len(self.returns)} episodes have no partner of the same prompt and are left out",
                TextGymWarning,
                stacklevel=2,
            )
        return np.array(sorted(found), dtype=np.int64)


class _Episode(NamedTuple):
    """One episode: ids (int64), rewards and log-probs (T,) of the policy's tokens, and the author of each token."""

    prompt: Sequence[int] | Ints
    completion: Sequence[int] | Ints
    rewards: Floats
    log_probs: Floats
    log_prob_sum: float
    sampled: bool
    authors: NDArray[np.int8]


def is_recording(path: str | Path) -> bool:
    """Return whether a path refers to logged episodes: a folder without rows, or rows with rewards."""
    folder = Path(row_source(path).place)
    if folder.is_dir() and not holds_rows(folder):
        return True
    if not (folder.exists() or row_source(path).on_hub):
        return False
    row = _first_row(path)
    return bool({"reward", "rewards"} & set(row)) and not {"chosen", "completions"} & set(row)


def read_recording(path: str | Path, task: Task, on_broken: OnBroken = "stop") -> Recording:
    """Read logged episodes from any source: a Minari dataset or rows, see the module.

    Args:
        path: the dataset's folder, or the folder `data` in it; or a source of `textgym.rows`.
        task: what `env.unwrapped.task` holds: says which vocabulary and lengths are to be expected, and gamma.
        on_broken: what broken rows lead to: "stop" raises; "skip" leaves them out, with a warning.
    Raises: FileNotFoundError; ValueError for data that cannot be read, of another task or vocabulary, or with an
        episode that does not end, or is none of the task's. Of rows it names the line and what is allowed there.
    """
    if Path(path).is_dir() and not holds_rows(Path(path)):
        return _recording(_minari_episodes(path, task), task)
    refuse_turns(task, "a file of rows, which do not say who wrote what,")
    return _recording(list(_logged_episodes(path, task, on_broken)), task)


def _recording(episodes: Sequence[_Episode], task: Task) -> Recording:
    sequences = Sequences.of([(each.prompt, each.completion) for each in episodes], task.vocabulary.pad_id)
    authors = np.full(sequences.input_ids.shape, PROMPT, dtype=np.int8)
    for row, each in zip(authors, episodes, strict=True):
        row[: len(each.authors)] = each.authors
    rewards = np.zeros(authors.shape)
    rewards[authors == POLICY] = np.concatenate(
        [each.rewards * task.gamma ** np.arange(len(each.rewards)) for each in episodes]
    )
    return Recording(
        replace(sequences, rewards=rewards),
        np.concatenate([each.log_probs for each in episodes]),
        np.array([each.log_prob_sum for each in episodes]),
        np.array([each.sampled for each in episodes]),
        authors,
    )


def _first_row(path: str | Path) -> JsonObject:
    """Return the first row that can be read, {} without any."""
    for _, read in numbered_rows(path):
        try:
            return read()
        except ValueError:
            continue
    return {}


def _logged_episodes(path: str | Path, task: Task, on_broken: OnBroken) -> Iterator[_Episode]:
    """Yield the rows of a file as episodes. Raises: ValueError naming the first broken line, or if none is good."""
    problems, good, cut = list[Problem](), 0, 0
    for number, read in numbered_rows(path):
        try:
            episode, whole = _logged(read(), task)
        except (ValueError, TypeError) as error:
            problems.append(Problem(str(path), number, str(error)))
            continue
        good, cut = good + 1, cut + (not whole)
        yield episode
    if problems and (on_broken == "stop" or not good):
        more = f" (and {len(problems) - 1} more broken rows)" if len(problems) > 1 else ""
        raise ValueError(f"{problems[0]}{more}")
    if not good:
        raise ValueError(f"{path}: the file is empty")
    if problems:
        text = f"{len(problems)} of {good + len(problems)} rows are left out, first {problems[0]}"
        warnings.warn(f"data={str(path)!r}: {text}", TextGymWarning, stacklevel=4)
    if cut:
        text = f"max_prompt_tokens={task.max_prompt_tokens} and max_new_tokens={task.max_new_tokens}"
        warnings.warn(f"{cut} of {good} texts do not fit into {text} and were cut", TextGymWarning, stacklevel=4)


def _logged(row: JsonObject, task: Task) -> tuple[_Episode, bool]:
    """Return a row's episode, and whether nothing of its text was cut. Raises: TypeError or ValueError."""
    ids, prompt, whole, sampled = row.get("completion_ids"), row.get("prompt"), True, True
    if prompt is None:
        raise ValueError(f"prompt is missing; needed are prompt, completion_ids or completion, reward; has {[*row]}")
    if ids is not None:
        size = task.vocabulary.size
        head, tail = (
            task.prompt(prompt, "train").ids,
            [check_count("completion_ids", i, 0, size - 1) for i in _list(ids)],
        )
        _check_tokens(np.array(tail, dtype=np.int64), task, f"completion_ids={shown(tail)}")
        _check_text(row.get("completion"), tail, task)
    else:
        text = row.get("completion")
        if not isinstance(prompt, str) or not isinstance(text, str):
            raise ValueError(f"prompt={shown(prompt)}, completion={shown(text)}: allowed are texts")
        if row.get("rewards") is not None or row.get("token_logprobs") is not None:
            raise ValueError(
                "rewards and token_logprobs need completion_ids: a text is not the tokens that were sampled"
            )
        encoded, cut = encode_texts(task, [Demonstration(prompt, text, row.get("ended") is not False)])
        start = int(encoded.starts[0])
        head, tail = tuple(encoded.input_ids[0, :start].tolist()), encoded.input_ids[0, start:].tolist()
        whole, sampled = not cut, False
    rewards, log_probs = _rewards(row, len(tail)), np.full(len(tail), np.nan)
    total, logged = np.nan, row.get("token_logprobs")
    if isinstance(logged, list):
        log_probs = np.array([check_number("token_logprobs", each, high=1e-4, unit="nats") for each in logged])
        if len(log_probs) != len(tail):
            raise ValueError(
                f"token_logprobs: {len(log_probs)} numbers, allowed are {len(tail)}, one a token, or a sum"
            )
        total = float(log_probs.sum())
    elif logged is not None:
        total = check_number("token_logprobs", logged, high=1e-4 * len(tail), unit="nats, a list or their sum")
    authors = np.repeat(np.array([PROMPT, POLICY], dtype=np.int8), [len(head), len(tail)])
    return _Episode(head, tail, rewards, log_probs, total, sampled, authors), whole


def _rewards(row: JsonObject, tokens: int) -> Floats:
    """Return the pay for each token of a row (T,): a single reward is paid for the last one."""
    single, several = row.get("reward"), row.get("rewards")
    if (single is None) == (several is None):
        raise ValueError(
            f"reward={shown(single)}, rewards={shown(several)}: allowed is one of the two, a number or a list"
        )
    if single is not None:
        return np.append(np.zeros(tokens - 1), check_number("reward", single))
    found = np.array([check_number("rewards", each) for each in _list(several)])
    if len(found) != tokens:
        raise ValueError(f"rewards: {len(found)} numbers, allowed are {tokens}, one a token")
    return found


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} stands where a list is allowed")
    return value


def _check_text(text: object, ids: list[int], task: Task) -> None:
    """Raise ValueError if a row's text, white space apart, is not that of its ids: they are of another vocabulary."""
    decoded = task.vocabulary.decode([ids])[0]
    if text is not None and (not isinstance(text, str) or "".join(text.split()) != "".join(decoded.split())):
        raise ValueError(f"completion={shown(text)}: its completion_ids are {decoded!r:.80} in task {task.name!r}")


def _minari_episodes(path: str | Path, task: Task) -> list[_Episode]:
    folder = Path(path)
    folder = folder if (folder / _METADATA).exists() else folder / "data"
    where = f"data={str(path)!r}"
    if not (folder / _METADATA).exists():
        raise ValueError(f"{where}: no Minari dataset there, which has data/{_METADATA}")
    _check_metadata(read_json(folder / _METADATA), task, where)
    rows = list[_Episode]()
    try:
        dataset = minari().MinariDataset(folder)
        found = (dataset.observation_space, dataset.action_space)
        expected = (observation_space(task, segments=task.turns is not None), action_space(task))
        if found != expected:
            raise _UnfitError(f"its spaces are {found}, those of task {task.name!r} are {expected}")
        for place, episode in enumerate(dataset.iterate_episodes()):
            rows.append(_row(episode, task, f"episode {place}"))
        if len(rows) != dataset.total_episodes or not rows:
            raise _UnfitError(f"holds {len(rows)} episodes, its {_METADATA} says {dataset.total_episodes}")
    except _UnfitError as error:
        raise ValueError(f"{where}: {error}") from error
    except ModuleNotFoundError:
        raise
    except Exception as error:  # what HDF5 and Minari raise of a damaged file is of many kinds
        message = f"{where}: this Minari dataset cannot be read ({type(error).__name__}: {error})"
        raise ValueError(message.splitlines()[0]) from error
    return rows


class _UnfitError(Exception):
    """A dataset that can be read and not be used."""


def _check_metadata(metadata: JsonObject, task: Task, where: str) -> None:
    """Raise ValueError for a dataset without spaces, or of another task or vocabulary."""
    if not {"observation_space", "action_space"} <= set(metadata):
        # Minari would make the environment that the file names: a file never chooses what is imported.
        raise ValueError(f"{where}: its {_METADATA} has no observation_space and action_space")
    own = metadata.get("textgym")
    if not isinstance(own, dict):
        return  # recorded by others: the spaces and the episodes have to do
    if own.get("task") != task.name:
        raise ValueError(f"{where}: recorded on task {own.get('task')!r}, allowed here are datasets of {task.name!r}")
    if own.get("vocabulary") != vocabulary_digest(task.vocabulary):
        raise ValueError(f"{where}: recorded with another vocabulary than that of task {task.name!r}")


def _row(episode: Any, task: Task, name: str) -> _Episode:
    """Return an episode of a Minari dataset. Raises: _UnfitError if it is none of the task's."""
    ids = np.asarray(episode.observations["input_ids"])
    lengths = token_counts(episode.observations)
    actions, rewards = np.asarray(episode.actions), np.asarray(episode.rewards, dtype=np.float64)
    count = len(actions)
    if not count or not len(ids) == len(lengths) == count + 1 == len(rewards) + 1:
        raise _UnfitError(
            f"{name} has {len(ids)} observations, {count} actions and {len(rewards)} rewards; "
            "allowed are T + 1, T and T, T >= 1"
        )
    start = int(lengths[0])
    longer = np.diff(lengths)
    if not start or (longer < 1).any() or (task.turns is None and (longer > 1).any()):
        raise _UnfitError(f"{name}: an observation is not one token longer than the one before")
    if (ids[-1, lengths[:-1]] != actions).any():
        raise _UnfitError(f"{name}: its actions are not the tokens of its last observation")
    authors = np.full(lengths[-1], ENVIRONMENT, dtype=np.int8)
    authors[:start], authors[lengths[:-1]] = PROMPT, POLICY
    if task.turns is not None and (episode.observations["segment_ids"][-1, : lengths[-1]] != authors).any():
        raise _UnfitError(f"{name}: its segment_ids do not say that the policy wrote its actions, and those alone")
    if not np.isfinite(rewards).all():
        raise _UnfitError(f"{name}: a reward is not finite")
    if task.turns is not None and not episode.terminations[-1]:
        raise _UnfitError(f"{name}: {count} tokens do not end it")
    try:
        _check_tokens(actions, task, name)
    except ValueError as error:
        raise _UnfitError(str(error)) from error
    logged = np.asarray(episode.infos.get("log_prob", []), dtype=np.float64)[1:]
    logged = logged if logged.shape == (count,) else np.full(count, np.nan)
    completion = ids[-1, start : lengths[-1]]
    return _Episode(ids[-1, :start], completion, rewards, logged, float(logged.sum()), True, authors)


def _check_tokens(actions: Ints, task: Task, name: str) -> None:
    """Raise ValueError for tokens (T,) that the policy cannot have written in a task, or that do not end an episode."""
    stops = np.isin(actions, task.vocabulary.stop_ids)
    most = task.max_new_tokens
    ends = 0 < len(actions) <= most and (stops[-1] or len(actions) == most)
    if task.turns is None and (stops[:-1].any() or not ends):
        raise ValueError(
            f"{name}: {len(actions)} tokens do not end it as they would in task {task.name!r}; the most are {most}"
        )
    if not task.vocabulary.allowed[actions].all():
        token = int(actions[~task.vocabulary.allowed[actions]][0])
        raise ValueError(f"{name}: has token {token}, which the task does not allow")
