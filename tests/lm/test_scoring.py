"""Scores of reward models against Hugging Face's own forward on single rows, and what is loaded as one."""

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_tools import TEMPLATES, applied, chat_tokenizer, every_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from lm.tiny_models import tiny_gpt2, tiny_llama
from lm.tiny_rewards import POSITIONS, WORDS, save_reward_model, save_tokenizer, tiny_classifier
from textgym_agents.rlhf.ranking import pairwise_loss
from textgym_agents.rlhf.reward_model import PreferenceLoss, RankedRow, answer_scores
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from textgym import load_vocabulary
from textgym.lm import llama, scoring
from textgym.lm.backbone import max_tokens
from textgym.lm.reward_model import RewardModel
from textgym.lm.scoring import (
    encode_exchange,
    encode_pair,
    end_id,
    load_reward_model,
    pad_right,
    sequence_scores,
    start_reward_model,
)

SHARED = Path(os.environ.get("TEXTGYM_SHARED", Path(__file__).parents[3] / "shared"))
STORIES = SHARED / "models" / "stories260K"
KINDS = ["llama", "llama-hf", "gpt2", "bert", "roberta"]
CHAT = load_vocabulary(["<e>", "<u>", *WORDS], stop="<e>", chat="<u>{prompt}<e>")  # words are 2 to 9


def rows_that_end_in_the_padding_token(count=7, seed=0):
    rng = np.random.default_rng(seed)
    return [[*rng.integers(1, 12, rng.integers(1, 9)).tolist(), *[0] * int(rng.integers(1, 3))] for _ in range(count)]


def alone(model, row):
    """The score by the model's own code; without a padding token it reads the last token."""
    pad, model.config.pad_token_id = model.config.pad_token_id, None
    with torch.no_grad():
        score = model(input_ids=torch.tensor([row])).logits[0, 0].item()
    model.config.pad_token_id = pad
    return score


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_the_models_own_on_single_rows(kind):
    model = tiny_classifier(kind)
    assert llama.supports(model) == (kind == "llama")
    rows = rows_that_end_in_the_padding_token()
    if kind == "roberta":  # it finds its padding by id
        rows = [[max(i, 2) for i in row] for row in rows]
    with torch.no_grad():
        got = sequence_scores(model, *pad_right(rows, pad_id=int(kind == "roberta")))
    want = [alone(model, row) for row in rows]
    np.testing.assert_allclose(got.numpy(), want, atol=1e-5)
    assert np.std(want) > 1e-2
    assert got.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_depends_neither_on_padding_nor_on_its_batch(kind):
    model = tiny_classifier(kind)
    rows = [[5, 6, 2], [7, 2], [4, 9, 9, 2, 8, 3]]
    pad = int(kind == "roberta")  # it finds its padding by id
    ids, lengths = pad_right(rows, pad)
    with torch.no_grad():
        want = sequence_scores(model, ids, lengths)
        wide = torch.nn.functional.pad(ids, (0, 9), value=pad)
        for filler in [pad] if kind == "roberta" else [0, 3, 11]:
            filled = torch.where(torch.arange(15) < lengths[:, None], wide, filler)
            torch.testing.assert_close(sequence_scores(model, filled, lengths), want, atol=1e-5, rtol=0)
        one = torch.cat([sequence_scores(model, torch.tensor([row]), torch.tensor([len(row)])) for row in rows])
    torch.testing.assert_close(one, want, atol=1e-5, rtol=0)


def test_the_lean_path_has_the_gradients_of_the_models_own(monkeypatch):
    model = tiny_classifier("llama")
    batch = pad_right(rows_that_end_in_the_padding_token())
    gradients = []
    for lean in (True, False):
        if not lean:
            monkeypatch.setattr(scoring, "supports", lambda model: False)
        model.zero_grad()
        sequence_scores(model, *batch).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-3, rtol=1e-3, msg=name)


