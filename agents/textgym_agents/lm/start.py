"""What an agent starts from: its policy, and the frozen reference, which shares whatever neither of them changes."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from textgym.checks import Bools
from textgym.lm.backbone import Decoder, is_peft
from textgym.lm.causal import check_adapter, check_positions, choose_device, shared_causal_lm
from textgym.lm.checked import choose_backbone
from textgym.lm.llama import recomputes
from textgym.task import Task, has_language_model, reference_model
from textgym_agents.config import LMConfig
from textgym_agents.lm.lora import add_lora, merged, switched_off, switches
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.tiny import start_model
from textgym_agents.protocol import Observation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Start(NamedTuple):
    """An untrained policy, its reference, and whether that is another module than `make_reference` would give."""

    policy: LMPolicy
    reference: LMPolicy
    apart: bool


def start_policies(task: Task, config: LMConfig, model: nn.Module | None = None) -> Start:
    """Return what an agent starts from.

    Weights of a model with a name are there once: the reference is the module that `make_reference` gives. With an
    adapter (`lora_rank`) the reference is the policy without it, and the weights under it are those of that module.

    Args:
        model: a causal LM, of which a copy is taken; None: `config.model`, the task's reference, or a tiny model.
    Raises: ValueError if the model does not serve, or cannot read the longest state of the task.
    """
    device, named = choose_device(config.device), config.model or ""
    if not named and model is None and has_language_model(task):
        named = str(reference_model(task))
    bf16 = config.precision == "bfloat16"
    dtype = torch.bfloat16 if bf16 and config.lora_rank is not None else torch.float32
    if model is not None:
        start = cast("PreTrainedModel", model)
    elif named:
        start = shared_causal_lm(named, device, dtype)
    elif config.lora_rank is None:
        start = start_model(task, seed=config.seed)
    else:
        raise ValueError(
            f"lora_rank={config.lora_rank!r}: the reference of task {task.name!r} is no language model, and the tiny one "
            "that stands for it has nothing to adapt; allowed is None, or give model=FOLDER_OR_HUB_ID"
        )
    check_adapter(start)
    tokens = task.max_prompt_tokens + task.max_new_tokens
    check_positions(start, tokens)
    recompute = config.gradient_checkpointing or recomputes(start)

    def policy_of(own: nn.Module) -> LMPolicy:
        return LMPolicy(
            cast("PreTrainedModel", own),
            allowed=task.vocabulary.allowed,
            temperature=config.temperature,
            device=device,
            bf16=bf16,
            recompute=recompute,
            tokens=tokens,
        )

    shared = start if model is None and named else None
    if config.lora_rank is not None:
        policy = policy_of(_adapted(start, shared is not None, config, dtype))
        plain = None if is_peft(start) else shared  # an adapter that was merged leaves nothing to share
        without = AdapterOff(policy, task.vocabulary.allowed, plain, tokens)
        if plain is not None:
            without.base = str(Path(named).resolve()) if Path(named).is_dir() else str(named)
        return Start(policy, without, dtype != torch.float32 or is_peft(start))
    policy = policy_of(copy.deepcopy(start))
    where = choose_device(config.reference_device or str(device))
    precision = torch.bfloat16 if config.reference_precision == "bfloat16" else torch.float32
    alike = where == device and precision == torch.float32
    if model is not None or not named:
        frozen = _frozen_copy(policy.model, precision, where)
    else:
        frozen = start if alike else shared_causal_lm(named, where, precision)
    return Start(policy, FrozenLM(policy, task.vocabulary.allowed, frozen, where, tokens), not alike)


class FrozenLM(LMPolicy):
    """A reference: a policy over a model that nobody changes, on a device and in a precision of its own.

    What it is asked with may be on the policy's device, and what it answers is.

    Args:
        policy: which begins as this reference: temperature and autocast are the policy's.
        allowed, device, tokens: see `LMPolicy`.
        model: may be in use elsewhere.
    """

    def __init__(
        self, policy: LMPolicy, allowed: Bools, model: PreTrainedModel, device: torch.device, tokens: int
    ) -> None:
        super().__init__(model, allowed, policy.temperature, device, policy._bf16, tokens=tokens)
        self._home = policy.device
        if type(self.backbone) is not type(policy.backbone):  # the same model gives the same bits, and a KL of 0
            with self.precision():
                self.backbone = choose_backbone(self.model, lean=False, tokens=tokens)
            self._decoder = Decoder(self.backbone, device)
        self.value_head.requires_grad_(False)

    def features(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """See `LMPolicy.features`."""
        ids, rows, columns = (part.to(self.device) for part in (input_ids, rows, columns))
        return super().features(ids, rows, columns).to(self._home)

    def heads(self, features: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `LMPolicy.heads`."""
        logits, values = super().heads(features.to(self.device), None if masks is None else masks.to(self.device))
        return logits.to(self._home), values.to(self._home)

    def read(self, observation: Observation, active: Bools | None = None) -> Tensor:
        """See `LMPolicy.read`."""
        return super().read(observation, active).to(self._home)


class AdapterOff(LMPolicy):
    """A reference that is a policy without its adapter: the same module, with a key-value cache of its own.

    Args:
        policy: with an adapter, trained or not. allowed, tokens: see `LMPolicy`.
        start: the module of the same weights that others may ask for, which is kept for them; None: there is none.

    Attributes:
        base: absolute folder or hub id of the model under the adapter; None where it is in no such place.
    """

    base: str | None = None

    def __init__(self, policy: LMPolicy, allowed: Bools, start: PreTrainedModel | None, tokens: int) -> None:
        super().__init__(policy.model, allowed, policy.temperature, policy.device, policy._bf16, tokens=tokens)
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


def _adapted(start: PreTrainedModel, shared: bool, config: LMConfig, dtype: torch.dtype) -> nn.Module:
    """Return a model with a new adapter, over `start` with the adapter that it has already merged into it.

    Args: shared: whether its weights may be used, and not only read. dtype: of the weights under the adapter.
    """
    if is_peft(start):
        own = merged(copy.deepcopy(start))
    elif shared:
        own = copy.deepcopy(start, {id(each): nn.Parameter(each.detach(), False) for each in start.parameters()})
    else:
        own = copy.deepcopy(start)
    return add_lora(_cast(own, dtype), config, config.seed)


def _frozen_copy(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return a copy that shares the parameters which are frozen already and stay as they are."""
    alike = model.device == device and model.dtype == dtype
    kept = {id(each): each for each in model.parameters() if alike and not each.requires_grad}
    found = copy.deepcopy(model, kept)
    found.requires_grad_(False)
    return _cast(nn.Module.to(found, device), dtype)


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Give a model's parameters a precision; buffers, such as the angles of rotary embeddings, keep theirs."""
    for parameter in model.parameters():
        if dtype != torch.float32 and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    return model


def fingerprint(model: nn.Module) -> str:
    """Return a digest of what is not trained of a model: names, shapes and bits of its parameters."""
    known = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            bits = int(parameter.detach().view(_BITS[parameter.element_size()]).sum(dtype=torch.int64))
            known.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {bits}\n".encode())
    return known.hexdigest()
