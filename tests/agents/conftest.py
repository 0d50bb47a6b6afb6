"""One small agent that has moved off its reference, and a vector environment for it."""

import pytest
from agents.enumerated import tiny_agent, tiny_task
from gymnasium.vector import AutoresetMode

from textgym import TokenVectorEnv


@pytest.fixture
def task():
    return tiny_task()


@pytest.fixture
def env(task):
    return TokenVectorEnv(task, 16, autoreset_mode=AutoresetMode.DISABLED)


@pytest.fixture
def agent(task):
    return tiny_agent(task, whiten=True, lam=0.9, value_coefficient=0.5, minibatches=2, learning_rate=0.01)
