"""Fine-tuning: what is learnt and what is not, the same result after an interruption, nothing left behind."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from agents.rlhf.fit_tools import (
    PICKLES,
    Stops,
    dropout_base,
    pair_file,
    result_of,
    rows_of,
    weights,
    write_rows,
)
from chat_tools import applied, chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from lm.tiny_models import tiny_llama
from lm.zoo import zoo_model
from textgym_agents import saving
from textgym_agents.lm.trainer import lay_out, steps_done
from textgym_agents.rlhf import inputs, runs, sft
from textgym_agents.rlhf.inputs import load_base_lm, read_rows, split_by_prompt
from textgym_agents.rlhf.reward_model import train_reward_model
from textgym_agents.rlhf.settings import RewardModelSettings, SFTSettings, peak_learning_rate
from textgym_agents.rlhf.sft import IGNORED, CompletionLoss, encode_demonstration, token_sums, train_sft

from textgym.interrupts import TrainingInterrupted
from textgym.lm.causal import load_causal_lm
from textgym.lm.scoring import Encoded
from textgym.preferences import Demonstration, read_demonstrations
from textgym.tasks.text import text_task
from textgym.world import MODEL_PATH, REWARD_MODEL_PATH

ROWS = [Encoded([3, 4, 5, 6, 7], 3, 0), Encoded([3, 8, 0], 1, 0), Encoded([5, 5, 5, 5], 3, 0)]
QUICK = {"batch": 8, "micro_batches": 2, "epochs": 2, "save_every": 3, "device": "cpu"}


def global_states():
    numbers = np.random.get_state()[1].tolist()  # noqa: NPY002
    return random.getstate(), numbers, torch.random.get_rng_state().tolist()


def log_prob(model, ids, place):
    """Of ids[place] after what stands before it, with no padding and no batch."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
    return float(logits[ids[place]] - logits.exp().sum().log())


def test_the_loss_is_that_of_completion_tokens_one_by_one():
    model = tiny_llama()
    loss = CompletionLoss(model)
    want = -sum(log_prob(model, row.ids, t) for row in ROWS for t in range(row.prompt_tokens, len(row.ids)))
    batch = loss.collate(ROWS)
    assert float(loss(**batch).detach()) == pytest.approx(want, rel=1e-5)
    assert loss.count(batch) == 2 + 2 + 1


def test_prompts_and_padding_carry_no_gradient():
    loss = CompletionLoss(tiny_llama())
    batch = loss.collate(ROWS)
    kept = []
    forward = loss.model.model.forward

    def keep(**inputs):
        outputs = forward(**inputs)
        outputs.last_hidden_state.retain_grad()
        kept.append(outputs.last_hidden_state)
        return outputs

    loss.model.model.forward = keep
    loss(**batch).backward()
    moved = kept[0].grad.abs().sum(-1) > 0  # (B, T): the positions whose prediction counts
    # Completion token t is predicted at t - 1; a token 0 (here also the padding id) counts where it is real.
    want = [[False, False, True, True, False], [True, True] + [False] * 3, [False, False, True] + [False] * 2]
    assert moved.tolist() == want
    assert (batch["labels"] != IGNORED).sum() == 5


def test_measures_do_not_depend_on_the_batch():
    loss = CompletionLoss(tiny_llama())
    likely = int(loss.model(input_ids=torch.tensor([[3]])).logits[0, 0].argmax())
    rows = [*ROWS, Encoded([3, likely], 1, 0)]
    one, all_ = token_sums(loss, rows, 1), token_sums(loss, rows, 8)
    np.testing.assert_allclose(one, all_, rtol=1e-5)
    assert one[:, 2].tolist() == [2, 2, 1, 1]
    assert one[3, 1] == 1
    for found, row in zip(one, rows, strict=True):
        places = range(row.prompt_tokens, len(row.ids))
        assert found[0] == pytest.approx(-sum(log_prob(loss.model, row.ids, place) for place in places), rel=1e-5)
        likeliest = [max(range(9), key=lambda token: log_prob(loss.model, [*row.ids[:t], token], t)) for t in places]
        assert found[1] == sum(a == b for a, b in zip(likeliest, row.ids[row.prompt_tokens :], strict=True))


