"""Settings of runs and agents: validated, saved as JSON, shown as command-line flags. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import numpy as np

from textgym.checks import MOST_ROWS, is_finite, not_one_of, shown
from textgym.prompts import HeldOut
from textgym_agents.model_settings import CutSettings, ModelSettings
from textgym_agents.training.curriculum import CurriculumSettings
from textgym_agents.training.trackers import check_track

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST = 2**53
"""Upper bound of counts: above it, floats cannot represent every integer."""


@dataclass(frozen=True, kw_only=True)
class MeasureSettings(CurriculumSettings):
    """When a run is evaluated and saved, on which prompts, and how it draws its training prompts."""

    eval_every: int = 10
    """Iterations between evaluations on held-out prompts; 0: evaluate before and after learning only."""
    eval_points: int = 0
    """Evaluations during learning, evenly spaced over the episodes, each with a checkpoint; replaces eval_every."""
    eval_per_prompt: int = 2
    """Completions per held-out prompt in the evaluations during learning."""
    final_per_prompt: int = 16
    """Completions per held-out prompt in the first and the last evaluation."""
    optimum_per_prompt: int = 64
    """Completions per held-out prompt for the estimate of the optimum; 0: no estimate, so J without optimality."""
    save_every: int = 10
    """Iterations between checkpoints; 0: save at eval_points and at the end only."""
    keep_last: int = 0
    """Number of last checkpoints to keep in checkpoints/, with the best by held-out J; 0: keep only the newest."""
    samples: int = 8
    """Number of held-out prompts whose completions every evaluation saves."""
    split: HeldOut = "eval"
    """Held-out prompts to evaluate on: eval, for reported results, or tune, for choosing settings."""
    track: str = "tensorboard"
    """Dashboards to log to: any of tensorboard, trackio and wandb, separated by commas; "": none."""

    def __post_init__(self) -> None:
        for name in ("eval_every", "eval_points", "save_every", "keep_last", "samples"):
            integer(self, name, 0, MOST)
        for name, least in (("eval_per_prompt", 1), ("final_per_prompt", 1), ("optimum_per_prompt", 0)):
            integer(self, name, least)
        check_split(self.split)
        check_track(self.track)
        self.check_curriculum()


@dataclass(frozen=True)
class TrainSettings(MeasureSettings):
    """The settings of a run, as stored in its config.json.

    Args:
        id: id of the environment. env: its options, JSON values.
        agent: a registered name or `module:Class`. config: the agent's settings.
        episodes: the budget.
    Raises: ValueError for a number out of range, an unknown split, or a value of another type.
    """

    id: str
    agent: str
    episodes: int
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        integer(self, "episodes", 1, MOST)
        super().__post_init__()
        for name, kind in (("id", str), ("agent", str), ("env", dict), ("config", dict)):
            if not isinstance(getattr(self, name), kind):
                allowed = "a text" if kind is str else "a JSON object"
                raise ValueError(f"{name}={getattr(self, name)!r:.80}: allowed is {allowed}")


def check_split(split: object) -> None:
    """Raise ValueError unless it is the name of a held-out split."""
    if split not in get_args(HeldOut):
        raise ValueError(not_one_of("split", split, get_args(HeldOut)))


Importance = Literal["none", "truncate", "mask"]
Parallel = Literal["ddp", "fsdp"]
KL = Literal["exact", "k1", "k2", "k3", "k3-ratio"]


@dataclass(frozen=True)
class LMConfig(ModelSettings):
    """Settings shared by all agents on a causal LM.

    Raises: ValueError that names the setting, its value and what is allowed; ModuleNotFoundError for LoRA without peft.
    """

    model: str | None = None
    """Folder or hub id of the causal LM, start and reference; None: the task's reference; "table": a table."""
    batch: int | None = None
    """Episodes per iteration (sub-environments); None: the largest of 64, 128 and 256 that gives 16 iterations."""
    micro_batch: int = 64
    """Episodes per forward and backward pass; affects memory and speed only, never the gradient."""
    learning_rate: float | None = None
    """Peak learning rate of Adam; None: 5e-4 up to 4 million parameters, then 2000 / parameters, at least 3e-6; for an
    adapter ten times that, at most 5e-4; 3e-3 if the start is made for the task. See `update_kl`."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Decay of the learning rate over the budget; linear and cosine end at a tenth of the peak."""
    warmup: float = 0.0
    """Share of the budget during which the learning rate rises from 0."""
    adam_epsilon: float = 1e-5
    """Adam's epsilon."""
    max_grad_norm: float = 1.0
    """Clip gradients to this global norm."""
    beta: float | None = None
    """KL coefficient, reward units per nat; None: the task's beta."""
    kl: KL = "exact"
    """exact: over the whole vocabulary in each state; its own gradient is in the loss, the KL of later states in the
    return. k1: sampled log-ratio in the reward. k2: half its square in the loss, and k1 of later tokens in the return.
    k3: in the loss only, as in GRPO (its gradient is that of the opposite KL). k3-ratio: k3 times pi(a) / (its
    probability when sampled), in the loss only; its gradient is that of KL(pi || ref) in each state."""
    kl_target: float | None = None
    """Target KL of an adaptive beta, nats per sequence; None: beta is fixed."""
    kl_horizon: int = 10_000
    """Episodes over which the adaptive beta changes."""
    temperature: float = 1.0
    """Divides the logits of policy and reference, both for sampling and for scoring; 1e-6 or more."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the models under autocast. Trained weights stay in float32; frozen weights under a LoRA adapter are
    stored in bfloat16."""
    gradient_checkpointing: bool = False
    """Store only the input of every layer and recompute the rest for the gradient: less memory, a third more time. It
    is also on if the model has it enabled."""
    parallel: Parallel = "ddp"
    """What each process holds when torchrun starts several. ddp: all weights. fsdp: a shard of every weight."""
    seed: int = 0
    """Seed of prompts, sampling and mini-batches."""

    def __post_init__(self) -> None:
        at_least_one(self, "batch", "micro_batch")
        at_least_one(self, "kl_horizon", most=MOST)
        positive(self, "adam_epsilon", "max_grad_norm", "temperature", "learning_rate", "kl_target")
        share(self, "warmup")
        not_negative(self, "beta")
        only_with(self, "kl_horizon", self.kl_target is not None, "kl_target")
        require("seed", self.seed, self.seed >= 0, "an integer >= 0")
        self.check_model()


