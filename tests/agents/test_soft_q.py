"""Soft Q-learning: consistency at the optimum on every path, the replay, and what a checkpoint must hold."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from agents.enumerated import BETA, HORIZON, tiny_task, trajectories
from agents.groups import flat_gradient, small_agent
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
    saved = one.tensors()
    other.restore(saved)
    for replay in (one, other):
        replay.add(paths_of([5]))
    draws = [replay.sample(20, np.random.default_rng(1)).rewards for replay in (one, other)]
    np.testing.assert_array_equal(*draws)
    assert saved["rewards"][:, 0].tolist() == [4, 2, 3]  # what was saved does not change any more


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
    agent.value_scale = 2.0
    torch.testing.assert_close(agent._loss(paths), loss / 4)
    agent.value_scale = None
    torch.testing.assert_close(agent._loss(paths), loss)


def test_a_number_more_in_all_logits_is_a_value_more():
    agent = small_agent(SoftQ)
    agent.policy = OptimalPolicy(agent.task)
    paths = every_path(agent.task)
    agent.policy.shift += 0.7  # as much as the reference: the same values
    assert float(agent._loss(paths._replace(normalisers=paths.normalisers + np.float32(0.7))).max()) < 1e-9
    # V is 0.7 beta less, but for what the offset adds to it: 0.1 is missing, or 0.1^2 / 2.
    agent.value_offset = 0.7 * BETA - 0.1
    loss = agent._loss(paths._replace(normalisers=paths.normalisers + np.float32(1.4)))
    np.testing.assert_allclose(loss, 0.005, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_gradient_of_a_path_by_hand(share):
    """Of two steps, both of which are paid; V counts `share` of its own gradient."""
    agent = small_agent(SoftQ, tiny_task(gamma=0.5), value_coefficient=share)
    logits = torch.tensor([[0.3, -0.2, 0.9, 0.0], [1.0, 0.4, -0.6, 0.2]], requires_grad=True)
    agent.policy = SimpleNamespace(
        device=torch.device("cpu"),
        backbone=SimpleNamespace(vocab_size=4),
        features=lambda ids, rows, columns: logits[columns - 1],
        heads=lambda features: (features, torch.zeros(len(features))),
    )
    ids, two = np.array([[0, 1, 2, 3, 0]], dtype=np.int32), np.array([2], dtype=np.int32)
    reference, normalisers = np.array([[-1.5, -0.7, 0.0]], np.float32), np.array([[1.2, 2.0, 0.0]], np.float32)
    paths = StoredEpisodes(ids, two, two, np.array([[0.8, 2.0, 0.0]], np.float32), reference, normalisers)
    loss = agent._loss(paths)
    loss.sum().backward()
    at = logits.detach().double().numpy()
    sums = np.log(np.exp(at).sum(1))
    p, taken = np.exp(at - sums[:, None]), np.eye(4)[[2, 3]]
    steps = np.array([0.8, 0.5 * 2.0]) - BETA * (at[[0, 1], [2, 3]] - sums - [-1.5, -0.7])
    residuals = np.array([steps[0] + steps[1], steps[1]]) - BETA * (sums - [1.2, 2.0])
    np.testing.assert_allclose(loss.detach(), residuals**2 / 2, rtol=1e-5)
    # The second action's log-ratio is in both residuals, the first one's in the first alone.
    want = -BETA * np.array([[residuals[0]], [residuals.sum()]]) * (taken - p) - share * BETA * residuals[:, None] * p
    np.testing.assert_allclose(logits.grad, want, atol=1e-6, rtol=1e-5)


def test_a_step_is_of_the_mean_loss_of_all_states():
    agent = small_agent(SoftQ, micro_batch=3)
    paths = every_path(agent.task).rows(np.array([0, 9, 33, 41, 55, 70, 79]))
    loss = agent._loss(paths)
    (loss.sum() / paths.lengths.sum()).backward()
    want = float(loss.detach().mean()), float(flat_gradient(agent).norm())
    assert agent._step(paths) == pytest.approx(want, rel=1e-5)
    assert agent._step(paths)[0] < want[0]


def test_only_its_own_episodes_carry_rewards_and_the_reference(env):
    agent = small_agent(SoftQ, micro_batch=5)
    assert agent.memory()["seen"].tolist() == [0]
    seen = []
    agent.learn(env, 16, seen.append)
    assert seen[0]["replay/episodes"] == 16
    kept = StoredEpisodes(*(agent.memory()[name].numpy() for name in StoredEpisodes._fields))
    behind = np.arange(HORIZON) >= kept.lengths[:, None]
    for array in (kept.rewards, kept.reference, kept.normalisers):
        assert (array[behind] == 0).all()
    scores = {each.prompt + each.completion: each.score for each in trajectories(agent.task)}
    for row, (start, length) in enumerate(zip(kept.starts, kept.lengths, strict=True)):
        ids = kept.input_ids[row, : start + length]
        assert kept.rewards[row].sum() == kept.rewards[row, length - 1] == scores[tuple(ids.tolist())]
        with torch.no_grad():
            logits = agent.reference.model(torch.tensor(ids[None], dtype=torch.long)).logits[0, start - 1 : -1]
        taken = logits.log_softmax(-1)[np.arange(length), ids[start:]]
        np.testing.assert_allclose(kept.reference[row, :length], taken, atol=1e-5)
        np.testing.assert_allclose(kept.normalisers[row, :length], logits.logsumexp(-1), atol=1e-5)


def test_the_metrics_of_an_iteration(env, monkeypatch):
    agent = SoftQ(env.task, SoftQConfig(batch=16, updates=2, device="cpu"), model=tiny_llama(4))
    steps, seen = iter([(1.0, 5.0), (3.0, 6.0)]), []
    monkeypatch.setattr(agent, "_step", lambda paths: next(steps))
    agent.learn(env, 16, seen.append)
    assert seen[0]["loss/consistency"] == 2.0
    assert seen[0]["policy/grad_norm"] == 5.5
    assert seen[0]["objective/kl"] == pytest.approx(0, abs=1e-5)  # no step was taken: it is its reference


def test_a_memory_that_does_not_fit_is_refused():
    agent = small_agent(SoftQ, replay=4)
    agent.restore_memory(small_agent(SoftQ).memory())  # nothing is remembered yet
    assert len(agent._replay) == 0
    agent._replay.add(every_path(agent.task).rows(np.array([0, 40, 30])))  # the third is as long as one can be
    kept = agent.memory()
    assert {0, 1, 3} <= set(kept["input_ids"].ravel().tolist())
    agent.restore_memory(kept)
    assert all(torch.equal(kept[name], array) for name, array in agent.memory().items())
    for token in (-1, 4):
        ids = kept["input_ids"].clone()
        ids[1, 0] = token
        with pytest.raises(ValueError, match=r"a token that is not in 0\.\.3"):
            agent.restore_memory(kept | {"input_ids": ids})
    # 5 tokens in all, 2 of them or 1 of the prompt.
    for name, row, value in (("starts", 0, 0), ("starts", 0, 5), ("lengths", 1, 0), ("lengths", 1, HORIZON + 1)):
        changed = kept[name].clone()
        changed[row] = value
        with pytest.raises(ValueError, match="seen=3, or an episode is longer than 3 actions or empty"):
            agent.restore_memory(kept | {name: changed})
    with pytest.raises(ValueError, match="seen=-1"):
        agent.restore_memory(kept | {"seen": torch.tensor([-1])})


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
    kept = agent._replay.sample(50, np.random.default_rng(0))
    assert (kept.lengths == 1).all()
    assert (kept.input_ids[np.arange(kept.input_ids.shape[1]) > kept.starts[:, None]] == 0).all()


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
