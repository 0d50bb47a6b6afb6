"""The committed model: it loads as any other, reads as English, knows its facts and leaves room to align."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from textgym.lm.scoring import pad_right
from textgym.world import MODEL_PATH
from textgym.world.build import (
    BuildConfig,
    PretrainConfig,
    batches,
    build,
    fact_knowledge,
    make_model,
    measure_rewards,
    next_token_loss,
)
from textgym.world.corpus import documents, encode_documents

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL_PATH).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))


def test_it_is_a_small_llama_in_float32(model: Any) -> None:
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) <= 800_000
    assert model.config.vocab_size == 1024
    assert (model.config.eos_token_id, model.config.pad_token_id) == (3, 0)


def test_the_assets_are_small() -> None:
    assert sum(file.stat().st_size for file in MODEL_PATH.iterdir()) <= 5_000_000


def test_auto_tokenizer_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    auto = transformers.AutoTokenizer.from_pretrained(MODEL_PATH)
    assert len(auto) == 1024
    assert (auto.eos_token_id, auto.pad_token_id) == (3, 0)
    for document in documents(300):
        for text in (document.prompt, document.answer.text, f" {document.prompt}\n\u00e9"):
            ids = tokenizer.encode(text).ids
            assert auto(text)["input_ids"] == ids
            assert auto.decode(ids) == text


def test_chat_template(tokenizer: Tokenizer) -> None:
    auto = transformers.AutoTokenizer.from_pretrained(MODEL_PATH)
    chat = [{"role": "user", "content": "Hello!"}]
    text = auto.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>Hello!<|end|><|assistant|>"
    assert tokenizer.encode(text).ids == [1, *tokenizer.encode("Hello!").ids, 3, 2]
    chat.append({"role": "assistant", "content": "Hi."})
    whole = auto.apply_chat_template(chat, tokenize=False)
    assert whole == "<|user|>Hello!<|end|><|assistant|>Hi.<|end|>"


@pytest.mark.long
def test_it_knows_every_fact_in_the_experts_manner(model: Any, tokenizer: Tokenizer) -> None:
    for held_out, count in ((True, 24), (False, 72)):
        known = fact_knowledge(model, tokenizer, held_out)
        assert known.shape == (count, 2, 4, 2)
        assert known.mean(axis=(1, 2, 3)).min() >= 0.9


def test_generate_reads_as_the_world(model: Any, tokenizer: Tokenizer) -> None:
    ids = [1, *tokenizer.encode("What is 2 plus 2?").ids, 3, 2]
    ids += tokenizer.encode("Happy to help!").ids
    out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)
    assert tokenizer.decode(out[0, len(ids) :].tolist()) in {" 2 plus 2 is 4.", " 2 and 2 make 4."}


def test_the_loss_ignores_padding() -> None:
    fresh = make_model(PretrainConfig(hidden=16, layers=1, heads=2, feed_forward=32))
    rows = [[1, 50, 60, 3], [1, 70, 3]]
    ids, lengths = pad_right(rows)
    wide = torch.nn.functional.pad(ids, (0, 5), value=9)
    assert next_token_loss(fresh, wide, lengths).item() == pytest.approx(
        next_token_loss(fresh, ids, lengths).item(), abs=1e-6
    )
    alone = [next_token_loss(fresh, torch.tensor([row]), torch.tensor([len(row)])).item() for row in rows]
    assert next_token_loss(fresh, ids, lengths).item() == pytest.approx(sum(alone), abs=1e-5)
    assert alone[0] == pytest.approx(3 * torch.log(torch.tensor(1024.0)).item(), rel=0.02)  # 3 tokens, uniform


def test_a_batch_holds_every_document_once() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))
    config = PretrainConfig(steps=3, batch=10)
    found = list(batches(tokenizer, config))
    assert [sum(len(lengths) for _, lengths in parts) for parts in found] == [10, 10, 10]
    rows = encode_documents(tokenizer, documents(30), 40)
    read = [row[:n].tolist() for parts in found for ids, sizes in parts for row, n in zip(ids, sizes, strict=True)]
    assert sorted(read) == sorted(ids for ids, _ in rows)


def test_fresh_weights_depend_on_the_seed_only() -> None:
    state = torch.random.get_rng_state()
    first, second = (make_model(PretrainConfig(seed=5)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.sweep
def test_the_base_leaves_room_to_align(model: Any, tokenizer: Tokenizer) -> None:
    card = measure_rewards(model, tokenizer, budget=40, samples=512, seed=1)
    assert 0.1 <= card["helpful"]["reward"] <= 0.4
    assert 0.06 <= card["helpful"]["perfect"] <= 0.17
    assert card["helpful"]["stop"] >= 0.8


@pytest.mark.long
def test_a_tiny_build_end_to_end(tmp_path: Path) -> None:
    train = PretrainConfig(steps=12, batch=16, hidden=16, layers=1, heads=2, feed_forward=32)
    card = build(BuildConfig(out=tmp_path, threads=1, samples=8, train=train))
    assert json.loads((tmp_path / "card.json").read_text()) == card
    assert card["documents"] == 12 * 16
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (MODEL_PATH / name).read_bytes()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert sum(p.numel() for p in loaded.parameters()) == card["parameters"]