@dataclass(frozen=True)
class OnPolicyConfig(CutSettings, LMConfig):
    """Settings of policy-gradient agents on a causal LM. Raises: as `LMConfig` does."""

    epochs: int = 2
    """Passes over a batch."""
    minibatches: int = 4
    """Optimiser steps per pass."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus, in standardised advantages per nat; with entropy_target the initial weight."""
    entropy_target: float | None = None
    """Nats per token: a batch up to it raises entropy_coefficient by entropy_step; others lower it and get no bonus."""
    entropy_step: float = 0.005
    """Step by which entropy_target changes entropy_coefficient, which never falls below 0 (arXiv:2505.22312)."""
    overlong: Literal["keep", "mask"] = "keep"
    """mask: do not train on completions that the token limit cut off; baselines and deviations still count them."""
    whiten: bool = True
    """Standardise advantages over the batch's real tokens; the KL term in the loss is scaled in the same way."""
    update_kl: float = 1.5
    """Without learning_rate, for language models: nats per sequence of an update straight to higher scores, at 256
    episodes and 8 or more steps (else in proportion; more in a short budget). Set from the first batch's effect."""
    stop_update_kl: float | None = None
    """Stop an update early at this KL from the policy that sampled, nats per token; None: never."""
    sampler: str | None = None
    """Address of a server with vLLM's API that writes the completions, such as http://localhost:8000; the policy's
    weights are sent to it as a LoRA adapter. None: the policy writes them itself."""
    importance: Importance = "truncate"
    """Weight of an action sampled by the server. none: 1. truncate: pi(a) over the server's probability of it, at most
    importance_cap. mask: the same ratio, but 0 above importance_cap or below importance_floor."""
    importance_level: Literal["token", "sequence"] = "token"
    """token: the ratio of the action itself. sequence: the product of the ratios over its completion."""
    importance_cap: float = 2.0
    """Largest weight: a greater ratio counts as this (truncate) or as 0 (mask)."""
    importance_floor: float = 0.0
    """Lower bound of the ratio, with importance=mask."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "epochs", "minibatches", "top_k", "mask_every")
        not_negative(self, "entropy_coefficient", "importance_floor")
        only_with(self, "entropy_step", self.entropy_target is not None, "entropy_target")
        most = self.batch or 256
        require("minibatches", self.minibatches, self.minibatches <= most, f"at most batch={most}")
        positive(self, "importance_cap", "update_kl", "stop_update_kl", "entropy_target", "entropy_step")
        unused = self.learning_rate is not None and self.update_kl != OnPolicyConfig.update_kl
        require("update_kl", self.update_kl, not unused, f"{OnPolicyConfig.update_kl} with a learning_rate")
        for name in ("importance", "importance_level", "importance_cap"):
            only_with(self, name, self.sampler is not None, "sampler")
        only_with(self, "importance_floor", self.importance == "mask", "importance='mask'")
        low, high = self.importance_floor, self.importance_cap
        require("importance_floor", low, low < high, f"less than importance_cap={high}")
        share(self, "min_p")
        for name, value in (("top_p", self.top_p), ("mask_top_p", self.mask_top_p)):
            require(name, value, is_finite(value) and 0 < value <= 1, "a number in (0, 1]")
        only_with(self, "mask_every", self.mask_top_p < 1, "mask_top_p below 1")
        alone = self.sampler is None and self.parallel == "ddp"
        require("mask_top_p", self.mask_top_p, alone or self.mask_top_p == 1, "1 with a sampler or parallel='fsdp'")


@dataclass(frozen=True)
class ActorCriticConfig(OnPolicyConfig):
    """Settings of policy-gradient agents with a value head. Raises: as `LMConfig` does."""

    lam: float = 1.0
    """GAE's lambda, per token; 1: returns of whole episodes, which are unbiased for any V."""
    value_clip: float = 0.2
    """Clip range of a value's change per batch, in units of the first batch's reward spread."""
    value_coefficient: float = 0.01
    """Weight of the value loss. It trains the shared trunk, too: a large weight makes the model forget other things."""
    value_rate: float = 10.0
    """Learning rate of the value head, as a multiple of the policy's; the head starts from 0, not pre-trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "lam")
        positive(self, "value_clip", "value_rate")
        not_negative(self, "value_coefficient")


@dataclass(frozen=True)
class LMPPOConfig(ActorCriticConfig):
    """Settings of LM PPO. Raises: as `LMConfig` does."""

    clip: float = 0.2
    """Clip range of the probability ratio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "clip")


