"""Check the update: its average is the gradient of the stated objective, and its variance is the estimator's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from textgym.checks import Floats, Ints
from textgym_agents.conformance.gradient import (
    EPISODES,
    TASKS,
    ExactGradients,
    UpdateRecord,
    plain_agent,
    probe_env,
    recording,
)
from textgym_agents.conformance.hooks import Estimator, hook
from textgym_agents.conformance.under_test import AgentUnderTest, NotAsked, Outcome, at_most, judge
from textgym_agents.exact.objective import kl_terms, log_ratios, state_sums, steps, to_go
from textgym_agents.protocol import Metrics, Observation


def exact_variance(
    exact: ExactGradients, estimator: Estimator, values: Callable[[Observation], Floats] | None, episodes: int
) -> tuple[float, float]:
    """Return the trace of the covariance of one batch's estimate of grad J, and how wide its spectrum is.

    With a baseline of other completions the estimate is a U-statistic of order 2, the mean over pairs x, y of
    h(x, y) = (a(x) - G(y) s(x) + a(y) - G(x) s(y)) / 2, where s is the score, G the return and a(x) the episode's term
    without baseline. For n of them its variance is 4 (n - 2) / (n (n - 1)) Var E[h given x] + 2 / (n (n - 1)) Var h.

    Args:
        estimator: the baseline, the credit and the KL. values: V(s), with the baseline "value".
        episodes: of a batch.
    Returns: E |g - E g|^2, and sqrt(tr(C^2)) / tr(C) in (0, 1], C being the covariance to first order.
    Source: Hoeffding (1948), A class of statistics with asymptotically normal distribution, section 5.
    """
    weight, prompt, score, term, returns = _episodes(exact, estimator, values)
    if estimator.baseline in ("none", "value"):
        total, spread = _covariance(weight, term)
        return total / episodes, spread
    if estimator.baseline == "batch":
        first, second, linear = _pairs(weight, score, term, returns)
        return _hoeffding(first, second, episodes), _covariance(weight, linear)[1]
    count, groups = estimator.group, episodes // estimator.group
    within, means, masses = 0.0, [], []
    linear = np.zeros_like(term)
    for own in (np.flatnonzero(prompt == index) for index in np.unique(prompt)):
        mass = float(weight[own].sum())
        shares = weight[own] / mass
        first, second, linear[own] = _pairs(shares, score[own], term[own], returns[own])
        within += mass * _hoeffding(first, second, count)
        means.append(shares @ linear[own])
        masses.append(mass)
    between, _ = _covariance(np.array(masses), np.array(means))
    return (within + between) / groups, _covariance(weight, linear)[1]


def _pairs(weight: Floats, score: Floats, term: Floats, returns: Floats) -> tuple[float, float, Floats]:
    """Return Var E[h given x], Var h, and the part that is linear in one episode, 2 E[h given x] less a constant."""
    mean_return, mean_term = float(weight @ returns), weight @ term
    conditional = (term - mean_return * score + mean_term) / 2  # the mean score is 0
    mean = weight @ conditional
    first = float(weight @ (conditional**2).sum(1)) - float(mean @ mean)
    # |h|^2 over all pairs from scalar products of the terms and scores alone.
    at, ss, as_ = (one @ other.T for one, other in ((term, term), (score, score), (term, score)))
    g = returns
    square = np.diag(at)[:, None] + g[None] ** 2 * np.diag(ss)[:, None] - 2 * g[None] * np.diag(as_)[:, None]
    cross = at - g[:, None] * as_ - g[None] * as_.T + np.outer(g, g) * ss.T
    squares = (square + square.T + 2 * cross) / 4
    second = float(weight @ squares @ weight) - float(mean @ mean)
    return first, second, 2 * conditional - mean_term


def _hoeffding(first: float, second: float, count: int) -> float:
    return (4 * (count - 2) * first + 2 * second) / (count * (count - 1))


def _covariance(weight: Floats, term: Floats) -> tuple[float, float]:
    """Return its trace, and sqrt(tr(C^2)) / tr(C)."""
    centred = np.sqrt(weight)[:, None] * (term - weight @ term)
    gram = centred @ centred.T
    total = float(np.trace(gram))
    return total, float(np.sqrt((gram**2).sum())) / max(total, 1e-300)


def _episodes(
    exact: ExactGradients, estimator: Estimator, values: Callable[[Observation], Floats] | None
) -> tuple[Floats, Ints, Floats, Floats, Floats]:
    """Return of every trajectory probability (N,), prompt (N,), score (N, D), term a (N, D) and return G (N,)."""
    own, size = exact.values, exact.tree.task.vocabulary.size
    every, taken = own.trajectories, steps(own)
    later = np.pad(taken.kl[:, 1:], ((0, 0), (0, 1)))
    credit = to_go(taken.rewards - own.beta * (taken.log_ratio if estimator.kl == "k1" else later))
    returns = credit[:, 0]
    row, step = np.nonzero(taken.path >= 0)
    state, action = np.divmod(exact.edge[taken.path[row, step]], size)
    weights = credit[row, step] if estimator.to_go else returns[row]
    if values is not None:
        weights = weights - critic_values(exact, values)[state]
    probability = exact.mass.reshape(-1, size)
    with np.errstate(divide="ignore", invalid="ignore"):
        policy = np.where(probability > 0, probability / probability.sum(1, keepdims=True), 0.0)
    slopes = -policy[state]
    slopes[np.arange(len(state)), action] += 1
    score, term = np.zeros((2, len(returns), *policy.shape))
    score[row, state] = slopes
    term[row, state] = weights[:, None] * slopes
    if estimator.kl == "exact":
        ratios = exact.per_edge(log_ratios(own)).reshape(policy.shape)
        gaps = ratios[state] - taken.kl[row, step][:, None]
        term[row, state] -= own.beta * policy[state] * gaps
    flat = (len(returns), policy.size)
    return every.probability, every.prompt, score.reshape(flat), term.reshape(flat), returns


def critic_values(exact: ExactGradients, values: Callable[[Observation], Floats]) -> Floats:
    """Return (S,) V of an agent in every running state, reward units."""
    levels = enumerate(exact.tree.levels[:-1])
    parts = [values(exact.tree.observations(depth, level.running)) for depth, level in levels]
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])


_SIGMAS = 3.0
_LEAST_USED = 0.9
_CLIPS = np.array([0.3, 0.6, 0.97, 1.03, 1.6, 3.0])  # ratios


@dataclass(frozen=True)
class Fit:
    """Updates regressed on the exact gradients.

    Attributes:
        coefficients: (M, 3) of each batch, of E[R], KL and entropy.
        rests: (M, D) what is left of each batch.
        condition: number of the regressors, scaled to length 1.
        beta, entropy: what the agent says of itself.
    """

    coefficients: Floats
    rests: Floats
    condition: float
    beta: float
    entropy: float

    @property
    def factor(self) -> tuple[float, float]:
        """Mean and standard error of the coefficient of E[R], which is the common factor."""
        return _mean(self.coefficients[:, 0])

    def contrast(self, part: int, wanted: float) -> tuple[float, float]:
        """Return how far a coefficient is from `wanted` times that of E[R], over the latter, and its standard error."""
        own = self.coefficients
        mean, error = _mean(own[:, part] - wanted * own[:, 0])
        factor = own[:, 0].mean()
        return mean / factor, error / abs(factor)


def common_rest(rests: Floats) -> tuple[float, float]:
    """Return what the rests (M, D) of all batches have in common, in standard errors, and its length.

    It is the inner product of the mean rests of two halves of the batches, and its root. The noise of one half is
    independent of that of the other: only what is in both is left on average.
    """
    half = len(rests) // 2
    one, other = rests[:half], rests[half:]
    product = float(one.mean(0) @ other.mean(0))
    scatter = (one - one.mean(0)) @ (other - other.mean(0)).T
    error = float(np.sqrt((scatter**2).sum())) / scatter.size
    return product / max(error, 1e-300), float(np.sqrt(max(product, 0.0)))


def fit(found: UpdateRecord) -> Fit:
    """Return the least-squares fit of every batch's update."""
    parts = found.exact.parts
    coefficients = found.updates @ np.linalg.pinv(parts).T
    lengths = np.linalg.norm(parts, axis=0)
    return Fit(
        coefficients,
        found.updates - coefficients @ parts.T,
        float(np.linalg.cond(parts / lengths)),
        found.first.beta,
        found.first.entropy,
    )


