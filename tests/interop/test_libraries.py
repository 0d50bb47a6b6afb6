"""skrl, Tianshou and AgileRL train on TextGym's environments through its wrappers alone: the examples learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from core_tools import load_script

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"
RANDOM = 1 / 8  # of Copy's three words each is right once in eight times


def example(name: str, package: str) -> Any:
    pytest.importorskip(package, reason=f"{package} is not installed")
    return load_script(EXAMPLES / f"{name}.py")


@pytest.mark.parametrize(
    ("name", "package", "least"),
    [("skrl_ppo", "skrl", 0.4), ("tianshou_dqn", "tianshou", 0.6), ("agilerl_dqn", "agilerl", 0.5)],
)
def test_the_example_learns(name: str, package: str, least: float) -> None:
    before, after = example(name, package).main([])
    assert before < 2 * RANDOM
    assert after > least


def test_tianshou_takes_texts_in_infos_for_nan() -> None:
    """What `NoInfo` is for."""
    module = example("tianshou_dqn", "tianshou")
    module.NoInfo = lambda env: env
    with pytest.raises(RuntimeError, match="NaN detected in the buffer"):
        module.main(["--epochs", "1"])