def test_a_pair_is_the_prompt_the_completion_and_its_end():
    assert encode_pair(CHAT, "a b", "c", True, 0) == ([1, 2, 3, 0, 4, 0], 4, 0, None)
    assert encode_pair(CHAT, "a b", "c", False, 0) == ([1, 2, 3, 0, 4], 4, 0, None)
    assert encode_pair(CHAT, "a b", "c", True, None) == ([1, 2, 3, 0, 4], 4, 0, None)
    assert encode_pair(CHAT, "a b", "", True, 0) == ([1, 2, 3, 0, 0], 4, 0, None)
    assert end_id(CHAT) == 0
    assert end_id(load_vocabulary(["a"])) is None


@pytest.mark.parametrize(
    ("limit", "want"),
    [
        (7, ([1, 2, 3, 4, 0, 5, 0], 5, 0, None)),
        (6, ([1, 3, 4, 0, 5, 0], 4, 1, None)),  # the prompt's text from its start
        (5, ([1, 4, 0, 5, 0], 3, 2, None)),
        (4, ([1, 0, 5, 0], 2, 3, None)),
        (3, ([1, 0, 5], 2, 4, None)),  # then the completion from its end
    ],
)
def test_what_is_too_long_is_cut_and_counted(limit, want):
    assert encode_pair(CHAT, "a b c", "d", True, 0, limit) == want


def test_a_limit_below_the_template_is_refused():
    with pytest.raises(ValueError, match="max_length=2: the template alone has 2 tokens"):
        encode_pair(CHAT, "a", "b", True, 0, 2)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join),
    st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join),
    st.booleans(),
    st.integers(3, 25),
)
def test_cut_tokens_add_up(prompt, completion, ended, limit):
    whole = encode_pair(CHAT, prompt, completion, ended, 0)
    cut = encode_pair(CHAT, prompt, completion, ended, 0, limit)
    assert len(cut.ids) + cut.cut == len(whole.ids)
    assert len(cut.ids) <= limit
    assert cut.cut == max(len(whole.ids) - limit, 0)
    tail = whole.ids[whole.prompt_tokens :]
    assert cut.ids[cut.prompt_tokens :] == tail[: limit - cut.prompt_tokens]


@every_pair
def test_rows_of_a_chat_template_are_those_of_the_whole_conversation(name, template):
    vocabulary, tokenizer = load_vocabulary(chat_tokenizer(name, template)), chat_tokenizer(name, template)
    whole = applied(tokenizer, "Hello", "don't stop")
    assert encode_exchange(vocabulary, "Hello", "don't stop").ids == whole
    asked = applied(tokenizer, "Hello")
    row = encode_pair(vocabulary, "Hello", "don't stop", ended=False)
    assert row.ids[: row.prompt_tokens] == asked
    if whole[: len(asked)] == asked:
        assert row.ids == whole[: len(row.ids)]


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(TEMPLATES)),
    st.text("ab :", min_size=1, max_size=30),
    st.text("ab :", max_size=30),
    st.integers(1, 80),
)
def test_long_exchanges_lose_the_prompt_s_text_first(template, prompt, completion, limit):
    vocabulary = load_vocabulary(chat_tokenizer("byte-level", template))
    whole = encode_exchange(vocabulary, prompt, completion)
    if limit <= len(vocabulary.before_ids) + len(vocabulary.after_ids) and limit < len(whole.ids):
        return  # the template may not fit
    row = encode_exchange(vocabulary, prompt, completion, max_length=limit)
    assert len(row.ids) == min(limit, len(whole.ids))
    assert row.cut == len(whole.ids) - len(row.ids)
    tail = whole.ids[whole.prompt_tokens :]
    assert row.ids[row.prompt_tokens :] == tail[: limit - row.prompt_tokens]
    assert row.ids[0] == whole.ids[0] or not vocabulary.before_ids


def test_texts_that_cannot_be_encoded_are_named():
    vocabulary = load_vocabulary()
    with pytest.raises(ValueError, match="'' is empty"):
        encode_pair(vocabulary, "", "x")
    with pytest.raises(ValueError, match=r"completion 'a\\ud800' cannot be written as UTF-8"):
        encode_pair(vocabulary, "x", "a\ud800")
    ids = encode_pair(vocabulary, "x", "<|end|>", False).ids
    assert ids.count(vocabulary.stop_ids[0]) == 1  # the template's; the text stays text


