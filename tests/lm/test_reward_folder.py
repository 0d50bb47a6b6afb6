"""Folders that hold no reward model are refused before anything is loaded."""

import json

import pytest
from lm.tiny_rewards import save_reward_model, save_tokenizer
from lm.zoo import zoo_classifier

from textgym.lm.reward_model import RewardModel


def edited(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")


def test_folders_without_a_reward_model_are_refused_at_once(tmp_path):
    folder = save_reward_model(tmp_path / "run" / "model", offset=1.0)
    with pytest.raises(ValueError, match=r"has no config.json. Did you mean '.*model'\?"):
        RewardModel(tmp_path / "run")
    edited(folder, "reward.json", offset=float("nan"))
    with pytest.raises(ValueError, match=r"reward.json: .*NaN is no JSON"):
        RewardModel(folder)
    for offset in ("high", 10**400, True):
        edited(folder, "reward.json", offset=offset)
        with pytest.raises(ValueError, match=r"reward.json: offset=.*a finite number"):
            RewardModel(folder)
    (folder / "reward.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="holds a list, allowed is a JSON object"):
        RewardModel(folder)
    (folder / "reward.json").unlink()
    edited(folder, "config.json", id2label={"0": "good", "1": "bad"})
    with pytest.raises(ValueError, match="num_labels=2"):
        RewardModel(folder)
    edited(folder, "config.json", architectures=["LlamaForCausalLM"])
    with pytest.raises(ValueError, match="no reward model but a 'LlamaForCausalLM'"):
        RewardModel(folder)
    for model, named in (([7], "7"), (5, "5"), (None, "None"), ("", "''"), ({"name": "x"}, "{'name': 'x'}")):
        with pytest.raises(TypeError, match=f"model={named}: a folder or a hub id"):
            RewardModel(model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id2label": 5}, "id2label=5; a JSON object is allowed"),
        ({"id2label": "0"}, "id2label='0'; a JSON object"),
        ({"architectures": 5}, "architectures=5; a list of names is allowed"),
        ({"architectures": "LlamaForSequenceClassification"}, "architectures='LlamaFor.*a list of names"),
        ({"architectures": [5]}, r"architectures=\[5\]; a list of names"),
    ],
)
def test_what_a_configuration_cannot_hold_is_named(tmp_path, changes, said):
    folder = save_reward_model(tmp_path)
    edited(folder, "config.json", **changes)
    with pytest.raises(ValueError, match=f"config.json: {said}"):
        RewardModel(folder)


def test_missing_files_are_named_at_once(tmp_path):
    folder = save_reward_model(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer.json in that folder"):
        RewardModel(folder)
    save_tokenizer(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \*.safetensors in that folder"):
        RewardModel(folder)


@pytest.mark.slow
def test_an_attention_that_short_rows_switch_takes_no_long_ones(tmp_path):
    sparse = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}  # full up to (5 + 2) 4 tokens
    zoo_classifier("big_bird", **sparse).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="attention_type='block_sparse' and rows of up to 64 tokens"):
        RewardModel(tmp_path, device="cpu")(["a"], ["b"])
    RewardModel(tmp_path, device="cpu", max_length=28)(["a"], ["b"])
