"""Make a Hugging Face folder of a model of stories from the files of karpathy/tinyllamas (MIT).

    python -m textgym_benchmarks.tinyllamas stories260K.bin tok512.bin stories260K

The files lie at https://huggingface.co/karpathy/tinyllamas, in the folder stories260K. The first holds a Llama: seven
integers (int32, little-endian: width, width of the feed-forward layers, layers, heads, key-value heads, vocabulary,
longest text), then its weights (float32), those of all layers in one block. The second holds a vocabulary: the length
of the longest token, then score (float32), length (int32) and bytes of every token.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from textgym.checks import Floats
from textgym.commands.console import script
from textgym.files import make_folder, reading

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

_SPECIAL = ("<unk>", "<s>", "</s>")
_SPACE = "▁"  # what stands for a space in the vocabulary


@dataclass(frozen=True)
class TinyLlama:
    """Make a Hugging Face folder of a tiny Llama."""

    weights: Annotated[Path, tyro.conf.Positional]
    """File of the weights, such as stories260K.bin."""
    tokens: Annotated[Path, tyro.conf.Positional]
    """File of the vocabulary, such as tok512.bin."""
    out: Annotated[Path, tyro.conf.Positional]
    """The folder to make; there may be none yet."""


def convert(weights: Path, tokens: Path, out: Path) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    Raises: ValueError for a file of another form, or a folder that exists; OSError for a file that cannot be read.
    """
    import torch
    from transformers import LlamaForCausalLM

    if out.exists():
        raise ValueError(f"out={str(out)!r}: it exists; allowed is a new folder")
    with reading(weights, "weights"):
        config, tensors = read_weights(weights.read_bytes())
    with reading(tokens, "a vocabulary"):
        tokenizer = read_tokenizer(tokens.read_bytes(), config.vocab_size, config.max_position_embeddings)
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    make_folder(out)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def read_weights(content: bytes) -> tuple[LlamaConfig, dict[str, Floats]]:
    """Return the config and the weights by the names of transformers. Raises: ValueError for a file of another form."""
    from transformers import LlamaConfig

    if len(content) < 28:
        raise ValueError(f"{len(content)} bytes; allowed are seven integers and weights")
    width, inner, layers, heads, shared, size, longest = struct.unpack("<7i", content[:28])
    tied, size = size > 0, abs(size)
    if min(width, inner, layers, heads, shared, size, longest) < 1 or width % heads or heads % shared:
        raise ValueError(f"its first seven integers are {struct.unpack('<7i', content[:28])}, which is no Llama")
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=longest,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    head = width // heads
    layout: dict[str, tuple[int, ...]] = {
        "embed_tokens": (size, width),
        "input_layernorm": (layers, width),
        "self_attn.q_proj": (layers, width, width),
        "self_attn.k_proj": (layers, shared * head, width),
        "self_attn.v_proj": (layers, shared * head, width),
        "self_attn.o_proj": (layers, width, width),
        "post_attention_layernorm": (layers, width),
        "mlp.gate_proj": (layers, inner, width),
        "mlp.down_proj": (layers, width, inner),
        "mlp.up_proj": (layers, inner, width),
        "norm": (width,),
        "rotations": (2, longest, head // 2),  # which follow from the config
    } | ({} if tied else {"lm_head": (size, width)})
    sizes = [int(np.prod(shape)) for shape in layout.values()]
    numbers = np.frombuffer(content[28:], "<f4")
    if len(content) != 28 + 4 * sum(sizes):
        raise ValueError(f"{len(content)} bytes; with its first seven integers allowed are {28 + 4 * sum(sizes)}")
    parts = np.split(numbers, np.cumsum(sizes)[:-1])
    blocks = {name: part.reshape(shape) for (name, shape), part in zip(layout.items(), parts, strict=True)}
    for name, many in (("self_attn.q_proj", heads), ("self_attn.k_proj", shared)):
        blocks[name] = _halves(blocks[name], many)
    found = {"model.embed_tokens.weight": blocks["embed_tokens"], "model.norm.weight": blocks["norm"]}
    found["lm_head.weight"] = blocks["embed_tokens" if tied else "lm_head"]
    for name, block in blocks.items():
        if name not in ("embed_tokens", "norm", "rotations", "lm_head"):
            found |= {f"model.layers.{layer}.{name}.weight": block[layer] for layer in range(layers)}
    return config, {name: np.array(array) for name, array in found.items()}


def _halves(block: Floats, heads: int) -> Floats:
    """Reorder the rows (layers, rows, width) of each head: rotated pairs are neighbours in the file, here halves."""
    layers, rows, width = block.shape
    pairs = block.reshape(layers, heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(2, 3).reshape(layers, rows, width)


def read_tokenizer(content: bytes, size: int, longest: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer. Args: size: of the vocabulary. Raises: ValueError for a file of another form."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    rows = list(_rows(content[4:]))
    if len(rows) != size:
        raise ValueError(f"{len(rows)} tokens; allowed are {size}, as many as the weights have")
    names = [*_SPECIAL, *(text.replace(" ", _SPACE) for _, text in rows[3:])]
    place = {name: number for number, name in enumerate(names)}
    if len(place) < size:
        raise ValueError("it has a token twice")
    # A token is made of any two that are there; where several pairs could merge, the one whose token scores most does.
    merges = [
        (-score, number, place[name[:cut]], place[name[cut:]])
        for number, ((score, _), name) in enumerate(zip(rows, names, strict=True))
        for cut in range(1, len(name) if number >= len(_SPECIAL) and not _is_byte(name) else 0)
        if name[:cut] in place and name[cut:] in place
    ]
    pairs = [(names[left], names[right]) for *_, left, right in sorted(merges)]
    made = Tokenizer(models.BPE(place, pairs, unk_token=_SPECIAL[0], fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B:1", [("<s>", 1)])
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        model_max_length=longest,
    )


def _rows(content: bytes) -> Iterator[tuple[float, str]]:
    """Yield score and text of every token."""
    at = 0
    while at < len(content):
        try:
            score, length = struct.unpack_from("<fi", content, at)
        except struct.error as error:
            raise ValueError(f"it ends within a token, {len(content) - at} bytes before its end") from error
        at += 8
        if not 0 <= length <= len(content) - at:
            raise ValueError(f"a token of {length} bytes, {len(content) - at} bytes before its end")
        yield score, content[at : at + length].decode()
        at += length


def _is_byte(name: str) -> bool:
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")


def main() -> None:
    """Run the script."""
    flags = tyro.cli(TinyLlama)
    convert(flags.weights, flags.tokens, flags.out)
    print(f"written to {flags.out}")


if __name__ == "__main__":
    script(main)