def test_an_encoder_reads_the_two_texts_of_a_pair(tmp_path):
    _, bert = load_reward_model(save_reward_model(tmp_path / "bert", "bert"))
    assert encode_pair(bert, "a b", "c", True, end_id(bert)) == ([1, 4, 5, 2, 6, 2], 4, 0, 4)
    _, roberta = load_reward_model(save_reward_model(tmp_path / "roberta", "roberta"))
    assert encode_pair(roberta, "a b", "c", True, end_id(roberta)) == ([1, 4, 5, 2, 2, 6, 2], 5, 0, None)


def test_an_encoder_is_told_which_text_a_token_is_of(tmp_path):
    folder = save_reward_model(tmp_path / "bert", "bert")
    pairs = [("a b", "c"), ("d", "e f g"), ("h", "a")]
    model, tokenizer = tiny_classifier("bert"), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        read = [tokenizer(*pair, return_tensors="pt", return_token_type_ids=True) for pair in pairs]
        want = [model(**each).logits.item() for each in read]
        blind = [model(input_ids=each["input_ids"]).logits.item() for each in read]
    assert np.abs(np.subtract(want, blind)).min() > 1e-3
    np.testing.assert_allclose(
        RewardModel(str(folder), device="cpu")(*map(list, zip(*pairs, strict=True))), want, atol=1e-5
    )
    loaded, vocabulary = load_reward_model(folder)
    answers = [encode_exchange(vocabulary, *pair) for pair in pairs]
    np.testing.assert_allclose(answer_scores(loaded, answers, 2), want, atol=1e-5)
    loss = PreferenceLoss(loaded, "pairwise", 0.0, has_margins=False)
    batch = loss.collate([RankedRow(tuple(answers[:2]))])
    assert loss(**batch).item() == pytest.approx(math.log1p(math.exp(want[1] - want[0])), abs=1e-5)


def test_odd_token_types(tmp_path):
    folder = save_reward_model(tmp_path / "bert", "bert")
    save_tokenizer(folder, "[SEP]", second=0)
    _, vocabulary = load_reward_model(folder)
    assert encode_exchange(vocabulary, "a", "b").first_tokens is None
    save_tokenizer(folder, "[SEP]", second=1)
    padded = Tokenizer.from_file(str(folder / "tokenizer.json"))
    padded.enable_padding(length=16)
    padded.save(str(folder / "tokenizer.json"))
    assert encode_exchange(load_reward_model(folder)[1], "a", "b") == ([1, 4, 2, 5, 2], 3, 0, 3)
    save_tokenizer(folder, "[SEP]", second=2)
    for load in (load_reward_model, start_reward_model):
        with pytest.raises(ValueError, match=r"types \[0, 0, 0, 2, 2\]; allowed are 0 .* and \[0, 0, 0, 1, 1\]"):
            load(folder)


def test_the_longest_input():
    assert [max_tokens(tiny_classifier(kind)) for kind in KINDS] == [POSITIONS] * 5
    model = tiny_classifier("roberta")
    longest = torch.full((1, POSITIONS), 5)
    sequence_scores(model, longest, torch.tensor([POSITIONS]))
    with pytest.raises((IndexError, RuntimeError)):
        sequence_scores(model, torch.full((1, POSITIONS + 1), 5), torch.tensor([POSITIONS + 1]))


def base_folder(path, model=None):
    (model or tiny_llama(vocab=12)).save_pretrained(path)
    save_tokenizer(path)
    return path


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_new_reward_model_scores_zero_and_its_loss_is_log_2(tmp_path, make):
    base = make(vocab=12)
    state = torch.get_rng_state()
    model, vocabulary = start_reward_model(base_folder(tmp_path, base))
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.config.pad_token_id, vocabulary.stop_ids) == (0, (0,))  # pad == eos
    scores = sequence_scores(model, *pad_right([[4, 5, 0], [6, 0]]))
    assert scores.tolist() == [0.0, 0.0]
    assert pairwise_loss(scores[None]).item() == pytest.approx(math.log(2), abs=1e-7)
    theirs = dict(base.base_model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in model.base_model.named_parameters())


