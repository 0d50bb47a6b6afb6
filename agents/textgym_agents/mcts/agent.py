"""MCTS: a policy that searches the tree below a state before it writes a token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from textgym import TokenVectorEnv
from textgym.checks import Floats, Ints, check_count
from textgym.play import Turn, check_env, play_batch
from textgym.solver import policy_values, solve
from textgym.state import ENVIRONMENT
from textgym.task import Task
from textgym_agents.mcts.planner import Planner, Regret
from textgym_agents.mcts.search import MCTSConfig
from textgym_agents.protocol import Callback, DrawingAgent, Metrics, Observation
from textgym_agents.registry import load_guide
from textgym_agents.saving import Saved, count, read_saved, write_saved
from textgym_agents.tabular.policies import draw

_COUNTERS = ("iteration", "episodes")
_SEARCH_COUNTERS = ("searches", "scored")


class MCTS(DrawingAgent):
    """Monte-Carlo tree search with PUCT, using the true model.

    In a new state it runs `simulations` simulations and stores the results by the state's tokens: the tree below the
    chosen token is reused for the next one, and `learn` builds a tree that later searches start from. Asked about the
    same state again, it gives the same answer, until it learns or the tree is emptied.

    With backup "soft" it plans for J = E[R] - beta KL: once all tokens below a state have been tried, value and policy
    there are exact. With "mean" and "max" it plans for the expected return only. The policy of "mean" follows the visit
    counts; that of "max" takes the actions that lead to the best value found, the optimum once everything has been
    tried, if rewards have no noise. Tokens other than the prior's `candidates` most likely ones are not searched; the
    soft policy gives them the prior's share, the others never write them. No policy writes a token of prior probability
    0.

    Args:
        task: `env.unwrapped.task`; supplies prompts, reference, reward and gamma.
        guide: an agent, instead of the saved one of `config.guide`.
    Raises: ValueError for soft backups at beta = 0, a guide that does not serve, or too little memory for one search.
    Source: Silver et al. (2017), arXiv:1712.01815; soft backups: Xiao et al. (2019), NeurIPS, "Maximum Entropy
        Monte-Carlo Planning", here relative to the reference.
    """

    name = "mcts"
    config: MCTSConfig
    iteration: int
    config_type: ClassVar[type[MCTSConfig]] = MCTSConfig
    plans = True
    resumes = True

    def __init__(self, task: Task, config: MCTSConfig | None = None, guide: object = None) -> None:
        self.task, self.config = task, config or self.config_type()
        self.beta = float(task.beta if self.config.beta is None else self.config.beta)
        if self.config.backup == "soft" and not self.beta:
            raise ValueError("beta=0.0: backup='soft' needs a number > 0; allowed at 0 is 'mean' or 'max'")
        if guide is None and self.config.guide is not None:
            guide = load_guide(self.config.guide, task)
        self.planner = Planner(task, self.config, self.beta, guide)
        self.iteration = self.episodes = 0

    # Learning

    def learn(self, env: TokenVectorEnv, episodes: int, callback: Callback | None = None) -> None:
        """Play at least `episodes` more episodes, and keep the tree that was searched for them.

        Args:
            env: vector environment in DISABLED mode on the agent's task.
            episodes: played ones; simulations score many more completions, which the metrics count.
            callback: sees every iteration's metrics; returning True stops.
        Raises: ValueError if `env` resets by itself or `episodes` < 1.
        """
        check_env(env)
        episodes = check_count("episodes", episodes)
        goal = self.episodes + episodes
        while self.episodes < goal:
            metrics = self._iterate(env)
            if callback is not None and callback(metrics):
                return

    def _iterate(self, env: TokenVectorEnv) -> Metrics:
        generator = np.random.default_rng([self.config.seed, self.iteration, 0])

        def choose(turn: Turn) -> Ints:
            return draw(self.planner.plan(turn.seen(), turn.masks, anew=True)[0], generator)

        observation, _ = env.reset(seed=int(generator.integers(2**31)))
        played = play_batch(env, observation, choose)
        returns = played.returns(self.task.gamma)
        self.planner.forget_answers()  # more is known now than when they were given
        self.iteration += 1
        self.episodes += env.num_envs
        return {
            "behaviour/scores": float(returns.mean()),
            "behaviour/scores_std": float(returns.std()),
            "completion_length": float(played.lengths.mean()),
            "nodes": float(len(self.planner.forest)),
            "scored": float(self.planner.scored),
            "iteration": float(self.iteration),
            "episode": float(self.episodes),
        }

    # Acting

    def log_probs(self, observation: Observation) -> Floats:
        """See `Agent.log_probs`: the policy after searching."""
        return self.planner.plan(observation)[0]

    def values(self, observation: Observation) -> Floats:
        """Return V(s) after searching (B,), reward units at time 0: of J with soft backups, else of the return."""
        return self.planner.plan(observation)[1]

    def regret(self, split: str = "train") -> Regret:
        """Return what the search loses in a task that can be solved, after searching from every state of it.

        Args: split: whose prompts.
        Raises: as `textgym.solver.solve` for a task that is too large.
        """
        beta = self.beta if self.config.backup == "soft" else 0.0
        solution = solve(self.task, beta=beta, split=split)
        tree = solution.tree
        found = float(tree.weights @ self.values(tree.observations(0, tree.levels[0].running)))
        reached = policy_values(tree, self, beta=beta).objective
        return Regret(
            optimum=solution.objective,
            regret=solution.objective - reached,
            error=found - solution.objective,
            nodes=len(self.planner.forest),
            scored=self.planner.scored,
        )

    # Storage

    def save(self, path: str | Path) -> None:
        """See `Agent.save`: safetensors and JSON; a reader never sees half of it."""
        state = {name: getattr(self, name) for name in _COUNTERS}
        state |= {name: getattr(self.planner, name) for name in _SEARCH_COUNTERS}
        write_saved(path, self.name, self.config, self.task, state=state, tensors=self.planner.forest.tensors())

    @classmethod
    def load(cls, path: str | Path, env: TokenVectorEnv) -> Self:
        """See `Agent.load`. Searching continues from the saved tree, which does not hold a guide given as an object."""
        task = env.unwrapped.task
        elsewhere = "this tree is of task {had}; on task {now} search starts anew"
        return read_saved(path, cls.name, lambda saved: cls._restored(saved, task), task, elsewhere)

    @classmethod
    def _restored(cls, saved: Saved, task: Task) -> Self:
        agent = cls(task, cls.config_type(**saved.config))
        for names, holder in ((_COUNTERS, agent), (_SEARCH_COUNTERS, agent.planner)):
            for name in names:
                setattr(holder, name, count(saved.state, name))
        if not saved.same_task:
            return agent
        tensors = saved.arrays()
        has, wanted = tensors["actions"].shape, agent.planner.forest.candidates
        # A turn may have more replies than a state has candidates.
        if has[0] != len(tensors["lengths"]) or has[1] < wanted or (has[1] > wanted and "chance" not in tensors):
            raise ValueError(
                f"path={str(saved.folder)!r}: its nodes have {has[-1]} candidates, "
                f"the task and the settings have {wanted}"
            )
        ends = np.cumsum(tensors["lengths"])[:-1]
        tokens, authors = tensors["tokens"], tensors.get("authors", np.zeros_like(tensors["tokens"]))
        parts, wrote = (np.split(each, ends) if len(tensors["lengths"]) else [] for each in (tokens, authors))
        found = [
            agent.planner.finder.state(
                tuple(part.tolist()), start, tuple((np.flatnonzero(own == ENVIRONMENT) - start).tolist())
            )
            for part, own, start in zip(parts, wrote, tensors["prompt_lengths"].tolist(), strict=True)
        ]
        states = [
            replace(own, potential=potential)
            for (_, own), potential in zip(found, tensors["potentials"].tolist(), strict=True)
        ]
        agent.planner.forest.restore(states, [split for split, _ in found], tensors)
        return agent
