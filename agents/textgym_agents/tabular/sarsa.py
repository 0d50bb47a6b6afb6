"""SARSA: what follows a token is worth what the policy that acts made of it, by the value of its next token."""

from __future__ import annotations

import numpy as np

from textgym_agents.tabular.agent import Floats, TabularAgent
from textgym_agents.tabular.episodes import Step
from textgym_agents.tabular.table import UNKNOWN


class Sarsa(TabularAgent):
    """On-policy control: Q(s, a) moves towards r + Q(s', a'), a' the token that was written next.

    With the soft backup the next token is charged its KL, r + Q(s', a') - beta log(pi(a') / ref(a')): the values of J
    under the policy that acts, which is the reference tilted by those values.
    Source: Rummery and Niranjan (1994), CUED/F-INFENG/TR 166; the charge: Levine (2018), arXiv:1805.00909, section 4.
    """

    name = "sarsa"

    def _continuation(self, step: Step, targets: Floats) -> Floats:
        choice = step.choice
        taken = self.table.values[choice.states, choice.columns]
        worth = np.where(choice.states == UNKNOWN, targets, taken)
        return worth - self.beta * choice.log_ratio if self.config.backup == "soft" else worth
