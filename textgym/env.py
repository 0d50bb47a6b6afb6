"""The environment: a text, written token by token."""

from __future__ import annotations

from collections.abc import Collection
from operator import index
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import InvalidAction, ResetNeeded

from textgym.checks import Bools, did_you_mean
from textgym.episodes import Ending, Episodes, action_space, observation_space
from textgym.render import Frame, check_render_mode, frame_image, frame_text, print_frame
from textgym.state import UNSET, Observation, Prompt, TokenState
from textgym.task import Task, make_task

Info = dict[str, Any]
RESET_OPTIONS = ("prompt", "prompt_index")
_BOOLS = (bool, np.bool_)  # no ids, though they can count as integers
NO_MODE = 'render() shows nothing: make the environment with render_mode="ansi", "human" or "rgb_array"'


def find_task(task: str | Task, options: dict[str, Any]) -> Task:
    """Return the task itself, or build the task of this name with these options.

    Raises: TypeError for options passed with a task object, or unknown to the named task; ValueError for an unknown
        name.
    """
    if isinstance(task, str):
        return make_task(task, **options)
    if not isinstance(task, Task):
        raise TypeError(f"task={task!r:.80}: allowed are a task's name and a textgym.task.Task")
    if options:
        raise TypeError(f"{next(iter(options))!r}: a Task object takes no further options, a task's name does")
    return task


def check_options(options: object, allowed: Collection[str] = RESET_OPTIONS) -> dict[str, Any]:
    """Return a copy of the options of `reset`.

    Raises: TypeError if they are not a dict; ValueError for an unknown option, or a prompt chosen twice.
    """
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise TypeError(f"options={options!r:.80}: allowed are None and a dict with {', '.join(allowed)}")
    for name in options:
        if name not in allowed:
            raise ValueError(f"option {name!r}: not one of {', '.join(allowed)}.{did_you_mean(name, allowed)}")
    if "prompt" in options and "prompt_index" in options:
        raise ValueError("options: 'prompt' and 'prompt_index' both choose a prompt, allowed is one of them")
    return dict(options)


def chosen_prompt(task: Task, split: str, option: str, value: Any) -> Prompt:
    """Return the prompt selected by an option of `reset`. Raises: TypeError or ValueError, naming the option."""
    if option == "prompt":
        return task.prompt(value, split)
    prompts = task.encoded(split)
    at = as_index(value)
    if not 0 <= at < len(prompts):
        raise ValueError(
            f"option prompt_index={value!r}: not an int in 0..{len(prompts) - 1} "
            f"(the {split} split has {len(prompts)} prompts)"
        )
    return prompts[at]


def as_index(value: Any) -> int:
    """Return an integer of any type as an int, and -1 for a bool or anything that is not an integer."""
    try:
        return -1 if type(value) in _BOOLS else index(value)
    except TypeError:
        return -1


