"""The reward model that the package ships: its size, its order of answers, its indifference to padding."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from textgym_agents.rlhf.bundled import BundledConfig, accuracy, shortened

import textgym  # noqa: F401  (registers the ids)
from textgym import make_task
from textgym.lm.scoring import encode_pair, end_id, load_reward_model, pad_right, sequence_scores
from textgym.world import REWARD_MODEL_PATH

CARD = json.loads((REWARD_MODEL_PATH / "card.json").read_text())
TASKS = ("Helpful", "Harmless", "Honest", "HHH")


def test_it_has_four_megabytes_at_most_and_no_pickle():
    files = list(REWARD_MODEL_PATH.iterdir())
    assert sum(file.stat().st_size for file in files) < 4_000_000
    assert {file.suffix for file in files} == {".json", ".safetensors"}


def test_its_weights_have_16_bits_of_precision():
    held = load_file(REWARD_MODEL_PATH / "model.safetensors")
    assert not any((array.view(np.uint8)[..., ::4] != 0).any() for array in held.values())
    weights = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert np.abs(shortened(weights) / weights - 1).max() <= 2**-16
    assert shortened(np.float32([1.0, -0.0, 1 + 2**-15, 1 + 2**-16 + 2**-23])).tolist() == [
        1,
        0,
        1 + 2**-15,
        1 + 2**-15,
    ]


def test_its_card_tells_of_4000_noisy_preferences_and_of_its_accuracy_without_noise():
    assert CARD["preferences"] == 4000
    assert CARD["noise"] > 0
    assert set(CARD["held_out"]) == set(TASKS)
    assert CARD["held_out"]["HHH"]["accuracy"] >= 0.85


@pytest.mark.long
@pytest.mark.slow
def test_the_card_is_true():
    found = accuracy(REWARD_MODEL_PATH, "HHH", BundledConfig(held_out=600))
    claimed = CARD["held_out"]["HHH"]["accuracy"]
    error = np.sqrt(claimed * (1 - claimed) * (1 / found["pairs"] + 1 / CARD["held_out"]["HHH"]["pairs"]))
    assert abs(found["accuracy"] - claimed) < 4 * error


def test_padding_does_not_change_a_score():
    model, vocabulary = load_reward_model(REWARD_MODEL_PATH)
    texts = [("What is 2 plus 3?", "2 plus 3 is 5."), ("Hello!", "Of course! Hello there! How can I help?")]
    rows = [encode_pair(vocabulary, *pair, True, end_id(vocabulary)).ids for pair in texts]
    ids, lengths = pad_right(rows, vocabulary.pad_id)
    wide = torch.nn.functional.pad(ids, (0, 30), value=int(vocabulary.stop_ids[0]))  # any id will do
    with torch.inference_mode():
        alone = torch.cat([sequence_scores(model, *pad_right([row], vocabulary.pad_id)) for row in rows])
        torch.testing.assert_close(sequence_scores(model, ids, lengths), alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(sequence_scores(model, wide, lengths), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_it_is_the_reward_of_the_world_s_tasks_by_name(name):
    env = gym.make(f"textgym/{name}-v0", reward="model")
    task = env.unwrapped.task
    assert task.gold is not None
    assert task.gold_scorer is not task.scorer
    assert gym.spec(f"textgym/{name}-v0").to_json()
    assert task.scorer.term_names == ("reward_model",)


def test_it_prefers_a_polite_answer_that_ends():
    task = make_task("Helpful", reward="model")
    (prompt,) = [p for p in task.encoded("train") if p.text == "How much is 2 plus 3?"]
    encode = task.vocabulary.codec.encode
    stop = list(task.vocabulary.stop_ids)
    right = list(encode("Of course! 2 plus 3 is 5."))
    judged = task.judge("train", [prompt] * 3, [right + stop, right, list(encode("Ugh. 2 plus 3 is 5.")) + stop])
    best, endless, rude = judged.total
    assert best > max(endless, rude)