def gradient(tested: AgentUnderTest, name: str) -> Outcome:
    """The update is that of J: coefficients 1, -beta and the logged entropy bonus up to one factor, and no rest."""
    found = recording(tested, name)
    illegal = np.abs(found.updates[:, found.exact.mass == 0]).max(initial=0.0)
    if illegal > 1e-6 * np.abs(found.updates).max():
        return judge(False, f"gradient {illegal:.2g} on tokens that are not allowed", "none")
    own = fit(found)
    factor, error = own.factor
    if not factor > _SIGMAS * error:
        return judge(False, f"coefficient of E[R] {factor:.3g} +- {error:.2g}", "above 0 by 3 standard errors")
    kl, bonus = own.contrast(1, -own.beta), own.contrast(2, own.entropy)
    rest, size = common_rest(own.rests)
    worst = max(abs(kl[0]) / kl[1], abs(bonus[0]) / bonus[1], rest)
    return judge(
        bool(worst <= _SIGMAS),
        f"KL {kl[0] - own.beta:.3f} +- {kl[1]:.3f}, entropy {bonus[0] + own.entropy:.3f} +- {bonus[1]:.3f}, "
        f"rest {size / np.linalg.norm(found.updates.mean(0)):.3f} ({rest:.1f} standard errors), "
        f"condition {own.condition:.1f}",
        f"KL {-own.beta:g}, entropy {own.entropy:g}, rest 0, within {_SIGMAS:g} standard errors",
    )


