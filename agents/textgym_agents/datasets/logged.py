"""Logged episodes as the policy that is judged sees them: its log-probabilities of their tokens, and their states."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from textgym.checks import Floats, Ints, equal_parts
from textgym.lm.causal import FORBIDDEN
from textgym.lm.reference import Observation
from textgym.sampling import CachedPolicy, Policy, legal_log_probs
from textgym.state import PROMPT
from textgym.task import Task, refuse_turns
from textgym_agents.datasets.off_policy import Logged
from textgym_agents.datasets.reading import Recording
from textgym_agents.protocol import StateFinder

Number = TypeVar("Number", np.int8, np.int64, np.float64)
_ROWS = 256  # episodes that are scored together
_AT_ONCE = 2**24  # log-probabilities of them


def logged(recording: Recording, policy: Policy, task: Task, reference: Policy | None = None) -> Logged:
    """Return recorded episodes as a policy sees them.

    Args:
        reference: pi_ref: rewards are then less beta log(pi / pi_ref); None: rewards alone.
    Raises: ValueError for a task with turns, texts without the tokens that were sampled, or a policy without
        log-probabilities.
    """
    refuse_turns(task, "off-policy evaluation")
    texts = np.flatnonzero(~recording.sampled)
    if len(texts):
        raise ValueError(
            f"episode {texts[0] + 1} is a text; allowed are episodes with completion_ids: a text that is encoded again "
            "is not the tokens that were sampled"
        )
    sequences, lengths = recording.sequences, recording.sequences.lengths
    rows, columns = sequences.places()

    def padded(values: NDArray[Number]) -> NDArray[Number]:
        found = np.zeros((len(lengths), int(lengths.max())), dtype=values.dtype)
        found[np.arange(found.shape[1]) < lengths[:, None]] = values
        return found

    places = padded(columns)
    numbers = prefixes(sequences.input_ids)
    own = _token_log_probs(policy, recording, task, places)
    assert sequences.rewards is not None
    rewards = padded(sequences.rewards[rows, columns])
    if reference is not None and task.beta:
        against = _token_log_probs(reference, recording, task, places)
        rewards = rewards - task.beta * np.where(own > FORBIDDEN / 2, own - against, 0.0)  # what is never written
    return Logged(
        lengths,
        padded(numbers[rows, columns]),
        padded(numbers[rows, columns + 1]),
        rewards,
        own,
        padded(recording.log_probs),
        recording.log_prob_sums,
        recording.returns,
    )


def prefixes(ids: Ints) -> Ints:
    """Return a number for the first c tokens of every row, c = 0..L, (B, L + 1): the same for the same tokens alone."""
    found = np.zeros((len(ids), ids.shape[1] + 1), dtype=np.int64)
    size = int(ids.max()) + 1
    for column in range(ids.shape[1]):
        found[:, column + 1] = np.unique(found[:, column] * size + ids[:, column], return_inverse=True)[1]
    found += np.arange(found.shape[1]) * len(ids)
    return found


def _token_log_probs(policy: Policy, recording: Recording, task: Task, places: Ints) -> Floats:
    """Return log-probs (B, T) of the policy's tokens, which stand at some columns (B, T), nats; 0 behind the end."""
    sequences, width = recording.sequences, task.max_prompt_tokens + task.max_new_tokens
    finder, found = StateFinder(task) if task.mask is not None else None, np.zeros(places.shape)
    assert recording.authors is not None
    reader, most = getattr(policy, "policy", policy), min(_ROWS, _AT_ONCE // task.vocabulary.size)
    if isinstance(reader, CachedPolicy):
        most = min(most, reader.rows_at_once(width))
    for part in equal_parts(len(places), max(most, 1)):
        ids, authors = sequences.input_ids[part, :width], recording.authors[part]
        lengths, ends = sequences.lengths[part], places[part].max(1)
        for time in range(int(lengths.max())):
            rows = np.flatnonzero(lengths > time)
            now = np.where(lengths > time, places[part, time], ends)
            read = np.arange(width) < now[:, None]
            observation: Observation = {
                "input_ids": np.where(read, _wide(ids, width), task.vocabulary.pad_id),
                "attention_mask": read.astype(np.int8),
                "segment_ids": np.where(read, _wide(authors, width), PROMPT).astype(np.int8),
            }
            table = policy.log_probs(observation)
            if table is None:
                raise ValueError("agent: has no log-probabilities of tokens; allowed is one that has, such as lm-ppo")
            masks = None
            if finder is not None and task.mask is not None:
                seen = {name: array[rows] for name, array in observation.items()}
                masks = task.mask([state for _, state in finder.states(seen)])
            logs = legal_log_probs(observation, rows, masks, task.vocabulary.allowed, table, "agent")
            found[part.start + rows, time] = logs[np.arange(len(rows)), ids[rows, now[rows]]]
    if isinstance(reader, CachedPolicy):
        reader.forget()
    return found


def _wide(array: NDArray[Number], width: int) -> NDArray[Number]:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])))
