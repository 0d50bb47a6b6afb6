"""Check the batch that an agent trains on: what belongs to which action, and what each action is credited with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from textgym.checks import Floats, Ints
from textgym.play import Turn, play_batch
from textgym.state import POLICY
from textgym.task import make_reference
from textgym_agents.conformance.behaviour import next_tokens
from textgym_agents.conformance.hooks import LossGradient, TrainingBatch, hook, record_gradient
from textgym_agents.conformance.under_test import (
    REFUSES_TURNS,
    AgentUnderTest,
    CutOff,
    NotAsked,
    Outcome,
    at_most,
    judge,
    probe_log,
    probe_reward,
)
from textgym_agents.lm.logged import LoggedAgent, ValueAgent
from textgym_agents.lm.offline import OfflineAgent
from textgym_agents.protocol import Agent, Observation

_FLOAT32 = 1e-4
_KL_TERMS = "log-ratio, exact KL, either of the following state alone, or nothing"


def batch_of(tested: AgentUnderTest) -> TrainingBatch:
    """Return one training batch of the agent that has left its reference. Raises: NotAsked if it offers none."""
    batch: TrainingBatch = hook(tested.training.agent, "batch")(tested.env())
    return batch


def actions(tested: AgentUnderTest) -> Outcome:
    """The token behind every state is the action taken there, and rows end by a stop token or at their full length."""
    batch = batch_of(tested)
    wrong = int((batch.input_ids[batch.rows, batch.columns + 1] != batch.actions).sum())
    stopped = np.isin(batch.actions, tested.task.vocabulary.stop_ids)
    lengths = np.bincount(batch.rows)
    early = lengths < tested.task.max_new_tokens
    wrong += int((stopped & ~batch.last).sum()) + int((early & ~stopped[batch.last]).sum())
    return at_most("actions that are not what was written:", wrong, 0)


def log_prob_alignment(tested: AgentUnderTest) -> Outcome:
    """The stored log-probability of every action is that of the policy in the state before it."""
    batch = batch_of(tested)
    logs = tested.log_probs(tested.training.agent, batch.observation())
    want = logs[np.arange(len(batch.actions)), batch.actions]
    return at_most("greatest difference, nats:", _greatest(batch.log_probs - want), _FLOAT32)


def reward_alignment(tested: AgentUnderTest) -> Outcome:
    """The score lands on the last action of its own row, and nothing on the others."""
    batch = batch_of(tested)
    want = np.zeros(len(batch.rows))
    want[batch.last] = _scores(tested, batch)
    return at_most("greatest difference, reward units:", _greatest(batch.rewards - want), 1e-6)


def token_rewards(tested: AgentUnderTest) -> Outcome:
    """The token rewards of a row add up to its discounted score less beta times the KL that is charged."""
    batch = batch_of(tested)
    charged = np.bincount(batch.rows, batch.penalties)
    returns = batch.gamma ** (np.bincount(batch.rows) - 1) * _scores(tested, batch)
    want = returns - batch.beta * charged
    sums = np.bincount(batch.rows, batch.token_rewards)
    return at_most("greatest difference of a row's sum:", _greatest(sums - want), _FLOAT32)


def penalties(tested: AgentUnderTest) -> Outcome:
    """The KL that an action is charged is to the task's reference, in one of the forms with the right gradient."""
    batch = batch_of(tested)
    states, index = batch.observation(), np.arange(len(batch.actions))
    own = tested.log_probs(tested.training.agent, states)
    base = np.asarray(make_reference(tested.task).log_probs(states), dtype=np.float64)
    exact = _divergence(own, base)
    ratio = own[index, batch.actions] - base[index, batch.actions]
    if _greatest(ratio) < 1e-3:
        raise NotAsked("the policy does not leave the reference in the probe training")
    later = [np.where(batch.last, 0.0, np.append(kl[1:], 0.0)) for kl in (ratio, exact)]
    forms = [ratio, exact, *later, np.zeros(len(index))]
    gap = min(_greatest(batch.penalties - form) for form in forms)
    return judge(gap <= _FLOAT32, f"nearest form {gap:.3g} nats away", f"{_KL_TERMS}, to within {_FLOAT32:g} nats")