class TokenEnv(gym.Env[Observation, int]):
    """Text generation as a Markov decision process: the state is a sequence of tokens, an action appends one.

    ### Description
    An episode starts with a prompt from the task's distribution. Every action is the id of the next token. The
    transition is deterministic: s_{t+1} = s_t + [a_t]. The text is decoded and scored once, when the episode ends.

    ### Action Space
    `Discrete(V)`, where V is the size of the vocabulary. `action_masks()` returns the ids that the task suggests in
    this state. The others (control tokens, unused rows) can also be taken and become part of the sequence like any
    other.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right with
    `task.vocabulary.pad_id`; L = max_prompt_tokens + max_new_tokens. The attention mask, not the id, marks the padding.
    With `segments=True` there is also `segment_ids=Box(0, 2, (L,), int8)`, which says who wrote each token: 0 the
    prompt (and padding), 1 the policy, 2 the environment. Observations are copies.

    ### Rewards
    The task's reward of the finished text, on the last step; 0 before. Rewards with `pay = "every"` pay for every
    prefix; with `pay = "difference"` they pay potential differences whose discounted sum is that of the last reward.

    ### Starting State
    A prompt of the split, drawn by weight using `np_random` only, or the one chosen by `reset(options=...)`:
    `{"prompt": text}` or `{"prompt_index": i}`. The info of `reset`: `prompt` (str), `prompt_index` (int, -1 for a text
    that the split does not have).

    ### Episode End
    `terminated` is True after a stop id or max_new_tokens tokens. `truncated` is always False. The info of the last
    step: `completion` (str), `finish_reason` ("stop" or "length"), `reward_terms` (dict of float), and `gold` (float)
    if the task has a gold reward. The info of other steps is empty.

    In a task with turns (`textgym.turns`) a stop id, another id that the task names, or a turn's budget ends the turn.
    The environment's tokens follow in the same step. `terminated` is True if the environment ends the episode ("stop"),
    or after the last turn. Then `completion` holds the text of both, and `written` (str) that of the policy, one line
    per turn, which is passed to rewards.

    ### Arguments
    `task`: a task's name or a `Task`; `split`: "train", "eval" or "tune"; `segments`: whether observations have
    `segment_ids`; `render_mode`: None, "ansi", "human" or "rgb_array"; `task_options`: passed to the task's builder.

    Raises: ValueError for an unknown name, a value that is not allowed, or a reward that compares completions;
        TypeError for an object that is not a task, or an unknown option; DependencyNotInstalled for "rgb_array" without
        Pillow.

    ### Version History
    - v0: first version.
    """

    metadata: Info = {"render_modes": ["ansi", "human", "rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        task: str | Task = "Text",
        *,
        split: str = "train",
        segments: bool = False,
        render_mode: str | None = None,
        **task_options: Any,
    ) -> None:
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.task = find_task(task, task_options)
        if self.task.scorer.pay == "together":
            raise ValueError(
                f"reward {self.task.scorer.name!r} compares the completions of a batch (pay='together'); allowed is a "
                "TokenVectorEnv with score_together=True"
            )
        self._episodes = Episodes(self.task, split, rows=1, segments=segments)
        self.split, self.segments, self.render_mode = split, segments, render_mode
        self.observation_space = observation_space(self.task, segments)
        self.action_space = action_space(self.task)
        self._store = self._episodes.store
        self._size = self.task.vocabulary.size
        self._acts_every_step = self._episodes.pays_every_step or render_mode == "human"
        self._running = False
        self._last_reward: float | None = None
        self._printed = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Start an episode.

        Args:
            seed: seed of `np_random`, from which prompts are drawn.
            options: `{"prompt": text}` or `{"prompt_index": i}` to choose the prompt.
        Returns: the observation, and the info described in "Starting State".
        Raises: ValueError or TypeError for an unknown option, or a prompt that is empty, too long or missing.
        """
        choice = check_options(options)
        prompt = None
        for name, value in choice.items():
            prompt = chosen_prompt(self.task, self.split, name, value)
        super().reset(seed=seed)
        prompt = self._episodes.draw(self.np_random) if prompt is None else prompt
        self._episodes.begin(0, prompt, self.np_random)
        self._running, self._last_reward = True, None
        if self.render_mode == "human":
            self.render()
        place = -1 if prompt.index is None else prompt.index
        return self._store.observation(0), {"prompt": prompt.text, "prompt_index": place}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, Info]:
        """Append one token.

        Args:
            action: an id in 0..V-1.
        Returns: observation, reward, terminated, truncated and info.
        Raises: ResetNeeded before the first reset and after the end of an episode; InvalidAction if the action is not
            an integer or is out of range.
        """
        store = self._store
        if not self._running:
            raise ResetNeeded(why_reset(int(store.finish[0])))
        try:
            token = index(action)
        except TypeError:
            token = -1
        if not 0 <= token < self._size or type(action) in _BOOLS:
            raise InvalidAction(
                f"action {action!r:.80}: not a token id in 0..{self._size - 1} (the vocabulary has {self._size} tokens)"
            )
        ended = bool(store.append(0, token))
        if ended and self.task.turns is not None:
            self._running = False  # until the turn is answered
            ended = bool(self._episodes.answer(np.zeros(1, dtype=np.int64)).size)
            self._running = not ended
        if not (ended or self._acts_every_step):
            return store.observation(0), 0.0, False, False, {}
        self._running = not ended
        return self._settled_step()

    def _settled_step(self) -> tuple[Observation, float, bool, bool, Info]:
        """Return the result of a step that has to pay, or to print."""
        reward, info = 0.0, {}
        if self._episodes.pays_every_step or not self._running:
            rewards, ending = self._episodes.settle([0])
            reward = float(rewards[0])
            info = {} if ending is None else self._final_info(ending)
        self._last_reward = reward
        if self.render_mode == "human":
            self.render()
        return self._store.observation(0), reward, not self._running, False, info

    def action_masks(self) -> Bools:
        """Return the tokens that the task suggests in this state, bool (V,), as used by `action_space.sample(mask=)`.

        The other tokens are legal actions, too.
        """
        return np.asarray(self._episodes.masks([0])[0])

    def get_state(self) -> TokenState:
        """Return the state, immutable; O(length). It does not include the random generator.

        Raises: ResetNeeded before the first reset.
        """
        if self._store.finish[0] == UNSET:
            raise ResetNeeded(why_reset(UNSET))
        return self._store.state(0)

    def set_state(self, state: TokenState) -> Observation:
        """Continue from a state returned by `get_state`, of this or another environment of the same task.

        Returns: the observation of that state.
        Raises: ValueError if the state does not fit this task.
        """
        self._episodes.restore(0, state)
        self._running, self._last_reward = state.finish_reason is None, None
        return self._store.observation(0)

    def render(self) -> Frame | None:
        """Render the episode: return a str, an image uint8 (384, 640, 3), or None after printing, by render mode.

        Raises: ResetNeeded before a reset.
        """
        if self.render_mode is None:
            gym.logger.warn(NO_MODE)
            return None
        frame = frame_text(self.task, self.get_state(), self._last_reward)
        if self.render_mode == "human":
            print_frame(frame, self._printed)
            self._printed = frame
            return None
        return frame if self.render_mode == "ansi" else frame_image(frame)

    def _final_info(self, ending: Ending) -> Info:
        judgement = ending.judgement
        info: Info = {
            "completion": judgement.texts[0],
            "finish_reason": self._store.finish_reason(0),
            "reward_terms": {name: float(values[0]) for name, values in judgement.terms.items()},
        }
        if judgement.written is not None:
            info["written"] = judgement.written[0]
        if ending.gold is not None:
            info["gold"] = float(ending.gold[0])
        return info


def why_reset(finish: int) -> str:
    """Return the message for a row that cannot be stepped."""
    when = "before the first reset" if finish == UNSET else "after the end of the episode"
    return f"this is not possible {when}: call reset() (or set_state()) first"
