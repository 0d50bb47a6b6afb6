"""The diagnostic tasks: what they pay, worked out by hand, and what their prompts and references are."""

from __future__ import annotations

import itertools
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from textgym.task import make_reference, make_task, task_entry, task_names

GENERALISING = {"Copy", "Reverse", "Recall", "Distractor"}
NAMES = [name for name in task_names() if task_entry(name).family == "diagnostics"]
every_name = pytest.mark.parametrize("name", NAMES)


def pay(env: Any, words: str, **options: Any) -> float:
    """The reward at the end of an episode of these words, which must be exactly one episode."""
    token_id = env.unwrapped.task.vocabulary.codec.token_id
    env.reset(seed=0, options=options or None)
    rewards = []
    for place, word in enumerate(words.split(), 1):
        _, reward, terminated, truncated, _ = env.step(token_id(word))
        rewards.append(reward)
        assert terminated == (place == len(words.split()))
        assert not truncated
    assert rewards[:-1] == [0.0] * (len(rewards) - 1)
    return float(rewards[-1])


def make(name: str, **options: Any) -> Any:
    return gym.make(f"textgym/{name}-v0", **options)


# What is paid

PAID_BY_HAND = [
    ("Bandit", 2, {"arm0": 0.0, "arm1": 1 / 3, "arm3": 1.0, "pull": 0.0}),
    ("BigVocab", 1, {"w0": 1.0, "w16": 1.0, "w48": 1.0, "w15": 0.0, "w63": 0.0}),
    ("DeepSea", 3, {"right right right": 1.0, "right right left": 0.0, "left left left": 0.0}),
    ("Delayed", 3, {"a b c": 1.0, "a a a": 1.0, "b a a": 0.0, "go a a": 0.0}),
    ("Deceptive", 4, {"far far far far": 1.0, "near near near near": 0.5, "far near far far": 0.125}),
    ("TwoModes", 3, {"a a a": 1.0, "b b b": 1.0, "c c c": 0.0, "a b a": 0.0}),
    ("BetaSweep", 0, {"d a b": 1.0, "d b a": 1 / 3, "a b d": 0.0, "spell a b": 2 / 3}),
    ("Scale", 3, {"d a b": 100.0, "d b b": 200 / 3}),
    ("Scale", 4, {"d a b": 0.01, "d d d": 0.01 / 3}),
    ("Noisy", 0, {"d a b": 1.0, "d a a": 2 / 3}),
]


@pytest.mark.parametrize(("name", "difficulty", "paid"), PAID_BY_HAND)
def test_what_it_pays(name: str, difficulty: int, paid: dict[str, float]) -> None:
    env = make(name, difficulty=difficulty)
    for words, reward in paid.items():
        assert pay(env, words) == pytest.approx(reward, abs=1e-12), words


def test_copy_and_reverse_and_distractor_and_recall_pay_for_the_prompt_s_words() -> None:
    for name, difficulty, right in (("Copy", 3, slice(1, 4)), ("Reverse", 3, slice(3, 0, -1))):
        env = make(name, difficulty=difficulty)
        words = env.unwrapped.task.encoded("train")[5].text.split()[right]
        assert pay(env, " ".join(words), prompt_index=5) == 1.0
        wrong = ["a" if words[0] != "a" else "b", *words[1:]]
        assert pay(env, " ".join(wrong), prompt_index=5) == pytest.approx(2 / 3)
    env = make("Distractor", difficulty=6)
    first = env.unwrapped.task.encoded("train")[7].text.split()[0]
    assert [pay(env, word, prompt_index=7) for word in "abcd"] == [float(word == first) for word in "abcd"]


def test_recall_pays_for_the_value_of_the_key_that_is_asked_for() -> None:
    env = make("Recall", difficulty=3)
    for index, prompt in enumerate(env.unwrapped.task.encoded("train")[:20]):
        words = prompt.text.split()
        assert words[0] == "recall"
        assert words[7] == ":"
        value = words[words.index(words[8]) + 1]
        assert [pay(env, word, prompt_index=index) for word in "0123"] == [float(w == value) for w in "0123"]


def test_stop_pays_by_the_number_of_words_and_only_for_a_stop_token() -> None:
    env = make("Stop", difficulty=4)
    assert pay(env, "word word <end>", prompt="2") == 1.0
    assert pay(env, "word word <halt>", prompt="2") == 1.0
    assert pay(env, "<halt>", prompt="2") == 0.5
    assert pay(env, "word word word word word <end>", prompt="2") == 0.25
    assert pay(env, "word word word word word word", prompt="2") == 0.0
    assert env.unwrapped.task.vocabulary.stop_ids == (1, 2)


