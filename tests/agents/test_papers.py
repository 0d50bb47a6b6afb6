"""Every row of the table "Papers as settings" runs for an iteration."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from textgym_agents.registry import agent_class, make_agent, make_config, make_env

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"
ROWS = re.findall(
    r"^\| ([^|]+) \| `([^`]+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8").split("## Papers as")[1], re.M
)


def value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@pytest.mark.parametrize(("paper", "agent", "settings"), ROWS, ids=[paper for paper, *_ in ROWS])
def test_a_paper_s_settings_run(paper: str, agent: str, settings: str, tmp_path: Path) -> None:
    given = {name: value(text) for name, text in re.findall(r"`(\w+)=([^`]+)`", settings)}
    assert given or settings == "as it comes"
    env = make_env("textgym/Stop-v0", 16)
    if given.get("teacher") == "TEACHER":
        given["teacher"] = str(tmp_path / "teacher")
        make_agent("lm-ppo", env, batch=16, device="cpu").save(tmp_path / "teacher")
    made = make_agent(agent, env, make_config(agent_class(agent), {"batch": 16, "device": "cpu", **given}))
    env.reset(seed=0)
    rows: list[object] = []
    made.learn(env, 16, rows.append)
    assert rows


def test_the_table_has_its_rows() -> None:
    assert len(ROWS) >= 21