def test_measures_by_hand(monkeypatch):
    """Three prompts, of which one has two rows: 12 nats and 5 hits in 10 tokens."""
    sums = np.array([[2.0, 1, 2], [6.0, 1, 4], [1.0, 1, 2], [3.0, 2, 2]])
    monkeypatch.setattr(sft, "token_sums", lambda loss, rows, batch: sums)
    held_out = inputs.SplitRows([], [*ROWS, ROWS[0]], ["a", "b", "b", "c"], {})
    found = sft.measure(CompletionLoss(tiny_llama()), held_out, 8)
    # The prompts' residuals are 2 - 2 * 1.2 = -0.4, -0.2 and 0.6, and 1 - 2 * 0.5 = 0, -1 and 1.
    for name, value, squares in (("loss", 1.2, 0.56), ("token_accuracy", 0.5, 2.0)):
        width = 1.96 * (3 / 2 * squares) ** 0.5 / 10
        ends = [found[f"eval/{name}{end}"] for end in ("", "_low", "_high")]
        assert ends == pytest.approx([value, value - width, value + width])
    assert found["eval/perplexity_high"] == pytest.approx(math.exp(1.2 + 1.96 * 0.84**0.5 / 10))
    two = sft._ratio(np.array([3.0, 1.0]), np.array([2.0, 2.0]), ["a", "b"])
    assert two == pytest.approx((1.0, 1 - 1.96 * 2 / 4, 1 + 1.96 * 2 / 4))  # of residuals 1 and -1
    assert np.isnan(sft._ratio(np.array([3.0, 1.0]), np.array([2.0, 2.0]), ["a", "a"])[1:]).all()
    sums[:, 0] = 8000.0  # a perplexity that no number holds
    assert sft.measure(CompletionLoss(tiny_llama()), held_out, 8)["eval/perplexity"] == math.exp(700)
    assert sft.measure(CompletionLoss(tiny_llama()), inputs.SplitRows(ROWS, [], [], {}), 8) == {}


def test_training_sees_what_the_environment_shows():
    prompt, completion = "What is 2 + 2? <|end|>", "It is four."
    _, vocabulary = load_base_lm("builtin")
    encoded = encode_demonstration(Demonstration(prompt, completion), vocabulary, 64)
    task = text_task([prompt])
    assert tuple(encoded.ids[: encoded.prompt_tokens]) == tuple(task.vocabulary.encode_prompt(prompt))
    assert encoded.ids[-1] == task.vocabulary.stop_ids[0]
    assert task.vocabulary.decode([encoded.ids[encoded.prompt_tokens :]]) == [completion]
    cut_off = encode_demonstration(Demonstration(prompt, completion, ended=False), vocabulary, 64)
    assert cut_off.ids == encoded.ids[:-1]
    with pytest.raises(ValueError, match="empty"):
        encode_demonstration(Demonstration("", completion), vocabulary, 64)


def test_a_base_that_sees_the_tokens_to_come_is_refused(monkeypatch):
    monkeypatch.setattr(inputs, "load_causal_lm", lambda name: zoo_model("bert-bidirectional"))
    with pytest.raises(ValueError, match="model: BertLMHeadModel cannot be used"):
        load_base_lm("builtin")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 4))
def test_every_epoch_has_every_row_once(lengths, batch, epochs):
    order = lay_out(lengths, batch, epochs, 3)
    assert Counter(order.tolist()) == dict.fromkeys(range(len(lengths)), epochs)
    for start in range(0, len(order), batch):
        step = [lengths[row] for row in order[start : start + batch]]
        assert step == sorted(step, reverse=True)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=30), st.floats(0, 0.5), st.integers(0, 9))
