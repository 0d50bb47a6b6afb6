"""Agents for TextGym environments: language-model policies trained by reinforcement learning."""

from textgym_agents.progress import ProgressBar
from textgym_agents.registry import agent_names, load_agent, make_agent, make_env, register_agent

__all__ = ["ProgressBar", "agent_names", "load_agent", "make_agent", "make_env", "register_agent"]
