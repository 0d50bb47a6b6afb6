"""Both backbones against the model's own forward, and the decoder against reading every state afresh."""

import json
import logging
import math
import re

import numpy as np
import pytest
import torch
from lm.tiny_models import tiny_gpt2, tiny_llama
from lm.zoo import zoo_model
from safetensors.torch import save_file
from textgym_agents.lm.policy import LMPolicy

from textgym.checks import equal_parts
from textgym.lm import backbone as module
from textgym.lm.backbone import HuggingFaceBackbone
from textgym.lm.causal import CausalLM, choose_device, load_causal_lm, rows_at_once, stored_precision
from textgym.lm.checked import choose_backbone
from textgym.lm.decoder import Decoder
from textgym.lm.llama import LlamaBackbone
from textgym.vocab import load_vocabulary

MODELS = {
    "llama-lean": lambda: (tiny_llama(), True),
    "llama-lean-mha": lambda: (tiny_llama(groups=4), True),
    "llama-hf": lambda: (tiny_llama(), False),
    "gpt2": lambda: (tiny_gpt2(), False),
}


@pytest.fixture(params=sorted(MODELS))
def pair(request):
    model, lean = MODELS[request.param]()
    backbone = choose_backbone(model, lean=lean)
    # One that were wrong would not be chosen, and then not be tested.
    assert isinstance(backbone, LlamaBackbone) == ("lean" in request.param)
    return model, backbone


def test_a_model_that_pads_with_its_stop_token_is_read_without_a_warning():
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    library = logging.getLogger("transformers.modeling_utils")
    library.addHandler(handler)
    model = tiny_gpt2()
    model.config.pad_token_id = model.config.eos_token_id = 0
    try:
        rows = torch.tensor([[3, 4, 0], [5, 6, 7]])
        choose_backbone(model).features(rows, torch.tensor([0, 1]), torch.tensor([1, 2]))
        library.warning("another one")
    finally:
        library.removeHandler(handler)
    assert [record.getMessage() for record in records] == ["another one"]


def ragged(rng, batch=6, longest=9):
    lengths = rng.integers(2, longest + 1, batch)
    lengths[0] = longest
    ids = rng.integers(0, 11, (batch, longest))
    return torch.tensor(ids), torch.tensor(lengths)


def expected(model, row):
    with torch.no_grad():
        output = model(row[None], output_hidden_states=True)
    return output.logits[0], output.hidden_states[-1][0]


