"""Tree search with PUCT from many roots at once: settings, and the prior and value of new states."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from textgym.checks import Bools, Floats, Ints
from textgym.lm.reference import Reference, UniformReference, over_legal
from textgym.solver import Solution, solve
from textgym.task import Task, make_reference
from textgym_agents.config import at_least_one, not_negative, only_with, positive, require, share
from textgym_agents.mcts.forest import ENDED, UNSEEN, Arrival, Forest, Leaves, Model, widened
from textgym_agents.protocol import Observation, as_agent
from textgym_agents.tabular.policies import hard_values, soft_values

if TYPE_CHECKING:
    from textgym_agents.lm.critic import Critic


Backup = Literal["soft", "mean", "max"]
Leaf = Literal["rollout", "values", "exact"]
Prior = Literal["reference", "uniform", "guide"]


@dataclass(frozen=True)
class MCTSConfig:
    """Settings of Monte-Carlo tree search.

    Raises: ValueError that names the setting, its value and what is allowed.
    """

    batch: int = 16
    """Episodes per iteration (sub-environments) during learning."""
    simulations: int = 100
    """Simulations from each state before its token is chosen; results already in the tree are kept."""
    backup: Backup = "soft"
    """soft: values of J; the policy is the reference times exp(Q / beta). mean: the mean of the simulations' returns;
    the policy follows the visit counts. max: the highest value found; the policy takes the actions that lead to it."""
    prior: Prior = "reference"
    """Probabilities that guide the search: the reference's, equal ones for all legal tokens, or the guide's."""
    leaf: Leaf = "rollout"
    """Value of a new state: the return of one completion (of the reference with soft backups, else of the prior), the
    guide's value, or the exact value (tasks that can be solved). The guide's value is V of J with soft backups; with
    "mean" and "max" it is what the guide was trained on, for most agents the return minus beta times the KL to come."""
    guide: str | None = None
    """Folder of a saved agent that supplies the prior, with `prior="guide"`, and the values of leaves, with
    `leaf="values"`."""
    candidates: int = 64
    """Maximum number of tokens considered in a state: the most likely ones of the prior."""
    widening: float | None = None
    """C of progressive widening: after N visits, the ceil(C N^widening_power) most likely candidates of a state are
    open, and one more if all of these are fully explored. None opens all of them at once."""
    widening_power: float = 0.5
    """Exponent of progressive widening, > 0 and at most 1."""
    temperature: float = 1.0
    """Temperature of the policy N^(1 / temperature) over visit counts, with backup="mean"; 0: the most visited
    token."""
    c_init: float = 1.25
    """Exploration constant of PUCT."""
    c_base: float = 19652.0
    """Number of visits after which exploration grows, by PUCT's logarithm."""
    root_noise: float = 0.0
    """Share of Dirichlet noise in the prior of the root state; the parameter is 10 / A for A candidates."""
    beta: float | None = None
    """KL coefficient of soft backups, reward units per nat; None: the task's beta."""
    memory: int = 1024
    """Maximum memory for the tree, MiB; a full tree is emptied."""
    seed: int = 0
    """Seed of prompts, completions and sampling."""

    def __post_init__(self) -> None:
        at_least_one(self, "batch", "simulations", "candidates", "memory")
        not_negative(self, "temperature", "c_init", "beta")
        positive(self, "c_base", "widening", "widening_power")
        share(self, "root_noise", "widening_power")
        only_with(self, "widening_power", self.widening is not None, "widening")
        only_with(self, "temperature", self.backup == "mean", "backup='mean'")
        asked = self.prior == "guide" or self.leaf == "values"
        only_with(self, "guide", asked, "prior='guide' or leaf='values'")
        require("seed", self.seed, self.seed >= 0, "an integer >= 0")


