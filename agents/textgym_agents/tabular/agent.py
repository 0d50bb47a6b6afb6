"""Q-learning, SARSA and Monte-Carlo control on a table of states, learned backwards from whole episodes."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from textgym.checks import Bools, Floats, Ints, check_count
from textgym.lm.reference import over_legal
from textgym.play import PlayedBatch, Turn, check_env, play_batch
from textgym.rewards import TextGymWarning
from textgym.task import Task, make_reference
from textgym.vector import TokenVectorEnv
from textgym_agents.protocol import Callback, DrawingAgent, Metrics, Observation
from textgym_agents.saving import Saved, count, read_saved, write_saved
from textgym_agents.tabular.config import TabularConfig
from textgym_agents.tabular.policies import (
    UNKNOWN,
    Grammar,
    StateTable,
    boltzmann,
    draw,
    greedy,
    hard_values,
    log_ratios,
    mixed,
    rows_in_memory,
    scheduled,
    soft_values,
    state_keys,
    update_weight,
)

_COUNTERS = ("iteration", "episodes", "budget")


@dataclass(frozen=True)
class Decision:
    """The decisions of an agent in the n running rows of one step.

    Attributes:
        rows: (n,) sub-environments.
        columns: (n,) the actions, as places among the vocabulary's A allowed tokens.
        states: (n,) the rows of its table. legal: (n, A) tokens that the grammar allows, None for all.
        log_reference: (n, A) nats.
        log_ratio: (n,) log(behaviour / reference) of the actions, nats.
        surprise: (n,) minus the log of the behaviour's probabilities of the actions, nats.
    """

    rows: Ints
    columns: Ints
    states: Ints
    legal: Bools | None
    log_reference: Floats
    log_ratio: Floats
    surprise: Floats


class TabularAgent(DrawingAgent):
    """Action values of all visited states, learned from whole episodes. Subclasses define the value after a token.

    Values are in units of reward at time 0, like the exact solver's: Q(s_t, a) = gamma^t r_t + V(s_{t+1}). A state is
    its tokens, which never recur within an episode: the states of an episode are a path in a tree. Learning goes
    backwards through an episode, so that a single one propagates a reward from the end to the prompt.

    Args:
        task: `env.unwrapped.task`; supplies vocabulary, reference, beta and gamma.
    Raises: ValueError for soft values at beta = 0, and if one state does not fit into the memory.
    Source: Sutton and Barto (2018), Reinforcement Learning: An Introduction, chapters 5 and 6; learning backwards from
        episodes: Lin (1992), Machine Learning 8.
    """

    config: TabularConfig
    iteration: int
    config_type: ClassVar[type[TabularConfig]] = TabularConfig
    resumes = True

    def __init__(self, task: Task, config: TabularConfig | None = None) -> None:
        self.task, self.config = task, config or self.config_type()
        self.actions = np.flatnonzero(task.vocabulary.allowed)
        self.beta = float(task.beta if self.config.beta is None else self.config.beta)
        soft = self.config.backup == "soft"
        tempered = self.config.exploration == "boltzmann" and self.config.temperature is None
        if not self.beta and (soft or tempered):
            setting = "backup='soft'" if soft else "exploration='boltzmann'"
            raise ValueError(
                f"beta=0.0: {setting} needs a number > 0; "
                "allowed at 0 is backup='hard' with a temperature or exploration='epsilon-greedy'"
            )
        fitting = rows_in_memory(len(self.actions), self.config.memory)
        wanted = self.config.max_states
        if wanted is not None and wanted > fitting:
            raise ValueError(
                f"max_states={wanted!r}: with {len(self.actions)} actions memory={self.config.memory!r} MiB "
                f"holds {fitting}; allowed is 1..{fitting}, or more memory"
            )
        self.table = StateTable(len(self.actions), wanted or fitting, self.config.initial or 0.0)
        self.iteration = self.episodes = self.budget = 0
        self._reference, self._grammar = make_reference(task), Grammar(task)

    # Learning

    def learn(self, env: TokenVectorEnv, episodes: int, callback: Callback | None = None) -> None:
        """Learn from at least `episodes` more episodes, one in each sub-environment per iteration.

        Args:
            env: vector environment in DISABLED mode on the agent's task.
            episodes: the budget; the exploration schedule spans the first budget given.
            callback: called with every iteration's metrics; returning True stops learning.
        Raises: ValueError if `env` resets by itself or `episodes` < 1.
        Warns: TextGymWarning when the table is full.
        """
        check_env(env)
        episodes = check_count("episodes", episodes)
        goal = self.episodes + episodes
        self.budget = self.budget or goal
        while self.episodes < goal:
            metrics = self._iterate(env)
            if callback is not None and callback(metrics):
                return

    def _iterate(self, env: TokenVectorEnv) -> Metrics:
        generator = np.random.default_rng([self.config.seed, self.iteration, 0])
        level, full = self._exploration(), self.table.refused > 0
        decisions: list[Decision] = []
        future = np.zeros(env.num_envs)

        def choose(turn: Turn) -> Ints:
            decisions.append(self._decide(turn, level, generator))
            return np.asarray(self.actions[decisions[-1].columns])

        def at_limit(turn: Turn) -> None:
            future[turn.rows] = self._state_values(*self._find(turn.seen()), 0.0)

        observation, _ = env.reset(seed=int(generator.integers(2**31)))
        played = play_batch(env, observation, choose, at_limit=at_limit)
        self._learn_backwards(decisions, played, future)
        if self.table.refused and not full:
            warnings.warn(
                f"{self.name}: the table is full at {len(self.table)} states; later ones are played by the "
                "reference and not learned. Raise max_states or memory",
                TextGymWarning,
                stacklevel=3,
            )
        self.iteration += 1
        self.episodes += env.num_envs
        return self._metrics(decisions, played, level)

    def _metrics(self, decisions: list[Decision], played: PlayedBatch, level: float) -> Metrics:
        """Return batch means, under TRL's names; as "objective" where the policy itself played, without exploration."""
        config = self.config
        same = config.backup == "soft" and level == (self.beta if config.exploration == "boltzmann" else 0.0)
        group = "objective" if same else "behaviour"
        returns = played.returns(self.task.gamma)
        kl = float(played.sums(np.concatenate([each.log_ratio for each in decisions])).mean())
        entropy = played.sums(np.concatenate([each.surprise for each in decisions]))
        stopped = np.isin(played.actions, self.task.vocabulary.stop_ids).sum()
        return {
            f"{group}/scores": float(returns.mean()),
            f"{group}/scores_std": float(returns.std()),
            f"{group}/kl": kl,
            f"{group}/entropy": float(entropy.mean()),
            f"{group}/rlhf_reward": float(returns.mean()) - self.beta * kl,
            "objective/beta": self.beta,
            "val/num_eos_tokens": float(stopped),
            "completion_length": float(played.lengths.mean()),
            "exploration": level,
            "states": float(len(self.table)),
            "states_refused": float(self.table.refused),
            "iteration": float(self.iteration),
            "episode": float(self.episodes),
        }

    def _exploration(self) -> float:
        """Return epsilon or the temperature of this iteration."""
        config = self.config
        progress = self.episodes / max(self.budget * config.schedule_share, 1.0)
        if config.exploration == "epsilon-greedy":
            start, end = config.epsilon, config.epsilon_end
        else:
            start, end = config.temperature or self.beta, config.temperature_end
        return scheduled(config.schedule, start, start if end is None else end, progress)

    def _decide(self, turn: Turn, level: float, generator: np.random.Generator) -> Decision:
        observation, legal = turn.seen(), turn.masks
        states = self.table.add(state_keys(observation))
        reference = self._log_reference(observation, legal)
        own = None if legal is None else legal[:, self.actions]
        behaviour = self._behaviour(states, reference, own, level)
        columns = draw(behaviour, generator)
        # Hard exploration may go where the reference never goes; its ratios are not asked for.
        ratio = log_ratios(behaviour, reference, columns)
        surprise = -behaviour[np.arange(len(columns)), columns]
        return Decision(turn.rows, columns, states, own, reference, ratio, surprise)

    def _behaviour(self, states: Ints, reference: Floats, legal: Bools | None, level: float) -> Floats:
        """Return the policy that acts while learning, log-probabilities (n, A)."""
        if self.config.exploration == "boltzmann":
            return boltzmann(*self._values(states, legal), reference, level)
        support = np.isfinite(reference)
        if self.config.backup == "hard":
            support = np.ones_like(support) if legal is None else legal
        return mixed(self._policy(states, reference, legal), support, level)

    def _learn_backwards(self, decisions: list[Decision], played: PlayedBatch, future: Floats) -> None:
        """Update from the last step to the first: where a step leads to has been updated before it.

        Args:
            future: (B,) worth of the states in which an outer limit stopped a row, 0 for others; changed in place.
        """
        rewards = played.by_time(played.discounted(self.task.gamma))
        for decision, paid in zip(reversed(decisions), reversed(rewards), strict=True):
            targets = paid + future[decision.rows]
            self._update(decision, targets)
            future[decision.rows] = self._continuation(decision, targets)

    def _update(self, decision: Decision, targets: Floats) -> None:
        """Move Q(s, a) towards its targets; those of the same action count by their mean, whatever their order."""
        held = decision.states != UNKNOWN
        places, inverse, repeats = np.unique(
            decision.states[held] * len(self.actions) + decision.columns[held],
            return_inverse=True,
            return_counts=True,
        )
        means = np.bincount(inverse, targets[held], len(places)) / repeats
        old, counts = self.table.values.reshape(-1)[places], self.table.counts.reshape(-1)[places]
        weight = update_weight(self.config.step_size, self.config.learning_rate, counts, repeats)
        if self.config.initial is None:
            weight = np.where(counts == 0, 1.0, weight)  # there is no old value yet
        self.table.update(places, old + weight * (means - old), repeats)

    @abstractmethod
    def _continuation(self, decision: Decision, targets: Floats) -> Floats:
        """Return the worth of the states of a step to the steps before them, (n,) reward units at time 0."""

    # Values and policies

    def _state_values(self, states: Ints, reference: Floats, legal: Bools | None, otherwise: Floats | float) -> Floats:
        """Return V by the table (n,); `otherwise` where nothing is known."""
        values, known = self._values(states, legal)
        if self.config.backup == "soft":
            result = soft_values(values, known, reference, self.beta)
        else:
            result = hard_values(values, known)
        return np.where(np.isnan(result), otherwise, result)

    def _values(self, states: Ints, legal: Bools | None = None) -> tuple[Floats, Bools]:
        """Return Q and which of them are known, (n, A) each. With initial values all legal ones in a row are."""
        known = np.repeat((states != UNKNOWN)[:, None], len(self.actions), axis=1)
        if self.config.initial is None:
            known &= self.table.counts[states] > 0
        if legal is not None:
            known &= legal
        return self.table.values[states], known

    def _policy(self, states: Ints, reference: Floats, legal: Bools | None = None) -> Floats:
        """Return the policy that the values stand for, log-probabilities (n, A)."""
        if self.config.backup == "soft":
            return boltzmann(*self._values(states, legal), reference, self.beta)
        return greedy(*self._values(states, legal), reference)

    def _find(self, observation: Observation) -> tuple[Ints, Floats, Bools | None]:
        """Return rows of the table, and the reference's log-probabilities and the legal actions, (n, A) each."""
        states = self.table.find(state_keys(observation))
        legal = self._grammar.legal(observation, states != UNKNOWN)
        own = None if legal is None else legal[:, self.actions]
        return states, self._log_reference(observation, legal), own

    def _log_reference(self, observation: Observation, legal: Bools | None) -> Floats:
        table = np.asarray(self._reference.log_probs(observation), dtype=np.float64)
        logs = over_legal(table, legal, self.task.vocabulary.allowed)
        return np.asarray(logs[:, self.actions])

    # Acting

    def log_probs(self, observation: Observation) -> Floats:
        """See `Agent.log_probs`: without exploration; in unvisited states those of the reference."""
        log_policy = self._policy(*self._find(observation))
        result = np.full((len(log_policy), self.task.vocabulary.size), -np.inf)
        result[:, self.actions] = log_policy
        return result

    def caveat(self, task: Task, split: str) -> str:
        """See `Agent.caveat`: a table has no values for unvisited states."""
        prompts = task.encoded(split)
        states = self.table.find([np.array(prompt.ids, dtype=np.int32).tobytes() for prompt in prompts])
        unmet = int((states == UNKNOWN).sum())
        text = f"{self.name}: {unmet} of {len(prompts)} {split} prompts were never met in learning"
        return f"{text}; its table knows nothing of them, and it answers as the reference" if unmet else ""

    # Storage

    def save(self, path: str | Path) -> None:
        """See `Agent.save`: safetensors and JSON, written atomically."""
        state = {name: getattr(self, name) for name in _COUNTERS} | {
            "actions": len(self.actions),
            "refused": self.table.refused,
        }
        write_saved(path, self.name, self.config, self.task, state=state, tensors=self.table.tensors())

    @classmethod
    def load(cls, path: str | Path, env: TokenVectorEnv) -> Self:
        """See `Agent.load`. Learning continues as if it had not been interrupted."""
        task = env.unwrapped.task
        return read_saved(path, cls.name, lambda saved: cls._restored(saved, task), task)

    @classmethod
    def _restored(cls, saved: Saved, task: Task) -> Self:
        agent = cls(task, cls.config_type(**saved.config))
        had, actions = saved.state["actions"], len(agent.actions)
        if had != actions:
            raise ValueError(f"path={str(saved.folder)!r}: its table has {had!r:.80} actions, the task has {actions}")
        agent.table.restore(saved.arrays())
        for name in _COUNTERS:
            setattr(agent, name, count(saved.state, name))
        agent.table.refused = count(saved.state, "refused") if "refused" in saved.state else 0
        return agent