def test_states_equal_the_model_on_each_row_alone(pair):
    model, backbone = pair
    ids, lengths = ragged(np.random.default_rng(0))
    rows = torch.repeat_interleave(torch.arange(6), lengths)
    columns = torch.cat([torch.arange(n) for n in lengths.tolist()])
    logits, hidden = backbone.read_out(backbone.features(ids, rows, columns))
    for row, length in enumerate(lengths.tolist()):
        want_logits, want_hidden = expected(model, ids[row, :length])
        torch.testing.assert_close(logits[rows == row], want_logits, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(hidden[rows == row], want_hidden, atol=2e-5, rtol=1e-4)


def test_states_do_not_depend_on_what_follows_a_row(pair):
    _, backbone = pair
    ids, lengths = ragged(np.random.default_rng(1))
    rows, columns = torch.arange(6), lengths - 1
    before, _ = backbone.read_out(backbone.features(ids, rows, columns))
    scrambled = torch.where(torch.arange(9) < lengths[:, None], ids, (ids + 5) % 11)
    after, _ = backbone.read_out(backbone.features(torch.cat([scrambled, scrambled], 1), rows, columns))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


def test_lean_llama_has_the_gradients_of_the_model():
    model = tiny_llama()
    ids, lengths = ragged(np.random.default_rng(2))
    rows, columns = torch.arange(6), lengths - 1
    gradients = []
    for backbone in (LlamaBackbone(model), HuggingFaceBackbone(model)):
        model.zero_grad()
        logits, hidden = backbone.read_out(backbone.features(ids, rows, columns))
        (logits.log_softmax(-1)[:, 3].sum() + hidden.square().sum()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_decoder_equals_reading_afresh_while_rows_finish_and_restart(pair):
    model, backbone = pair
    rng = np.random.default_rng(3)
    decoder = Decoder(backbone, torch.device("cpu"))
    batch, width = 8, 24
    lengths = rng.integers(2, 7, batch)
    ids = rng.integers(0, 11, (batch, width))
    done = np.zeros(batch, dtype=bool)
    for step in range(14):
        mask = (np.arange(width) < lengths[:, None]).astype(np.int8)
        features = decoder.advance({"input_ids": ids.copy(), "attention_mask": mask})
        logits, hidden = torch.no_grad()(backbone.read_out)(features)
        for row in range(batch):
            want, state = expected(model, torch.tensor(ids[row, : lengths[row]]))
            torch.testing.assert_close(logits[row], want[-1], atol=3e-5, rtol=1e-4)
            torch.testing.assert_close(hidden[row], state[-1], atol=3e-5, rtol=1e-4)
        done |= rng.random(batch) < 0.2
        if step == 8:  # rows that had left the cache grow again, and a prompt changes under a row
            done[:] = False
            ids[2, 0] = (ids[2, 0] + 1) % 11
        lengths = lengths + ~done


def test_rows_that_are_equal_are_read_once_and_then_go_their_own_ways(pair, monkeypatch):
    model, backbone = pair
    opened, open_ = [], backbone.open
    monkeypatch.setattr(backbone, "open", lambda ids, *rest: (opened.append(len(ids)), open_(ids, *rest))[1])
    ids = np.random.default_rng(6).integers(0, 11, (6, 12))
    ids[:, :5] = ids[0, :5]
    ids[4:, 1] = (ids[4:, 1] + 1) % 11
    # Three rows of five tokens and one of four, of which the fourth stands before the same one; two of another text.
    lengths = np.array([5, 5, 4, 5, 5, 5])
    decoder = Decoder(backbone, torch.device("cpu"))
    for _ in range(4):
        observation = {"input_ids": ids, "attention_mask": np.arange(12) < lengths[:, None]}
        logits, _ = torch.no_grad()(backbone.read_out)(decoder.advance(observation))
        for row in range(6):
            want, _ = expected(model, torch.tensor(ids[row, : lengths[row]]))
            torch.testing.assert_close(logits[row], want[-1], atol=3e-5, rtol=1e-4)
        lengths = lengths + 1
    assert opened == [3]


def test_a_cache_grows_beyond_its_first_slots(pair):
    model, backbone = pair
    if (model.config.max_position_embeddings or 0) < 60:
        pytest.skip("its rows are shorter")
    decoder, ids = Decoder(backbone, torch.device("cpu")), np.random.default_rng(7).integers(0, 11, (3, 60))
    for length in range(4, 60):
        lengths = np.array([length, length, length - 2])
        logits, _ = torch.no_grad()(backbone.read_out)(
            decoder.advance({"input_ids": ids, "attention_mask": np.arange(60) < lengths[:, None]})
        )
        if length in (31, 32, 33, 34, 48, 49, 50, 59):
            for row in range(3):
                want, _ = expected(model, torch.tensor(ids[row, : lengths[row]]))
                torch.testing.assert_close(logits[row], want[-1], atol=3e-5, rtol=1e-4)


def test_a_row_that_paused_inside_the_cache_can_grow_again(pair):
    model, backbone = pair
    decoder = Decoder(backbone, torch.device("cpu"))
    ids = np.random.default_rng(4).integers(0, 11, (8, 16))
    lengths = np.full(8, 3)
    for paused in (False, True, True, False, False):  # one row of eight: too few to be dropped from the cache
        lengths = lengths + 1
        lengths[5] -= paused
        observation = {"input_ids": ids, "attention_mask": np.arange(16) < lengths[:, None]}
        logits, _ = torch.no_grad()(backbone.read_out)(decoder.advance(observation))
        for row in range(8):
            want, _ = expected(model, torch.tensor(ids[row, : lengths[row]]))
            torch.testing.assert_close(logits[row], want[-1], atol=3e-5, rtol=1e-4)


def test_prompts_are_read_in_parts_and_their_caches_joined(pair, monkeypatch):
    model, way = pair
    ids, lengths = ragged(np.random.default_rng(5))
    with torch.no_grad():
        whole, before = way.open(ids, lengths, 2)
    name = "_open" if isinstance(way, LlamaBackbone) else "_forward"
    read, sizes = getattr(way, name), []
    monkeypatch.setattr(way, name, lambda *given: (sizes.append(len(given[1])), read(*given))[1])
    # 4 (16 + I) + 2 x 9 numbers a token, I = 4 x 16 by default: room for four rows of nine, so two parts of three.
    inner = getattr(model.config, "intermediate_size", None) or 64
    monkeypatch.setattr(module, "READ_AT_ONCE", (4 * (16 + inner) + 18) * 9 * 4)
    with torch.no_grad():
        parts, features = way.open(ids, lengths, 2)
        assert sizes == [3, 3]
        torch.testing.assert_close(features, before, atol=1e-6, rtol=1e-5)
        for rows in (torch.arange(6), torch.tensor([5, 0, 3])):
            parts, whole = way.select(parts, rows), way.select(whole, rows)
            got, want = way.extend(parts, rows), way.extend(whole, rows)
            torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_parts_are_as_few_and_as_equal_as_can_be():
    cut = {most: [(part.start, part.stop) for part in equal_parts(10, most)] for most in (0, 3, 4, 9, 10, 11)}
    assert len(cut[0]) == 10
    assert cut[3] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert cut[4] == [(0, 4), (4, 8), (8, 10)]
    assert cut[9] == [(0, 5), (5, 10)]
    assert cut[10] == cut[11] == [(0, 10)]


def test_keys_and_values_of_a_batch_have_a_limit():
    # 2 layers, keys and values, 2 heads of 4 floats: 128 bytes a token
    model = tiny_llama()
    assert rows_at_once(model, torch.device("cpu"), 2**10) == 2**30 // (128 * 2**10)
    assert rows_at_once(model.to(torch.bfloat16), torch.device("cpu"), 2**10) == 2**30 // (64 * 2**10)
    assert CausalLM(tiny_llama(), np.ones(11, dtype=bool), device="cpu").rows_at_once(100) == 2**30 // 12800


def test_decoder_computes_only_what_is_new(monkeypatch):
    backbone = LlamaBackbone(tiny_llama())
    opened, widths = [], []
    open_, extend = backbone.open, backbone.extend
    monkeypatch.setattr(backbone, "open", lambda *a: (opened.append(1), open_(*a))[1])
    monkeypatch.setattr(backbone, "extend", lambda c, t: (widths.append(len(t)), extend(c, t))[1])
    decoder = Decoder(backbone, torch.device("cpu"))
    ids = np.random.default_rng(0).integers(0, 11, (8, 12))
    for step in range(6):
        lengths = np.full(8, 3 + step)
        lengths[2:] = np.minimum(lengths[2:], 5)  # six of eight rows stop growing after two steps
        observation = {"input_ids": ids, "attention_mask": np.arange(12) < lengths[:, None]}
        decoder.advance(observation)
        decoder.advance(observation)  # asked again, nothing is computed
    assert opened == [1]
    assert widths == [8, 8, 2, 2, 2]


def test_forbidden_tokens_have_probability_zero_and_the_rest_is_renormalised():
    model = tiny_llama()
    allowed = np.ones(11, dtype=bool)
    allowed[[0, 4]] = False
    reference = CausalLM(model, allowed, temperature=0.5, device="cpu")
    ids = np.array([[1, 2, 3, 0]])
    got = reference.log_probs({"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 0]])})[0]
    logits = expected(model, torch.tensor([1, 2, 3]))[0][-1].double().numpy() / 0.5
    want = np.where(allowed, np.exp(logits), 0.0)
    np.testing.assert_allclose(np.exp(got), want / want.sum(), atol=1e-6)
    assert np.exp(got)[[0, 4]].tolist() == [0.0, 0.0]


def test_a_temperature_at_which_forbidden_tokens_would_win_is_refused():
    model, allowed = tiny_llama(), np.ones(11, dtype=bool)
    observation = {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), dtype=np.int8)}
    likeliest = int(CausalLM(model, allowed, device="cpu").log_probs(observation)[0].argmax())
    allowed[likeliest] = False
    for temperature in (1e-9, 1e-40, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"temperature={temperature}: allowed is a finite number >= 1e-06"):
            CausalLM(model, allowed, temperature, device="cpu")
        with pytest.raises(ValueError, match=rf"temperature={temperature}: allowed is a finite number >= 1e-06"):
            LMPolicy(model, allowed, temperature)
    greedy = np.exp(CausalLM(model, allowed, 1e-6, device="cpu").log_probs(observation)[0])
    assert greedy.max() == 1.0
    assert allowed[greedy.argmax()]


def test_a_model_that_does_not_fit_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"it has 11 logits but the task has 7 actions.*vocab_size=11"):
        CausalLM(tiny_llama(), np.ones(7, dtype=bool), device="cpu")
    with pytest.raises(ValueError, match=r"it has 11 logits but the task has 13 actions.*vocab_size=11"):
        CausalLM(tiny_llama(), np.arange(13) < 11, device="cpu")


def test_a_model_without_logits_for_tokens_is_refused_with_an_advice_that_helps():
    model, allowed = tiny_llama(), np.arange(13) < 12
    with pytest.raises(ValueError, match=r"11 logits but .* 13 actions") as error:
        CausalLM(model, allowed, device="cpu")
    assert "vocab_size" not in str(error.value)  # which load_vocabulary would refuse
    with pytest.raises(ValueError, match="vocab_size=11: allowed is an integer in 12"):
        load_vocabulary([f"w{i}" for i in range(12)], vocab_size=11)
    model.resize_token_embeddings(int(re.search(r"resize_token_embeddings\((\d+)\)", str(error.value))[1]))
    observation = {"input_ids": np.array([[1, 11]]), "attention_mask": np.ones((1, 2), dtype=np.int8)}
    assert np.exp(CausalLM(model, allowed, device="cpu").log_probs(observation)).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_a_setting_that_makes_no_layers_may_exceed_the_tensors(tmp_path):
    model = zoo_model("qwen2", max_window_layers=28)
    assert model.config.num_hidden_layers == 2
    model.save_pretrained(tmp_path)  # 12 tensors a layer, embeddings, norm and output
    assert load_causal_lm(tmp_path).num_parameters() == model.num_parameters()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 28}))
    with pytest.raises(ValueError, match=r"num_hidden_layers=28; its weights are 27 tensors"):
        load_causal_lm(tmp_path)


