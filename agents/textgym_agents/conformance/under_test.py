"""The agent under test, the findings about it, and the global random generators."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from textgym import Task, TokenVectorEnv, make_task
from textgym.checks import Bools, Floats, Ints, JsonObject
from textgym.files import json_line
from textgym.rewards.base import Column
from textgym.solver import PolicyValues, PrefixTree, policy_values, prefix_tree
from textgym.state import Prompt, TokenState
from textgym.turns import Reply, Turns
from textgym_agents.protocol import Agent, Metrics, Observation, as_agent
from textgym_agents.registry import agent_class, config_class, make_agent, make_config

Status = Literal["holds", "FAILS", "not asked"]
HOLDS: Final = "holds"
"""Status of a check that found what it expected."""
FAILS: Final = "FAILS"
"""Status of a check that found something else."""
NOT_ASKED: Final = "not asked"
"""Status of a check that does not apply to the agent."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: its name.
        statement: number of the statement that it asks, in docs/conformance.md; checks of one statement share it.
        status: "holds", "FAILS" or "not asked".
        found, expected: as texts; where it was not asked, `found` is the reason.
        asks: what must hold, in a sentence.
    """

    check: str
    statement: int
    status: Status
    found: str
    expected: str
    asks: str


@dataclass(frozen=True)
class Outcome:
    """The result of a check function, to which `check` adds name and number."""

    status: Status
    found: str
    expected: str


class NotAsked(Exception):  # noqa: N818  (it is no error)
    """The agent does not offer what a check needs; the message is the reason."""


def judge(holds: bool, found: str, expected: str) -> Outcome:
    """Return an outcome that holds or fails."""
    return Outcome(HOLDS if holds else FAILS, found, expected)


def at_most(what: str, value: float, limit: float) -> Outcome:
    """Return an outcome that holds where a deviation is at most `limit`; NaN fails."""
    return judge(bool(value <= limit), f"{what} {value:.3g}", f"at most {limit:g}")


@contextmanager
def global_generators(seed: int) -> Iterator[Callable[[], list[str]]]:
    """Seed those of Python, numpy and torch, and set them back at the end.

    Yields: a function that names the generators that were drawn from since.
    """
    python, array, tensor = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    # Not manual_seed, which would reseed every accelerator as well.
    torch.default_generator.manual_seed(seed)
    before = _states()
    try:
        yield lambda: [name for name, state in _states().items() if before[name] != state]
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002
        torch.set_rng_state(tensor)


def _states() -> dict[str, object]:
    array: Any = np.random.get_state()  # noqa: NPY002
    return {
        "random": random.getstate(),
        "numpy.random": (array[1].tobytes(), array[2:]),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }


Factory = Callable[[TokenVectorEnv], Agent]
"""Makes an untrained agent for an environment."""
AgentSource = str | type[Agent] | Factory
"""A registered name, "module:Class", a class, or a function that makes an untrained agent."""
WORDS = ("a", "b", "c", "<end>")
PLAIN: Mapping[str, object] = {
    "epochs": 1,
    "minibatches": 1,
    "lam": 1.0,
    "whiten": False,
    "divide_by_std": False,
    "aggregation": "constant",
}
"""Settings, where a config has them, with which one iteration is one step along the gradient of J."""
SPLIT: Mapping[str, object] = {"micro_batch": 70}
"""Settings that change no gradient: parts of unequal length and number show whether that is so."""
REFUSES_TURNS: Final = "answers in turns"
"""What an agent says that takes episodes of one turn, see `textgym.task.refuse_turns`."""
EMPTY_ROWS = 2  # rows of the vocabulary that no token has: they must never be sampled


@dataclass(frozen=True)
class LearningTask:
    """A task on which the agent must come near the exact optimum.

    Attributes:
        id: of the environment.
        options: of the environment.
        episodes: the budget. envs: sub-environments; None takes the `batch` of the agent's config, 128 at
            most and where it has none.
    """

    id: str
    options: JsonObject = field(default_factory=dict)
    episodes: int = 16384
    envs: int | None = None


def probe_reward(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """Pay for the letter a, more for an early stop, and differs by prompt: nothing about it is symmetric."""
    return [
        text.split().count("a") * (1.0 if prompt == "a b" else -0.5) + 0.25 * (len(text.split()) == 1)
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def probe_task() -> Task:
    """Return a task of two prompts of different lengths, three letters and a stop token that also pads; 82 states."""
    return make_task(
        "Text",
        prompts=["a b", "c"],
        tokenizer=WORDS,
        stop="<end>",
        vocab_size=len(WORDS) + EMPTY_ROWS,
        reward=probe_reward,
        max_new_tokens=3,
        beta=0.3,
        reference="uniform",
    )


class _Echo:
    """Answers a turn with its first token, once or twice by what is hidden: tokens that a policy might have written."""

    def weights(self, prompt: Prompt) -> tuple[float, ...]:
        """See `textgym.turns.Responder.weights`."""
        return 0.5, 0.5

    def replies(self, states: Sequence[TokenState]) -> list[Reply]:
        """See `textgym.turns.Responder.replies`."""
        return [Reply(state.turn[:1] * (1 + (state.hidden or 0))) for state in states]


def _turn_reward(prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
    """Pay for every letter a of the policy, and for each of its turns that the stop token ends at once."""
    spoken = cast("Sequence[Sequence[tuple[str, str]]]", columns["turns"])
    own = [[text.split() for author, text in each if author == "policy"] for each in spoken]
    return [sum(turn.count("a") + 0.5 * (len(turn) == 1) for turn in turns) for turns in own]


def turn_task() -> Task:
    """Return `probe_task` in two turns of up to two tokens each, after which the environment repeats something."""
    turns = Turns(_Echo(), most=2, tokens=2, reply_tokens=2)
    return replace(probe_task(), turns=turns, max_new_tokens=turns.room, reward=_turn_reward, gold=None)


_Step = tuple[dict[str, NDArray[Any]], Floats, Bools, Bools, JsonObject]


class CutOff(TokenVectorEnv):
    """An environment that truncates every episode after its first token, as an outer time limit would."""

    def __init__(self, task: Task, num_envs: int) -> None:
        super().__init__(task, num_envs, autoreset_mode=AutoresetMode.DISABLED)

    def step(self, actions: Ints) -> _Step:
        """See `TokenVectorEnv.step`."""
        observation, rewards, terminated, _, infos = super().step(actions)
        return observation, rewards, terminated, ~terminated, infos


def probe_log(task: Task, episodes: int = 24) -> dict[tuple[int, ...], Floats]:
    """Return a log of `probe_task`: tokens of prompt and completion, and the rewards of the latter, drawn at random."""
    generator, prompts = np.random.default_rng(0), task.encoded("train")
    letters = np.setdiff1d(np.flatnonzero(task.vocabulary.allowed), task.vocabulary.stop_ids)
    found: dict[tuple[int, ...], Floats] = {}
    while len(found) < episodes:
        ids = generator.choice(letters, generator.integers(task.max_new_tokens + 1)).tolist()
        ids += list(task.vocabulary.stop_ids[:1]) * (len(ids) < task.max_new_tokens)
        found.setdefault((*prompts[len(found) % 2].ids, *ids), generator.normal(size=len(ids)))
    return found


def factory_of(agent: AgentSource, settings: Mapping[str, object]) -> Factory:
    """Return a function that makes an untrained agent for an environment.

    Args:
        agent: a registered name, "module:Class", a class, or a function from environment to agent.
        settings: of the agent's config; not for a function.
    Raises: TypeError or ValueError for what is no agent.
    """
    if isinstance(agent, str | type):
        make_config(agent_class(agent), settings)
        return lambda env: make_agent(agent, env, **settings)
    if not callable(agent):
        raise TypeError(f"agent={agent!r:.80}: allowed is a name, 'module:Class', a class or a function of env")
    if settings:
        raise TypeError(f"{next(iter(settings))!r}: a function that makes agents takes no settings")
    return lambda env: as_agent(agent(env))


def logged_factory_of(agent: AgentSource, settings: Mapping[str, object]) -> Callable[[str], Factory] | None:
    """Return `factory_of` with a log as the setting `data`; None for an agent without that setting."""
    kind = config_class(agent_class(agent)) if isinstance(agent, str | type) else None
    if kind is None or "data" not in {entry.name for entry in fields(kind)}:
        return None
    return lambda path: factory_of(agent, {**settings, "data": path})


def plain_factory_of(agent: AgentSource, settings: Mapping[str, object]) -> Factory:
    """Return `factory_of` with `PLAIN` and `SPLIT` in place of settings; a function makes what it makes."""
    kind = config_class(agent_class(agent)) if isinstance(agent, str | type) else None
    names = set() if kind is None else {entry.name for entry in fields(kind)}
    changed = {name: value for name, value in {**PLAIN, **SPLIT}.items() if name in names}
    return factory_of(agent, {**settings, **changed})


@dataclass(frozen=True)
class TrainedAgent:
    """An agent after some iterations on the probe task.

    Attributes:
        agent: the agent. rows: the metrics of each iteration.
        sampled: the exact values of the policy that sampled each iteration, or None without log-probabilities.
    """

    agent: Agent
    rows: list[Metrics]
    sampled: list[PolicyValues] | None


class AgentUnderTest:
    """The agent under test.

    Args:
        make: makes an untrained one. learning: the tasks to learn.
        envs: sub-environments of the probe task. iterations: of its training.
        make_plain: makes one whose iteration is a single policy-gradient step; None: as `make`.
        make_logged: from the path of a log, makes what makes one that learns from it; None where it learns from none.
    """

    def __init__(
        self,
        make: Factory,
        learning: Mapping[str, LearningTask],
        envs: int = 64,
        iterations: int = 8,
        make_plain: Factory | None = None,
        make_logged: Callable[[str], Factory] | None = None,
    ) -> None:
        self.make, self.make_plain, self.learning, self.make_logged = make, make_plain or make, learning, make_logged
        self.recordings: dict[str, object] = {}
        self._envs, self._iterations, self.task = envs, iterations, probe_task()

    @cached_property
    def envs(self) -> int:
        """Sub-environments of the probe task: those asked for, in whole groups of the agent's, two at least."""
        group = 1
        with suppress(Exception):  # of an agent that cannot be made, which the checks say
            group = int(getattr(self.make(self.env(self._envs)), "group", 1))
        return max(self._envs // group, 2) * group

    @property
    def episodes(self) -> int:
        """Of the training on the probe task."""
        return self.envs * self._iterations

    @cached_property
    def turned(self) -> AgentUnderTest:
        """The same agent on `turn_task`. Raises: NotAsked where it refuses tasks with turns."""
        turned = AgentUnderTest(self.make, {}, self._envs, self._iterations, self.make_plain)
        turned.task = turn_task()
        try:
            turned.make(turned.env())
        except ValueError as error:
            if REFUSES_TURNS in str(error):
                raise NotAsked(f"the agent refuses tasks with turns: {error}") from error
            raise
        return turned

    def logged(self, env: TokenVectorEnv) -> Agent:
        """Return an untrained agent that has read `probe_log`. Raises: NotAsked for one that takes no log."""
        if self.make_logged is None:
            raise NotAsked("the agent has no setting 'data' for a log")
        with TemporaryDirectory() as folder:
            (path := Path(folder) / "log.jsonl").write_text("".join(map(json_line, self._log_rows())), encoding="utf-8")
            try:
                agent = self.make_logged(str(path))(env)
            except ValueError as error:
                raise NotAsked(f"with these settings the agent takes no log: {error}") from error
            agent.check_learning(env)
        return agent

    def _log_rows(self) -> Iterator[JsonObject]:
        for ids, rewards in probe_log(self.task).items():
            (prompt,) = (each for each in self.task.encoded("train") if each.ids == ids[: -len(rewards)])
            yield {"prompt": prompt.text, "completion_ids": ids[-len(rewards) :], "rewards": rewards}

    @cached_property
    def tree(self) -> PrefixTree:
        """All states of the probe task."""
        return prefix_tree(self.task)

    @cached_property
    def states(self) -> Observation:
        """Every running state of the probe task."""
        own = [
            level.running if level.environment is None else level.running[~level.environment[level.running]]
            for level in self.tree.levels[:-1]
        ]
        parts = [self.tree.observations(depth, rows) for depth, rows in enumerate(own) if len(rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def env(self, envs: int | None = None) -> TokenVectorEnv:
        """Return a new environment of the probe task, which waits for `reset` when all episodes ended."""
        return TokenVectorEnv(self.task, envs or self.envs, autoreset_mode=AutoresetMode.DISABLED)

    @cached_property
    def training(self) -> TrainedAgent:
        """The agent after a probe training."""
        env = self.env()
        agent = self.make(env)
        rows, sampled = list[Metrics](), list[PolicyValues]()

        def note() -> None:
            if agent.log_probs(self.states) is not None:
                sampled.append(policy_values(self.tree, agent))

        def callback(metrics: Metrics) -> None:
            rows.append(dict(metrics))
            note()

        note()
        agent.learn(env, self.episodes, callback)
        return TrainedAgent(agent, rows, sampled[: len(rows)] if len(sampled) == len(rows) + 1 else None)

    @cached_property
    def whole(self) -> tuple[Agent, int]:
        """An agent after a training of the same length that nobody looked into, and how often it called back."""
        with global_generators(0):
            env = self.env()
            agent = self.make(env)
            calls: list[Metrics] = []
            agent.learn(env, self.episodes, calls.append)
        return agent, len(calls)

    def log_probs(self, agent: Agent, observation: Observation | None = None) -> Floats:
        """Return log-probabilities (B, V), by default of all states. Raises: NotAsked for an agent that has none."""
        result = agent.log_probs(self.states if observation is None else observation)
        if result is None:
            raise NotAsked("log_probs gives None")
        return np.asarray(result, dtype=np.float64)

    def metric(self, name: str) -> list[float]:
        """Return a logged metric, one number per iteration. Raises: NotAsked if it is not logged."""
        rows = self.training.rows
        if not rows:
            raise NotAsked("learn never calls its callback")
        if any(name not in row for row in rows):
            raise NotAsked(f"the agent does not log {name!r}")
        return [float(row[name]) for row in rows]
