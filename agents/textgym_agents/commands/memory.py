"""Estimate the memory of a run before it starts: part by part, and at the peak of each phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from textgym.checks import docstring
from textgym.commands.console import UsageError
from textgym.commands.flags import parse, parse_pair
from textgym_agents.commands.running import named_agent, show_estimate
from textgym_agents.config import OnPolicyConfig
from textgym_agents.registry import agent_class, config_class


@dataclass(frozen=True)
class MemoryFlags:
    """Estimate the memory of a run on a causal LM from the model's config; no weights are loaded.

    The agent's own settings follow below. MODEL is a folder, a hub id, or one of Qwen2.5-0.5B, Qwen2.5-1.5B, Qwen2.5-7B
    and Llama-3-70B, whose shapes are built in.

    Example: textgym estimate-memory Qwen2.5-0.5B --agent rloo --new-tokens 256
    """

    shape: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder or hub id of a causal LM, or the name of a built-in shape."""
    agent: str = "lm-ppo"
    """A registered policy-gradient agent that learns from its own samples."""
    prompt_tokens: int = 512
    """Length of the longest prompt, tokens."""
    new_tokens: int = 512
    """Length of the longest answer, tokens."""
    masked: bool = False
    """Include the masks of a task with a grammar, such as Json-v0: one bit for each token in each state."""
    json: bool = False
    """Print JSON; sizes are in bytes."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    kind = config_class(agent_class(named_agent(arguments)))
    if kind is None or not issubclass(kind, OnPolicyConfig):
        parse(MemoryFlags, arguments, "estimate-memory")
        raise UsageError(f"--agent {named_agent(arguments)}: allowed is a policy gradient on a causal LM, as lm-ppo")
    flags, config = parse_pair(MemoryFlags, kind, arguments, "estimate-memory", docstring(MemoryFlags))
    show_estimate(flags.shape, config, flags.prompt_tokens, flags.new_tokens, flags.masked, flags.json)
