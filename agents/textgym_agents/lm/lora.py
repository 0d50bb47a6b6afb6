"""LoRA adapters by PEFT: added to a model, switched off for a while, merged, read back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from textgym.checks import first_line, shown
from textgym.lm.backbone import is_peft
from textgym.lm.encdec import refuse_encoder_decoder
from textgym_agents.lm.parts import is_sharded, part_like
from textgym_agents.lm.sharding import release, whole_tensors
from textgym_agents.model_settings import LoRASettings

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel


def add_lora(model: PreTrainedModel, settings: LoRASettings, seed: int, head: nn.Module | None = None) -> nn.Module:
    """Put a LoRA adapter into a model, in place, and freeze everything else; what the model says stays the same.

    Dropout is 0: a policy that drops parts of its adapter where it acts and scores would be several policies.

    Args:
        model: without an adapter. settings: rank, alpha and targets.
        seed: of the adapter's first matrices, the second are 0; no global random state is touched.
        head: layers that are trained whole beside the adapter, such as those of a reward model; without an adapter.
    Returns: PEFT's model around it. The adapter's parameters are float32.
    Raises: ValueError if the model has no such layers, or one of them shares its weights with another layer: merged, an
        adapter's change would be in both.
    Source: Hu et al. (2021), arXiv:2106.09685.
    """
    from peft import LoraConfig, get_peft_model

    refuse_encoder_decoder(model, f"lora_rank={settings.lora_rank}")
    names = settings.target_names()
    whole = set() if head is None else {*head.modules()}
    left_out = [name for name, module in model.named_modules() if module in whole]
    linear = [name for name in _linear_layers(model) if name not in left_out]
    ends = sorted({name.rpartition(".")[2] for name in linear})
    allowed = f"allowed are 'all-linear' and names such as {', '.join(ends)}"
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=linear if names == ["all-linear"] else names,
        exclude_modules=left_out or None,
        task_type="CAUSAL_LM" if head is None else None,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older names of transformers, and which side of a product GPT-2 has weights on
        torch.default_generator.manual_seed(seed)
        try:
            adapted = cast(nn.Module, get_peft_model(model, config))
        except ValueError as error:
            raise ValueError(
                f"lora_targets={shown(settings.lora_targets)}: {type(model).__name__} has no such layers; {allowed} "
                f"({first_line(error):.160})"
            ) from error
    for layer in switches(adapted):
        if (parameter := getattr(layer, "parameter_name", None)) is not None:
            raise ValueError(
                f"lora_targets={shown(settings.lora_targets)}: {type(model).__name__} holds what they name in the "
                f"parameter {parameter!r}, not in linear layers; {allowed}"
            )
        weight = _weight(own := layer.get_base_layer())  # type: ignore[operator]
        shared = [name for name, part in model.named_modules() if part is not own and _weight(part) is weight]
        sharing = [] if weight is None else shared
        if sharing:
            raise ValueError(
                f"lora_targets={shown(settings.lora_targets)}: {type(model).__name__} uses the same weights in "
                f"{sharing[0]!r}, and merged, it would change both; allowed are layers with weights of their own"
            )
    if head is not None:
        head.requires_grad_(True)
    return adapted


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of "all-linear": every linear layer that an adapter can change, but the output layer.

    In mixtures of experts PEFT takes some ends of names, such as down_proj, for parameters of the experts. The mixers
    of Mamba and its kin read the weights of two layers past the adapter; one of them PEFT refuses.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    from transformers.pytorch_utils import Conv1D

    def is_plain(end: str) -> bool:
        config = LoraConfig(target_modules=[end])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # a part of what is one parameter of the experts
            return False
        return not config.target_parameters

    output = model.get_output_embeddings()
    linear = (nn.Linear, Conv1D)
    names = [name for name, part in model.named_modules() if isinstance(part, linear) and part is not output]
    ends = {name.rpartition(".")[2] for name in names}
    plain = {end for end in ends if is_plain(end)}
    kind = model.config.model_type
    if kind in ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"):
        plain -= {"out_proj", "dt_proj"}
    if kind == "jamba":
        plain.discard("dt_proj")
    return [name for name in names if name.rpartition(".")[2] in plain]


def _weight(module: nn.Module) -> torch.Tensor | None:
    return module._parameters.get("weight")


def trained_parameters(model: nn.Module) -> int:
    """Return how many parameters of a model are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def merged(model: nn.Module) -> PreTrainedModel:
    """Return the plain model in which an adapter's change is part of the weights.

    The model given is used up, and so are weights that it shares with others: it is not for an agent's policy.
    """
    return cast("PreTrainedModel", model.merge_and_unload())  # type: ignore[operator]


def switches(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model that hold an adapter."""
    return [module for module in model.modules() if hasattr(module, "_disable_adapters")]


@contextlib.contextmanager
def switched_off(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Run a block without the adapters of some layers.

    PEFT's own switch freezes and thaws the adapters as well, which would be seen by a backward pass around it.
    """
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True  # type: ignore[assignment]
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


def save_model(
    model: PreTrainedModel, folder: Path, base: str | None = None, tensors: dict[str, torch.Tensor] | None = None
) -> None:
    """Write a model as Hugging Face reads it; of one with an adapter, the adapter alone, as PEFT reads it.

    Args:
        base: the folder or hub id of the model under the adapter, for PEFT.
        tensors: see `model_tensors`.
    """
    if not is_peft(model):
        model.save_pretrained(folder, state_dict=tensors)
        return
    config = cast("LoraConfig", model.peft_config["default"])
    before = config.base_model_name_or_path, config.target_modules
    config.base_model_name_or_path = base or before[0]
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # the order of a set differs from process to process
    try:
        # What is in doubt with "auto", PEFT asks the hub.
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=tensors)
    finally:
        config.base_model_name_or_path, config.target_modules = before


def model_tensors(model: PreTrainedModel, keep: bool) -> dict[str, torch.Tensor] | None:
    """Return the whole tensors of a sharded model, of one with an adapter those of the adapter, to be saved.

    All ranks call this. Returns: None for a model that is not sharded; {} on a rank that does not keep them.
    """
    release(model)
    if not is_sharded(model):
        return None
    return whole_tensors(_apart(model)[0] if is_peft(model) else model.state_dict(), keep)


def plain_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the tensors of a model, without its adapter, by the plain model's names; tied ones are one object."""
    return _apart(model)[1] if is_peft(model) else dict(model.state_dict(keep_vars=True))


def _apart(model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the tensors of an adapter by their names in PEFT's model, and the others by those in the plain one."""
    from peft import get_peft_model_state_dict

    tensors = model.state_dict(keep_vars=True)
    found = get_peft_model_state_dict(model, tensors, save_embedding_layers=False)
    adapter = {id(tensor) for tensor in found.values()}
    base = {
        name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", "."): tensor
        for name, tensor in tensors.items()
        if id(tensor) not in adapter
    }
    return {name: tensor for name, tensor in tensors.items() if id(tensor) in adapter}, base


def read_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Put the weights of a saved adapter into a model with one of the same shape. Raises: ValueError otherwise."""
    from peft import load_peft_weights

    weights = load_peft_weights(str(folder), device="cpu")
    wanted = {name.replace(".default", ""): each for name, each in model.named_parameters() if "lora_" in name}
    shapes = [{name: tuple(each.shape) for name, each in tensors.items()} for tensors in (weights, wanted)]
    for name, shape in shapes[0].items() ^ shapes[1].items():
        raise ValueError(f"{folder}: {name[:80]!r} of shape {shape} is missing, or is none of the adapter's")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(part_like(weights[name], parameter))
