"""Episodes of a task in the rows of a store, and their spaces: what the single and the vector environment share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from textgym.checks import Bools, Floats, Ints, are_integers, check_count, check_flag, check_number, shown
from textgym.rewards import Scorer
from textgym.rewards.dense import potential_difference
from textgym.state import ENVIRONMENT, PROMPT, RUNNING, Prompt, TokenState, TokenStore
from textgym.task import Judgement, Task
from textgym.turns import SEEDS

Mask = npt.NDArray[Any]


class TokenSpace(spaces.Discrete):
    """`Discrete(n)`; `sample(mask=)` takes bool (n,) beside Gymnasium's int8."""

    def sample(self, mask: Mask | None = None, probability: Mask | None = None) -> np.int64:
        """See `gymnasium.spaces.Discrete.sample`."""
        return super().sample(_as_int8(mask), probability)


class TokenSpaces(spaces.MultiDiscrete):
    """`MultiDiscrete([n] * N)`; `sample(mask=)` takes bool (N, n) beside Gymnasium's tuple of int8 (n,)."""

    def sample(self, mask: Iterable[Mask] | None = None, probability: Any = None) -> npt.NDArray[Any]:
        """See `gymnasium.spaces.MultiDiscrete.sample`."""
        return super().sample(None if mask is None else tuple(map(_as_int8, mask)), probability)


def _as_int8(mask: Any) -> Any:
    return mask.view(np.int8) if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ else mask


@batch_space.register
def _batch_tokens(space: TokenSpace, n: int = 1) -> TokenSpaces:
    counts, starts = np.full(n, space.n), np.full(n, space.start)
    return TokenSpaces(counts, dtype=space.dtype, seed=deepcopy(space.np_random), start=starts)


class Ending(NamedTuple):
    """M episodes that have just ended, for the infos.

    Args:
        rows: their rows in the store.
        judgement: texts and terms.
        gold: float64 (M,), reward units; None where the task has no gold reward.
    """

    rows: list[int]
    judgement: Judgement
    gold: Floats | None


class PromptDraws(Protocol):
    """A distribution over the prompts of a split in the place of its weights, which sees what episodes are paid."""

    cumulative: list[float]
    """Its distribution function (n,), ending in exactly 1."""

    def begin(self, row: int) -> None:
        """Take note that an episode begins in a row."""

    def see(self, rows: Sequence[int], prompts: Sequence[int | None], rewards: Floats, ended: Bools) -> None:
        """Take note of what the episodes of M rows are paid, and which of them have ended."""