def test_no_prompt_is_on_both_sides(prompts, share, seed):
    if len(set(prompts)) < 2:
        return
    train, held_out = split_by_prompt(prompts, share, seed)
    assert sorted(train + held_out) == list(range(len(prompts)))
    assert not {prompts[row] for row in train} & {prompts[row] for row in held_out}
    assert bool(held_out) == (share > 0)


def test_the_learning_rate_falls_with_the_size():
    data = SFTSettings(data="x")
    rates = [peak_learning_rate(data, size) for size in (10_000, 1_000_000, 100_000_000, 7_000_000_000)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1.195e-5], rel=1e-3)
    assert peak_learning_rate(SFTSettings(data="x", learning_rate=0.5), 9) == 0.5


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"data": ""}, "data"),
        ({"batch": 0}, "batch"),
        ({"batch": 6}, "micro_batches"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"held_out": 1.0}, "held_out"),
        ({"schedule": "cosines"}, "cosine"),
        ({"on_broken": "ignore"}, "skip"),
        ({"max_length": 1}, "max_length"),
        ({"max_length": 9.5}, "max_length=9.5: allowed is None or an integer"),
        ({"epochs": 1.5}, "epochs=1.5: allowed is an integer in 1..1048576"),
        ({"save_every": True}, "save_every=True: allowed is an integer in 1..9007199254740992"),
        ({"eval_every": -1}, "eval_every=-1: allowed is an integer in 0..9007199254740992"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: allowed is a finite number >= 0"),
        ({"seed": -1}, "seed=-1: allowed is an integer in 0..4294967295"),
        ({"seed": 2**32}, "seed=4294967296: allowed"),
    ],
)
def test_bad_settings_are_named(changes, word):
    with pytest.raises(ValueError, match=word):
        SFTSettings(**{"data": "x", **changes})


@pytest.mark.long
def test_a_run_learns_and_leaves_nothing_behind(tmp_path):
    plan = SFTSettings(pair_file(tmp_path / "pairs.jsonl"), **{**QUICK, "epochs": 6})
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    states = global_states()
    result = train_sft(plan, tmp_path / "run")
    assert global_states() == states
    assert result["after"]["eval/loss_high"] < result["before"]["eval/loss_low"]
    assert result["after"]["eval/perplexity"] == pytest.approx(math.exp(result["after"]["eval/loss"]))
    assert result["data"]["train_rows"] + result["data"]["held_out_rows"] == 40
    files = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"config.json", "metrics.jsonl", "result.json", "model.safetensors", "tokenizer.json"} <= files
    assert not [name for name in files if name.endswith(PICKLES)]
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert len(rows_of(tmp_path / "run")) == result["steps"] + 1
    with pytest.raises(ValueError, match="never overwritten"):
        train_sft(plan, tmp_path / "run")


def test_the_end_that_is_learnt_is_the_template_s(tmp_path):
    tokenizer = chat_tokenizer("byte-level", "gemma")
    end, turn = (tokenizer.convert_tokens_to_ids(token) for token in ("</s>", "<end_of_turn>"))
    model = tiny_llama(vocab=len(tokenizer))
    model.generation_config.eos_token_id = [end, turn]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _, vocabulary = load_base_lm(str(tmp_path))
    row = encode_demonstration(Demonstration("Hello", "Yes."), vocabulary, 64)
    whole = applied(tokenizer, "Hello", "Yes.")
    assert row.ids == whole[: len(row.ids)]
    assert row.ids[-1] == turn
    assert row.ids[: row.prompt_tokens] == applied(tokenizer, "Hello")


