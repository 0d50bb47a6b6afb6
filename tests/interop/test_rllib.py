"""RLlib's PPO makes TextGym's environment from its name, and learns it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="RLlib is not installed")
pytest.importorskip("ray.rllib.algorithms.ppo", reason="RLlib is not installed", exc_type=ImportError)
EXAMPLE = Path(__file__).parents[2] / "examples" / "rllib_ppo.py"


@pytest.fixture
def example() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("rllib_ppo", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    ray.shutdown()


def test_the_example_starts_at_chance_and_learns(example: Any) -> None:
    history = example.main(["--iterations", "12"])
    assert len(history) == 12
    assert history[0] == pytest.approx(1 / 8, abs=0.08)  # three tokens, each right once in eight times
    assert np.mean(history[-2:]) > 0.3
