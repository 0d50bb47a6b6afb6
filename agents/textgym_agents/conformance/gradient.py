"""What an agent's update is held against: recorded gradients on the logits of a small task, beside the exact ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from textgym import TokenVectorEnv, make_task
from textgym.lm.reference import NGramReference
from textgym.solver import PolicyValues, PrefixTree, policy_values, prefix_tree
from textgym.state import TokenState
from textgym_agents.algorithms.fixed import reference_of
from textgym_agents.conformance.hooks import Floats, LossGradient, hook
from textgym_agents.conformance.subject import PLAIN, NotAsked, Subject
from textgym_agents.protocol import Agent, Metrics

WORDS = ("a", "b", "c", "<end>", "<halt>")
STOPS = ("<end>", "<halt>")
EMPTY_ROWS = 1
BATCHES, EPISODES = 32, 240  # groups of 2, 3, 4, 5, 6 and 8 fit in
_MOVES, _MOVE_EPISODES, _MOVED = 48, 48, 0.5  # iterations of so many episodes, or until so many nats
_LEAST_MOVED = 0.02  # nats


@dataclass(frozen=True)
class Probe:
    """One of the tasks whose gradients are recorded.

    Attributes:
        gamma: its discount. masked: whether a grammar forbids to write a token twice in a row.
    """

    gamma: float = 1.0
    masked: bool = False


PROBES = {"plain": Probe(), "discounted": Probe(gamma=0.6), "masked": Probe(masked=True)}


def _paid(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Pays by the letters, the length and the prompt, one of which is worth much more than the other."""
    return [
        (1.0 if prompt == "a b" else 0.0)
        + text.split().count("a") * (0.5 if prompt == "a b" else -0.5)
        + 0.5 * (text.split()[:1] == ["c"])
        + 0.5 * (len(text.split()) <= 1)
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def _decoy(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Pays for what the task itself does not: an agent that learns it is away from its start and from the optimum."""
    return [
        1.5 * text.split().count("b") + 0.5 * len(text.split()) + 0.5 * (text.split()[1:2] == ["a"])
        for text in completions
    ]


def probe_task(probe: Probe) -> Any:
    """Two prompts of unequal weight, three letters, two stop tokens, an uneven reference that looks one token back."""
    size = len(WORDS) + EMPTY_ROWS
    table = np.zeros((size, size))
    for last in range(size):
        table[last, : len(WORDS)] = np.roll([0.40, 0.24, 0.16, 0.12, 0.08], last % 3) + 0.02 * (last % 2)
    table /= table.sum(1, keepdims=True)
    task = make_task(
        "Text",
        prompts=["a b", "c"],
        weights=[0.7, 0.3],
        tokenizer=WORDS,
        stop=STOPS,
        vocab_size=size,
        reward=_paid,
        max_new_tokens=4,
        beta=0.3,
        gamma=probe.gamma,
        reference=NGramReference(table),
    )
    return replace(task, mask=_no_repetition) if probe.masked else task


def _no_repetition(states: Sequence[TokenState]) -> NDArray[np.bool_]:
    masks = np.ones((len(states), len(WORDS) + EMPTY_ROWS), dtype=np.bool_)
    masks[:, len(WORDS) :] = False
    for row, state in enumerate(states):
        masks[row, state.tokens[-1]] = False
    return masks


def probe_env(task: Any, episodes: int) -> TokenVectorEnv:
    """An environment of the task that waits for `reset` when all episodes ended."""
    return TokenVectorEnv(task, episodes, autoreset_mode=AutoresetMode.DISABLED)


@dataclass(frozen=True)
class ExactGradients:
    """The parts of the gradient of J on the logits of every running state, flattened to (D,): D = states times V.

    Attributes:
        values: of the policy. tree: of the task.
        place: (depth, row) of every state -> its index among the running ones.
        parts: (D, 3) of E[R], of KL(pi || ref) per episode, and of the entropy summed over the states visited, these
            held fixed as a bonus in a loss does. Reward units and nats.
        mass: (D,) rho d(s) pi(a given s); 0 at illegal tokens.
    """

    values: PolicyValues
    tree: PrefixTree = field(repr=False)
    place: dict[tuple[int, ...], int] = field(repr=False)
    parts: Floats = field(repr=False)
    mass: Floats = field(repr=False)

    @property
    def states(self) -> int:
        """The number of running states."""
        return len(self.place)

    def per_edge(self, edges: Sequence[Floats]) -> Floats:
        """From arrays per edge, one for each depth, to (D,)."""
        size, first, result = self.tree.task.vocabulary.size, 0, np.zeros(len(self.mass))
        for depth, level in enumerate(self.tree.levels[:-1]):
            below = self.tree.levels[depth + 1]
            index = np.zeros(len(level.parent), dtype=np.int64)
            index[level.running] = first + np.arange(len(level.running))
            result[index[below.parent] * size + below.action] = edges[depth]
            first += len(level.running)
        return result

    def per_state(self, values: Sequence[Floats]) -> Floats:
        """From arrays per state, one for each depth, to those of the running states (S,)."""
        levels = self.tree.levels[:-1]
        return np.concatenate([own[level.running] for own, level in zip(values, levels, strict=False)])


def exact_gradients(task: Any, agent: Agent) -> ExactGradients:
    """The exact parts of grad J at the agent's policy, by summing over all states. Raises: as `policy_values`."""
    tree = prefix_tree(task)
    values = policy_values(tree, agent, reference_of(agent, task))
    place: dict[tuple[int, ...], int] = {}
    for depth, level in enumerate(tree.levels[:-1]):
        shown = tree.observations(depth, level.running)
        for ids, mask in zip(shown["input_ids"], shown["attention_mask"], strict=True):
            place[tuple(ids[mask == 1].tolist())] = len(place)
    bare = ExactGradients(values, tree, place, np.zeros((0, 3)), np.zeros(len(place) * task.vocabulary.size))
    weights: list[Floats] = []
    surprise: list[Floats] = []
    for depth, level in enumerate(tree.levels[:-1]):
        logs, parent = values.log_policy[depth], tree.levels[depth + 1].parent
        finite = np.where(logs > -np.inf, logs, 0.0)
        entropy = np.zeros(len(level.parent))
        entropy[level.running] = -np.add.reduceat(np.exp(logs) * finite, level.starts)
        surprise.append(-finite - entropy[parent])
        weights.append(tree.weights[tree.prompt_of[depth + 1]] * values.reach[depth + 1])
    mass = bare.per_edge(weights)
    advantages = (_advantages(tree, values, paid=True), _advantages(tree, values, paid=False), surprise)
    signs = (1.0, -1.0, 1.0)
    parts = np.stack(
        [
            # An action that is never taken has none.
            np.where(mass > 0, sign * mass * np.nan_to_num(bare.per_edge(edges)), 0.0)
            for sign, edges in zip(signs, advantages, strict=True)
        ],
        axis=1,
    )
    return replace(bare, parts=parts, mass=mass)


def _advantages(tree: PrefixTree, values: PolicyValues, paid: bool) -> tuple[Floats, ...]:
    """Advantages per edge of E[R], or of -KL."""
    from textgym.solver.values import evaluate_edges

    levels = tree.levels if paid else tuple(replace(n, reward=np.zeros_like(n.reward)) for n in tree.levels)
    logs = values.log_policy, values.log_reference
    return evaluate_edges(replace(tree, levels=levels), *logs, 0.0 if paid else 1.0, values.gamma).advantages


@dataclass(frozen=True)
class Recording:
    """Updates of one agent that stood still, and what they should have been.

    Attributes:
        agent: the agent. exact: at its policy.
        updates: (M, D) minus the gradient of the loss on the logits, summed by state, of each batch.
        values: (M, S) gradient of the loss on V(s), summed by state; None without a critic.
        played, used: states that the environment saw an action in, and those whose logits got a gradient.
        foreign: outputs with a gradient in states where nobody acts: padding, or what comes behind the end.
        first: what the hook said of the first batch.
    """

    agent: Agent
    exact: ExactGradients
    updates: Floats
    values: Floats | None
    played: int
    used: int
    foreign: int
    first: LossGradient


def recording(subject: Subject, name: str) -> Recording:
    """The recorded updates on one of `PROBES`, made once for each subject.

    Raises: NotAsked if the agent offers no hook "gradient", is set up so that its update is another one, refuses the
        task or does not leave its reference.
    """
    if name not in subject.recordings:
        try:
            subject.recordings[name] = _record(subject, probe_task(PROBES[name]))
        except NotAsked as reason:
            subject.recordings[name] = reason
    found: Recording | NotAsked = subject.recordings[name]
    if isinstance(found, NotAsked):
        raise found
    return found


def plain_agent(subject: Subject, env: Any, masked: bool) -> Agent:
    """An untrained agent whose step is one policy gradient, as far as its config can say. Raises: NotAsked."""
    try:
        agent = subject.make_plain(env)
    except (ValueError, TypeError) as error:
        if masked and "mask" in str(error):
            raise NotAsked(f"the agent refuses a task with a grammar mask: {error}") from None
        raise
    config = agent.config
    for setting, value in PLAIN.items():
        if hasattr(config, setting) and getattr(config, setting) != value:
            raise NotAsked(f"the agent has {setting}={getattr(config, setting)!r}; the check needs {value!r}")
    return agent


def _record(subject: Subject, task: Any) -> Recording:
    env = probe_env(task, EPISODES)
    agent = plain_agent(subject, env, task.mask is not None)
    play = hook(agent, "gradient")
    tree = prefix_tree(task)
    _move(agent, task, tree)
    exact = exact_gradients(task, agent)
    if exact.values.kl < _LEAST_MOVED:
        raise NotAsked(
            f"the policy stays {exact.values.kl:.2g} nats from its reference in {_MOVES} iterations"
        )
    size = task.vocabulary.size
    updates, values = np.zeros((BATCHES, exact.states * size)), np.zeros((BATCHES, exact.states))
    used = foreign = 0
    before = task.scorer.tokens
    batches: list[LossGradient] = []
    for number in range(BATCHES):
        batch: LossGradient = play(env, number)
        batches.append(batch)
        states = _places(exact, batch)
        touched = (batch.logits != 0).any(1)
        moved = touched if batch.values is None else touched | (batch.values != 0)
        foreign += int((moved & (states < 0)).sum())
        known = states >= 0
        seen = known & touched
        used += len(np.unique(np.stack([batch.rows[seen], batch.columns[seen]]), axis=1).T)
        np.add.at(updates[number].reshape(-1, size), states[known], -batch.logits[known])
        if batch.values is not None:
            np.add.at(values[number], states[known], batch.values[known])
    critic = values if batches[0].values is not None else None
    return Recording(agent, exact, updates, critic, task.scorer.tokens - before, used, foreign, batches[0])


def _move(agent: Agent, task: Any, tree: PrefixTree) -> None:
    """Trains the agent on another reward until its policy is away from the reference, and from this task's optimum."""

    def far(metrics: Metrics) -> bool:
        return policy_values(tree, agent).kl > _MOVED

    agent.learn(probe_env(replace(task, reward=_decoy), _MOVE_EPISODES), _MOVES * _MOVE_EPISODES, far)


def _places(exact: ExactGradients, batch: LossGradient) -> NDArray[np.int64]:
    """(N,) index of the state of every output, -1 where nobody acts."""
    rows = batch.input_ids.tolist()
    return np.array(
        [
            exact.place.get(tuple(rows[row][: column + 1]), -1)
            for row, column in zip(batch.rows.tolist(), batch.columns.tolist(), strict=True)
        ]
    )