class Episodes:
    """N rows of episodes of one split of a task.

    Args:
        task: the task. split: "train", "eval" or "tune". rows: N.
        segments: whether observations have `segment_ids`.
    Raises: ValueError for an unknown split, a prompt that is too long, or another `segments` than a bool.
    """

    def __init__(self, task: Task, split: str, rows: int, segments: bool = False) -> None:
        check_flag("segments", segments)
        vocabulary = task.vocabulary
        self.task, self.split = task, split
        self.prompts = task.encoded(split)
        self.cumulative = task.prompt_set(split).cumulative
        self.draws: PromptDraws | None = None
        self.pays_every_step = not task.scorer.pays_at_end
        self.store = TokenStore(
            rows,
            task.max_prompt_tokens,
            task.max_new_tokens,
            vocabulary.size,
            task.end_ids,
            vocabulary.pad_id,
            segments,
            0 if task.turns is None else task.turns.tokens,
            len(self.prompts),
        )

    def draw(self, generator: np.random.Generator) -> Prompt:
        """Return a prompt from rho, or from `draws` where they are set, by one uniform draw."""
        cumulative = self.cumulative if self.draws is None else self.draws.cumulative
        return self.prompts[bisect_right(cumulative, generator.random())]

    def begin(self, row: int, prompt: Prompt, generator: np.random.Generator) -> None:
        """Start an episode in a row; the generator serves noisy tasks, and those with turns."""
        if self.draws is not None:
            self.draws.begin(row)
        seed = int(generator.integers(2**63)) if self.task.noisy else None
        self.store.load(row, prompt, seed, None if self.task.turns is None else self.task.turns.draw(prompt, generator))

    def start(
        self, rows: Sequence[int], generators: Sequence[np.random.Generator], chosen: Mapping[int, Prompt]
    ) -> list[Prompt]:
        """Start episodes in M rows, each with the prompt that is chosen for it, or one drawn from its generator.

        Returns: the prompts, M.
        """
        pairs = list(zip(rows, generators, strict=True))
        if self.draws is None and not self.task.noisy and self.task.turns is None:
            if chosen:
                prompts = [chosen[row] if row in chosen else self.draw(generator) for row, generator in pairs]
            else:
                every, cumulative = self.prompts, self.cumulative
                prompts = [every[bisect_right(cumulative, generator.random())] for generator in generators]
            self.store.load_rows(rows, prompts)
            return prompts
        for row, generator in pairs:
            self.begin(row, chosen[row] if row in chosen else self.draw(generator), generator)
        return [self.store.prompts[row] for row in rows]

    def answer(self, rows: Ints) -> Ints:
        """Let the environment answer turns that have just ended in M rows, in one call of the responder.

        Returns: those of the rows in which the episode has ended.
        """
        turns, store = self.task.turns, self.store
        if turns is None or not rows.size:
            return rows
        asked = rows if turns.farewell else rows[store.replies[rows] < turns.most - 1]
        if asked.size:
            tokens, ends = zip(*turns.answers([store.state(row) for row in asked.tolist()]), strict=True)
            store.reply(asked, tokens, np.array(ends), store.replies[asked] == turns.most - 1)
        return np.asarray(rows[store.finish[rows] != RUNNING])

    def settle(self, rows: list[int]) -> tuple[Floats, Ending | None]:
        """Pay for the last token of these rows, in one call of the reward.

        Args:
            rows: M rows that were just stepped: the ended ones only, unless the reward pays at every step.
        Returns: rewards float64 (M,), and what the infos say of the ended ones among them, None if none has ended.
        """
        rewards, ending = self._pay(rows)
        if self.draws is not None:
            store = self.store
            ended = store.finish[rows] != RUNNING
            self.draws.see(rows, [store.prompts[row].index for row in rows], rewards, ended)
        return rewards, ending

    def _pay(self, rows: list[int]) -> tuple[Floats, Ending | None]:
        judgement = self._judge(rows, None, None)
        if not self.pays_every_step:
            return judgement.total, self._ending(rows, judgement)
        store, rewards = self.store, judgement.total
        over = store.finish[rows] != RUNNING
        if self.task.scorer.pay == "difference":
            rewards = potential_difference(store.potential[rows], judgement.total, over, self.task.gamma)
            store.potential[rows] = judgement.total
        ended = np.flatnonzero(over)
        if not ended.size:
            return rewards, None
        return rewards, self._ending([rows[i] for i in ended], _select(judgement, ended))

    def masks(self, rows: Sequence[int]) -> Bools:
        """Return the tokens that the task allows next, bool (M, V); all ordinary ones in rows that do not run."""
        allowed = self.task.vocabulary.allowed
        masks = np.repeat(allowed[None], len(rows), axis=0)
        if self.task.mask is not None:
            running = [i for i, row in enumerate(rows) if self.store.finish[row] == RUNNING]
            if running:
                masks[running] &= self.task.mask([self.store.state(rows[i]) for i in running])
                if not masks.any(axis=1).all():
                    raise ValueError(f"mask of task {self.task.name!r}: leaves no token at all in some state")
        return masks

    def restore(self, row: int, state: TokenState) -> None:
        """Put a state into a row. Raises: as `check` does."""
        self.check(state)
        self.store.restore(row, state)

    def check(self, state: TokenState) -> None:
        """Check a state. Raises: TypeError or ValueError if it is none, or does not fit task and split."""
        if not isinstance(state, TokenState):
            raise TypeError(f"state: {type(state).__name__} is not a TokenState, as get_state gives it")
        prompt = state.prompt
        if not isinstance(prompt, Prompt) or not isinstance(prompt.text, str) or not isinstance(prompt.ids, tuple):
            raise TypeError(f"state: prompt={shown(prompt)}: allowed is a Prompt, whose ids are a tuple")
        if prompt.index is not None:
            place = check_count("state: prompt.index", prompt.index, 0, len(self.prompts) - 1)
            if self.prompts[place] != prompt:
                raise ValueError(f"state: its prompt is not prompt {place} of this task's {self.split} split")
        check_number("state: potential", state.potential, unit="reward units")
        if state.episode_seed is not None:
            check_count("state: episode_seed", state.episode_seed, 0)
        self._check_hidden(state)
        self.store.check(state)
        most = None if self.task.turns is None else self.task.turns.most - (state.finish_reason is None)
        if most is not None and state.replies > most:
            when = "while it runs" if state.finish_reason is None else "at the end"
            raise ValueError(
                f"state: environment={shown(state.environment)}: {state.replies} replies, allowed are 0..{most} {when}"
            )

    def _check_hidden(self, state: TokenState) -> None:
        """Raise ValueError for a state that hides what its prompt cannot; a search hides nothing (None)."""
        if state.hidden is None:
            return
        turns = self.task.turns
        weights = () if turns is None else turns.responder.weights(state.prompt)
        most = SEEDS if weights is None else len(weights)
        if not are_integers((state.hidden,)) or not 0 <= state.hidden < most:
            raise ValueError(f"state: hidden={shown(state.hidden)}: allowed is {f'0..{most - 1}' if most else None}")

    def _judge(self, rows: list[int], texts: list[str] | None, scorer: Scorer | None) -> Judgement:
        store = self.store
        prompts, ids = [store.prompts[row] for row in rows], store.completions(rows)
        seeds = [store.episode_seeds[row] for row in rows] if self.task.noisy else ()
        environment = () if self.task.turns is None else [store.environment[row] for row in rows]
        return self.task.judge(self.split, prompts, ids, seeds, texts, scorer, environment)

    def _ending(self, rows: list[int], judgement: Judgement) -> Ending:
        gold_scorer = self.task.gold_scorer
        if gold_scorer is None or gold_scorer is self.task.scorer:
            return Ending(rows, judgement, None if gold_scorer is None else judgement.total)
        return Ending(rows, judgement, self._judge(rows, judgement.texts, gold_scorer).total)


