"""Encoder-decoders: whatever is decoded or scored is the model's own plain forward of each prompt and completion."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lm.tiny_encdec import save_with_tokenizer, tiny_bart, tiny_t5
from lm.tiny_models import tiny_llama
from lm.zoo import PAIRS, zoo_pair

from textgym import load_vocabulary, make_task
from textgym.lm.causal import CausalLM, load_causal_lm
from textgym.lm.checked import choose_backbone
from textgym.lm.decoder import Decoder
from textgym.lm.encdec import EncoderDecoderBackbone, common_end, decoder_start
from textgym.lm.scoring import start_reward_model
from textgym.task import make_reference, prompt_end

VOCAB, END = 11, 10
ROWS, WIDTH = 8, 16
START = {tiny_t5: 0, tiny_bart: 2}  # T5's padding, BART's end of a text
MODELS = pytest.mark.parametrize("make", [tiny_t5, tiny_bart])
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def rows_of(seed):
    """Ids (8, 16) whose prompts have one to six tokens, `END` the last; completions hold any token, `END` too."""
    rng = np.random.default_rng(seed)
    prompts = rng.permutation(np.arange(ROWS) % 6 + 1)
    ids = rng.integers(VOCAB, size=(ROWS, WIDTH))
    for row, prompt in zip(ids, prompts, strict=True):
        row[:prompt] = rng.integers(END, size=prompt)
        row[prompt - 1] = END
    return ids, prompts


@torch.no_grad()
def plain(model, start, row, prompt, length):
    """Log-probabilities (V,) after `length` tokens of a row, by the model's own forward of it alone."""
    written = torch.tensor([[start, *row[prompt:length]]])
    logits = model(input_ids=torch.tensor(row[None, :prompt]), decoder_input_ids=written).logits
    return logits[0, -1].log_softmax(-1)


def backbone_of(model):
    way = choose_backbone(model)
    assert type(way) is EncoderDecoderBackbone
    way.prompt_end = END
    return way


def followed(make, lengths_of, seed=0):
    """Largest difference between what is decoded and the plain forward, nats, as rows grow to given lengths."""
    model = make()
    ids, prompts = rows_of(seed)
    way = backbone_of(model)
    decoder, before, worst = Decoder(way, torch.device("cpu")), np.zeros(ROWS), 0.0
    for lengths in lengths_of(prompts):
        observation = {"input_ids": ids, "attention_mask": (np.arange(WIDTH) < lengths[:, None]).astype(np.int8)}
        grown = lengths > before
        got = torch.no_grad()(way.read_out)(decoder.advance(observation, grown))[0].log_softmax(-1)
        for row in np.flatnonzero(grown):
            want = plain(model, START[make], ids[row], prompts[row], lengths[row])
            worst = max(worst, float((got[row] - want).abs().max()))
        before = lengths
    return worst


@pytest.mark.slow
@MODELS
@pytest.mark.parametrize("seed", range(3))
def test_token_by_token_ragged_prompts_say_what_the_plain_forward_says(make, seed):
    stops = np.random.default_rng(seed).integers(1, 10, ROWS)
    stops[0] = 10
    steps = [np.minimum(step, stops) for step in range(11)]
    assert followed(make, lambda prompts: [np.minimum(prompts + step, WIDTH) for step in steps], seed) < 1e-4


@pytest.mark.slow
@MODELS
def test_so_it_is_where_rows_begin_at_different_places_and_get_replies(make):
    def lengths_of(prompts):
        rng = np.random.default_rng(4)
        lengths = [np.minimum(prompts + rng.integers(0, 4, ROWS), WIDTH)]
        for step in range(4):
            lengths.append(np.minimum(lengths[-1] + (1 if step % 2 else rng.integers(1, 4, ROWS)), WIDTH))
        return lengths

    assert followed(make, lengths_of) < 1e-4


@MODELS
def test_the_cache_is_used_and_the_encoder_reads_a_prompt_once(make):
    model = make()
    way, (ids, prompts) = backbone_of(model), rows_of(0)
    widths, encoded = [], []
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    model.get_encoder().register_forward_pre_hook(lambda *_: encoded.append(1))
    decoder = Decoder(way, torch.device("cpu"))
    for step in range(5):
        mask = np.arange(WIDTH) < (prompts + step)[:, None]
        decoder.advance({"input_ids": ids, "attention_mask": mask.astype(np.int8)})
    assert widths == [1] * 5
    assert len(encoded) == 1