def value_alignment(tested: AgentUnderTest) -> Outcome:
    """The stored value of every state is V in that state, not in its neighbour."""
    agent = tested.training.agent
    batch = batch_of(tested)
    got = _offered(batch.values, "values")
    want = hook(agent, "values")(batch.observation())
    return at_most("greatest difference, reward units:", _greatest(got - want), _FLOAT32)


def values_read_nothing_later(tested: AgentUnderTest) -> Outcome:
    """V(s_t) is unchanged by the token at t."""
    values = hook(tested.training.agent, "values")
    before = np.asarray(values(tested.states), dtype=np.float64)
    worst = _greatest(np.array([_greatest(np.asarray(values(s)) - before) for s in next_tokens(tested.states, 3)]))
    return at_most("greatest change, reward units:", worst, _FLOAT32)


def advantages(tested: AgentUnderTest) -> Outcome:
    """The advantages are GAE, by its definition as a sum over all later steps, with V = 0 at the end of a row."""
    batch = batch_of(tested)
    got = _offered(batch.advantages, "advantages")
    values = np.zeros(len(got)) if batch.values is None else batch.values
    want = gae_by_definition(batch, values)
    return at_most("greatest difference, reward units:", _greatest(got - want), _FLOAT32)


def truncation(tested: AgentUnderTest) -> Outcome:
    """Where the environment cuts an episode off, the advantages go on with V of the state it was cut off in.

    An agent whose actions are charged the KL of the following state has a V that leaves out the KL of its own state:
    beta times that is charged there, as there is no action left to charge it.
    """
    agent = tested.training.agent
    values = hook(agent, "values")
    batch: TrainingBatch = hook(agent, "batch")(CutOff(tested.task, tested.envs))
    own, got = _offered(batch.values, "values"), _offered(batch.advantages, "advantages")
    cut = batch.last & ~np.isin(batch.actions, tested.task.vocabulary.stop_ids)
    if not cut.any():
        raise NotAsked("no episode was cut off")
    states = batch.observation()
    mask = (np.arange(batch.input_ids.shape[1]) <= batch.columns[:, None] + 1).astype(np.int8)
    behind = {**states, "attention_mask": mask}
    after = np.asarray(values(behind), dtype=np.float64)
    whole = batch_of(tested)
    if whole.penalties[~whole.last].any() and not whole.penalties[whole.last].any():
        base = np.asarray(make_reference(tested.task).log_probs(behind), dtype=np.float64)
        after = after - batch.beta * _divergence(tested.log_probs(agent, behind), base)
    bootstrap = np.where(cut, after, 0.0)[batch.last]
    want = gae_by_definition(batch, own, bootstrap)
    return at_most("greatest difference, reward units:", _greatest(got - want), _FLOAT32)


def gae_by_definition(batch: TrainingBatch, values: Floats, bootstrap: Floats | None = None) -> Floats:
    """Return A_t = sum_k lam^k delta_{t+k}, row by row in O(T^2); token rewards and values are in units of time 0.

    Args:
        values: (N,) reward units at time 0. bootstrap: (B,) V behind the last action of each row; None means 0.
    Source: Schulman et al. (2016), arXiv:1506.02438, eq. 16, times gamma^t.
    """
    result = np.zeros(len(batch.rows))
    for place, row in enumerate(np.unique(batch.rows)):
        (own,) = np.nonzero(batch.rows == row)
        following = np.append(values[own[1:]], 0.0 if bootstrap is None else bootstrap[place])
        deltas = batch.token_rewards[own] + following - values[own]
        for t in range(len(own)):
            powers = batch.lam ** np.arange(len(own) - t)
            result[own[t]] = float((powers * deltas[t:]).sum())
    return result


