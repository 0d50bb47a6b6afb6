"""Plan for batches of states: search from those that are new, and keep what was found."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from textgym.checks import Bools, Floats, Ints
from textgym.lm.reference import Reference
from textgym.rewards import TextGymWarning
from textgym.rewards.scorer import scorers_restored
from textgym.solver.build import legal_tokens
from textgym.state import ENVIRONMENT, TokenState
from textgym.task import Task, refuse_seeds
from textgym_agents.mcts.forest import Forest, Key, Model, key_of, likeliest, nodes_in_memory
from textgym_agents.mcts.search import Evaluator, MCTSConfig, Search, soft_result
from textgym_agents.protocol import Observation, StateFinder, prompt_lengths, token_rows
from textgym_agents.tabular.policies import greedy, normalised

_ROOTS_AT_ONCE = 512
_NUMBERS_AT_ONCE = 2**25  # of log-probabilities over whole vocabularies: 256 MiB for the prior, once more for pi_ref
_REPLIES_AT_ONCE = 16


@dataclass(frozen=True)
class Regret:
    """How far a search stays below the optimum, means over prompts in reward units at time 0.

    Attributes:
        optimum: V*(s0), of J with soft backups, else of the return. regret: V*(s0) less V(s0) of the policy that
            searches before every token, >= 0. error: V(s0) as the search has it, less V*(s0).
        nodes: of the tree in the end. scored: completions that were scored for it.
    """

    optimum: float
    regret: float
    error: float
    nodes: int
    scored: int


class Planner:
    """Search results by state.

    Args:
        task: the task. config: the settings. beta: > 0 with soft backups. guide, reference: see `Evaluator`.

    Attributes:
        forest: what was found. searches: rounds of searching. scored: completions that were scored for it.
    Raises: ValueError for a guide that does not serve, or too little memory for one search.
    """

    def __init__(
        self, task: Task, config: MCTSConfig, beta: float, guide: object = None, reference: Reference | None = None
    ) -> None:
        refuse_seeds(task)
        if task.turns is not None and task.noisy:
            raise ValueError(f"task {task.name!r}: a search takes turns, or noisy rewards, not both")
        self._task, self._config, self._beta = task, config, beta
        candidates = min(config.candidates, task.vocabulary.size)
        most = nodes_in_memory(candidates, config.memory)
        if most <= config.simulations:
            raise ValueError(
                f"memory={config.memory!r} MiB holds {most} nodes of {candidates} candidates; "
                f"allowed is more than simulations={config.simulations} of them"
            )
        self.forest = Forest(candidates, most)
        self.finder = StateFinder(task, scored=True)
        self._evaluator = Evaluator(task, config, beta, guide, reference)
        self._models: dict[tuple[str, int], Model] = {}
        self.searches = self.scored = 0

    def plan(self, observation: Observation, masks: Bools | None = None, anew: bool = False) -> tuple[Floats, Floats]:
        """Return policy and value of a batch of states.

        Where an episode has ended nothing is searched: the policy is uniform and the value 0.

        Args:
            observation: of B states. masks: (B, V) tokens that the grammar allows; None: all.
            anew: search also where there is an answer.
        Returns: log-probabilities (B, V), nats, and V (B,), reward units at time 0.
        """
        rows = self._keys(observation)
        first = {key: row for row, key in reversed(list(enumerate(rows)))}
        distinct = sorted(row for key, row in first.items() if not self._has_ended(key))
        log_policy = np.full((len(rows), self._task.vocabulary.size), -np.log(self._task.vocabulary.size))
        values = np.zeros(len(rows))
        most = _NUMBERS_AT_ONCE // self._task.vocabulary.size
        start = 0
        with scorers_restored(self._task.scorer, self._task.gold_scorer):
            while start < len(distinct):
                room = (self.forest.most - len(self.forest)) // (self._config.simulations + 1)
                part = distinct[start : start + max(1, min(_ROOTS_AT_ONCE, most, room))]
                start += len(part)
                seen = {name: array[part] for name, array in observation.items()}
                nodes = self._searched([rows[row] for row in part], seen, anew)
                log_policy[part] = self._whole(nodes, seen, None if masks is None else masks[part])
                values[part] = self.forest.values[nodes]
        places = [first[key] for key in rows]
        return log_policy[places], values[places]

    def candidates(self, observation: Observation, log_policy: Floats) -> Ints:
        """Return the tokens (B, k) that were considered in states for which `plan` has just returned log_policy (B, V).

        For a state that is lost, since the tree was full, they are the likeliest ones of the policy.
        """
        forest = self.forest
        nodes = np.array([forest.index.get(key, -1) for key in self._keys(observation)])
        tokens, lost = forest.actions[nodes, : forest.candidates], nodes < 0
        if lost.any():
            tokens[lost] = likeliest(log_policy[lost], forest.candidates)[0]
        return tokens

    def log_reference(self, observation: Observation, masks: Bools | None = None) -> Floats:
        """Return pi_ref (B, V), nats, over the legal tokens."""
        return self._evaluator.log_reference(observation, masks)

    def forget_answers(self) -> None:
        """Search again for the next questions, from the tree as it is."""
        self.forest.answers[:] = np.nan

    def _keys(self, observation: Observation) -> list[Key]:
        starts, tokens = prompt_lengths(observation).tolist(), token_rows(observation)
        places: list[tuple[int, ...]] = [()] * len(starts)
        if self._task.turns is not None:
            wrote = observation["segment_ids"] == ENVIRONMENT
            places = [tuple((np.flatnonzero(row) - start).tolist()) for row, start in zip(wrote, starts, strict=True)]
        return [*zip(starts, tokens, places, strict=True)]

    def _has_ended(self, state: Key) -> bool:
        start, tokens, environment = state
        if self._task.turns is not None:
            return self._task.turns.over(self.finder.state(tokens, start, environment)[1])
        written = len(tokens) - start
        return written > 0 and (written >= self._task.max_new_tokens or tokens[-1] in self._task.vocabulary.stop_ids)

    def _searched(self, states: list[Key], observation: Observation, anew: bool) -> Ints:
        """Return the nodes of distinct states, with answers."""
        forest = self.forest
        if len(forest) + len(states) * (self._config.simulations + 1) > forest.most:
            warnings.warn(
                f"the tree is full at {len(forest)} nodes and is emptied; raise memory={self._config.memory!r} MiB",
                TextGymWarning,
                stacklevel=4,
            )
            forest.clear()
        asked = [
            row
            for row, key in enumerate(states)
            if anew or key not in forest.index or np.isnan(forest.answers[forest.index[key]]).all()
        ]
        if asked:
            generator = np.random.default_rng([self._config.seed, self.searches, 1])
            self.searches += 1
            found = self.finder.states({name: array[asked] for name, array in observation.items()})
            for split in sorted({split for split, _ in found}):
                self._search(split, [state for own, state in found if own == split], generator)
        return np.array([forest.index[key] for key in states], dtype=np.int64)

    def _search(self, split: str, states: list[TokenState], generator: np.random.Generator) -> None:
        forest, model = self.forest, self._model(split, len(states))
        before = model.scored
        new = [state for state in states if key_of(state) not in forest.index]
        if new:
            new = model.with_seeds(model.with_potentials(new), generator)
            forest.add(new, [split] * len(new), self._evaluator.evaluate(model, model.place(new), generator))
        roots = np.array([forest.index[key_of(state)] for state in states], dtype=np.int64)
        Search(forest, model, self._evaluator, roots, generator).run(self._config.simulations)
        forest.answers[roots] = self._answer(roots)
        self.scored += model.scored - before

    def _answer(self, nodes: Ints) -> Floats:
        """Return the policy over the candidates of searched nodes, log-probabilities (n, k)."""
        forest = self.forest
        values, known = forest.action_values(nodes)
        if self._config.backup == "soft":
            return normalised(soft_result(forest, nodes, self._beta)[1])
        if self._config.backup == "max":
            return greedy(values, known, forest.log_prior[nodes])
        visits = forest.visits[nodes]
        with np.errstate(divide="ignore"):
            if self._config.temperature:
                return normalised(np.log(visits) / self._config.temperature)
            best = visits == visits.max(1, keepdims=True)
            # Of equally many visits the better value.
            best &= values >= np.where(best, values, -np.inf).max(1, keepdims=True)
            return np.asarray(np.log(best / best.sum(1, keepdims=True)))

    def _whole(self, nodes: Ints, observation: Observation, masks: Bools | None) -> Floats:
        """Return the answers over the whole vocabulary, log-probabilities (n, V)."""
        forest = self.forest
        log_prior, answers, actions = forest.log_prior[nodes], forest.answers[nodes], forest.actions[nodes]
        rows, columns = np.nonzero(log_prior > -np.inf)
        whole = np.full((len(nodes), self._task.vocabulary.size), -np.inf)
        never = np.zeros(whole.shape, dtype=np.bool_)
        if self._config.backup == "soft" and forest.candidates < whole.shape[1]:
            # Tokens that are no candidates keep the prior's share, like candidates that were not tried.
            if masks is None and self._task.mask is not None:
                masks = legal_tokens(self._task, [forest.states[node] for node in nodes.tolist()])
            whole = np.array(self._evaluator.log_prior(observation, masks))
            if self._config.prior != "reference":
                never = np.isneginf(self._evaluator.log_reference(observation, masks))
            answers = answers + np.log(np.exp(log_prior).sum(1, keepdims=True))
        whole[rows, actions[rows, columns]] = answers[rows, columns]
        return normalised(np.where(never, -np.inf, whole)) if never.any() else whole

    def _model(self, split: str, rows: int) -> Model:
        rows = rows if self._task.turns is None else max(rows, _REPLIES_AT_ONCE)
        size = 1 << (rows - 1).bit_length()  # few different ones, so that they are kept
        if (split, size) not in self._models:
            self._models[split, size] = Model(self._task, split, size)
        return self._models[split, size]
