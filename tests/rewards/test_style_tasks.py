"""The style tasks: prompts, rewards through the environment, and that they can be learned."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import textgym  # noqa: F401  (registers the ids)
from textgym.task import make_task

NAMES = ("Sentiment", "Brief", "NoRepeat")


@pytest.mark.parametrize("name", NAMES)
def test_defaults(name: str) -> None:
    task = make_task(name)
    beta = 0.05 if name == "Sentiment" else 0.1  # where J* can be estimated from samples of the reference
    assert (task.family, task.beta, task.gamma, task.reference) == ("style", beta, 1.0, "builtin")
    assert task.reward is task.gold
    assert task.vocabulary.size == 1024
    kinds = {"review"} if name == "Sentiment" else {"review", "howto"}
    for split in ("train", "eval", "tune"):
        prompts = task.prompts[split]
        found = np.array(prompts.columns["kind"])
        assert set(found) == kinds
        for kind in kinds:
            assert prompts.weights[found == kind].sum() == pytest.approx(1 / len(kinds))
    assert not set(task.prompts["train"].texts) & set(task.prompts["eval"].texts)


def write(name: str, text: str, **options: Any) -> tuple[float, dict[str, Any]]:
    """What an answer earns through the environment."""
    env = gym.make(f"textgym/{name}-v0", **options)
    env.reset(seed=0)
    vocabulary = env.unwrapped.task.vocabulary  # type: ignore[attr-defined]
    for token in [*vocabulary.codec.encode(text), *vocabulary.stop_ids]:
        _, reward, ended, _, info = env.step(token)
    assert ended
    assert info["completion"] == text
    assert info["gold"] == reward
    return float(reward), info


def test_answers_by_hand() -> None:
    good = (1 + 0.4404) / 2  # see test_style_rewards
    assert write("Sentiment", "The soup was good.")[0] == pytest.approx(good)
    assert write("Sentiment", "The soup was good.", target="negative")[0] == pytest.approx(1 - good)
    assert write("Brief", "The soup was good. Thank you!")[0] == 1.0
    assert write("Brief", "The soup was good.")[0] == pytest.approx(4 / 6)
    assert write("Brief", "The soup was good.", target=4)[0] == 1.0
    assert write("NoRepeat", "The soup was good.")[0] == pytest.approx(3 / 12)
    assert write("NoRepeat", "The soup was good.", least=3)[0] == 1.0
    reward, info = write("NoRepeat", "Yes. Yes. Yes. Yes.", least=0)
    assert reward == pytest.approx(1 / 3)
    assert list(info["reward_terms"]) == ["no_repeat"]


def test_brief_counts_tokens_with_the_stop() -> None:
    task = make_task("Brief", unit="tokens", target=3)
    prompt = task.encoded("train")[0]
    assert task.judge("train", [prompt], [[9, 9, 3]]).total.tolist() == [1.0]


@pytest.mark.parametrize("name", NAMES)
def test_another_reward_keeps_the_gold(name: str) -> None:
    task = make_task(name, reward={"name": "length", "target": 8})
    assert task.reward is not task.gold
    assert task.reward_name == "length"
    assert task.gold.name == {"Sentiment": "sentiment", "Brief": "length", "NoRepeat": "no_repeat"}[name]


@pytest.mark.slow
@pytest.mark.long
def test_ppo_learns_a_style() -> None:
    pytest.importorskip("torch")
    from textgym_agents.registry import make_agent, make_env

    from textgym.evaluate import evaluate

    env = make_env("textgym/Sentiment-v0", 128)
    agent = make_agent("lm-ppo", env, batch=128)
    task = env.unwrapped.task
    before = evaluate(agent, task, beta=0.0, per_prompt=32).reward
    agent.learn(env, 640)
    assert evaluate(agent, task, beta=0.0, per_prompt=32).reward.low > before.high