def whitening(tested: AgentUnderTest) -> Outcome:
    """The loss takes the advantages as they are, or standardised over real tokens alone."""
    batch = batch_of(tested)
    raw, used = _offered(batch.advantages, "advantages"), _offered(batch.weights, "weights")
    spread = max(float(raw.std()), 1e-8)
    forms = [raw, raw - raw.mean(), raw / spread, (raw - raw.mean()) / spread]
    gap = min(_greatest(used - form) for form in forms)
    return at_most("distance to the nearest form:", gap, 1e-3)


def stop_gradient(tested: AgentUnderTest) -> Outcome:
    """A stop action gets the gradient that every action gets: minus its weight times grad log pi."""
    batch = batch_of(tested)
    gradient, weights = _offered(batch.logit_gradient, "logit_gradient"), _offered(batch.weights, "weights")
    stops = np.isin(batch.actions, tested.task.vocabulary.stop_ids)
    if not stops.any() or stops.all():
        raise NotAsked("no batch with stop actions and others came up")
    want = np.exp(tested.log_probs(tested.training.agent, batch.observation()))
    want[np.arange(len(stops)), batch.actions] -= 1
    want *= weights[:, None]
    other = ~stops
    scale = float((gradient[other] * want[other]).sum() / max((want[other] ** 2).sum(), 1e-12))
    size = _greatest(want[stops]) * abs(scale)
    if size < 1e-6:
        return judge(False, f"gradient of all actions about {size:.2g}", "minus the weight times grad log pi")
    gap = _greatest(gradient - scale * want) / size
    return judge(
        scale > 0 and gap <= 1e-3,
        f"relative difference {gap:.3g}, factor {scale:.3g}",
        "at most 0.001, factor above 0",
    )


def turns_taken_or_refused(tested: AgentUnderTest) -> Outcome:
    """An agent takes tasks with turns, or refuses them when it is made by a ValueError that says so."""
    expected = f"an agent, or a ValueError: '... {REFUSES_TURNS} ...'"
    try:
        tested.turned  # noqa: B018
    except NotAsked as reason:
        return judge(True, str(reason), expected)
    except Exception as error:  # whatever it is, it does not say so
        return judge(False, f"{error}", expected)
    return judge(True, "takes tasks with turns", expected)


def turn_actions(tested: AgentUnderTest) -> Outcome:
    """In a task with turns the actions are the tokens that the policy wrote, all of them and no other."""
    turned = tested.turned
    env = turned.env()
    batch: TrainingBatch = hook(turned.training.agent, "batch")(env)
    written = {
        (row, place, state.tokens[place])
        for row, state in enumerate(env.get_states())
        for place, author in enumerate(state.authors)
        if author == POLICY
    }
    found = Counter(zip(batch.rows.tolist(), (batch.columns + 1).tolist(), batch.actions.tolist(), strict=True))
    wrong = sum((found - Counter(written)).values()) + sum((Counter(written) - found).values())
    return at_most("actions that the policy did not take, or that are missing:", wrong, 0)


def turn_credit(tested: AgentUnderTest) -> Outcome:
    """In a task with turns an action's credit goes from action to action, as if no reply stood between them."""
    batch = batch_of(tested.turned)
    sums, charged, paid = (
        np.bincount(batch.rows, each) for each in (batch.token_rewards, batch.penalties, batch.rewards)
    )
    worst = _greatest(sums - (paid - batch.beta * charged))
    if batch.advantages is not None:
        values = np.zeros(len(batch.rows)) if batch.values is None else batch.values
        worst = float(np.maximum(worst, _greatest(batch.advantages - gae_by_definition(batch, values))))
    return at_most("greatest difference of a row's sum or of an advantage:", worst, _FLOAT32)


