"""Stable-Baselines3's agents behind the protocol: repeatable, storable without pickle, exact about what they do."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_tools import CountA, odd_after_even, word_task
from gymnasium.vector import AutoresetMode
from safetensors import safe_open
from textgym_agents.conformance import check
from textgym_agents.registry import agent_class, load_agent, make_agent, make_config, make_env
from textgym_agents.sb3 import off_policy as memory
from textgym_agents.sb3.on_policy import minibatch_size

from textgym import make_task
from textgym.lm.reference import NGramReference
from textgym.state import segment_ids
from textgym.vector import TokenVectorEnv

ON = ("sb3-ppo", "sb3-a2c", "sb3-trpo", "sb3-maskable-ppo", "sb3-recurrent-ppo")
VALUED, POINTS = ("sb3-dqn", "sb3-qrdqn"), ("sb3-ddpg", "sb3-td3", "sb3-sac")
ALL = ON + VALUED + POINTS
SMALL = {"features": "mean", "width": 8, "batch": 8}
OFF = {"learning_starts": 16, "minibatch": 16, "gradient_steps": 1, "replay": 400}


def settings(name: str, **changes: Any) -> dict[str, Any]:
    lstm = {"lstm_width": 8, "epochs": 1} if name == "sb3-recurrent-ppo" else {}
    return SMALL | lstm | (OFF if name not in ON else {}) | changes


def task_of(**changes: Any) -> Any:
    reference = NGramReference(np.random.default_rng(0).dirichlet(np.ones(6), size=6))
    return word_task(**{"reference": reference, "beta": 0.3, **changes})


def env_of(
    task: Any, mode: AutoresetMode = AutoresetMode.DISABLED, rows: int = 8, segments: bool = True
) -> TokenVectorEnv:
    return TokenVectorEnv(task, rows, segments=segments, autoreset_mode=mode)


def states(task: Any, steps: int = 2) -> Any:
    """Some observations of running episodes."""
    env = env_of(task, rows=16)
    observation, _ = env.reset(seed=1)
    for step in range(steps):
        observation, *_ = env.step(np.full(16, step % 2))
    return observation


CHECKS = (
    "log-probs sum to one",
    "act draws from log-probs",
    "deterministic act takes the likeliest",
    "starts at the reference",
    "padding columns",
    "padding ids",
    "log-probs read nothing later",
    "logged scores",
    "mask obedience",
    "same seed, same policy",
    "global random numbers",
    "saved and loaded",
    "resumed",
)


KINDS = ("ppo", "maskable-ppo", "recurrent-ppo", "dqn", "sac")


@pytest.mark.long
@pytest.mark.parametrize(
    "name",  # one of each kind: a policy gradient, one with masks, one with a state, values, points
    [pytest.param(name, marks=[] if name.removeprefix("sb3-") in KINDS else [pytest.mark.sweep]) for name in ALL],
)
def test_what_applies_of_the_conformance_kit_holds(name: str) -> None:
    findings = check(name, CHECKS, settings=settings(name), envs=8, iterations=2)
    failed = [finding for finding in findings if finding.status == "FAILS"]
    assert not failed, failed
    asked = {finding.check for finding in findings if finding.status == "holds"}
    # SAC's distribution over tokens has no closed form; the other off-policy agents are greedy.
    left_out = {"sb3-sac": set(CHECKS) - {"global random numbers"}}.get(
        name, set() if name in ON else {"starts at the reference", "logged scores"}
    )
    assert asked >= set(CHECKS) - left_out


@pytest.mark.long
@pytest.mark.parametrize("name", ["sb3-ppo", "sb3-recurrent-ppo", "sb3-dqn", "sb3-sac"])
def test_an_agent_is_saved_without_pickle_and_goes_on(name: str, tmp_path: Path) -> None:
    task = task_of()
    config = make_config(agent_class(name), settings(name))
    agent = make_agent(name, env_of(task), config)
    agent.learn(env_of(task), 40)
    agent.save(tmp_path / "agent")
    assert {path.name for path in (tmp_path / "agent").iterdir()} == {"agent.json", "tensors.safetensors"}
    with safe_open(tmp_path / "agent" / "tensors.safetensors", "np") as file:
        assert any("optimizer" in key for key in file.keys())  # noqa: SIM118
    loaded = load_agent(tmp_path / "agent", env_of(task))
    for each in (agent, loaded):
        each.learn(env_of(task), 40)
    ours, theirs = agent.model.get_parameters(), loaded.model.get_parameters()  # type: ignore[attr-defined]
    for key, value in ours["policy"].items():
        np.testing.assert_array_equal(value.numpy(), theirs["policy"][key].numpy(), err_msg=key)
    assert agent.episodes == loaded.episodes  # type: ignore[attr-defined]


def test_a_folder_of_another_agent_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    task = task_of()
    make_agent("sb3-ppo", env_of(task), **SMALL).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="allowed is 'sb3-a2c'"):
        agent_class("sb3-a2c").load(tmp_path / "agent", env_of(task))
    (tmp_path / "agent" / "tensors.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        load_agent(tmp_path / "agent", env_of(task))


@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.SAME_STEP])
def test_the_callback_sees_the_metrics_and_stops(mode: AutoresetMode) -> None:
    task = task_of()
    agent, rows = make_agent("sb3-ppo", env_of(task), **SMALL), []

    def callback(metrics: Any) -> bool:
        rows.append(metrics)
        return len(rows) == 2

    agent.learn(env_of(task, mode), 10_000, callback)
    assert len(rows) == 2
    # Every row plays four steps: at least one whole episode each.
    assert rows[0]["steps"] == 32
    assert rows[1]["episode"] >= 16
    assert {"objective/scores", "completion_length", "sb3/train/loss"} <= rows[0].keys()


@pytest.mark.slow
def test_both_modes_of_the_environment_give_the_same_policy() -> None:
    task, policies = task_of(), []
    for mode in (AutoresetMode.DISABLED, AutoresetMode.SAME_STEP):
        agent = make_agent("sb3-a2c", env_of(task), **SMALL)
        agent.learn(env_of(task, mode), 40)
        policies.append(agent.log_probs(states(task)))
    np.testing.assert_array_equal(*policies)


@pytest.mark.slow
def test_the_number_of_sub_environments_may_change_unless_there_is_a_replay() -> None:
    task = task_of()
    agent = make_agent("sb3-ppo", env_of(task), **SMALL)
    agent.learn(env_of(task), 8)
    before = agent.log_probs(states(task))
    agent._fit(agent.interface.wrap(env_of(task, rows=4))[0])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(agent.log_probs(states(task)), before)
    agent.learn(env_of(task, rows=4), 8)
    other = make_agent("sb3-dqn", env_of(task), **settings("sb3-dqn"))
    other.learn(env_of(task), 8)
    with pytest.raises(ValueError, match="allowed are 8"):
        other.learn(env_of(task, rows=4), 8)


def test_with_top_k_only_ranked_tokens_have_probability() -> None:
    task = task_of()
    agent = make_agent("sb3-ppo", env_of(task), top_k=2, **SMALL)
    agent.learn(env_of(task), 16)
    observation = states(task)
    probabilities = np.exp(agent.log_probs(observation))
    best = np.argsort(-task.reference.log_probs(observation), axis=1)[:, :2]
    np.testing.assert_allclose(np.take_along_axis(probabilities, best, 1).sum(1), 1.0, atol=1e-9)


def test_with_top_k_the_start_is_the_reference_by_rank() -> None:
    """A reference without memory has the same ranks everywhere: 0.5, 0.3 and, cut off, the rest."""
    row = np.array([0.3, 0.05, 0.5, 0.05, 0.05, 0.05])
    task = task_of(reference=NGramReference(row))
    probabilities = np.exp(make_agent("sb3-ppo", env_of(task), top_k=2, **SMALL).log_probs(states(task)))
    np.testing.assert_allclose(probabilities[:, [2, 0]], [[0.625, 0.375]] * 16, atol=0.02)
    equal = make_agent("sb3-ppo", env_of(task), top_k=2, rank_prior=False, **SMALL).log_probs(states(task))
    np.testing.assert_allclose(np.exp(equal)[:, [2, 0]], 0.5, atol=0.02)


@pytest.mark.slow
def test_with_a_grammar_only_legal_tokens_have_probability() -> None:
    """The grammar depends on the length of the completion, which the observations tell."""
    task = task_of(mask=odd_after_even)
    for name, changes in {"sb3-maskable-ppo": {}, "sb3-ppo": {"top_k": 3}}.items():
        agent = make_agent(name, env_of(task), **SMALL, **changes)
        agent.learn(env_of(task), 16)
        probabilities = np.exp(agent.log_probs(states(task, steps=1)))
        assert probabilities[:, 0::2].max() == 0  # after one token, odd ids only
        assert probabilities[:, 1::2].sum(1).min() > 1 - 1e-9
        with pytest.raises(ValueError, match="make the environment with segments=True"):
            agent.log_probs(env_of(task, segments=False).reset(seed=0)[0])


def test_a_recurrent_policy_is_rebuilt_as_it_was_played() -> None:
    """The log-probabilities of the rollout are those that `log_probs` gives for its states."""
    task = task_of()
    agent: Any = make_agent("sb3-recurrent-ppo", env_of(task), epochs=1, learning_rate=1e-12, **SMALL)
    agent.learn(env_of(task), 8)
    buffer, played = agent.model.rollout_buffer, 0
    shape = (buffer.buffer_size, buffer.n_envs)
    # Its rows were flattened row by row for the update.
    ids = buffer.observations["input_ids"].reshape(*shape[::-1], -1)
    masks = buffer.observations["attention_mask"].reshape(*shape[::-1], -1)
    actions = buffer.actions.reshape(shape[::-1]).astype(int)
    want = buffer.log_probs.reshape(shape[::-1])
    starts = np.array([np.full(shape[0], masks[row, 0].sum()) for row in range(shape[1])])
    begun = buffer.episode_starts.reshape(shape[::-1]) != 0
    for step in range(1, shape[0]):
        starts[:, step] = np.where(begun[:, step], masks[:, step].sum(1), starts[:, step - 1])
    for step in range(shape[0]):
        segments = segment_ids(masks[:, step].astype(np.int8), starts[:, step].astype(np.int64))
        seen = {"input_ids": ids[:, step], "attention_mask": masks[:, step], "segment_ids": segments}
        logs = agent.log_probs(seen)
        got = logs[np.arange(shape[1]), actions[:, step]]
        np.testing.assert_allclose(got, want[:, step], atol=1e-5)
        played += len(got)
    assert played == 32


def test_a_recurrent_policy_steps_where_it_acts_and_not_in_what_it_is_told() -> None:
    env = make_env("textgym/Clarify-v0", 16, segments=True)
    agent: Any = make_agent("sb3-recurrent-ppo", env, **settings("sb3-recurrent-ppo"))
    policy, generator = agent.model.policy, np.random.default_rng(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.as_tensor(generator.normal(size=parameter.shape), dtype=torch.float32))
    lstm, allowed = policy.lstm_actor, np.flatnonzero(env.unwrapped.task.vocabulary.allowed)
    state = (torch.zeros(lstm.num_layers, 16, lstm.hidden_size),) * 2
    observation, _ = env.reset(seed=1)
    running, compared = np.ones(16, bool), []
    while running.any():
        with torch.no_grad():
            played, state = policy.get_distribution(agent._inputs(observation), state, torch.zeros(16))
        want = torch.log_softmax(played.distribution.logits, -1).numpy()
        np.testing.assert_allclose(agent.log_probs(observation)[running][:, allowed], want[running], atol=1e-5)
        compared.append(int(running.sum()))
        actions = generator.choice(allowed, size=16)
        observation, _, terminated, truncated, _ = env.step(actions)
        running &= ~(terminated | truncated)
    assert compared[0] == 16
    assert len(compared) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sb3-ppo", "sb3-dqn"])
def test_on_a_language_model(name: str) -> None:
    task = make_task("Helpful", max_new_tokens=3)
    shown = {"features": "gru", "width": 64, "top_k": 4, "lm_features": True}
    agent = make_agent(name, env_of(task), **settings(name, **shown))
    agent.learn(env_of(task), 16)
    observation, _ = env_of(task).reset(seed=0)
    probabilities = np.exp(agent.log_probs(observation))
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-9)
    assert (probabilities > 0).sum(1).max() <= 4


def test_replay_sizes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    env = env_of(task_of(), segments=False)
    spaces = env.single_observation_space, env.single_action_space
    # Seven ids of 8 bytes and seven marks of 1, twice; an action of 8; three numbers of 4.
    assert memory.transition_bytes(*spaces) == 2 * 7 * 9 + 8 + 12
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**9)
    assert memory.replay_size(None, *spaces, vocabulary=6, horizon=4) == 16_384
    assert memory.replay_size(None, *spaces, vocabulary=1_000, horizon=4) == 64_000
    assert memory.replay_size(None, *spaces, vocabulary=6, horizon=1) == 10_000
    assert memory.replay_size(777, *spaces, vocabulary=6, horizon=4) == 777
    with pytest.raises(ValueError, match=r"replay=10000000: .* take 1\.46 GB.*1\.00 GB.*at most 3,424,657"):
        memory.replay_size(10_000_000, *spaces, vocabulary=6, horizon=4)


def test_without_psutil_linux_says_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    env = env_of(task_of())
    spaces = env.single_observation_space, env.single_action_space
    there = memory.free_bytes()
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert there is not None
    if sys.platform == "linux":
        assert memory.free_bytes() == pytest.approx(there, rel=0.3)
        with pytest.raises(ValueError, match=r"replay=1000000000000: .* GB are free"):
            memory.replay_size(10**12, *spaces, vocabulary=6, horizon=4)


def test_available_memory_by_hand(tmp_path: Path) -> None:
    table = tmp_path / "meminfo"
    assert memory.available_bytes(table) is None
    table.write_text("MemTotal:  9 kB\nMemFree:  2 kB\nMemAvailable:     3 kB\nBuffers: 4 kB\n", encoding="ascii")
    assert memory.available_bytes(table) == 3 * 1024
    table.write_text("MemTotal:  9 kB\n", encoding="ascii")
    assert memory.available_bytes(table) is None


def test_the_extra_brings_what_measures_memory() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    assert any(line.startswith("psutil") for line in project["project"]["optional-dependencies"]["sb3"])


@pytest.mark.parametrize("name", ["sb3-ppo", "sb3-dqn"])
def test_the_discount_is_in_the_reward_where_the_reward_has_the_kl(name: str) -> None:
    """J discounts rewards by 0.5 and the KL not at all: a text of two tokens pays beta log pi_ref twice in full."""
    task = task_of(gamma=0.5, reward=CountA("every"))
    agent = make_agent(name, env_of(task), **settings(name))
    assert agent.model.gamma == 1.0
    assert make_agent(name, env_of(task), **settings(name, reference_reward=False)).model.gamma == 0.5
    plain, wrapped = env_of(task), agent.interface.wrap(env_of(task))[0]
    observation, _ = plain.reset(seed=3)
    wrapped.seed(3)
    wrapped.reset()
    for step in range(2):
        actions = np.zeros(8, dtype=np.int64)
        logs = task.reference.log_probs(observation)
        observation, rewards, ended, *_ = plain.step(agent.interface.tokens(observation, actions))
        assert not ended.any() or step
        taken = logs[np.arange(8), agent.interface.tokens(observation, actions)]
        got = wrapped.step(actions)[1]
        assert (rewards > 0).any()
        np.testing.assert_allclose(got, 0.5**step * rewards + 0.3 * taken, atol=1e-5)


def test_minibatches_are_equal_parts() -> None:
    assert [minibatch_size(*pair) for pair in ((512, 4), (12, 5), (7, 3), (2, 4), (1, 4))] == [
        128,
        3,
        7,
        2,
        1,
    ]


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("sb3-ppo", {"features": "lstm"}, "features"),
        ("sb3-ppo", {"top_k": 0}, "top_k"),
        ("sb3-ppo", {"top_k": 99}, "k=99"),
        ("sb3-ppo", {"n_steps": 2}, "n_steps=2"),
        ("sb3-ppo", {"lm_features": True, "features": "gru", "width": 64}, "no language model"),
        ("sb3-ppo", {"lm_features": True, "width": 64}, "features='mean': .*'gru' where lm_features is True"),
        ("sb3-dqn", {"lm_features": True, "features": "gru"}, "width=8: .*64 where lm_features is True"),
        ("sb3-ppo", {"rank_prior": False}, "rank_prior=False: .*True where top_k is None"),
        ("sb3-a2c", {"beta": 0.1, "reference_reward": False}, "beta=0.1: .*reference_reward is False"),
        ("sb3-a2c", {"max_grad_norm": 0.0}, "max_grad_norm"),
        ("sb3-td3", {"noise": -1.0}, "noise"),
        ("sb3-ppo", {"beta": -1.0}, "beta"),
        ("sb3-dqn", {"exploration_share": 2.0}, "exploration_share"),
        ("sb3-dqn", {"replay": 4}, "replay"),
        ("sb3-td3", {"dimensions": 0}, "dimensions"),
        ("sb3-trpo", {"target_kl": 0.0}, "target_kl"),
    ],
)
def test_bad_settings_are_named(name: str, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_agent(name, env_of(task_of()), **settings(name) | change)


@pytest.mark.parametrize(("name", "setting"), [("sb3-trpo", "max_grad_norm"), ("sb3-sac", "noise")])
def test_settings_that_an_algorithm_has_no_use_for_are_not_there(name: str, setting: str) -> None:
    with pytest.raises(TypeError, match=f"'{setting}' is not a setting"):
        make_agent(name, env_of(task_of()), **{setting: 0.1})


@pytest.mark.parametrize("name", ["sb3-ppo", "sb3-a2c", "sb3-maskable-ppo", "sb3-recurrent-ppo", "sb3-dqn"])
def test_the_greatest_norm_reaches_the_model(name: str) -> None:
    assert make_agent(name, env_of(task_of()), **settings(name, max_grad_norm=0.3)).model.max_grad_norm == 0.3  # type: ignore[attr-defined]
