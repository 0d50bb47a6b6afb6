"""Every row of the table "Papers as settings" runs for an iteration."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from textgym_agents.lm.processors import Processors
from textgym_agents.lm.sampler import DecoderSampler
from textgym_agents.registry import agent_class, config_class, make_agent, make_config, make_env

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"
ROWS = re.findall(
    r"^\| ([^|]+) \| `([^`]+)` \| (.*) \|$",
    PAGE.read_text(encoding="utf-8").split("## Papers as")[1].split("\n## ")[0],
    re.M,
)


def value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@pytest.mark.slow
@pytest.mark.parametrize(("paper", "agent", "settings"), ROWS, ids=[paper for paper, *_ in ROWS])
def test_a_paper_s_settings_run(paper: str, agent: str, settings: str, tmp_path: Path) -> None:
    given = {name: value(text) for name, text in re.findall(r"`(\w+)=([^`]+)`", settings)}
    assert given or settings == "defaults"
    if given.get("teacher") == "TEACHER":
        given["teacher"] = str(tmp_path / "teacher")
        make_agent("lm-ppo", make_env("textgym/Stop-v0", 16), batch=16, device="cpu").save(tmp_path / "teacher")
    adapted = "lora_rank" in given
    if adapted:
        pytest.importorskip("peft")
    speaks = adapted or agent == "behaviour-cloning"  # what needs a language model, or demonstrations
    env, kind = make_env("textgym/Helpful-v0" if speaks else "textgym/Stop-v0", 16), agent_class(agent)
    common = {"batch": 16, "device": "cpu"}
    known = {field.name for field in fields(config_class(kind))}
    made = make_agent(agent, env, make_config(kind, {k: v for k, v in common.items() if k in known} | given))
    if adapted:  # its own decoder in the place of a server, with another distribution
        made._collect.sampler = DecoderSampler(made.policy, Processors(top_p=0.9))
    env.reset(seed=0)
    rows: list[object] = []
    made.learn(env, 16, rows.append)
    assert rows


def test_the_table_has_its_rows() -> None:
    assert len(ROWS) >= 44
    assert len({paper for paper, *_ in ROWS}) == len(ROWS)