@pytest.mark.slow
def test_a_seeded_head_is_reproducible_and_of_the_stated_size(tmp_path):
    base = base_folder(tmp_path)
    heads = [start_reward_model(base, seed)[0].score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    many = torch.cat([start_reward_model(base, seed)[0].score.weight for seed in range(20)])
    assert many.std().item() == pytest.approx((16 + 1) ** -0.5, rel=0.15)


def test_a_reward_model_goes_on_with_its_head(tmp_path):
    folder = save_reward_model(tmp_path)
    model, _ = start_reward_model(folder)
    assert torch.equal(model.score.weight, load_reward_model(folder)[0].score.weight)


def test_what_is_no_reward_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model='/nowhere': no sequence classifier with safetensors"):
        load_reward_model("/nowhere")
    with pytest.raises(ValueError, match=r"base='/nowhere': no sequence classifier"):
        start_reward_model("/nowhere")
    with pytest.raises(ValueError, match=r"no reward model: its weights lack 'score.weight'"):
        load_reward_model(base_folder(tmp_path / "base"))
    two = tmp_path / "two"
    tiny_classifier("llama", labels=2).save_pretrained(two)
    save_tokenizer(two)
    with pytest.raises(ValueError, match="num_labels=2; a reward model has 1"):
        load_reward_model(two)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_control_token_that_nothing_writes_needs_no_embedding(tmp_path, kind):
    folder = save_reward_model(tmp_path / "model", kind)
    want = RewardModel(folder, device="cpu")(["a b"], ["c"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<image>"])
    assert tokenizer.token_to_id("<image>") == load_reward_model(folder)[0].config.vocab_size
    other = Path(shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("model*", "config.json")))
    for place in (other, folder):
        tokenizer.save(str(place / "tokenizer.json"))
        assert RewardModel(folder, device="cpu", tokenizer=place)(["a b"], ["c"]) == want
        assert RewardModel(folder, device="cpu")(["a b"], ["c"]) == want
        assert load_reward_model(folder, place)[1].size == 12
    # It needs one where the template writes it behind an answer, and so does a token that is no control token.
    ended = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<image>{% endif %}{% endfor %}"
    for place in (other, folder):
        (place / "chat_template.jinja").write_text(ended)
        with pytest.raises(ValueError, match="its tokenizer has 13 tokens but the model only 12"):
            load_reward_model(folder, place)
    save_tokenizer(other, extra=3)
    with pytest.raises(ValueError, match="its tokenizer has 15 tokens but the model only 12"):
        load_reward_model(folder, other, chat=False)


def test_damaged_folders_are_refused(tmp_path):
    folder = save_reward_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer.json in that folder"):
        load_reward_model(folder)
    save_tokenizer(folder, extra=3)
    with pytest.raises(ValueError, match="its tokenizer has 15 tokens but the model only 12"):
        load_reward_model(folder)
    save_tokenizer(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(ValueError, match="no sequence classifier with safetensors weights"):
        load_reward_model(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tiny_classifier("llama").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no sequence classifier with safetensors weights"):
        load_reward_model(folder)


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"{STORIES} is missing (set TEXTGYM_SHARED)")
def test_a_real_model_becomes_a_reward_model(tmp_path):
    model, vocabulary = start_reward_model(STORIES, seed=0)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STORIES / name, tmp_path)
    again, same = load_reward_model(tmp_path)
    row = encode_pair(same, "Once upon a time", " there was a cat.", True, end_id(same))
    assert row.ids[0] == 1  # BOS
    assert row.ids[-1] == 2  # EOS
    assert row == encode_pair(vocabulary, "Once upon a time", " there was a cat.", True, end_id(vocabulary))
    with torch.no_grad():
        scores = [sequence_scores(m, *pad_right([row.ids])).item() for m in (model, again)]
    assert scores == pytest.approx([alone(again, row.ids)] * 2, abs=1e-5)
