"""What the solver knows along one episode: V*, Q*, pi* and the values of the policy, on the tree of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from textgym_agents.protocol import as_agent

from textgym.lm.reference import Reference
from textgym.prompts import prompt_set
from textgym.rewards import RewardError
from textgym.solver import PolicyValues, Solution, policy_values, prefix_tree, solve
from textgym.state import Prompt, TokenState
from textgym.task import Task

Counts = Literal["objective", "later", "return"]
_WORDS: dict[Counts, str] = {
    "objective": "V counts the rewards to come, less beta times the KL to come",
    "later": (
        "the agent's V leaves the KL of its own state to the loss; "
        "shown is V - beta KL(s), which counts that KL too, as J does"
    ),
    "return": "V counts the rewards to come and no KL; so does the advantage made from it",
}


@dataclass(frozen=True)
class Critic:
    """Asks an agent for V(s).

    Attributes:
        ask: the agent's `values`; None where it has learned none.
        counts: "objective": rewards and KL to come; "later": the KL of s itself is left out; "return": no KL at all.
    """

    ask: Callable[[Mapping[str, NDArray[Any]]], Any] | None
    counts: Counts = "objective"

    @property
    def meaning(self) -> str:
        """What is shown as V, in words."""
        return "the agent has no learned values" if self.ask is None else _WORDS[self.counts]

    def value(self, observation: Mapping[str, NDArray[Any]], kl: float | None, beta: float) -> float | None:
        """V of one state (a batch of one observation), reward units at time 0.

        Args:
            kl: KL(pi || ref) there, nats. beta: reward units per nat.
        """
        if self.ask is None:
            return None
        value = float(np.asarray(self.ask(observation), dtype=np.float64)[0])
        return value - beta * (kl or 0.0) if self.counts == "later" else value


def critic_of(agent: Any) -> Critic:
    """Return the critic of an agent. A class of the user's that has `values` is taken to give V of J."""
    agent = as_agent(agent)
    if not agent.critic:
        return Critic(None)
    ask, config = agent.values, agent.config
    if getattr(config, "backup", "soft") != "soft":
        return Critic(ask, "return")
    kl = getattr(config, "kl", None)
    by_kind: dict[Any, Counts] = {"exact": "later", "k2": "later", "k3": "return"}
    return Critic(ask, by_kind.get(kl, "objective"))


# level: from least to greatest; size: from 0; cost: from 0, and bad; signed: around 0; loss: signed, and bad.
Kind = Literal["level", "size", "cost", "signed", "loss"]


@dataclass(frozen=True)
class Quantity:
    """One field of a `Step`.

    Attributes:
        name: of the field. label: for people. kind: which colours serve it. group: what it is said of.
        meaning: a sentence.
    """

    name: str
    label: str
    kind: Kind
    group: Literal["token", "state", "episode", "solver"]
    meaning: str


QUANTITIES = (
    Quantity("kl", "KL", "size", "state", "KL(π ‖ ref) at this state, over the whole vocabulary, in nats."),
    Quantity(
        "log_ratio", "Log-ratio", "signed", "token",
        "log π(a) - log ref(a), in nats: above 0 where π writes this token more often than the reference.",
    ),
    Quantity("entropy", "Entropy", "size", "state", "Entropy of π at this state, in nats."),
    Quantity("reward", "Reward", "signed", "token", "What the environment pays for this token."),
    Quantity("value", "V", "level", "state", "V(s) by the agent, before the token is written."),
    Quantity(
        "advantage", "Advantage", "signed", "token",
        "What came of this token, less V(s): one sample, made with the agent's own V.",
    ),
    Quantity(
        "regret", "Regret", "loss", "solver",
        "V*(s) - [Q*(s, a) - β log-ratio] = β log(π / π*): above 0 where π writes this token more often than the "
        "optimum does.",
    ),
    Quantity(
        "state_regret", "Regret of the state", "cost", "solver",
        "β KL(π ‖ π*), the mean regret at this state. Summed over an episode it is J* - J on average.",
    ),
    Quantity("optimal_value", "V*", "level", "solver", "Value of this state under the optimum."),
    Quantity("optimal_action_value", "Q*", "level", "solver", "Value of this token under the optimum."),
    Quantity("policy_value", "V of π", "level", "solver", "Exact value of this state under π."),
    Quantity("policy_action_value", "Q of π", "level", "solver", "Exact value of this token under π."),
    Quantity(
        "exact_advantage", "Exact advantage", "signed", "solver",
        "Q of π - β log-ratio - V of π: what this token adds to J; its mean under π is 0.",
    ),
    Quantity("running_return", "Return so far", "level", "episode", "Rewards up to this token."),
    Quantity("running_kl", "KL so far", "size", "episode", "Sum of the KL of the states up to this one, in nats."),
)  # fmt: skip


def quantities_json() -> list[dict[str, Any]]:
    """The quantities as JSON values."""
    return [asdict(quantity) for quantity in QUANTITIES]


Floats = NDArray[np.float64]
MAX_STATES = 10_000


@dataclass(frozen=True)
class ExactState:
    """One state, arrays over its n legal actions. Units of reward at time 0; the policy's are None if not known.

    Attributes:
        actions: (n,) ids. optimal: (n,) log pi*. action_values: (n,) Q*. value: V*.
        policy_value: V^pi. policy_action_values: (n,) Q^pi. advantages: (n,) A^pi.
    """

    actions: NDArray[np.int64]
    optimal: Floats
    action_values: Floats
    value: float
    policy_value: float | None
    policy_action_values: Floats | None
    advantages: Floats | None

    def place(self, token: int) -> int | None:
        """Where a token stands in the arrays; None for one that is not legal."""
        found = np.flatnonzero(self.actions == token)
        return int(found[0]) if len(found) else None


@dataclass(frozen=True)
class Exact:
    """The solved tree of one prompt.

    Attributes:
        solution: the optimum. policy: values of the policy; None where they are not known.
    """

    solution: Solution
    policy: PolicyValues | None

    def state(self, completion: Sequence[int]) -> ExactState | None:
        """A running state; None where no legal actions lead to one."""
        solution, policy = self.solution, self.policy
        try:
            depth, row = solution.tree.find(0, tuple(completion))
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
    split: str,
    prompt: Prompt,
    policy: Any,
    reference: Reference,
    beta: float,
    max_states: int = MAX_STATES,
) -> tuple[Exact | None, str, str]:
    """The exact values below one prompt.

    Args:
        prompt: of the split, or a text of one's own.
        policy: anything with `log_probs(observation)`.
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


def one_prompt(task: Task, split: str, prompt: Prompt) -> Task:
    """The same task with this prompt alone, in all splits: what follows one prompt does not depend on the others."""
    columns = {
        name: [None if prompt.index is None else values[prompt.index]]
        for name, values in task.prompt_set(split).columns.items()
    }
    alone = prompt_set([prompt.text], columns)
    mask = task.mask

    def own_mask(states: Sequence[TokenState]) -> NDArray[np.bool_]:
        assert mask is not None
        return mask([replace(state, prompt=prompt) for state in states])

    return replace(task, prompts=dict.fromkeys(task.prompts, alone), mask=None if mask is None else own_mask)
