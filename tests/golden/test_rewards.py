"""Every registered reward scores as it is recorded, alone, composed, token by token, and learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from record import MODEL_TASKS, REWARDS, Rewards, differences, model_scores, paid, read, scores

from textgym.rewards import reward_names

DATA: Rewards = read(REWARDS)
REGISTERED = reward_names()
CHANGED = "a changed number needs a new -vN of the tasks with this reward and a line in their Version History"


def names_in(spec: Any) -> Iterator[str]:
    """The registered names in a spec, those of the rewards inside it too."""
    if isinstance(spec, str):
        yield spec
    elif isinstance(spec, dict):
        yield from names_in(spec.get("name"))
        for inner in (spec.get("reward"), *spec.get("rewards", {}).values()):
            yield from names_in(inner)


@pytest.mark.parametrize("name", DATA["cases"])
@pytest.mark.filterwarnings("ignore::textgym.rewards.TextGymWarning")
def test_a_reward_scores_as_recorded(name: str) -> None:
    recorded = DATA["cases"][name]
    now = scores(recorded["spec"], DATA["batches"][recorded["batch"]], recorded["batch"])
    found = list(differences(recorded, now))
    assert not found, "\n".join([f"{name}: {CHANGED}", *found])


@pytest.mark.parametrize("name", DATA["paid"])
def test_a_reward_is_paid_as_recorded(name: str) -> None:
    recorded = DATA["paid"][name]
    found = list(differences(recorded["rewards"], paid(recorded["options"], recorded["actions"])))
    assert not found, "\n".join([f"{name}: {CHANGED}", *found])


@pytest.mark.parametrize("task", MODEL_TASKS)
def test_the_reward_model_scores_as_recorded(task: str) -> None:
    now = model_scores(task, DATA["batches"]["world"])
    found = list(differences(DATA["model"][task], now, tolerance=1e-5))
    assert not found, "\n".join([f"{task}: {CHANGED}", *found])


def test_every_registered_reward_is_recorded() -> None:
    recorded = {name for case in DATA["cases"].values() for name in names_in(case["spec"])}
    missing = set(REGISTERED) - recorded - {"reward_model", "concurrent", "judge", "math_verify", "per_token"}
    assert not missing, f"add cases of {sorted(missing)} to {REWARDS.name}, then python tests/golden/record.py rewards"
