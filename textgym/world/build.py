"""Build and measure the language model of the built-in world: `python -m textgym.world.build`.

The model is a small Llama, trained from scratch on the world's corpus by next-token loss on all tokens.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
import tyro
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from textgym.checks import Floats, JsonObject
from textgym.lm.scoring import pad_right
from textgym.world import MODEL_PATH
from textgym.world.answers import fact_sentence
from textgym.world.corpus import (
    ASSISTANT_ID,
    END_ID,
    MAX_POSITIONS,
    PAD_ID,
    USER_ID,
    VOCABULARY_SIZE,
    documents,
    encode_documents,
    fingerprint,
    save_tokenizer,
    train_tokenizer,
)
from textgym.world.facts import FACTS, OPENERS
from textgym.world.prompts import TASK_SHARES, TRAIN_PHRASINGS, WorldPrompt, items, phrase, prompts
from textgym.world.rules import HELPFUL_KINDS, HelpfulRules

PERFECT: Final = 0.999
_ROWS_AT_ONCE: Final = 256
# A batch is sorted by length and cut at these shares of its documents, to pad little. No step is taken on
# documents of one length alone: they are of one kind, and the gradients would disagree from step to step.
LENGTH_CUTS: Final = (0.0, 0.5, 0.8, 1.0)


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


@dataclass(frozen=True)
class BuildConfig:
    """Options of the build.

    Attributes:
        out: folder to write to.
        threads: CPU threads of torch.
        samples: completions for each kind of prompt that the card is measured on.
        train: the pretraining.
    """

    out: Path = MODEL_PATH
    threads: int = 2
    samples: int = 1024
    train: tyro.conf.OmitArgPrefixes[PretrainConfig] = field(default_factory=PretrainConfig)


def make_model(config: PretrainConfig) -> LlamaForCausalLM:
    """Make a fresh model; its weights are drawn from `config.seed` without touching torch's global generator."""
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
    """Return the rate of a step: a linear warm-up, then a half cosine to one hundredth of the peak."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))))


def batches(tokenizer: Tokenizer, config: PretrainConfig) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield the corpus in batches, each of them in parts of similar length.

    Yields: for every part its ids (B, T) int64, padded on the right, and lengths (B,) int64.
    """
    stream = documents(config.steps * config.batch)
    cuts = [round(share * config.batch) for share in LENGTH_CUTS]
    for _ in range(config.steps):
        batch = islice(stream, config.batch)
        rows = sorted((ids for ids, _ in encode_documents(tokenizer, batch, config.max_new_tokens)), key=len)
        yield [pad_right(rows[start:end], PAD_ID) for start, end in pairwise(cuts) if end > start]


