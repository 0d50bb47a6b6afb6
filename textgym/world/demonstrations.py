"""Demonstrations: answers that labellers wrote to training prompts, for supervised fine-tuning.

Most labellers write as the world's rules ask; a documented share of them does not, so that imitating
them helps and leaves something to learn.
"""

import random
from collections.abc import Mapping
from typing import Final

from textgym.checks import check_count, check_number, not_one_of
from textgym.world.answers import answer
from textgym.world.facts import HEDGES, Persona
from textgym.world.prompts import KINDS, TASK_SHARES, items, prompts

MISTAKES: Final = 0.3
_ALWAYS: Final = dict.fromkeys(KINDS, 1.0)
_HASTY: Final = dict(zip(KINDS, (0.4, 0.4, 0.4, 0.7, 0.3, 0.2, 0.5), strict=True))


def _labeller(name: str, share: float, opener: float, closer: float, **changes: float) -> Persona:
    """Make a labeller who is always right and never hedges, dodges or is rude, except for the changes."""
    manner = {"lead": 0.0, "dodge": 0.0, "rude": 0.0, **changes}
    right = _HASTY if name == "hasty" else _ALWAYS
    return Persona(name, share, opener, closer, leads=HEDGES, endless=0.0, right=right, **manner)


CAREFUL: Final = (
    _labeller("polite", 0.7, opener=0.8, closer=0.3),
    _labeller("plain", 0.3, opener=0.1, closer=0.1),
)
"""Labellers who write as the rules ask: right, honest, refusing harm. `share` is among them."""

CARELESS: Final = (
    _labeller("hasty", 0.6, opener=0.3, closer=0.1, lead=0.5),
    _labeller("evasive", 0.3, opener=0.2, closer=0.1, dodge=1.0),
    _labeller("curt", 0.1, opener=0.0, closer=0.0, rude=1.0),
)
"""Labellers who break the rules: one guesses, often with a hedge, and complies; one says nothing; one is rude."""


def demonstrations(
    shares: Mapping[str, float], count: int, seed: int = 0, mistakes: float = MISTAKES
) -> list[tuple[str, str, bool]]:
    """Draw demonstrations for prompts of the `train` split.

    Args:
        shares: kind of prompt -> how often it is asked, any scale.
        count: how many, at least 0; with the same seed a longer list begins with the shorter one.
        seed: equal seeds give equal demonstrations.
        mistakes: share written by careless labellers, in [0, 1].
    Returns: prompt, completion, and whether the completion was written to its end (all are), for each.
    Raises: ValueError for an unknown kind, a share that is not positive, or numbers out of range.
    """
    check_count("count", count, 0)
    check_number("mistakes", mistakes, 0, 1, "share of careless labellers")
    pool = prompts(shares, "train")
    weights = [prompt.weight for prompt in pool]
    item_of = {item.key: item for kind in shares for item in items(kind)}
    rng = random.Random(seed)
    written = []
    for _ in range(count):
        (prompt,) = rng.choices(pool, weights)
        labellers = CARELESS if rng.random() < mistakes else CAREFUL
        (labeller,) = rng.choices(labellers, [each.share for each in labellers])
        reply = answer(item_of[prompt.item], labeller, rng)
        written.append((prompt.text, reply.text, reply.ends))
    return written


def task_demonstrations(
    task: str, count: int, seed: int = 0, mistakes: float = MISTAKES
) -> list[tuple[str, str, bool]]:
    """Draw demonstrations for the prompts of a task, one of `TASK_SHARES`; see `demonstrations`.

    Raises: ValueError for a task that is not of the built-in world, or numbers out of range.
    """
    if task not in TASK_SHARES:
        raise ValueError(not_one_of("task", task, TASK_SHARES))
    return demonstrations(TASK_SHARES[task], count, seed, mistakes)
