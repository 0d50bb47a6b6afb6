"""Prompts with completions as padded token ids, which offline agents learn from, and their log-probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textgym.checks import Bools, Floats, Ints
from textgym.lm.categorical import streamed
from textgym.lm.scoring import encode_pair, end_id
from textgym.preferences import Demonstration
from textgym.task import Task
from textgym_agents.lm.maths import discounted
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.rollout import Rollout


@dataclass(frozen=True)
class Sequences:
    """B prompts with their completions.

    Attributes:
        input_ids: (B, L) int64, right-padded.
        starts: (B,) int64, tokens of the prompt.
        lengths: (B,) int64, tokens of the completion, the end included where it has one; at least 1.
        actions: (B, L) bool, the tokens of completions that a policy wrote; None: all of them. Where others wrote some,
            `lengths` counts the policy's alone.
        rewards: (B, L) float64, gamma^t r_t that each of these tokens was paid, reward units at time 0; 0 elsewhere.
            None where they are not known.
    """

    input_ids: Ints
    starts: Ints
    lengths: Ints
    actions: Bools | None = None
    rewards: Floats | None = None

    @classmethod
    def of(cls, rows: Sequence[tuple[Sequence[int] | Ints, Sequence[int] | Ints]], pad_id: int) -> Sequences:
        """Return B pairs of prompt and completion, which are token ids."""
        starts = np.array([len(head) for head, _ in rows], dtype=np.int64)
        lengths = np.array([len(tail) for _, tail in rows], dtype=np.int64)
        ids = np.full((len(rows), int((starts + lengths).max(initial=0))), pad_id, dtype=np.int64)
        for row, (head, tail) in zip(ids, rows, strict=True):
            row[: len(head) + len(tail)] = [*head, *tail]
        return cls(ids, starts, lengths)

    def rows(self, chosen: Ints) -> Sequences:
        """Return some of them."""
        actions = None if self.actions is None else self.actions[chosen]
        rewards = None if self.rewards is None else self.rewards[chosen]
        return Sequences(self.input_ids[chosen], self.starts[chosen], self.lengths[chosen], actions, rewards)

    @property
    def returns(self) -> Floats:
        """The sum of each episode's rewards (B,), reward units. Raises: ValueError where they are not known."""
        if self.rewards is None:
            raise ValueError("the texts have no rewards; allowed are a log of completions or a Minari dataset")
        return np.asarray(self.rewards.sum(1))

    def places(self) -> tuple[Ints, Ints]:
        """Return row and column (N,) of every token that the policy wrote, row by row."""
        if self.actions is not None:
            rows, columns = np.nonzero(self.actions)
            return rows, columns
        rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return rows, np.arange(len(rows)) + (self.starts - np.cumsum(self.lengths) + self.lengths)[rows]

    def digest(self) -> bytes:
        """Return 32 bytes that tell it from all others."""
        found = hashlib.sha256()
        rewards = [] if self.rewards is None else [self.rewards]
        for array in (np.array(self.input_ids.shape), self.input_ids, self.starts, self.lengths, *rewards):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.digest()


def encode_texts(task: Task, texts: Sequence[Demonstration]) -> tuple[Sequences, int]:
    """Return texts as the episodes of a task that would have written them.

    A completion keeps its first `task.max_new_tokens` tokens; behind the last one that fits there is no end, since
    the task ends the episode by itself. It ends at its first stop token, and what stands behind is left out. A text
    that has none ends by the first of the task's: it cannot say by which.
    A prompt keeps its last `task.max_prompt_tokens`.

    Returns: the sequences, in order, and the number of texts of which something was cut.
    Raises: ValueError for a text that cannot be encoded, naming its place.
    """
    rows = []
    cut = 0
    for place, text in enumerate(texts):
        try:
            head, tail, whole = _encode(task, text)
        except ValueError as error:
            raise ValueError(f"text {place + 1} of {len(texts)}: {error}") from error
        rows.append((head, tail))
        cut += not whole
    return Sequences.of(rows, task.vocabulary.pad_id), cut


def _encode(task: Task, text: Demonstration) -> tuple[list[int], list[int], bool]:
    """Return tokens of the prompt and of the completion, and whether nothing was cut."""
    vocabulary = task.vocabulary
    both = encode_pair(vocabulary, text.prompt, text.completion, text.ended, end_id(vocabulary))
    head = encode_pair(vocabulary, text.prompt, "", False, None, task.max_prompt_tokens)
    tail = both.ids[both.prompt_tokens :]
    if not tail:
        raise ValueError("the completion has no tokens in this vocabulary, allowed is at least one")
    ends = [place for place, token in enumerate(tail) if token in vocabulary.stop_ids]
    kept = tail[: min(task.max_new_tokens, ends[0] + 1 if ends else len(tail))]
    for token in kept:
        if not vocabulary.allowed[token]:
            raise ValueError(f"the completion has token {token}, which the task does not allow")
    ended_twice = kept[-1] in vocabulary.stop_ids and len(ends) == len(tail) - len(kept) + 1
    return head.ids, kept, not head.cut and (len(kept) == len(tail) or ended_twice)


def of_rollout(rollout: Rollout, gamma: float = 1.0) -> Sequences:
    """Return the episodes of a rollout. Args: gamma: the discount of rewards, per token."""
    ids = rollout.input_ids.cpu().numpy()
    actions = np.zeros(ids.shape, dtype=np.bool_)
    actions[rollout.rows, rollout.columns + 1] = True
    rewards = np.zeros(ids.shape)
    rewards[rollout.rows, rollout.columns + 1] = discounted(rollout, gamma)
    return Sequences(ids, rollout.columns[rollout.first_states] + 1, rollout.lengths, actions, rewards)


def token_log_probs(policy: LMPolicy, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Return log pi of every token of every completion (N,), nats, differentiable; and the row that each is in (N,)."""
    rows, columns = sequences.places()
    ids = torch.tensor(sequences.input_ids[:, : columns.max() + 1], device=policy.device)
    places = torch.tensor(rows, device=policy.device), torch.tensor(columns - 1, device=policy.device)
    logs, _ = taken_log_probs(policy, policy.features(ids, *places), ids[places[0], places[1] + 1])
    return logs, places[0]


def taken_log_probs(policy: LMPolicy, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return log pi of the tokens taken in some states, and log-sum-exp of the states' logits, (N,); differentiable.

    Args:
        features: (N, F), of the states. tokens: (N,) int64.
    """

    def of_some(features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits, _ = policy.heads(features)  # (n, V)
        normalisers = torch.logsumexp(logits, -1)
        return logits.gather(1, tokens[:, None]).squeeze(1) - normalisers, normalisers

    logs, normalisers = streamed(of_some, features, policy.backbone.vocab_size, tokens)
    return logs, normalisers


def sequence_log_probs(policy: LMPolicy, sequences: Sequences) -> Tensor:
    """Return log pi of every completion (B,), nats: the sum over its tokens, of the end as well where it has one."""
    logs, rows = token_log_probs(policy, sequences)
    return torch.zeros(len(sequences.lengths), device=logs.device).index_add(0, rows, logs)
