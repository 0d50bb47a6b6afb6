"""Stop: when to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from textgym.lm.reference import Reference
from textgym.prompts import prompt_set
from textgym.rewards.base import NamedReward
from textgym.task import Task
from textgym.tasks.diagnostics.common import BETA, diagnostic, read_difficulty, word_vocabulary

SUMMARY: Final = "Write as many words as the prompt says, then stop."
STOPS: Final = ("<end>", "<halt>")


@dataclass(frozen=True)
class WordCount(NamedReward):
    """Pays 1 - |words - asked| / `most` for a text that was stopped, 0 for one that ran out. Range [0, 1].

    Args:
        most: the greatest number of words that is asked for.
        stop_ids: the ids that end a text.
    """

    most: int
    stop_ids: tuple[int, ...]
    name = "word_count"
    maximum = 1.0

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        *,
        count: list[int | None],
        completion_ids: list[list[int]],
        **columns: Any,
    ) -> list[float | None]:
        """Score every completion; None for a prompt that asks for no number of words."""
        return [
            None if asked is None else self._pay(len(text.split()), asked, ids[-1] in self.stop_ids)
            for text, asked, ids in zip(completions, count, completion_ids, strict=True)
        ]

    def _pay(self, words: int, asked: int, stopped: bool) -> float:
        return max(0.0, 1.0 - abs(words - asked) / self.most) if stopped else 0.0


def stop_task(difficulty: int = 4, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Stop.

    ### Description
    Stop handling: the prompt is a number, and the answer has to be ended after as many words. There are two stop
    tokens, worth the same; a text that runs into its limit earns nothing.

    ### Action Space
    `Discrete(difficulty + 3)`: `word`, `<end>`, `<halt>`; the numbers stand in prompts only and are not allowed.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = difficulty + 3.

    ### Rewards
    Paid at the end, in [0, 1]: 1 - |words written - words asked for| / difficulty after a stop token, else 0.

    ### Starting State
    A number from 1 to `difficulty`, all equally likely, the same in all splits.

    ### Episode End
    Terminated when the policy takes one of the stop tokens `<end>` and `<halt>`, or after `difficulty` + 2
    tokens. Never truncated.

    ### Arguments
        difficulty: 1..8, the largest number.
        beta: reward units per nat of KL to the reference.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    most = read_difficulty(difficulty, 1, 8, "words asked for, at most")
    counts = [*range(1, most + 1)]
    vocabulary = word_vocabulary(["word", *STOPS], asked=[str(count) for count in counts], stop=STOPS)
    return diagnostic(
        "Stop",
        SUMMARY,
        vocabulary=vocabulary,
        prompts=prompt_set([str(count) for count in counts], {"count": counts}),
        reward=WordCount(most, vocabulary.stop_ids),
        words=most + 2,
        beta=beta,
        reference=reference,
    )