@pytest.mark.slow
@MODELS
def test_all_states_at_once_and_no_padding_changes_them(make):
    model = make()
    way, (ids, prompts) = backbone_of(model), rows_of(1)
    lengths = np.minimum(prompts + np.random.default_rng(1).integers(0, 9, ROWS), WIDTH)
    place = np.arange(WIDTH)
    rows, columns = np.nonzero((place >= prompts[:, None] - 1) & (place < lengths[:, None]))
    padded = np.where(place < lengths[:, None], ids, END)  # what pads may be what ends a prompt
    for given in (padded, np.pad(padded, ((0, 0), (0, 3)), constant_values=END)):
        with torch.no_grad():
            got = way.read_out(way.features(*map(torch.tensor, (given, rows, columns))))[0].log_softmax(-1)
        for found, row, column in zip(got, rows, columns, strict=True):
            want = plain(model, START[make], ids[row], prompts[row], column + 1)
            torch.testing.assert_close(found, want, atol=1e-4, rtol=0)


@MODELS
def test_branches_of_a_cache(make):
    model = make()
    way, (ids, prompts) = backbone_of(model), rows_of(2)
    for extra in (0, np.arange(ROWS) % 3):  # rows of which equally much is written, and others
        lengths = prompts + extra
        with torch.no_grad():
            cache, _ = way.open(torch.tensor(ids), torch.tensor(lengths), 1)
            chosen = torch.tensor([5, 0, 0, 3])
            got = way.read_out(way.extend(way.select(cache, chosen), torch.tensor([7, 3, END, 0])))[0].log_softmax(-1)
        for found, row, token in zip(got, chosen.tolist(), (7, 3, END, 0), strict=True):
            grown = np.append(ids[row, : lengths[row]], token)
            want = plain(model, START[make], grown, prompts[row], len(grown))
            torch.testing.assert_close(found, want, atol=1e-4, rtol=0)


@MODELS
def test_the_answer_depends_on_the_whole_prompt_and_not_on_later_tokens(make):
    way, (ids, prompts) = backbone_of(make()), rows_of(3)
    row = int(prompts.argmax())
    at = torch.tensor([0]), torch.tensor([prompts[row] + 2])
    with torch.no_grad():
        before = way.features(torch.tensor(ids[row : row + 1]), *at)
        later, earlier = ids[row : row + 1].copy(), ids[row : row + 1].copy()
        later[0, prompts[row] + 3] += 1
        earlier[0, 0] = (earlier[0, 0] + 1) % END
        torch.testing.assert_close(way.features(torch.tensor(later), *at), before)
        assert (way.features(torch.tensor(earlier), *at) - before).abs().max() > 1e-3


@pytest.mark.slow
@MODELS
def test_a_reference_and_its_copy(make):
    model = make()
    ids, prompts = rows_of(4)
    allowed = np.arange(VOCAB) != 4
    reference = CausalLM(model, allowed, temperature=0.5, device="cpu", prompt_end=END)
    mask = (np.arange(WIDTH) < prompts[:, None]).astype(np.int8)
    for each in (reference, reference.copy()):
        got = each.log_probs({"input_ids": ids, "attention_mask": mask})
        for found, row, prompt in zip(got, ids, prompts, strict=True):
            want = 2 * plain(model, START[make], row, prompt, prompt)
            want = want[torch.tensor(allowed)].log_softmax(-1)
            np.testing.assert_allclose(found[allowed], want, atol=1e-4)


def test_what_a_row_must_have_is_said():
    way = choose_backbone(tiny_t5())
    one = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"T5ForConditionalGeneration reads a prompt apart .* no token is known"):
        way.features(torch.tensor([[3, END]]), one, one)
    way.prompt_end = END
    with pytest.raises(ValueError, match="input_ids: a prompt without the token 10"):
        way.features(torch.tensor([[3, 4]]), one, one + 1)
    with pytest.raises(ValueError, match="columns: a state inside a prompt"):
        way.features(torch.tensor([[3, 4, END]]), one, one + 1)
    with pytest.raises(ValueError, match="columns: a state inside a prompt"):
        way.open(torch.tensor([[3, 4, END]]), torch.tensor([2]), 1)  # it is padding that looks like an end


@pytest.mark.parametrize("prompts", [[], [[1, 2], [1, 3]], [[2, 1, 2]]])
def test_prompts_without_a_common_end_are_refused(prompts):
    with pytest.raises(ValueError, match="task 'X' reads a prompt apart from its completion, and no token ends all"):
        common_end(prompts, "task 'X'")


