"""Tiny random encoder-decoders, and tokenizers that end texts as theirs do."""

from pathlib import Path
from typing import Any

import torch
from chat_tools import bare
from core_tools import hugging_face
from tokenizers import Tokenizer, processors
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration


def tiny_t5(vocab: int = 11, size: int = 16, seed: int = 0, layers: int = 2, **options: Any) -> Any:
    """A T5 with weights large enough that no two tokens look alike; it starts with padding, as T5 does."""
    sizes = {"d_model": size, "d_kv": size // 4, "d_ff": 2 * size, "num_layers": layers, "num_decoder_layers": layers}
    ends = {"pad_token_id": 0, "eos_token_id": 1}
    config = T5Config(vocab_size=vocab, num_heads=4, **sizes, **{**ends, **options})
    return _made(T5ForConditionalGeneration, config, seed, size // 4)


def tiny_bart(vocab: int = 11, size: int = 16, seed: int = 0, layers: int = 2, **options: Any) -> Any:
    """A BART with such weights; it starts with its end token, as BART does."""
    names = ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads")
    sizes = dict(zip(names, (layers, layers, 4, 4), strict=True), encoder_ffn_dim=2 * size, decoder_ffn_dim=2 * size)
    ends = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = BartConfig(vocab_size=vocab, d_model=size, max_position_embeddings=64, **sizes, **{**ends, **options})
    return _made(BartForConditionalGeneration, config, seed, 1)


def save_with_tokenizer(make: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    """Write a model and its tokenizer, which writes </s> behind a text, and <s> before it where it is a BART's."""
    backend = Tokenizer.from_str(bare("unigram").to_str())
    special = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    frame = "<s> $A </s>" if make is tiny_bart else "$A </s>"
    backend.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    tokenizer = hugging_face(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    end = {"eos_token_id": special[1][1]}
    start = {"decoder_start_token_id": special[1][1]} if make is tiny_bart else {}
    model = make(len(tokenizer), **end, **start, **options)
    model.save_pretrained(folder)
    return model, tokenizer


def _made(kind: Any, config: Any, seed: int, width: int) -> Any:
    """A model whose layers pass on as much variance as they get; its queries are divided by the root of `width`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        model = kind(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            deviation = 1.0 if "embed" in name or "shared" in name else parameter.shape[1] ** -0.5
            deviation = 2.0 if "relative" in name else deviation  # heads look at places, as those of trained models do
            deviation *= width**-0.5 if ".q." in name else 1.0
            parameter.data = torch.randn(parameter.shape, generator=generator) * deviation
    model.tie_weights()
    return model.eval()
