"""A task: the data of a token MDP, its reference, and the scoring of its texts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from textgym.checks import Bools, Floats, check_count, check_number, did_you_mean, not_one_of, shown
from textgym.lm.reference import Reference, UniformReference
from textgym.prompts import PromptSet
from textgym.registry import TASKS, TaskEntry
from textgym.rewards import Scorer
from textgym.rewards.scorer import OnError
from textgym.state import Prompt, TokenState
from textgym.turns import Spoken, Turns
from textgym.vocab import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_TOKENS = 2**20
"""Maximum length of a prompt and of a completion: observations have a place for each token."""
BETA, GAMMA = "reward units per nat", "discount per token"
"""The units of the task's numbers of these names, for messages."""
_ENVIRONMENT_ARGUMENTS = ("split", "segments", "render_mode", "num_envs", "autoreset_mode", "score_together", "copy")
MaskHook = Callable[[Sequence[TokenState]], Bools]
RewardFunction = Callable[..., Any]
"""Called as `reward(prompts, completions, **columns)`, see `textgym.rewards.Reward`."""


@dataclass(frozen=True, eq=False)
class MinNewTokens:
    """A task's `mask` that forbids stop ids until a completion has a minimum number of tokens.

    If nothing else is allowed, as after the end of a grammar's text, a stop id still is.

    Args:
        least: the minimum, tokens. vocabulary: the task's vocabulary. mask: a further mask, or None.
    """

    least: int
    vocabulary: Vocabulary
    mask: MaskHook | None = None

    @property
    def grammar(self) -> str:
        """What tells it from other masks."""
        return f"min_new_tokens={self.least} {getattr(self.mask, 'grammar', type(self.mask).__qualname__)}"

    def __call__(self, states: Sequence[TokenState]) -> Bools:
        """Return the tokens that may come next, bool (B, V), for B states that run."""
        allowed = np.repeat(self.vocabulary.allowed[None], len(states), axis=0)
        if self.mask is not None:
            allowed &= self.mask(states)
        early = np.array([len(state.completion) < self.least for state in states])
        longer = allowed.copy()
        longer[:, list(self.vocabulary.stop_ids)] = False
        return np.where((early & longer.any(1))[:, None], longer, allowed)


