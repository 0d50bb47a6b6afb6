"""Checks of an agent from outside: its distribution, repetition, logged numbers and learning."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from textgym.solver import PolicyValues, policy_values, solve
from textgym_agents.conformance.subject import (
    LearningTask,
    NotAsked,
    Outcome,
    Subject,
    at_most,
    global_generators,
    judge,
)
from textgym_agents.protocol import Agent, Observation

_ROUNDING = 1e-5  # nats, of float32 sums that another width orders differently
_DRAWS = 4096
_SIGMAS = 5.0


def normalised(subject: Subject) -> Outcome:
    """Every row of probabilities sums to 1."""
    logs = subject.log_probs(subject.training.agent)
    want = (len(subject.states["input_ids"]), subject.task.vocabulary.size)
    if logs.shape != want:
        return judge(False, f"shape {logs.shape}", f"shape {want}")
    return at_most("|sum of probabilities - 1|", float(np.abs(np.exp(logs).sum(1) - 1).max()), _ROUNDING)


def masked(subject: Subject) -> Outcome:
    """Tokens that are not allowed have probability 0, and are never drawn."""
    agent = subject.training.agent
    forbidden = ~subject.task.vocabulary.allowed
    drawn = np.concatenate([agent.act(subject.states) for _ in range(16)])
    taken = int(forbidden[drawn].sum())
    if taken:
        return judge(False, f"{taken} of {len(drawn)} drawn tokens not allowed", "none")
    share = float(np.exp(subject.log_probs(agent))[:, forbidden].max())
    return at_most("greatest probability of a token that is not allowed:", share, 0.0)


def pad_columns(subject: Subject) -> Outcome:
    """More columns of padding change nothing."""
    pad = subject.task.vocabulary.pad_id
    wider = {
        name: np.pad(array, ((0, 0), (0, 5)), constant_values=pad if name == "input_ids" else 0)
        for name, array in subject.states.items()
    }
    return _unchanged(subject, wider)


def pad_ids(subject: Subject) -> Outcome:
    """What stands in the padding changes nothing: lengths come from the mask."""
    pad = subject.task.vocabulary.pad_id
    other = next(i for i in range(subject.task.vocabulary.size) if i != pad)
    ids = np.where(subject.states["attention_mask"] == 1, subject.states["input_ids"], other)
    return _unchanged(subject, {**subject.states, "input_ids": ids})


def later_tokens(subject: Subject) -> Outcome:
    """The token that comes after a state changes nothing in it."""
    worst = max(_difference(subject, edited) for edited in next_tokens(subject.states, 3))
    return at_most("greatest change of a log-probability", worst, _ROUNDING)


def next_tokens(observation: Observation, count: int) -> list[Observation]:
    """The observation with token 0, 1, ... written behind every state, outside the mask."""
    lengths = np.count_nonzero(observation["attention_mask"], axis=1)
    rows = np.flatnonzero(lengths < observation["input_ids"].shape[1])
    result: list[Observation] = []
    for token in range(count):
        ids = observation["input_ids"].copy()
        ids[rows, lengths[rows]] = token
        result.append({**observation, "input_ids": ids})
    return result


def likeliest(subject: Subject) -> Outcome:
    """`act(deterministic=True)` takes a token of the greatest log-probability."""
    agent = subject.training.agent
    logs = subject.log_probs(agent)
    taken = np.asarray(agent.act(subject.states, deterministic=True))
    gap = logs.max(1) - logs[np.arange(len(taken)), taken]
    return at_most("nats below the likeliest token:", float(gap.max()), _ROUNDING)


def sampled(subject: Subject) -> Outcome:
    """`act` draws every token as often as `log_probs` says, within 5 standard errors."""
    agent = subject.training.agent
    probs = np.exp(subject.log_probs(agent))
    # The first and the last state are far apart; in between, the one that is decided least.
    entropy = -(probs * np.log(np.maximum(probs, 1e-300))).sum(1)
    worst = 0.0
    for state in {0, int(entropy.argmax()), len(probs) - 1}:
        repeated = {
            name: np.repeat(a[state : state + 1], _DRAWS, axis=0) for name, a in subject.states.items()
        }
        counts = np.bincount(np.asarray(agent.act(repeated)), minlength=probs.shape[1])
        p = probs[state]
        # Half a draw is added: at tiny p the count is Poisson and its variance no guide.
        errors = np.abs(counts - _DRAWS * p) / np.sqrt(_DRAWS * p * (1 - p) + 0.5)
        worst = max(worst, float(errors.max()))
    return at_most(f"greatest deviation in {_DRAWS} draws, standard errors:", worst, _SIGMAS)


def _unchanged(subject: Subject, observation: Observation) -> Outcome:
    return at_most("greatest change of a log-probability", _difference(subject, observation), _ROUNDING)


def _difference(subject: Subject, observation: Observation) -> float:
    agent = subject.training.agent
    return largest_difference(subject.log_probs(agent), subject.log_probs(agent, observation))


def largest_difference(one: Any, other: Any) -> float:
    """The greatest |a - b| of two arrays of logs; minus infinity equals itself."""
    with np.errstate(invalid="ignore"):
        gaps = np.where(one == other, 0.0, np.abs(one - other))
    return float(gaps.max())


def same_seed(subject: Subject) -> Outcome:
    """Two trainings with the same seed give the same policy, whatever the global generators hold."""
    results = []
    for seed in (0, 1):
        with global_generators(seed):
            env = subject.env()
            agent = subject.make(env)
            agent.learn(env, subject.episodes)
            results.append(subject.log_probs(agent))
    return at_most("greatest difference of a log-probability", largest_difference(*results), 0.0)


def global_random_numbers(subject: Subject) -> Outcome:
    """Learning and acting draw no number from the global generators."""
    env = subject.env()
    agent = subject.make(env)
    with global_generators(0) as drawn_from:
        agent.learn(env, subject.envs)
        agent.act(subject.states)
        touched = drawn_from()
    return judge(not touched, f"drawn from: {', '.join(touched) or 'none'}", "drawn from: none")


def round_trip(subject: Subject) -> Outcome:
    """An agent that was saved and loaded gives the same log-probabilities."""
    agent = subject.training.agent
    loaded = _through_a_folder(agent, subject.env())
    difference = largest_difference(subject.log_probs(agent), subject.log_probs(loaded))
    return at_most("greatest difference of a log-probability", difference, 0.0)


def resumed(subject: Subject) -> Outcome:
    """Learning, saving, loading and learning on gives the policy of an uninterrupted training, bit for bit."""
    env = subject.env()
    whole = subject.make(env)
    calls = _learn_counting(whole, env, subject.episodes)
    if calls < 2:
        raise NotAsked(f"learn calls its callback {calls} times: it cannot be interrupted halfway")
    part_env = subject.env()
    part = subject.make(part_env)
    half = calls // 2
    if _learn_counting(part, part_env, subject.episodes, half) != half:
        raise NotAsked("learn goes on after its callback returned True")
    rest = subject.episodes - half * (subject.episodes // calls)
    after_env = subject.env()
    after = _through_a_folder(part, after_env)
    after.learn(after_env, rest)
    difference = largest_difference(subject.log_probs(whole), subject.log_probs(after))
    return at_most("greatest difference of a log-probability", difference, 0.0)


def _learn_counting(agent: Agent, env: Any, episodes: int, stop_after: int | None = None) -> int:
    """Learns, stopping after so many iterations. Returns: the number of calls of the callback."""
    calls = 0

    def count(metrics: dict[str, float]) -> bool:
        nonlocal calls
        calls += 1
        return calls == stop_after

    agent.learn(env, episodes, count)
    return calls


def _through_a_folder(agent: Agent, env: Any) -> Agent:
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent")
        return type(agent).load(Path(folder) / "agent", env)


_FLOAT32 = 1e-4  # relative and absolute, of numbers that were summed in float32


def first_ratio(subject: Subject) -> Outcome:
    """In the first step of every update the policy is the one that sampled: its ratio is 1, and nothing is clipped."""
    try:
        ratios = subject.metric("val/first_ratio")
    except NotAsked:
        steps, ratios = subject.metric("updates"), subject.metric("val/ratio")
        if max(steps) > 1:
            raise NotAsked("'val/ratio' is a mean over several steps; no 'val/first_ratio'") from None
    clipped = [row.get("val/first_clipfrac", 0.0) for row in subject.training.rows]
    worst = max(abs(ratio - 1) for ratio in ratios) + max(clipped)
    return at_most("greatest |ratio - 1| (plus clipped share)", worst, 1e-5)


def starts_at_the_reference(subject: Subject) -> Outcome:
    """Before any update the policy is the reference."""
    agent = subject.make(subject.env())
    if agent.plans:
        raise NotAsked("the agent plans before it has learned")
    if agent.greedy:
        raise NotAsked("the agent is greedy: it never is the reference")
    subject.log_probs(agent)
    kl = policy_values(subject.tree, agent).kl
    return at_most("exact KL of the untrained policy, nats:", kl, 1e-4)


def logged_kl(subject: Subject) -> Outcome:
    """'objective/kl' is the mean over episodes of the sum over tokens: it scatters around the exact KL."""
    exact = _sampled(subject)
    logged = subject.metric("objective/kl")
    if max(values.kl for values in exact) < 1e-3:
        raise NotAsked("the policy does not leave the reference in the probe training")
    variance = sum(_log_ratio_variance(values) for values in exact) / _batch(subject)
    gap = abs(sum(logged) - sum(values.kl for values in exact))
    error = math.sqrt(variance) + _FLOAT32 * len(exact)
    return at_most(f"|mean logged - exact {_mean(exact):.4g} nats|, standard errors:", gap / error, _SIGMAS)


def logged_scores(subject: Subject) -> Outcome:
    """'objective/scores' is the mean of the environment's returns: it scatters around the exact return."""
    exact = _sampled(subject)
    logged = subject.metric("objective/scores")
    variance = sum(_return_variance(values) for values in exact) / _batch(subject)
    gap = abs(sum(logged) - sum(values.expected_return for values in exact))
    error = math.sqrt(variance) + _FLOAT32 * len(exact)
    return at_most("|mean logged - exact|, standard errors:", gap / error, _SIGMAS)


