"""One state of an episode: the policy, the reference and the optimum over the next token, and the values of each.

The exact values are the solver's, on the tree of the episode's prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from textgym_agents.protocol import Agent, Observation, as_agent

from textgym.checks import Bools, Floats, Ints
from textgym.lm.reference import Reference, restricted
from textgym.prompts import Split, prompt_set
from textgym.rewards import RewardError
from textgym.solver import PolicyValues, Solution, policy_values, prefix_tree, solve
from textgym.state import Prompt, TokenState
from textgym.task import Task
from textgym_benchmarks.microscope.trace import Candidate, Known

MAX_STATES: Final = 10_000
OPTIMUM_FIELDS: Final = ("optimal_value", "optimal_action_value", "regret", "state_regret")
POLICY_FIELDS: Final = ("policy_value", "policy_action_value", "exact_advantage")
Counts = Literal["objective", "later", "return"]
_WORDS: Final[dict[Counts, str]] = {
    "objective": "V counts the rewards to come, less beta times the KL to come",
    "later": (
        "the agent's V leaves the KL of its own state to the loss; "
        "shown is V - {charge:g} KL(s) with the agent's beta, which counts that KL too, as J does"
    ),
    "return": "V counts the rewards to come and no KL; so does the advantage made from it",
}
_SLACK: Final = 1e-3  # probabilities of float32 or bfloat16 policies sum to 1 within this


@dataclass(frozen=True)
class Critic:
    """Asks an agent for V(s).

    Attributes:
        ask: the agent's `values`; None where it has learned none.
        counts: "objective": rewards and KL to come; "later": the KL of s itself is left out; "return": no KL at all.
        charge: beta of the KL that is left out, reward units a nat.
    """

    ask: Callable[[Observation], NDArray[np.floating]] | None
    counts: Counts = "objective"
    charge: float = 0.0

    @property
    def meaning(self) -> str:
        """Describe in words what is shown as V."""
        return "the agent has no learned values" if self.ask is None else _WORDS[self.counts].format(charge=self.charge)

    def value(self, observation: Observation, kl: float | None) -> float | None:
        """Return V of one state (a batch of one observation) of this KL(pi || ref), nats, in reward units at time 0."""
        if self.ask is None:
            return None
        value = float(np.asarray(self.ask(observation), dtype=np.float64)[0])
        return value - self.charge * kl if self.charge and kl else value


def critic_of(agent: object, beta: float) -> Critic:
    """Return the critic of an agent. A class of the user's that has `values` is taken to give V of J.

    Args: beta: of the KL, where the agent does not say by which it has learned.
    """
    agent = as_agent(agent)
    if not agent.critic:
        return Critic(None)
    ask, config = agent.values, agent.config
    if getattr(config, "backup", "soft") != "soft":
        return Critic(ask, "return")
    kind = getattr(config, "kl", None)
    charge = beta if kind in ("exact", "k2") else 0.0
    if hasattr(agent, "controller"):  # one on a language model, which has imported torch
        from textgym_agents.lm.critic import uncharged

        charge = uncharged(agent)
    if charge:
        return Critic(ask, "later", charge)
    return Critic(ask, "return" if kind in ("k3", "k3-ratio") else "objective")


@dataclass(frozen=True)
class View:
    """Log-probabilities (V,) of the next token in one state, nats.

    Attributes:
        log_probs: of the policy; None for an agent that has none. log_reference: of the reference.
    """

    log_probs: Floats | None
    log_reference: Floats

    def log_prob(self, token: int) -> float | None:
        """Return the policy's log-probability of a token."""
        return None if self.log_probs is None else float(self.log_probs[token])

    def log_ratio(self, token: int) -> float | None:
        """Return log pi(a) - log ref(a); inf where the reference never writes the token; 0 where neither does."""
        if self.log_probs is None:
            return None
        own, other = float(self.log_probs[token]), float(self.log_reference[token])
        return 0.0 if own == other else own - other

    def rank(self, token: int) -> int | None:
        """Return 1 for the policy's likeliest token; tokens that are equally likely share the best place."""
        return None if self.log_probs is None else 1 + int((self.log_probs > self.log_probs[token]).sum())

    @property
    def entropy(self) -> float | None:
        """Of the policy, nats."""
        return None if self.log_probs is None else expected(self.log_probs, -self.log_probs)

    @property
    def kl(self) -> float | None:
        """KL(pi || ref) over the whole vocabulary, nats."""
        if self.log_probs is None:
            return None
        with np.errstate(invalid="ignore"):
            return expected(self.log_probs, self.log_probs - self.log_reference)


