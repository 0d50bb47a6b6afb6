"""How reward hacking is shown: which reward models, and how hard they are optimised."""

from __future__ import annotations

from dataclasses import dataclass, field

from textgym.messages import MOST_ROWS, shown
from textgym.preferences import check_temperature
from textgym_agents.config import LMPPOConfig
from textgym_agents.settings import MOST


@dataclass(frozen=True)
class OveroptimiseSettings:
    """Reward models of several strengths, each optimised by best-of-n and by PPO with a falling KL penalty.

    Raises: ValueError for a number out of range.
    """

    pairs: tuple[int, ...] = (100, 1000, 10_000)
    """Preferences that reward models are trained on; the smaller sets are parts of the larger ones."""
    reward_model_epochs: tuple[int, ...] = (10, 4, 1)
    """Passes over the preferences, one number for each of `pairs`: many passes over much data learn it by heart."""
    layers: tuple[int, ...] = (1, 3)
    """Layers of the base model that reward models keep: their sizes."""
    noise: float = 0.1
    """Temperature of the Bradley-Terry annotator, gold reward units."""
    betas: tuple[float, ...] = (0.4, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0)
    """KL penalties of PPO one after the other, gold reward units per nat."""
    episodes: int = 3072
    """Episodes of PPO with each penalty."""
    samples: int = 256
    """Answers of the reference to each prompt, for best-of-n up to a quarter of this n."""
    prompts: int = 120
    """Held-out prompts that best-of-n is measured on; all of them where there are fewer."""
    per_prompt: int = 4
    """Answers to each held-out prompt where PPO is measured."""
    ppo: LMPPOConfig = field(default_factory=lambda: LMPPOConfig(schedule="constant"))
    """The settings of PPO; beta is set by `betas`."""

    def __post_init__(self) -> None:
        for name, least in (("pairs", 1), ("layers", 1), ("betas", 0)):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values) or min(values) < least:
                raise ValueError(f"{name}={values!r}: allowed are one or more different numbers >= {least}")
        check_temperature(self.noise, "noise")
        if not self.ppo.seed < 2**32:
            raise ValueError(f"seed={self.ppo.seed!r}: allowed is an integer in 0..{2**32 - 1}")
        if self.ppo.beta is not None or self.ppo.model is not None:
            raise ValueError(
                "beta, model: they are not settings of this PPO; betas and env option reference are"
            )
        epochs = self.reward_model_epochs
        if len(epochs) != len(self.pairs) or min(epochs) < 1:
            allowed = f"an integer >= 1 for each of pairs={self.pairs!r}"
            raise ValueError(f"reward_model_epochs={epochs!r}: allowed is {allowed}")
        for name, least in (("episodes", 1), ("samples", 2), ("prompts", 1), ("per_prompt", 2)):
            most = MOST if name == "episodes" else MOST_ROWS
            if not least <= getattr(self, name) <= most:
                raise ValueError(
                    f"{name}={shown(getattr(self, name))}: allowed is an integer in {least}..{most}"
                )
