"""A two-turn task on a real language model: what is played, what is learned from, and the command line."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from agents.test_real_model import MODEL, PROMPTS
from cli_tools import run
from gymnasium.vector import AutoresetMode
from textgym_agents.registry import agent_class, make_agent, make_config

from textgym.lm.causal import load_causal_lm
from textgym.state import ENVIRONMENT, POLICY

pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason=f"{MODEL} is missing (set TEXTGYM_SHARED)")


def curious(conversations):
    return [f" Why {conversation[-1]['content'].split(' ')[0][:8]}? Because" for conversation in conversations]


def make_env(count):
    return gym.make_vec(
        "textgym/Text-v0",
        num_envs=count,
        vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.DISABLED,
        prompts=PROMPTS,
        reference=str(MODEL),
        reward={"name": "keywords", "words": ["was", "little", "happy"]},
        responder=curious,
        turns=2,
        turn_tokens=8,
        reply_tokens=24,
        stop=".",
        beta=0.1,
    )


def by_hand(model, reference, states, task, score, *, group=0, lam=0.95, entropy=0.2):
    """The loss of a batch from whole plain forward passes of one row each, exact KL; RLOO where there are groups."""
    allowed = torch.tensor(task.vocabulary.allowed)
    beta, rows = task.beta, []
    for state in states:
        ids = torch.tensor(state.tokens)
        own, base = (m(ids[None]).logits[0].masked_fill(~allowed, -1e9).log_softmax(-1) for m in (model, reference))
        at = [place for place, author in enumerate(state.authors) if author == POLICY]  # where the policy wrote
        own, base = own[[p - 1 for p in at]], base[[p - 1 for p in at]].detach()
        kl = (own.exp() * (own - base)).sum(1)
        rows.append((own[range(len(at)), ids[at]], kl, -(own.exp() * own).sum(1)))
    returns = score - beta * np.array([float(kl[1:].detach().sum()) for _, kl, _ in rows])
    total = 0.0
    for row, (taken, kl, spread) in enumerate(rows):
        if group:
            others = [r for r in range(row // group * group, (row // group + 1) * group) if r != row]
            advantages = torch.full_like(taken, returns[row] - np.mean(returns[others]))
        else:  # V is the mean score everywhere, as at first; an action is charged the KL of the next state
            value, after = float(score.mean()), [float(each) for each in kl[1:].detach()]
            deltas = [-beta * each for each in after] + [float(score[row]) - value]
            advantages = torch.tensor(
                [sum(lam ** (j - i) * deltas[j] for j in range(i, len(deltas))) for i in range(len(deltas))]
            )
        total = total + (-taken * advantages + beta * kl - entropy * spread).sum()
    count = len(rows) * task.max_new_tokens if group else sum(len(taken) for taken, _, _ in rows)
    return total / count, rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lm-ppo", "rloo"])
def test_the_loss_counts_the_policys_tokens_alone(name, monkeypatch):
    env = make_env(8)
    settings = {
        "epochs": 1,
        "minibatches": 1,
        "whiten": False,
        "entropy_coefficient": 0.2,
        "kl": "exact",
        "micro_batch": 3,
    }
    settings |= {"value_coefficient": 0.0, "lam": 0.95} if name == "lm-ppo" else {}
    agent = make_agent(name, env, make_config(agent_class(name), {"seed": 1, "device": "cpu", **settings}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from the reference, or there would be no KL
        for weights in agent.policy.model.parameters():
            weights += 0.02 * torch.randn(weights.shape, generator=generator)
    caught = []
    monkeypatch.setattr(
        agent, "_finish_step", lambda: caught.append([p.grad.clone() for p in agent.policy.model.parameters()]) or 1.0
    )
    metrics = agent._iterate(env)
    states = env.unwrapped.get_states()
    assert all(state.replies == 1 for state in states)
    task = env.unwrapped.task
    score = task.judge(
        "train",
        [s.prompt for s in states],
        [list(s.completion) for s in states],
        environment=[s.environment for s in states],
    ).total
    reference = load_causal_lm(MODEL)
    model = agent.policy.model
    model.zero_grad()
    loss, rows = by_hand(model, reference, states, task, score, group=4 if name == "rloo" else 0)
    loss.backward()
    scale = max(float(p.grad.abs().max()) for p in model.parameters())
    for got, parameter in zip(caught[0], model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, atol=1e-4 * scale, rtol=2e-3)
    assert sum(author == ENVIRONMENT for author in states[0].authors) > 3
    # What is logged counts the same tokens.
    written = [sum(author == POLICY for author in state.authors) for state in states]
    kl, spread = (sum(float(row[k].detach().sum()) for row in rows) for k in (1, 2))
    assert metrics["tokens"] == sum(written)
    assert metrics["completion_length"] == pytest.approx(np.mean(written))
    assert metrics["objective/kl"] == pytest.approx(kl / 8, rel=1e-4)
    assert metrics["policy/entropy_avg"] == pytest.approx(spread / sum(written), rel=1e-4)
    assert metrics["objective/scores"] == pytest.approx(score.mean())


@pytest.mark.long
@pytest.mark.parametrize("name", ["lm-ppo", "rloo"])
def test_a_command_trains_and_evaluates_with_a_user_of_one_s_own(name, tmp_path, monkeypatch, capsys):
    module = f"user_of_{name.replace('-', '_')}"  # a module is imported once in a process
    (tmp_path / f"{module}.py").write_text(
        "def curious(conversations):\n"
        "    return [f\" Why {each[-1]['content'].split(' ')[0][:8]}? Because\" for each in conversations]\n"
    )
    monkeypatch.chdir(tmp_path)
    env = [f"reference={MODEL}", f"responder={module}:curious", "turns=2", "turn_tokens=8", "reply_tokens=24", "stop=."]
    words = ["--out", "run", "--batch", "8", "--episodes", "24", "--eval-every", "0", "--optimum-per-prompt", "0"]
    code, _, said = run(capsys, "train", "Text-v0", "--agent", name, "--env", *env, *words, "--final-per-prompt", "1")
    assert code == 0, said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tokens = [line["tokens"] for line in lines if "tokens" in line]
    assert len(tokens) == 3
    assert all(8 * 2 <= count <= 8 * 2 * 8 for count in tokens)  # two turns of up to eight tokens: no reply is counted
    code, said, error = run(
        capsys, "eval", "Text-v0", "--agent", "run", "--per-prompt", "2", "--optimum-per-prompt", "0"
    )
    assert code == 0, error
    assert said.startswith("run on textgym/Text-v0")
