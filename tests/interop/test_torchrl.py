"""TextGym's environments in TorchRL's GymEnv: the same numbers as by Gymnasium, and the example learns."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from core_tools import load_script

pytestmark = pytest.mark.slow
envs = pytest.importorskip("torchrl.envs", reason="TorchRL is not installed")
EXAMPLE = Path(__file__).parents[2] / "examples" / "torchrl_gym.py"


@pytest.mark.parametrize("name", ["Bandit", "Stop", "Helpful", "Json"])
def test_specs_hold(name: str) -> None:
    envs.check_env_specs(envs.GymEnv(f"textgym:textgym/{name}-v0", categorical_action_encoding=True))


def test_a_rollout_is_gymnasium_s() -> None:
    env = envs.GymEnv("textgym:textgym/Copy-v0", categorical_action_encoding=True)
    env.set_seed(5)  # resets
    rollout = env.rollout(9, break_when_any_done=False)
    plain = gym.make("textgym:textgym/Copy-v0")
    plain.reset(seed=5)
    observation, _ = plain.reset()
    for t in range(9):
        np.testing.assert_array_equal(rollout["input_ids"][t], observation["input_ids"])
        np.testing.assert_array_equal(rollout["attention_mask"][t], observation["attention_mask"])
        observation, reward, terminated, _, _ = plain.step(int(rollout["action"][t]))
        assert float(rollout["next", "reward"][t]) == pytest.approx(reward)
        assert bool(rollout["next", "terminated"][t]) == terminated
        if terminated:
            observation, _ = plain.reset()


def test_the_example_starts_at_chance_and_learns() -> None:
    history = load_script(EXAMPLE).main(["--total-timesteps", "4608"])
    assert len(history) == 12
    assert history[0] == pytest.approx(1 / 8, abs=0.08)  # three tokens, each right once in eight times
    assert np.mean(history[-2:]) > 0.3
