"""Weights of which every rank holds a part: FSDP2 over the layers of a model, and the passes that ranks take together.

A pass through a sharded model gathers the weights of one layer after the other from all ranks, so all have to take
it. Ranks have episodes of different lengths and mini-batches of different sizes; one that has nothing to do takes part
in the passes of the others with a token of its own, whose gradient is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from textgym_agents.lm.devices import Devices

if TYPE_CHECKING:
    from textgym_agents.lm.policy import LMPolicy


def shard(
    devices: Devices,
    roots: Sequence[nn.Module],
    device: torch.device,
    bf16: bool,
    methods: Sequence[str] = (),
    held: torch.dtype | None = None,
) -> None:
    """Leave a part of every parameter of some modules on each rank, one layer after the other.

    What is not in a layer (embeddings, output layer, value head) stays gathered behind a forward pass, so that the
    output layer can be asked for a few states at a time. Gradients are summed, never averaged, on every backend.

    Args:
        roots: modules that are called one after the other, and have all parameters between them.
        bf16: gather weights in bfloat16; the parts that the optimiser changes, and gradients, are float32.
        methods: names of the roots' methods that run the layers, beside `forward`.
        held: the precision of the parts, but of float32 ones that are trained; None: as they are.
    Raises: ValueError for a model without layers.
    """
    inside = [each for root in roots for each in root.modules()]
    layers = [each for each in inside if _is_layer(each)]
    if not layers:
        raise ValueError("parallel='fsdp': the model has no layers that could be sharded; allowed is 'ddp'")
    options: dict[str, Any] = {"mesh": init_device_mesh(device.type, (devices.world,))}
    if bf16:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in layers:
        cast_parameters(layer, held)
        fully_shard(layer, **options)
    for root in roots:
        cast_parameters(root, held)
        fully_shard(root, reshard_after_forward=False, **options)
        for name in methods:
            register_fsdp_forward_method(root, name)
    for part in inside:
        if isinstance(part, FSDPModule):
            part.set_force_sum_reduction_for_comms(True)
            part.set_gradient_divide_factor(1.0)


def cast_parameters(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Give parameters a precision, those that are trained float32 at least; buffers, such as angles, keep theirs."""
    for parameter in module.parameters():
        wanted = torch.float32 if parameter.requires_grad else dtype
        if dtype is not None and parameter.dtype != wanted and not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(wanted)


def _is_layer(module: nn.Module) -> bool:
    from transformers.modeling_layers import GradientCheckpointingLayer  # slow to import

    return isinstance(module, GradientCheckpointingLayer)


class Passes:
    """The passes of some policies, which all ranks take in one order. Making them shards the weights.

    Args:
        policies: the same on all ranks; one may share the model of another that stands before it.
    """

    def __init__(self, devices: Devices, policies: Sequence[LMPolicy]) -> None:
        self._policies, self._answering, self._layers_run = policies, False, 0
        for place, policy in enumerate(policies):
            owner = next(each for each in policies if each.model is policy.model)
            if owner is policy:
                shard(devices, [policy], policy.device, policy.bf16, ("features", "read"), policy.held)
                layer = next(filter(_is_layer, policy.modules()))
                layer.register_forward_pre_hook(self._count)
                with torch.no_grad():  # what FSDP makes in its first pass must be usable outside of inference mode
                    self._nothing(policy)
                release(policy)
            for name in ("features", "read"):
                if owner is not policy:  # the same weights without their adapter, which one root gathers for both
                    setattr(owner, f"{name}_of_{place}", getattr(policy, name))
                    register_fsdp_forward_method(owner, f"{name}_of_{place}")
                    setattr(policy, name, getattr(owner, f"{name}_of_{place}"))
                setattr(policy, name, self._announced(getattr(policy, name), policy, place))
        devices.before = self.rest

    def rest(self) -> None:
        """Take part in the passes of the other ranks until none has any left to take."""
        self._agree(0)

    def _count(self, *_: object) -> None:
        self._layers_run += 1

    def _announced(self, method: Callable[..., Tensor], policy: LMPolicy, place: int) -> Callable[..., Tensor]:
        """Return a method that takes a pass when it is that pass's turn on all ranks."""

        def call(*args: Any, **kwargs: Any) -> Tensor:
            if self._answering:
                return method(*args, **kwargs)
            self._agree(1 + 2 * place + torch.is_grad_enabled())
            before = self._layers_run
            found = method(*args, **kwargs)
            if self._layers_run == before:  # all of it was known
                self._nothing(policy)
            return _touched(found, policy)

        return call

    def _agree(self, wanted: int) -> None:
        """Take passes with the others until it is the turn of `wanted`; 0: until all want 0."""
        while True:
            turn = torch.tensor([wanted])
            dist.all_reduce(turn, dist.ReduceOp.MAX)
            chosen = int(turn)
            if chosen == wanted:
                return
            self._answer(self._policies[(chosen - 1) // 2], with_gradient=chosen % 2 == 0)

    def _answer(self, policy: LMPolicy, with_gradient: bool) -> None:
        with torch.inference_mode(False), torch.set_grad_enabled(with_gradient):
            features = self._nothing(policy)
            if with_gradient:
                logits, values = policy.heads(features)
                (0.0 * (logits.sum() + values.sum())).backward()

    def _nothing(self, policy: LMPolicy) -> Tensor:
        """Take a pass over a single token."""
        before, self._answering = self._answering, True
        try:
            place = torch.zeros(1, dtype=torch.long, device=policy.device)
            return _touched(policy.features(place[None], place, place), policy)
        finally:
            self._answering = before


def _touched(features: Tensor, policy: LMPolicy) -> Tensor:
    """Return features whose gradient reaches the value head too, as 0: all ranks reduce the same parameters."""
    if not features.requires_grad:
        return features
    head = policy.value_head
    reached: Tensor = features + 0.0 * (head.weight.sum() + head.bias.sum())
    return reached


# Tensors of sharded modules, whole


def release(*modules: nn.Module) -> None:
    """Let go of the weights that are gathered still, so that a module's tensors are this rank's parts."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor of which this rank may hold a part. All ranks call this."""
    if not isinstance(tensor, DTensor):
        return tensor
    full: Tensor = tensor.full_tensor()
    return full.cpu()


def whole_tensors(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Return tensors whole, one after the other; {} on a rank that does not keep them. All ranks call this."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full
    return found