def test_bad_model_and_device_are_named():
    with pytest.raises(ValueError, match="model='/nowhere': no causal LM"):
        load_causal_lm("/nowhere")
    with pytest.raises(ValueError, match="device='gpu9'"):
        choose_device("gpu9")


@pytest.mark.parametrize(("name", "dtype"), [("model", torch.bfloat16), ("adapter_model", torch.float32)])
def test_the_file_of_an_adapter_does_not_say_the_precision_of_the_model_under_it(tmp_path, name, dtype):
    save_file({"weight": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / f"{name}.safetensors")
    (tmp_path / name.replace("_model", "_config")).with_suffix(".json").write_text("{}")
    assert stored_precision(tmp_path) == dtype


def test_replies_of_different_lengths_extend_the_cache_at_once(pair, monkeypatch):
    model, backbone = pair
    opened, pieces, open_, extend = [], [], backbone.open, backbone.extend

    def extended(cache, tokens, counts=None):
        pieces.append(None if counts is None else counts.tolist())
        return extend(cache, tokens, counts)

    monkeypatch.setattr(backbone, "open", lambda *given: (opened.append(1), open_(*given))[1])
    monkeypatch.setattr(backbone, "extend", extended)
    decoder = Decoder(backbone, torch.device("cpu"))
    ids = np.random.default_rng(6).integers(0, 11, (5, 40))
    lengths = np.array([2, 6, 3, 5, 4])
    # Replies beside rows that write one token; a row that pauses beside a reply and goes on; rows that are dropped.
    for growth in (
        [0] * 5,
        [1] * 5,
        [4, 1, 7, 1, 1],
        [1] * 5,
        [3, 3, 0, 1, 1],
        [1] * 5,
        [2, 0, 0, 5, 0],
        [1, 0, 0, 1, 0],
    ):
        lengths = lengths + growth
        observation = {"input_ids": ids, "attention_mask": np.arange(40) < lengths[:, None]}
        logits, hidden = torch.no_grad()(backbone.read_out)(decoder.advance(observation))
        for row in range(5):
            want, state = expected(model, torch.tensor(ids[row, : lengths[row]]))
            torch.testing.assert_close(logits[row], want[-1], atol=3e-5, rtol=1e-4)
            torch.testing.assert_close(hidden[row], state[-1], atol=3e-5, rtol=1e-4)
    assert opened == [1]
    assert pieces == [None, [4, 1, 7, 1, 1], None, [3, 3, 0, 1, 1], None, [2, 5], None]


def test_a_cache_without_room_for_a_reply_is_read_again(pair):
    model, backbone = pair
    decoder = Decoder(backbone, torch.device("cpu"))
    ids = np.random.default_rng(7).integers(0, 11, (3, 12))
    lengths = np.array([1, 2, 9])  # of twelve columns nine are taken: the first row's reply does not fit behind them
    for growth in ([0, 0, 0], [6, 1, 1], [1, 5, 1], [1, 1, 1]):
        lengths = lengths + growth
        observation = {"input_ids": ids, "attention_mask": np.arange(12) < lengths[:, None]}
        logits, _ = torch.no_grad()(backbone.read_out)(decoder.advance(observation))
        for row in range(3):
            want, _ = expected(model, torch.tensor(ids[row, : lengths[row]]))
            torch.testing.assert_close(logits[row], want[-1], atol=3e-5, rtol=1e-4)


def test_a_reply_that_is_too_much_for_one_pass_is_read_in_parts(pair, monkeypatch):
    _, backbone = pair
    cache, _ = backbone.open(torch.ones((4, 3), dtype=torch.long), torch.full((4,), 3), 20)
    assert backbone.takes(cache, 8)
    monkeypatch.setattr(module, "READ_AT_ONCE", 1)
    assert not backbone.takes(cache, 8)
