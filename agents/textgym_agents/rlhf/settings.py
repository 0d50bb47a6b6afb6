"""Settings of the RLHF trainings and pipelines. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from textgym.checks import MOST_ROWS, is_finite
from textgym.preferences import check_temperature
from textgym_agents.config import MOST, MOST_SEED, FitConfig, LMPPOConfig, integer, not_negative, only_with, require
from textgym_agents.model_settings import LoRASettings

RankingLoss = Literal["pairwise", "plackett_luce"]


@dataclass(frozen=True)
class FitSettings(FitConfig, LoRASettings):
    """Settings shared by all supervised trainings.

    Raises: ValueError for a setting out of range.
    """

    data: str
    """Rows to train on: a .jsonl, .csv or .parquet file or a data set, see docs/own_task.md."""
    base: str = "builtin"
    """Model to start from: a folder in Hugging Face layout, a hub id, or "builtin"."""
    max_length: int | None = None
    """Maximum length of a prompt with its answer, tokens; None: the model's limit, at most 1024."""
    held_out: float = 0.1
    """Share of the prompts that are held out from training and evaluated before and after it."""
    eval_every: int = 0
    """Steps between evaluations on the held-out prompts; 0: before and after training only."""
    on_broken: Literal["stop", "skip"] = "skip"
    """What to do with rows that cannot be used. skip: leave them out and name them; stop: train nothing."""
    gradient_checkpointing: bool = False
    """Store only the input of every layer and recompute the rest for the gradient: less memory, a third more time."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda, mps, or another torch device, such as cuda:1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_lora()
        require("data", self.data, bool(self.data), "the path of a file of rows")
        integer(self, "eval_every", 0, MOST)
        require("held_out", self.held_out, 0 <= self.held_out < 1, "a number in [0, 1)")
        length = self.max_length
        require("max_length", length, length is None or length >= 2, "None or an integer >= 2")


@dataclass(frozen=True)
class SFTSettings(FitSettings):
    """Supervised fine-tuning on demonstrations: prompts and completions, or the best answers of preferences.

    `data` may be "world:" and the name of one of the built-in world's tasks.
    """

    demonstrations: int = 2000
    """Number of demonstrations to draw, if `data` is "world:..."."""
    chat: bool | str | None = None
    """Format of prompts, like the option `chat` of Text. None: the tokenizer's chat template, if it has one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        integer(self, "demonstrations", 1)
        only_with(self, "demonstrations", self.data.startswith("world:"), "data='world:...'")


@dataclass(frozen=True)
class RewardModelSettings(FitSettings):
    """Settings of a reward model trained on rankings."""

    epochs: int = field(default=1, kw_only=True)
    """Passes over the data; a second pass mostly memorises pairs."""
    loss: RankingLoss = "pairwise"
    """Loss of a ranking of K answers: the mean over its pairs, or Plackett-Luce; the same for pairs."""
    margin: float | None = None
    """Reward units by which the better answer should score higher; None: the margins of the rows, if any."""
    centering: float = 0.0
    """Weight of the term that pulls the scores towards 0."""
    reference_samples: str | None = None
    """File of prompts and completions whose mean score is set to 0; None: the training answers."""
    members: int = 1
    """Number of models in an ensemble, each with its own row order and initial head."""
    freeze: int = 0
    """Number of first layers that keep the base's weights, along with the embeddings; 0: train everything."""

    def __post_init__(self) -> None:
        super().__post_init__()
        integer(self, "members", 1)
        integer(self, "freeze", 0, MOST)
        require("freeze", self.freeze, self.freeze == 0 or self.lora_rank is None, "0 with lora_rank")
        not_negative(self, "centering")
        allowed = "None where loss is 'plackett_luce'"
        require("margin", self.margin, self.margin is None or self.loss == "pairwise", allowed)
        require("margin", self.margin, self.margin is None or self.margin >= 0, "None or a finite number >= 0")
        samples = self.reference_samples
        require("reference_samples", samples, samples is None or bool(samples), "None or the path of a file of rows")


def peak_learning_rate(settings: FitSettings, parameters: int) -> float:
    """Return the peak of the learning rate: as set, or 1e-3 * sqrt(1e6 / parameters), and at most 1e-3.

    That is 1e-4 for 100 million parameters and 1.2e-5 for 7 billion.
    """
    if settings.learning_rate is not None:
        return settings.learning_rate
    return 1e-3 * min(1.0, math.sqrt(1e6 / parameters))