Decay = Literal["cosine", "linear", "constant_with_warmup"]
MOST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of the supervised trainer.

    Raises: ValueError that names the setting, its value and what is allowed.
    """

    epochs: int = 2
    """Passes over the data."""
    batch: int = 32
    """Rows per optimiser step."""
    micro_batches: int = 4
    """Number of parts that a step is split into, rows of similar length together; more parts need less memory."""
    learning_rate: float | None = None
    """Peak learning rate; None: 1e-3 up to a million parameters, then falling with the root of their number."""
    schedule: Decay = "cosine"
    """Decay of the learning rate after the warm-up."""
    warmup: float = 0.05
    """Share of the steps during which the learning rate rises."""
    weight_decay: float = 0.0
    """AdamW's weight decay, applied to matrices only."""
    max_grad_norm: float = 1.0
    """Clip gradients to this norm."""
    adam_epsilon: float = 1e-8
    """AdamW's epsilon."""
    save_every: int = 20
    """Steps between checkpoints."""
    bf16: bool = False
    """Compute in bfloat16; the weights stay in float32."""
    parallel: Parallel = "ddp"
    """What each process holds when torchrun starts several. ddp: all weights. fsdp: a shard of every weight."""
    seed: int = 0
    """Seed of the split, the order of the rows and dropout."""

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batches", "epochs"):
            integer(self, name, 1)
        integer(self, "save_every", 1, MOST)
        integer(self, "seed", 0, MOST_SEED)
        not_negative(self, "weight_decay")
        positive(self, "max_grad_norm", "adam_epsilon", "learning_rate")
        require("warmup", self.warmup, 0 <= self.warmup < 1, "a number in [0, 1)")
        parts, batch = self.micro_batches, self.batch
        require("micro_batches", parts, batch % parts == 0, f"a number that divides batch={batch}")


