"""Features of token sequences read the masked tokens and nothing else."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from core_tools import word_task
from stable_baselines3 import PPO
from textgym_agents.sb3.config import Kind
from textgym_agents.sb3.interface import TokenFeatures

from textgym.env import TokenEnv
from textgym.episodes import observation_space

KINDS = get_args(Kind)


def extractor(kind: Kind) -> TokenFeatures:
    torch.manual_seed(0)
    return TokenFeatures(observation_space(word_task()), kind, width=8, layers=2).eval()


def batch(rows: list[list[int]], width: int, pad: int = 0) -> dict[str, torch.Tensor]:
    """As SB3 gives it: float numbers."""
    ids = [row + [pad] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids).float(), "attention_mask": torch.tensor(mask).float()}


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_neighbours_change_nothing(kind: Kind) -> None:
    rows, net = [[1, 2], [3, 2, 1, 4], [2]], extractor(kind)
    want = net(batch(rows, 5))
    assert want.shape == (3, 8)
    for other in (batch(rows, 7), batch(rows, 7, pad=4), batch(rows, 9, pad=5)):
        torch.testing.assert_close(net(other), want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(net(batch(rows[2:], 5)), want[2:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_what_it_says(kind: Kind) -> None:
    """The last token counts for all kinds; the first one for all but "last"; its order for all but that one too."""
    net = extractor(kind)
    base, first, last, swapped = net(batch([[1, 2, 3], [4, 2, 3], [1, 2, 4], [2, 1, 3]], 5))
    assert (base - last).abs().max() > 1e-3
    assert ((base - first).abs().max() > 1e-3) == (kind != "last")
    # A mean of token and position embeddings knows which tokens there are, not where.
    assert ((base - swapped).abs().max() > 1e-4) == (kind in ("gru", "transformer"))


def test_mean_by_hand() -> None:
    net = extractor("mean")
    got = net(batch([[1, 3]], 5))[0]
    rows = net.tokens.weight[1] + net.positions.weight[0], net.tokens.weight[3] + net.positions.weight[1]
    torch.testing.assert_close(got, (rows[0] + rows[1]) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_serves_an_unmodified_policy(kind: Kind) -> None:
    kwargs = {
        "features_extractor_class": TokenFeatures,
        "features_extractor_kwargs": {"kind": kind, "width": 8},
    }
    model = PPO("MultiInputPolicy", TokenEnv(word_task()), n_steps=8, batch_size=8, policy_kwargs=kwargs, device="cpu")
    model.learn(16)
    observation, _ = model.get_env().envs[0].reset(seed=0)  # type: ignore[union-attr]
    action, _ = model.predict(observation)
    assert np.shape(action) == ()


def test_bad_settings_are_named() -> None:
    space = observation_space(word_task())
    with pytest.raises(ValueError, match="kind"):
        TokenFeatures(space, "lstm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="heads"):
        TokenFeatures(space, "transformer", width=10, heads=4)
    with pytest.raises(ValueError, match="observation_space"):
        TokenFeatures(space["input_ids"])
