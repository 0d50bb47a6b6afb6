"""The protocol of agents with its defaults, and how an agent reads its observations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from textgym.checks import Floats, Ints, shown
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
"""Called with the metrics of every iteration; True ends learning."""


class _HasValues:
    """The default of `Agent.critic`, which a class or an object may replace."""

    def __get__(self, agent: object, kind: type[Agent]) -> bool:
        return kind.values is not Agent.values


class Agent(ABC):
    """A policy that may learn: five methods to write, and what TextGym asks besides, with the defaults.

    A class need not derive from this one. One that only has the five methods gets the defaults when it is first met,
    see `as_agent` and `complete`, and takes part in evaluation, benchmark and command line all the same.
    """

    name: str = ""
    """Its registered name, which `save` writes; empty for an agent without one."""
    config: object = None
    """Its settings, a dataclass; None for an agent without any."""
    config_type: ClassVar[type[Any] | None] = None
    """The dataclass of `config`; None: what the constructor's `config` is annotated with."""
    iteration: int | None = None
    """Iterations learned so far, for an agent that counts and saves them: a resumed run continues from there."""
    learns: ClassVar[bool] = True
    """Whether `learn` changes the policy. One that never does is evaluated once."""
    plans: ClassVar[bool] = False
    """Whether acting searches: then answers change what later ones are, and untrained it is not the reference."""
    greedy: ClassVar[bool] = False
    """Whether the policy has no entropy, so that it never is the reference, and has no finite KL."""
    offline: bool = False
    """Whether others than the policy write the texts that it learns from."""
    critic: bool = _HasValues()  # type: ignore[assignment]
    """Whether `values` gives V(s). The default is whether the class has a method `values` of its own."""
    group: int = 1
    """Consecutive episodes of a batch that answer the same prompt; divides the sub-environments."""
    objective_tokens: ClassVar[int | None] = None
    """Tokens of the longest answer for which it maximises J itself, KL included; None: of any length."""
    chosen: str = ""
    """How a setting that was left to the agent has been chosen, a sentence; "" as long as there is nothing to say."""
    resumes: ClassVar[bool] = False
    """Whether a saved and loaded agent learns on bit for bit: then a benchmark cell that was cut off is resumed, not
    started over."""

    @abstractmethod
    def learn(self, env: TokenVectorEnv, episodes: int, callback: Callback | None = None) -> None:
        """Learn from `episodes` episodes of `env`.

        Args:
            env: a vector environment (`make_env`), which may be wrapped, or what the agent asks for.
            episodes: the budget; the unit that all agents are compared in.
            callback: called with the metrics of every iteration; returning True stops learning.
        """

    @abstractmethod
    def act(self, observation: Observation, deterministic: bool = False) -> Ints:
        """Return token ids (B,) for a batch of observations; the likeliest ones if `deterministic`."""

    @abstractmethod
    def log_probs(self, observation: Observation) -> NDArray[np.floating[Any]] | None:
        """Return next-token log-probabilities (B, V) in nats, or None for an agent that has none."""

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
        """Raise what would stop `learn` on `env` at once, as data that are missing: it is asked before any work."""
        del env  # nothing would

    def caveat(self, task: Task, split: str) -> str:
        """Return what has to be known of its measures on the prompts of a task's split, a sentence; "" for nothing."""
        return ""

    def own_reference(self) -> Reference | None:
        """Return what its KL is measured from where that is not the task's reference, else None."""
        return None

    def conformance_hooks(self) -> Mapping[str, Callable[..., Any]]:
        """Return functions that let `textgym check` see its training, see `textgym_agents.conformance.hooks`."""
        return {}


class DrawingAgent(Agent):
    """An agent that draws its tokens from its own log-probabilities, by a generator that its config's `seed` seeds."""

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
    """Fill in what a class with the five methods of `Agent` leaves out, as `functools.total_ordering` does; return it.

    From then on its objects are instances of `Agent`.
    """
    if not issubclass(kind, Agent):
        for name in _DEFAULTS:
            if not hasattr(kind, name):
                setattr(kind, name, vars(Agent)[name])
        Agent.register(kind)
    return kind


def as_agent(agent: object) -> Agent:
    """Return the same object as an `Agent`, whatever its class, with the defaults that it leaves out."""
    complete(type(agent))
    assert isinstance(agent, Agent)
    return agent


def token_rows(observation: Observation) -> list[tuple[int, ...]]:
    """Return the tokens of each of B states."""
    lengths = np.count_nonzero(observation["attention_mask"], axis=1).tolist()
    ids: NDArray[np.int64] = observation["input_ids"]
    return [tuple(row[:length]) for row, length in zip(ids.tolist(), lengths, strict=True)]


def prompt_lengths(observation: Observation) -> Ints:
    """Return the tokens of each state's prompt, (B,).

    Raises: ValueError for observations without `segment_ids`.
    """
    if "segment_ids" not in observation:
        raise ValueError(
            "observation: has no segment_ids, which say where the prompt ends; make the environment with segments=True"
        )
    prompt = (observation["segment_ids"] == PROMPT) & (observation["attention_mask"] != 0)
    return np.asarray(np.count_nonzero(prompt, axis=1))


class StateFinder:
    """Finds the states that observations show.

    Args:
        task: supplies the prompts of all splits.
        scored: whether what is found is scored, by the data of its prompt.
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
        """Return split and state of each of B observations, taken to be running.

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
