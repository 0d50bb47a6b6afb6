"""Play one episode and write down its trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from textgym_agents.protocol import Agent

from textgym.checks import Ints, check_count
from textgym.lm.reference import Reference, checked_actions
from textgym.play import FinalInfos, Turn, play_batch
from textgym.prompts import Split
from textgym.rewards.scorer import scorers_restored
from textgym.state import TokenState
from textgym.task import Task
from textgym.vector import batch_env
from textgym_benchmarks.microscope.exact import (
    MAX_STATES,
    OPTIMUM_FIELDS,
    POLICY_FIELDS,
    Critic,
    Exact,
    View,
    candidates,
    critic_of,
    solve_prompt,
    view_of,
)
from textgym_benchmarks.microscope.trace import Chosen, TokenStep, Trace

TOP: Final = 8


def given_tokens(task: Task, text: str) -> list[int]:
    """Return the tokens of a completion, and the stop token where there is room for one or its name ends the text.

    Raises: ValueError if the text cannot be written in this task from beginning to end.
    """
    vocabulary, budget = task.vocabulary, task.max_new_tokens
    stops = {vocabulary.codec.token(token): token for token in vocabulary.stop_ids}
    name = next((name for name in stops if name and text.endswith(name)), None)
    try:
        ids = list(vocabulary.codec.encode(text if name is None else text.removesuffix(name)))
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"completion {text!r:.80}: {str(error).removeprefix('prompt: ')}") from error
    early = next((place for place, token in enumerate(ids) if token in vocabulary.stop_ids), None)
    if early is not None:
        raise ValueError(f"completion {text!r:.80}: its token {early} is a stop token, allowed at its end only")
    if name is not None:
        ids.append(stops[name])
    elif vocabulary.stop_ids and len(ids) < budget:
        ids.append(vocabulary.stop_ids[0])
    if len(ids) > budget or (len(ids) < budget and not vocabulary.stop_ids):
        allowed = f"1..{budget}" if vocabulary.stop_ids else f"exactly {budget}, there being no stop token"
        raise ValueError(f"completion {text!r:.80}: it has {len(ids)} tokens, allowed are {allowed}")
    return ids


@dataclass(frozen=True)
class TraceRequest:
    """The episode to trace.

    Args:
        prompt: a text of one's own; prompt_index: a place in the split. None of them: drawn by `seed`.
        split: of the prompt.
        seed: of the prompt's draw, the reward's noise and the tokens: 0 or more.
        deterministic: write the likeliest token. What is shown of pi stays that of pi.
        completion: a text to write, see `given_tokens`; None: pi's own.
        beta: reward units per nat; None takes the task's.
        top: how many of the likeliest tokens are shown.
        max_states: the largest tree of a prompt that is solved.
    Raises: ValueError for a number out of range, or two choices of the same.
    """

    prompt: str | None = None
    prompt_index: int | None = None
    split: Split = "eval"
    seed: int = 0
    deterministic: bool = False
    completion: str | None = None
    beta: float | None = None
    top: int = TOP
    max_states: int = MAX_STATES

    def __post_init__(self) -> None:
        for name, least in {"seed": 0, "top": 1, "max_states": 0}.items():
            check_count(name, getattr(self, name), least)
        if self.beta is not None and not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta={self.beta!r}: allowed is a finite number >= 0 (reward units per nat)")
        if self.prompt is not None and self.prompt_index is not None:
            raise ValueError("prompt, prompt_index: both choose the prompt; allowed is one of them, or none to draw it")
        if self.deterministic and self.completion is not None:
            raise ValueError(
                "deterministic, completion: both choose the tokens; allowed is one of them, or none to sample"
            )

    @property
    def chosen(self) -> Chosen:
        """How the tokens are chosen."""
        if self.completion is not None:
            return "given"
        return "likeliest" if self.deterministic else "sampled"


@dataclass(frozen=True)
class _Moment:
    """One state and the step out of it."""

    state: TokenState
    view: View
    token: int
    reward: float
    potential: float
    value: float | None
    reply: tuple[int, ...]


def record(
    agent: Agent,
    task: Task,
    reference: Reference,
    request: TraceRequest,
    env_id: str = "",
    label: str = "agent",
) -> Trace:
    """Play an episode of a task and trace it.

    Two agents with the same request meet the same prompt, the same noise of the reward and the same random numbers:
    each token is argmax(log pi + g) with g from Gumbel's distribution, a sample of pi, and mostly the same one where
    two policies are alike. An agent without probabilities acts by its own random numbers.

    Args:
        agent: its `log_probs(observation)` is asked, or its `act` where that is None.
        reference: pi_ref.
        env_id, label: names of task and agent.
    Raises: ValueError if the request does not fit the task; if log-probabilities do not sum to 1 or are not numbers.
    """
    if task.turns is not None and request.completion is not None:
        raise ValueError(f"completion: the environment of {task.name!r} writes, too; allowed is to sample one")
    beta = task.beta if request.beta is None else request.beta
    critic = critic_of(agent, beta)
    with scorers_restored(task.scorer):
        moments, final = _play(agent, task, reference, critic, request)
    prompt = moments[0].state.prompt
    exact, why_not, why_no_policy = solve_prompt(
        task, request.split, prompt, agent, reference, beta, request.max_states
    )
    steps = _steps(task, critic, moments, exact, beta, request.top)
    unknown = _unknown(critic, moments, steps, why_not, why_no_policy)
    known = None if exact is None else exact.known()
    log_prob = None if steps[0].log_prob is None else _sum(step.log_prob for step in steps)
    kl = steps[-1].running_kl
    return Trace(
        id=env_id or task.name, split=request.split, beta=beta, gamma=task.gamma,
        vocabulary=task.vocabulary.size, max_new_tokens=task.max_new_tokens,
        reward_name=task.reward_name, agent=label, reference=_label(reference, task),
        seed=request.seed, chosen=request.chosen, prompt=prompt.text, prompt_index=prompt.index,
        prompt_ids=prompt.ids, prompt_tokens=tuple(map(task.vocabulary.token_text, prompt.ids)), steps=steps,
        completion=str(final.completions[0]), finish_reason=str(final.finish_reasons[0]),
        reward_terms={name: float(values[0]) for name, values in final.terms.items()},
        gold=None if task.gold is None else float(final.gold[0]), total_return=steps[-1].running_return, kl=kl,
        log_prob=log_prob, log_reference=_sum(step.log_reference for step in steps),
        objective=None if kl is None else steps[-1].running_return - (beta * kl if beta else 0.0),
        known=known, value_meaning=critic.meaning, unknown=unknown,
    )  # fmt: skip


def _play(
    agent: Agent, task: Task, reference: Reference, critic: Critic, request: TraceRequest
) -> tuple[list[_Moment], FinalInfos]:
    completion = None if request.completion is None else given_tokens(task, request.completion)
    env = batch_env(task, 1, request.split)
    choice = {"prompt": request.prompt, "prompt_index": request.prompt_index}
    options = {name: value for name, value in choice.items() if value is not None}
    observation, _ = env.reset(seed=request.seed, options=options)
    generator = np.random.default_rng([request.seed, 5])
    seen: list[tuple[TokenState, View, float | None]] = []

    def choose(turn: Turn) -> Ints:
        mask = None if turn.masks is None else turn.masks[0]
        view = view_of(agent, reference, turn.observation, mask, turn.time)
        seen.append((env.get_states()[0], view, critic.value(turn.observation, view.kl)))
        noise = generator.gumbel(size=task.vocabulary.size)
        if completion is not None:
            token, allowed = completion[turn.time], task.vocabulary.allowed if mask is None else mask
            if not allowed[token]:
                text = task.vocabulary.token_text(token)
                raise ValueError(
                    f"completion: its token {turn.time} ({text!r:.80}) is not one that the task allows there"
                )
            return np.array([token])
        if view.log_probs is None:
            return checked_actions(agent.act(turn.observation, request.deterministic), turn.observation)
        return np.array([np.argmax(view.log_probs if request.deterministic else view.log_probs + noise)])

    played = play_batch(env, observation, choose)
    tokens, rewards = played.actions.tolist(), played.rewards.tolist()
    after = [*(state for state, _, _ in seen[1:]), env.get_states()[0]]
    moments = [
        _Moment(
            state, view, tokens[t], rewards[t], after[t].potential, value,
            after[t].completion[len(state.completion) + 1 :],
        )
        for t, (state, view, value) in enumerate(seen)
    ]  # fmt: skip
    return moments, played.final


def _steps(
    task: Task, critic: Critic, moments: list[_Moment], exact: Exact | None, beta: float, top: int
) -> tuple[TokenStep, ...]:
    written = task.vocabulary.decode([moment.state.completion for moment in moments])
    steps, paid, divergence = [], 0.0, 0.0
    for t, (moment, text) in enumerate(zip(moments, written, strict=True)):
        view, token = moment.view, moment.token
        paid += task.gamma**t * moment.reward
        divergence += 0.0 if view.kl is None else view.kl
        known = None if exact is None else exact.state(moment.state)
        shown, rest, reference_rest = candidates(view, known, token, top, task.vocabulary.token_text)
        steps.append(
            TokenStep(
                step=t, token=token, text=task.vocabulary.token_text(token), written=text,
                log_prob=view.log_prob(token), log_reference=float(view.log_reference[token]),
                log_ratio=view.log_ratio(token), rank=view.rank(token), entropy=view.entropy, kl=view.kl,
                reward=moment.reward, potential=moment.potential if task.scorer.pay == "difference" else None,
                running_return=paid, running_kl=None if view.kl is None else divergence,
                value=moment.value, advantage=None,
                candidates=shown, rest=rest, reference_rest=reference_rest,
                reply=tuple(map(task.vocabulary.token_text, moment.reply)), reply_ids=moment.reply,
                **({} if known is None else known.fields(view, token, beta)),
            )
        )  # fmt: skip
    return _with_advantages(steps, beta, task.gamma, critic.counts != "return")


def _with_advantages(steps: list[TokenStep], beta: float, gamma: float, charged: bool) -> tuple[TokenStep, ...]:
    """Return the steps with GAE(1), the return to come less V: both with the KL, or both without it."""
    result: list[TokenStep] = []
    future = 0.0  # rewards and KL of the steps after this one
    for step in reversed(steps):
        here = gamma**step.step * step.reward + future
        if step.value is not None:
            ratio = beta * step.log_ratio if charged and beta and step.log_ratio is not None else 0.0
            step = replace(step, advantage=here - ratio - step.value)
        future = here - (beta * step.kl if charged and beta and step.kl is not None else 0.0)
        result.append(step)
    return tuple(reversed(result))


def _unknown(
    critic: Critic, moments: list[_Moment], steps: tuple[TokenStep, ...], why_not: str, why_no_policy: str
) -> dict[str, str]:
    """Return why quantities are None, by name."""
    reasons: dict[str, str] = {}
    if moments[0].view.log_probs is None:
        silent = "the agent gives no probabilities"
        reasons |= dict.fromkeys(("log_prob", "log_ratio", "rank", "entropy", "kl", "regret", "state_regret"), silent)
    if critic.ask is None:
        reasons |= dict.fromkeys(("value", "advantage"), critic.meaning)
    if why_not:
        reasons |= dict.fromkeys(OPTIMUM_FIELDS, why_not)
    if why_not or why_no_policy:
        reasons |= dict.fromkeys(POLICY_FIELDS, why_not or why_no_policy)
    for name in (*OPTIMUM_FIELDS, *POLICY_FIELDS):
        if name not in reasons and any(getattr(step, name) is None for step in steps):
            reasons[name] = "a token that the task does not allow was written"
    return reasons


def _label(reference: Reference, task: Task) -> str:
    named = type(reference).__str__ is not object.__str__
    return str(reference) if named else str(task.reference) if isinstance(task.reference, str) else "own"


def _sum(values: Iterable[float | None]) -> float:
    return float(sum(value for value in values if value is not None))