class Evaluator:
    """The prior and the value of states that a search sees for the first time.

    Args:
        task: the task. config: says which prior and which value. beta: of soft values.
        reference: pi_ref; None takes the task's.
        guide: has `log_probs` and, for `leaf="values"`, `values(observation)` (B,), reward units at time 0.

    By the guide's values a leaf is worth V of J with soft backups; an LM agent's value head is corrected for this
    where it leaves out the KL of the state itself (`critics.uncharged`). A guide whose training charged no KL (`kl`
    "k3", beta = 0, alphazero with backup="mean") has V of the return: too much for J, and right for "mean" and "max".
    With these two the guide's values are taken as they are: where training charged KL, a leaf is worth the return to
    come less the guide's beta times the KL to come, while an episode that ends in the search is worth its rewards.

    Raises: ValueError if the guide is missing, has not what is asked for, or nothing is asked of it.
    """

    def __init__(
        self, task: Task, config: MCTSConfig, beta: float, guide: object = None, reference: Reference | None = None
    ) -> None:
        self._task, self.config, self._guide = task, config, guide
        if reference is not None:
            self._reference = reference
        self.beta = beta if config.backup == "soft" else 0.0
        for asked, method in ((config.prior == "guide", "log_probs"), (config.leaf == "values", "values")):
            if asked and not _has(guide, method):
                what = "there is none" if guide is None else f"{type(guide).__name__} has no {method}"
                raise ValueError(f"guide: {what}; allowed is an agent with {method}(observation)")
        if guide is not None and config.prior != "guide" and config.leaf != "values":
            raise ValueError(
                f"guide: prior={config.prior!r} and leaf={config.leaf!r} ask nothing of it; "
                "allowed with a guide is prior='guide', leaf='values', or both"
            )
        self._solutions: dict[str, Solution] = {}

    @cached_property
    def _reference(self) -> Reference:
        return make_reference(self._task)

    @cached_property
    def _prior(self) -> Reference:
        if self.config.prior == "uniform":
            return UniformReference(self._task.vocabulary.allowed)
        if self.config.prior == "reference":
            return self._reference
        assert isinstance(self._guide, Reference)
        return self._guide

    @cached_property
    def _critic(self) -> Critic:
        from textgym_agents.lm.critic import critic_of, uncharged

        guide = as_agent(self._guide)
        if self.config.backup == "soft" and uncharged(guide):
            return critic_of(guide)
        # Asked in the same states as the prior: a guide that is both has computed its values already.
        return lambda observation, masks: np.asarray(guide.values(observation), dtype=np.float64)

    def log_prior(self, observation: Observation, masks: Bools | None) -> Floats:
        """Return the prior's log-probabilities (n, V), nats, over the legal tokens."""
        return self._over_legal(self._prior, observation, masks)

    def log_reference(self, observation: Observation, masks: Bools | None) -> Floats:
        """Return the reference's log-probabilities (n, V), nats, over the legal tokens."""
        return self._over_legal(self._reference, observation, masks)

    def _over_legal(self, policy: Reference, observation: Observation, masks: Bools | None) -> Floats:
        logs = np.asarray(policy.log_probs(observation), dtype=np.float64)
        return over_legal(logs, masks, self._task.vocabulary.allowed)

    def evaluate(self, model: Model, arrival: Arrival, generator: np.random.Generator) -> Leaves:
        """Evaluate where n moves led; the values of ended episodes are 0, and their distributions mean nothing."""
        going = ~arrival.finished
        observation = {name: array[going] for name, array in arrival.observation.items()}
        masks = None if arrival.masks is None else arrival.masks[going]
        soft = self.config.backup == "soft"
        log_prior = np.full((len(going), self._task.vocabulary.size), -np.inf)
        log_prior[going] = self.log_prior(observation, masks)
        log_reference = log_prior
        if soft and self._prior is not self._reference:
            log_reference = np.full_like(log_prior, -np.inf)
            log_reference[going] = self.log_reference(observation, masks)
        if self.config.leaf == "rollout":
            # Completions of the reference have no KL to be charged.
            policy = self.log_reference if soft else self.log_prior
            return Leaves(log_prior, log_reference, model.roll_out(arrival, policy, generator))
        values = np.zeros(len(going))
        if self.config.leaf == "exact":
            values[going] = self._solution(model.split).state_values(observation)
        else:
            values[going] = self._critic(observation, masks)
        return Leaves(log_prior, log_reference, values)

    def _solution(self, split: str) -> Solution:
        if split not in self._solutions:
            self._solutions[split] = solve(self._task, self._reference, beta=self.beta, split=split)
        return self._solutions[split]


