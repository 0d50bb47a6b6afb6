"""Memory of LM PPO as estimated and as measured, and streamed against plain: `python -m textgym_benchmarks.memory`.

Each setting runs in a process of its own, from an agent made to the end of one iteration on random weights. On a CPU
the peak is that of the process's resident memory, on CUDA that of what torch has allocated.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
import tyro
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.memory import GIB, SHAPES, Plan, estimate

from textgym import make_task
from textgym.lm import categorical
from textgym.vector import TokenVectorEnv
from textgym_benchmarks.engines.jobs import fresh_python

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_QWEN: Final = SHAPES["Qwen2.5-0.5B"]
_ISSUE: Final = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_SMALL: Final = {"vocab_size": 16000, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6} | {
    "num_attention_heads": 6
}
_PLAN: Final = Plan(batch=16, prompt_tokens=64, new_tokens=64, micro_batch=16, device="cpu")
_LONG: Final = replace(_PLAN, prompt_tokens=112, new_tokens=16, minibatches=2, micro_batch=8)
SETTINGS: Final[Mapping[str, tuple[Mapping[str, Any], Plan]]] = {
    "V = 151,936, exact KL, 64 x 64": (_ISSUE, replace(_PLAN, batch=64, micro_batch=64)),
    "the same, k1, micro-batch 8": (_ISSUE, replace(_PLAN, batch=64, micro_batch=8, exact=False)),
    "V = 32,000, exact KL, 64 x 64": (_ISSUE | {"vocab_size": 32000}, replace(_PLAN, batch=64, micro_batch=64)),
    "20M, 16 x (112 + 16)": (_SMALL, _LONG),
    "20M, checkpointing": (_SMALL, replace(_LONG, gradient_checkpointing=True)),
    "20M, bfloat16": (_SMALL, replace(_LONG, precision="bfloat16")),
    "20M, LoRA 8": (_SMALL, replace(_LONG, lora_rank=8)),
    "20M, LoRA 8, bfloat16": (_SMALL, replace(_LONG, lora_rank=8, precision="bfloat16")),
    "20M, micro-batch 4": (_SMALL, replace(_LONG, micro_batch=4)),
    "20M, batch of 64": (_SMALL, replace(_LONG, batch=64)),
    "20M, prompts of 384": (_SMALL, replace(_LONG, prompt_tokens=384, new_tokens=16, micro_batch=4)),
    "V = 2,000, 512 prompts of 768": (
        _ISSUE | {"vocab_size": 2000},
        replace(_LONG, batch=512, prompt_tokens=768, new_tokens=4, micro_batch=16, minibatches=16),
    ),
    "0.5B, LoRA 8, bfloat16, 16 x 64": ({}, replace(_PLAN, lora_rank=8, precision="bfloat16", micro_batch=4)),
}


@dataclass(frozen=True)
class Flags:
    """Estimate and measure memory."""

    only: str = ""
    """A part of the names of the settings to run; by default all."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure."""
    as_json: bool = False
    """Print JSON."""


def shape(changes: Mapping[str, Any]) -> PretrainedConfig:
    """Return the config of Qwen2.5-0.5B with changes."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**{**_QWEN, **changes})


def make_agent(changes: Mapping[str, Any], plan: Plan) -> tuple[LMPPO, TokenVectorEnv]:
    """Return an agent on random weights, and its environment, whose episodes fill the plan's tokens."""
    config = shape(changes)
    task = make_task(
        "Text",
        vocab_size=config.vocab_size,
        prompts=[" the" * (plan.prompt_tokens - less) for less in (3, 4)],  # attention needs a mask, as it does in use
        max_prompt_tokens=plan.prompt_tokens,
        stop=(),
        max_new_tokens=plan.new_tokens,
        reference="uniform",
    )
    agent_config = LMPPOConfig(
        batch=plan.batch,
        micro_batch=plan.micro_batch,
        kl="exact" if plan.exact else "k1",
        device=plan.device,
        precision=plan.precision,
        gradient_checkpointing=plan.gradient_checkpointing,
        minibatches=plan.minibatches,
        epochs=1,
    )
    env = TokenVectorEnv(task, plan.batch, autoreset_mode=AutoresetMode.DISABLED)
    return LMPPO(task, agent_config, model=_random_model(config, plan)), env


