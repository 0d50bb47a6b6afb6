"""Soft Q-learning: consistency at the optimum on every path, the replay, and what a checkpoint must hold."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from agents.enumerated import BETA, HORIZON, tiny_task, trajectories
from agents.groups import small_agent
from gymnasium.vector import AutoresetMode
from lm.tiny_models import tiny_llama
from textgym_agents.algorithms.soft_q import Replay, SoftQ, SoftQConfig, StoredEpisodes, to_go
from textgym_agents.conformance.under_test import CutOff

from textgym import TokenVectorEnv
from textgym.solver import solve


def paths_of(numbers, steps=2, width=4):
    """One-token episodes that are told apart by their rewards."""
    count = len(numbers)
    return StoredEpisodes(
        input_ids=np.full((count, width), 7, dtype=np.int32),
        starts=np.ones(count, dtype=np.int32),
        lengths=np.ones(count, dtype=np.int32),
        rewards=np.pad(np.array(numbers, dtype=np.float32)[:, None], ((0, 0), (0, steps - 1))),
        reference=np.zeros((count, steps), dtype=np.float32),
        normalisers=np.zeros((count, steps), dtype=np.float32),
    )


def test_the_oldest_episodes_are_forgotten_first():
    replay = Replay(3, 4, 2)
    replay.add(paths_of([1, 2]))
    assert len(replay) == 2
    assert set(replay.sample(50, np.random.default_rng(0)).rewards[:, 0]) == {1, 2}
    replay.add(paths_of([3, 4]))
    assert len(replay) == 3
    assert set(replay.sample(50, np.random.default_rng(0)).rewards[:, 0]) == {2, 3, 4}
    # More at once than it holds: the last ones stay.
    replay.add(paths_of([5, 6, 7, 8, 9]))
    assert set(replay.sample(50, np.random.default_rng(0)).rewards[:, 0]) == {7, 8, 9}
    assert replay.sample(1, np.random.default_rng(0), newest=2).rewards[:2, 0].tolist() == [9, 8]
    assert len(replay.sample(4, np.random.default_rng(0), newest=9).lengths) == 3 + 4  # no more than there are


def test_a_restored_replay_goes_on_as_the_first_one():
    one, other = Replay(3, 4, 2), Replay(3, 4, 2)
    one.add(paths_of([1, 2, 3, 4]))
    other.restore(one.tensors())
    for replay in (one, other):
        replay.add(paths_of([5]))
    draws = [replay.sample(20, np.random.default_rng(1)).rewards for replay in (one, other)]
    np.testing.assert_array_equal(*draws)


def test_an_empty_replay_says_so():
    with pytest.raises(ValueError, match="empty"):
        Replay(3, 4, 2).sample(1, np.random.default_rng(0))


def test_sums_to_go_by_hand():
    got = to_go(torch.tensor([[1.0, 2.0, 4.0]]))
    torch.testing.assert_close(got, torch.tensor([[7.0, 6.0, 4.0]]))


class OptimalPolicy:
    """Logits log ref + Q* / beta, from the solver; its features are its logits."""

    device = torch.device("cpu")
    backbone = SimpleNamespace(vocab_size=4)

    def __init__(self, task):
        self.solution = solve(task)
        self.index = {prompt.ids: prompt.index for prompt in task.encoded("train")}
        self.shift = torch.zeros(4)

    def features(self, ids, rows, columns):
        result = []
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            tokens = tuple(ids[row, : column + 1].tolist())
            (start,) = [len(prompt) for prompt in self.index if tokens[: len(prompt)] == prompt]
            depth, place = self.solution.tree.find(self.index[tokens[:start]], tokens[start:])
            first = self.solution.tree.levels[depth].first
            q = self.solution.action_values[depth][first[place] : first[place + 1]]
            result.append(torch.tensor(q) / BETA - np.log(4) + self.shift)
        return torch.stack(result).float()

    def heads(self, features):
        return features, torch.zeros(len(features))


def every_path(task):
    every = trajectories(task)
    count, width = len(every), task.max_prompt_tokens + HORIZON
    ids = np.zeros((count, width), dtype=np.int32)
    rewards = np.zeros((count, HORIZON), dtype=np.float32)
    reference, normalisers = np.zeros_like(rewards), np.zeros_like(rewards)
    for row, t in enumerate(every):
        tokens = t.prompt + t.completion
        ids[row, : len(tokens)] = tokens
        rewards[row, len(t.completion) - 1] = t.score
        reference[row, : len(t.completion)] = -np.log(4)  # logits 0 - log 4 of a uniform policy: they sum to 1
    starts = np.array([len(t.prompt) for t in every], dtype=np.int32)
    lengths = np.array([len(t.completion) for t in every], dtype=np.int32)
    return StoredEpisodes(ids, starts, lengths, rewards, reference, normalisers)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_the_loss_is_zero_on_every_path_at_the_optimum_and_only_there(gamma):
    task = tiny_task(gamma=gamma)
    agent = small_agent(SoftQ)
    agent.task = task
    agent.policy = OptimalPolicy(task)
    paths = every_path(task)
    assert len(paths.lengths) == 80
    assert float(agent._loss(paths).max()) < 1e-9
    agent.policy.shift = torch.tensor([0.5, 0.0, 0.0, 0.0])
    loss = agent._loss(paths)
    assert float(loss.max()) > 1e-3


def test_only_its_own_episodes_carry_rewards_and_the_reference(env):
    agent = small_agent(SoftQ)
    agent.learn(env, 16)
    kept = agent._replay.sample(64, np.random.default_rng(0))
    behind = np.arange(HORIZON) >= kept.lengths[:, None]
    for array in (kept.rewards, kept.reference, kept.normalisers):
        assert (array[behind] == 0).all()
    observation = {
        "input_ids": kept.input_ids.astype(np.int64),
        "attention_mask": (np.arange(kept.input_ids.shape[1]) < kept.starts[:, None]).astype(np.int8),
    }
    first = kept.input_ids[np.arange(64), kept.starts]
    want = agent.own_reference().log_probs(observation)[np.arange(64), first]
    np.testing.assert_allclose(kept.reference[:, 0], want, atol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_has_its_replay_back(env, task, tmp_path):
    def fresh():
        return small_agent(SoftQ, replay=40, replay_batch=8)

    whole = fresh()
    whole.learn(env, 96)
    part = fresh()
    part.learn(env, 96, lambda metrics: metrics["episode"] >= 48)
    part.save(tmp_path / "agent")
    kinds = {path.suffix for path in (tmp_path / "agent").rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}
    resumed = SoftQ.load(tmp_path / "agent", env)
    resumed.learn(env, 48)
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, resumed.policy.state_dict()[name]), name


def test_what_was_cut_off_is_not_remembered(task):
    agent = small_agent(SoftQ)
    agent.learn(CutOff(task, 64), 64)
    assert 0 < len(agent._replay) < 64
    assert (agent._replay.sample(50, np.random.default_rng(0)).lengths == 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"replay": 0}, "replay=0"), ({"updates": 0}, "updates=0"), ({"kl": "exact"}, "kl='exact'")],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SoftQConfig(**settings)


def test_beta_0_is_refused():
    with pytest.raises(ValueError, match=r"beta=0\.0: soft-q divides by it"):
        SoftQ(tiny_task(beta=0.0), SoftQConfig(device="cpu"))


def test_every_step_learns_from_the_new_episodes_and_from_remembered_ones(monkeypatch):
    task = tiny_task()
    env = TokenVectorEnv(task, 8, autoreset_mode=AutoresetMode.DISABLED)
    agent = SoftQ(task, SoftQConfig(batch=8, replay_batch=4, updates=2, device="cpu"), model=tiny_llama(4))
    steps = []
    step = agent._step
    monkeypatch.setattr(agent, "_step", lambda paths: steps.append(paths.input_ids.tolist()) or step(paths))
    agent.learn(env, 24)
    assert [len(ids) for ids in steps] == [12] * 6
    kept = agent._replay._arrays.input_ids[:24].tolist()
    for iteration, new in enumerate((kept[:8], kept[8:16], kept[16:])):
        for ids in steps[2 * iteration : 2 * iteration + 2]:
            assert ids[:8] == new[::-1]
