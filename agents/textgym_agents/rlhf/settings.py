"""What the trainings and the pipelines of RLHF are told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from textgym.checks import MOST_ROWS, shown
from textgym.preferences import check_temperature
from textgym.rewards.calling import is_finite
from textgym_agents.config import MOST, LMPPOConfig
from textgym_agents.rlhf.losses import RankingLoss

OnBroken = Literal["stop", "skip"]
Schedule = Literal["cosine", "linear", "constant_with_warmup"]
Device = Literal["auto", "cpu", "cuda", "mps"]

SEEDS = 2**32  # that transformers takes: 0..SEEDS - 1
_AT_ONCE = ("batch", "micro_batches", "epochs", "members", "demonstrations")
_COUNTS = {"save_every": 1, "eval_every": 0, "freeze": 0}
_NOT_NEGATIVE = ("weight_decay", "centering")


@dataclass(frozen=True)
class FitSettings:
    """The part that every supervised training has.

    Raises: ValueError for a setting out of range.
    """

    data: str
    """A file of rows, one JSON object a line."""
    base: str = "builtin"
    """The model to start from: a folder in Hugging Face layout, a hub id, or "builtin"."""
    epochs: int = 2
    """Passes over the data."""
    batch: int = 32
    """Rows per optimiser step."""
    micro_batches: int = 4
    """Parts that a step is computed in, rows of like length together; more of them need less memory."""
    learning_rate: float | None = None
    """Its peak; None: 1e-3 for up to a million parameters, falling with the root of their number."""
    schedule: Schedule = "cosine"
    """How the learning rate falls, after its warm-up."""
    warmup: float = 0.05
    """Share of the steps that the learning rate grows over."""
    weight_decay: float = 0.0
    """AdamW's, on matrices only."""
    max_grad_norm: float = 1.0
    """A longer gradient is scaled down to this norm."""
    adam_epsilon: float = 1e-8
    """AdamW's epsilon."""
    max_length: int | None = None
    """Tokens of a prompt with its answer; None: the model's limit, and at most 1024."""
    held_out: float = 0.1
    """Share of the prompts that is never trained on and measured before and after."""
    eval_every: int = 0
    """Steps between measurements on the held-out prompts; 0: before and after only."""
    save_every: int = 20
    """Steps between checkpoints."""
    on_broken: OnBroken = "skip"
    """What a row that cannot be used leads to: it is left out and named, or nothing is done."""
    bf16: bool = False
    """Compute in bfloat16, with the weights in float32."""
    gradient_checkpointing: bool = False
    """Keep the input of every layer alone and run the layers again for the gradient: less memory, a third more time."""
    device: Device = "auto"
    """Where to compute."""
    seed: int = 0
    """Of the split, the order of the rows and dropout."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data='': allowed is the path of a file of rows")
        for name in _AT_ONCE:
            self._check_integer(name, 1, MOST_ROWS)
        for name, least in _COUNTS.items():
            self._check_integer(name, least, MOST)
        if not (_is_integer(self.seed) and 0 <= self.seed < SEEDS):
            raise ValueError(f"seed={self.seed!r}: allowed is an integer in 0..{SEEDS - 1}")
        for name in _NOT_NEGATIVE:
            value: Any = getattr(self, name, 0)
            if not is_finite(value) or value < 0:
                raise ValueError(f"{name}={value!r}: allowed is a finite number >= 0")
        for name, kind in (("schedule", Schedule), ("on_broken", OnBroken), ("device", Device)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name}={getattr(self, name)!r}: allowed are {', '.join(get_args(kind))}")
        for name in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            value = getattr(self, name)
            if value is not None and not (is_finite(value) and value > 0):
                raise ValueError(f"{name}={value!r}: allowed is a finite number > 0")
        for name in ("warmup", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: allowed is a number in [0, 1)")
        if self.batch % self.micro_batches:
            raise ValueError(
                f"micro_batches={self.micro_batches}: allowed is a number that divides batch={self.batch}"
            )
        if self.max_length is not None and not (_is_integer(self.max_length) and self.max_length >= 2):
            raise ValueError(f"max_length={self.max_length!r}: allowed is an integer >= 2, or None")

    def _check_integer(self, name: str, least: int, most: int) -> None:
        value: Any = getattr(self, name, least)
        if not (_is_integer(value) and least <= value <= most):
            raise ValueError(f"{name}={shown(value)}: allowed is an integer in {least}..{most}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class SFTSettings(FitSettings):
    """Supervised fine-tuning on demonstrations: of prompts and completions, or the best answers of preferences.

    `data` may be "world:" and the name of one of the built-in world's tasks.
    """

    demonstrations: int = 2000
    """How many to draw, where `data` is "world:..."."""


@dataclass(frozen=True)
class RewardModelSettings(FitSettings):
    """A reward model from rankings."""

    epochs: int = 1
    """Passes over the data; a second one mostly learns pairs by heart."""
    loss: RankingLoss = "pairwise"
    """Of a ranking of K answers: the mean over its pairs, or Plackett-Luce's; for pairs they are the same."""
    margin: float | None = None
    """Reward units that the better answer is to lie above the worse one; None: the rows' own, or none."""
    centering: float = 0.0
    """Weight of a pull of the scores towards 0."""
    reference_samples: str | None = None
    """A file of prompts and completions whose mean score becomes 0; None: the answers trained on."""
    members: int = 1
    """Models of an ensemble, each with its own order of the rows and its own start of the head."""
    freeze: int = 0
    """First layers that keep the base's weights, and with them the embeddings; 0 trains everything."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in get_args(RankingLoss):
            raise ValueError(f"loss={self.loss!r}: allowed are {', '.join(get_args(RankingLoss))}")
        if self.margin is not None and not is_finite(self.margin):
            raise ValueError(f"margin={self.margin!r}: allowed is a finite number, or None")
        if self.margin is not None and self.loss == "plackett_luce":
            raise ValueError(
                f"margin={self.margin!r}: loss='plackett_luce' has none; allowed is loss='pairwise'"
            )


def peak_learning_rate(settings: FitSettings, parameters: int) -> float:
    """The peak of the learning rate: as set, or 1e-3 * sqrt(1e6 / parameters), and at most 1e-3.

    That is 1e-4 for 100 million parameters and 1.2e-5 for 7 billion.
    """
    if settings.learning_rate is not None:
        return settings.learning_rate
    return 1e-3 * min(1.0, math.sqrt(1e6 / parameters))


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
