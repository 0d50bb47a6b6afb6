"""RLlib's PPO makes TextGym's environment from its name, and learns it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_tools import load_script

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="RLlib is not installed")
pytest.importorskip("ray.rllib.algorithms.ppo", reason="RLlib is not installed", exc_type=ImportError)
EXAMPLE = Path(__file__).parents[2] / "examples" / "rllib_ppo.py"


@pytest.fixture
def example() -> Iterator[Any]:
    yield load_script(EXAMPLE)
    ray.shutdown()


def test_the_example_starts_at_chance_and_learns(example: Any) -> None:
    history = example.main(["--iterations", "12"])
    assert len(history) == 12
    assert history[0] == pytest.approx(1 / 8, abs=0.08)  # three tokens, each right once in eight times
    assert np.mean(history[-2:]) > 0.3
