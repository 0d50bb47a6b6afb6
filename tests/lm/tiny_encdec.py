"""Tiny random encoder-decoders, with weights large enough that no two tokens look alike."""

from typing import Any

import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration


def tiny_t5(vocab: int = 11, size: int = 16, seed: int = 0, layers: int = 2, **options: Any) -> Any:
    sizes = {"d_model": size, "d_kv": size // 4, "d_ff": 2 * size, "num_layers": layers, "num_decoder_layers": layers}
    ends = {"pad_token_id": 0, "eos_token_id": 1}
    config = T5Config(vocab_size=vocab, num_heads=4, **sizes, **ends, **{"initializer_factor": 2.0, **options})
    return _made(T5ForConditionalGeneration, config, seed)


def tiny_bart(vocab: int = 11, size: int = 16, seed: int = 0, layers: int = 2, **options: Any) -> Any:
    names = ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads")
    sizes = dict(zip(names, (layers, layers, 4, 4), strict=True), encoder_ffn_dim=2 * size, decoder_ffn_dim=2 * size)
    ends = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = BartConfig(
        vocab_size=vocab, d_model=size, max_position_embeddings=64, **sizes, **ends, **{"init_std": 0.4, **options}
    )
    return _made(BartForConditionalGeneration, config, seed)


def _made(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config).eval()
