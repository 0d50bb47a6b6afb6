"""The files of karpathy/tinyllamas, written by hand from a Hugging Face folder, and read back."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_tools import STORIES
from textgym_benchmarks.tinyllamas import convert
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

LAYERS = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LAYERS += ("post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")


def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows i and i + half of each head next to each other, as the file has them; row by row."""
    rows = []
    for head in weight.chunk(heads):
        half = len(head) // 2
        for i in range(half):
            rows += [head[i], head[half + i]]
    return torch.stack(rows)


def write_weights(model: Any, path: Path) -> None:
    config, state = model.config, model.state_dict()
    tied = config.tie_word_embeddings
    header = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads)
    header += (config.num_key_value_heads, config.vocab_size if tied else -config.vocab_size)
    parts = [state["model.embed_tokens.weight"]]
    for name in LAYERS:
        for layer in range(config.num_hidden_layers):
            weight = state[f"model.layers.{layer}.{name}.weight"]
            heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
            parts.append(neighbours(weight, heads[name]) if name in heads else weight)
    rotations = torch.zeros(config.max_position_embeddings * config.hidden_size // config.num_attention_heads)
    parts += [state["model.norm.weight"], rotations, *([] if tied else [state["lm_head.weight"]])]
    numbers = b"".join(part.float().numpy().tobytes() for part in parts)
    path.write_bytes(struct.pack("<7i", *header, config.max_position_embeddings) + numbers)


def write_tokens(names: list[str], path: Path) -> None:
    texts = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(name.replace("\u2581", " ").encode() for name in names[3:])]
    rows = [struct.pack("<fi", 0.0 if i < 259 else 259.0 - i, len(text)) + text for i, text in enumerate(texts)]
    path.write_bytes(struct.pack("<i", max(map(len, texts))) + b"".join(rows))


@pytest.mark.skipif(not STORIES.is_dir(), reason="the model is not here")
def test_a_folder_written_in_their_form_comes_back(tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(STORIES), AutoTokenizer.from_pretrained(STORIES)
    write_weights(model, tmp_path / "model.bin")
    write_tokens(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))), tmp_path / "tokens.bin")
    convert(tmp_path / "model.bin", tmp_path / "tokens.bin", tmp_path / "out")
    again, own = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    texts = ["Once upon a time, there was a little girl.", "  two  spaces", "Zoë 漢 \n\t!", "", "the they there</s>"]
    for text in texts:
        assert own(text)["input_ids"] == tokenizer(text)["input_ids"], text
        assert own.decode(own(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
    assert (own.eos_token_id, own.pad_token_id, own.model_max_length) == (2, 0, 512)
    with pytest.raises(ValueError, match="it exists; allowed is a new folder"):
        convert(tmp_path / "model.bin", tmp_path / "tokens.bin", tmp_path / "out")


def test_untied_weights_and_files_of_another_form(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
    )
    torch.manual_seed(0)
    model, names = LlamaForCausalLM(config), [*"abc", *(f"<0x{i:02X}>" for i in range(256)), *map(chr, range(100, 141))]
    weights, tokens = tmp_path / "model.bin", tmp_path / "tokens.bin"
    write_weights(model, weights)
    write_tokens(names, tokens)
    convert(weights, tokens, tmp_path / "out")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        np.testing.assert_allclose(again, model(ids).logits, rtol=0, atol=1e-6)
    content = weights.read_bytes()
    for damaged, message in (
        (content[:20], "20 bytes; allowed are seven integers"),
        (content[:-4], f"{len(content) - 4} bytes; with its first seven integers allowed are {len(content)}"),
        (struct.pack("<7i", 16, 24, 2, 5, 2, 300, 32) + content[28:], "which is no Llama"),
    ):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            convert(weights, tokens, tmp_path / "other")
    weights.write_bytes(content)
    whole = tokens.read_bytes()
    for damaged, message in (
        (whole[:-3], "bytes before its end"),
        (whole[:-10], "299 tokens; allowed are 300"),
        (whole[:-1] + b"\xff", "codec can't decode"),
    ):
        tokens.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            convert(weights, tokens, tmp_path / "other")
    assert not (tmp_path / "other").exists()
