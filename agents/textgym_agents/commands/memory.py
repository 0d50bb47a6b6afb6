"""Say what a run needs in memory, before it is started: part by part, and at the peak of each phase."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import tyro

from textgym.checks import docstring
from textgym.commands.console import UsageError, number, output, table, untrusted
from textgym.commands.flags import parse, parse_pair
from textgym_agents.commands.train import named_agent
from textgym_agents.config import OnPolicyConfig
from textgym_agents.registry import agent_class, config_class

_CARDS = (24, 80)  # GB of the memory of common accelerators


@dataclass(frozen=True)
class MemoryFlags:
    """Estimate the memory of a run on a causal LM from the model's config alone; no weights are loaded.

    The agent's own settings follow below. MODEL is a folder, a hub id, or one of Qwen2.5-0.5B, Qwen2.5-1.5B,
    Qwen2.5-7B and Llama-3-70B, whose shapes are built in.
    """

    shape: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder or hub id of a causal LM, or the name of a built-in shape."""
    agent: str = "lm-ppo"
    """A registered agent that learns from its own samples by a policy gradient."""
    prompt_tokens: int = 512
    """Tokens of the longest prompt."""
    new_tokens: int = 512
    """Tokens of the longest answer."""
    lora_rank: int | None = None
    """Rank of a LoRA adapter, which is trained in place of the model."""
    reference_precision: Literal["float32", "bfloat16"] = "float32"
    """Of the reference's weights."""
    kept_tokens: bool = False
    """Count the tokens that a cut such as top-p has kept, a bit each."""
    json: bool = False
    """Print JSON, in bytes."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    kind = config_class(agent_class(named_agent(arguments)))
    if kind is None or not issubclass(kind, OnPolicyConfig):
        parse(MemoryFlags, arguments, "estimate-memory")
        raise UsageError(f"--agent {named_agent(arguments)}: allowed is a policy gradient on a causal LM, as lm-ppo")
    flags, config = parse_pair(MemoryFlags, kind, arguments, "estimate-memory", docstring(MemoryFlags))
    own = {name: getattr(flags, name) for name in ("lora_rank", "reference_precision", "kept_tokens")}
    show(flags.shape, config, flags.prompt_tokens, flags.new_tokens, flags.json, **own)


def show(
    model: str, config: OnPolicyConfig, prompt_tokens: int, new_tokens: int, as_json: bool = False, **options: object
) -> None:
    """Print what a run needs. Args: options: of `Plan`, beside what the agent's config says."""
    from textgym_agents.lm.memory import GIB, LIBRARIES, estimate, model_config, plan_of

    plan = plan_of(config, prompt_tokens, new_tokens, **options)
    found = estimate(model_config(model), plan)
    if as_json:
        print(json.dumps(asdict(found) | {"peak": found.peak, "libraries": LIBRARIES}, indent=2))
        return
    rows = table("part", number("GiB"))
    for name, size in found.parts.items():
        rows.add_row(name, f"{size / GIB:.2f}")
    rows.add_section()
    for name, size in found.phases.items():
        rows.add_row(f"peak of {name}", f"{size / GIB:.2f}")
    console = output()
    console.print(untrusted(f"{model}: {found.parameters:,} parameters"))
    console.print(rows)
    whole = found.peak + LIBRARIES
    console.print(f"in all, with {LIBRARIES / GIB:.1f} GiB of libraries: {whole / GIB:.2f} GiB ({whole / 1e9:.1f} GB)")
    for card in _CARDS:
        room = card * 10**9 - whole
        console.print(f"{card} GB: " + ("fits" if room >= 0 else f"{-room / 1e9:.1f} GB too little"))