def rlhf_reward(subject: Subject) -> Outcome:
    """'objective/rlhf_reward' is the score less beta times the KL."""
    reward, score, kl = (
        np.array(subject.metric(f"objective/{name}")) for name in ("rlhf_reward", "scores", "kl")
    )
    beta = np.array([row.get("objective/beta", subject.task.beta) for row in subject.training.rows])
    gap = float(np.abs(reward - (score - beta * kl)).max())
    return at_most("|rlhf_reward - (scores - beta kl)|", gap, _FLOAT32)


def _sampled(subject: Subject) -> list[PolicyValues]:
    training = subject.training
    if not training.rows:
        raise NotAsked("learn never calls its callback")
    if training.sampled is None:
        raise NotAsked("log_probs gives None")
    return training.sampled


def _batch(subject: Subject) -> float:
    return subject.episodes / len(subject.training.rows)


def _mean(exact: list[PolicyValues]) -> float:
    return float(np.mean([values.kl for values in exact]))


def _log_ratio_variance(values: PolicyValues) -> float:
    """Of the log-ratio of one episode, in nats squared; summing exact KLs instead scatters less."""
    every = values.trajectories
    weights = every.probability
    ratios = np.where(weights > 0, every.log_ratio, 0.0)
    return float((weights * ratios**2).sum() - (weights * ratios).sum() ** 2)


