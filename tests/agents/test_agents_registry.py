"""Agents by name and by import path, their configs, and the environments made for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from agents.counting_agent import CountingAgent, CountingConfig
from gymnasium.vector import AutoresetMode
from textgym_agents import agent_names, load_agent, make_agent, make_env, register_agent
from textgym_agents.config import TrainSettings
from textgym_agents.registry import agent_class, batch_of, batch_reason, config_class, make_config, with_batch

from textgym.registry import AGENTS

WORDS = {"tokenizer": ["<end>", "a", "b", "c"], "stop": "<end>", "reference": "uniform", "prompts": ["a"]}


def test_make_env_waits_for_reset_and_takes_task_options():
    env = make_env("textgym/Text-v0", 3, **WORDS, max_new_tokens=5)
    assert env.num_envs == 3
    assert env.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    assert env.unwrapped.task.max_new_tokens == 5


def test_the_registered_agents():
    assert {"lm-ppo", "random", "reference"} <= set(agent_names())


@pytest.mark.parametrize("name", agent_names())
def test_every_registered_agent_is_an_agent_with_a_config(name):
    found = agent_class(name)
    assert config_class(found) is not None


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'lm-ppo'"):
        agent_class("lm-pppo")


def test_module_and_class_are_imported():
    assert agent_class("agents.counting_agent:CountingAgent") is CountingAgent
    assert config_class(CountingAgent) is CountingConfig


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("agents.counting_agent:CountingAgnt", "Did you mean 'CountingAgent'"),
        ("agents.counting_agent:NoAgent", "has no act, log_probs, save, load"),
        ("agents.counting_agent:np", "is no class"),
        (":X", "module:attribute"),
    ],
)
def test_what_is_no_agent_is_refused(target, words):
    with pytest.raises(ValueError, match=words):
        agent_class(target)


def test_settings_reach_the_config_and_unknown_ones_are_refused():
    env = make_env("textgym/Text-v0", 1, **WORDS)
    agent = make_agent("agents.counting_agent:CountingAgent", env, step=2.0)
    assert agent.config == CountingConfig(step=2.0)
    with pytest.raises(TypeError, match="Did you mean 'step'"):
        make_agent("agents.counting_agent:CountingAgent", env, stepp=2.0)
    with pytest.raises(TypeError, match="not both"):
        make_agent("agents.counting_agent:CountingAgent", env, CountingConfig(), step=2.0)


@pytest.mark.parametrize("config", [{"batch": 8}, CountingConfig(), 3])
@pytest.mark.parametrize(("name", "kind"), [("lm-ppo", "LMPPOConfig"), ("random", "FixedConfig")])
def test_a_config_of_another_class_is_refused(name, kind, config):
    env = make_env("textgym/Text-v0", 1, **WORDS)
    with pytest.raises(TypeError, match=rf"config=.*allowed is a {kind}, or its fields as settings"):
        make_agent(name, env, config)


@pytest.mark.parametrize("name", ["lm-ppo", "monte-carlo", "mcts", "sb3-ppo"])
def test_a_budget_is_an_integer_so_that_what_has_learned_can_be_loaded(name, tmp_path):
    env = make_env("textgym/Text-v0", 4, **WORDS, max_new_tokens=2, segments=True)
    agent = make_agent(name, env, **({"model": "table"} if name == "lm-ppo" else {}))
    for episodes in (8.0, True, 0):
        with pytest.raises(ValueError, match=f"episodes={episodes!r}: allowed is an integer >= 1"):
            agent.learn(env, episodes)
    agent.learn(env, np.int64(8))
    agent.save(tmp_path / "agent")
    assert load_agent(tmp_path / "agent", env).episodes == agent.episodes


@pytest.mark.parametrize("agent", [3, None])
def test_what_is_neither_a_name_nor_a_class_is_refused(agent):
    with pytest.raises(ValueError, match=f"agent={agent}: allowed are a name"):
        make_agent(agent, make_env("textgym/Text-v0", 1, **WORDS))


@pytest.mark.parametrize("name", ["lm-ppo", "q-learning", "best-of-n", "random"])
def test_an_environment_without_a_task_is_refused(name):
    with pytest.raises(ValueError, match=rf"env=.*CartPole.*agent '{name}' needs; allowed are TextGym's"):
        make_agent(name, gym.make("CartPole-v1"))


def test_an_agent_that_takes_no_task_may_live_anywhere(tmp_path, monkeypatch):
    class Anywhere(CountingAgent):
        def __init__(self, env):
            self.env = env

    env = gym.make("CartPole-v1")
    monkeypatch.setattr(AGENTS, "_entries", dict(AGENTS._entries))
    register_agent("anywhere", Anywhere)
    assert make_agent("anywhere", env).env is env
    make_agent("random", make_env("textgym/Text-v0", 1, **WORDS)).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="no task of TextGym"):
        load_agent(tmp_path / "agent", env)


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr(AGENTS, "_entries", dict(AGENTS._entries))
    register_agent("counting", CountingAgent)
    register_agent("counting", CountingAgent)
    with pytest.raises(ValueError, match="already"):
        register_agent("counting", "agents.counting_agent:NoAgent")
    for bad in ("", "a:b", "a/b"):
        with pytest.raises(ValueError, match="name="):
            register_agent(bad, CountingAgent)


def test_a_saved_agent_is_found_in_its_folder_and_in_its_run(tmp_path):
    env = make_env("textgym/Text-v0", 1, **WORDS)
    agent = make_agent("random", env, seed=3)
    agent.save(tmp_path / "checkpoint")
    for path in (tmp_path, tmp_path / "checkpoint"):
        loaded = load_agent(path, env)
        assert loaded.name == "random"
        assert loaded.config == agent.config


def test_a_file_never_chooses_what_is_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("class Agent: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "agent.json").write_text(json.dumps({"agent": "evil_module:Agent"}))
    with pytest.raises(ValueError, match="evil_module"):
        load_agent(tmp_path, make_env("textgym/Text-v0", 1, **WORDS))
    assert "evil_module" not in sys.modules


def test_a_folder_without_an_agent_is_named(tmp_path):
    with pytest.raises(ValueError, match="no saved agent"):
        load_agent(tmp_path, make_env("textgym/Text-v0", 1, **WORDS))


def test_the_random_agent_draws_every_allowed_token_alike():
    env = make_env("textgym/Text-v0", 4000, **WORDS)
    agent = make_agent("random", env, seed=1)
    observation, _ = env.reset(seed=0)
    allowed = env.unwrapped.task.vocabulary.allowed
    count = int(allowed.sum())
    expected = np.where(allowed, -np.log(count), -np.inf)
    np.testing.assert_allclose(agent.log_probs(observation)[7], expected)
    frequencies = np.bincount(agent.act(observation), minlength=len(allowed)) / 4000
    error = np.sqrt(1 / count * (1 - 1 / count) / 4000)
    assert (np.abs(frequencies - allowed / count) < 4 * error + 1e-12 * allowed).all()
    again = make_agent("random", env, seed=1)
    assert (again.act(observation) == make_agent("random", env, seed=1).act(observation)).all()


def test_the_reference_agent_is_the_reference():
    from textgym.task import make_reference

    env = make_env("textgym/Helpful-v0", 2)
    observation, _ = env.reset(seed=0)
    agent = make_agent("reference", env)
    reference = make_reference(env.unwrapped.task)
    np.testing.assert_array_equal(agent.log_probs(observation), reference.log_probs(observation))
    assert agent.act(observation, deterministic=True).tolist() == reference.log_probs(observation).argmax(1).tolist()


def test_loading_another_kind_is_refused(tmp_path):
    env = make_env("textgym/Text-v0", 1, **WORDS)
    make_agent("random", env).save(Path(tmp_path))
    with pytest.raises(ValueError, match="holds agent 'random'"):
        load_agent(tmp_path, env, "reference")


@pytest.mark.parametrize(
    ("episodes", "batch"), [(1, 64), (1024, 64), (2047, 64), (2048, 128), (4095, 128), (4096, 256), (10**6, 256)]
)
def test_a_batch_that_is_not_given_leaves_sixteen_iterations(episodes, batch):
    assert batch_of(make_config(agent_class("rloo"), {}), episodes) == batch
    assert batch_of(make_config(agent_class("rloo"), {"group": 128}), episodes) == max(batch, 128)
    assert batch_of(make_config(agent_class("rloo"), {"batch": 32}), episodes) == 32
    assert batch_of(make_config(agent_class("a2c"), {}), episodes) == 64  # its own
    assert batch_of(None, episodes) == 64


@pytest.mark.parametrize(
    ("episodes", "group", "processes", "said"),
    [
        (1023, 8, 1, "64: the smallest of 64, 128 and 256 episodes, as none leaves 16 iterations in 1023"),
        (1024, 8, 1, "64: the largest of 64, 128 and 256 episodes that leaves 16 iterations in 1024"),
        (4095, 8, 1, "128: the largest of 64, 128 and 256 episodes that leaves 16 iterations in 4095"),
        (9999, 8, 1, "256: the largest of 64, 128 and 256 episodes that leaves 16 iterations in 9999"),
        (1024, 8, 16, "128: a group of 8 episodes in each process"),
        (1024, 128, 1, "128: a group of 128 episodes in each process"),
    ],
)
def test_why_a_budget_gives_its_batch(episodes, group, processes, said):
    asked = TrainSettings("textgym/Text-v0", "rloo", episodes, {"group": group})
    assert batch_reason(asked, processes) == f"batch {said}"
    assert said.startswith(f"{with_batch(asked, processes).config['batch']}: ")


@pytest.mark.parametrize("name", ["lm-ppo", "mcts", "q-learning", "random", "reference", "sb3-ppo"])
def test_one_observation_of_a_single_environment_is_no_batch(name):
    env = make_env("textgym/Copy-v0", 2, segments=True)
    agent = make_agent(name, env)
    observation, _ = gym.make("textgym/Copy-v0", segments=True).reset(seed=0)
    with pytest.raises(ValueError, match=r"observation: attention_mask has shape \(8,\), allowed is a batch"):
        agent.act(observation)
    assert agent.act({key: values[None] for key, values in observation.items()}).shape == (1,)