def expected(log_probs: Floats, values: Floats) -> float:
    """Return the mean of values under a distribution; where its probability is 0, the value does not count."""
    probabilities = np.exp(log_probs)
    taken = probabilities > 0
    return float(probabilities[taken] @ values[taken])


def view_of(agent: Agent, reference: Reference, observation: Observation, mask: Bools | None, step: int) -> View:
    """Return what agent and reference say in one state.

    Args:
        observation: a batch of one.
        mask: (V,), the tokens that the task's grammar allows; None where every token is.
        step: named in errors.
    Raises: ValueError for log-probabilities that are not numbers <= 0 whose probabilities sum to 1.
    """
    own = agent.log_probs(observation)
    base = _normalised(reference.log_probs(observation), mask, f"the reference's log_probs at step {step}")
    return View(None if own is None else _normalised(own, mask, f"log_probs at step {step}"), base)


def _normalised(table: NDArray[np.floating], mask: Bools | None, argument: str) -> Floats:
    """Return one row in double precision, summing to 1 over the tokens that the mask allows."""
    logs = np.asarray(table, dtype=np.float64)
    if logs.ndim != 2 or len(logs) != 1:
        raise ValueError(f"{argument}: shape {logs.shape}, allowed is (1, V)")
    if np.isnan(logs).any() or not abs(np.exp(logs).sum() - 1.0) < _SLACK:
        raise ValueError(f"{argument}: probabilities sum to {np.exp(logs).sum():.6g}, allowed is 1")
    # restricted() with every token allowed takes out the rounding of policies that compute in float32.
    row: Floats = restricted(logs, np.ones_like(logs, np.bool_) if mask is None else mask[None])[0]
    return row


@dataclass(frozen=True)
class ExactState:
    """One state, arrays over its n legal actions. Units of reward at time 0; the policy's are None if not known.

    Attributes:
        actions: (n,) ids. optimal: (n,) log pi*. action_values: (n,) Q*. value: V*.
        policy_value: V^pi. policy_action_values: (n,) Q^pi. advantages: (n,) A^pi.
    """

    actions: Ints
    optimal: Floats
    action_values: Floats
    value: float
    policy_value: float | None
    policy_action_values: Floats | None
    advantages: Floats | None

    def fields(self, view: View, token: int, beta: float) -> dict[str, float | None]:
        """Return the fields of a `Step` that writes a token here; none where the token is not legal."""
        found = np.flatnonzero(self.actions == token)
        if not len(found):
            return {}
        place = found[0]
        regret = state_regret = None
        if view.log_probs is not None:
            regrets = self._regrets(view.log_probs[self.actions], beta)
            regret, state_regret = float(regrets[place]), expected(view.log_probs[self.actions], regrets)
        values, advantages = self.policy_action_values, self.advantages
        return {
            "optimal_value": self.value,
            "optimal_action_value": float(self.action_values[place]),
            "regret": regret,
            "state_regret": state_regret,
            "policy_value": self.policy_value,
            "policy_action_value": None if values is None else float(values[place]),
            "exact_advantage": None if advantages is None else float(advantages[place]),
        }

    def _regrets(self, own: Floats, beta: float) -> Floats:
        """Return V*(s) - [Q*(s, a) - beta log(pi(a) / ref(a))] of every action; -inf where pi never goes."""
        if not beta:
            return self.value - self.action_values
        # The same as beta log(pi / pi*), which also has a value where the reference never goes.
        with np.errstate(invalid="ignore"):
            return np.where(own > -np.inf, beta * (own - self.optimal), -np.inf)


