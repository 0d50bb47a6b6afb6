"""Every registered id plays as it is recorded: observations, masks, rewards, ends and infos."""

from __future__ import annotations

import pytest
from record import ROLLOUTS, differences, read, rollout_file, rollouts

from textgym.task import task_entry, task_names

IDS = [task_entry(name).id for name in task_names()]


@pytest.mark.parametrize("name", IDS)
def test_an_id_plays_as_recorded(name: str) -> None:
    path = rollout_file(name)
    assert path.exists(), f"{name} is not recorded: python tests/golden/record.py rollouts"
    recorded = read(path)
    found = list(differences(recorded, rollouts(name, recorded)))
    assert not found, "\n".join(
        [f"{name}: a changed number needs a new -vN and a line in Version History", *found[:10]]
    )


def test_every_file_is_of_an_id() -> None:
    assert {path.name for path in ROLLOUTS.iterdir()} == {rollout_file(name).name for name in IDS}
