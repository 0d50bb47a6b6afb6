"""The referee's estimators: by autograd of each loss as its paper has it, by listing groups, and by what is known."""

import itertools

import numpy as np
import pytest
import torch
from agents.test_exact_estimators import Recurrent
from solver_tools import STOP, bigram, small_task
from textgym_agents.exact.objective import EnumeratedPolicy
from textgym_agents.exact.referee import (
    GROUP_ESTIMATORS,
    KL_ESTIMATORS,
    REWARD_ESTIMATORS,
    VALUES_FROM_ROLLOUTS,
    _grouped,
    _vine,
    referee,
)
from textgym_agents.exact.samples import TwoPolicies, samples_of

from textgym import make_task
from textgym.solver import prefix_tree

GROUP = 3


def shifted(seed=0, size=0.15):
    """The policy of `Recurrent`, and an older one beside it."""
    policy, older = Recurrent(), Recurrent()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in older.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return policy, older


@pytest.fixture(scope="module")
def samples() -> TwoPolicies:
    policy, older = shifted()
    return samples_of(prefix_tree(small_task()), policy, older, bigram())


def taken(samples):
    """log pi of the actions taken (N, T), differentiable, and the parameters."""
    own = EnumeratedPolicy(shifted()[0])
    tree = samples.behaviour.tree
    edges = torch.cat([own.edges(tree, d, tree.levels[d].running) for d in range(len(tree.levels) - 1)])
    path = samples.current.steps.path
    return torch.where(torch.tensor(path >= 0), edges[torch.tensor(np.maximum(path, 0))], 0.0), own


def gradient_of(loss, own):
    return own.flat(torch.autograd.grad(loss, own.parameters, retain_graph=True)).numpy()


def written(samples):
    """The completion of each trajectory, and its prompt."""
    tree, every = samples.behaviour.tree, samples.behaviour.trajectories
    rows = zip(every.length.tolist(), every.row.tolist(), every.prompt.tolist(), strict=True)
    return [(tuple(tree.completions(length, np.array([row]))[0].tolist()), prompt) for length, row, prompt in rows]


def to_come(samples):
    """(prompt, tokens so far) -> what completions by mu earn from there on, and their probabilities."""
    found = {}
    for (tokens, prompt), paid, mass in zip(written(samples), samples.rewards, samples.mass, strict=True):
        for at in range(len(tokens)):
            found.setdefault((prompt, tokens[:at]), []).append((paid[at:].sum(), mass))
    return {
        state: (np.array(rows).T[0], np.array(rows).T[1] / np.array(rows).T[1].sum()) for state, rows in found.items()
    }


def vine_advantages(samples):
    """What a step is paid, and V behind it less V before it, (N, T)."""
    exact = {state: returns @ chances for state, (returns, chances) in to_come(samples).items()}
    result = np.zeros(samples.real.shape)
    for row, ((tokens, prompt), paid) in enumerate(zip(written(samples), samples.rewards, strict=True)):
        for at in range(len(tokens)):
            behind = exact[prompt, tokens[: at + 1]] if at + 1 < len(tokens) else 0.0
            result[row, at] = paid[at] + behind - exact[prompt, tokens[:at]]
    return result


