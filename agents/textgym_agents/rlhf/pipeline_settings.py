"""How much of everything the RLHF pipeline takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from textgym.messages import MOST_ROWS, shown
from textgym.preferences import check_temperature
from textgym_agents.config import LMPPOConfig
from textgym_agents.settings import MOST


@dataclass(frozen=True)
class RLHFSettings:
    """The whole pipeline. Its seed is that of `ppo`.

    Raises: ValueError for a number out of range.
    """

    demonstrations: str | None = None
    """A file of prompts and completions to fine-tune on; None: those of the built-in world."""
    demonstration_count: int = 500
    """How many of the built-in world's."""
    sft_epochs: int = 3
    """Passes over the demonstrations."""
    preferences: int = 4000
    """Prompts for which candidates are ranked."""
    candidates: int = 2
    """Completions that are ranked for each prompt."""
    noise: float = 0.1
    """Temperature of the Bradley-Terry annotator, gold reward units; 0 makes no mistakes."""
    reward_model_epochs: int = 3
    """Passes over the preferences."""
    members: int = 1
    """Reward models of the ensemble, whose scores are averaged."""
    episodes: int = 20_480
    """Episodes of PPO."""
    ppo: LMPPOConfig = field(default_factory=LMPPOConfig)
    """The settings of PPO."""
    best_of: int = 16
    """Samples that best-of-n chooses from."""
    per_prompt: int = 16
    """Completions per held-out prompt in the comparison."""
    optimum_per_prompt: int = 128
    """Completions per held-out prompt that the optimum is estimated from."""

    def __post_init__(self) -> None:
        counts = ("demonstration_count", "sft_epochs", "preferences", "reward_model_epochs", "members")
        for name in (*counts, "episodes", "best_of", "optimum_per_prompt", "candidates", "per_prompt"):
            least = 2 if name in ("candidates", "per_prompt") else 1
            most = MOST if name == "episodes" else MOST_ROWS
            if not least <= getattr(self, name) <= most:
                raise ValueError(
                    f"{name}={shown(getattr(self, name))}: allowed is an integer in {least}..{most}"
                )
        check_temperature(self.noise, "noise")
        if not self.ppo.seed < 2**32:
            raise ValueError(f"seed={self.ppo.seed!r}: allowed is an integer in 0..{2**32 - 1}")
        if self.ppo.model is not None:
            raise ValueError(
                f"model={self.ppo.model!r}: PPO starts from the fine-tuned model; allowed is None "
                "(env option reference is the base model)"
            )
