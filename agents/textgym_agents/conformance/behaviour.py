"""Check an agent from outside: its distribution, repetition, logged numbers and learning."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from textgym import TokenVectorEnv
from textgym.checks import Floats, token_counts
from textgym.solver import PolicyValues, policy_values, solve
from textgym_agents.conformance.under_test import (
    AgentUnderTest,
    LearningTask,
    NotAsked,
    Outcome,
    at_most,
    global_generators,
    judge,
)
from textgym_agents.protocol import Agent, Metrics, Observation
from textgym_agents.registry import make_env

_ROUNDING = 1e-5  # nats, of float32 sums that another width orders differently
_DRAWS = 4096
_SIGMAS = 5.0


def normalised(tested: AgentUnderTest) -> Outcome:
    """Every row of probabilities sums to 1."""
    logs = tested.log_probs(tested.training.agent)
    want = (len(tested.states["input_ids"]), tested.task.vocabulary.size)
    if logs.shape != want:
        return judge(False, f"shape {logs.shape}", f"shape {want}")
    return at_most("|sum of probabilities - 1|", float(np.abs(np.exp(logs).sum(1) - 1).max()), _ROUNDING)


def masked(tested: AgentUnderTest) -> Outcome:
    """Tokens that are not allowed have probability 0, and are never drawn."""
    agent = tested.training.agent
    forbidden = ~tested.task.vocabulary.allowed
    drawn = np.concatenate([agent.act(tested.states) for _ in range(16)])
    taken = int(forbidden[drawn].sum())
    if taken:
        return judge(False, f"{taken} of {len(drawn)} drawn tokens not allowed", "none")
    share = float(np.exp(tested.log_probs(agent))[:, forbidden].max())
    return at_most("greatest probability of a token that is not allowed:", share, 0.0)


def pad_columns(tested: AgentUnderTest) -> Outcome:
    """More columns of padding change nothing."""
    pad = tested.task.vocabulary.pad_id
    wider = {
        name: np.pad(array, ((0, 0), (0, 5)), constant_values=pad if name == "input_ids" else 0)
        for name, array in tested.states.items()
    }
    return _unchanged(tested, wider)


def pad_ids(tested: AgentUnderTest) -> Outcome:
    """The contents of the padding change nothing: lengths come from the mask."""
    pad = tested.task.vocabulary.pad_id
    other = next(i for i in range(tested.task.vocabulary.size) if i != pad)
    ids = np.where(tested.states["attention_mask"] == 1, tested.states["input_ids"], other)
    return _unchanged(tested, {**tested.states, "input_ids": ids})


def later_tokens(tested: AgentUnderTest) -> Outcome:
    """The token that comes after a state changes nothing in it."""
    worst = float(np.max([_difference(tested, edited) for edited in next_tokens(tested.states, 3)]))
    return at_most("greatest change of a log-probability", worst, _ROUNDING)


def next_tokens(observation: Observation, count: int) -> list[Observation]:
    """Return the observation with token 0, 1, ... written behind every state, outside the mask."""
    lengths = token_counts(observation)
    rows = np.flatnonzero(lengths < observation["input_ids"].shape[1])
    result: list[Observation] = []
    for token in range(count):
        ids = observation["input_ids"].copy()
        ids[rows, lengths[rows]] = token
        result.append({**observation, "input_ids": ids})
    return result


def likeliest(tested: AgentUnderTest) -> Outcome:
    """`act(deterministic=True)` takes a token of the greatest log-probability."""
    agent = tested.training.agent
    logs = tested.log_probs(agent)
    taken = np.asarray(agent.act(tested.states, deterministic=True))
    gap = logs.max(1) - logs[np.arange(len(taken)), taken]
    return at_most("nats below the likeliest token:", float(gap.max()), _ROUNDING)


def sampled(tested: AgentUnderTest) -> Outcome:
    """`act` draws every token as often as `log_probs` says, within 5 standard errors."""
    agent = tested.training.agent
    probs = np.exp(tested.log_probs(agent))
    # The first and the last state are far apart; in between, the one that is decided least.
    entropy = -(probs * np.log(np.maximum(probs, 1e-300))).sum(1)
    worst = 0.0
    for state in {0, int(entropy.argmax()), len(probs) - 1}:
        repeated = {name: np.repeat(a[state : state + 1], _DRAWS, axis=0) for name, a in tested.states.items()}
        counts = np.bincount(np.asarray(agent.act(repeated)), minlength=probs.shape[1])
        p = probs[state]
        # Half a draw is added: at tiny p the count is Poisson and its variance no guide.
        errors = np.abs(counts - _DRAWS * p) / np.sqrt(_DRAWS * p * (1 - p) + 0.5)
        worst = float(np.maximum(worst, errors.max()))
    return at_most(f"greatest deviation in {_DRAWS} draws, standard errors:", worst, _SIGMAS)


def _unchanged(tested: AgentUnderTest, observation: Observation) -> Outcome:
    return at_most("greatest change of a log-probability", _difference(tested, observation), _ROUNDING)


def _difference(tested: AgentUnderTest, observation: Observation) -> float:
    agent = tested.training.agent
    return largest_difference(tested.log_probs(agent), tested.log_probs(agent, observation))


def largest_difference(one: Floats, other: Floats) -> float:
    """Return the greatest |a - b| of two arrays of logs; minus infinity equals itself."""
    with np.errstate(invalid="ignore"):
        gaps = np.where(one == other, 0.0, np.abs(one - other))
    return float(gaps.max())


def _same(one: Floats, other: Floats) -> Outcome:
    return at_most("greatest difference of a log-probability", largest_difference(one, other), 0.0)


def same_seed(tested: AgentUnderTest) -> Outcome:
    """Two trainings with the same seed give the same policy, whatever the global generators hold."""
    first, _ = tested.whole
    with global_generators(1):
        env = tested.env()
        agent = tested.make(env)
        agent.learn(env, tested.episodes)
        return _same(tested.log_probs(first), tested.log_probs(agent))


def global_random_numbers(tested: AgentUnderTest) -> Outcome:
    """Learning and acting draw no number from the global generators."""
    env = tested.env()
    agent = tested.make(env)
    with global_generators(0) as drawn_from:
        agent.learn(env, tested.envs)
        agent.act(tested.states)
        touched = drawn_from()
    return judge(not touched, f"drawn from: {', '.join(touched) or 'none'}", "drawn from: none")


def round_trip(tested: AgentUnderTest) -> Outcome:
    """An agent that was saved and loaded gives the same log-probabilities."""
    agent = tested.training.agent
    loaded = _through_a_folder(agent, tested.env())
    return _same(tested.log_probs(agent), tested.log_probs(loaded))


def resumed(tested: AgentUnderTest) -> Outcome:
    """Learning, saving, loading and learning on gives the policy of an uninterrupted training, bit for bit."""
    whole, calls = tested.whole
    if calls < 2:
        raise NotAsked(f"learn calls its callback {calls} times: it cannot be interrupted halfway")
    part_env = tested.env()
    part = tested.make(part_env)
    half = calls // 2
    stopped, learned = _learn_counting(part, part_env, tested.episodes, half)
    if stopped != half:
        raise NotAsked("learn goes on after its callback returned True")
    rest = tested.episodes - (half * (tested.episodes // calls) if learned is None else learned)
    after_env = tested.env()
    after = _through_a_folder(part, after_env)
    after.learn(after_env, rest)
    return _same(tested.log_probs(whole), tested.log_probs(after))


def _learn_counting(
    agent: Agent, env: TokenVectorEnv, episodes: int, stop_after: int | None = None
) -> tuple[int, int | None]:
    """Learn and stop after so many iterations. Returns: calls of the callback, and the episodes that it was told of."""
    rows: list[Metrics] = []

    def count(metrics: Metrics) -> bool:
        rows.append(metrics)
        return len(rows) == stop_after

    agent.learn(env, episodes, count)
    return len(rows), int(rows[-1]["episode"]) if rows and "episode" in rows[-1] else None


def _through_a_folder(agent: Agent, env: TokenVectorEnv) -> Agent:
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent")
        return type(agent).load(Path(folder) / "agent", env)


_FLOAT32 = 1e-4  # relative and absolute, of numbers that were summed in float32


def first_ratio(tested: AgentUnderTest) -> Outcome:
    """In the first step of every update the policy is the one that sampled: its ratio is 1, and nothing is clipped."""
    try:
        ratios = tested.metric("val/first_ratio")
    except NotAsked:
        steps, ratios = tested.metric("updates"), tested.metric("val/ratio")
        if max(steps) > 1:
            raise NotAsked("'val/ratio' is a mean over several steps; no 'val/first_ratio'") from None
    clipped = [row.get("val/first_clipfrac", 0.0) for row in tested.training.rows]
    worst = float(np.abs(np.array(ratios) - 1).max() + np.max(clipped))
    return at_most("greatest |ratio - 1| (plus clipped share)", worst, 1e-5)


def starts_at_the_reference(tested: AgentUnderTest) -> Outcome:
    """Before any update the policy is the reference."""
    agent = tested.make(tested.env())
    if agent.plans:
        raise NotAsked("the agent plans before it has learned")
    if agent.greedy:
        raise NotAsked("the agent is greedy: it never is the reference")
    tested.log_probs(agent)
    kl = policy_values(tested.tree, agent).kl
    return at_most("exact KL of the untrained policy, nats:", kl, 1e-4)


def logged_kl(tested: AgentUnderTest) -> Outcome:
    """'objective/kl' is the mean over episodes of the sum over tokens: it scatters around the exact KL."""
    exact = _sampled(tested)
    logged = tested.metric("objective/kl")
    if max(values.kl for values in exact) < 1e-3:
        raise NotAsked("the policy does not leave the reference in the probe training")
    # The variance of the log-ratio of one episode; summing exact KLs instead scatters less.
    error = _standard_errors(tested, logged, [v.kl for v in exact], lambda v: v.trajectories.log_ratio)
    mean = float(np.mean([values.kl for values in exact]))
    return at_most(f"|mean logged - exact {mean:.4g} nats|, standard errors:", error, _SIGMAS)


def logged_scores(tested: AgentUnderTest) -> Outcome:
    """'objective/scores' is the mean of the environment's returns: it scatters around the exact return."""
    returns = [values.expected_return for values in _sampled(tested)]
    logged = tested.metric("objective/scores")
    error = _standard_errors(tested, logged, returns, lambda v: v.trajectories.returns)
    return at_most("|mean logged - exact|, standard errors:", error, _SIGMAS)


