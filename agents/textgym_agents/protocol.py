"""The agent protocol with its defaults, and how an agent reads its observations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from textgym.checks import Floats, Ints, check_batch, shown, token_counts
from textgym.lm.reference import Reference
from textgym.play import draw
from textgym.state import ENVIRONMENT, PROMPT, Prompt, TokenState
from textgym.task import Task
from textgym.vector import TokenVectorEnv

if TYPE_CHECKING:
    from textgym.solver import PrefixTree

Observation = Mapping[str, NDArray[Any]]
"""Arrays of B states: `input_ids` and `attention_mask`, (B, L)."""
Metrics = dict[str, float]
Callback = Callable[[Metrics], bool | None]
"""Called with the metrics of every iteration; returning True stops learning."""


class _HasValues:
    """The default of `Agent.critic`, which a class or an object may replace."""

    def __get__(self, agent: object, kind: type[Agent]) -> bool:
        return kind.values is not Agent.values


class Agent(ABC):
    """A policy that may learn: five methods to implement, and optional attributes and methods with defaults.

    A class need not derive from this one. A class that only has the five methods gets the defaults when it is first
    used, see `as_agent` and `complete`, and works with evaluation, benchmark and command line as well.
    """

    name: str = ""
    """Registered name, which `save` writes; empty for an agent without one."""
    config: object = None
    """The settings, a dataclass; None for an agent without any."""
    config_type: ClassVar[type[Any] | None] = None
    """The dataclass of `config`; None: the annotation of the constructor's `config`."""
    iteration: int | None = None
    """Iterations learned so far, for an agent that counts and saves them: a resumed run continues from there."""
    learns: ClassVar[bool] = True
    """Whether `learn` changes the policy. A policy that never changes is evaluated once."""
    plans: ClassVar[bool] = False
    """Whether acting searches: then earlier answers change later ones, and an untrained agent differs from the
    reference."""
    greedy: ClassVar[bool] = False
    """Whether the policy has no entropy, so that it is never the reference and has no finite KL."""
    offline: bool = False
    """Whether the texts that it learns from are not written by the policy."""
    critic: bool = _HasValues()  # type: ignore[assignment]
    """Whether `values` returns V(s). By default, whether the class has its own method `values`."""
    group: int = 1
    """Number of consecutive episodes of a batch with the same prompt; must divide the number of sub-environments."""
    objective_tokens: ClassVar[int | None] = None
    """Maximum answer length, tokens, at which it maximises J itself, KL included; None: any length."""
    chosen: str = ""
    """A sentence on how a setting that was left to the agent has been chosen; "" if there is nothing to report."""
    resumes: ClassVar[bool] = False
    """Whether a saved and loaded agent continues bit for bit; an interrupted benchmark cell is then resumed, not
    restarted."""

    @abstractmethod
    def learn(self, env: TokenVectorEnv, episodes: int, callback: Callback | None = None) -> None:
        """Learn from `episodes` episodes of `env`.

        Args:
            env: a vector environment (`make_env`), which may be wrapped, or another one that the agent requires.
            episodes: the budget; the unit in which all agents are compared.
            callback: called with the metrics of every iteration; returning True stops learning.
        """

    @abstractmethod
    def act(self, observation: Observation, deterministic: bool = False) -> Ints:
        """Return token ids (B,) for a batch of observations; the most likely ones if `deterministic`."""

    @abstractmethod
    def log_probs(self, observation: Observation) -> NDArray[np.floating[Any]] | None:
        """Return next-token log-probabilities (B, V) in nats, or None for an agent without them."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write the agent to a folder, atomically."""

    @classmethod
    @abstractmethod
    def load(cls, path: str | Path, env: TokenVectorEnv) -> Self:
        """Return the agent that `save` wrote to a folder; `env` supplies the task."""

    def values(self, observation: Observation) -> Floats:
        """Return V(s) of a batch of observations (B,), reward units at time 0.

        Raises: ValueError for an agent without a critic.
        """
        raise ValueError(f"values: agent {self.name!r} has no critic; allowed are such as lm-ppo and a2c")

    def edge_log_probs(self, tree: PrefixTree, log_reference: tuple[Floats, ...]) -> tuple[Floats, ...] | None:
        """See `textgym.sampling.WholePolicy`."""
        return None

    def sequence_kl(self, task: Task, split: str, seed: int) -> tuple[Floats, Floats] | None:
        """See `textgym.sampling.WholePolicy`."""
        return None

    def check_learning(self, env: TokenVectorEnv) -> None:
        """Raise any error that would stop `learn` on `env` at once, such as missing data, before any work is done."""
        del env  # nothing would

    def caveat(self, task: Task, split: str) -> str:
        """Return a sentence to know about its measures on the prompts of a task's split; "" for none."""
        return ""

    def own_reference(self) -> Reference | None:
        """Return the reference of its KL if it differs from the task's reference, else None."""
        return None

    def conformance_hooks(self) -> Mapping[str, Callable[..., Any]]:
        """Return functions that let `textgym check` observe its training, see `textgym_agents.conformance.hooks`."""
        return {}