def _random_model(config: PretrainedConfig, plan: Plan) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    frozen = plan.lora_rank is not None and plan.precision == "bfloat16"
    with torch.random.fork_rng(), torch.device(plan.device):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if frozen else None)
        if plan.lora_rank is not None:
            from peft import LoraConfig, get_peft_model

            adapter = LoraConfig(r=plan.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, adapter)
    return model


def run(changes: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, float]:
    """Return the peak of one iteration above what stands once the agent is made, and in all, GiB, and its seconds."""
    given = Plan(**plan)
    torch.set_num_threads(2)
    small = replace(given, batch=2, minibatches=1, prompt_tokens=8, new_tokens=2)
    agent, env = make_agent(_ISSUE | {"vocab_size": 2000}, small)
    agent.learn(env, 2)  # the libraries load what they need
    agent, env = make_agent(changes, given)
    gc.collect()
    before = _reset_peak(given.device)
    started = time.perf_counter()
    agent.learn(env, given.batch)
    seconds, peak = time.perf_counter() - started, _peak(given.device)
    return {"above": (peak - before) / GIB, "all": peak / GIB, "seconds": seconds}


def _reset_peak(device: str) -> int:
    """Begin to look for the peak; return the bytes that are held now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def compare(pairs: int) -> dict[str, float]:
    """Return how streamed and plain (all logits at once) differ on 16 x 32 states of 151,936 tokens.

    Returns: the ratio of their CPU seconds, of iterations in turn; the norm of the difference of their gradients,
        relative to the gradient's, and the difference of their losses.
    """
    torch.set_num_threads(2)
    plan = replace(_PLAN, prompt_tokens=32, new_tokens=32, minibatches=1)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    gradients: dict[bool, torch.Tensor] = {}
    losses: dict[bool, float] = {}
    streamed = categorical.ON_CPU
    for _ in range(pairs):
        for plain in (False, True):
            agent, env = make_agent(_ISSUE, plan)
            categorical.ON_CPU = 2**62 if plain else streamed
            started = time.process_time()
            said: list[Mapping[str, float]] = []
            agent.learn(env, plan.batch, said.append)
            seconds[plain].append(time.process_time() - started)
            losses[plain] = said[0]["loss/policy_avg"]
            parts = [each.grad.ravel() for each in agent.policy.parameters() if each.grad is not None]
            gradients[plain] = torch.cat(parts)
    off = (gradients[True] - gradients[False]).norm() / gradients[True].norm()
    return {
        "time ratio": median(seconds[False]) / median(seconds[True]),
        "gradient": float(off),
        "loss": abs(losses[True] - losses[False]),
    }


def call(function: str, *arguments: Any, tidy: bool = True) -> dict[str, float]:
    """Return what a function of this module gives in a process of its own.

    Args:
        tidy: give blocks of 64 KiB and more back to the system as soon as they are free. The C library keeps those
            below 32 MiB for later, which of small models is as much again as what they hold.
    """
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if tidy else {})
    code = f"from textgym_benchmarks import memory\nprint(json.dumps(memory.{function}(*json.loads(sys.argv[2]))))"
    done = subprocess.run(
        [*fresh_python(code), json.dumps(arguments)], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(flags: Flags) -> list[dict[str, Any]]:
    """Return a row for each setting: predicted and measured GiB above the agent, their ratio, all GiB, seconds."""
    rows = []
    for name, (changes, given) in SETTINGS.items():
        if flags.only not in name:
            continue
        plan = replace(given, device=flags.device)
        found = estimate(shape(changes), plan)
        predicted = (found.peak - found.weights) / GIB
        measured = call("run", changes, asdict(plan))
        ratio = predicted / measured["above"]
        rows.append({"setting": name, "predicted": predicted, "ratio": ratio, **measured})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Measure and print."""
    flags = tyro.cli(Flags, description=__doc__)
    rows = measure(flags)
    if flags.as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("setting", "predicted, GiB", "measured, GiB", "ratio", "whole process, GiB", "seconds")
    for row in rows:
        table.add_row(
            row["setting"], *(f"{row[name]:.2f}" for name in ("predicted", "above", "ratio", "all", "seconds"))
        )
    Console().print(table)
    if not flags.only and flags.device == "cpu":
        changes, plan = next(iter(SETTINGS.values()))
        first = call("run", changes, asdict(plan), tidy=False)
        print(f"the first setting, as the C library allocates: {first['above']:.2f} GiB; allowed is 1.5")
        print("streamed against plain, as the C library allocates:", call("compare", 3, tidy=False))


if __name__ == "__main__":
    main()
