"""Build and measure the assets of the built-in world: `python -m textgym.world.build`."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from textgym.world import MODEL_PATH
from textgym.world.answers import fact_sentence
from textgym.world.corpus import (
    ASSISTANT_ID,
    END_ID,
    PAD_ID,
    USER_ID,
    fingerprint,
    save_tokenizer,
    train_tokenizer,
)
from textgym.world.facts import FACTS, OPENERS
from textgym.world.pretrain import PretrainConfig, pad_right, pretrain
from textgym.world.prompts import HELPFUL_SHARES, TRAIN_PHRASINGS, WorldPrompt, items, phrase, prompts
from textgym.world.rules import HELPFUL_KINDS, HelpfulRules

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


@dataclass(frozen=True)
class BuildConfig:
    """Builds the tokenizer, the language model and its card.

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


@contextmanager
def _progress(steps: int, console: Console) -> Iterator[Callable[[int, float], None]]:
    """A progress bar with the loss; lines now and then where there is no terminal."""
    loss = TextColumn("loss {task.fields[loss]:.3f}")
    columns = (TextColumn("pretraining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), loss)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("pretraining", total=steps, loss=float("nan"))

        def report(step: int, value: float) -> None:
            progress.update(bar, completed=step, loss=value)
            if not console.is_terminal and step % 100 == 0:
                console.print(f"step {step}/{steps}, loss {value:.3f}")

        yield report


def make_card(
    model: LlamaForCausalLM, tokenizer: Tokenizer, config: BuildConfig, loss: float
) -> dict[str, Any]:
    """What is known about a built model: size, loss, corpus, gold reward on `eval` prompts, facts.

    `known` holds, over all facts, phrasings, openers and statements, the mean and the least probability of
    the right object after the expert's manner.
    """
    known = {}
    for name, held_out in (("train", False), ("eval", True)):
        share = fact_knowledge(model, tokenizer, held_out)
        known[name] = {"mean": round(float(share.mean()), 4), "least": round(float(share.min()), 4)}
    documents = config.train.steps * config.train.batch
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": tokenizer.get_vocab_size(),
        "loss": round(loss, 4),
        "steps": config.train.steps,
        "documents": documents,
        "corpus_sha256": fingerprint(documents),
        "known": known,
        "eval": measure_rewards(model, tokenizer, config.train.max_new_tokens, config.samples),
    }


def build(config: BuildConfig) -> dict[str, Any]:
    """Writes every file of the model folder and returns the card.

    Corpus and tokenizer are byte-identical on every machine; the weights are as far as torch's arithmetic is.
    """
    started = time.monotonic()
    console = Console()
    torch.set_num_threads(config.threads)
    tokenizer = train_tokenizer()
    save_tokenizer(tokenizer, config.out)
    with _progress(config.train.steps, console) as report:
        model, loss = pretrain(tokenizer, config.train, report)
    model.generation_config.max_new_tokens = config.train.max_new_tokens
    model.generation_config.do_sample = True
    model.save_pretrained(config.out)
    card = make_card(model, tokenizer, config, loss)
    (config.out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    console.print_json(data=card)
    console.print(f"{config.out}: built in {(time.monotonic() - started) / 60:.1f} minutes")
    return card


if __name__ == "__main__":
    build(tyro.cli(BuildConfig, prog="python -m textgym.world.build"))