class DrawingAgent(Agent):
    """An agent that samples tokens from its own log-probabilities, with a generator seeded by its config's `seed`."""

    @cached_property
    def _acting(self) -> np.random.Generator:
        return np.random.default_rng([int(getattr(self.config, "seed", None) or 0), 2])

    def act(self, observation: Observation, deterministic: bool = False) -> Ints:
        """See `Agent.act`."""
        log_probs = self.log_probs(observation)
        assert log_probs is not None
        if deterministic:
            return np.asarray(log_probs.argmax(1))
        return draw(np.exp(log_probs), self._acting.random(len(log_probs)))


METHODS = tuple(name for name in vars(Agent) if name in Agent.__abstractmethods__)
_DEFAULTS = tuple(name for name in vars(Agent) if not name.startswith("_") and name not in METHODS)


def complete(kind: type) -> type[Agent]:
    """Add the defaults that a class with the five methods of `Agent` lacks, like `functools.total_ordering`; return it.

    From then on its objects are instances of `Agent`.
    """
    if not issubclass(kind, Agent):
        for name in _DEFAULTS:
            if not hasattr(kind, name):
                setattr(kind, name, vars(Agent)[name])
        Agent.register(kind)
    return kind


def as_agent(agent: object) -> Agent:
    """Return the same object as an `Agent`, whatever its class, with the defaults that it lacks."""
    complete(type(agent))
    assert isinstance(agent, Agent)
    return agent


def token_rows(observation: Observation) -> list[tuple[int, ...]]:
    """Return the tokens of each of B states."""
    lengths = token_counts(observation).tolist()
    ids: NDArray[np.int64] = observation["input_ids"]
    return [tuple(row[:length]) for row, length in zip(ids.tolist(), lengths, strict=True)]


def prompt_lengths(observation: Observation) -> Ints:
    """Return the number of prompt tokens of each state, (B,).

    Raises: ValueError for observations without `segment_ids`, and as `check_batch` does.
    """
    check_batch(observation)
    if "segment_ids" not in observation:
        raise ValueError(
            "observation: has no segment_ids, which say where the prompt ends; make the environment with segments=True"
        )
    prompt = (observation["segment_ids"] == PROMPT) & (observation["attention_mask"] != 0)
    return np.asarray(np.count_nonzero(prompt, axis=1))


class StateFinder:
    """Finds the states that belong to observations.

    Args:
        task: supplies the prompts of all splits.
        scored: whether the found states are scored, using the data of their prompts.
    """

    def __init__(self, task: Task, scored: bool = False) -> None:
        self._decode = task.vocabulary.decode
        # A prompt of several splits is taken from the held-out ones.
        splits = [split for split in ("tune", "train", "eval") if split in task.prompts]
        self._prompts = {prompt.ids: (split, prompt) for split in splits for prompt in task.encoded(split)}
        data: dict[tuple[int, ...], set[str]] = defaultdict(set)
        for split in splits if scored else ():
            columns = sorted(task.prompts[split].columns.items())
            for place, prompt in enumerate(task.encoded(split)):
                given = [values[place] for _, values in columns]
                plain = [each.tolist() if isinstance(each, np.ndarray) else each for each in given]
                data[prompt.ids].add(repr((prompt.text, [name for name, _ in columns], plain)))
        self._unclear = {ids for ids, found in data.items() if len(found) > 1}

    def states(self, observation: Observation) -> list[tuple[str, TokenState]]:
        """Return split and state of each of B observations, which are assumed to be running.

        Raises: ValueError for observations without `segment_ids`.
        """
        starts, rows = prompt_lengths(observation).tolist(), token_rows(observation)
        segments: NDArray[np.int8] = observation["segment_ids"]
        found = []
        for tokens, start, authors in zip(rows, starts, segments, strict=True):
            environment = np.flatnonzero(authors == ENVIRONMENT) - start
            found.append(self.state(tokens, start, tuple(environment.tolist())))
        return found

    def state(self, tokens: tuple[int, ...], start: int, environment: tuple[int, ...] = ()) -> tuple[str, TokenState]:
        """Return split and state of a sequence whose first `start` tokens are the prompt.

        A prompt that no split has is one of the user's own: a reward can know its text alone.

        Raises: ValueError for one that is to be scored, and stands in the task with different data.
        """
        ids = tokens[:start]
        if ids in self._unclear:
            raise ValueError(
                f"observation: the prompt {shown(self._prompts[ids][1].text)} stands in this task with different data, "
                "which a search cannot tell apart; allowed are different texts, or data without what no reward reads"
            )
        split, prompt = self._prompts.get(ids, ("eval", None))
        if prompt is None:
            prompt = Prompt(self._decode([ids])[0], ids, None)
        return split, TokenState(prompt, tokens[start:], environment=environment)
