"""Speed of TextGym against its peers, measured side by side in one run: `python -m textgym_benchmarks.speed`."""

from __future__ import annotations

import json
import os
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table

import textgym  # noqa: F401  (registers the ids)
from textgym_benchmarks.engines.jobs import fresh_python
from textgym_benchmarks.timing import Pair, time_pair

_IDS = ("textgym/Text-v0", "textgym/Helpful-v0")
_BATCH, _NEW = 64, 48
Section = Literal["single", "vector", "import", "rollout", "ppo", "memory"]


@dataclass(frozen=True)
class Row:
    """One measurement: ours, the peer's, their ratio, and the ratio that is asked for."""

    what: str
    ours: str
    peer: str
    ratio: float
    goal: str
    reached: bool


@dataclass(frozen=True)
class Speed:
    """What to measure."""

    sections: tuple[Section, ...] = ("single", "vector", "import", "rollout", "ppo", "memory")
    """Which measurements."""
    model: Path = Path(os.environ.get("TEXTGYM_SHARED", "../shared")) / "models" / "stories260K"
    """Causal LM for `rollout` and `ppo`."""
    threads: int = 1
    """Threads of torch for `rollout` and `ppo`."""
    rounds: int = 7
    """Pairs per measurement; the median ratio is reported."""
    as_json: bool = False
    """Print JSON instead of a table."""


def single(rounds: int) -> Iterator[Row]:
    """One environment through `gym.make`, random actions, the text scored by a rule at every end."""
    steps = 20_000
    for name in _IDS:
        pair = time_pair(_walk(gym.make(name), steps), _walk(gym.make("CartPole-v1"), steps), rounds)
        yield _row(f"{name}, steps/s (peer: CartPole-v1)", steps, pair, 3.0)


