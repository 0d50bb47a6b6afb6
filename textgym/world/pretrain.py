"""Pretraining of the built-in language model: a small Llama, from scratch, next-token loss on all tokens."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from textgym.world.corpus import END_ID, MAX_POSITIONS, PAD_ID, VOCABULARY_SIZE, documents, encode_documents

# A batch is sorted by length and cut at these shares of its documents, to pad little. No step is taken on
# documents of one length alone: they are of one kind, and the gradients would disagree from step to step.
LENGTH_CUTS = (0.0, 0.5, 0.8, 1.0)


@dataclass(frozen=True)
class PretrainConfig:
    """Size and schedule of the pretraining.

    Attributes:
        steps: optimiser steps, at least 1.
        batch: documents a step.
        learning_rate: its peak; warmed up over `warmup` steps, then a cosine down to a hundredth of it.
        hidden, layers, heads, feed_forward: size of the Llama model.
        max_new_tokens: longest answer in the corpus, tokens.
        seed: of the weights; the documents have the corpus's own seed.
    """

    steps: int = 3500
    batch: int = 128
    learning_rate: float = 6e-3
    warmup: int = 100
    weight_decay: float = 0.01
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    feed_forward: int = 256
    max_new_tokens: int = 40
    seed: int = 0


def make_model(config: PretrainConfig) -> LlamaForCausalLM:
    """A fresh model, its weights drawn from `config.seed` without touching torch's global generator."""
    shape = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=config.feed_forward,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(shape)


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then a half cosine to one hundredth of the peak."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))))


def batches(tokenizer: Tokenizer, config: PretrainConfig) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The corpus in batches, each of them in parts of similar length.

    Returns: for every part its ids (B, T) int64, padded on the right, and lengths (B,) int64.
    """
    stream = documents(config.steps * config.batch)
    cuts = [round(share * config.batch) for share in LENGTH_CUTS]
    for _ in range(config.steps):
        batch = islice(stream, config.batch)
        rows = sorted((ids for ids, _ in encode_documents(tokenizer, batch, config.max_new_tokens)), key=len)
        yield [pad_right(rows[start:end]) for start, end in pairwise(cuts) if end > start]


def pad_right(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids as one (B, T) tensor, and their lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), PAD_ID)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    return ids, lengths


def next_token_loss(model: LlamaForCausalLM, ids: Tensor, lengths: Tensor) -> Tensor:
    """Summed cross entropy over the real tokens, nats; the padding is masked by length, never by id.

    Attention is causal and the padding is on the right, so that no real token sees it.
    """
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, H)
    real = torch.arange(1, ids.shape[1])[None, :] < lengths[:, None]  # (B, T - 1)
    logits = model.lm_head(hidden[:, :-1][real])  # (tokens, V)
    return functional.cross_entropy(logits, ids[:, 1:][real], reduction="sum")


def make_optimizer(model: LlamaForCausalLM, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), eps=1e-8)


def pretrain(
    tokenizer: Tokenizer, config: PretrainConfig, report: Callable[[int, float], None]
) -> tuple[LlamaForCausalLM, float]:
    """Trains a model on the corpus.

    Args:
        tokenizer: encodes the corpus.
        config: size and schedule.
        report: called after every step with the number of steps done and the loss in nats a token.
    Returns: the model, and the mean loss of the last tenth of the steps.
    """
    model = make_model(config)
    optimizer = make_optimizer(model, config)
    losses: list[float] = []
    for step, parts in enumerate(batches(tokenizer, config)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.zero_grad(set_to_none=True)
        tokens = sum(int(lengths.sum()) - len(lengths) for _, lengths in parts)
        loss = 0.0
        for ids, lengths in parts:
            part = next_token_loss(model, ids, lengths) / tokens
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss)
        report(step + 1, loss)
    tail = losses[-max(1, len(losses) // 10) :]
    model.train(False)
    return model, sum(tail) / len(tail)
