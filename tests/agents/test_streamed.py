"""Log-probabilities and losses made of a few states at a time: values and gradients of the plain form."""

import numpy as np
import pytest
import torch
from agents.groups import small_agent
from lm.tiny_models import tiny_gpt2, tiny_llama
from textgym_agents.algorithms.soft_q import SoftQ
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.sequences import Sequences, token_log_probs
from textgym_agents.lm.start import peak_rate
from textgym_agents.rlhf.sft import CompletionLoss
from torch import nn

from textgym import TokenVectorEnv
from textgym.lm import categorical
from textgym.lm.scoring import Encoded

AT_ONCE = 3
"""States whose logits are made at once when a test asks for it."""


def assert_streamed(monkeypatch, module, backbone, loss_of):
    """The loss and its gradient of three states at a time are those of all at once."""
    found, rows = [], []
    read_out = backbone.read_out
    monkeypatch.setattr(backbone, "read_out", lambda features: rows.append(len(features)) or read_out(features))
    for most in (10**9, AT_ONCE * backbone.vocab_size):
        monkeypatch.setattr(categorical, "ON_CPU", most)
        module.zero_grad()
        rows.clear()
        loss = loss_of()
        loss.backward()
        gradient = torch.cat([each.grad.ravel() for each in module.parameters() if each.grad is not None])
        found.append((float(loss.detach()), gradient.clone(), max(rows)))
    (plain, gradient, all_), (streamed, other, few) = found
    assert streamed == pytest.approx(plain, rel=1e-5)
    assert float((other - gradient).norm() / gradient.norm()) < 1e-5
    assert few <= AT_ONCE < all_


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_log_probabilities_of_completions(monkeypatch, make):
    policy = LMPolicy(make(11), np.ones(11, dtype=np.bool_))
    sequences = Sequences.of([(range(1, 4), range(5, 10)), (range(2, 4), range(1, 8))], 0)
    weights = torch.linspace(-1, 2, 12)
    assert_streamed(
        monkeypatch, policy, policy.backbone, lambda: (weights * token_log_probs(policy, sequences)[0]).sum()
    )


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_the_loss_of_fine_tuning(monkeypatch, make):
    loss = CompletionLoss(make(11))
    batch = loss.collate([Encoded([3, 4, 5, 6, 7], 2, 0), Encoded([3, 8, 1, 2], 1, 0)])
    assert_streamed(monkeypatch, loss, loss._backbone, lambda: loss(**batch))


def test_the_loss_of_soft_q(monkeypatch):
    agent = small_agent(SoftQ)
    agent.learn(TokenVectorEnv(agent.task, 16, autoreset_mode="Disabled"), 16)
    paths = agent._replay.sample(4, np.random.default_rng(0))
    assert_streamed(monkeypatch, agent.policy, agent.policy.backbone, lambda: agent._loss(paths).sum())


def test_parts_are_joined_in_order_without_a_gradient(monkeypatch):
    monkeypatch.setattr(categorical, "ON_CPU", 4)
    sizes = []

    def twice(features, column):
        sizes.append(len(features))
        return features[:, 0] * 2, column

    with torch.no_grad():
        doubled, same = categorical.streamed(twice, torch.arange(5.0)[:, None], 2, torch.arange(5))
    assert sizes == [2, 2, 1]
    assert doubled.tolist() == [0, 2, 4, 6, 8]
    assert same.tolist() == [0, 1, 2, 3, 4]


def test_parts_have_a_gradient_where_only_the_function_has_one(monkeypatch):
    monkeypatch.setattr(categorical, "ON_CPU", 4)
    weight, sizes = torch.tensor(3.0, requires_grad=True), []

    def scaled(features):
        sizes.append(len(features))
        return (weight * features[:, 0],)

    (found,) = categorical.streamed(scaled, torch.arange(5.0)[:, None], 2)
    assert found.tolist() == [0, 3, 6, 9, 12]
    assert sizes == [2, 2, 1]
    found.sum().backward()
    assert weight.grad == 10  # 0 + 1 + 2 + 3 + 4
    assert sorted(sizes[3:]) == [1, 2, 2]  # nothing was kept: every part ran again


def test_the_learning_rate_falls_with_the_size():
    with torch.device("meta"):
        models = {size: nn.Linear(size, 1000, bias=False) for size in (4_000, 124_000, 494_000, 7_000_000)}
    rates = [peak_rate(model, False) for model in models.values()]
    # 5e-4 at 4 million; 2000 / 124e6; 2000 / 494e6; the least
    np.testing.assert_allclose(rates, [5e-4, 1.612903e-5, 4.048583e-6, 3e-6], rtol=1e-6)
    assert peak_rate(models[4_000], True) == 3e-3
    adapted = models[494_000]
    adapted.peft_config, adapted.get_base_model = {}, lambda: adapted
    assert peak_rate(adapted, False) == pytest.approx(4.048583e-5)
