"""Best-of-n: sample n completions of the reference and answer with the one of highest task reward. No learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from textgym.best_of_n import best_of_n_edges, highest, noise_deviation, sampled_kl
from textgym.checks import Floats, Ints
from textgym.estimates import expected_returns
from textgym.lm.reference import over_legal
from textgym.play import Turn, play_batch
from textgym.rewards.scorer import scorers_restored
from textgym.sampling import play
from textgym.solver import PrefixTree, UnsolvableError
from textgym.state import TokenState
from textgym.task import Task, make_reference, refuse_seeds
from textgym.turns import Turns
from textgym.vector import batch_env
from textgym_agents.algorithms.fixed import NonLearner
from textgym_agents.config import at_least_one, require
from textgym_agents.protocol import Observation, StateFinder, token_rows
from textgym_agents.tabular.policies import draw

_ROWS_AT_ONCE = 512
_KL_SAMPLES = 8  # completions of each prompt that its KL is estimated from, for each one that it chooses from
_KL_SAMPLES_IN_ALL = 4096  # at least: with few prompts each has to be known better
_NOISY_IN_ALL = 1024  # instead, where rewards are noisy: each sample is a component of the returns' distribution
_CLONES = 16
"""Episodes that judge the text of a turn."""
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class BestOfNConfig:
    """Settings of best-of-n. Raises: ValueError for a number out of range."""

    n: int = 16
    """Number of completions to choose from."""
    seed: int = 0
    """Seed of the completions."""

    def __post_init__(self) -> None:
        at_least_one(self, "n")
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
    """A policy over whole answers: it samples n completions of the reference, scores them, and writes the best one.

    It has no next-token probabilities. It plans in every state that it has not planned for: it samples and scores the
    completions in an environment of its own, and then writes the best one token by token. A row of observations that
    follows its plan is answered from the plan; any other state is planned anew, starting there. Its scores are the
    task's rewards: if these are noisy, the choice is, too.

    In a task with turns it chooses the text of one turn at a time, by the mean return of 16 episodes in which the
    reference continues; what the environment hides is drawn anew in each of them, given the tokens seen. The
    distribution of its episodes is then unknown. In other tasks it is known: exactly if the task can be solved
    (`edge_log_probs`), else from samples of the reference (`sequence_kl`).

    Args:
        task: `env.unwrapped.task`; supplies prompts, reference and reward.
        config: the settings; None takes the defaults.
    Raises: ValueError for an environment that hides a seed, or a reference that cannot be loaded.
    Source: Stiennon et al. (2020), arXiv:2009.01325, section 4.1.
    """

    name = "best-of-n"
    config: BestOfNConfig
    config_type = BestOfNConfig

    def __init__(self, task: Task, config: BestOfNConfig | None = None) -> None:
        refuse_seeds(task)
        self.task = task
        self.config = config or BestOfNConfig()
        self._reference = make_reference(task)
        self._generator = np.random.default_rng([self.config.seed, 2])
        self._plans: list[_Plan] = []
        self._finder = StateFinder(task, scored=True)

    def edge_log_probs(self, tree: PrefixTree, log_reference: tuple[Floats, ...]) -> tuple[Floats, ...] | None:
        """Return the exact log-probability of every edge of a solvable task, see `best_of_n_edges`.

        Args:
            log_reference: per edge, nats: of the reference that this agent samples.
        Returns: nats; None for a noisy reward that declares no density of its noise, and in tasks with turns.
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
            no density of its noise, or the task has turns.
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
        at_once = max(_ROWS_AT_ONCE // (self.config.n * (1 if self.task.turns is None else _CLONES)), 1)
        for start in range(0, len(new), at_once):
            rows = new[start : start + at_once]
            seen = {name: array[rows] for name, array in observation.items()}
            for row, tokens in zip(rows, self._best(seen), strict=True):
                self._plans[row] = _Plan(tokens, len(states[row]))
        return np.array([plan.next() for plan in self._plans])

    def log_probs(self, observation: Observation) -> None:
        """Return None: see `Agent.log_probs`."""

    def _best(self, observation: Observation) -> list[Tokens]:
        """Return the best of n continuations of each of these states, as whole sequences."""
        found = self._finder.states(observation)
        turns, idle = self.task.turns, int(np.flatnonzero(self.task.vocabulary.allowed)[0])
        # Where the episode has ended any token will do: it is ignored.
        result: list[Tokens] = [(*state.tokens, idle) for _, state in found]
        going = [row for row, (_, state) in enumerate(found) if turns is None or not turns.over(state)]
        for split in sorted({found[row][0] for row in going}):
            rows = [row for row in going if found[row][0] == split]
            starts = [found[row][1] for row in rows for _ in range(self.config.n)]
            ends, returns = self._play(split, starts) if self.task.turns is None else self._judged(split, starts)
            # Of equals the first: as they were drawn independently, that is any of them.
            best = highest(returns.reshape(len(rows), self.config.n))
            for place, row in enumerate(rows):
                result[row] = ends[place * self.config.n + int(best[place])]
        return result

    def _judged(self, split: str, starts: list[TokenState]) -> tuple[list[Tokens], Floats]:
        """Return sequences with one more turn by the reference, of n a state, and the mean returns of their clones."""
        turns, clones, n = self.task.turns, _CLONES, self.config.n
        assert turns is not None
        drawn = [turns.redraw(start, self._generator) for start in starts]
        texts = [
            _first_turn(whole[len(start.tokens) :], len(start.turn), turns)
            for start, whole in zip(starts, self._play(split, drawn)[0], strict=True)
        ]
        # The n texts of a state meet the same hidden things.
        hidden = [turns.redraw(start, self._generator) for start in starts[::n] for _ in range(clones)]
        every = [hidden[i // n * clones + k] for i in range(len(starts)) for k in range(clones)]
        returns = self._play(split, every, [text for text in texts for _ in range(clones)])[1]
        ends = [start.tokens + text for start, text in zip(starts, texts, strict=True)]
        return ends, returns.reshape(-1, clones).mean(1)

    def _play(self, split: str, starts: list[TokenState], texts: Sequence[Tokens] = ()) -> tuple[list[Tokens], Floats]:
        """Continue each state by the reference, behind a text where there are texts.

        Returns: whole sequences and their returns (N,).
        """
        task = self.task
        env = batch_env(task, len(starts), split)
        if task.noisy:
            seeds = self._generator.integers(2**63, size=len(starts)).tolist()
            starts = [replace(start, episode_seed=seed) for start, seed in zip(starts, seeds, strict=True)]

        def choose(turn: Turn) -> Ints:
            logs = np.asarray(self._reference.log_probs(turn.observation), dtype=np.float64)[turn.rows]
            tokens = draw(over_legal(logs, turn.masks, task.vocabulary.allowed), self._generator)
            given = [texts[row][turn.time : turn.time + 1] if texts else () for row in turn.rows.tolist()]
            return np.array([own[0] if own else token for own, token in zip(given, tokens.tolist(), strict=True)])

        with scorers_restored(task.scorer):
            played = play_batch(env, env.set_states(starts), choose)
        return [state.tokens for state in env.get_states()], played.returns(task.gamma)


def _first_turn(tokens: Tokens, written: int, turns: Turns) -> Tokens:
    """Return the tokens up to the end of the turn of which so many are `written` before them."""
    places = range(len(tokens))
    end = next(i for i in places if tokens[i] in turns.ends or written + i + 1 == turns.tokens)
    return tokens[: end + 1]