def test_a_prompt_of_one_s_own_has_no_answer_and_pays_nothing() -> None:
    assert pay(make("Copy"), "a a a", prompt="copy a a :") == 0.0
    assert pay(make("Recall"), "1", prompt="a 1 a") == 0.0


# Noise


def test_noise_comes_from_the_episode_s_seed_around_the_expected_reward() -> None:
    env = make("Noisy", difficulty=2)
    assert pay(env, "d a a") == pay(env, "d a a") != pay(env, "d a b")
    task = env.unwrapped.task
    column = {"episode_seeds": list(range(4000))}
    paid = np.array(task.reward(["spell"] * 4000, ["d a a"] * 4000, **column))
    # Standard error of the mean: 1 / sqrt(4000) = 0.016; of the deviation: 0.011.
    assert paid.mean() == pytest.approx(2 / 3, abs=0.07)
    assert paid.std() == pytest.approx(1.0, abs=0.05)
    assert task.reward.expected(["spell"], ["d a a"]) == [pytest.approx(2 / 3)]
    assert task.gold is task.reward.expected


def test_the_gold_reward_has_no_noise() -> None:
    env = make("Noisy")
    env.reset(seed=1)
    for token in (3, 0):
        env.step(token)
    _, reward, _, _, info = env.step(1)
    assert info["gold"] == 1.0
    assert reward != 1.0


# Prompts, references and vocabularies


@every_name
def test_eval_prompts_are_held_out_where_there_is_something_to_generalise_to(name: str) -> None:
    task = make_task(name)
    train, held_out = (set(task.prompt_set(split).texts) for split in ("train", "eval"))
    assert len(train) == len(task.prompt_set("train"))
    if name in GENERALISING:
        assert train.isdisjoint(held_out)
    else:
        assert train == held_out


@every_name
def test_words_of_prompts_are_actions_only_where_they_are_answers(name: str) -> None:
    task = make_task(name)
    reference = make_reference(task)
    ids = np.array([task.encoded("train")[0].ids])
    probabilities = np.exp(reference.log_probs({"input_ids": ids, "attention_mask": np.ones_like(ids)}))
    assert (probabilities[0] > 0).tolist() == task.vocabulary.allowed.tolist()
    assert probabilities.sum() == pytest.approx(1.0)


def test_two_modes_has_a_table_that_writes_one_mode_twice_as_often() -> None:
    task = make_task("TwoModes")
    reference = make_reference(task)
    assert reference is task.reference
    assert str(reference) == "2-gram"

    def probability(words: str) -> float:
        ids = list(task.encoded("train")[0].ids)
        total = 0.0
        for word in words.split():
            row = np.array([ids])
            logs = reference.log_probs({"input_ids": row, "attention_mask": np.ones_like(row)})
            token = task.vocabulary.codec.token_id(word)
            assert token is not None
            total += float(logs[0, token])
            ids.append(token)
        return float(np.exp(total))

    assert probability("a a a") == pytest.approx(0.5**3)
    assert probability("b b b") == pytest.approx(0.25 * 0.5**2)
    every = [" ".join(words) for words in itertools.product("abc", repeat=3)]
    assert sum(map(probability, every)) == pytest.approx(1.0)


def test_big_vocab_has_v_words_and_is_made_at_once() -> None:
    sizes = [make_task("BigVocab", difficulty=difficulty).vocabulary.size for difficulty in range(7)]
    assert sizes == [16, 64, 256, 1024, 4096, 16384, 50257]
    start = time.perf_counter()
    env = make("BigVocab", difficulty=6)
    env.reset(seed=0)
    assert time.perf_counter() - start < 1.0
    again = make("BigVocab", difficulty=6)
    assert again.unwrapped.task.vocabulary is env.unwrapped.task.vocabulary


def test_scale_and_beta_sweep_change_rewards_and_beta() -> None:
    scales = [make_task("Scale", difficulty=difficulty) for difficulty in range(5)]
    assert [task.reward.scale for task in scales] == [1.0, 10.0, 0.1, 100.0, 0.01]
    assert [task.beta / task.reward.scale for task in scales] == pytest.approx([0.1] * 5)
    assert make_task("Scale", beta=3.0).beta == 3.0
    betas = [make_task("BetaSweep", difficulty=difficulty).beta for difficulty in range(7)]
    assert betas == [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