def rlhf_reward(tested: AgentUnderTest) -> Outcome:
    """'objective/rlhf_reward' is the score less beta times the KL."""
    reward, score, kl = (np.array(tested.metric(f"objective/{name}")) for name in ("rlhf_reward", "scores", "kl"))
    beta = np.array([row.get("objective/beta", tested.task.beta) for row in tested.training.rows])
    gap = float(np.abs(reward - (score - beta * kl)).max())
    return at_most("|rlhf_reward - (scores - beta kl)|", gap, _FLOAT32)


def _sampled(tested: AgentUnderTest) -> list[PolicyValues]:
    training = tested.training
    if not training.rows:
        raise NotAsked("learn never calls its callback")
    if training.sampled is None:
        raise NotAsked("log_probs gives None")
    return training.sampled


def _standard_errors(
    tested: AgentUnderTest, logged: list[float], exact: list[float], per_episode: Callable[[PolicyValues], Floats]
) -> float:
    """Return how many standard errors the sum of batch means is from the sum of what they estimate.

    Args:
        logged, exact: one number per iteration.
        per_episode: the number of every trajectory (N,) whose mean is logged.
    """
    variance = 0.0
    for values in _sampled(tested):
        weights = values.trajectories.probability
        numbers = np.where(weights > 0, per_episode(values), 0.0)
        variance += float((weights * (numbers - weights @ numbers) ** 2).sum())
    episodes = tested.episodes / len(tested.training.rows)
    return abs(sum(logged) - sum(exact)) / (math.sqrt(variance / episodes) + _FLOAT32 * len(exact))