def observation_space(task: Task, segments: bool = False) -> spaces.Space[Any]:
    """Return input_ids: Box(0, V-1, (L,), int64); attention_mask: Box(0, 1, (L,), int8); with `segments` also
    segment_ids: Box(0, 2, (L,), int8).
    """
    shape = (task.max_prompt_tokens + task.max_new_tokens,)
    # Gymnasium warns of a Box whose bounds are equal, as they would be with one token.
    highest = max(task.vocabulary.size - 1, 1)
    boxes: dict[str, Any] = {
        "input_ids": spaces.Box(0, highest, shape, np.int64),
        "attention_mask": spaces.Box(0, 1, shape, np.int8),
    }
    if segments:
        boxes["segment_ids"] = spaces.Box(PROMPT, ENVIRONMENT, shape, np.int8)
    return spaces.Dict(**boxes)


def action_space(task: Task) -> spaces.Space[Any]:
    """Return Discrete(V)."""
    return TokenSpace(task.vocabulary.size)


def _select(judgement: Judgement, at: npt.NDArray[np.intp]) -> Judgement:
    terms = {name: values[at] for name, values in judgement.terms.items()}
    texts, written = (each and [each[i] for i in at] for each in (judgement.texts, judgement.written))
    return Judgement(texts or [], written, judgement.total[at], terms)
