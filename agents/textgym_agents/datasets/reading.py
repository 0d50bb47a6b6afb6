"""Read a Minari dataset of a task's episodes: token ids as they were recorded, nothing decoded and encoded again."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.checks import Floats, Ints, JsonObject
from textgym.episodes import action_space, observation_space
from textgym.files import read_json
from textgym.rewards import TextGymWarning
from textgym.rows import holds_rows
from textgym.state import ENVIRONMENT, POLICY, PROMPT
from textgym.task import Task
from textgym_agents.datasets.recording import minari, vocabulary_digest
from textgym_agents.lm.sequences import Sequences

_METADATA = "metadata.json"


@dataclass(frozen=True)
class Recording:
    """B recorded episodes.

    Attributes:
        sequences: their prompts and completions.
        returns: (B,) float64, the sum over t of gamma^t r_t, reward units.
        authors: (B, L) int8, who wrote each token of `sequences.input_ids`, as `segment_ids` say; None where that is
            not known.
        rewards: (B, L) float64, gamma^t r_t that each of these tokens was paid, 0 elsewhere; None where that is not
            known.
    """

    sequences: Sequences
    returns: Floats
    authors: NDArray[np.int8] | None = None
    rewards: Floats | None = None

    def best(self, share: float) -> Ints:
        """Return the places of the share of episodes with the greatest returns, in order; of equals the first ones."""
        keep = max(int(np.ceil(share * len(self.returns) - 1e-9)), 1)
        return np.sort(np.argsort(-self.returns, kind="stable")[:keep])

    def pairs(self) -> Ints:
        """Return places (n, 2) of episodes that answer the same prompt: its first and second, third and fourth, ...

        Warns of episodes that are left without a partner. Raises: ValueError if there is no pair.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        sequences = self.sequences
        for place, (ids, start) in enumerate(zip(sequences.input_ids, sequences.starts, strict=True)):
            groups.setdefault(tuple(ids[:start].tolist()), []).append(place)
        found = [own[i : i + 2] for own in groups.values() for i in range(0, len(own) - 1, 2)]
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


def is_recording(path: str | Path) -> bool:
    """Return whether a path is meant as a Minari dataset: a folder that holds no rows of `textgym.rows`."""
    return Path(path).is_dir() and not holds_rows(Path(path))


def read_recording(path: str | Path, task: Task) -> Recording:
    """Read the episodes of a Minari dataset, recorded here or by anybody in an environment of the task.

    Args:
        path: the dataset's folder, or the folder `data` in it.
        task: what `env.unwrapped.task` holds: says which vocabulary and lengths are to be expected, and gamma.
    Raises: ValueError for a dataset that cannot be read, of another task or vocabulary, or with an episode that does
        not end, or is none of the task's.
    """
    folder = Path(path)
    folder = folder if (folder / _METADATA).exists() else folder / "data"
    where = f"data={str(path)!r}"
    if not (folder / _METADATA).exists():
        raise ValueError(f"{where}: no Minari dataset there, which has data/{_METADATA}")
    _check_metadata(read_json(folder / _METADATA), task, where)
    rows = []
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
    sequences = Sequences.of([(prompt, completion) for prompt, completion, *_ in rows], task.vocabulary.pad_id)
    authors = np.full(sequences.input_ids.shape, PROMPT, dtype=np.int8)
    rewards = np.zeros(authors.shape)
    for place, (*_, paid, own) in enumerate(rows):
        authors[place, : len(own)] = own
        rewards[place, np.flatnonzero(own == POLICY)] = paid
    return Recording(sequences, np.array([row[2].sum() for row in rows]), authors, rewards)


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


def _row(episode: Any, task: Task, name: str) -> tuple[Ints, Ints, Floats, NDArray[np.int8]]:
    """Return prompt, completion, gamma^t r_t of the actions and authors of an episode.

    Raises: _UnfitError if it is none of the task's.
    """
    ids = np.asarray(episode.observations["input_ids"])
    lengths = np.count_nonzero(episode.observations["attention_mask"], axis=1)
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
    stops = np.isin(actions, task.vocabulary.stop_ids)
    if task.turns is not None:
        if not episode.terminations[-1]:
            raise _UnfitError(f"{name}: {count} tokens do not end it")
    elif stops[:-1].any() or not (stops[-1] or count == task.max_new_tokens):
        raise _UnfitError(f"{name}: {count} tokens do not end it as they would in task {task.name!r}")
    if not task.vocabulary.allowed[actions].all():
        token = int(actions[~task.vocabulary.allowed[actions]][0])
        raise _UnfitError(f"{name}: has token {token}, which the task does not allow")
    completion = ids[-1, start : lengths[-1]]
    return ids[-1, :start], completion, rewards * task.gamma ** np.arange(count), authors