@pytest.mark.slow
def test_gradient_checkpointing_trains_the_same_model(tmp_path):
    data, base = pair_file(tmp_path / "pairs.jsonl", 16), dropout_base(tmp_path / "base")
    found = []
    for asked in (False, True):
        plan = SFTSettings(data, base=base, **{**QUICK, "epochs": 1}, gradient_checkpointing=asked)
        train_sft(plan, tmp_path / str(asked))
        found.append(load_base_lm(str(tmp_path / str(asked) / "model"))[0].state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.long
def test_an_end_token_that_pads_as_well_is_learned_as_an_end(tmp_path):
    data = pair_file(tmp_path / "pairs.jsonl")
    for name, pad in (("apart", "<|pad|>"), ("end", "<|end|>")):
        base = shutil.copytree(MODEL_PATH, tmp_path / f"base-{name}")
        file = base / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": "<|end|>", "pad_token": pad}))
        train_sft(SFTSettings(data, base=str(base), **{**QUICK, "epochs": 1}), tmp_path / name)
    apart, end = weights(tmp_path / "apart" / "model"), weights(tmp_path / "end" / "model")
    assert apart == end


@pytest.mark.long
def test_parts_of_a_step_do_not_change_it(tmp_path):
    # Completions of different length: a mean of the parts' means would be another number.
    data = pair_file(tmp_path / "pairs.jsonl")
    for parts in (1, 4):
        plan = SFTSettings(data, **{**QUICK, "micro_batches": parts, "epochs": 1})
        train_sft(plan, tmp_path / str(parts))
    one, four = (rows_of(tmp_path / str(parts)) for parts in (1, 4))
    assert [row.get("loss") for row in one[1:]] == pytest.approx([row["loss"] for row in four[1:]], rel=1e-4)


@pytest.mark.long
def test_after_an_interruption_the_result_is_the_same(tmp_path):
    # Dropout draws from a generator whose state has to come back too.
    plan = SFTSettings(pair_file(tmp_path / "pairs.jsonl"), base=dropout_base(tmp_path / "base"), eval_every=2, **QUICK)
    train_sft(plan, tmp_path / "whole")
    for number, stop in enumerate((0, 2, 5, 9)):
        run = tmp_path / f"cut-{number}"
        with pytest.raises(TrainingInterrupted, match=r"textgym sft --data .* --resume"):
            train_sft(plan, run, Stops(stop))
        with pytest.raises(ValueError, match="resume it"):
            train_sft(plan, run)
        train_sft(plan, run, resume=True)
        assert weights(run / "model") == weights(tmp_path / "whole" / "model")
        assert rows_of(run) == rows_of(tmp_path / "whole")
        assert result_of(run) == result_of(tmp_path / "whole")


@pytest.mark.long
def test_a_crash_while_saving_loses_no_checkpoint(tmp_path, monkeypatch):
    plan = SFTSettings(pair_file(tmp_path / "pairs.jsonl"), base=dropout_base(tmp_path / "base"), **QUICK)
    train_sft(plan, tmp_path / "whole")
    write, calls = saving.write_json, []

    def fail(path, data):
        calls.append(path)
        if len(calls) == 2:  # the second checkpoint's last file
            path.write_bytes(b"half")
            raise OSError("no space left")
        write(path, data)

    monkeypatch.setattr(saving, "write_json", fail)
    with pytest.raises(OSError, match="no space left"):
        train_sft(plan, tmp_path / "cut")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "cut/checkpoints").iterdir()] == ["model"]
    assert steps_done(tmp_path / "cut/checkpoints/model") == 3
    train_sft(plan, tmp_path / "cut", resume=True)
    assert weights(tmp_path / "cut/model") == weights(tmp_path / "whole/model")


@pytest.mark.slow
def test_what_a_run_was_started_with_stays(tmp_path):
    data = pair_file(tmp_path / "pairs.jsonl")
    with pytest.raises(TrainingInterrupted):
        train_sft(SFTSettings(data, **QUICK), tmp_path / "run", Stops(4))
    with pytest.raises(ValueError, match=r"seed=3.*started with 0"):
        train_sft(SFTSettings(data, seed=3, **QUICK), tmp_path / "run", resume=True)
    config = tmp_path / "run" / "config.json"
    stored = json.loads(config.read_text())
    config.write_text(json.dumps({**stored, "format": 1}))
    with pytest.raises(ValueError, match="holds a run in format 1; allowed is format 2"):
        train_sft(SFTSettings(data, **QUICK), tmp_path / "run", resume=True)
    config.write_text(json.dumps(stored))
    pair_file(Path(data), 39)
    with pytest.raises(ValueError, match="data have changed"):
        train_sft(SFTSettings(data, **QUICK), tmp_path / "run", resume=True)


