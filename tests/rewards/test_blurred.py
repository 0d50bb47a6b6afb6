"""A reward with noise: the noise is the episode's, and no measure of a policy is made of luck."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import textgym  # noqa: F401  (registers the ids)
from textgym import TokenEnv
from textgym.estimates import draw_samples, tilt
from textgym.evaluate import evaluate
from textgym.optimum import estimated
from textgym.rewards import RewardError, make_reward
from textgym.state import TokenState
from textgym.task import make_reference, make_task

RULES = {"name": "helpful_rules"}
NOISY = {"name": "blurred", "reward": RULES, "deviation": 0.5}


def half_or_none(prompts: list[str], completions: list[str], **columns: object) -> list[float | None]:
    return [0.5 if text else None for text in completions]


def test_the_noise_is_drawn_from_the_episode_s_seed() -> None:
    reward = make_reward({"name": "blurred", "reward": half_or_none, "deviation": 2.0})
    terms = reward.terms(["p"] * 3, ["a", "b", ""], episode_seeds=[7, 8, 9])
    drawn = [np.random.default_rng(seed).normal(0.0, 2.0) for seed in (7, 8)]
    assert terms == {"half_or_none": [0.5, 0.5, None], "noise": [*drawn, None]}
    assert reward(["p"] * 3, ["a", "b", ""], episode_seeds=[7, 8, 9]) == [
        0.5 + drawn[0],
        0.5 + drawn[1],
        None,
    ]


def test_a_state_without_a_seed_of_its_noise_is_refused() -> None:
    task = make_task("Noisy")
    env = TokenEnv(task, segments=False)
    env.reset(seed=0)
    env.set_state(TokenState(task.encoded("train")[0]))

    def to_the_end() -> None:
        while not env.step(0)[2]:
            pass

    with pytest.raises((RewardError, ValueError), match="an episode has none; allowed is a state with the `episode"):
        to_the_end()


@pytest.mark.parametrize("deviation", [-1.0, float("nan"), float("inf"), True, "1", None])
def test_a_deviation_that_is_none_is_refused(deviation: object) -> None:
    with pytest.raises(ValueError, match="deviation="):
        make_reward({"name": "blurred", "reward": half_or_none, "deviation": deviation})


def test_a_second_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="reward 'blurred' in 'blurred' is noisy"):
        make_reward({"name": "blurred", "reward": NOISY, "deviation": 1.0})
    named = {"name": "weighted", "rewards": {"noise": {"name": "length", "target": 2}}}
    with pytest.raises(ValueError, match="'noise' already"):
        make_reward({"name": "blurred", "reward": named, "deviation": 1.0})


def test_an_alignment_task_takes_it_and_pays_rules_plus_noise() -> None:
    env = gym.make("textgym/Helpful-v0", reward=NOISY, max_new_tokens=3)
    assert env.unwrapped.task.noisy
    env.reset(seed=3)
    totals, info, done = 0.0, {}, False
    while not done:
        _, paid, done, _, info = env.step(env.action_space.sample())
        totals += paid
    assert totals == pytest.approx(info["gold"] + info["reward_terms"]["noise"])
    assert info["reward_terms"]["noise"] != 0.0


@pytest.mark.slow
def test_the_measures_are_those_without_the_noise() -> None:
    """The same completions (the same seed) under both rewards: reward and J* must not see the noise."""
    plain, noisy = (make_task("Helpful", reward=reward, max_new_tokens=4) for reward in ("rules", NOISY))
    reference = make_reference(plain)
    bare, blurred = (draw_samples(task, reference, each=2) for task in (plain, noisy))
    np.testing.assert_allclose(tilt(blurred, 0.05).values, tilt(bare, 0.05).values, atol=1e-12)
    found = evaluate(reference, noisy, reference, estimated(blurred, 0.05, "eval"), beta=0.05, per_prompt=2)
    assert found.reward.mean == pytest.approx(found.gold.mean, abs=1e-12)


@pytest.mark.parametrize("outer", [{"name": "clipped"}, {"name": "running_norm"}, {"name": "to_messages"}])
def test_noise_is_outermost(outer: dict[str, object]) -> None:
    blurred = {"name": "blurred", "reward": {"name": "length", "target": 2}, "deviation": 0.1}
    with pytest.raises(ValueError, match=f"reward 'blurred' in '{outer['name']}' is noisy; it has to be the outermost"):
        make_reward({**outer, "reward": blurred})
    with pytest.raises(ValueError, match="reward 'blurred' in 'weighted' is noisy"):
        make_reward({"name": "weighted", "rewards": {"a": blurred}})
