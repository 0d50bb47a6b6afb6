"""GAE, losses, KL estimates, controller and sampling against hand arithmetic and independent computations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textgym_agents.lm.maths import clipped_policy_loss, clipped_value_loss, gae, kl_estimate, standardise
from textgym_agents.lm.metrics import KLController

from textgym.lm.categorical import sample, statistics


def test_gae_matches_hand_arithmetic():
    # d1 = 1 - 0.4 = 0.6;  d0 = 0 + 0.4 - 0.2 = 0.2;  A0 = 0.2 + 0.5*0.6 = 0.5
    got = gae(np.array([[0.0, 1.0]]), np.array([[0.2, 0.4]]), np.array([2]), lam=0.5)
    np.testing.assert_allclose(got, [[0.5, 0.6]])


def quadratic_gae(rewards, values, gamma, lam, bootstrap):
    """A_t = sum_k (gamma lam)^k d_{t+k} of the paper, in units of time t, every sum written out."""
    following = [*values[1:], bootstrap]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.3, 1), st.floats(0, 1), st.booleans())
def test_gae_equals_the_quadratic_sum_row_by_row_with_garbage_in_the_padding(seed, gamma, lam, truncated):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, 4)
    rewards, values = rng.normal(size=(2, 4, 6))
    bootstrap = rng.normal(size=4) * truncated
    powers = gamma ** np.arange(7)
    behind = powers[lengths] * bootstrap if truncated else None
    got = gae(powers[:6] * rewards, powers[:6] * values, lengths, lam, behind)
    for row, n in enumerate(lengths):
        want = powers[:n] * quadratic_gae(rewards[row, :n], values[row, :n], gamma, lam, bootstrap[row])
        np.testing.assert_allclose(got[row, :n], want, atol=1e-12)
        assert (got[row, n:] == 0).all()


def test_gae_ends_of_lambda():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 1, 5))
    returns = np.cumsum(rewards[:, ::-1], 1)[:, ::-1]
    np.testing.assert_allclose(gae(rewards, values, np.array([5]), 1.0), returns - values)
    errors = rewards + np.append(values[:, 1:], [[0.0]], 1) - values
    np.testing.assert_allclose(gae(rewards, values, np.array([5]), 0.0), errors)


def test_gae_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"rewards \(1, 2\), values \(1, 3\)"):
        gae(np.zeros((1, 2)), np.zeros((1, 3)), np.array([2]), 1.0)


def test_standardise():
    got, scale = standardise(np.array([1.0, 3.0]))
    assert got.tolist() == [-1.0, 1.0]
    assert scale == 1.0
    assert standardise(np.array([2.0, 2.0]))[0].tolist() == [0.0, 0.0]
    assert standardise(np.array([100.0, 300.0]))[1] == 100.0


def test_policy_loss_by_hand():
    log_ratio = torch.log(torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5]))
    advantages = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0])
    got = clipped_policy_loss(log_ratio, advantages, 0.2)
    torch.testing.assert_close(got, torch.tensor([-2.0, -1.2, 1.5, -0.5, 0.8]))


def test_value_loss_by_hand():
    # Inside the range: (1 - 0.9)^2 / 2. Outside: the larger of (2 - 1)^2 / 2 and (0.2 - 1)^2 / 2.
    got = clipped_value_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.9, 0.0]), torch.tensor([0.9, 1.0]), 0.2)
    torch.testing.assert_close(got, torch.tensor([0.005, 0.5]))


def test_kl_estimates_average_to_the_kl():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    log_ratio = torch.tensor(np.log(p / q))
    kl = float(p @ np.log(p / q))
    assert float(torch.tensor(p) @ kl_estimate(log_ratio, "k1")) == pytest.approx(kl)
    k3 = kl_estimate(log_ratio, "k3")
    assert float(torch.tensor(p) @ k3) == pytest.approx(kl)
    assert (k3 >= 0).all()
    torch.testing.assert_close(kl_estimate(log_ratio, "k2"), 0.5 * log_ratio**2)


def test_gradients_of_the_kl_estimates_on_policy():
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.double, requires_grad=True)
    base = torch.log_softmax(torch.randn(5, dtype=torch.double), -1)

    def gradient(value):
        return torch.autograd.grad(value, logits)[0]

    own = torch.log_softmax(logits, -1)
    weights = own.detach().exp()
    forward = gradient((own.exp() * (own - base)).sum())
    own = torch.log_softmax(logits, -1)
    backward = gradient((base.exp() * (base - own)).sum())
    for kind, want in (("k1", torch.zeros(5, dtype=torch.double)), ("k2", forward), ("k3", backward)):
        own = torch.log_softmax(logits, -1)
        torch.testing.assert_close(gradient((weights * kl_estimate(own - base, kind)).sum()), want)


@pytest.mark.parametrize("with_reference", [True, False])
def test_statistics_and_their_gradients_equal_autograd(with_reference):
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, 9)).double()
    logits[:, 2] = -1e9  # a token that is not allowed
    base = torch.log_softmax(torch.randn(7, 9).double().index_fill(1, torch.tensor([2]), -1e9), -1)
    actions = torch.tensor([0, 1, 3, 4, 5, 8, 0])
    weights = torch.randn(3, 7).double()
    results = []
    for own in (True, False):
        x = logits.clone().requires_grad_()
        if own:
            taken, kl, entropy = statistics(x, actions, base if with_reference else None)
        else:
            log_probs = torch.log_softmax(x, -1)
            probs = log_probs.exp()
            taken = log_probs[torch.arange(7), actions]
            entropy = -(probs * log_probs).sum(-1)
            kl = (probs * (log_probs - base)).sum(-1) if with_reference else 0 * entropy
        (weights[0] @ taken + weights[1] @ kl + weights[2] @ entropy).backward()
        results.append((taken.detach(), kl.detach(), entropy.detach(), x.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_sampling_inverts_the_cumulative_distribution_and_never_takes_probability_zero(seed):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(6), size=5)
    probs[:, [0, 5]] = 0.0
    probs /= probs.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_probs = torch.tensor(np.log(probs), dtype=torch.float32)
    for u in (0.0, float(rng.random()), 1 - 2**-24):
        got = sample(log_probs, torch.full((5,), u)).numpy()
        assert (probs[np.arange(5), got] > 0).all()
    u = rng.random(5)
    want = [int(np.searchsorted(np.cumsum(row), x, side="right")) for row, x in zip(probs, u, strict=True)]
    assert sample(log_probs, torch.tensor(u, dtype=torch.float32)).tolist() == want


def test_controller_follows_the_target_with_a_clipped_error():
    controller = KLController(0.1, target=2.0, horizon=1000)
    controller.update(kl=100.0, episodes=500)  # error clipped to 0.2: beta * (1 + 0.2 * 0.5)
    assert controller.beta == pytest.approx(0.11)
    controller.update(kl=1.8, episodes=1000)  # error -0.1
    assert controller.beta == pytest.approx(0.11 * 0.9)
    for _ in range(1000):
        controller.update(kl=0.0, episodes=10_000)
    assert controller.beta > 0
    fixed = KLController(0.1)
    fixed.update(kl=100.0, episodes=500)
    assert fixed.beta == 0.1


def test_controller_refuses_what_cannot_work():
    with pytest.raises(ValueError, match=r"kl_target=1.0, beta=0.0"):
        KLController(0.0, target=1.0)
    with pytest.raises(ValueError, match="beta=-1"):
        KLController(-1.0)