def _has(guide: object, method: str) -> bool:
    """Return whether a guide can be asked for `log_probs`, or for `values`."""
    return callable(getattr(guide, method, None)) and (method != "values" or as_agent(guide).critic)


Level = tuple[Ints, Ints, Ints]
"""At one depth: the rows that came there, their nodes, and the columns chosen, (n,) each."""


class Search:
    """One search from some roots.

    Args:
        forest: what is known and what is found. model: with a row for every root.
        evaluator: prior and value of new states, and the settings. roots: (B,) nodes, of the model's split.
        generator: draws completions and breaks ties.
    """

    def __init__(
        self, forest: Forest, model: Model, evaluator: Evaluator, roots: Ints, generator: np.random.Generator
    ) -> None:
        self._forest, self._model, self._evaluator = forest, model, evaluator
        self._config, self._roots, self._generator = evaluator.config, roots, generator
        # Visits that teach nothing are left out, unless the answer is made of visits, or ends are paid with noise.
        self._skips = self._config.backup != "mean" and not model.task.noisy
        values, known = forest.action_values(roots)
        # The range of the values that each root has seen: PUCT compares them with probabilities, so they are scaled.
        self._low = np.where(known, values, np.inf).min(1)
        self._high = np.where(known, values, -np.inf).max(1)
        self._root_prior = self._noisy_prior()

    def run(self, simulations: int) -> None:
        """Simulate so many times from every root, then carry the result up to the roots' ancestors.

        It ends early where nothing is left to find out.
        """
        for _ in range(simulations):
            if self._skips and self._forest.solved[self._roots].all():
                break
            levels = self._select()
            nodes, columns = np.zeros_like(self._roots), np.zeros_like(self._roots)
            for rows, own, chosen in levels:  # the last of each row stays
                nodes[rows], columns[rows] = own, chosen
            self._expand(nodes, columns)
            self._back_up(levels)
        above = np.unique(self._forest.parents[self._roots])
        while above.size and above[-1] >= 0:
            above = above[above >= 0]
            self._revalue(above)
            above = np.unique(self._forest.parents[above])

    def _select(self) -> list[Level]:
        """Go from each root to an edge that leads nowhere yet, or to an end."""
        levels: list[Level] = []
        nodes, rows = self._roots, np.arange(len(self._roots))
        while rows.size:
            prior = np.exp(self._forest.log_prior[nodes]) if levels else self._root_prior
            columns = self._choose(rows, nodes, prior)
            levels.append((rows, nodes, columns))
            below = self._forest.children[nodes, columns]
            rows, nodes = rows[below >= 0], below[below >= 0]
        return levels

    def _choose(self, rows: Ints, nodes: Ints, prior: Floats) -> Ints:
        """Choose by PUCT, the argmax of Q + C P sqrt(N) / (1 + n) with C = log((1 + N + c_base) / c_base) + c_init.

        Q is scaled to [0, 1] by the range of values seen from the root; a token that was never tried has the value of
        its state. Source: Silver et al. (2017), arXiv:1712.01815, "Search"; constants and scaling as in Schrittwieser
        et al. (2020), arXiv:1911.08265, appendix B, equations 2 and 5. What is known to the end is not tried again:
        Winands et al. (2008), "Monte-Carlo Tree Search Solver".
        """
        forest, config = self._forest, self._config
        values, known = forest.action_values(nodes)
        values = np.where(known, values, forest.values[nodes][:, None])
        low, span = self._low[rows][:, None], (self._high - self._low)[rows][:, None]
        scaled = np.where(span > 0, np.clip((values - low) / np.where(span > 0, span, 1.0), 0.0, 1.0), 0.0)
        visits, log_prior = forest.visits[nodes], forest.log_prior[nodes]
        total = 1 + visits.sum(1, keepdims=True)  # the first visit made the node
        factor = config.c_init + np.log((1 + total + config.c_base) / config.c_base)
        scores = scaled + factor * prior * np.sqrt(total) / (1 + visits)
        scores = np.where(log_prior > -np.inf, scores, -np.inf)
        # Replies come as often as their chance says.
        scores = np.where(forest.chance[nodes][:, None], np.exp(log_prior) / np.maximum(visits, 1), scores)
        done = forest.done(nodes) if self._skips else np.zeros_like(known)
        if config.widening is not None:
            width = np.ceil(config.widening * total**config.widening_power)
            scores = np.where(forest.chance[nodes][:, None] | widened(log_prior, done, width), scores, -np.inf)
        if self._skips:
            scores = np.where(done & ~done.all(1, keepdims=True), -np.inf, scores)
        best = scores >= scores.max(1, keepdims=True) - 1e-12
        return np.asarray(np.where(best, self._generator.random(scores.shape), -1.0).argmax(1))

    def _noisy_prior(self) -> Floats:
        """Return the prior (B, k) at the roots, mixed with noise so that simulations try unlikely tokens, too.

        Source: Silver et al. (2017), arXiv:1712.01815, "Search", with a concentration by the number of moves.
        """
        logs, share = self._forest.log_prior[self._roots], self._config.root_noise
        prior: Floats = np.exp(logs)
        if not share:
            return prior
        open_ = logs > -np.inf
        draws = self._generator.gamma(np.broadcast_to(10.0 / open_.sum(1, keepdims=True), logs.shape)) * open_
        noise = (draws + 1e-300 * open_) / (draws + 1e-300 * open_).sum(1, keepdims=True)
        return np.asarray((1 - share) * prior + share * noise)

    def _expand(self, nodes: Ints, columns: Ints) -> None:
        """Follow the last edges, score what is new there and put it into the forest."""
        forest, model = self._forest, self._model
        children = forest.children[nodes, columns]
        # With noise an end is scored anew each time, and the mean counts.
        open_ = np.flatnonzero((children == UNSEEN) | ((children == ENDED) & bool(model.task.noisy)))
        if not open_.size:
            return
        if model.task.turns is not None:
            ending = [self._ends_turn(nodes[i], columns[i]) for i in open_.tolist()]
            for i in open_[ending].tolist():
                self._answer(int(nodes[i]), int(columns[i]))
            open_ = open_[~np.array(ending)]
            if not open_.size:
                return
        at, column = nodes[open_], columns[open_]
        starts = model.with_seeds([forest.states[node] for node in at.tolist()], self._generator)
        arrival = model.step(starts, forest.actions[at, column])
        before = forest.visits[at, column]
        old = forest.rewards[at, column]
        forest.rewards[at, column] = old + (arrival.rewards - old) / (1 + before)
        forest.children[at[arrival.finished], column[arrival.finished]] = ENDED
        going = np.flatnonzero(~arrival.finished)
        if going.size:
            leaves = self._evaluator.evaluate(model, arrival, self._generator)
            states = [arrival.states[i] for i in going.tolist()]
            below = forest.add(states, [model.split] * len(states), leaves.rows(going))
            forest.children[at[going], column[going]] = below
            forest.parents[below] = at[going]

    def _ends_turn(self, node: int, column: int) -> bool:
        turns, state = self._model.task.turns, self._forest.states[node]
        assert turns is not None
        return int(self._forest.actions[node, column]) in turns.ends or len(state.turn) + 1 == turns.tokens

    def _answer(self, node: int, column: int) -> None:
        """Put a chance node behind an edge that ends a turn, and all that the environment may reply below it."""
        forest, model = self._forest, self._model
        if forest.children[node, column] >= 0:  # another root came here in the same simulation
            return
        state, token = forest.states[node], int(forest.actions[node, column])
        there, rewards, chances = zip(*model.answers(state, token, self._generator), strict=True)
        asked = replace(state, completion=(*state.completion, token))
        forest.children[node, column] = chance = forest.add_chance(asked, model.split, chances)
        wider = forest.columns - self._root_prior.shape[1]
        self._root_prior = np.pad(self._root_prior, ((0, 0), (0, wider)))
        forest.parents[chance] = node
        forest.rewards[chance, : len(rewards)] = rewards
        forest.children[chance, : len(there)] = ENDED
        going = [i for i, each in enumerate(there) if each.finish_reason is None]
        for start in range(0, len(going), model.rows):
            part = going[start : start + model.rows]
            states = [there[i] for i in part]
            leaves = self._evaluator.evaluate(model, model.place(states), self._generator)
            below = forest.add(states, [model.split] * len(states), leaves)
            forest.children[chance, part], forest.parents[below] = below, chance
        self._revalue(np.array([chance]))

    def _back_up(self, levels: list[Level]) -> None:
        """Count the visits, and take over values from the leaves to the roots."""
        forest = self._forest
        for _, nodes, columns in levels:
            np.add.at(forest.visits, (nodes, columns), 1)
        for rows, nodes, columns in reversed(levels):
            self._revalue(np.unique(nodes))
            reached = forest.action_values(nodes)[0][np.arange(len(nodes)), columns]
            self._low[rows] = np.minimum(self._low[rows], reached)
            self._high[rows] = np.maximum(self._high[rows], reached)

    def _revalue(self, nodes: Ints) -> None:
        """Set V of nodes from Q of their visited candidates; from their own evaluation where none was visited.

        The mean is over all simulations, the one that made the node included, as in AlphaZero.
        """
        forest, own = self._forest, self._forest.own[nodes]
        values, known = forest.action_values(nodes)
        if self._config.backup == "mean":
            visits = forest.visits[nodes]
            total = own + (visits * np.where(known, values, 0.0)).sum(1)
            forest.values[nodes] = total / (1 + visits.sum(1))
        else:
            soft = self._config.backup == "soft"
            found = soft_result(forest, nodes, self._evaluator.beta)[0] if soft else hard_values(values, known)
            forest.values[nodes] = np.where(np.isnan(found), own, found)
        if forest.chance[nodes].any():
            expected = (np.exp(forest.log_prior[nodes]) * values).sum(1)
            forest.values[nodes] = np.where(forest.chance[nodes], expected, forest.values[nodes])
        forest.solved[nodes] = forest.done(nodes).all(1)


