"""Record an agent's gradients on the logits of a small task, and compute the exact ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from gymnasium.vector import AutoresetMode

from textgym import Task, TokenVectorEnv, make_task
from textgym.checks import Bools, Floats, Ints
from textgym.lm.reference import NGramReference
from textgym.sampling import Policy
from textgym.solver import PolicyValues, PrefixTree, evaluate_edges, policy_values, prefix_tree
from textgym.state import TokenState
from textgym_agents.algorithms.fixed import reference_of
from textgym_agents.conformance.hooks import LossGradient, hook
from textgym_agents.conformance.under_test import PLAIN, AgentUnderTest, NotAsked
from textgym_agents.exact.objective import edge_mass, edge_weights, state_sums, unpaid
from textgym_agents.protocol import Agent, Metrics

WORDS = ("a", "b", "c", "<end>", "<halt>")
STOPS = ("<end>", "<halt>")
EMPTY_ROWS = 1
BATCHES, EPISODES = 32, 240  # groups of 2, 3, 4, 5, 6 and 8 fit in
_MOVES, _MOVE_EPISODES, _MOVED = 48, 48, 0.5  # iterations of so many episodes, or until so many nats
_LEAST_MOVED = 0.02  # nats


def _paid(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """Pay by the letters, the length and the prompt, one of which is worth much more than the other."""
    return [
        (1.0 if prompt == "a b" else 0.0)
        + text.split().count("a") * (0.5 if prompt == "a b" else -0.5)
        + 0.5 * (text.split()[:1] == ["c"])
        + 0.5 * (len(text.split()) <= 1)
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def _decoy(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """Pay for what the task itself does not: an agent that learns it is away from its start and from the optimum."""
    return [
        1.5 * text.split().count("b") + 0.5 * len(text.split()) + 0.5 * (text.split()[1:2] == ["a"])
        for text in completions
    ]


def gradient_task(gamma: float = 1.0, masked: bool = False) -> Task:
    """Return a task of two unequal prompts, three letters, two stop tokens and an uneven reference of two tokens.

    Args:
        masked: whether a grammar forbids to write a token twice in a row.
    """
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
        gamma=gamma,
        reference=NGramReference(table),
    )
    return replace(task, mask=_no_repetition) if masked else task


TASKS: Mapping[str, Callable[[], Task]] = {
    "plain": gradient_task,
    "discounted": partial(gradient_task, gamma=0.6),
    "masked": partial(gradient_task, masked=True),
}
"""The tasks whose gradients are recorded."""


def _no_repetition(states: Sequence[TokenState]) -> Bools:
    masks = np.ones((len(states), len(WORDS) + EMPTY_ROWS), dtype=np.bool_)
    masks[:, len(WORDS) :] = False
    for row, state in enumerate(states):
        masks[row, state.tokens[-1]] = False
    return masks


def probe_env(task: Task, episodes: int) -> TokenVectorEnv:
    """Return an environment of the task that waits for `reset` when all episodes ended."""
    return TokenVectorEnv(task, episodes, autoreset_mode=AutoresetMode.DISABLED)


@dataclass(frozen=True)
class ExactGradients:
    """The parts of the gradient of J on the logits of every running state, flattened to (D,): D = states times V.

    Attributes:
        values: of the policy.
        place: the tokens of every running state -> its index among them.
        edge: (E,) the entry in D of every edge.
        parts: (D, 3) of E[R], of KL(pi || ref) per episode, and of the entropy summed over the states visited, these
            held fixed as a bonus in a loss does. Reward units and nats.
        mass: (D,) rho d(s) pi(a given s); 0 at illegal tokens.
    """

    values: PolicyValues
    place: dict[tuple[int, ...], int] = field(repr=False)
    edge: Ints = field(repr=False)
    parts: Floats = field(repr=False)
    mass: Floats = field(repr=False)

    @property
    def tree(self) -> PrefixTree:
        """The states of the task."""
        return self.values.tree

    @property
    def states(self) -> int:
        """The number of running states."""
        return len(self.place)

    def per_edge(self, edges: Sequence[Floats]) -> Floats:
        """Return (D,) from arrays per edge, one for each depth."""
        result = np.zeros(len(self.mass))
        result[self.edge] = np.concatenate(edges)
        return result

    def per_state(self, values: Sequence[Floats]) -> Floats:
        """Return the entries of the running states (S,) from arrays per state, one for each depth."""
        levels = self.tree.levels[:-1]
        return np.concatenate([own[level.running] for own, level in zip(values, levels, strict=False)])


def exact_gradients(task: Task, agent: Policy) -> ExactGradients:
    """Return the exact parts of grad J at a policy, by summing over all states. Raises: as `policy_values`."""
    tree = prefix_tree(task)
    values = policy_values(tree, agent, reference_of(agent, task))
    place: dict[tuple[int, ...], int] = {}
    edge: list[Ints] = []
    for depth, level in enumerate(tree.levels[:-1]):
        below = tree.levels[depth + 1]
        index = len(place) + np.cumsum(~level.finished) - 1
        edge.append(index[below.parent] * task.vocabulary.size + below.action)
        shown = tree.observations(depth, level.running)
        for ids, mask in zip(shown["input_ids"], shown["attention_mask"], strict=True):
            place[tuple(ids[mask == 1].tolist())] = len(place)
    size = len(place) * task.vocabulary.size
    bare = ExactGradients(values, place, np.concatenate(edge), np.zeros((size, 3)), np.zeros(size))
    logs = [np.where(own > -np.inf, own, 0.0) for own in values.log_policy]
    negative_entropy = state_sums(tree, [np.exp(p) * q for p, q in zip(values.log_policy, logs, strict=True)])
    mass = edge_mass(values)
    surprise = [
        # An action that is never taken has none.
        np.where(own > 0, own * (total[level.parent] - log), 0.0)
        for own, total, log, level in zip(mass, negative_entropy, logs, tree.levels[1:], strict=False)
    ]
    paid = evaluate_edges(tree, values.log_policy, values.log_reference, 0.0, values.gamma)
    kl = [-edges for edges in edge_weights(unpaid(values))]
    parts = np.stack([bare.per_edge(edges) for edges in (edge_weights(paid), kl, surprise)], axis=1)
    return replace(bare, parts=parts, mass=bare.per_edge(mass))


@dataclass(frozen=True)
class UpdateRecord:
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


def recording(tested: AgentUnderTest, name: str) -> UpdateRecord:
    """Return the recorded updates on one of `TASKS`, which are recorded once.

    Raises: NotAsked if the agent offers no hook "gradient", is set up so that its update is another one, refuses the
        task or does not leave its reference.
    """
    if name not in tested.recordings:
        try:
            tested.recordings[name] = _record(tested, TASKS[name]())
        except NotAsked as reason:
            tested.recordings[name] = reason
    found = tested.recordings[name]
    if isinstance(found, NotAsked):
        raise found
    assert isinstance(found, UpdateRecord)
    return found


def plain_agent(tested: AgentUnderTest, env: TokenVectorEnv, masked: bool) -> Agent:
    """Return an untrained agent whose step is one policy gradient, as far as its config can say. Raises: NotAsked."""
    try:
        agent = tested.make_plain(env)
    except (ValueError, TypeError) as error:
        if masked and "mask" in str(error):
            raise NotAsked(f"the agent refuses a task with a grammar mask: {error}") from None
        raise
    config = agent.config
    for setting, value in PLAIN.items():
        if hasattr(config, setting) and getattr(config, setting) != value:
            raise NotAsked(f"the agent has {setting}={getattr(config, setting)!r}; the check needs {value!r}")
    return agent


def _record(tested: AgentUnderTest, task: Task) -> UpdateRecord:
    env = probe_env(task, EPISODES)
    agent = plain_agent(tested, env, task.mask is not None)
    play = hook(agent, "gradient")
    tree = prefix_tree(task)
    _move(agent, task, tree)
    exact = exact_gradients(task, agent)
    if exact.values.kl < _LEAST_MOVED:
        raise NotAsked(f"the policy stays {exact.values.kl:.2g} nats from its reference in {_MOVES} iterations")
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
    played = task.scorer.tokens - before - sum(batch.extra_tokens for batch in batches)
    return UpdateRecord(agent, exact, updates, critic, played, used, foreign, batches[0])


def _move(agent: Agent, task: Task, tree: PrefixTree) -> None:
    """Train the agent on another reward until its policy is away from the reference, and from this task's optimum."""

    def far(metrics: Metrics) -> bool:
        return policy_values(tree, agent).kl > _MOVED

    agent.learn(probe_env(replace(task, reward=_decoy), _MOVE_EPISODES), _MOVES * _MOVE_EPISODES, far)


def _places(exact: ExactGradients, batch: LossGradient) -> Ints:
    """Return (N,) the index of the state of every output, -1 where nobody acts."""
    rows = batch.input_ids.tolist()
    return np.array(
        [
            exact.place.get(tuple(rows[row][: column + 1]), -1)
            for row, column in zip(batch.rows.tolist(), batch.columns.tolist(), strict=True)
        ]
    )