def turn_gradient(tested: AgentUnderTest) -> Outcome:
    """In a task with turns no term of the loss has a gradient where the environment writes the next token."""
    turned = tested.turned
    env = turned.env()
    found: LossGradient = hook(turned.training.agent, "gradient")(env, 0)
    own = {
        (tuple(state.tokens[:place]), state.tokens[place])
        for state in env.get_states()
        for place, author in enumerate(state.authors)
        if author == POLICY
    }
    states = {before for before, _ in own}
    moved = np.flatnonzero(np.abs(found.logits).max(1) > 0)
    wrong = sum(tuple(found.input_ids[found.rows[n], : found.columns[n] + 1].tolist()) not in states for n in moved)
    return at_most("states with a gradient in which the policy wrote nothing:", wrong, 0)


def turn_rows(tested: AgentUnderTest) -> Outcome:
    """In a task with turns a row has the log-probabilities that it has alone, while others get replies beside it."""
    turned = tested.turned
    agent, env, generator = turned.training.agent, turned.env(), np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    actions = np.flatnonzero(turned.task.vocabulary.allowed)
    seen: list[tuple[Observation, Ints, Floats]] = []

    def choose(turn: Turn) -> Ints:
        copied = {name: array.copy() for name, array in turn.observation.items()}
        seen.append((copied, turn.rows, turned.log_probs(agent, copied)))
        return generator.choice(actions, len(turn.rows))

    play_batch(env, observation, choose)
    worst = 0.0
    for place, (copied, running, logs) in enumerate(seen):
        row = int(running[place % len(running)])
        alone = turned.log_probs(agent, {name: array[row : row + 1] for name, array in copied.items()})
        worst = float(np.maximum(worst, _greatest(np.exp(alone[0]) - np.exp(logs[row]))))
    return at_most("greatest difference of a probability:", worst, _FLOAT32)


def on_turns(tested: AgentUnderTest, ask: Callable[[AgentUnderTest], Outcome]) -> Outcome:
    """In a task with turns the same holds: the environment's tokens are in no KL, and what is saved goes on exactly."""
    return ask(tested.turned)


def log_alone(tested: AgentUnderTest) -> Outcome:
    """While it learns from a log, an agent does not step its environment, which alone would pay it."""
    env, asked = tested.env(), list[Ints]()
    step = env.step

    def heard(actions: Ints) -> object:
        asked.append(actions)
        return step(actions)

    setattr(env, "step", heard)  # noqa: B010
    tested.logged(env).learn(env, 2 * tested.envs)
    return at_most("steps of the environment:", len(asked), 0)


def log_tokens(tested: AgentUnderTest) -> Outcome:
    """The loss of a log has a gradient where a token was logged, and none in prompts or behind an end."""
    env = tested.env()
    agent = tested.logged(env)
    found = record_gradient(_offline(agent), env, 0)
    written = {ids[:end] for ids, rewards in probe_log(tested.task).items() for end in range(-len(rewards), 0)}
    moved = np.flatnonzero(np.abs(found.logits).max(1) > 0)
    states = {tuple(found.input_ids[found.rows[n], : found.columns[n] + 1].tolist()) for n in moved}
    missing = len(states) == 0
    return at_most("states with a gradient in which nothing was logged:", len(states - written) + missing, 0)


def log_loss(tested: AgentUnderTest) -> Outcome:
    """The loss of a log is what its formula gives token by token, from the log's rewards and the answers in a state."""
    env = tested.env()
    agent = _offline(tested.logged(env))
    agent.learn(env, 2 * tested.envs)
    agent.policy.forget()
    batch, _ = agent._batch(env)
    losses, _ = agent._losses(batch, agent._score_reference(batch))
    log, want = probe_log(tested.task), list[float]()
    for ids, start, length in zip(batch.input_ids, batch.starts.tolist(), batch.lengths.tolist(), strict=True):
        text = ids[: start + length]
        states = np.where(np.arange(len(text)) < np.arange(start, start + length)[:, None], text, 0)
        mask = (np.arange(len(text)) < np.arange(start, start + length)[:, None]).astype(np.int8)
        seen = {"input_ids": states, "attention_mask": mask}
        want += _plain_losses(agent, seen, text[start:], log[tuple(text.tolist())]).tolist()
    gap = abs(float(losses.detach().sum()) / agent._total(batch) - float(np.mean(want)))
    return at_most("relative difference:", gap / max(abs(float(np.mean(want))), 1e-6), 1e-3)


