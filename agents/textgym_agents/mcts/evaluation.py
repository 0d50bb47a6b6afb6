"""Prior and value of new states: by the task's reference, by a saved agent, by completions, or by the exact solver."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textgym.lm.reference import UniformReference, restricted
from textgym.references import make_reference
from textgym.solve import Solution, solve
from textgym_agents.mcts.config import MCTSConfig
from textgym_agents.mcts.forest import Leaves
from textgym_agents.mcts.model import Arrival, Model
from textgym_agents.protocol import Observation

if TYPE_CHECKING:
    from textgym_agents.critics import Critic

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Evaluator:
    """What a search asks of a state that it sees for the first time.

    Args:
        task: the task. config: says which prior and which value. beta: of soft values.
        reference: pi_ref; None takes the task's.
        guide: has `log_probs` and, for `leaf="values"`, `values(observation)` (B,), reward units at time 0.

    What a leaf is worth by the guide's values: with soft backups V of J, to which an LM agent's value head is corrected
    where it leaves out the KL of the state itself (`critics.uncharged`). A guide whose training charged no KL (`kl`
    "k3", beta = 0, alphazero with backup="mean") has V of the return: too much for J, and right for "mean" and "max".
    With these two the guide's values are taken as they are: where training charged KL, a leaf is worth the return to
    come less the guide's beta times the KL to come, while an episode that ends in the search is worth its rewards.

    Raises: ValueError if the guide is missing, has not what is asked for, or nothing is asked of it.
    """

    def __init__(
        self, task: Any, config: MCTSConfig, beta: float, guide: Any = None, reference: Any = None
    ) -> None:
        self._task, self._config, self._guide, self._given = task, config, guide, reference
        self._beta = beta if config.backup == "soft" else 0.0
        for asked, method in ((config.prior == "guide", "log_probs"), (config.leaf == "values", "values")):
            if asked and not callable(getattr(guide, method, None)):
                what = "there is none" if guide is None else f"{type(guide).__name__} has no {method}"
                raise ValueError(f"guide: {what}; allowed is an agent with {method}(observation)")
        if guide is not None and config.prior != "guide" and config.leaf != "values":
            raise ValueError(
                f"guide: prior={config.prior!r} and leaf={config.leaf!r} ask nothing of it; "
                "allowed with a guide is prior='guide', leaf='values', or both"
            )
        self._solutions: dict[str, Solution] = {}

    @cached_property
    def _reference(self) -> Any:
        return make_reference(self._task) if self._given is None else self._given

    @cached_property
    def _prior(self) -> Any:
        if self._config.prior == "uniform":
            return UniformReference(self._task.vocabulary.allowed)
        return self._guide if self._config.prior == "guide" else self._reference

    @cached_property
    def _critic(self) -> Critic:
        from textgym_agents.critics import critic_of, uncharged

        if self._config.backup == "soft" and uncharged(self._guide):
            return critic_of(self._guide)
        # Asked in the same states as the prior: a guide that is both has computed its values already.
        return lambda observation, masks: np.asarray(self._guide.values(observation), dtype=np.float64)

    def log_prior(self, observation: Observation, masks: Bools | None) -> Floats:
        """(n, V) nats over the legal tokens."""
        return restricted(np.asarray(self._prior.log_probs(observation), dtype=np.float64), masks)

    def log_reference(self, observation: Observation, masks: Bools | None) -> Floats:
        """(n, V) nats over the legal tokens."""
        return restricted(np.asarray(self._reference.log_probs(observation), dtype=np.float64), masks)

    def evaluate(self, model: Model, arrival: Arrival, generator: np.random.Generator) -> Leaves:
        """Where n moves led; the values of ended episodes are 0, and their distributions without meaning."""
        going = ~arrival.finished
        observation = {name: array[going] for name, array in arrival.observation.items()}
        masks = None if arrival.masks is None else arrival.masks[going]
        soft = self._config.backup == "soft"
        log_prior = np.full((len(going), self._task.vocabulary.size), -np.inf)
        log_prior[going] = self.log_prior(observation, masks)
        log_reference = log_prior
        if soft and self._prior is not self._reference:
            log_reference = np.full_like(log_prior, -np.inf)
            log_reference[going] = self.log_reference(observation, masks)
        if self._config.leaf == "rollout":
            # Completions of the reference have no KL to be charged.
            policy = self.log_reference if soft else self.log_prior
            return Leaves(log_prior, log_reference, model.roll_out(arrival, policy, generator))
        values = np.zeros(len(going))
        if self._config.leaf == "exact":
            values[going] = self._solution(model.split).state_values(observation)
        else:
            values[going] = self._critic(observation, masks)
        return Leaves(log_prior, log_reference, values)

    def _solution(self, split: str) -> Solution:
        if split not in self._solutions:
            self._solutions[split] = solve(self._task, self._reference, beta=self._beta, split=split)
        return self._solutions[split]
