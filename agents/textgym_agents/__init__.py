"""Agents for TextGym environments: language-model policies trained by reinforcement learning."""

from textgym_agents.protocol import Progress
from textgym_agents.registry import agent_names, load_agent, make_agent, make_env, register_agent

__all__ = ["Progress", "agent_names", "load_agent", "make_agent", "make_env", "register_agent"]
