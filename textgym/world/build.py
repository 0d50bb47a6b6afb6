"""Builds the assets of the built-in world: `python -m textgym.world.build`."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from textgym.world import MODEL_PATH
from textgym.world.corpus import fingerprint
from textgym.world.measure import fact_knowledge, measure_rewards
from textgym.world.pretrain import PretrainConfig, pretrain
from textgym.world.tokenizer import save_tokenizer, train_tokenizer


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
