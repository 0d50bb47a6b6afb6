"""Monte-Carlo control: what follows a token is worth what came of it."""

from __future__ import annotations

from textgym_agents.tabular.agent import Floats, TabularAgent
from textgym_agents.tabular.episodes import Step


class MonteCarlo(TabularAgent):
    """On-policy control without bootstrapping: Q(s, a) moves towards the rest of the episode's return.

    With the soft backup the return is charged beta log(pi / ref) of every later token. First-visit and every-visit
    Monte Carlo are one here: a state, all tokens so far, comes once in an episode.
    Source: Sutton and Barto (2018), Reinforcement Learning: An Introduction, section 5.4.
    """

    name = "monte-carlo"

    def _continuation(self, step: Step, targets: Floats) -> Floats:
        return targets - self.beta * step.choice.log_ratio if self.config.backup == "soft" else targets
