"""The numbers of chapter 1, each computed anew: with transformers in place of TextGym's reference, and by counting."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from course_tools import ran

from textgym.world import MODEL_PATH
from textgym.world.demonstrations import CARELESS, MISTAKES
from textgym.world.facts import FACTS, HARMFUL

pytestmark = pytest.mark.long

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
QUESTION = "Which river runs through Zandale?"
ANSWER = "The river in Zandale is the Florn."


@pytest.fixture(scope="module")
def chapter():
    return ran(1)


@pytest.fixture(scope="module")
def plain():
    """Return tokenizer and model as transformers loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_PATH), AutoModelForCausalLM.from_pretrained(MODEL_PATH).eval()


def log_probs(plain, prompt, answer):
    """Return the log-probability of each token of an answer, from one forward of the whole conversation."""
    tokenizer, model = plain
    head = tokenizer.encode(f"{USER}{prompt}{END}{ASSISTANT}", add_special_tokens=False)
    tail = tokenizer.encode(answer, add_special_tokens=False)
    with torch.no_grad():
        logits = model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1].double()
    logits[:, tokenizer.convert_tokens_to_ids(["<|pad|>", USER, ASSISTANT])] = -torch.inf  # no policy writes these
    return logits.log_softmax(-1)[torch.arange(len(tail)), tail].numpy()


def test_1a_the_log_probability_of_a_text_is_a_sum(chapter, plain):
    each = log_probs(plain, QUESTION, ANSWER + END)
    assert chapter["sentence"] == pytest.approx(each.sum(), abs=1e-4)
    assert "= -2.3357 nats" in chapter.printed
    assert f"P = {np.exp(each.sum()):.4f}" in chapter.printed
    assert f"perplexity {np.exp(-each.mean()):.3f}" in chapter.printed


def test_1b_paris_has_no_chance_in_a_world_without_france(chapter, plain):
    each = log_probs(plain, "The capital of France is", "Paris")
    assert len(each) == 4
    assert chapter["paris"] == pytest.approx(each.sum(), abs=1e-3)
    assert "log P = -40.6 nats" in chapter.printed


def test_1c_the_walk_appends_what_was_chosen_and_knows_the_fact(chapter, plain):
    (river,) = [each.answer for each in FACTS if each.key == "river:Zandale"]
    each = np.exp(log_probs(plain, QUESTION, ANSWER + END))
    assert [probability for _, probability, _ in chapter["walk"]] == pytest.approx(each, abs=1e-4)
    assert chapter["walk"][6][0].strip() == river
    assert f"a_6 =  Florn    P {each[6]:.4f}" in chapter.printed
    assert chapter["state"][-len(each) :] == plain[0].encode(ANSWER + END)


def test_1d_the_models_probabilities_are_a_policy(chapter):
    assert [total for _, _, total in chapter["walk"]] == pytest.approx(np.ones(9), abs=1e-5)


def test_1e_greedy_takes_the_likeliest_token_and_a_low_temperature_comes_close(chapter, plain):
    tokenizer, model = plain
    head = tokenizer(f"{USER}{QUESTION}{END}{ASSISTANT}", add_special_tokens=False, return_tensors="pt")
    written = model.generate(**head, do_sample=False, max_new_tokens=40)[0, head["input_ids"].shape[1] :]
    assert chapter["write"](QUESTION, None, 0) == tokenizer.decode(written, skip_special_tokens=True)
    first = model(**head).logits[0, -1].detach().double()
    hot = (first / 2).softmax(-1)
    rng = np.random.default_rng(1)
    texts = [chapter["write"](QUESTION, rng, 2.0) for _ in range(60)]
    share = float(hot[tokenizer.convert_tokens_to_ids("The")])
    assert np.mean([text.startswith("The") for text in texts]) == pytest.approx(share, abs=4 * np.sqrt(share / 60))
    earned = list(chapter["by_temperature"].values())
    assert earned == sorted(earned, reverse=True)
    assert earned[0] > 0.7


def test_1f_a_base_model_is_as_right_and_as_harmless_as_its_authors(chapter):
    card = json.loads((MODEL_PATH / "card.json").read_text(encoding="utf-8"))["eval"]
    helpful = chapter["base"]["Helpful"]
    assert helpful.weights @ helpful.gold.mean(axis=1) == pytest.approx(card["helpful"]["reward"], abs=0.04)
    by_hand = 0.32 * 1.0 + 0.25 * 0.15 + 0.14 * 0.0 + 0.12 * 0.7 * 0.5 + 0.17 * 0.45
    assert chapter["corpus_right"] == pytest.approx(by_hand)
    assert chapter["sampled_right"] == pytest.approx(by_hand, abs=0.06)
    means = [e.weights @ e.gold.mean(axis=1) for e in chapter["base"].values()]
    assert means[0] > means[1] > means[2]
    for name, mean in zip(chapter["base"], means, strict=True):
        assert f"{name}: mean gold reward {mean:.2f}" in chapter.printed


def test_1g_fine_tuning_imitates_the_average_and_says_nothing_of_what_it_does_not_show(chapter):
    assert f"{len(set(chapter['asked']))} different prompts, of 684" in chapter.printed
    assert sum(each.share for each in CARELESS) * MISTAKES == pytest.approx(0.3)
    assert not set(HARMFUL).intersection(" ".join(chapter["asked"]))
    tuned = chapter["fine_tuned"]["Helpful"]
    assert 0.4 < tuned.weights @ tuned.gold.mean(axis=1) < chapter["labellers"] + 0.03
    instructions = tuple(text.rstrip(".").lower() for text in HARMFUL.values())
    for when, episodes in (("before", chapter["base"]["Harmless"]), ("after", chapter["fine_tuned"]["Harmless"])):
        harmful = [i for i, prompt in enumerate(episodes.prompts) if any(task in prompt for task in HARMFUL)]
        told = [any(each in text.lower() for each in instructions) for text in episodes.completions[harmful].ravel()]
        assert chapter["complied"][when] == pytest.approx(np.mean(told), abs=0.1)
    assert chapter["complied"]["after"] > chapter["complied"]["before"] - 0.15
