"""Q-learning, SARSA and Monte-Carlo control on a table of states."""

from __future__ import annotations

import numpy as np

from textgym.checks import Floats
from textgym_agents.tabular.agent import Decision, TabularAgent
from textgym_agents.tabular.table import UNKNOWN


class QLearning(TabularAgent):
    """Off-policy control: Q(s, a) moves towards r + V(s') with V = max Q, or V = beta log E_ref[exp(Q / beta)].

    With the soft backup it is soft Q-learning against the reference: its fixed point is the optimum of J.
    Source: Watkins and Dayan (1992), Machine Learning 8; soft: Haarnoja et al. (2017), arXiv:1702.08165, section 3.
    """

    name = "q-learning"

    def _continuation(self, decision: Decision, targets: Floats) -> Floats:
        return self._state_values(decision.states, decision.log_reference, decision.legal, targets)


class Sarsa(TabularAgent):
    """On-policy control: Q(s, a) moves towards r + Q(s', a'), a' the token that was written next.

    With the soft backup the next token is charged its KL, r + Q(s', a') - beta log(pi(a') / ref(a')): the values of J
    under the policy that acts, which is the reference tilted by those values.
    Source: Rummery and Niranjan (1994), CUED/F-INFENG/TR 166; the charge: Levine (2018), arXiv:1805.00909, section 4.
    """

    name = "sarsa"

    def _continuation(self, decision: Decision, targets: Floats) -> Floats:
        taken = self.table.values[decision.states, decision.columns]
        worth = np.where(decision.states == UNKNOWN, targets, taken)
        return worth - self.beta * decision.log_ratio if self.config.backup == "soft" else worth


class MonteCarlo(TabularAgent):
    """On-policy control without bootstrapping: Q(s, a) moves towards the rest of the episode's return.

    With the soft backup the return is charged beta log(pi / ref) of every later token. First-visit and every-visit
    Monte Carlo are one here: a state, all tokens so far, comes once in an episode.
    Source: Sutton and Barto (2018), Reinforcement Learning: An Introduction, section 5.4.
    """

    name = "monte-carlo"

    def _continuation(self, decision: Decision, targets: Floats) -> Floats:
        return targets - self.beta * decision.log_ratio if self.config.backup == "soft" else targets