def check_types(config: DataclassInstance) -> None:
    """Check the fields of a config against their annotations: bool, int, float, str or Literal, also with None.

    True and False are not numbers, and numbers are finite; numpy's are accepted. A str may be a path. The helpers below
    check this first, so that they compare values of the right type.

    Raises: ValueError that names the setting, its value and what is allowed.
    """
    hints = _annotations(config.__class__)
    for each in fields(config):
        hint, value = hints.get(each.name, Any), getattr(config, each.name)
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [part for part in parts if part is not NoneType]
        if len(kinds) != 1 or (value is None and NoneType in parts):
            continue
        holds, allowed = _fits(value, kinds[0])
        require(each.name, value, holds, f"None or {allowed}" if NoneType in parts else allowed)


# Each of these takes None, too, for a setting whose annotation has it.


def at_least_one(config: DataclassInstance, *names: str, most: int = MOST_ROWS) -> None:
    """Raise ValueError unless the settings are integers in 1..most; the default limits what is done or held at once."""
    _hold(config, names, lambda value: 1 <= value <= most, f"an integer in 1..{most}")


def positive(config: DataclassInstance, *names: str) -> None:
    """Raise ValueError unless the settings are finite and above 0."""
    _hold(config, names, lambda value: value > 0, "a finite number > 0")


def not_negative(config: DataclassInstance, *names: str) -> None:
    """Raise ValueError unless the settings are finite and 0 or more."""
    _hold(config, names, lambda value: value >= 0, "a finite number >= 0")


def share(config: DataclassInstance, *names: str) -> None:
    """Raise ValueError unless the settings are in [0, 1]."""
    _hold(config, names, lambda value: 0 <= value <= 1, "a number in [0, 1]")


def _hold(config: DataclassInstance, names: tuple[str, ...], holds: Callable[[float], bool], allowed: str) -> None:
    check_types(config)
    for name in names:
        value, optional = getattr(config, name), NoneType in get_args(_annotations(type(config)).get(name))
        require(name, value, value is None or holds(value), f"None or {allowed}" if optional else allowed)


def only_with(config: DataclassInstance, name: str, used: bool, needs: str) -> None:
    """Raise ValueError if the setting differs from its default where nothing uses it.

    Args:
        used: whether something uses it. needs: what would, as a setting.
    """
    value = getattr(config, name)
    default = next(field.default for field in fields(config) if field.name == name)
    require(name, value, used or value == default, f"{default!r} without {needs}")


def integer(config: object, name: str, least: int, most: int = MOST_ROWS) -> None:
    """Raise ValueError unless the setting is an integer in least..most."""
    value = getattr(config, name)
    fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    require(name, value, fits, f"an integer in {least}..{most}")


def require(name: str, value: object, holds: bool, allowed: str) -> None:
    """Raise ValueError with the name, the value and what is allowed, unless the condition holds."""
    if not holds:
        raise ValueError(f"{name}={shown(value)}: allowed is {allowed}")


@cache
def _annotations(kind: type) -> dict[str, Any]:
    """Return the annotations of a class and its bases, but for classes that use names which their module has not."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        try:
            found |= inspect.get_annotations(base, eval_str=True)
        except NameError:
            continue
    return found


def _fits(value: object, kind: object) -> tuple[bool, str]:
    """Return whether a value is of a kind, and what is; everything is of a kind that no setting has."""
    if kind is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool), "an integer"
    if kind is float:
        return is_finite(value), "a finite number"
    if kind is bool:
        return isinstance(value, bool), "True or False"
    if kind is str:
        return isinstance(value, str | Path), "a text"
    if get_origin(kind) is Literal:
        members = get_args(kind)
        return isinstance(value, str) and value in members, " or ".join(map(repr, members))
    return True, "anything"