def soft_result(forest: Forest, nodes: Ints, beta: float) -> tuple[Floats, Floats]:
    """Return V (m,), NaN at leaves, and the policy over the candidates (m, k), unnormalised logs, by soft backups.

    What was not tried keeps the prior's share. A prior pi says by pi = ref exp((Q - V) / beta) what it takes the Q of
    a token to be, and V = beta log(sum ref exp(Q / beta) / sum pi), both over what was tried. Where the prior is the
    reference, the untried is as good as the tried; where all was tried, V is beta log E_ref[exp(Q / beta)]. What the
    reference never writes counts as tried, and has no share.
    """
    values, tried = forest.action_values(nodes)
    log_prior, log_reference = forest.log_prior[nodes], forest.log_reference[nodes]
    never = np.isneginf(log_reference)
    tried = (tried | never) & (log_prior > -np.inf)
    known = tried & ~never
    of_reference = soft_values(values, known, log_reference, beta)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [np.where(tried, np.exp(logs), 0.0).sum(1) for logs in (log_reference, log_prior)]
        result = of_reference + beta * np.log(shares[0] / shares[1])
    tilted = log_reference + (values - np.where(known.any(1), result, 0.0)[:, None]) / beta
    return result, np.where(known, tilted, np.where(never, -np.inf, log_prior))
