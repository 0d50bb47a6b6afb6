"""Models of many architectures: what is decoded, scored and read as reference is the model's own plain forward."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm.zoo import VOCAB, ZOO, zoo_model

from textgym.lm import backbone
from textgym.lm.backbone import HuggingFaceBackbone, RereadingBackbone, StateSpaceBackbone
from textgym.lm.causal import CausalLM
from textgym.lm.checked import choose_backbone
from textgym.lm.decoder import Decoder
from textgym.lm.llama import LlamaBackbone

CPU = torch.device("cpu")
BATCH, WIDTH = 8, 16
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BACKBONES = {
    "with a cache": (LlamaBackbone, HuggingFaceBackbone),
    "with a state": (StateSpaceBackbone,),
    "without a cache": (RereadingBackbone,),
}
# One of each kind that has been wrong: no positions, a state, layers of both kinds, several streams, two directions.
FEW = ("bart", "mamba", "qwen3_next", "gemma3n_text", "xlnet")


def play(seed):
    """Ids (8, 16), and the lengths (8,) after each step: ragged prompts, rows drop out, none longer than 16."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(VOCAB, size=(BATCH, WIDTH))
    lengths = rng.integers(1, 7, BATCH)
    stops = rng.integers(1, 11, BATCH)
    stops[0] = 10
    return ids, [lengths + np.minimum(step, stops) for step in range(11)]


def alone(model, ids, length):
    """Log-probabilities (T, V) of one row: no batch, no padding, no cache."""
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids[None, :length])).logits[0].log_softmax(-1)


def answered(seed):
    """As `play`, but rows get replies: one to four tokens at once, each another number, and one in between."""
    rng = np.random.default_rng([seed, 1])
    ids = rng.integers(VOCAB, size=(BATCH, WIDTH))
    lengths = [rng.integers(1, 4, BATCH)]
    stops = rng.integers(8, WIDTH + 1, BATCH)
    for step in range(7):
        lengths.append(np.minimum(lengths[-1] + (1 if step % 2 else rng.integers(1, 5, BATCH)), stops))
    return ids, lengths


def largest_error(model, seed=0, played=play):
    """How far decoding, scoring and the reference are from the plain forward of each row, nats."""
    ids, steps = played(seed)
    final = steps[-1]
    want = [alone(model, row, length) for row, length in zip(ids, final, strict=True)]
    way = choose_backbone(model)
    decoder = Decoder(way, CPU)
    reference = CausalLM(model, np.ones(VOCAB, dtype=bool), device="cpu")
    errors = []
    before = np.zeros(BATCH)
    for lengths in steps:
        observation = {"input_ids": ids, "attention_mask": np.arange(WIDTH) < lengths[:, None]}
        grown = lengths > before
        decoded = torch.no_grad()(way.read_out)(decoder.advance(observation, grown))[0].log_softmax(-1)
        referred = torch.tensor(reference.log_probs(observation))
        for row in np.flatnonzero(grown):
            errors += [(got[row] - want[row][lengths[row] - 1]).abs().max() for got in (decoded, referred)]
        before = lengths
    rows, columns = np.nonzero(np.arange(WIDTH) < final[:, None])
    with torch.no_grad():
        scored = way.read_out(way.features(*map(torch.tensor, (ids[:, : final.max()], rows, columns))))[0].log_softmax(
            -1
        )
    errors.append((scored - torch.cat(want)).abs().max())
    known = min(9, int(final[0]) - 1)
    prefix = alone(model, ids[0], known)  # and a row does not know its own future
    errors.append((prefix - want[0][:known]).abs().max())
    return float(torch.stack(errors).nan_to_num(nan=torch.inf).max())


def check(kind, seed=0):
    """The model is run in the way that the zoo says, or refused by its name, and is right to 1e-4."""
    model = zoo_model(kind)
    if ZOO[kind] == "refused":
        with pytest.raises(ValueError, match=rf"model: {type(model).__name__} cannot be used"):
            choose_backbone(model)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*reads a whole row again")
        assert type(choose_backbone(model)) in BACKBONES[ZOO[kind]]
    assert largest_error(model, seed) < 1e-4
    assert largest_error(model, seed, answered) < 1e-4


@pytest.mark.parametrize(
    ("kind", "opened"),
    [("llama", 1), ("gpt2", 1), ("bloom", 1), ("opt", 1), ("mistral", 5), ("lfm2", 5), ("roformer", 5)],
)
def test_replies_are_read_at_once_where_a_cache_takes_them(kind, opened, monkeypatch):
    """A window, a state, or positions that count the cache's columns: rows are then read again, and are right."""
    way = choose_backbone(zoo_model(kind))
    reads, open_ = [], way.open
    monkeypatch.setattr(way, "open", lambda *given: (reads.append(1), open_(*given))[1])
    decoder = Decoder(way, CPU)
    ids, steps = answered(0)
    for lengths in steps:
        decoder.advance({"input_ids": ids, "attention_mask": np.arange(WIDTH) < lengths[:, None]})
    assert len(reads) == opened


@pytest.mark.slow
@pytest.mark.parametrize("kind", FEW)
def test_a_model_equals_its_plain_forward_or_is_refused(kind):
    check(kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["bart", "bloom", "deepseek_v3", "gemma2", "gemma3n_text", "gpt2", "llama", "qwen3_next"]
)
def test_prompts_that_are_read_one_by_one_are_read_as_well(kind, monkeypatch):
    """Whatever the cache holds: keys and values of all tokens or of a window, those of other layers, a state."""
    monkeypatch.setattr(backbone, "READ_AT_ONCE", 1)
    check(kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.sweep] if place % 8 else [])
        for place, kind in enumerate(sorted(set(ZOO) - set(FEW)))
    ],
)
def test_every_architecture_equals_its_plain_forward_or_is_refused(kind):
    check(kind)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", sorted(ZOO))
def test_every_architecture_is_right_whatever_rows_stop(kind):
    for seed in range(1, 11):
        check(kind, seed)


HYBRID = zoo_model("lfm2")


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_hybrid_is_right_whatever_rows_stop(seed):
    assert largest_error(HYBRID, seed) < 1e-4


def test_the_page_lists_what_the_zoo_has():
    text = PAGE.read_text(encoding="utf-8")
    for way in {*ZOO.values()}:
        row = next(line for line in text.splitlines() if line.startswith(f"| {way} |"))
        assert sorted(re.findall(r"`([^`]+)`", row)) == sorted(kind for kind in ZOO if ZOO[kind] == way)
