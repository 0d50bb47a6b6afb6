"""The task Helpful: its prompts, limits and reward, through the environment."""

import gymnasium as gym
import numpy as np
import pytest

import textgym  # noqa: F401  (registers the ids)
from textgym.task import make_task
from textgym.world.prompts import TASK_SHARES


def test_defaults() -> None:
    task = make_task("Helpful")
    assert (task.max_new_tokens, task.beta, task.gamma, task.reference) == (40, 0.05, 1.0, "builtin")
    assert task.reward is task.gold
    assert task.vocabulary.size == 1024
    # Facts 72 * 4, how-tos 19 * 4, sums 74 * 4, greetings 6 * 4; held out 24, 6, 26 and 2 times 2.
    assert len(task.prompts["train"]) == 4 * (72 + 19 + 74 + 6)
    assert len(task.prompts["eval"]) == 2 * (24 + 6 + 26 + 2)


@pytest.mark.parametrize("split", ["train", "eval", "tune"])
def test_shares_of_the_kinds(split: str) -> None:
    prompts = make_task("Helpful").prompts[split]
    kinds = np.array(prompts.columns["kind"])
    for kind, share in TASK_SHARES["Helpful"].items():
        assert prompts.weights[kinds == kind].sum() == pytest.approx(share)


def test_a_perfect_answer_through_the_environment() -> None:
    env = gym.make("textgym/Helpful-v0")
    vocabulary = env.unwrapped.task.vocabulary  # type: ignore[attr-defined]
    env.reset(seed=0, options={"prompt": "What is 7 plus 6?"})
    ids = [*vocabulary.codec.encode("Of course! 7 plus 6 is 13."), *vocabulary.stop_ids]
    for token in ids:
        _, reward, terminated, _, info = env.step(token)
    assert terminated
    assert reward == pytest.approx(1.0)
    assert info["gold"] == pytest.approx(1.0)
    assert info["reward_terms"]["courtesy"] == pytest.approx(0.2)
    assert info["finish_reason"] == "stop"


def test_a_prompt_of_the_other_split_is_scored_too() -> None:
    task = make_task("Helpful")
    prompt = task.prompt("Please add up 1 plus 1.", "train")
    assert prompt.index is None
    judged = task.judge("train", [prompt], [[*task.vocabulary.codec.encode("1 plus 1 is 2."), 3]])
    assert judged.total.tolist() == [pytest.approx(0.8)]


def test_another_reward_keeps_the_gold() -> None:
    task = make_task("Helpful", reward={"name": "length", "target": 8, "unit": "words"})
    assert task.reward is not task.gold
    assert task.reward_name == "length"
    assert task.gold.name == "rules"