def clipped(ratio, advantages, low=0.2, high=0.2):
    return torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def test_single_estimators_are_the_gradients_of_their_papers_losses(samples):
    log_pi, own = taken(samples)
    real = torch.tensor(samples.real)
    log_mu = log_pi.detach() - torch.tensor(samples.log_rho)
    rho, lengths = (log_pi - log_mu).exp(), torch.tensor(samples.lengths)[:, None]
    advantages, whole = torch.tensor(samples.advantages), torch.tensor(samples.returns)[:, None]
    ref = log_pi.detach() - torch.tensor(samples.log_ratio)
    ratio = log_pi - ref  # (N, T)
    mean_ratio = ((log_pi - log_mu).sum(1, keepdim=True) / lengths).exp()
    product = (log_pi - log_mu).sum(1, keepdim=True).exp()
    mass = torch.tensor(samples.mass)
    mu_mean = mass @ whole[:, 0]
    deviation = (mass @ (whole[:, 0] - mu_mean) ** 2).sqrt()
    start = torch.tensor(samples.baseline[:, :1])
    ended = torch.tensor([1.0 * (tokens[-1] == STOP) for tokens, _ in written(samples)], dtype=torch.float64)[:, None]
    step_ahead = torch.tensor(vine_advantages(samples))
    to_go = torch.tensor(np.cumsum(samples.rewards[:, ::-1], axis=1)[:, ::-1].copy())
    prefix, old = (log_pi - log_mu).cumsum(1).exp(), log_mu - ref  # (N, T)
    old_to_go, k3 = old.flip(1).cumsum(1).flip(1), (-old).exp() - 1 + old
    later = torch.tensor(np.cumsum(samples.current.steps.kl[:, ::-1], axis=1)[:, ::-1] - samples.current.steps.kl)
    losses = {
        "REINFORCE, no correction": log_pi * whole,
        "REINFORCE, reward to go": log_pi * to_go,
        "REINFORCE, reward to go - V": log_pi * advantages,
        "sequence ratio, advantages": product.detach() * log_pi * advantages,
        "each reward by the ratio so far": prefix * torch.tensor(samples.rewards),
        "ratio so far, advantages": prefix.detach() * log_pi * advantages,
        "k1 in the reward": rho * old_to_go,
        "k1 in the reward, whole sequence": rho * old.sum(1, keepdim=True),
        "k3 in the reward": rho * k3.flip(1).cumsum(1).flip(1),
        "exact in the loss, later KL in the reward": rho * later,
        "token ratio": rho * advantages,
        "token ratio, clipped (PPO)": clipped(rho, advantages),
        "token ratio, clip-higher (DAPO)": clipped(rho, advantages, 0.2, 0.28),
        "token ratio, clipped, overlong masked": clipped(rho, advantages) * ended / (mass @ ended[:, 0]),
        "exact V of the next state - V (VinePPO)": clipped(rho, step_ahead),
        "token ratio, truncated (TIS)": rho.detach().clamp(max=2) * log_pi * advantages,
        "token ratio, masked (MIS)": rho.detach() * (rho.detach() <= 2) * log_pi * advantages,
        "sequence ratio, whole return": product * whole * real / lengths,
        "sequence ratio, truncated": product.detach().clamp(max=2) * log_pi * advantages,
        "sequence ratio, masked": product.detach() * (product.detach() <= 2) * log_pi * advantages,
        "weight capped above (CISPO)": rho.detach().clamp(max=1.28) * log_pi * advantages,
        "mean ratio of the sequence, clipped (GSPO)": clipped(mean_ratio, whole - start) * real / lengths,
        "batch mean and deviation (REINFORCE++)": clipped(rho, (whole - mu_mean) / deviation),
        "k1 in the loss": ratio,
        "k2 in the loss": 0.5 * ratio**2,
        "k3 in the loss": (-ratio).exp() - 1 + ratio,
        "k3 in the loss, times the ratio": rho * ((-ratio).exp() - 1 + ratio),
        "k2 in the loss, times the ratio": rho * 0.5 * ratio**2,
        "k1 in the loss, times the ratio": rho * ratio,
    }
    named = {**REWARD_ESTIMATORS, **KL_ESTIMATORS}
    assert named.keys() - losses.keys() == {"exact in the loss"}
    # Any sum over trajectories, not the mean alone, in which much cancels.
    odd = np.random.default_rng(1).normal(size=len(samples.mass))
    for name, loss in losses.items():
        wanted = gradient_of((torch.tensor(odd) * (loss * real).sum(1)).sum(), own)
        edges = samples.on_edges(named[name].weights(samples))
        if "later" in name:
            edges = edges - named["exact in the loss"].weights(samples)
        np.testing.assert_allclose(odd @ edges @ samples.current.jacobian, wanted, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_what_is_drawn_says_what_is_summed_and_how_well_it_knows(samples):
    rows, more = referee(samples, GROUP, 20_000), referee(samples, GROUP, 80_000)
    parts = [row.part for row in rows]
    assert parts == sorted(parts, reverse=True)
    assert {*parts} == {"reward", "KL"}
    single = {**REWARD_ESTIMATORS, **KL_ESTIMATORS}
    targets = {"reward": samples.current.gradient, "KL": _kl(samples)}
    for row, again in zip(rows, more, strict=True):
        name, (mean, error) = row.moments.estimator, row.sampled
        if name in VALUES_FROM_ROLLOUTS:
            assert np.isnan([mean, error]).all()
            continue
        assert abs(mean - row.moments.along) < 5 * error
        assert error == pytest.approx(2 * again.sampled[1], rel=0.3)
        if name in single:
            target = targets[row.part]
            along = samples.on_edges(single[name].weights(samples)) @ samples.current.jacobian @ target
            spread = np.sqrt(samples.mass @ along**2 - (samples.mass @ along) ** 2) / (target @ target)
            assert error == pytest.approx(spread / 20_000**0.5, rel=0.3), name
            assert row.moments.samples == 1
    valued = {
        row.moments.estimator: row.moments.samples for row in rows if row.moments.estimator in VALUES_FROM_ROLLOUTS
    }
    assert [*VALUES_FROM_ROLLOUTS.values()] == [1, 4]
    # Two completions more in every state, or in the first alone, as none has more than four tokens.
    assert samples.real.shape[1] <= 4
    assert list(valued.values()) == pytest.approx([1 + 2 * samples.mass @ samples.lengths, 3.0])


@pytest.mark.slow
def test_groups_by_listing_every_one_of_them(samples):
    log_pi, own = taken(samples)
    returns, lengths = samples.returns, torch.tensor(samples.lengths)
    log_mu = log_pi.detach() - torch.tensor(samples.log_rho)
    rho = (log_pi - log_mu).exp()
    mean_ratio = ((log_pi - log_mu).sum(1) / lengths).exp()
    every, weights = samples.behaviour.trajectories, samples.behaviour.tree.weights
    stopped = np.array([tokens[-1] == STOP for tokens, _ in written(samples)])

    def sequence_loss(name, row, amount):
        amount = torch.tensor(amount)
        steps = slice(0, int(lengths[row]))
        if name == "GSPO":
            return clipped(mean_ratio[row], amount)
        if name == "CISPO":
            return (rho[row, steps].detach().clamp(max=1.28) * log_pi[row, steps] * amount).sum()
        loss = clipped(rho[row, steps], amount, 0.2, 0.28 if name == "DAPO" else 0.2).sum()
        return loss / (lengths[row] if name in ("GRPO", "GRPO without deviation") else 1)

    prompts = np.flatnonzero(weights > 0)
    chosen = [np.flatnonzero((every.prompt == p) & (every.probability > 0)) for p in prompts]
    # Only the likeliest completions, so that all groups can be listed; the budget ended some, and some pay alike.
    chosen = [rows[np.argsort(-every.probability[rows])[:5]] for rows in chosen]
    assert 0 < stopped[np.concatenate(chosen)].mean() < 1
    masses = np.zeros(len(returns))
    for rows in chosen:
        masses[rows] = np.exp(every.log_probability[rows])
        masses[rows] /= masses[rows].sum()
    groups = [
        (list(group), weights[prompt] * np.prod(masses[list(group)]))
        for prompt, rows in zip(prompts, chosen, strict=True)
        for group in itertools.product(rows, repeat=GROUP)
    ]
    few = _with_mass(samples, masses)
    for name, kind in GROUP_ESTIMATORS.items():
        base, what = name.partition(", ")[::2]
        base = name if what.startswith("sum") else base
        counts = np.ones(len(returns)) if base not in ("DAPO", "CISPO") else samples.lengths * 1.0
        counts = counts * stopped if "overlong" in what else counts
        listed = [
            (group, mass)
            for group, mass in groups
            if not ("equal groups" in what or "resampled" in what) or np.ptp(returns[group]) > 0
        ]
        kept = sum(mass for _, mass in listed)
        assert (kept < 0.95) == (len(listed) < len(groups))
        divisor = sum(mass * counts[group].mean() for group, mass in listed) / kept
        scores = {
            (row, sign): sign * gradient_of(sequence_loss(base, int(row), sign), own) * (counts[row] > 0) / divisor
            for row in np.concatenate(chosen)
            for sign in (1.0, -1.0)
        }
        mean, second = 0.0, 0.0
        for group, mass in listed:
            amounts = kind.advantages(returns[group][None])[0]
            g = sum(a * scores[row, 1.0 if a > 0 else -1.0] for a, row in zip(amounts, group, strict=True)) / GROUP
            mean, second = mean + mass / kept * g, second + mass / kept * g @ g
        found, (along, error) = _grouped(few, name, kind, GROUP, 30_000, 0)
        assert abs(along - found.along) <= 5 * error, name
        assert found.samples == pytest.approx(GROUP / kept), name
        assert found.variance == pytest.approx(second - mean @ mean, rel=1e-6, abs=1e-12), name
        assert found.bias == pytest.approx(np.linalg.norm(mean - samples.current.gradient), rel=1e-8, abs=1e-8), name


def _with_mass(samples, masses):
    """The same samples where a policy writes these trajectories only, with these probabilities given the prompt."""
    from types import SimpleNamespace

    every, behaviour = samples.behaviour.trajectories, samples.behaviour
    with np.errstate(divide="ignore"):
        logs = np.log(masses)
    weights = behaviour.tree.weights[every.prompt]
    few = SimpleNamespace(
        prompt=every.prompt, log_probability=logs, probability=weights * masses, length=every.length, row=every.row
    )
    return TwoPolicies(
        samples.current, SimpleNamespace(trajectories=few, tree=behaviour.tree, log_policy=behaviour.log_policy)
    )


@pytest.mark.parametrize(("stride", "rollouts"), [(1, 1), (2, 2), (4, 2)])
def test_values_of_completions_by_listing_what_they_may_be(samples, monkeypatch, stride, rollouts):
    monkeypatch.setattr("textgym_agents.exact.referee.ROLLOUTS", rollouts)
    ahead, jacobian = to_come(samples), samples.current.jacobian
    possible = {}
    for state, (returns, chances) in ahead.items():
        worth, place = np.unique(returns.round(12), return_inverse=True)
        mass = np.bincount(place, chances)
        means, masses = worth, mass
        if rollouts == 2:
            means, masses = ((worth[:, None] + worth) / 2).ravel(), (mass[:, None] * mass).ravel()
        possible[state] = (means, masses)
    mean, second, played = 0.0, 0.0, 1.0
    for row, (tokens, prompt) in enumerate(written(samples)):
        if samples.mass[row] == 0:
            continue
        begins = range(0, len(tokens), stride)
        states = [possible[prompt, tokens[:at]] for at in begins]
        grid = np.meshgrid(*(means for means, _ in states), indexing="ij")
        chance = np.ones(())
        for _, masses in states:
            chance = np.multiply.outer(chance, masses)
        values = [*(each.ravel() for each in grid), 0.0]
        g = 0.0
        for place, at in enumerate(begins):
            steps = slice(at, min(at + stride, len(tokens)))
            advantage = samples.rewards[row, steps].sum() + values[place + 1] - values[place]
            score = samples.rho[row, steps] @ jacobian[samples.current.steps.path[row, steps]]
            g = g + np.multiply.outer(advantage, score)
        weight = samples.mass[row] * chance.ravel()
        mean, second = mean + weight @ g, second + weight @ (g**2).sum(1)
        played += samples.mass[row] * rollouts * len(begins)
    found = _vine(samples, "", stride)
    assert found.bias == pytest.approx(np.linalg.norm(mean - samples.current.gradient), abs=1e-8)
    assert found.variance == pytest.approx(second - mean @ mean, rel=1e-8)
    assert found.samples == pytest.approx(played)


@pytest.mark.slow
def test_groups_that_are_drawn_agree_with_those_that_are_summed(samples, monkeypatch):
    rows = [row.moments for row in referee(samples, GROUP) if "groups of" in row.moments.estimator]
    monkeypatch.setattr("textgym_agents.exact.estimators._MOST_COUNTS", 0)
    drawn = [row.moments for row in referee(samples, GROUP) if "groups of" in row.moments.estimator]
    for exact, other in zip(rows, drawn, strict=True):
        assert exact.bias_error == exact.variance_error == 0
        assert other.bias_error > 0
        assert abs(other.bias - exact.bias) < 5 * other.bias_error
        assert abs(other.variance - exact.variance) < 5 * other.variance_error + other.bias_error * exact.bias * 20


@pytest.mark.slow
def test_what_is_known_of_samples_of_the_policy_itself():
    policy, _ = shifted()
    own = samples_of(prefix_tree(small_task()), policy, policy, bigram())
    found = {row.moments.estimator: row.moments for row in referee(own, GROUP)}
    for name in (*REWARD_ESTIMATORS, *VALUES_FROM_ROLLOUTS):
        if "GSPO" in name or "REINFORCE++" in name or "overlong" in name:
            continue
        assert found[name].relative_bias < 1e-8, name
    # Equal groups have no advantage: to leave them out is a scale, 1 / their share, and costs those that were played.
    kept, dropped, resampled = (
        found[f"RLOO{how}, groups of 3"] for how in ("", ", equal groups dropped", ", equal groups resampled")
    )
    assert dropped.cosine == pytest.approx(1)
    assert dropped.relative_bias == pytest.approx(dropped.samples / kept.samples - 1)
    assert (dropped.bias, dropped.variance, dropped.samples) == (resampled.bias, resampled.variance, resampled.samples)
    # What the budget has ended is a part of the gradient.
    assert found["RLOO, overlong masked, groups of 3"].cosine < 0.999
    assert found["token ratio, clipped, overlong masked"].cosine < 0.999
    assert found["RLOO, groups of 3"].relative_bias < 1e-8
    assert found["Dr. GRPO, groups of 3"].relative_bias == pytest.approx(1 / 3)
    assert found["Dr. GRPO, groups of 3"].cosine == pytest.approx(1)
    assert found["exact in the loss, later KL in the reward"].relative_bias < 1e-8
    assert found["k1 in the reward"].relative_bias < 1e-8
    assert found["k1 in the loss"].bias == pytest.approx(np.linalg.norm(_kl(own)), rel=1e-6)  # its mean is 0


@pytest.mark.slow
def test_what_is_known_of_samples_of_an_older_policy(samples):
    found = {row.moments.estimator: row.moments for row in referee(samples, GROUP)}
    for name in ("sequence ratio, whole return", "sequence ratio, advantages", "each reward by the ratio so far"):
        assert found[name].relative_bias < 1e-8, name
    for name in ("REINFORCE, no correction", "token ratio", "k1 in the reward"):
        assert found[name].relative_bias > 1e-3, name
    assert len(found) >= 24


def _kl(samples):
    from textgym_agents.exact.estimators import kl_gradient

    return kl_gradient(samples.current)


def test_drawn_groups_are_those_of_the_seed_and_of_so_many():
    def pay(prompts, completions, **columns):
        worth = {"a": 1.0, "b": 2.1, "c": 4.3}
        return [sum(worth[word] * (1 + 0.37 * i) for i, word in enumerate(text.split())) for text in completions]

    task = make_task(
        "Text", prompts=["a"], tokenizer=["a", "b", "c", "<end>"], stop="<end>", max_new_tokens=2, reward=pay
    )
    many = samples_of(task, Places(task, 1.0), Places(task, 0.5))
    kind = GROUP_ESTIMATORS["RLOO"]
    first, second, fewer = (_grouped(many, "RLOO", kind, 12, *how)[0] for how in ((2000, 0), (2000, 1), (200, 1)))
    assert first.along != second.along
    assert fewer.bias_error > 2 * second.bias_error


class Places(torch.nn.Module):
    """A policy of the place alone."""

    def __init__(self, task, size):
        super().__init__()
        count, words = task.max_new_tokens, task.vocabulary.size
        self.logits = torch.nn.Parameter(size * torch.linspace(-2, 2, count * words).double().reshape(count, words))

    def states(self, ids, rows, columns):
        return self.logits[columns], None


def test_the_reward_is_refereed_without_a_price():
    with pytest.raises(ValueError, match=r"beta=5\.0: .* allowed is 0"):
        samples_of(prefix_tree(small_task()), *shifted(), bigram(), beta=5.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"draws": 3}, "draws=3: allowed is an integer >= 8"),
        ({"group": 1}, "group=1: allowed is an integer >= 2"),
        ({"group": 2.5}, "group=2.5: allowed is an integer >= 2"),
        ({"seed": -1}, "seed=-1: allowed is an integer >= 0"),
    ],
)
def test_bad_numbers_are_named(samples, given, message):
    with pytest.raises(ValueError, match=message):
        referee(samples, **given)