def _plain_losses(agent: OfflineAgent, seen: Observation, tokens: Ints, rewards: Floats) -> Floats:
    """Return the loss of every token of an episode (T,) from the states before them. Raises: NotAsked for others."""
    name, scale, each = agent.name, agent.value_scale or 1.0, np.arange(len(tokens))
    config: Any = agent.config
    logs = agent.log_probs(seen)[each, tokens].astype(np.float64)
    if name == "behaviour-cloning":
        return -logs
    paid = rewards * agent.task.gamma**each
    to_go = np.array([paid[step:].sum() for step in each])
    if isinstance(agent, LoggedAgent) and name == "awr":
        errors = to_go - agent.value_offset - scale * agent.policy.advance(seen)[1].double().numpy()
        weights = np.minimum(np.exp(errors / agent.advantage_temperature), config.greatest_weight)
        return np.asarray(config.value_coefficient * 0.5 * (errors / scale) ** 2 - weights * logs)
    if not isinstance(agent, ValueAgent) or name not in ("ilql", "cql", "mc-values"):
        raise NotAsked(f"no formula is known for the loss of {name!r}")
    values, every = (part.double().numpy() for part in agent.action_values(seen))
    taken, every = every[each, tokens], every[:, agent.task.vocabulary.allowed]
    state, tau = (every.max(1), 0.5) if name == "cql" else (values, getattr(config, "expectile", 0.5))
    lam = getattr(config, "lam", 1.0)
    target = paid + (1 - lam) * np.append(state[1:], 0.0)
    for step in each[-2::-1]:
        target[step] += lam * target[step + 1]
    errors = {"ilql": taken, "cql": state, "mc-values": to_go}[name] - values
    of_values, of_q = np.where(errors < 0, 1 - tau, tau) * errors**2, 0.5 * (target - taken) ** 2
    held = config.cql_weight * (np.log(np.exp(every).sum(1)) - taken)
    return np.asarray((config.value_coefficient * (of_values + of_q) + of_q + held) / scale**2)


def _offline(agent: Agent) -> OfflineAgent:
    if not isinstance(agent, OfflineAgent):
        raise NotAsked("the agent is none of `textgym_agents.lm.offline.OfflineAgent`, whose loss is known")
    return agent


def _scores(tested: AgentUnderTest, batch: TrainingBatch) -> Floats:
    """Return (B,) the reward of every row's text, from the reward function itself."""
    prompts = {prompt.ids: prompt.text for prompt in tested.task.encoded("train")}
    starts = batch.columns[batch.first] + 1
    texts = [prompts[tuple(ids[:n].tolist())] for ids, n in zip(batch.input_ids, starts, strict=True)]
    written = np.split(batch.actions, np.flatnonzero(batch.first)[1:])
    completions = tested.task.vocabulary.decode([row.tolist() for row in written])
    return np.array(probe_reward(texts, completions))


def _divergence(own: Floats, base: Floats) -> Floats:
    """Return the KL (N,) of log-probabilities (N, V), nats."""
    with np.errstate(invalid="ignore"):
        kl: Floats = np.where(own > -50, np.exp(own) * (own - base), 0.0).sum(1)
    return kl


def _offered(array: Floats | None, name: str) -> Floats:
    if array is None:
        raise NotAsked(f"the agent's training batch has no {name}")
    return array


def _greatest(array: Floats | Ints) -> float:
    return float(np.abs(array).max())
