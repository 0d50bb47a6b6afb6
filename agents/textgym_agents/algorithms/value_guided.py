"""Value-guided decoding: before each token, a trained critic evaluates candidates and reweights the prior."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np

from textgym.checks import Floats, Ints
from textgym.lm.reference import Reference, restricted
from textgym.rewards.scorer import scorers_restored
from textgym.state import TokenState
from textgym.task import Task, refuse_turns
from textgym_agents.algorithms.fixed import NonLearner, reference_of
from textgym_agents.config import at_least_one, positive, require
from textgym_agents.lm.critic import Critic, critic_of
from textgym_agents.mcts.forest import Model
from textgym_agents.protocol import Agent, DrawingAgent, Observation, StateFinder, as_agent
from textgym_agents.registry import load_guide
from textgym_agents.saving import Saved, write_saved
from textgym_agents.tabular.policies import normalised

_ROWS_AT_ONCE = 1024
_FACTOR = 4.0


@dataclass(frozen=True)
class ValueGuidedConfig:
    """Settings of value-guided decoding. Raises: ValueError for a number out of range, or another `prior`."""

    run: str | None = None
    """Folder of the saved agent that supplies policy and critic, such as a run of lm-ppo."""
    k: int = 4
    """Number of candidate tokens in a state: the most likely legal ones of the prior. No others are written."""
    prior: Literal["policy", "reference"] = "policy"
    """Distribution to reweight. policy: the agent's policy, which training has already moved; the result maximises
    E[Q] - temperature KL(result || policy) in every state: a small step from the policy, not the optimum of J.
    reference: the model that the agent started from; this plans for J, but needs a critic that is right about tokens
    the agent rarely writes."""
    temperature: float | None = None
    """Reward units, > 0: the prior is multiplied by exp(Q / temperature). None: the task's beta for the reference,
    which plans for J, and four times the task's beta for the policy."""
    seed: int = 0
    """Seed of the sampled tokens."""

    def __post_init__(self) -> None:
        at_least_one(self, "k")
        require("prior", self.prior, self.prior in ("policy", "reference"), "'policy' or 'reference'")
        positive(self, "temperature")
        require("seed", self.seed, self.seed >= 0, "an integer >= 0")