class Judgement(NamedTuple):
    """The texts and rewards of B completions.

    Args:
        texts: the decoded completions.
        written: the parts written by the policy, one line per turn; None without turns.
        total: float64 (B,), reward units.
        terms: name -> float64 (B,).
    """

    texts: list[str]
    written: list[str] | None
    total: Floats
    terms: dict[str, Floats]


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """One token MDP, as data.

    Args:
        name, family: for people.
        prompts: maps "train" and "eval" to the initial states, and perhaps "tune" to prompts to choose settings on, no
            longer than the others.
        vocabulary: the action set.
        reward: called with `completion_ids` and the data columns as `columns`.
        gold: the true reward, measured but never trained on; None if there is none.
        reward_name: the name of the reward, as it was requested.
        max_new_tokens: maximum length of an episode, tokens.
        max_prompt_tokens: maximum length of a prompt, tokens, with the chat template; 0: that of the longest prompt.
        reference: the reference policy: "builtin", "uniform", a model's folder or hub id, or a `Reference`
            over the vocabulary, such as an n-gram table.
        beta: reward units per nat of KL to the reference.
        gamma: discount per token, in [0, 1].
        on_error, penalty, timeout: how to handle a failing reward, see `textgym.rewards.Scorer`.
        mask: maps B states to bool (B, V), True for tokens that the task's grammar allows next; None if all of
            `vocabulary.allowed` always are.
        min_new_tokens: minimum number of tokens before a stop id is allowed; if it is not 0, `mask` becomes a
            `MinNewTokens` over the given mask.
        noisy: whether every episode draws a seed from the environment's generator; rewards get the seeds as
            `episode_seeds`. A reward with the attribute `noisy` makes its task noisy.
        turns: how the environment answers turns of the policy; None if an episode is one turn. Else `max_new_tokens`
            is `turns.room`, gamma is 1, and rewards that pay at the end get the column `turns`: for each completion a
            list of (author, text), where the authors are "policy" and "environment".
    Raises: ValueError for limits out of range, or a potential-based reward with another discount.
    """

    name: str
    prompts: Mapping[str, PromptSet]
    vocabulary: Vocabulary
    reward: RewardFunction
    max_new_tokens: int
    max_prompt_tokens: int = 0
    family: str = "text"
    gold: RewardFunction | None = None
    reward_name: str = ""
    reference: str | Reference = "uniform"
    beta: float = 0.05
    gamma: float = 1.0
    on_error: OnError = "raise"
    penalty: float = -1.0
    timeout: float | None = None
    mask: MaskHook | None = field(default=None, repr=False)
    noisy: bool = False
    min_new_tokens: int = 0
    turns: Turns | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("max_prompt_tokens", 0), ("max_new_tokens", 1)):
            object.__setattr__(self, name, check_count(name, getattr(self, name), least, MOST_TOKENS, "tokens"))
        least = check_count("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens, "tokens")
        mask = self.mask.mask if isinstance(self.mask, MinNewTokens) else self.mask
        object.__setattr__(self, "mask", MinNewTokens(least, self.vocabulary, mask) if least else mask)
        if self.turns is not None:
            object.__setattr__(self, "turns", self._checked_turns(self.turns))
        check_number("gamma", self.gamma, 0, 1, GAMMA)
        check_number("beta", self.beta, 0, unit=BETA)
        what = "'builtin', 'uniform', a model's folder or hub id, and an object with log_probs(observation)"
        if not isinstance(self.reference, str | Path | Reference):
            raise TypeError(f"reference={shown(self.reference)}: allowed are {what}")
        if isinstance(self.reference, str) and not self.reference.strip():
            raise ValueError(f"reference={self.reference!r}: allowed are {what}")
        if set(self.prompts) not in ({"train", "eval"}, {"train", "eval", "tune"}):
            raise ValueError(
                f"prompts: the splits are {sorted(self.prompts)}, allowed are train and eval, or these and tune"
            )
        if self.scorer.pay == "difference" and self.scorer.gamma != self.gamma:
            raise ValueError(
                f"reward: its potential is discounted by gamma={self.scorer.gamma}, "
                f"the task by gamma={self.gamma}; they must be equal"
            )
        if getattr(self.reward, "noisy", False):
            object.__setattr__(self, "noisy", True)
        if not self.max_prompt_tokens:
            longest = max(len(prompt.ids) for split in self.prompts for prompt in self.encoded(split))
            object.__setattr__(self, "max_prompt_tokens", longest)
        if self.turns is not None:
            self.turns.check([prompt for split in self.prompts for prompt in self.encoded(split)])

    def _checked_turns(self, turns: Turns) -> Turns:
        """Return the turns with the stop ids among their ends. Raises: ValueError for what goes with one turn alone."""
        allowed = {"max_new_tokens": turns.room, "gamma": 1.0, "min_new_tokens": 0}
        for name, value in allowed.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)}: in a task with turns allowed is {value:g}")
        if any("turns" in prompts.columns for prompts in self.prompts.values()):
            raise ValueError("columns: the name 'turns' is taken in a task with turns, where it says who wrote what")
        if not self.scorer.pays_at_end:
            raise ValueError(
                f"reward: pays at every token (pay={self.scorer.pay!r}); in a task with turns allowed is one that pays "
                "at the end"
            )
        return replace(turns, ends=tuple(sorted({*self.vocabulary.stop_ids, *turns.ends})))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a completion, or the policy's turn in a task with turns; anything longer was cut by a budget."""
        return self.vocabulary.stop_ids if self.turns is None else self.turns.ends

    @cached_property
    def scorer(self) -> Scorer:
        """Return the scorer that calls the reward."""
        return Scorer(self.reward, self.on_error, self.penalty, self.timeout)

    @cached_property
    def gold_scorer(self) -> Scorer | None:
        """Return the scorer that calls the gold reward: `scorer` if gold is the reward, None without a gold reward."""
        if self.gold is None:
            return None
        if self.gold is self.reward:
            return self.scorer
        return Scorer(self.gold, self.on_error, self.penalty, self.timeout)

    @cached_property
    def _encoded(self) -> dict[str, list[Prompt]]:
        return {}

    def encoded(self, split: str) -> list[Prompt]:
        """Return the encoded prompts of a split. Raises: ValueError for a prompt that is empty or too long."""
        if split not in self._encoded:
            texts = self.prompt_set(split).texts
            self._encoded[split] = [self._encode(text, i, f"{split} prompt {i}") for i, text in enumerate(texts)]
        return self._encoded[split]

    def prompt_set(self, split: str) -> PromptSet:
        """Return the prompts of a split. Raises: ValueError for an unknown split."""
        if split not in self.prompts:
            raise ValueError(not_one_of("split", split, self.prompts))
        return self.prompts[split]

    def prompt(self, text: str, split: str) -> Prompt:
        """Return the initial state for a text; if the split has this prompt, with its data columns.

        Raises: TypeError or ValueError if the text is not a string, empty, not UTF-8, or longer than max_prompt_tokens.
        """
        index = self.prompt_set(split).index.get(text) if isinstance(text, str) else None
        return self._encode(text, None, "option prompt") if index is None else self.encoded(split)[index]

    def _encode(self, text: str, index: int | None, argument: str) -> Prompt:
        try:
            ids = self.vocabulary.encode_prompt(text)
        except ValueError as error:
            raise ValueError(f"{argument}: {error}") from error
        if 0 < self.max_prompt_tokens < len(ids):
            allowed = f"max_prompt_tokens allows 1..{self.max_prompt_tokens}"
            raise ValueError(f"{argument}: {text!r:.80} has {len(ids)} tokens, {allowed}")
        return Prompt(text, ids, index)

    def judge(
        self,
        split: str,
        prompts: Sequence[Prompt],
        completion_ids: list[list[int]],
        episode_seeds: Sequence[int | None] = (),
        texts: list[str] | None = None,
        scorer: Scorer | None = None,
        environment: Sequence[tuple[int, ...]] = (),
    ) -> Judgement:
        """Decode and score B completions in one call of the reward.

        Args:
            split: the split with the prompts' data columns; a prompt outside the split has None in every column.
            prompts: B prompts.
            completion_ids: B lists of ids, including the stop id if it was written.
            episode_seeds: B seeds, in noisy tasks.
            texts: the decoded completions; None: they are decoded here.
            scorer: the scorer to use; None: that of the task's reward.
            environment: B lists, in tasks with turns: the indices of the tokens written by the environment.
        Returns: texts, rewards and terms of the B completions.
        """
        texts = self.vocabulary.decode(completion_ids) if texts is None else texts
        columns: dict[str, Sequence[Any]] = {"completion_ids": completion_ids}
        read, written = texts, None
        places = [prompt.index for prompt in prompts]
        for name, values in self.prompts[split].columns.items():
            columns[name] = [None if place is None else values[place] for place in places]
        if self.noisy:
            columns["episode_seeds"] = list(episode_seeds)
        if self.turns is not None:
            spoken = Spoken(completion_ids, environment, self.vocabulary, self.turns.responder)
            read = written = ["\n".join(text for author, text in said if author == "policy") for said in spoken]
            columns |= {"turns": spoken, "completion_ids": _own(completion_ids, environment)}
        scores = (self.scorer if scorer is None else scorer).score([p.text for p in prompts], read, columns)
        return Judgement(texts, written, scores.total, scores.terms)


