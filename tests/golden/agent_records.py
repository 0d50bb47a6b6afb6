"""What the golden tests of agents and saved folders record.

`python tests/golden/agent_records.py` writes data/agents.json anew, on purpose; with the word `folders`
data/folders.json. Names behind it are those of the entries that are written anew; the others stay as they are.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from textgym_agents import load_agent, make_agent

from textgym import TokenState, TokenVectorEnv, make_task
from textgym.evaluate import evaluate

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Case:
    """One agent to train on the task Stop.

    Args:
        agent: a registered name.
        settings: that keep a run short, or that the case is about. All others are the defaults, so that a changed
            default is seen.
        episodes: the budget.
        masked: whether the task's grammar forbids the first stop token after an even number of words.
    """

    agent: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    episodes: int = 48
    masked: bool = False


_LM: Mapping[str, Any] = {"batch": 12, "micro_batch": 5, "device": "cpu"}
_SEARCH: Mapping[str, Any] = {"batch": 12, "simulations": 6}
_TABLE: Mapping[str, Any] = {"batch": 12}
_SB3: Mapping[str, Any] = {"batch": 12, "width": 8}
_REPLAY: Mapping[str, Any] = {**_SB3, "learning_starts": 24, "minibatch": 16, "gradient_steps": 4}

CASES: Mapping[str, Case] = {
    "a2c": Case("a2c", _LM),
    "alphazero": Case("alphazero", {**_LM, **_SEARCH}, 36),
    "alphazero of mean backups": Case("alphazero", {**_LM, **_SEARCH, "backup": "mean"}, 24),
    "awr": Case("awr", _LM),
    "behaviour-cloning": Case("behaviour-cloning", {**_LM, "data": "texts.jsonl"}),
    "best-of-n": Case("best-of-n", {"n": 4}),
    "cql": Case("cql", _LM),
    "distill": Case("distill", {**_LM, "teacher": "guide"}),
    "distill, jsd of a model": Case("distill", {**_LM, "teacher": "guide/model", "divergence": "jsd", "mix": 0.1}, 24),
    "dpo": Case("dpo", _LM),
    "dpo of given pairs": Case("dpo", {**_LM, "data": "texts.jsonl", "label_smoothing": 0.1}),
    "dpo of its own samples, ipo": Case("dpo", {**_LM, "sampler": "policy", "loss": "ipo"}, 24),
    "grpo": Case("grpo", {**_LM, "group": 6}),
    "grpo by tokens, divided, k3": Case(
        "grpo", {**_LM, "group": 6, "aggregation": "token", "divide_by_std": True, "kl": "k3"}
    ),
    "ilql": Case("ilql", _LM),
    "ilql on a table": Case("ilql", {**_LM, "model": "table", "logged": 24}),
    "lm-ppo": Case("lm-ppo", _LM),
    "lm-ppo k1, adaptive": Case("lm-ppo", {**_LM, "kl": "k1", "kl_target": 0.5, "schedule": "cosine"}, 24),
    "lm-ppo k2, entropy": Case("lm-ppo", {**_LM, "kl": "k2", "entropy_coefficient": 0.1, "warmup": 0.5}),
    "lm-ppo, another learning rate": Case("lm-ppo", {**_LM, "learning_rate": 0.01, "temperature": 0.8}, 24),
    "mc-values": Case("mc-values", _LM),
    "mcts": Case("mcts", _SEARCH),
    "mcts of mean backups": Case("mcts", {**_SEARCH, "backup": "mean", "root_noise": 0.25}),
    "mcts of greatest values": Case("mcts", {**_SEARCH, "backup": "max", "prior": "uniform"}),
    "mcts with a guide": Case("mcts", {**_SEARCH, "guide": "guide", "prior": "guide", "leaf": "values"}),
    "monte-carlo": Case("monte-carlo", _TABLE, 240),
    "q-learning": Case("q-learning", _TABLE, 120),
    "q-learning, hard": Case(
        "q-learning", {**_TABLE, "backup": "hard", "exploration": "epsilon-greedy", "step_size": "harmonic"}
    ),
    "random": Case("random"),
    "reference": Case("reference"),
    "reinforce": Case("reinforce", _LM),
    "reinforce with a value head": Case("reinforce", {**_LM, "baseline": "value"}),
    "rejection": Case("rejection", {**_LM, "group": 4}),
    "rloo": Case("rloo", _LM),
    "sarsa": Case("sarsa", _TABLE, 240),
    "sb3-a2c": Case("sb3-a2c", _SB3),
    "sb3-ddpg": Case("sb3-ddpg", _REPLAY, 96),
    "sb3-dqn": Case("sb3-dqn", _REPLAY, 96),
    "sb3-maskable-ppo": Case("sb3-maskable-ppo", _SB3),
    "sb3-maskable-ppo with a grammar": Case("sb3-maskable-ppo", _SB3, masked=True),
    "sb3-ppo": Case("sb3-ppo", _SB3),
    "sb3-ppo of two ranks": Case("sb3-ppo", {**_SB3, "top_k": 2, "reference_reward": False}, masked=True),
    "sb3-ppo with a transformer": Case("sb3-ppo", {**_SB3, "features": "transformer"}),
    "sb3-qrdqn": Case("sb3-qrdqn", _REPLAY, 96),
    "sb3-recurrent-ppo": Case("sb3-recurrent-ppo", {**_SB3, "lstm_width": 8}),
    "sb3-sac": Case("sb3-sac", _REPLAY, 96),
    "sb3-td3": Case("sb3-td3", _REPLAY, 96),
    "sb3-trpo": Case("sb3-trpo", _SB3, 24),
    "soft-q": Case("soft-q", _LM),
    "value-guided": Case("value-guided", {"run": "guide", "k": 2}),
    "vine-ppo": Case("vine-ppo", {**_LM, "stride": 2, "rollouts": 2}, 96),
    "vine-ppo of exact values": Case("vine-ppo", {**_LM, "stride": 1, "values": "exact"}, masked=True),
}
TEXTS = (
    {"prompt": "1", "chosen": "word", "rejected": "word word word"},
    {"prompt": "2", "chosen": "word word", "rejected": "word"},
    {"prompt": "3", "chosen": "word word word", "rejected": "word word"},
)


def stop_env(num_envs: int, masked: bool = False) -> TokenVectorEnv:
    """Return an environment of the task Stop: three prompts, one word, two stop tokens, up to five tokens."""
    task = make_task("Stop", difficulty=3)
    task = replace(task, mask=no_end_after_even) if masked else task
    return TokenVectorEnv(task, num_envs, segments=True, autoreset_mode=AutoresetMode.DISABLED)


def no_end_after_even(states: Sequence[TokenState]) -> NDArray[np.bool_]:
    """Return what a grammar allows, bool (B, 6): <end>, token 1, after an odd number of tokens only."""
    allowed = np.ones((len(states), 6), dtype=np.bool_)
    allowed[:, 1] = [len(state.completion) % 2 == 1 for state in states]
    return allowed


def agent_record(case: Case, folder: Path) -> dict[str, Any]:
    """Train an agent and return what it has become, as JSON values.

    Args:
        case: which.
        folder: an empty one to write to.
    """
    settings = dict(case.settings)
    env = stop_env(settings.get("batch", 12), case.masked)
    if "data" in settings:
        settings["data"] = str(folder / settings["data"])
        Path(settings["data"]).write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    for name in ("run", "guide", "teacher"):
        if name in settings:
            settings[name] = str(folder / settings[name])
            guide = make_agent("lm-ppo", env, **_LM)
            guide.learn(env, 48)
            guide.save(folder / "guide")
    agent = make_agent(case.agent, env, **settings)
    rows: list[dict[str, float]] = []
    agent.learn(env, case.episodes, lambda row: rows.append(dict(row)))
    known = {
        "iterations": len(rows),
        "metrics": {name: value for name, value in rows[-1].items() if "second" not in name} if rows else None,
        "log_probs": log_probs(agent, case.masked),
        "likeliest": [agent.act(state, deterministic=True).tolist() for state in observations(case.masked)],
        "drawn": [agent.act(state).tolist() for state in observations(case.masked)],
        "evaluation": evaluate(agent, env.unwrapped.task, per_prompt=4).summary(),
    }
    agent.save(folder / "saved")
    again = load_agent(folder / "saved", env)
    return known | {"log_probs after load": log_probs(again, case.masked)}


def observations(masked: bool) -> list[dict[str, NDArray[Any]]]:
    """Return two batches of observations: the three prompts, after no word and after one."""
    env = stop_env(3, masked)
    start = env.reset(seed=0, options={"prompt_index": [0, 1, 2]})[0]
    later = env.step(np.zeros(3, dtype=np.int64))[0]
    return [{name: array.copy() for name, array in state.items()} for state in (start, later)]


def log_probs(agent: Any, masked: bool) -> list[Any]:
    """Return an agent's log-probabilities (2, 3, V) in nats, None for -inf; None twice for an agent without."""
    found = [agent.log_probs(state) for state in observations(masked)]
    return [None if table is None else [[finite(x) for x in row] for row in table] for table in found]