@dataclass(frozen=True)
class Exact:
    """The solved tree of one prompt: the optimum, and the values of the policy where they are known."""

    solution: Solution
    policy: PolicyValues | None

    def known(self) -> Known:
        """Return the values of the prompt itself."""
        policy = self.policy
        return Known(
            states=self.solution.tree.states,
            optimum=float(self.solution.prompt_values[0]),
            reference=float(self.solution.reference.prompt_objectives[0]),
            policy=None if policy is None else float(policy.prompt_objectives[0]),
        )

    def state(self, state: TokenState) -> ExactState | None:
        """Return a running state; None where no legal actions lead to one."""
        solution, policy = self.solution, self.policy
        try:
            depth, row = solution.tree.find(0, state.completion, state.environment)
        except KeyError:
            return None
        level = solution.tree.levels[depth]
        edges = slice(int(level.first[row]), int(level.first[row + 1]))
        return ExactState(
            actions=solution.tree.levels[depth + 1].action[edges],
            optimal=solution.log_policy[depth][edges],
            action_values=solution.action_values[depth][edges],
            value=float(solution.values[depth][row]),
            policy_value=None if policy is None else float(policy.values[depth][row]),
            policy_action_values=None if policy is None else policy.action_values[depth][edges],
            advantages=None if policy is None else policy.advantages[depth][edges],
        )


def solve_prompt(
    task: Task,
    split: Split,
    prompt: Prompt,
    policy: Agent,
    reference: Reference,
    beta: float,
    max_states: int = MAX_STATES,
) -> tuple[Exact | None, str, str]:
    """Return the exact values below one prompt.

    Args:
        prompt: of the split, or a text of one's own.
        beta: reward units per nat, >= 0.
        max_states: of the prompt's tree; a larger one is not solved.
    Returns: the values or None; why there are none; why there are none of the policy. "" where there are.
    """
    try:
        tree = prefix_tree(one_prompt(task, split, prompt), split, max_states)
        solution = solve(tree, reference, beta)
    except (ValueError, RewardError) as error:
        reason = str(error).partition(";")[0]
        large = "too many states: " if "max_states" in reason else "cannot be solved: "
        return None, large + reason, "the task is not solved"
    try:
        return Exact(solution, policy_values(tree, policy, reference, beta)), "", ""
    except TypeError:
        return Exact(solution, None), "", "the agent gives no probabilities"
    except ValueError as error:
        return Exact(solution, None), "", str(error).partition(";")[0]


def one_prompt(task: Task, split: Split, prompt: Prompt) -> Task:
    """Return the task with this prompt alone, in all splits: what follows it does not depend on other prompts."""
    columns = {
        name: [None if prompt.index is None else values[prompt.index]]
        for name, values in task.prompt_set(split).columns.items()
    }
    alone = prompt_set([prompt.text], columns)
    mask = task.mask

    def own_mask(states: Sequence[TokenState]) -> Bools:
        assert mask is not None
        return mask([replace(state, prompt=prompt) for state in states])

    return replace(task, prompts=dict.fromkeys(task.prompts, alone), mask=None if mask is None else own_mask)


def candidates(
    view: View, known: ExactState | None, action: int, top: int, name: Callable[[int], str]
) -> tuple[tuple[Candidate, ...], float | None, float]:
    """Return the `top` likeliest tokens of policy, reference and optimum and the action, the policy's likeliest first.

    Returns: the tokens, with their text by `name`; the probability of all others by the policy, and by the reference.
    """
    reference = np.exp(view.log_reference)
    own = None if view.log_probs is None else np.exp(view.log_probs)
    optimal, action_values = np.zeros(len(reference)), np.full(len(reference), np.nan)
    if known is not None:
        optimal[known.actions] = np.exp(known.optimal)
        action_values[known.actions] = known.action_values
    first = reference if own is None else own
    chosen = {action}
    for probabilities in (first, reference, optimal):
        likeliest = np.argsort(-probabilities, kind="stable")[:top]
        chosen.update(int(token) for token in likeliest if probabilities[token] > 0)
    ranked = sorted(chosen, key=lambda token: (-first[token], -reference[token], token))
    shown = tuple(
        Candidate(
            token=token,
            text=name(token),
            probability=None if own is None else float(own[token]),
            reference=float(reference[token]),
            optimal=None if known is None else float(optimal[token]),
            optimal_action_value=None if np.isnan(action_values[token]) else float(action_values[token]),
        )
        for token in ranked
    )
    return shown, None if own is None else _others(own, ranked), _others(reference, ranked)


def _others(probabilities: Floats, shown: list[int]) -> float:
    return max(0.0, 1.0 - float(probabilities[shown].sum()))
