"""What an agent starts from: its policy, and the frozen reference, which shares whatever neither of them changes."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from textgym.checks import Bools
from textgym.lm.backbone import is_peft, recomputes
from textgym.lm.causal import (
    check_adapter,
    check_positions,
    choose_device,
    load_causal_lm,
    shared_causal_lm,
    stored_precision,
)
from textgym.lm.checked import choose_alike, choose_backbone
from textgym.lm.decoder import Decoder
from textgym.lm.encdec import refuse_encoder_decoder
from textgym.task import Task, has_language_model, prompt_end, reference_model
from textgym_agents.algorithms.fixed import check_tokenizer
from textgym_agents.config import LMConfig
from textgym_agents.lm.devices import world_size
from textgym_agents.lm.lora import add_lora, merged, switched_off, switches
from textgym_agents.lm.parts import is_sharded, own_part, own_rows
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.tiny import start_model, table_model
from textgym_agents.protocol import Agent, Observation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Policy = TypeVar("Policy", bound=LMPolicy)
TABLE = "table"
"""As `model`: a table of the task's states that starts as its reference, see `textgym_agents.lm.table`."""
LEARNING_RATE = 5e-4
TINY_LEARNING_RATE = 3e-3
TABLE_LEARNING_RATE = 0.05
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_ONCE = 2**20  # entries of a tensor whose bits are added up in one go: 8 MiB for each number of 64 bits


class Start(NamedTuple):
    """An untrained policy, its reference, and whether that is another module than `make_reference` would give."""

    policy: LMPolicy
    reference: FrozenPolicy
    apart: bool


def start_policies(task: Task, config: LMConfig, model: nn.Module | None = None) -> Start:
    """Return what an agent starts from.

    Weights of a model with a name are there once: the reference is the module that `make_reference` gives. With an
    adapter (`lora_rank`) the reference is the policy without it, and the weights under it are those of that module.

    Args:
        model: a causal LM, of which a copy is taken; None: `config.model`, the task's reference, or a tiny model.
    Raises: ValueError if the model does not serve, or cannot read the longest state of the task.
    """
    device = choose_device(config.device)
    name = None if model is not None or config.model == TABLE else config.model
    if model is None and config.model is None and has_language_model(task):
        name = str(reference_model(task))
    start = _model(task, config, name, device) if model is None else cast("PreTrainedModel", model)
    check_adapter(start)
    check_positions(start, task.max_prompt_tokens, task.max_new_tokens)
    if _sharded(config):
        refuse_encoder_decoder(start, "parallel='fsdp'")
    if config.lora_rank is not None:
        return _with_adapter(task, config, start, name, device)
    sharded = _sharded(config)
    model = _sharing(start) if sharded else copy.deepcopy(start)
    policy = _policy(LMPolicy, task, config, model, device, recomputes(start))
    where = choose_device(config.reference_device or str(device))
    precision = getattr(torch, config.reference_precision)
    # Sharding changes a module in place, so then it has to be the agent's own.
    if sharded:
        own = _sharing(policy.model).requires_grad_(False)
    elif name is None:
        own = _frozen_copy(policy.model, precision, where)
    else:
        own = shared_causal_lm(name, where, precision)
    reference = _policy(FrozenPolicy if where == device else Elsewhere, task, config, own, where)
    reference.value_head.requires_grad_(False)
    reference.base = _place(name)
    if isinstance(reference, Elsewhere):
        reference.home = device
    if type(reference.backbone) is not type(policy.backbone):  # run the same way they say the same bits: a KL of 0
        with reference.precision():
            reference.backbone = choose_backbone(own, lean=False, tokens=_tokens(task))
        reference._decoder = Decoder(reference.backbone, where)
    policy.held, reference.held = _held(torch.float32, name), _held(precision, name)
    return Start(policy, reference, where != device or precision != torch.float32 or sharded)


def load_teacher(name: str, task: Task, config: LMConfig, agent: Agent | None) -> LMPolicy:
    """Return the policy of a teacher over a task's tokens; nobody may change it.

    Args:
        name: folder or hub id of a causal LM, at temperature 1, or the folder that `agent` was saved in.
        config: supplies device and precision.
        agent: with a policy and a temperature of its own; None: `name` is a causal LM's.
    Raises: ValueError for what has no causal LM, or one of other tokens or too few positions.
    """
    if agent is not None:
        if isinstance(policy := getattr(agent, "policy", None), LMPolicy):
            return policy
        raise ValueError(f"teacher={name!r}: agent {agent.name!r} has no language model; allowed are such as lm-ppo")
    check_tokenizer(name, task, f"teacher={name!r}")
    device = choose_device(config.device)
    try:
        model = shared_causal_lm(name, device)
        check_positions(model, task.max_prompt_tokens, task.max_new_tokens)
        return _policy(LMPolicy, task, replace(config, temperature=1.0), model, device)
    except ValueError as error:
        raise ValueError(f"teacher={name!r}: {error}") from error


