"""What one rank does in the tests of several devices; alone, the same functions are what they are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from golden.agent_records import stop_env
from safetensors.torch import save_file
from textgym_agents import make_agent
from textgym_agents.lm.devices import world_size
from textgym_agents.lm.sharding import release, whole_tensors

BATCH = 24


def learn(folder: Path, agent: str, settings: str, episodes: str = "72") -> None:
    """Train an agent; write its metrics, the gradient of every step, and its parameters."""
    torch.set_num_threads(1)
    options: dict[str, Any] = json.loads(settings)
    env = stop_env(BATCH // world_size(), bool(options.pop("masked", False)))
    found = make_agent(agent, env, batch=BATCH, micro_batch=5, device="cpu", **options)
    rows: list[dict[str, float]] = []
    found.learn(env, int(episodes), lambda row: rows.append(dict(row)))
    release(found.policy)
    parameters = whole_tensors(dict(found.policy.named_parameters()), keep=True)
    if found.devices.leads:
        save_file({name: each.clone() for name, each in parameters.items()}, folder / "parameters.safetensors")
        (folder / "metrics.json").write_text(json.dumps(rows))