def vector(rounds: int) -> Iterator[Row]:
    """The native vector environment against CartPole's, random actions, texts decoded and scored at every end."""
    # CartPole makes 5.6 million steps/s with 1,024 environments where 900,000 are asked for.
    for count, goal in ((64, 0.8), (1024, 900_000 / 5_600_000)):
        steps = max(200, 200_000 // count)
        for name in _IDS:
            ours, peer = (
                _walk_vector(
                    gym.make_vec(each, num_envs=count, vectorization_mode="vector_entry_point"), steps
                )
                for each in (name, "CartPole-v1")
            )
            pair = time_pair(ours, peer, rounds)
            yield _row(f"{count} x {name}, steps/s (peer: CartPole-v1's own)", steps * count, pair, goal)


def import_time(rounds: int) -> Iterator[Row]:
    """A fresh interpreter that imports textgym, less one that imports nothing."""

    def run(code: str) -> Callable[[], object]:
        return lambda: subprocess.run(fresh_python(code), check=True)

    code = "import textgym, sys; assert 'torch' not in sys.modules"
    pair = time_pair(run(code), run("pass"), rounds, time.perf_counter)
    seconds = pair.first - pair.second
    yield Row("import textgym, without torch", f"{seconds:.2f} s", "", seconds, "< 0.4 s", seconds < 0.4)


def rollout(model: Path, rounds: int) -> Iterator[Row]:
    """Sampling through `env.step` against `model.generate`, same model, batch and length."""
    from textgym_agents.lm.rollout import collect

    agent, env, generate = _lm_setting(model)
    tokens: list[int] = []

    def ours() -> None:
        tokens.append(len(collect(env, agent.policy, len(tokens), ()).rows))

    pair = time_pair(ours, generate, rounds)
    what = f"tokens/s at batch {_BATCH} through env.step (peer: model.generate)"
    yield _row(what, _BATCH * _NEW, pair, 1.0)


def ppo(model: Path, rounds: int) -> Iterator[Row]:
    """A whole PPO iteration against `model.generate` for its batch, with the default KL and with TRL's."""
    for kl in ("exact", "k1"):
        agent, env, generate = _lm_setting(model, kl=kl)
        pair = time_pair(partial(agent.learn, env, _BATCH), generate, rounds)
        what = f"PPO iteration, {_BATCH} episodes, 4 epochs, kl={kl}, in units of model.generate"
        yield Row(
            what, f"{pair.first:.3f} s", f"{pair.second:.3f} s", pair.ratio, "<= 3.00", pair.ratio <= 3.0
        )


def memory() -> Iterator[Row]:
    """Largest resident memory of a process that trains the built-in model with default settings."""
    code = (
        "import resource\n"
        "from textgym_agents.registry import make_agent, make_env\n"
        f"env = make_env({_IDS[1]!r}, 256)\n"
        "make_agent('lm-ppo', env, batch=256).learn(env, 1024)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    output = subprocess.run(fresh_python(code), check=True, capture_output=True, text=True).stdout
    gigabytes = int(output.split()[-1]) * 1024 / 1e9
    yield Row(
        "training Helpful, resident memory", f"{gigabytes:.2f} GB", "", gigabytes, "< 1.5 GB", gigabytes < 1.5
    )


def _row(what: str, steps: int, pair: Pair, goal: float) -> Row:
    speed = 1.0 / pair.ratio
    ours, peer = f"{steps / pair.first:,.0f}", f"{steps / pair.second:,.0f}"
    return Row(what, ours, peer, speed, f">= {goal:.2f}", speed >= goal)


def _walk(env: Any, steps: int) -> Callable[[], None]:
    actions = np.random.default_rng(0).integers(env.action_space.n, size=steps).tolist()

    def run() -> None:
        env.reset(seed=0)
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return run


def _walk_vector(env: Any, steps: int) -> Callable[[], None]:
    actions = np.random.default_rng(0).integers(env.single_action_space.n, size=(steps, env.num_envs))

    def run() -> None:
        env.reset(seed=0)
        for row in actions:
            env.step(row)

    return run


def _lm_setting(model: Path, **settings: Any) -> tuple[Any, Any, Callable[[], object]]:
    """An LM PPO agent on Text-v0 with prompts of 16 tokens, and `generate` over the same prompts."""
    import torch
    from textgym_agents.algorithms.ppo import LMPPO
    from textgym_agents.config import LMPPOConfig
    from transformers import AutoTokenizer

    from textgym.lm.causal import load_causal_lm

    tokenizer = AutoTokenizer.from_pretrained(model)
    env = gym.make_vec(
        "textgym/Text-v0",
        num_envs=_BATCH,
        vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.DISABLED,
        tokenizer=tokenizer,
        prompts=["Once upon a time, there was a little girl named Lily. She"],
        stop=(),  # every episode has all its tokens, as `generate` below
        max_new_tokens=_NEW,
        reference=str(model),
    )
    task = env.unwrapped.task  # type: ignore[attr-defined]
    lm = load_causal_lm(model)
    config = LMPPOConfig(batch=_BATCH, epochs=4, minibatches=1, device="cpu", **settings)
    agent = LMPPO(task, config, model=lm)
    ids = torch.tensor([task.encoded("train")[0].ids]).repeat(_BATCH, 1)
    length = {"max_new_tokens": _NEW, "min_new_tokens": _NEW}

    def generate() -> object:
        with torch.no_grad():
            return lm.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), pad_token_id=0, do_sample=True, top_k=0, **length
            )

    return agent, env, generate


def measure(settings: Speed) -> list[Row]:
    """Runs the chosen sections."""
    rows: list[Row] = []
    for section in settings.sections:
        if section in ("rollout", "ppo"):
            if not settings.model.is_dir():
                warnings.warn(
                    f"model={str(settings.model)!r}: no such folder; {section} is left out", stacklevel=1
                )
                continue
            import torch

            torch.set_num_threads(settings.threads)
            rows += {"rollout": rollout, "ppo": ppo}[section](settings.model, settings.rounds)
        elif section == "memory":
            rows += memory()
        else:
            rows += {"single": single, "vector": vector, "import": import_time}[section](settings.rounds)
    return rows


def main() -> None:
    """Measures and prints."""
    settings = tyro.cli(Speed, description=__doc__)
    rows = measure(settings)
    if settings.as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    table = Table("what", "ours", "peer", "ratio", "goal", "")
    for row in rows:
        table.add_row(
            row.what, row.ours, row.peer, f"{row.ratio:.2f}", row.goal, "yes" if row.reached else "no"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
