"""Recordings of tasks with turns: what was played is read back, with who wrote what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from textgym_agents.datasets import play_episodes, read_recording, record
from textgym_agents.registry import make_agent, make_env
from turn_tools import Echo, ragged

from textgym import TokenEnv, TokenVectorEnv
from textgym.state import ENVIRONMENT, POLICY

pytest.importorskip("minari")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["TwentyQuestions", "ragged"])
def test_what_was_played_is_read_back(which, tmp_path):
    env = make_env("textgym/TwentyQuestions-v0", 4) if which != "ragged" else None
    if env is None:
        env = TokenVectorEnv(ragged(Echo(mark=2, weights=(0.5, 0.5)), most=2), 4)
    task = env.unwrapped.task
    agent = make_agent("random", env)
    played = list(play_episodes(agent, task, 24, seed=3))
    dataset = record(agent, env, 24, tmp_path / "turns-v0", seed=3)
    found = read_recording(tmp_path / "turns-v0", task)
    assert dataset.total_episodes == len(played) == len(found.returns) == 24
    assert dataset.total_steps == sum(len(each.actions) for each in played)
    for row, each in enumerate(played):
        authors, ids = found.authors[row], found.sequences.input_ids[row]
        width = min(len(ids), each.input_ids.shape[1])
        np.testing.assert_array_equal(authors[:width], each.segment_ids[-1, :width])
        np.testing.assert_array_equal(ids[authors == POLICY], each.actions)
        assert (authors == ENVIRONMENT).any()
        length = found.sequences.starts[row] + found.sequences.lengths[row]
        np.testing.assert_array_equal(ids[:length], each.input_ids[-1, :length])
        assert found.returns[row] == each.rewards.sum()
        assert each.segment_ids.shape == each.input_ids.shape


def test_every_step_is_one_of_the_environment():
    env = make_env("textgym/TwentyQuestions-v0", 4)
    (episode,) = play_episodes(make_agent("random", env), env.unwrapped.task, 1, seed=5)
    single = TokenEnv(env.unwrapped.task, segments=True)
    observation, _ = single.reset(seed=0)
    for hidden in range(4):
        observation, _ = single.reset(options={"prompt_index": 0})
        single.set_state(replace(single.get_state(), hidden=hidden))
        seen = [observation]
        for action in episode.actions:
            observation, reward, ended, *_ = single.step(int(action))
            seen.append(observation)
            if ended:
                break
        if all(np.array_equal(each["input_ids"], ids) for each, ids in zip(seen, episode.input_ids, strict=False)):
            assert ended
            assert reward == episode.rewards[-1]
            assert all((each["segment_ids"] == own).all() for each, own in zip(seen, episode.segment_ids, strict=True))
            return
    raise AssertionError("no number explains the episode")
