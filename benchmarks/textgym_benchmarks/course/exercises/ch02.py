"""Chapter 2: the Markov decision process."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np

from textgym import make_task
from textgym.checks import Floats
from textgym.solver import PolicyValues, solve
from textgym_benchmarks.course.exercises import Case, Exercise


def _random(seed: int, states: int, actions: int) -> tuple[Floats, Floats, Floats]:
    """Return a random P (S, A, S), pi (S, A) and rho (S,)."""
    rng = np.random.default_rng(seed)
    return (
        rng.dirichlet(np.ones(states), (states, actions)),
        rng.dirichlet(np.ones(actions), states),
        rng.dirichlet(np.ones(states)),
    )


def _transitions() -> list[Case]:
    cases = []
    for seed, (states, actions) in enumerate([(3, 2), (4, 4)]):
        transitions, pi, _ = _random(seed, states, actions)
        right = np.zeros((states, states))
        for s, a, later in product(range(states), range(actions), range(states)):
            right[s, later] += pi[s, a] * transitions[s, a, later]
        cases.append(Case(f"{states} states and {actions} actions", (transitions, pi), {"P_pi": right}))
    return cases


def _distribution() -> list[Case]:
    cases = []
    for seed, t in ((0, 0), (1, 1), (2, 3)):
        transitions, _, rho = _random(seed, 4, 1)
        right = np.zeros(4)
        for path in product(range(4), repeat=t + 1):  # every way to be somewhere at time t
            right[path[-1]] += rho[path[0]] * np.prod([transitions[a, 0, b] for a, b in pairwise(path)])
        cases.append(Case(f"4 states and t = {t}", (rho, transitions[:, 0], t), {"d_t": right}))
    return cases


def _matrices(values: PolicyValues) -> tuple[Floats, Floats, Floats, Floats]:
    """Return rho, P, pi and r of a task with one prompt; ended states stay where they are."""
    tree = values.tree
    starts = np.cumsum([0, *(len(level.parent) for level in tree.levels)])
    actions = np.flatnonzero(tree.task.vocabulary.allowed)
    n, m = int(starts[-1]), len(actions)
    transitions, pi, r = np.zeros((n, m, n)), np.full((n, m), 1 / m), np.zeros((n, m))
    transitions[np.arange(n), :, np.arange(n)] = 1.0
    for depth, level in enumerate(tree.levels[1:]):
        for row, (parent, action) in enumerate(zip(level.parent, level.action, strict=True)):
            s, a = starts[depth] + parent, int(np.searchsorted(actions, action))
            transitions[s, a] = np.eye(n)[starts[depth + 1] + row]
            pi[s, a] = np.exp(values.log_policy[depth][row])
            r[s, a] = level.reward[row]
    return np.eye(n)[0], transitions, pi, r


def _expected() -> list[Case]:
    cases = []
    solution = solve(make_task("Stop", difficulty=1))
    for name, values in (("each action alike", solution.reference), ("the optimum", solution.optimal)):
        rho, transitions, pi, r = _matrices(values)
        said = f"the chapter's task, and {name}"
        cases.append(Case(said, (rho, transitions, pi, r, 3), {"J": values.expected_return}))
    transitions, pi, rho = _random(5, 3, 2)
    r = np.array([[1.0, 0.0], [0.0, -1.0], [0.5, 2.0]])
    one_step = sum(rho[s] * pi[s, a] * r[s, a] for s in range(3) for a in range(2))
    cases.append(Case("3 states, 2 actions and 1 step", (rho, transitions, pi, r, 1), {"J": one_step}))
    return cases


def _count() -> list[Case]:
    cases = []
    for going_on, stopping, horizon in ((1, 2, 3), (2, 1, 4), (4, 0, 3)):
        tokens = [*["go"] * going_on, *["stop"] * stopping]
        texts = [t for length in range(horizon + 1) for t in product(range(len(tokens)), repeat=length)]
        right = sum(all(tokens[i] == "go" for i in text[:-1]) for text in texts)
        said = f"{going_on} tokens that go on, {stopping} that stop, at most {horizon}"
        cases.append(Case(said, (going_on, stopping, horizon), {"|S|": right}))
    return cases


EXERCISES = (
    Exercise(
        "policy_transitions",
        "The Markov chain of a policy in an MDP.",
        _transitions,
        {
            "all actions count alike": lambda transitions, pi: transitions.mean(axis=1),
            "the result is transposed": lambda transitions, pi: np.einsum("sa,sat->ts", pi, transitions),
        },
    ),
    Exercise(
        "state_distribution",
        "The state distribution at time t.",
        _distribution,
        {
            "it is P_pi rho and not rho P_pi": lambda rho, chain, t: np.linalg.matrix_power(chain, t) @ rho,
            "one step too many is taken": lambda rho, chain, t: rho @ np.linalg.matrix_power(chain, t + 1),
        },
    ),
    Exercise(
        "expected_reward",
        "J from the matrices of an MDP.",
        _expected,
        {
            "only the first step is counted": lambda rho, transitions, pi, r, steps: rho @ (pi * r).sum(axis=1),
            "all actions count alike": lambda rho, transitions, pi, r, steps: sum(
                rho @ np.linalg.matrix_power(transitions.mean(axis=1), t) @ r.mean(axis=1) for t in range(steps)
            ),
        },
    ),
    Exercise(
        "number_of_states",
        "The size of the tree of texts.",
        _count,
        {
            "texts go on after a stop token": lambda going_on, stopping, horizon: sum(
                (going_on + stopping) ** t for t in range(horizon + 1)
            ),
            "the prompt is left out": lambda going_on, stopping, horizon: sum(
                going_on ** (t - 1) * (going_on + stopping) for t in range(1, horizon + 1)
            ),
        },
    ),
)