def _with_adapter(
    task: Task, config: LMConfig, start: PreTrainedModel, name: str | None, device: torch.device
) -> Start:
    """Return a policy with a new adapter over `start`, and the reference that is the same without it."""
    sampler = getattr(config, "sampler", None)
    if sampler is not None and is_peft(start):
        raise ValueError(
            f"sampler={sampler!r}: the start's adapter is merged before lora_rank={config.lora_rank} adds another one, "
            "and the server has the model without it; allowed are lora_rank=None, a start without an adapter "
            "(textgym export merges), or sampler=None"
        )
    shared, sharded = start if name is not None and not is_peft(start) else None, _sharded(config)
    policy = _policy(LMPolicy, task, config, _adapted(start, shared is not None, config), device, recomputes(start))
    policy.held = _held(_frozen_precision(config), name)
    # Sharding takes the policy's own part of the shared weights, and nothing is left to be shared.
    kept = None if sharded else shared
    reference = AdapterOff(policy, task.vocabulary.allowed, kept, _tokens(task), sharded)
    if shared is not None:
        reference.base = _place(name)
    return Start(policy, reference, is_peft(start) or _frozen_precision(config) != torch.float32 or sharded)


def _model(task: Task, config: LMConfig, name: str | None, device: torch.device) -> PreTrainedModel:
    """Return the model of a name, which others may have too, or a tiny one."""
    if name is not None and _sharded(config):
        return load_causal_lm(name, stored_precision(name))
    if name is not None:
        return shared_causal_lm(name, device, _frozen_precision(config))
    if config.lora_rank is not None:
        raise ValueError(
            f"lora_rank={config.lora_rank!r}: the reference of task {task.name!r} is no language model, and the tiny "
            "one that stands for it has nothing to adapt; allowed is None, or give model=FOLDER_OR_HUB_ID"
        )
    return table_model(task) if config.model == TABLE else start_model(task, seed=config.seed)


def _place(name: str | None) -> str | None:
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name


def _policy(
    kind: type[Policy],
    task: Task,
    config: LMConfig,
    model: nn.Module,
    device: torch.device,
    recompute: bool | None = None,
) -> Policy:
    """Return a policy over a model; its layers run again for the gradient if `recompute`, or if the settings ask."""
    policy = kind(
        cast("PreTrainedModel", model),
        allowed=task.vocabulary.allowed,
        temperature=config.temperature,
        device=device,
        bf16=config.precision == "bfloat16",
        recompute=recompute is not None and (recompute or config.gradient_checkpointing),
        sharded=_sharded(config),
        tokens=_tokens(task),
    )
    policy.backbone.prompt_end = prompt_end(task, policy.model)
    return policy


def like(policy: LMPolicy, task: Task, config: LMConfig, model: nn.Module) -> LMPolicy:
    """Return a policy over a model, on the device of another policy and with the same settings."""
    return _policy(LMPolicy, task, config, model, policy.device)


def _sharded(config: LMConfig) -> bool:
    return config.parallel == "fsdp" and world_size() > 1


def _held(precision: torch.dtype, name: str | None) -> torch.dtype | None:
    """Return what sharded weights are turned into: float32 only those of a model that is loaded."""
    return precision if name is not None or precision != torch.float32 else None


def _tokens(task: Task) -> int:
    return task.max_prompt_tokens + task.max_new_tokens


def _frozen_precision(config: LMConfig) -> torch.dtype:
    """Return the precision of a model that is loaded: float32, unless it lies frozen under an adapter."""
    return torch.float32 if config.lora_rank is None else getattr(torch, config.precision)


def peak_rate(model: nn.Module, tiny: bool) -> float:
    """Return the learning rate at its peak where none is set; on-policy agents begin with a quarter and then scale it.

    It is 5e-4 up to 4 million parameters, 2000 / parameters beyond, and 3e-6 at least: 1.6e-5 for GPT-2's 124 million,
    4e-6 for half a billion. An adapter takes ten times as much, 5e-4 at most. 3e-3 for a model made by `tiny_model`,
    0.05 for a table.

    Source: Huang et al. (2024), arXiv:2403.17031, take 3e-6 for Pythia of 1, 2.8 and 6.9 billion parameters, in
        fine-tuning, reward model and PPO alike. Schulman and Thinking Machines Lab (2025), LoRA Without Regret, find
        LoRA's best rate about ten times that of all weights. What is between comes from no source: the small models of
        the tests learn best with 5e-4, and from there to 3e-6 the rate falls as 1 / parameters.
    """
    if tiny:
        return TINY_LEARNING_RATE
    if getattr(model, "is_table", False):
        return TABLE_LEARNING_RATE
    rate = max(LEARNING_RATE * min(1.0, 4e6 / sum(each.numel() for each in model.parameters())), 3e-6)
    return min(10 * rate, LEARNING_RATE) if is_peft(model) else rate


class FrozenPolicy(LMPolicy):
    """A reference.

    Attributes:
        base: absolute folder or hub id of its weights; None where they are in no such place.
    """

    base: str | None = None


