"""The comparison with another library's trainer: what is counted, and what it refuses."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from textgym_agents.registry import agent_class
from textgym_benchmarks import memory
from textgym_benchmarks.memory import _RACE, Flags, compete, race


@pytest.fixture
def one_thread():
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_the_speed_by_hand(monkeypatch):
    asked, held = [], []

    def own(name, changes, plan):
        def learn(episodes, callback):
            asked.append((name, episodes))
            for _ in range(episodes // plan.batch):
                held.append(bytearray(2**26))  # 1/16 GiB of zeros, which are no memory until they are written
                held[-1][:: 2**12] = b"\1" * (2**26 // 2**12)
                callback({})

        return learn

    times = iter([5.0, 7.0, 8.0, 12.0])
    monkeypatch.setattr(memory, "_own", own)
    monkeypatch.setattr(memory, "_clock", lambda device: next(times))
    plan = replace(_RACE, batch=16, micro_batch=8, minibatches=2, new_tokens=2)
    found = race("grpo", memory._ISSUE, vars(plan), 3)
    # Four iterations of 16 episodes; the last three take 2, 1 and 4 seconds for 32 tokens.
    assert asked == [("grpo", 8), ("grpo", 64)]
    assert (found["median"], found["least"], found["most"]) == (16.0, 8.0, 32.0)
    assert found["above"] == pytest.approx(4 / 16, abs=0.02)
    assert found["all"] > found["above"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["lm-ppo", "grpo"])
def test_agents_run_on_the_plan(name):
    plan = replace(_RACE, batch=8, micro_batch=4, minibatches=2, prompt_tokens=6, new_tokens=2)
    changes = memory._ISSUE | {"vocab_size": 1500}
    agent, env = memory.make_agent(changes, plan, agent_class(name))
    assert agent.name == name
    assert getattr(agent.config, "group", 8) == memory._GROUP
    observation, _ = env.reset(seed=0)
    assert set(observation["attention_mask"].sum(1).tolist()) == {5, 6}
    found = race(name, changes, vars(plan), 2)
    assert 0 < found["least"] <= found["median"] <= found["most"]


def test_ids_are_paid_in_the_manner_of_trl():
    assert memory.pay_ids(prompts=["a"] * 2, completions=["b"] * 2, completion_ids=[[90, 9], [97]], x=[1, 2]) == [
        2 / 97,
        0.0,
    ]


@pytest.mark.parametrize(
    ("changes", "plan", "message"),
    [
        ({"shape": "huge"}, {}, r"shape='huge': one of \('two-layer', '20M', 'Qwen2.5-0.5B'"),
        ({"iterations": 0}, {}, "iterations=0"),
        ({}, {"batch": 12, "micro_batch": 4}, "batch=12: allowed is a multiple of 8, and of minibatches"),
        ({}, {"batch": 24, "micro_batch": 16}, r"batch=24: .* micro_batch=16"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, plan, message):
    with pytest.raises(ValueError, match=message):
        compete(Flags(against="trl", plan=replace(_RACE, **plan), **changes))


def test_without_trl_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise memory.PackageNotFoundError(name)

    monkeypatch.setattr(memory, "version", missing)
    with pytest.raises(ModuleNotFoundError, match=r'against="trl": it is not installed; pip install "trl>=1.0"'):
        compete(Flags(against="trl"))


def test_the_flags_of_the_settings_go_on_working(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["memory", "--only", "no such setting", "--device", "cuda", "--as-json"])
    memory.main()
    assert capsys.readouterr().out == "[]\n"