def states_used(tested: AgentUnderTest) -> Outcome:
    """Every state that was played gets a gradient, and nothing else does: no padding, nothing behind the end."""
    found = recording(tested, "plain")
    share = found.used / max(found.played, 1)
    return judge(
        bool(_LEAST_USED <= share <= 1.0) and not found.foreign,
        f"{share:.3f} of {found.played} states used, {found.foreign} gradients where nobody acts",
        f"at least {_LEAST_USED:.2f}, none",
    )


def variance(tested: AgentUnderTest) -> Outcome:
    """The scatter of the updates is that of the estimator that the agent says it has, on batches of this size."""
    found = recording(tested, "plain")
    estimator = found.first.estimator
    if estimator is None:
        raise NotAsked("hook 'gradient' says no estimator")
    values = hook(found.agent, "values") if estimator.baseline == "value" else None
    exact, spread = exact_variance(found.exact, estimator, values, EPISODES)
    own = fit(found)
    factor, error = own.factor
    scatter = float(found.updates.var(0, ddof=1).sum()) / factor**2
    # Relative error of a sum of chi-squares, and that of the factor which it is measured in.
    relative = spread * np.sqrt(2 / (len(found.updates) - 1)) + 2 * error / abs(factor)
    return judge(
        bool(abs(scatter / exact - 1) <= _SIGMAS * relative),
        f"{scatter / exact:.2f} times the exact variance",
        f"1, within {_SIGMAS:g} standard errors of {relative:.2f}",
    )


def value_loss(tested: AgentUnderTest) -> Outcome:
    """The gradient on V(s) is that of a squared error to the return to come, over the states that were played."""
    found = recording(tested, "plain")
    if found.values is None:
        raise NotAsked("hook 'gradient' has no values")
    exact = found.exact
    tree = exact.tree
    agent_values = critic_values(exact, hook(found.agent, "values"))
    visits = exact.per_state([tree.weights[p] * r for p, r in zip(tree.prompt_of, exact.values.reach, strict=True)])
    # V(s) may be taught J to come, or the same without the KL of s itself.
    whole = exact.per_state(exact.values.values)
    kl = exact.per_state(state_sums(tree, kl_terms(exact.values)))
    judged = []
    for target in (whole, whole + found.first.beta * kl):
        part = visits * (agent_values - target)
        slopes = found.values @ part / (part @ part)
        z, size = common_rest(found.values - slopes[:, None] * part)
        slope, error = _mean(slopes)
        share = size / float(np.linalg.norm(found.values.mean(0)))
        judged.append((z, share, slope > _SIGMAS * error))
    rest, share, along = min(judged, key=lambda entry: entry[0])
    return judge(
        bool(rest <= _SIGMAS) and along,
        f"rest {share:.3f} ({rest:.1f} standard errors), {'along' if along else 'not along'} V - return",
        f"rest 0, within {_SIGMAS:g} standard errors",
    )


def clipping(tested: AgentUnderTest) -> Outcome:
    """At ratios away from 1 the surrogate is rho A or a lower bound of it: flat only where it has improved already."""
    agent = plain_agent(tested, probe_env(TASKS["plain"](), EPISODES), False)
    surrogate = hook(agent, "surrogate")
    ratios = np.tile(_CLIPS, 2)
    advantages = np.repeat([1.0, -1.0], len(_CLIPS))
    step = 1e-4

    def loss(shift: float) -> Floats:
        return np.asarray(surrogate(np.log(ratios) + shift, advantages), dtype=np.float64)

    slopes = -(loss(step) - loss(-step)) / (2 * step)
    full, plain = ratios * advantages, advantages
    improved = (advantages > 0) == (ratios > 1)
    near = np.abs(ratios - 1) < 0.05
    fits = [np.abs(slopes - form) <= 1e-2 * np.abs(form) for form in (full, plain)]
    flat = np.abs(slopes) <= 1e-6
    right = [form | (flat & improved & ~near) for form in fits]
    wrong = ~right[0] if right[0].sum() >= right[1].sum() else ~right[1]
    told = ", ".join(
        f"slope {s:.2g} at ratio {r:g} and A {a:+g}"
        for s, r, a in zip(slopes[wrong], ratios[wrong], advantages[wrong], strict=True)
    )
    return judge(not wrong.any(), told or "as a lower bound", "rho A, or 0 where the ratio has gone A's way")


def masked_ratio(tested: AgentUnderTest) -> Outcome:
    """Under a grammar the policy that is scored is the one that sampled: in the first step its ratio is 1."""
    env = probe_env(TASKS["masked"](), tested.envs)
    agent = plain_agent(tested, env, True)
    rows: list[Metrics] = []
    agent.learn(env, tested.envs, rows.append)
    name = next((n for n in ("val/first_ratio", "val/ratio") if rows and n in rows[0]), None)
    if name is None:
        raise NotAsked("the agent does not log 'val/first_ratio'")
    if name == "val/ratio" and rows[0].get("updates") != 1:
        raise NotAsked("'val/ratio' is a mean over several steps; no 'val/first_ratio'")
    return at_most("|ratio - 1|", abs(rows[0][name] - 1), 1e-5)


def _mean(numbers: Floats) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(numbers.mean()), float(numbers.std(ddof=1) / np.sqrt(len(numbers)))
