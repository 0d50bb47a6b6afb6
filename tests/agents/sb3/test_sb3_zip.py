"""Models that Stable-Baselines3 itself saved: refused without trust, and with it the same policy as in the library."""

import json
import zipfile

import numpy as np
import pytest
import torch
from cli_tools import assert_one_line, run
from textgym_agents import load_agent, make_env
from textgym_agents.sb3.interface import TokenFeatures
from textgym_agents.sb3.vec_env import SB3VecEnv

from textgym import TokenEnv
from textgym.evaluate import _sampled
from textgym.sampling import play
from textgym.task import make_reference
from textgym.wrappers import AllowedActions

stable_baselines3 = pytest.importorskip("stable_baselines3")
sb3_contrib = pytest.importorskip("sb3_contrib")

ID = "textgym/Stop-v0"
SHORT = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "device": "cpu", "seed": 0}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Trained by the library alone, in our environment as it is, with allowed actions, and on our features."""
    folder = tmp_path_factory.mktemp("zips")
    features = {"policy_kwargs": {"features_extractor_class": TokenFeatures}}
    library, contrib = stable_baselines3, sb3_contrib
    models = {
        "sb3-ppo": library.PPO("MultiInputPolicy", TokenEnv("Stop"), **SHORT),
        "sb3-maskable-ppo": contrib.MaskablePPO("MultiInputPolicy", AllowedActions(TokenEnv("Stop")), **SHORT),
        "sb3-dqn": library.DQN(
            "MultiInputPolicy",
            SB3VecEnv(make_env(ID, 2)),
            learning_starts=4,
            buffer_size=64,
            device="cpu",
            seed=0,
            **features,
        ),
    }
    for name, model in models.items():
        model.learn(32)
        model.save(folder / f"{name}.zip")
    return folder, models


@pytest.fixture(scope="module")
def env():
    return make_env(ID, 3)


@pytest.mark.slow
def test_it_is_the_librarys_policy(files, env):
    folder, models = files
    observation, _ = env.reset(seed=1)
    tensors = {name: torch.as_tensor(array) for name, array in observation.items()}
    ppo = load_agent(folder / "sb3-ppo.zip", env, "sb3-ppo", trust_pickle=True)
    logits = models["sb3-ppo"].policy.get_distribution(tensors).distribution.logits.detach()
    # The library's own policy also takes tokens that the task does not allow; ours shares them out among the others.
    allowed = env.unwrapped.task.vocabulary.allowed
    expected = torch.log_softmax(logits[:, allowed], -1)
    np.testing.assert_allclose(ppo.log_probs(observation)[:, allowed], expected, atol=1e-6)
    assert np.isneginf(ppo.log_probs(observation)[:, ~allowed]).all()
    dqn = load_agent(folder / "sb3-dqn.zip", env, "sb3-dqn", trust_pickle=True)
    # The library's own prediction may be a token that the task does not allow; ours is the best of the others.
    values = models["sb3-dqn"].q_net(tensors).detach().numpy()
    assert dqn.act(observation).tolist() == np.where(allowed, values, -np.inf).argmax(1).tolist()


def test_numbered_actions_become_their_tokens(files, env):
    folder, models = files
    observation, _ = env.reset(seed=1)
    agent = load_agent(folder / "sb3-maskable-ppo.zip", env, "sb3-maskable-ppo", trust_pickle=True)
    logs, allowed = agent.log_probs(observation), env.unwrapped.task.vocabulary.allowed
    tensors = {name: torch.as_tensor(array) for name, array in observation.items()}
    expected = models["sb3-maskable-ppo"].policy.get_distribution(tensors).distribution.logits.detach()
    np.testing.assert_allclose(logs[:, allowed], expected, atol=1e-6)
    assert np.isneginf(logs[:, ~allowed]).all()


def test_without_trust_nothing_is_read(files, env, tmp_path):
    """The pickle in this file would write another: it does not."""
    path, trap = tmp_path / "evil.zip", tmp_path / "ran"
    code = f"cbuiltins\nexec\n(S'open({str(trap)!r}, \"w\").close()'\ntR.".encode()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", b"{}")
        file.writestr("policy.pth", code)
    for agent in (None, "sb3-ppo"):
        with pytest.raises(ValueError, match=r"runs whatever code is in the file.*trust_pickle=True"):
            load_agent(path, env, agent)
    assert not trap.exists()


def test_what_cannot_be_used_is_said(files, env, tmp_path):
    folder, _ = files
    ppo = folder / "sb3-ppo.zip"
    (tmp_path / "text.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as file:
        file.writestr("other", b"")
    cases = [
        (ppo, env, None, "name the agent, as sb3-ppo"),
        (ppo, env, "lm-ppo", "'lm-ppo' reads no .zip; allowed are sb3-a2c"),
        (ppo, env, "sb3-sac", "'sb3-sac' reads no .zip"),
        (ppo, env, "sb3-pqo", "Did you mean 'sb3-ppo'"),
        (ppo, make_env("textgym/Bandit-v0", 1), "sb3-ppo", "the model observes"),
        (ppo, env, "sb3-dqn", "cannot be read as a model of DQN"),
        (tmp_path / "text.zip", env, "sb3-ppo", "no .zip file"),
        (tmp_path / "empty.zip", env, "sb3-ppo", "cannot be read as a model of PPO"),
    ]
    for path, place, agent, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            load_agent(path, place, agent, trust_pickle=True)
        assert "\n" not in str(caught.value)


def test_it_acts_and_does_not_learn(files, env, tmp_path):
    agent = load_agent(files[0] / "sb3-ppo.zip", env, "sb3-ppo", trust_pickle=True)
    observation, _ = env.reset(seed=0)
    assert agent.act(observation, deterministic=True).tolist() == agent.log_probs(observation).argmax(1).tolist()
    with pytest.raises(ValueError, match="can act, not learn"):
        agent.learn(env, 1)
    with pytest.raises(ValueError, match="saved by Stable-Baselines3 alone"):
        agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="trust_pickle"):
        type(agent).load(files[0] / "sb3-ppo.zip", env)


def test_its_kl_is_finite_and_what_it_is_measured_without_is_said(files, env, recwarn):
    task = env.unwrapped.task
    said = "4 of which the task does not allow"
    for name, caveat in (("sb3-ppo", said), ("sb3-maskable-ppo", ""), ("sb3-dqn", said)):
        agent = load_agent(files[0] / f"{name}.zip", env, name, trust_pickle=True)
        found = _sampled(agent, task, play(agent, task, reference=make_reference(task)), 0.1, "eval", 0)
        assert np.isfinite(found["kl"][0].high), name
        assert caveat in agent.caveat(task, "eval")
        assert bool(caveat) == bool(agent.caveat(task, "eval"))
    assert not recwarn.list


@pytest.mark.parametrize(
    "words",
    [
        ["eval", ID, "--per-prompt", "1", "--optimum-per-prompt", "4", "--json"],
        ["inspect", ID, "--max-states", "0", "--json"],
    ],
    ids=lambda words: words[0],
)
def test_the_command_line_asks_for_trust(files, capsys, words):
    path = str(files[0] / "sb3-ppo.zip")
    words = [*words, "--agent", path, "--agent-class", "sb3-ppo"]
    code, _, err = run(capsys, *words)
    assert_one_line(code, err, "sb3-ppo.zip", "runs whatever code is in the file", "--trust-pickle")
    code, out, err = run(capsys, *words, "--trust-pickle")
    assert code == 0, err
    assert json.loads(out)