def finite(value: float) -> float | None:
    """Return a number as JSON has it: None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def read(name: str) -> dict[str, Any]:
    """Return a file of data/."""
    data: dict[str, Any] = json.loads((DATA / name).read_text(encoding="utf-8"))
    return data


def write(name: str, data: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a file of data/, a line for each entry of an entry."""
    blocks = []
    for key, entry in data.items():
        lines = [f"  {json.dumps(part)}: {json.dumps(value)}" for part, value in entry.items()]
        blocks.append(f" {json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n }")
    DATA.mkdir(exist_ok=True)
    (DATA / name).write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")


def main(words: Sequence[str]) -> None:
    """Record agents, or with the word `folders` saved folders. Raises: ValueError for a name of none."""
    from golden.folder_records import KINDS, Folders

    os.environ["OMP_NUM_THREADS"] = "1"  # as in the tests: bits depend on the number of threads
    torch.set_num_threads(1)
    of_folders = list(words[:1]) == ["folders"]
    file, names = ("folders.json", words[1:]) if of_folders else ("agents.json", words)
    known = list(KINDS) if of_folders else list(CASES)
    if unknown := {*names} - {*known}:
        raise ValueError(f"names {sorted(unknown)}: allowed are {', '.join(known)}")
    records = read(file) if names else {}
    with tempfile.TemporaryDirectory() as folder:
        folders = Folders(Path(folder))
        for number, name in enumerate(names or known):
            own = Path(folder) / f"agent-{number}"
            own.mkdir()
            records[name] = folders.record(name) if of_folders else agent_record(CASES[name], own)
    write(file, records)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    main(sys.argv[1:])