def test_a_row_that_cannot_be_encoded_is_named_by_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('nonsense\n\n{"prompt": "a", "completion": "b"}\n{"prompt": "", "completion": "b"}\n')
    reading = read_demonstrations(path, "skip")
    _, vocabulary = load_base_lm("builtin")
    watcher = Stops(-1)
    prompts, items = read_rows(
        reading, lambda row: encode_demonstration(row, vocabulary, 64), SFTSettings(str(path)), watcher
    )
    assert (prompts, len(items)) == (["a"], 1)
    assert [note.partition(":")[2].partition(": ")[0].strip() for note in watcher.notes] == [
        f"{path}, line 1",
        f"{path}, line 4",
    ]


@pytest.mark.slow
def test_what_does_not_do_leaves_no_folder(tmp_path, monkeypatch):
    row = {"prompt": "a", "completion": "b"}
    for number, (rows, word) in enumerate(
        [([row], "held_out"), ([{"prompt": "a"}], "no usable row"), ([], "no usable row")]
    ):
        data = write_rows(tmp_path / f"{number}.jsonl", rows)
        with pytest.raises(ValueError, match=word):
            train_sft(SFTSettings(data, device="cpu"), tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        train_sft(SFTSettings(str(tmp_path / "none.jsonl")), tmp_path / "run")
    with pytest.raises(ValueError, match="no causal LM but a LlamaForSequenceClassification; its head"):
        train_sft(SFTSettings("world:Helpful", base=str(REWARD_MODEL_PATH)), tmp_path / "run")
    with pytest.raises(ValueError, match="Helpful"):
        train_sft(SFTSettings("world:Helpfull"), tmp_path / "run")
    monkeypatch.setattr(runs, "is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match="bf16=True: device='auto' is no device with bfloat16 here"):
        train_sft(SFTSettings(write_rows(tmp_path / "2.jsonl", [row] * 9), bf16=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_completion_whose_prompt_was_cut_away_is_learned_from_its_second_token_on():
    # Nothing stands before the first one.
    loss = CompletionLoss(tiny_llama())
    rows = [Encoded([3, 4, 5], 0, 0), ROWS[0]]
    batch = loss.collate(rows)
    assert loss.count(batch) == 2 + 2
    assert token_sums(loss, rows, 2)[:, 2].tolist() == [2, 2]
    want = -sum(log_prob(loss.model, [3, 4, 5], t) for t in (1, 2))
    assert token_sums(loss, rows, 1)[0, 0] == pytest.approx(want, rel=1e-5)


def test_from_an_adapter_the_model_is_written_merged(tmp_path):
    pytest.importorskip("peft")
    plan = {**QUICK, "data": "world:Helpful", "demonstrations": 16, "epochs": 1, "held_out": 0.2}
    train_sft(SFTSettings(lora_rank=2, learning_rate=1e-2, **plan), tmp_path / "one")
    own = train_sft(SFTSettings(base=str(tmp_path / "one/adapter"), learning_rate=1e-12, **plan), tmp_path / "two")
    assert own["after"]["eval/loss"] == pytest.approx(own["before"]["eval/loss"], rel=1e-5)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        first, second = (load_causal_lm(tmp_path / name / "model")(ids).logits for name in ("one", "two"))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    pairs = pair_file(tmp_path / "pairs.jsonl")
    with pytest.raises(ValueError, match=r"adapter'?: an adapter; allowed is a model that it is merged into"):
        train_reward_model(RewardModelSettings(pairs, base=str(tmp_path / "one/adapter"), **QUICK), tmp_path / "three")
