"""Measures the built-in language model: what it says, what it earns, and how firmly it knows its facts."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from textgym.world.answers import fact_sentence
from textgym.world.facts import FACTS
from textgym.world.grading import HELPFUL_KINDS, HelpfulRules
from textgym.world.items import items
from textgym.world.pretrain import pad_right
from textgym.world.prompts import TRAIN_PHRASINGS, WorldPrompt, phrase, prompts
from textgym.world.sentences import OPENERS
from textgym.world.shares import HELPFUL_SHARES
from textgym.world.tokenizer import ASSISTANT_ID, END_ID, PAD_ID, USER_ID

PERFECT: Final = 0.999


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """A prompt as the model reads it, up to the assistant mark."""
    return [USER_ID, *tokenizer.encode(text, add_special_tokens=False).ids, END_ID, ASSISTANT_ID]


@torch.inference_mode()
def sample(
    model: LlamaForCausalLM, heads: Sequence[list[int]], budget: int, generator: torch.Generator
) -> list[list[int]]:
    """Samples one completion per prompt at temperature 1; the end id is part of the completion."""
    ids, lengths = pad_right(list(heads))
    ids = torch.cat([ids, torch.full((len(heads), budget), PAD_ID)], dim=1)
    alive = torch.ones(len(heads), dtype=torch.bool)
    position = lengths.clone()
    for _ in range(budget):
        rows = torch.nonzero(alive)[:, 0]
        if not len(rows):
            break
        seen = ids[rows, : int(position[rows].max())]
        logits = _last_logits(model, seen, position[rows])
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        ids[rows, position[rows]] = drawn
        position[rows] += 1
        alive[rows] = drawn != END_ID
    return [
        row[start:end].tolist()
        for row, start, end in zip(ids, lengths.tolist(), position.tolist(), strict=True)
    ]


def _last_logits(model: LlamaForCausalLM, ids: Tensor, lengths: Tensor) -> Tensor:
    """Logits (B, V) after the last real token of rows padded on the right; special ids are off."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits: Tensor = model.lm_head(hidden[torch.arange(len(ids)), lengths - 1]).float()
    logits[:, [PAD_ID, USER_ID, ASSISTANT_ID]] = -torch.inf
    return logits


def answer_prompts(
    model: LlamaForCausalLM, tokenizer: Tokenizer, asked: Sequence[WorldPrompt], budget: int, seed: int
) -> list[list[int]]:
    """One sampled completion for each of the prompts, in batches of 256."""
    generator = torch.Generator().manual_seed(seed)
    heads = [encode_prompt(tokenizer, prompt.text) for prompt in asked]
    batches = [heads[start : start + 256] for start in range(0, len(heads), 256)]
    return [row for batch in batches for row in sample(model, batch, budget, generator)]


def measure_rewards(
    model: LlamaForCausalLM, tokenizer: Tokenizer, budget: int, samples: int = 512, seed: int = 0
) -> dict[str, Any]:
    """Mean gold reward, share of perfect answers, stop rate and length on `eval` prompts, by kind and all.

    Args:
        model: what is measured.
        tokenizer: its tokenizer.
        budget: longest completion, tokens.
        samples: completions for each kind.
        seed: of the sampling.
    """
    rules = HelpfulRules()
    card: dict[str, Any] = {}
    for kind in HELPFUL_KINDS:
        pool = prompts([kind], "eval")
        asked = [pool[number % len(pool)] for number in range(samples)]
        rows = answer_prompts(model, tokenizer, asked, budget, seed)
        texts = tokenizer.decode_batch(rows)
        items_asked = [prompt.item for prompt in asked]
        scored = rules([prompt.text for prompt in asked], texts, item=items_asked, completion_ids=rows)
        rewards = np.array(scored, dtype=np.float64)
        card[kind] = {
            "reward": round(float(rewards.mean()), 4),
            "perfect": round(float((rewards > PERFECT).mean()), 4),
            "stop": round(float(np.mean([row[-1] == END_ID for row in rows])), 4),
            "tokens": round(float(np.mean([len(row) for row in rows])), 2),
        }
    names = ("reward", "perfect", "stop", "tokens")
    card["helpful"] = {
        name: round(sum(share * card[kind][name] for kind, share in HELPFUL_SHARES.items()), 4)
        for name in names
    }
    return card


@torch.inference_mode()
def fact_knowledge(model: LlamaForCausalLM, tokenizer: Tokenizer, held_out: bool) -> NDArray[np.float64]:
    """Probability of the right object in the expert's manner, for every statement of every fact.

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
    ids, lengths = pad_right(whole)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    picked = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]  # (B, T - 1)
    place = torch.arange(picked.shape[1])[None, :]
    counted = (place >= torch.tensor(starts)[:, None] - 1) & (place < lengths[:, None] - 1)
    total = (picked * counted).sum(1).exp().double()
    return np.asarray(total.reshape(len(chosen), len(numbers), len(OPENERS), 2))