def _own(completion_ids: Sequence[Sequence[int]], environment: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the ids that the policy wrote of B completions. Args: environment: the places of the others."""
    pairs = zip(completion_ids, map(set, environment), strict=True)
    return [[token for place, token in enumerate(ids) if place not in others] for ids, others in pairs]


def task_names() -> list[str]:
    """Return the sorted names of all tasks, without versions."""
    return sorted({TASKS.entry(key).name for key in TASKS})


def task_entry(name: str) -> TaskEntry:
    """Return version, family and summary of a task, see `make_task`. Raises: ValueError for an unknown name."""
    return TASKS.entry(name)


def make_task(name: str, **options: Any) -> Task:
    """Build a task.

    Args:
        name: one of `task_names()`, for its newest version, or a name with a version, as in "Copy-v0".
        options: options of the task's builder.
    Raises: ValueError for an unknown name; TypeError for an unknown option, or a builder that does not return a `Task`.
    """
    builder = TASKS.load(name)
    parameters = inspect.signature(builder).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for option in options:
            if option not in parameters:
                allowed = ", ".join(parameters)
                near = did_you_mean(option, [*parameters, *_ENVIRONMENT_ARGUMENTS])
                if option in _ENVIRONMENT_ARGUMENTS:
                    near = f" {option!r} belongs to an environment, some to the vector one alone."
                # Python's own phrase: TorchRL's GymEnv looks for it to learn which arguments to leave out.
                raise TypeError(
                    f"task {name!r} got an unexpected keyword argument {option!r}. Allowed are: {allowed}.{near}"
                )
    task = builder(**options)
    if not isinstance(task, Task):
        raise TypeError(f"task {name!r}: its builder returned {shown(task)}; allowed is a textgym.task.Task")
    return task


def refuse_turns(task: Task, who: str) -> None:
    """Raise ValueError for a task with turns, because `who` treats an episode as one turn of the policy."""
    if task.turns is not None:
        raise ValueError(
            f"task {task.name!r}: its environment answers in turns; {who} takes episodes of one turn, docs/turns.md "
            "names those that take several"
        )


def refuse_chance(task: Task, who: str) -> None:
    """Raise ValueError for a task with random replies of the environment, because `who` compares whole episodes.

    Their differences would be due to luck as well as to the policy's choices.
    """
    if task.turns is not None and any(task.turns.random(task.encoded(split)) for split in task.prompts):
        raise ValueError(
            f"task {task.name!r}: its environment answers in turns, and chance has a say in them; {who} compares whole "
            "episodes, docs/turns.md names the agents that learn nevertheless"
        )


def refuse_seeds(task: Task) -> None:
    """Raise ValueError for a task that cannot be searched because its environment hides a seed."""
    if task.turns is not None:
        task.turns.beliefs(TokenState(task.encoded("train")[0]))


def has_language_model(task: Task) -> bool:
    """Return whether the task's reference is a causal LM, not a table or a formula."""
    return isinstance(task.reference, str | Path) and task.reference != "uniform"


def reference_model(task: Task) -> str | Path:
    """Return the folder or hub id of the causal LM that is the task's reference.

    Raises: ValueError if the reference is no causal LM.
    """
    if task.reference == "builtin":
        from textgym.world import MODEL_PATH

        return MODEL_PATH
    if not isinstance(task.reference, str | Path) or task.reference == "uniform":
        raise ValueError(
            f"reference={str(task.reference)!r} of task {task.name!r} is no language model; "
            "pass reference=FOLDER_OR_HUB_ID to the environment or model=FOLDER_OR_HUB_ID to the agent"
        )
    return task.reference


def make_reference(task: Task, temperature: float = 1.0, device: str = "auto") -> Reference:
    """Return pi_ref of a task: a causal LM (needs the extra `lm`), the uniform policy, or the object in the task.

    Raises: ValueError if the model cannot be loaded or does not fit the task's vocabulary.
    """
    if task.reference == "uniform":
        return UniformReference(task.vocabulary.allowed)
    if not isinstance(task.reference, str | Path):
        return task.reference
    return load_reference(reference_model(task), task, temperature, device)


def load_reference(name: str | Path, task: Task, temperature: float = 1.0, device: str = "auto") -> Reference:
    """Return an LM as reference over the task's allowed tokens; its weights are loaded once and shared."""
    from textgym.lm.causal import CausalLM, check_positions, choose_device, shared_causal_lm

    model = shared_causal_lm(name, choose_device(device))
    lengths = task.max_prompt_tokens, task.max_new_tokens
    check_positions(model, *lengths)
    return CausalLM(model, task.vocabulary.allowed, temperature, device, sum(lengths), prompt_end(task, model))


def prompt_end(task: Task, model: PreTrainedModel) -> int | None:
    """Return the token that ends every prompt of a task, which an encoder-decoder needs; None for other models.

    Raises: ValueError if the model is an encoder-decoder and the prompts have no such token.
    """
    from textgym.lm.encdec import common_end, is_encoder_decoder

    if not is_encoder_decoder(model):
        return None
    prompts = (prompt.ids for split in task.prompts for prompt in task.encoded(split))
    return common_end(prompts, f"task {task.name!r}: {type(model).__name__}")
