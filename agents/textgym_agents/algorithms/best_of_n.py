"""Best-of-n: answer with the best of n completions of the reference, by the task's own reward, without learning."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from textgym.best_of_n import best_of_n_edges, highest, noise_deviation, sampled_kl
from textgym.checks import Floats, Ints
from textgym.estimates import expected_returns
from textgym.lm.reference import restricted
from textgym.play import Turn, play_batch
from textgym.rewards.scorer import scorers_restored
from textgym.sampling import play
from textgym.solver import PrefixTree, UnsolvableError
from textgym.state import TokenState
from textgym.task import Task, make_reference
from textgym.vector import batch_env
from textgym_agents.algorithms.fixed import NonLearner
from textgym_agents.config import at_least_one, require
from textgym_agents.protocol import Observation, StateFinder, token_rows
from textgym_agents.tabular.policies import draw

_ROWS_AT_ONCE = 512
_KL_SAMPLES = 8  # completions of each prompt that its KL is estimated from, for each one that it chooses from
_KL_SAMPLES_IN_ALL = 4096  # at least: with few prompts each has to be known better
_NOISY_IN_ALL = 1024  # instead, where rewards are noisy: each sample is a component of the returns' distribution
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class BestOfNConfig:
    """Settings of best-of-n. Raises: ValueError for a number out of range."""

    n: int = 16
    """Completions that an answer is chosen from; turns, where the environment answers."""
    clones: int = 8
    """Where the environment answers: how often the rest of the episode is played behind each turn, its mean return
    being what the turn is chosen by."""
    seed: int = 0
    """Seeds the sampling of completions."""

    def __post_init__(self) -> None:
        at_least_one(self, "n", "clones")
        require("seed", self.seed, self.seed >= 0, "an integer >= 0")


@dataclass
class _Plan:
    """A whole sequence, prompt and answer, and how many of its tokens the next observation is to show."""

    tokens: Tokens
    shown: int

    def leads_to(self, state: Tokens) -> bool:
        """Return whether a row stands where this plan has brought it."""
        return len(state) == self.shown and state == self.tokens[: self.shown]

    def next(self) -> int:
        """Return the token to write; behind the end, where it is ignored, the last one."""
        token = self.tokens[min(self.shown, len(self.tokens) - 1)]
        self.shown = min(self.shown + 1, len(self.tokens))
        return token


class BestOfN(NonLearner):
    """A policy over whole answers: in a state that it has not planned for it samples n completions of the reference,
    scores them in an environment of its own, and then writes the best one token by token.

    It has no next-token probabilities. A row of observations that follows its plan is answered from its plan; any
    other state is planned anew, from where it stands. The reward is the task's: where it is noisy, so is the choice.
    What it does as a whole is known all the same: exactly on a solvable task (`edge_log_probs`), from samples of the
    reference elsewhere (`sequence_kl`).

    In a task with turns it chooses the text of one turn: behind each of n candidates the episode is played to its end
    several times, from clones in which what is hidden is drawn anew given the tokens seen. What it does as a whole is
    not known there.

    Args:
        task: what `env.unwrapped.task` holds: supplies prompts, reference and reward.
        config: None takes the defaults.
    Raises: ValueError for a reference that cannot be loaded.
    Source: Stiennon et al. (2020), arXiv:2009.01325, section 4.1.
    """

    name = "best-of-n"
    config: BestOfNConfig
    config_type = BestOfNConfig

    def __init__(self, task: Task, config: BestOfNConfig | None = None) -> None:
        self.task = task
        self.config = config or BestOfNConfig()
        self._reference = make_reference(task)
        self._generator = np.random.default_rng([self.config.seed, 2])
        self._plans: list[_Plan] = []
        self._finder = StateFinder(task)

    def edge_log_probs(self, tree: PrefixTree, log_reference: tuple[Floats, ...]) -> tuple[Floats, ...] | None:
        """Return the exact log-probability of every edge of a solvable task, see `best_of_n_edges`.

        Args:
            log_reference: per edge, nats: of the reference that this agent samples.
        Returns: nats; None for a noisy reward that declares no density of its noise, and for a task with turns.
        """
        if tree.task.turns is not None:
            return None
        try:
            return best_of_n_edges(tree, log_reference, self.config.n, tree.task.gamma)
        except UnsolvableError:
            return None

    def sequence_kl(self, task: Task, split: str, seed: int) -> tuple[Floats, Floats] | None:
        """Return the KL to the reference of a whole answer, estimated from samples of the reference, see `sampled_kl`.

        Samples are 8 n to each prompt, and 4,096 in all at least, 1,024 where the reward is noisy.

        Args:
            task: whose prompts and reward; split: of its prompts; seed: of the sampling.
        Returns: nats of each prompt (P,), and bootstrap replicates (R, P); None where the reward is noisy and declares
            no density of its noise, and for a task with turns.
        """
        if task.turns is not None:
            return None
        n, prompts = self.config.n, len(task.prompt_set(split).texts)
        try:
            deviation = noise_deviation(task)
        except UnsolvableError:
            return None
        in_all = _NOISY_IN_ALL if deviation else _KL_SAMPLES_IN_ALL
        count = max(_KL_SAMPLES * n, -(-in_all // prompts))
        # Not the samples that J* may have been estimated from.
        own_seed = int(np.random.default_rng([seed, 7]).integers(2**31))
        episodes = play(self._reference, task, split=split, per_prompt=count, seed=own_seed)
        deviations = deviation * np.power(task.gamma, episodes.lengths - 1.0)
        return sampled_kl(expected_returns(task, episodes), deviations, n, seed)

    def act(self, observation: Observation, deterministic: bool = False) -> Ints:
        """See `Agent.act`. `deterministic` changes nothing: the likeliest answer is not known."""
        states = token_rows(observation)
        if len(self._plans) != len(states):
            self._plans = [_Plan((), -1) for _ in states]
        new = [row for row, state in enumerate(states) if not self._plans[row].leads_to(state)]
        played = self.config.n * (1 if self.task.turns is None else self.config.clones)  # for each row
        at_once = max(_ROWS_AT_ONCE // played, 1)
        for start in range(0, len(new), at_once):
            rows = new[start : start + at_once]
            seen = {name: array[rows] for name, array in observation.items()}
            for row, tokens in zip(rows, self._best(seen), strict=True):
                self._plans[row] = _Plan(tokens, len(states[row]))
        return np.array([plan.next() for plan in self._plans])

    def log_probs(self, observation: Observation) -> None:
        """Return None: see `Agent.log_probs`."""

    def _best(self, observation: Observation) -> list[Tokens]:
        """Return the best of n continuations of each of these states, with the tokens before it."""
        found = self._finder.states(observation)
        result: list[Tokens] = [()] * len(found)
        choose = self._best_answers if self.task.turns is None else self._best_turns
        for split in sorted({split for split, _ in found}):
            rows = [row for row, (own, _) in enumerate(found) if own == split]
            for row, tokens in zip(rows, choose(split, [found[row][1] for row in rows]), strict=True):
                result[row] = tokens
        return result

    def _best_answers(self, split: str, states: list[TokenState]) -> list[Tokens]:
        n = self.config.n
        ends, returns = self._play(split, [state for state in states for _ in range(n)])
        # Of equals the first: as they were drawn independently, that is any of them.
        best = highest(returns.reshape(len(states), n))
        return [ends[row * n + int(place)].tokens for row, place in enumerate(best)]

    def _best_turns(self, split: str, states: list[TokenState]) -> list[Tokens]:
        """Return each state's tokens and those of the turn with the highest mean return over clones."""
        n, clones = self.config.n, self.config.clones
        starts = [state for state in states for _ in range(n)]
        ends, _ = self._play(split, self._redrawn(starts))
        turns = [_turn_behind(start, end) for start, end in zip(starts, ends, strict=True)]
        again = [start for start in starts for _ in range(clones)]
        _, returns = self._play(split, self._redrawn(again), [turn for turn in turns for _ in range(clones)])
        best = highest(returns.reshape(len(states), n, clones).mean(2))
        return [states[row].tokens + turns[row * n + int(place)] for row, place in enumerate(best)]

    def _redrawn(self, states: list[TokenState]) -> list[TokenState]:
        """Return the states with what is hidden drawn anew given the tokens seen."""
        assert self.task.turns is not None
        return [self.task.turns.redraw(state, self._generator) for state in states]

    def _play(
        self, split: str, starts: list[TokenState], forced: list[Tokens] | None = None
    ) -> tuple[list[TokenState], Floats]:
        """Continue states by the reference, behind given tokens. Returns: the ends and returns (N,)."""
        task = self.task
        env = batch_env(task, len(starts), split)
        given = [[] if forced is None else [*forced[row]] for row in range(len(starts))]
        if task.noisy:
            seeds = self._generator.integers(2**63, size=len(starts)).tolist()
            starts = [replace(start, episode_seed=seed) for start, seed in zip(starts, seeds, strict=True)]

        def choose(turn: Turn) -> Ints:
            logs = np.asarray(self._reference.log_probs(turn.observation), dtype=np.float64)[turn.rows]
            drawn = draw(restricted(logs, turn.masks), self._generator)
            pairs = zip(turn.rows.tolist(), drawn.tolist(), strict=True)
            return np.array([given[row].pop(0) if given[row] else token for row, token in pairs])

        with scorers_restored(task.scorer):
            played = play_batch(env, env.set_states(starts), choose)
        return env.get_states(), played.returns(task.gamma)


def _turn_behind(start: TokenState, end: TokenState) -> Tokens:
    """Return the tokens that the policy wrote behind a state, up to where the environment answered."""
    first = len(start.completion)
    answered = [place for place in end.environment if place >= first]
    return end.completion[first : answered[0] if answered else None]