class Elsewhere(FrozenPolicy):
    """A reference on a device of its own: what it is asked with may be on the policy's device, what it answers is."""

    home = torch.device("cpu")
    """The policy's device."""

    def features(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """See `LMPolicy.features`."""
        ids, rows, columns = (part.to(self.device) for part in (input_ids, rows, columns))
        return super().features(ids, rows, columns).to(self.home)

    def heads(self, features: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `LMPolicy.heads`."""
        logits, values = super().heads(features.to(self.device), None if masks is None else masks.to(self.device))
        return logits.to(self.home), values.to(self.home)

    def read(self, observation: Observation, active: Bools | None = None) -> Tensor:
        """See `LMPolicy.read`."""
        return super().read(observation, active).to(self.home)


class AdapterOff(FrozenPolicy):
    """A reference that is a policy without its adapter: the same module, with a key-value cache of its own.

    Args:
        policy: with an adapter, trained or not. allowed, tokens, sharded: see `LMPolicy`.
        start: the module of the same weights that others may ask for, which is kept for them; None: there is none.

    Its `base` is the model under the adapter.
    """

    def __init__(
        self, policy: LMPolicy, allowed: Bools, start: PreTrainedModel | None, tokens: int, sharded: bool = False
    ) -> None:
        super().__init__(policy.model, allowed, policy.temperature, policy.device, policy.bf16, False, sharded, tokens)
        # Held and not owned: parameters() are the reference's own, and nothing that is trained.
        del self._modules["model"]
        self.__dict__ |= {"model": policy.model, "_start": start}
        self.value_head.requires_grad_(False)

    @cached_property
    def _switches(self) -> list[nn.Module]:
        return switches(self.model)

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """Run the model without its adapter, in the precision that was asked for."""
        with super().precision(), switched_off(self._switches):
            yield


def _adapted(start: PreTrainedModel, shared: bool, config: LMConfig) -> nn.Module:
    """Return a model with a new adapter, over `start` with the adapter that it has already merged into it.

    Args: shared: whether its weights may be used, and not only read.
    """
    if is_peft(start):
        own = merged(copy.deepcopy(start))
    elif shared or _sharded(config):
        own = _sharing(start)
    else:
        own = copy.deepcopy(start)
    return add_lora(own if _sharded(config) else _cast(own, _frozen_precision(config)), config, config.seed)


def _sharing(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of its own over the same weights, which stay as they are."""
    return copy.deepcopy(model, {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()})


def _frozen_copy(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return a copy that shares the parameters which are frozen already and stay as they are."""
    alike = model.device == device and model.dtype == dtype
    kept = {id(each): each for each in model.parameters() if alike and not each.requires_grad}
    found = copy.deepcopy(model, kept)
    found.requires_grad_(False)
    if alike:
        choose_alike(found, model)
    return _cast(nn.Module.to(found, device), dtype)


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Give a model's parameters a precision; buffers, such as the angles of rotary embeddings, keep theirs."""
    for parameter in () if getattr(model, "is_table", False) else model.parameters():
        if dtype != torch.float32 and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    return model


def fingerprint(model: nn.Module, whole: bool = False, placed: bool = True) -> str:
    """Return a digest of what is not trained of a model, or of the whole: names, shapes and bits of its parameters.

    Of a sharded model it is that of the whole. All ranks call this.

    Args: placed: whether it sees which entry of a tensor is where, which the digests of older checkpoints do not.
    """
    known = hashlib.sha256()
    named = sorted(model.named_parameters())
    frozen = [(name, each.detach()) for name, each in named if whole or not each.requires_grad]
    bits = torch.tensor([_sum(each, placed) for _, each in frozen], dtype=torch.int64)
    if is_sharded(model):
        dist.all_reduce(bits)
    for (name, each), total in zip(frozen, bits.tolist(), strict=True):
        known.update(f"{name} {tuple(each.shape)} {each.dtype} {total}\n".encode())
    return known.hexdigest()


def has_fingerprint(model: nn.Module, digest: object, whole: bool = False) -> bool:
    """Return whether a digest is a model's, be it of today or of an older checkpoint. All ranks call this."""
    return any(fingerprint(model, whole, placed) == digest for placed in (True, False))


def _sum(tensor: Tensor, placed: bool) -> int:
    """Return the sum of the entries' bits, integers, modulo 2^64; each times its place, from 1, if `placed`.

    Of a sharded tensor it is this rank's share.
    """
    own = own_part(tensor).reshape(-1)
    first = own_rows(tensor)[0] * math.prod(tensor.shape[1:]) + 1
    total = torch.zeros((), dtype=torch.int64, device=own.device)
    for part in own.view(_BITS[own.element_size()]).split(_AT_ONCE):
        places = torch.arange(first, first + len(part), device=own.device)
        total += (part * places).sum() if placed else part.sum(dtype=torch.int64)
        first += len(part)
    return int(total)
