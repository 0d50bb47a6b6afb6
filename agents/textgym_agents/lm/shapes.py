"""Shapes of published models, and the config of a model by its name."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from textgym.checks import first_line
from textgym.codecs.sources import encodes_prompts
from textgym.files import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_QWEN = {"model_type": "qwen2", "num_key_value_heads": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": _QWEN
    | {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    | {"num_attention_heads": 14, "tie_word_embeddings": True},
    "Qwen2.5-1.5B": _QWEN
    | {"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
    | {"num_attention_heads": 12, "tie_word_embeddings": True},
    "Qwen2.5-7B": _QWEN
    | {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    | {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "Llama-3-70B": {"model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672}
    | {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "tie_word_embeddings": False}
    | {"max_position_embeddings": 8192},
}
"""Configs of published models, by name: those in their folders on the Hugging Face hub."""


def model_config(name: str | Path, lora_rank: int | None = 1) -> PretrainedConfig:
    """Return the config of a shape in `SHAPES`, of a model's folder, or of a hub id.

    Args:
        lora_rank: of the adapter that is trained. A PEFT adapter, which is merged for it, gives the config of its base.
    Raises: ValueError if there is none, or for a PEFT adapter that is trained itself.
    """
    from transformers import AutoConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    if str(name) in SHAPES:
        return AutoConfig.for_model(**SHAPES[str(name)])
    if encodes_prompts(name):
        raise ValueError(
            f"model={str(name)!r}: an encoder-decoder, of which memory is not estimated; allowed are others"
        )
    try:
        adapter = find_adapter_config_file(str(name))
        base = read_json(Path(adapter))["base_model_name_or_path"] if adapter else name
        if base == name or lora_rank is not None:
            return cast("PretrainedConfig", AutoConfig.from_pretrained(str(base), trust_remote_code=False))
    except Exception as error:  # a damaged file can lead to any type
        raise ValueError(
            f"model={str(name)!r}: no folder or hub id with a config, and none of {', '.join(SHAPES)} "
            f"({first_line(error):.120})"
        ) from error
    raise ValueError(
        f"lora_rank=None: allowed is a rank, such as that of {name}, an adapter, to estimate one on {base}"
    )


def shallow(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """Return a copy of a config with its first layers alone."""
    result = deepcopy(config)
    text = result.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return result
