"""Q-learning: what follows a token is worth what the best policy makes of it."""

from __future__ import annotations

from textgym_agents.tabular.agent import Floats, TabularAgent
from textgym_agents.tabular.episodes import Step


class QLearning(TabularAgent):
    """Off-policy control: Q(s, a) moves towards r + V(s') with V = max Q, or V = beta log E_ref[exp(Q / beta)].

    With the soft backup it is soft Q-learning against the reference: its fixed point is the optimum of J.
    Source: Watkins and Dayan (1992), Machine Learning 8; soft: Haarnoja et al. (2017), arXiv:1702.08165, section 3.
    """

    name = "q-learning"

    def _continuation(self, step: Step, targets: Floats) -> Floats:
        choice = step.choice
        return self._state_values(choice.states, choice.log_reference, choice.legal, targets)