@dataclass(frozen=True)
class RLHFSettings:
    """Settings of the whole RLHF pipeline. Its seed is that of `ppo`.

    Raises: ValueError for a number out of range.
    """

    demonstrations: str | None = None
    """File of prompts and completions for fine-tuning; None: demonstrations of the built-in world."""
    demonstration_count: int = 500
    """Number of demonstrations drawn from the built-in world."""
    sft_epochs: int = 3
    """Passes over the demonstrations."""
    preferences: int = 4000
    """Number of prompts whose candidates are ranked."""
    candidates: int = 2
    """Number of completions to rank for each prompt."""
    noise: float = 0.1
    """Temperature of the Bradley-Terry annotator, gold reward units; 0: no mistakes."""
    reward_model_epochs: int = 3
    """Passes over the preferences."""
    members: int = 1
    """Number of reward models in the ensemble, whose scores are averaged."""
    episodes: int = 20_480
    """Training episodes of PPO."""
    ppo: LMPPOConfig = field(default_factory=LMPPOConfig)
    """Settings of PPO."""
    best_of: int = 16
    """Number of samples for best-of-n."""
    per_prompt: int = 16
    """Completions per held-out prompt in the comparison."""
    optimum_per_prompt: int = 128
    """Completions per held-out prompt for the estimate of the optimum."""

    def __post_init__(self) -> None:
        for name in ("demonstration_count", "sft_epochs", "preferences", "reward_model_epochs", "members"):
            integer(self, name, 1)
        only_with(self, "demonstration_count", self.demonstrations is None, "demonstrations of the built-in world")
        for name, least in (("best_of", 1), ("optimum_per_prompt", 1), ("candidates", 2), ("per_prompt", 2)):
            integer(self, name, least)
        integer(self, "episodes", 1, MOST)
        check_temperature(self.noise, "noise")
        integer(self.ppo, "seed", 0, MOST_SEED)
        allowed = "None: PPO starts from the fine-tuned model (env option reference is the base model)"
        require("model", self.ppo.model, self.ppo.model is None, allowed)


@dataclass(frozen=True)
class OveroptimiseSettings:
    """Settings of reward models of several strengths, each optimised by best-of-n and by PPO with a falling KL penalty.

    Raises: ValueError for a number out of range.
    """

    pairs: tuple[int, ...] = (100, 1000, 10_000)
    """Numbers of preferences to train reward models on; smaller sets are subsets of larger ones."""
    reward_model_epochs: tuple[int, ...] = (10, 4, 1)
    """Passes over the preferences, one number for each of `pairs`; many passes over much data memorise it."""
    layers: tuple[int, ...] = (1, 3)
    """Sizes of the reward models: numbers of layers of the base model that they keep."""
    noise: float = 0.1
    """Temperature of the Bradley-Terry annotator, gold reward units."""
    betas: tuple[float, ...] = (0.4, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0)
    """KL penalties of PPO, applied one after the other, gold reward units per nat."""
    episodes: int = 3072
    """Training episodes of PPO with each penalty."""
    samples: int = 256
    """Answers of the reference to each prompt, for best-of-n with n up to a quarter of this number."""
    prompts: int = 120
    """Number of held-out prompts for best-of-n; all of them if there are fewer."""
    per_prompt: int = 4
    """Answers to each held-out prompt in the evaluation of PPO."""
    ppo: LMPPOConfig = field(default_factory=lambda: LMPPOConfig(schedule="constant"))
    """Settings of PPO; beta is set by `betas`."""

    def __post_init__(self) -> None:
        for name in ("pairs", "layers", "reward_model_epochs"):
            values = getattr(self, name)
            fits = all(isinstance(value, int) and 1 <= value <= MOST_ROWS for value in values)
            different = name == "reward_model_epochs" or len({*values}) == len(values)
            what = "one or more integers" if name == "reward_model_epochs" else "one or more different integers"
            require(name, values, bool(values) and fits and different, f"{what} in 1..{MOST_ROWS}")
        fits = all(is_finite(beta) and beta >= 0 for beta in self.betas)
        fits = fits and bool(self.betas) and len({*self.betas}) == len(self.betas)
        require("betas", self.betas, fits, "one or more different finite numbers >= 0")
        check_temperature(self.noise, "noise")
        integer(self.ppo, "seed", 0, MOST_SEED)
        require("beta", self.ppo.beta, self.ppo.beta is None, "None: `betas` are the penalties of this PPO")
        require(
            "kl_target", self.ppo.kl_target, self.ppo.kl_target is None, "None: `betas` are the penalties of this PPO"
        )
        require("model", self.ppo.model, self.ppo.model is None, "None: env option reference is the start")
        epochs = self.reward_model_epochs
        fits = len(epochs) == len(self.pairs) and min(epochs) >= 1
        allowed = f"an integer >= 1 for each of pairs={self.pairs!r}"
        require("reward_model_epochs", epochs, fits, allowed)
        for name, least in (("samples", 2), ("prompts", 1), ("per_prompt", 2)):
            integer(self, name, least)
        integer(self, "episodes", 1, MOST)