class ValueGuided(NonLearner, DrawingAgent):
    """Another agent's policy, reweighted by that agent's critic; learns nothing.

    In a state s it takes the k most likely tokens of the prior and evaluates all their successors in one forward pass
    of the critic: Q(s, a) = gamma^t r(s, a) + V(s + a), reward units at time 0. The rewards come from an environment of
    its own. It then draws from prior(a) exp(Q(s, a) / temperature) over these k tokens, the distribution over them that
    maximises E[Q] - temperature KL(. || prior) in s.

    With the reference as prior, the task's beta as temperature and all tokens as candidates, it is the optimal policy
    for V*; for the exact V of the agent's policy it is one step of soft policy iteration, whose J is never below that
    of the policy. With fewer tokens neither holds: tokens outside the reference's k most likely ones are never written,
    however likely they are under the agent's policy. With the agent's policy as prior neither holds for any k: a policy
    reference exp(Q / beta) is reweighted a second time.

    Args:
        task: supplies prompts, reference and reward.
        guide: an agent with `log_probs` and `values`; replaces the saved one of `config.run`.
    Raises: ValueError without a guide, for one without a critic, or a temperature that is not positive.
    Source: Liu et al. (2023), arXiv:2309.15028 (the critic of PPO when decoding); Mudgal et al. (2023),
        arXiv:2310.17022, section 3 (sampling from the tilted reference token by token).
    """

    name = "value-guided"
    config: ValueGuidedConfig

    def __init__(self, task: Task, config: ValueGuidedConfig | None = None, guide: Agent | None = None) -> None:
        refuse_turns(task, "value-guided")
        self.task, self.config = task, config or ValueGuidedConfig()
        if guide is None:
            if self.config.run is None:
                raise ValueError("run=None: allowed is the folder of a saved agent with a critic")
            guide = load_guide(self.config.run, task)
        self.guide = as_agent(guide)
        self._critic: Critic = critic_of(guide)
        self._prior = reference_of(guide, task) if self.config.prior == "reference" else guide
        usual = task.beta if self.config.prior == "reference" else _FACTOR * task.beta
        self.temperature = float(usual if self.config.temperature is None else self.config.temperature)
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature!r}: that of the task, allowed is a number > 0")
        self._finder = StateFinder(task, scored=True)

    def log_probs(self, observation: Observation) -> Floats:
        """See `Agent.log_probs`; (B, V) float64. In a state that has ended, the prior's."""
        result = np.array(self._prior.log_probs(observation), dtype=np.float64)
        found = self._finder.states(observation)
        for split in sorted({own for own, _ in found}):
            rows = [row for row, (own, state) in enumerate(found) if own == split and not self._ended(state)]
            if rows:
                result[rows] = self._tilted(result[rows], [found[row][1] for row in rows], split)
        return result

    def own_reference(self) -> Reference | None:
        """See `Agent.own_reference`: the guide's."""
        return self.guide.own_reference()

    def _ended(self, state: TokenState) -> bool:
        last = state.completion[-1:]
        return len(state.completion) >= self.task.max_new_tokens or bool(set(last) & set(self.task.vocabulary.stop_ids))

    def _tilted(self, log_prior: Floats, states: list[TokenState], split: str) -> Floats:
        """Return the policy (n, V) in n running states of a split."""
        legal = np.broadcast_to(self.task.vocabulary.allowed, log_prior.shape)
        if self.task.mask is not None:
            legal = legal & self.task.mask(states)
        logs = restricted(log_prior, legal)
        # Of equally likely tokens those with the smaller ids.
        tokens = np.argsort(-logs, axis=1, kind="stable")[:, : self.config.k]
        weights = np.take_along_axis(logs, tokens, axis=1)
        rows, places = np.nonzero(np.isfinite(weights))
        values = self._action_values([states[row] for row in rows], tokens[rows, places], split)
        weights[rows, places] += values / self.temperature
        result = np.full_like(logs, -np.inf)
        np.put_along_axis(result, tokens, normalised(weights), axis=1)
        return result

    def _action_values(self, states: list[TokenState], tokens: Ints, split: str) -> Floats:
        """Return Q(s, a) = gamma^t r(s, a) + V(s + a) of n moves (n,), reward units at time 0."""
        parts = []
        with scorers_restored(self.task.scorer):
            for start in range(0, len(states), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                parts.append(self._look_ahead(states[part], tokens[part], split))
        return np.concatenate(parts)

    def _look_ahead(self, states: list[TokenState], tokens: Ints, split: str) -> Floats:
        model = Model(self.task, split, len(states))
        arrival = model.step(self._with_noise(model.with_potentials(states)), tokens)
        values, going = np.asarray(arrival.rewards, dtype=np.float64), ~arrival.finished
        if going.any():
            seen = {name: array[going] for name, array in arrival.observation.items()}
            values[going] += self._critic(seen, None if arrival.masks is None else arrival.masks[going])
        return values

    def _with_noise(self, states: list[TokenState]) -> list[TokenState]:
        """Return states with a noise of their own in noisy tasks; the same one whenever they are asked about."""
        if not self.task.noisy:
            return states
        seeds = [int(np.random.default_rng([self.config.seed, 9, *state.tokens]).integers(2**63)) for state in states]
        return [replace(state, episode_seed=seed) for state, seed in zip(states, seeds, strict=True)]

    # Storage

    def save(self, path: str | Path) -> None:
        """See `Agent.save`. The guide is saved with it."""
        write_saved(path, self.name, self.config, self.task, folders={"guide": self.guide.save})

    @classmethod
    def _restored(cls, saved: Saved, task: Task) -> Self:
        return cls(task, ValueGuidedConfig(**saved.config), load_guide(saved.folder / "guide", task))
