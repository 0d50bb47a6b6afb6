"""Agents for TextGym environments: language-model policies trained by reinforcement learning."""
