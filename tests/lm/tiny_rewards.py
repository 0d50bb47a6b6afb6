"""Tiny random reward models with word tokenizers, as folders in Hugging Face layout."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

WORDS = ("a", "b", "c", "d", "e", "f", "g", "h")
POSITIONS = 24


def tiny_classifier(kind: str, seed: int = 0, labels: int = 1) -> Any:
    """One of "llama" (the lean path), "llama-hf" (by its own code), "gpt2", "bert", "roberta" (here pad != eos)."""
    common = {
        "vocab_size": 12,
        "num_labels": labels,
        "initializer_range": 0.5,
        "pad_token_id": int(kind == "roberta"),
    }
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind.startswith("llama"):
            dropout = 0.5 if kind == "llama-hf" else 0.0  # in training only, but reason enough not to be lean
            config = LlamaConfig(
                **common,
                **size,
                num_key_value_heads=2,
                max_position_embeddings=POSITIONS,
                attention_dropout=dropout,
                eos_token_id=0,
                bos_token_id=0,
            )
            model: Any = LlamaForSequenceClassification(config)
        elif kind == "gpt2":
            model = GPT2ForSequenceClassification(
                GPT2Config(
                    **common,
                    n_embd=16,
                    n_layer=2,
                    n_head=4,
                    n_positions=POSITIONS,
                    eos_token_id=0,
                    bos_token_id=0,
                )
            )
        elif kind == "bert":
            model = BertForSequenceClassification(BertConfig(**common, **size, max_position_embeddings=POSITIONS))
        else:
            model = RobertaForSequenceClassification(
                RobertaConfig(**common, **size, max_position_embeddings=POSITIONS + 2)
            )
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def save_tokenizer(folder: Path, between: str | None = None, extra: int = 0, second: int = 0) -> None:
    """Words 4 to 11; id 0 ends and pads. With `between` pairs are framed: [CLS] $A `between` $B [SEP].

    `second` is the token type of $B and what follows.
    """
    special = ["<eos>", "[CLS]", "[SEP]", "[UNK]"]
    names = [*special, *WORDS, *(f"extra{i}" for i in range(extra))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    config = {"eos_token": "<eos>", "pad_token": "<eos>"}
    if between is not None:
        ids = [("[CLS]", 1), ("[SEP]", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=f"[CLS] $A {between} $B:{second} [SEP]:{second}", special_tokens=ids
        )
        config = {"pad_token": "<eos>", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def save_chat_reward_model(folder: Path, tokenizer: Any, seed: int = 0) -> Any:
    """Writes a reward model over a Hugging Face tokenizer and returns the model."""
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.5, pad_token_id=0, **size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def save_reward_model(folder: Path, kind: str = "llama", seed: int = 0, offset: float | None = None) -> Path:
    """Writes a whole folder and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    model: PreTrainedModel = tiny_classifier(kind, seed)
    model.save_pretrained(folder)
    between = {"bert": "[SEP]", "roberta": "[SEP] [SEP]"}.get(kind)
    save_tokenizer(folder, between, second=int(kind == "bert"))
    if offset is not None:
        (folder / "reward.json").write_text(json.dumps({"offset": offset}), encoding="utf-8")
    return folder
