"""LMFeatures shows the model's own hidden states, and shares one forward with TopKActions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_tools import word_task
from gymnasium.vector import AutoresetMode

from textgym import make_task
from textgym.env import TokenEnv
from textgym.lm.causal import load_causal_lm
from textgym.lm.decoder import Decoder
from textgym.task import make_reference, reference_model
from textgym.vector import TokenVectorEnv
from textgym.wrappers import (
    LMFeatures,
    ReferenceReward,
    TopKActions,
    VectorLMFeatures,
    VectorReferenceReward,
    VectorTopKActions,
)


@pytest.fixture(scope="module")
def task() -> Any:
    return make_task("Helpful", max_new_tokens=4)


def hidden(task: Any, rows: list[list[int]]) -> Any:
    """The last layer's states after the last tokens, row by row, without padding or cache."""
    model = load_causal_lm(reference_model(task))
    with torch.inference_mode():
        return np.stack(
            [model(torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, -1].numpy() for row in rows]
        )


def test_features_are_the_models_hidden_states(task: Any) -> None:
    env = LMFeatures(TokenEnv(task))
    shown, _ = env.reset(seed=0)
    assert env.observation_space.contains(shown)
    seen, texts = [shown], [list(env.unwrapped.get_state().tokens)]
    for action in (70, 80, 90):
        seen.append(env.step(action)[0])
        texts.append(list(env.unwrapped.get_state().tokens))
    np.testing.assert_allclose(np.stack(seen), hidden(task, texts), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_rows_equal_single_environments(task: Any, mode: AutoresetMode) -> None:
    def single(number: int) -> Any:
        return LMFeatures(TopKActions(ReferenceReward(TokenEnv(task)), 4))

    rows = VectorLMFeatures(VectorTopKActions(VectorReferenceReward(TokenVectorEnv(task, 3, autoreset_mode=mode)), 4))
    assert rows.reference is rows.env.reference is rows.env.env.reference
    singles = [single(number) for number in range(3)]
    observation, _ = rows.reset(seed=2)
    assert rows.observation_space.contains(observation)
    shown = [env.reset(seed=2 + number)[0] for number, env in enumerate(singles)]
    rng = np.random.default_rng(0)
    for _ in range(10):
        np.testing.assert_allclose(observation, np.stack(shown), atol=2e-5)
        actions = rng.integers(0, 4, 3)
        observation, rewards, terminated, _, infos = rows.step(actions)
        for number, env in enumerate(singles):
            shown[number], reward, done, *_ = env.step(actions[number])
            assert reward == pytest.approx(rewards[number], abs=1e-5)
            assert done == terminated[number]
            if done:
                last = infos["final_obs"][number] if mode is AutoresetMode.SAME_STEP else observation[number]
                np.testing.assert_allclose(last, shown[number], atol=2e-5)
                shown[number] = env.reset()[0]
        if mode is AutoresetMode.DISABLED and terminated.any():
            observation, _ = rows.reset(options={"reset_mask": terminated})


def test_one_forward_a_step_serves_all(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards = []
    for name in ("_open", "_extend"):
        original = getattr(Decoder, name)

        def counted(self: Any, *arguments: Any, original: Any = original, name: str = name) -> None:
            forwards.append(name)
            original(self, *arguments)

        monkeypatch.setattr(Decoder, name, counted)
    env = TokenVectorEnv(task, 4, autoreset_mode=AutoresetMode.DISABLED)
    rows = VectorLMFeatures(VectorTopKActions(VectorReferenceReward(env), 8))
    forwards.clear()  # those of the check that every model passes
    rows.reset(seed=0)
    for _ in range(3):
        rows.action_masks()
        rows.step(np.zeros(4, dtype=np.int64))
    assert forwards == ["_open", "_extend", "_extend", "_extend"]


def test_what_has_no_hidden_states_is_refused() -> None:
    with pytest.raises(ValueError, match="no language model"):
        LMFeatures(TokenEnv(word_task()))


def test_it_comes_last(task: Any) -> None:
    env = LMFeatures(TokenEnv(task), reference=make_reference(task))
    with pytest.raises(TypeError, match="LMFeatures comes last"):
        TopKActions(env, 2)