def test_the_end_of_a_tasks_prompts():
    assert common_end([[2], [1, 2], [3, 3, 2]], "x") == 2
    copy, model = make_task("Copy"), tiny_t5(8)
    assert copy.vocabulary.codec.token(prompt_end(copy, model)) == ":"
    assert prompt_end(copy, tiny_llama(8)) is None
    with pytest.raises(ValueError, match="task 'Recall': T5ForConditionalGeneration reads a prompt apart"):
        prompt_end(make_task("Recall"), model)


def test_the_first_token_of_the_decoder():
    assert decoder_start(tiny_t5()) == 0
    assert decoder_start(tiny_t5(decoder_start_token_id=5)) == 5
    assert decoder_start(tiny_bart()) == 2
    with pytest.raises(ValueError, match=r"BartForConditionalGeneration cannot be used, .* no decoder_start_token_id"):
        decoder_start(_without_start())


def _without_start():
    model = tiny_bart()
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    return model


def test_a_model_whose_decoder_is_wrong_is_refused(monkeypatch):
    model = tiny_t5()
    monkeypatch.setattr(EncoderDecoderBackbone, "read_out", lambda self, features: (self._head(features), features))
    with pytest.raises(
        ValueError, match=r"T5ForConditionalGeneration cannot be used, .* as an encoder-decoder its log"
    ):
        choose_backbone(model)


@pytest.mark.parametrize("kind", ["mt5", "mbart", "prophetnet"])
def test_other_families(kind):
    check(kind)


HEAVY = ("led", "pegasus_x")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.long] if kind in HEAVY else [])
        for kind in sorted(set(PAIRS) - {"mt5", "mbart", "prophetnet"})
    ],
)
def test_every_family(kind):
    check(kind)


def check(kind):
    model = zoo_pair(kind)
    if PAIRS[kind]:
        assert type(choose_backbone(model)) is EncoderDecoderBackbone
        return
    with pytest.raises(ValueError, match=f"{type(model).__name__} cannot be used"):
        choose_backbone(model)


def test_the_page_lists_the_families():
    text = PAGE.read_text(encoding="utf-8")
    for way, fits in (("as an encoder-decoder", True), ("refused as an encoder-decoder", False)):
        row = next(line for line in text.splitlines() if line.startswith(f"| {way} |"))
        assert sorted(re.findall(r"`([^`]+)`", row)) == sorted(kind for kind in PAIRS if PAIRS[kind] is fits)


@pytest.fixture
def folder(tmp_path):
    """A T5's folder."""
    model, tokenizer = save_with_tokenizer(tiny_t5, tmp_path)
    return tmp_path, tokenizer, model


@pytest.mark.slow
@MODELS
def test_a_folder_is_read_with_its_encoder_and_its_prompts_end_as_its_tokenizer_ends_them(make, tmp_path):
    path = tmp_path
    model, tokenizer = save_with_tokenizer(make, path)
    task = make_task("Text", prompts=["Hello world", "Say it"], reference=str(path), max_new_tokens=4)
    for text in ("Hello world", "Say it"):
        assert list(task.vocabulary.encode_prompt(text)) == tokenizer(text)["input_ids"]
    assert task.vocabulary.stop_ids == task.vocabulary.after_ids == (tokenizer.convert_tokens_to_ids("</s>"),)
    prompt = np.array(tokenizer("Say it")["input_ids"])
    observation = {"input_ids": prompt[None], "attention_mask": np.ones((1, len(prompt)), np.int8)}
    got = make_reference(task, device="cpu").log_probs(observation)[0]
    allowed = task.vocabulary.allowed
    start = 0 if make is tiny_t5 else tokenizer.eos_token_id
    want = plain(model, start, prompt, len(prompt), len(prompt))[torch.tensor(allowed)].log_softmax(-1)
    np.testing.assert_allclose(got[allowed], want, atol=1e-4)
    assert load_vocabulary(path).after_ids == task.vocabulary.after_ids
    assert load_vocabulary(tokenizer).after_ids == ()  # it does not say that it is an encoder-decoder's


def test_a_decoders_prompts_keep_their_ends_open(folder):
    path, _, _ = folder
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"is_encoder_decoder": False}))
    assert load_vocabulary(path).after_ids == ()


def test_a_reward_model_is_refused_by_name(folder):
    with pytest.raises(ValueError, match=r"as a reward model: the model is an encoder-decoder, .* other models"):
        start_reward_model(folder[0])


def test_a_folder_without_some_of_its_weights_is_refused(folder):
    path, _, model = folder
    tensors = {name: each for name, each in model.state_dict().items() if "EncDecAttention.q" not in name}
    model.save_pretrained(path, state_dict=tensors)
    with pytest.raises(ValueError, match=r"its weights lack 'decoder\.block"):
        load_causal_lm(path)