def _return_variance(values: PolicyValues) -> float:
    every = values.trajectories
    return float((every.probability * (every.returns - values.expected_return) ** 2).sum())


ENOUGH = 0.95
_ENVS = 128  # where an agent's own batch is larger, or it has none: the tasks are small

DEFAULT_TASKS = {
    "Bandit": LearningTask("textgym/Bandit-v0"),
    "Delayed": LearningTask("textgym/Delayed-v0"),
    "Stop": LearningTask("textgym/Stop-v0"),
}


def _env(problem: LearningTask, count: int) -> Any:
    return gym.make_vec(problem.id, num_envs=count, autoreset_mode=AutoresetMode.DISABLED, **problem.options)


def learns(subject: Subject, name: str) -> Outcome:
    """Reaches 0.95 of the way from the reference's J to the optimum's within the budget, or half of it."""
    if name not in subject.learning:
        raise NotAsked(f"learning {name} was not asked for")
    problem = subject.learning[name]
    small = _env(problem, 2)
    agent = subject.make(small)
    if agent.greedy:
        raise NotAsked("the agent is greedy: no policy without entropy comes near this optimum")
    if agent.offline:
        raise NotAsked(
            "the agent learns from texts that others wrote, and cannot learn what these leave open"
        )
    tokens = agent.objective_tokens
    if tokens is not None and small.unwrapped.task.max_new_tokens > tokens:
        raise NotAsked(f"the agent optimises J on tasks of up to {tokens} tokens only")
    own: int = getattr(agent.config, "batch", _ENVS)
    if own > _ENVS:
        own = _ENVS - _ENVS % agent.group
    count = own if problem.envs is None else problem.envs
    reached, budget = -math.inf, 0
    # Half of the budget is enough for most; a schedule spans what it is given, so that the other try starts afresh.
    for budget in (max(problem.episodes // 2, 1), problem.episodes):
        env = _env(problem, count)
        solution = solve(env.unwrapped.task)
        agent = subject.make(env)
        agent.learn(env, budget)
        if agent.log_probs(solution.tree.observations(0, solution.tree.levels[0].running)) is None:
            raise NotAsked("log_probs gives None")
        reached = solution.optimality(policy_values(solution.tree, agent).objective)
        if reached >= ENOUGH:
            break
    return judge(reached >= ENOUGH, f"optimality {reached:.3f} after {budget} episodes", f"at least {ENOUGH}")