class QLearning(TabularAgent):
    """Off-policy control: Q(s, a) moves towards r + V(s') with V = max Q, or V = beta log E_ref[exp(Q / beta)].

    With the soft backup it is soft Q-learning relative to the reference: its fixed point is the optimum of J.
    Raises: ValueError for soft values at beta = 0, or a table that does not fit into the memory.
    Source: Watkins and Dayan (1992), Machine Learning 8; soft: Haarnoja et al. (2017), arXiv:1702.08165, section 3.
    """

    name = "q-learning"

    def _continuation(self, decision: Decision, targets: Floats) -> Floats:
        return self._state_values(decision.states, decision.log_reference, decision.legal, targets)


class Sarsa(TabularAgent):
    """On-policy control: Q(s, a) moves towards r + Q(s', a'), where a' is the token that was written next.

    With the soft backup the next token is charged its KL, r + Q(s', a') - beta log(pi(a') / ref(a')): these are the
    values of J under the acting policy, which is the reference reweighted by them.
    Raises: ValueError for soft values at beta = 0, or a table that does not fit into the memory.
    Source: Rummery and Niranjan (1994), CUED/F-INFENG/TR 166; the charge: Levine (2018), arXiv:1805.00909, section 4.
    """

    name = "sarsa"

    def _continuation(self, decision: Decision, targets: Floats) -> Floats:
        taken = self.table.values[decision.states, decision.columns]
        worth = np.where(decision.states == UNKNOWN, targets, taken)
        return worth - self.beta * decision.log_ratio if self.config.backup == "soft" else worth


class MonteCarlo(TabularAgent):
    """On-policy control without bootstrapping: Q(s, a) moves towards the remaining return of the episode.

    With the soft backup the return is charged beta log(pi / ref) of every later token. First-visit and every-visit
    Monte Carlo are the same here: a state consists of all tokens so far and occurs once per episode.
    Raises: ValueError for soft values at beta = 0, or a table that does not fit into the memory.
    Source: Sutton and Barto (2018), Reinforcement Learning: An Introduction, section 5.4.
    """

    name = "monte-carlo"

    def _continuation(self, decision: Decision, targets: Floats) -> Floats:
        return targets - self.beta * decision.log_ratio if self.config.backup == "soft" else targets
