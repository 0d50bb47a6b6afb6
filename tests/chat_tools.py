"""Tokenizers and chat templates of the kinds that real models have."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from core_tools import hugging_face
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CONTROL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]",
)  # fmt: skip
CORPUS = [
    "User: Hello world\nAssistant: Hello, don't stop! system You are helpful. user assistant [ INST ] model\n\n",
    "Say Hello to the whole world, and what is it that you said? <| naïve café 😀 日本語 |> : :\n",
] * 10

TEMPLATES = {
    "chatml": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "plain": (
        "{% for m in messages %}{{ 'User' if m.role == 'user' else 'Assistant' }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "plain-tight": (
        "{% for m in messages %}{{ m.role }}:{{ m.content.strip() }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    ),
    "looks-at-messages": (
        "{{ bos_token }}{% for m in messages %}{% if '?' in m.content %}<|im_start|>{% endif %}{{ m.content | upper }}"
        "{{ eos_token }}{% generation %}!{% endgeneration %}{% endfor %}"
        "{% if add_generation_prompt %}{{ (messages | tojson)[:9] }}"
        "{% for key in messages[0] %}{{ key }}{% endfor %}{% endif %}"
    ),
}  # fmt: skip


def _trained(model: Any, trainer: Any, pre_tokenizer: Any = None, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _byte_level(prefix: bool = False) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer = _trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=prefix))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _fallback_pieces(scheme: str | None) -> Tokenizer:
    """Byte-fallback BPE over whole texts as SentencePiece makes it; `scheme` says where the first space goes."""
    normalizer: Any = normalizers.Replace(" ", "▁")
    splitter = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=120, limit_alphabet=40, show_progress=False)
    trained = _trained(models.BPE(), trainer, splitter, normalizer)
    model = json.loads(trained.to_str())["model"]
    names = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *sorted(model["vocab"], key=model["vocab"].get)]
    vocabulary = {name: i for i, name in enumerate(names)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme in (None, "prepend"):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizer] if scheme else [normalizer])
    if scheme in ("first", "always"):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _unigram() -> Tokenizer:
    """Unigram that holds its control tokens among the pieces."""
    pieces = [
        ("<unk>", 0.0),
        *((name, -1.0) for name in CONTROL),
        *((f"<0x{i:02X}>", -9.0) for i in range(256)),
    ]
    pieces += [("▁", -2.0), ("▁Hello", -1.0), ("Hello", -1.5), ("▁world", -1.0), ("▁▁", -1.9), (":▁", -1.2)]
    pieces += [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyzINST[]/!.:<>|_"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


TOKENIZERS: dict[str, Any] = {
    "byte-level": _byte_level,
    "byte-level-prefix": lambda: _byte_level(True),
    "pieces": lambda: _fallback_pieces(None),
    "pieces-prepend": lambda: _fallback_pieces("prepend"),
    "pieces-first": lambda: _fallback_pieces("first"),
    "pieces-always": lambda: _fallback_pieces("always"),
    "unigram": _unigram,
    "byte-level-strip": _byte_level,
}


@cache
def bare(name: str) -> Tokenizer:
    """One of `TOKENIZERS` with the control tokens and a begin token before every text."""
    tokenizer: Tokenizer = TOKENIZERS[name]()
    strips = name.endswith("strip")
    tokenizer.add_special_tokens(
        [AddedToken(token, lstrip=strips, rstrip=strips, normalized=False) for token in CONTROL]
    )
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return tokenizer


@cache
def chat_tokenizer(name: str, template: str) -> Any:
    """A Hugging Face tokenizer with one of `TEMPLATES`."""
    made = hugging_face(
        bare(name), bos_token="<s>", eos_token="</s>", unk_token="<unk>" if name in ("unigram",) else None
    )
    made.chat_template = TEMPLATES[template]
    return made


def applied(tokenizer: Any, prompt: str, completion: str | None = None) -> list[int]:
    """What Hugging Face makes of the conversation."""
    messages = [{"role": "user", "content": prompt}]
    if completion is not None:
        messages.append({"role": "assistant", "content": completion})
    ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=completion is None)
    return list(ids["input_ids"] if hasattr(ids, "keys") else ids)


every_pair = pytest.mark.parametrize(
    ("name", "template"), [(name, template) for name in TOKENIZERS for template in TEMPLATES]
)
