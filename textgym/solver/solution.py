"""Find the optimum of a small token MDP by backward induction: V*, Q*, pi*, J*.

The objective is J = E[sum_t gamma^t r_t] - beta E[sum_t log(pi / ref)]: rewards are discounted by their absolute time
step, the KL is not discounted. Values are therefore kept in units of reward at time 0,

    Q(s_t, a) = gamma^t r_t + V(s_{t+1}),        V(s_t) = max_pi sum_a pi(a) [Q(s_t, a) - beta log(pi(a) / ref(a))],

with V = 0 once an episode has ended. The maximum is taken at pi*(a) = ref(a) exp(Q(s_t, a) / beta) / Z and is
V(s_t) = beta log sum_a ref(a) exp(Q(s_t, a) / beta); so the optimum is Gibbs, ref(y) exp(R(y) / beta) / Z with R the
discounted return, at every gamma. In units of reward at time t the same recursion has V_t = V / gamma^t and the
temperature beta / gamma^t, which grows with t and has no value at gamma = 0.

Where the environment moves, V(s) = sum over its replies of p(reply given the tokens seen) Q(s, reply): it is not the
policy's to choose. With random replies pi* is therefore not Gibbs over whole episodes, whose beta log Z is too high.

Source: Korbak et al. (2022), arXiv:2205.11275, section 3; Levine (2018), arXiv:1805.00909, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from textgym.checks import Bools, Floats, Ints, token_counts
from textgym.lm.reference import Observation, Reference
from textgym.render import html_table
from textgym.solver.build import MAX_STATES, check_beta, check_gamma, prefix_tree
from textgym.solver.tree import Level, PrefixTree, edge_log_probs, log_sum, per_edge, per_state
from textgym.solver.values import Completion, PolicyValues, evaluate_edges
from textgym.task import make_reference

_SHOWN = 5  # prompts in a notebook
_SHARED = (-2, -2)  # in place of depth and row, where two states look the same
_TIE = 1e-12  # Q-values that differ by less, relative to their size, are one value: sums round differently.


def _plain(value: object) -> object:
    """Return data of a prompt whose `repr` is whole: that of an array leaves out digits and entries."""
    return value.tolist() if isinstance(value, np.ndarray) else value


class Lookup:
    """Finds the states that a batch of observations shows.

    An observation says neither where its prompt ends nor what data it has. Where prompts are alike in what it shows, no
    policy of observations can tell their states apart, and asking for one is an error.
    """

    def __init__(self, tree: PrefixTree) -> None:
        self._tree = tree
        self._size = tree.task.vocabulary.size
        columns = tree.task.prompt_set(tree.split).columns.values()
        first: dict[tuple[tuple[int, ...], str, str], int] = {}
        for row, prompt in enumerate(tree.task.encoded(tree.split)):
            data = repr([_plain(each[row]) for each in columns])
            first.setdefault((prompt.ids, prompt.text, data), row)
        self._prompts = [(np.array(key[0]), row) for key, row in first.items()]
        running: dict[tuple[int, ...], tuple[int, int]] = {}
        ended: dict[tuple[int, ...], tuple[int, int]] = {}  # of which a policy is never asked
        for ids, (depth, row) in self._states() if tree.replies else ():
            if tree.levels[depth].finished[row]:
                ended[ids] = depth, row
            else:
                running[ids] = _SHARED if ids in running else (depth, row)
        self._turns = ended | running
        # Siblings stand in the order of their actions and families in that of their parents: the key is ascending.
        self._keys = [level.parent * self._size + level.action for level in tree.levels]

    def locate(self, observation: Observation) -> tuple[Ints, Ints]:
        """Return depth and row of every observation, (B,) each.

        Raises: ValueError for an observation that shows no state of the tree, or more than one.
        """
        ids = np.asarray(observation["input_ids"], dtype=np.int64)
        lengths = token_counts(observation)
        depths, rows = np.full(len(ids), -1), np.full(len(ids), -1)
        if self._turns:
            keys = [tuple(row[:length].tolist()) for row, length in zip(ids, lengths, strict=True)]
            found = np.array([self._turns.get(key, (-1, -1)) for key in keys]).reshape(-1, 2)
            self._check_alone(found[:, 0] != _SHARED[0])
            self._check_found(ids, lengths, found[:, 1])
            return found[:, 0], found[:, 1]
        for prompt, root in self._prompts:
            start = len(prompt)
            here = np.flatnonzero(lengths >= start)  # observations may be narrower than a prompt
            here = here[(ids[here, :start] == prompt).all(1)] if here.size else here
            here, row = self._descend(ids, lengths, here, start, root)
            self._check_alone(np.isin(np.arange(len(ids)), here[rows[here] >= 0], invert=True))
            depths[here], rows[here] = lengths[here] - start, row
        self._check_found(ids, lengths, rows)
        return depths, rows

    def _states(self) -> Iterator[tuple[tuple[int, ...], tuple[int, int]]]:
        """Yield every state in which the policy moves, or nobody, by its tokens."""
        prompts, kept = self._tree.task.encoded(self._tree.split), {root for _, root in self._prompts}
        for depth, level in enumerate(self._tree.levels):
            tokens, _ = self._tree.written(depth, np.arange(len(level.parent)))
            prompt = self._tree.prompt_of[depth].tolist()
            for row, (root, each) in enumerate(zip(prompt, tokens, strict=True)):
                if root in kept and (level.environment is None or not level.environment[row]):
                    yield (*prompts[root].ids, *each), (depth, row)

    def _check_alone(self, alone: Bools) -> None:
        if not alone.all():
            raise ValueError(
                f"observation {int(alone.argmin())}: two states of this task look like it, because one prompt begins "
                "with another, is the same with other data, or a conversation can be read in two ways; allowed are "
                "tasks whose states differ by their tokens"
            )

    def _check_found(self, ids: Ints, lengths: Ints, rows: Ints) -> None:
        if (rows < 0).any():
            index = int(np.flatnonzero(rows < 0)[0])
            tokens = ids[index, : lengths[index]].tolist()
            raise ValueError(
                f"observation {index}: its tokens {tokens} are no state that legal actions reach from a "
                f"prompt of the {self._tree.split} split"
            )

    def _descend(self, ids: Ints, lengths: Ints, here: Ints, start: int, root: int) -> tuple[Ints, Ints]:
        """Return which of the observations `here`, all of one prompt, are in the tree, and their rows."""
        row = np.full(len(here), root)
        alive = np.ones(len(here), dtype=np.bool_)
        for depth in range(1, int((lengths[here] - start).max(initial=0)) + 1):
            going = np.flatnonzero(alive & (lengths[here] - start >= depth))
            if depth >= len(self._keys):
                alive[going] = False
                break
            wanted = row[going] * self._size + ids[here[going], start + depth - 1]
            keys = self._keys[depth]
            found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            alive[going] = keys[found] == wanted
            row[going] = found
        return here[alive], row[alive]


def soft_backup(action_values: Floats, log_reference: Floats, level: Level, beta: float) -> tuple[Floats, Floats]:
    """Take one step of induction at beta > 0.

    Args:
        action_values: Q per edge (m,), reward units; log_reference: nats, -inf where the reference never goes.
        level: the states that the edges leave.
    Returns: V per running state, -inf where every edge has a reference of 0 or leads to such a state; log pi* per edge.
    """
    open_ = (log_reference > -np.inf) & (action_values > -np.inf)
    top = per_state(np.where(open_, action_values, -np.inf), level, np.maximum)
    with np.errstate(over="ignore", invalid="ignore"):
        gaps = np.where(open_, (action_values - per_edge(top, level)) / beta, -np.inf)
    tilted = log_reference + gaps
    total = log_sum(tilted, level)
    # At large beta the log of a number next to 1 loses what the factor beta brings back: log(1 + x) does not.
    excess = per_state(np.exp(log_reference) * np.expm1(gaps), level, np.add)
    log_mean = np.where(excess > -0.5, np.log1p(np.maximum(excess, -0.5)), total)
    return top + beta * log_mean, _policy(tilted, total, np.ones(len(gaps), dtype=np.bool_), level)


def hard_backup(
    action_values: Floats, log_reference: Floats, log_mass: Floats, level: Level, unit: float = 1.0
) -> tuple[Floats, Floats, Floats]:
    """Take one step of induction at beta = 0: V = max Q, where the reference has no say.

    Among equal maxima the policy is the limit of beta -> 0: the reference given that it makes no mistake.

    Args:
        log_mass: per edge, the limit of (V_beta - V_0) / beta: where nothing is left to chance, log of the probability
            that the reference makes none from there on.
        unit: the largest reward from here on; values that differ by 1e-12 of it are equal.
    Returns: V and the log mass per running state; log pi* per edge, all equal where the reference makes a mistake for
        certain.
    """
    values = per_state(action_values, level, np.maximum)
    slack = _TIE * np.maximum(unit, np.abs(values))
    best = action_values >= per_edge(values - slack, level)
    kept = np.where(best, log_reference + log_mass, -np.inf)
    total = log_sum(kept, level)
    return values, total, _policy(kept, total, best, level)


def _policy(logs: Floats, total: Floats, candidates: Bools, level: Level) -> Floats:
    """Normalise logs; where all of them are -inf, every candidate gets the same probability."""
    dead = np.isneginf(total)
    result = logs - per_edge(np.where(dead, 0.0, total), level)
    if dead.any():
        count = per_state(candidates.astype(np.float64), level, np.add)
        with np.errstate(divide="ignore"):
            even = np.log(candidates / per_edge(count, level))
        result = np.where(per_edge(dead, level), even, result)
    return np.asarray(result)


@dataclass(frozen=True, eq=False)
class Solution:
    """The optimum of J = E[sum gamma^t r_t] - beta E[sum KL], made by `solve`; also the optimal policy.

    Values are in units of reward at time 0, see `textgym.solver.solution`.

    Attributes:
        tree, beta, gamma: of the problem.
        values: V*(s) per state. action_values: Q*(s, a) per edge, gamma^t r_t + V*(s_{t+1}).
        log_policy, log_reference: log pi* and log pi_ref per edge, nats. At beta = 0 equally good actions share the
            probability as they do in the limit beta -> 0.
    """

    tree: PrefixTree = field(repr=False)
    beta: float
    gamma: float
    values: tuple[Floats, ...] = field(repr=False)
    action_values: tuple[Floats, ...] = field(repr=False)
    log_policy: tuple[Floats, ...] = field(repr=False)
    log_reference: tuple[Floats, ...] = field(repr=False)

    @property
    def objective(self) -> float:
        """J*, averaged over rho."""
        return float(self.tree.weights @ self.values[0])

    @property
    def reference_objective(self) -> float:
        """J of the reference, averaged over rho."""
        return self.reference.objective

    @property
    def prompt_values(self) -> Floats:
        """V*(s_0) of every prompt, (P,)."""
        return self.values[0]

    @cached_property
    def optimal(self) -> PolicyValues:
        """Return, KL, entropy and trajectories of pi*."""
        return evaluate_edges(self.tree, self.log_policy, self.log_reference, self.beta, self.gamma)

    @cached_property
    def reference(self) -> PolicyValues:
        """The values of the reference."""
        return evaluate_edges(self.tree, self.log_reference, self.log_reference, self.beta, self.gamma, "reference")

    def optimality(self, objective: float) -> float:
        """Return (J - J_ref) / (J* - J_ref) of an objective J: 0 is the reference, 1 the optimum; NaN if equal."""
        room = self.objective - self.reference_objective
        return (objective - self.reference_objective) / room if room > _TIE * abs(self.objective) else float("nan")

    def _repr_html_(self) -> str:
        best, base = self.optimal, self.reference
        numbers = {
            "J": (base.objective, best.objective),
            "reward": (base.expected_return, best.expected_return),
            "KL, nats": (base.kl, best.kl),
            "entropy, nats": (base.entropy, best.entropy),
        }
        rows = ((name, *(f"{value:z.3f}" for value in pair)) for name, pair in numbers.items())
        prompts = self.tree.task.encoded(self.tree.split)
        answers = (
            (prompt.text, f"{value:z.3f}", found.text, f"{found.probability:.3f}")
            for index, (prompt, value) in enumerate(zip(prompts[:_SHOWN], self.prompt_values, strict=False))
            for found in self.likeliest(index, 1)
        )
        setting = f"<p>beta = {self.beta:g} reward units per nat, gamma = {self.gamma:g}</p>"
        heads = ("prompt", "V*", "likeliest answer of the optimum", "its probability")
        return setting + html_table(*rows, heads=("", "reference", "optimum")) + html_table(*answers, heads=heads)

    def likeliest(self, prompt: int, count: int = 5) -> list[Completion]:
        """Return the `count` most probable completions of a prompt under the optimum, the most probable first."""
        return self.optimal.trajectories.likeliest(prompt, count)

    def log_probs(self, observation: Observation) -> Floats:
        """Return the logs of pi* in a batch of states, (B, V) nats, -inf at illegal tokens: the optimum as a policy.

        A state that has ended gets the uniform distribution over the vocabulary's ordinary tokens: nothing follows it.
        Raises: ValueError for an observation that is no state of the tree, or that two of its states share.
        """
        depths, rows = self._lookup.locate(observation)
        allowed = self.tree.task.vocabulary.allowed
        with np.errstate(divide="ignore"):
            result = np.tile(np.log(allowed / np.count_nonzero(allowed)), (len(rows), 1))
        for depth in np.unique(depths):
            level = self.tree.levels[depth]
            here = np.flatnonzero(depths == depth)
            here = here[~level.finished[rows[here]]]
            if len(here):
                result[here] = -np.inf
                counts = level.first[rows[here] + 1] - level.first[rows[here]]
                place = np.repeat(here, counts)
                offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                edge = np.repeat(level.first[rows[here]], counts) + offset
                result[place, self.tree.levels[depth + 1].action[edge]] = self.log_policy[depth][edge]
        return result

    def state_values(self, observation: Observation) -> Floats:
        """Return V* in the states of a batch of observations, (B,). Raises: as `log_probs`."""
        depths, rows = self._lookup.locate(observation)
        return np.array([self.values[depth][row] for depth, row in zip(depths, rows, strict=True)])

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.tree)


def solve(
    problem: object,
    reference: Reference | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    split: str | None = None,
    max_states: int = MAX_STATES,
) -> Solution:
    """Return the exact optimum, by backward induction over the prefix tree.

    Args:
        problem: a `Task`, an environment of one, or a `PrefixTree`.
        reference: pi_ref, anything with `log_probs(observation)`; it is normalised over the legal actions. None takes
            the task's.
        beta: reward units per nat; above 0 the optimum is soft, at 0 it is the greatest return. gamma: in [0, 1].
            None takes the task's.
        split: "train", "eval" or "tune"; None takes the environment's, "train" for a task.
        max_states: states; a larger tree is refused before memory is spent on it.
    Raises: as `prefix_tree` and `edge_log_probs`; ValueError if the reference never finishes any legal completion of
        some prompt.
    """
    tree = prefix_tree(problem, split, max_states)
    beta, gamma = check_beta(tree.task, beta), check_gamma(tree.task, gamma)
    reference = make_reference(tree.task) if reference is None else reference
    log_reference = edge_log_probs(tree, reference, "reference")
    solution = _induct(tree, log_reference, beta, gamma)
    if np.isneginf(solution.values[0]).any():
        prompt = tree.task.encoded(tree.split)[int(np.argmin(solution.values[0]))].text
        raise ValueError(
            f"reference: it gives every legal completion of prompt {prompt!r} the probability 0; "
            "allowed is one that can finish every prompt"
        )
    return solution


def _induct(tree: PrefixTree, log_reference: tuple[Floats, ...], beta: float, gamma: float) -> Solution:
    """Induct backwards from the last level to the prompts."""
    ends, unit = np.zeros(len(tree.levels[-1].parent)), 0.0
    values, log_mass, action_values, log_policy = [ends], ends, list[Floats](), list[Floats]()
    for depth in range(len(tree.levels) - 2, -1, -1):
        level = tree.levels[depth]
        paid = gamma**depth * tree.levels[depth + 1].reward
        worth, unit = paid + values[0], max(unit, float(np.abs(paid).max()))
        own, mass = np.zeros(len(level.parent)), np.zeros(len(level.parent))
        if beta:
            own[level.running], logs = soft_backup(worth, log_reference[depth], level, beta)
        else:
            found = hard_backup(worth, log_reference[depth], log_mass, level, unit)
            own[level.running], mass[level.running], logs = found
        if level.environment is not None:
            moves, base = level.environment[level.running], log_reference[depth]
            chance = np.exp(base)
            with np.errstate(invalid="ignore"):  # 0 * -inf, only where the policy moves
                mean, lost = (per_state(chance * each, level, np.add) for each in (worth, log_mass))
            own[level.running] = np.where(moves, mean, own[level.running])
            mass[level.running] = np.where(moves, lost, mass[level.running])
            logs = np.where(per_edge(moves, level), base, logs)
        log_mass = mass
        values.insert(0, own)
        action_values.insert(0, worth)
        log_policy.insert(0, logs)
    return Solution(tree, beta, gamma, tuple(values), tuple(action_values), tuple(log_policy), log_reference)