ENOUGH = 0.95
_ENVS = 128  # where an agent's own batch is larger, or not set, or it has none: the tasks are small

DEFAULT_TASKS = {
    "Bandit": LearningTask("textgym/Bandit-v0"),
    "Delayed": LearningTask("textgym/Delayed-v0"),
    "Stop": LearningTask("textgym/Stop-v0"),
}


def learns(tested: AgentUnderTest, name: str) -> Outcome:
    """Reaches 0.95 of the way from the reference's J to the optimum's within the budget, or half of it."""
    if name not in tested.learning:
        raise NotAsked(f"learning {name} was not asked for")
    problem = tested.learning[name]
    small = make_env(problem.id, 2, **problem.options)
    agent = tested.make(small)
    if agent.greedy:
        raise NotAsked("the agent is greedy: no policy without entropy comes near this optimum")
    if agent.offline:
        raise NotAsked("the agent learns from texts that others wrote, and cannot learn what these leave open")
    tokens = agent.objective_tokens
    if tokens is not None and small.unwrapped.task.max_new_tokens > tokens:
        raise NotAsked(f"the agent optimises J on tasks of up to {tokens} tokens only")
    own = getattr(agent.config, "batch", None)
    if own is None or own > _ENVS:
        own = _ENVS - _ENVS % agent.group
    count = own if problem.envs is None else problem.envs
    reached, budget = -math.inf, 0
    # Half of the budget is enough for most; a schedule spans what it is given, so that the other try starts afresh.
    for budget in (max(problem.episodes // 2, 1), problem.episodes):
        env = make_env(problem.id, count, **problem.options)
        solution = solve(env.unwrapped.task)
        agent = tested.make(env)
        agent.learn(env, budget)
        if agent.log_probs(solution.tree.observations(0, solution.tree.levels[0].running)) is None:
            raise NotAsked("log_probs gives None")
        reached = solution.optimality(policy_values(solution.tree, agent).objective)
        if reached >= ENOUGH:
            break
    return judge(reached >= ENOUGH, f"optimality {reached:.3f} after {budget} episodes", f"at least {ENOUGH}")
