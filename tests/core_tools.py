"""Tokenizers, rewards and tasks that the tests of the core share; child processes can unpickle them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
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

from textgym.prompts import prompt_set
from textgym.task import Task
from textgym.vocab import load_vocabulary

SHARED = Path(os.environ.get("TEXTGYM_SHARED", Path(__file__).parents[2] / "shared"))
STORIES = SHARED / "models" / "stories260K"
needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason=f"there is no folder {STORIES}")

SPECIAL = ["<|pad|>", "<|user|>", "<|end|>"]
CORPUS = ["the cat sat on the mat. the dog sat on the log! naïve café, emoji 😀, tabs\tand lines <| <|\n"] * 4


def load_script(path: Path) -> Any:
    """A file of Python that belongs to no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def byte_level() -> Tokenizer:
    """Byte-level BPE: ids 0..2 are control tokens, then 256 bytes, then merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # An ordinary added token whose text holds characters outside the byte alphabet.
    tokenizer.add_tokens([AddedToken("日本 x", normalized=False)])
    return tokenizer


def word_level() -> Tokenizer:
    """Words split at white space; </s> is an ordinary entry of the model and a control token too."""
    words = ["<unk>", "</s>", "a", "b", "<", "/s>", "$"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "</s>", "$"])
    return tokenizer


def unigram() -> Tokenizer:
    """Unigram with </s> among its pieces, a BOS before and an EOS after every text."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<s>", 0.0), ("a", -1.0), ("b", -1.5)]
    pieces += [(character, -3.0) for character in "</s> "]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<unk>", "</s>", "<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 1)]
    )
    return tokenizer


def hugging_face(tokenizer: Tokenizer, **options: Any) -> Any:
    """The same tokenizer as a Hugging Face object."""
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


class CountA:
    """Pays the number of letters a; its terms split it by case. Counts its calls."""

    term_names = ("lower", "upper")
    name = "count_a"

    def __init__(self, pay: str = "end", gamma: float = 1.0) -> None:
        self.pay, self.gamma = pay, gamma
        self.batches: list[int] = []

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, list[float | None]]:
        self.batches.append(len(prompts))
        return {
            "lower": [float(text.count("a")) for text in completions],
            "upper": [float(text.count("A")) for text in completions],
        }

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(text.lower().count("a")) for text in completions]


def gold_length(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Pays the number of tokens, and a tenth of the prompt's bonus."""
    bonus = columns.get("bonus", [0.0] * len(prompts))
    return [len(ids) + (b or 0.0) / 10 for ids, b in zip(columns["completion_ids"], bonus, strict=True)]


def refuse_b(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Raises for a text with a b in it."""
    if any("b" in text for text in completions):
        raise RuntimeError("no b")
    return [1.0] * len(completions)


def seed_noise(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Pays a number made from the episode's seed alone."""
    return [float(np.random.default_rng(seed).normal()) for seed in columns["episode_seeds"]]


def odd_after_even(states: Any) -> Any:
    """A grammar over six words: the next id's parity is that of the length of the completion."""
    masks = np.zeros((len(states), 6), dtype=bool)
    for mask, state in zip(masks, states, strict=True):
        mask[len(state.completion) % 2 :: 2] = True
    return masks


WORDS = ("a", "A", "b", "c", "stop", "d")


def word_task(**changes: Any) -> Task:
    """Six words, "stop" ends; three prompts with weights 1, 0, 3 and a data column; four tokens at most."""
    texts = ["a b", "c", "d d d"]
    train = prompt_set(texts, {"bonus": [1.0, 2.0, 3.0]}, weights=[1, 0, 3])
    settings: dict[str, Any] = {
        "name": "Words",
        "prompts": {"train": train, "eval": prompt_set(["b"], {"bonus": [5.0]})},
        "vocabulary": load_vocabulary(WORDS, stop="stop"),
        "reward": CountA(),
        "max_new_tokens": 4,
    }
    return Task(**{**settings, **changes})


def play(env: gym.Env[Any, Any], actions: list[int]) -> list[Any]:
    """The results of these steps, up to the end of the episode."""
    results = []
    for action in actions:
        results.append(env.step(action))
        if results[-1][2]:
            break
    return results
