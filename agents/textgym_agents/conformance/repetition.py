"""Checks that an agent can be repeated: seeds, global generators, saving and loading, resuming."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from textgym_agents.conformance.distribution import largest_difference
from textgym_agents.conformance.findings import NotAsked, Outcome, at_most, judge
from textgym_agents.conformance.generators import global_generators
from textgym_agents.conformance.subject import Subject
from textgym_agents.protocol import Agent


def same_seed(subject: Subject) -> Outcome:
    """Two trainings with the same seed give the same policy, whatever the global generators hold."""
    results = []
    for seed in (0, 1):
        with global_generators(seed):
            env = subject.env()
            agent = subject.make(env)
            agent.learn(env, subject.episodes)
            results.append(subject.log_probs(agent))
    return at_most("greatest difference of a log-probability", largest_difference(*results), 0.0)


def global_random_numbers(subject: Subject) -> Outcome:
    """Learning and acting draw no number from the global generators."""
    env = subject.env()
    agent = subject.make(env)
    with global_generators(0) as drawn_from:
        agent.learn(env, subject.envs)
        agent.act(subject.states)
        touched = drawn_from()
    return judge(not touched, f"drawn from: {', '.join(touched) or 'none'}", "drawn from: none")


def round_trip(subject: Subject) -> Outcome:
    """An agent that was saved and loaded gives the same log-probabilities."""
    agent = subject.training.agent
    loaded = _through_a_folder(agent, subject.env())
    difference = largest_difference(subject.log_probs(agent), subject.log_probs(loaded))
    return at_most("greatest difference of a log-probability", difference, 0.0)


def resumed(subject: Subject) -> Outcome:
    """Learning, saving, loading and learning on gives the policy of an uninterrupted training, bit for bit."""
    env = subject.env()
    whole = subject.make(env)
    calls = _learn_counting(whole, env, subject.episodes)
    if calls < 2:
        raise NotAsked(f"learn calls its callback {calls} times: it cannot be interrupted halfway")
    part_env = subject.env()
    part = subject.make(part_env)
    half = calls // 2
    if _learn_counting(part, part_env, subject.episodes, half) != half:
        raise NotAsked("learn goes on after its callback returned True")
    rest = subject.episodes - half * (subject.episodes // calls)
    after_env = subject.env()
    after = _through_a_folder(part, after_env)
    after.learn(after_env, rest)
    difference = largest_difference(subject.log_probs(whole), subject.log_probs(after))
    return at_most("greatest difference of a log-probability", difference, 0.0)


def _learn_counting(agent: Agent, env: Any, episodes: int, stop_after: int | None = None) -> int:
    """Learns, stopping after so many iterations. Returns: the number of calls of the callback."""
    calls = 0

    def count(metrics: dict[str, float]) -> bool:
        nonlocal calls
        calls += 1
        return calls == stop_after

    agent.learn(env, episodes, count)
    return calls


def _through_a_folder(agent: Agent, env: Any) -> Agent:
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent")
        return type(agent).load(Path(folder) / "agent", env)