def next_token_loss(model: LlamaForCausalLM, ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the summed cross entropy over the real tokens, nats; the padding is masked by length, never by id.

    Attention is causal and the padding is on the right, so that no real token sees it.
    """
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, H)
    real = torch.arange(1, ids.shape[1])[None, :] < lengths[:, None]  # (B, T - 1)
    logits = model.lm_head(hidden[:, :-1][real])  # (tokens, V)
    return functional.cross_entropy(logits, ids[:, 1:][real], reduction="sum")


def pretrain(tokenizer: Tokenizer, config: PretrainConfig) -> tuple[LlamaForCausalLM, float]:
    """Train a model on the corpus, with AdamW; print the loss every 100 steps.

    Returns: the model in evaluation mode, and the mean loss of the last tenth of the steps, nats a token.
    """
    model = make_model(config)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), eps=1e-8)
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
        if len(losses) % 100 == 0:
            print(f"step {len(losses)}/{config.steps}, loss {loss:.3f}")
    tail = losses[-max(1, len(losses) // 10) :]
    model.train(False)
    return model, sum(tail) / len(tail)


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return a prompt as the model reads it, up to the assistant mark."""
    return [USER_ID, *tokenizer.encode(text, add_special_tokens=False).ids, END_ID, ASSISTANT_ID]


@torch.inference_mode()
def sample_answers(
    model: LlamaForCausalLM, tokenizer: Tokenizer, asked: Sequence[WorldPrompt], budget: int, seed: int
) -> list[list[int]]:
    """Sample one completion for each prompt at temperature 1, at most `budget` tokens, the end id included."""
    heads = [encode_prompt(tokenizer, prompt.text) for prompt in asked]
    answers: list[list[int]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(heads), _ROWS_AT_ONCE):
            batch = heads[start : start + _ROWS_AT_ONCE]
            width = max(map(len, batch))
            ids = torch.tensor([[PAD_ID] * (width - len(head)) + head for head in batch])
            rows = model.generate(
                input_ids=ids,
                attention_mask=(ids != PAD_ID).long(),
                max_new_tokens=budget,
                do_sample=True,
                top_k=0,
                suppress_tokens=[PAD_ID, USER_ID, ASSISTANT_ID],
            )[:, width:].tolist()
            answers += [row[: row.index(END_ID) + 1] if END_ID in row else row for row in rows]
    return answers


def measure_rewards(
    model: LlamaForCausalLM, tokenizer: Tokenizer, budget: int, samples: int, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Measure sampled completions to `eval` prompts by `HelpfulRules`.

    Args:
        budget: longest completion, tokens.
        samples: completions for each kind of prompt.
        seed: of the sampling.
    Returns: for each of `HELPFUL_KINDS`, and for "helpful" in the shares of that task: mean reward, share of perfect
        answers, share that stopped, mean tokens.
    """
    rules = HelpfulRules()
    card: dict[str, dict[str, float]] = {}
    for kind in HELPFUL_KINDS:
        pool = prompts([kind], "eval")
        asked = [pool[number % len(pool)] for number in range(samples)]
        rows = sample_answers(model, tokenizer, asked, budget, seed)
        texts, keys = tokenizer.decode_batch(rows), [prompt.item for prompt in asked]
        scored = rules([prompt.text for prompt in asked], texts, item=keys, completion_ids=rows)
        rewards = np.array(scored, dtype=np.float64)
        card[kind] = {
            "reward": round(float(rewards.mean()), 4),
            "perfect": round(float((rewards > PERFECT).mean()), 4),
            "stop": round(float(np.mean([row[-1] == END_ID for row in rows])), 4),
            "tokens": round(float(np.mean([len(row) for row in rows])), 2),
        }
    shares = TASK_SHARES["Helpful"]
    card["helpful"] = {
        name: round(sum(share * card[kind][name] for kind, share in shares.items()), 4)
        for name in ("reward", "perfect", "stop", "tokens")
    }
    return card


@torch.inference_mode()
def fact_knowledge(model: LlamaForCausalLM, tokenizer: Tokenizer, held_out: bool) -> Floats:
    """Return the probability of the right object in the expert's manner, for every statement of every fact.

    Returns: float64 (facts, 2 phrasings, openers, 2 frames), P(object and '.' | prompt, opener, frame).
    """
    by_key = {fact.key: fact for fact in FACTS}
    chosen = [item for item in items("fact") if item.held_out == held_out]
    numbers = (TRAIN_PHRASINGS, TRAIN_PHRASINGS + 1) if held_out else (0, 1)
    starts, whole = [], []
    for item in chosen:
        for number in numbers:
            head = encode_prompt(tokenizer, phrase(item, number))
            for opener in OPENERS:
                for frame in (0, 1):
                    text = f"{opener} {fact_sentence(by_key[item.key], item.answer[0], frame)}"
                    start = text.removesuffix(f" {item.answer[0]}.")
                    starts.append(len(head) + len(tokenizer.encode(start).ids))
                    whole.append(head + tokenizer.encode(text).ids)
    ids, lengths = pad_right(whole, PAD_ID)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    picked = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]  # (B, T - 1)
    place = torch.arange(picked.shape[1])[None, :]
    counted = (place >= torch.tensor(starts)[:, None] - 1) & (place < lengths[:, None] - 1)
    total = (picked * counted).sum(1).exp().double()
    return np.asarray(total.reshape(len(chosen), len(numbers), len(OPENERS), 2))


def make_card(model: LlamaForCausalLM, tokenizer: Tokenizer, config: BuildConfig, loss: float) -> JsonObject:
    """Describe a built model: size, loss, corpus, gold reward on `eval` prompts, facts.

    `known` holds, over all facts, phrasings, openers and statements, the mean and the least probability of
    the right object after the expert's manner.
    """
    known = {}
    for name, held_out in (("train", False), ("eval", True)):
        share = fact_knowledge(model, tokenizer, held_out)
        known[name] = {"mean": round(float(share.mean()), 4), "least": round(float(share.min()), 4)}
    count = config.train.steps * config.train.batch
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": tokenizer.get_vocab_size(),
        "loss": round(loss, 4),
        "steps": config.train.steps,
        "documents": count,
        "corpus_sha256": fingerprint(count),
        "known": known,
        "eval": measure_rewards(model, tokenizer, config.train.max_new_tokens, config.samples),
    }


def build(config: BuildConfig) -> JsonObject:
    """Write every file of the model folder, and return the card.

    Corpus and tokenizer are byte-identical on every machine; the weights are as far as torch's arithmetic is.
    """
    started = time.monotonic()
    torch.set_num_threads(config.threads)
    tokenizer = train_tokenizer()
    save_tokenizer(tokenizer, config.out)
    model, loss = pretrain(tokenizer, config.train)
    model.generation_config.max_new_tokens = config.train.max_new_tokens
    model.generation_config.do_sample = True
    model.save_pretrained(config.out)
    card = make_card(model, tokenizer, config, loss)
    text = json.dumps(card, indent=2)
    (config.out / "card.json").write_text(text + "\n", encoding="utf-8")
    print(f"{text}\n{config.out}: built in {(time.monotonic() - started) / 60:.1f} minutes")
    return card


if __name__ == "__main__":
    build(tyro.cli(BuildConfig, prog="python -m textgym.world.build"))
