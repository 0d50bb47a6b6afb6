"""Solve a small environment exactly: V*, J*, and the completions of the optimal policy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from rich.table import Table

from textgym.checks import JsonObject, check_count, check_number
from textgym.commands.console import folded, number, output, table, untrusted
from textgym.commands.flags import EnvId, EnvOptions, env_options, find_id, parse
from textgym.prompts import Split
from textgym.render import escaped
from textgym.solver import Solution, solve
from textgym.task import BETA, GAMMA

_NARROW = 72  # Columns below which numbers leave no room for texts.


def draw_tree(solution: Solution) -> str:
    """Return one line per state: the token that leads there, pi* and the reference's probability of it, and Q*.

    What the environment writes stands in brackets, with its chance given the tokens seen.

    Of a state that has ended, Q* is what was paid on the way there. Values are in units of reward at time 0.
    """
    tree, lines = solution.tree, []
    for row, prompt in enumerate(tree.task.encoded(tree.split)):
        lines.append((f"{escaped(prompt.text)}", f"V* {solution.values[0][row]:.4f}"))
        lines += _below(solution, 0, row, "")
    width = max(len(left) for left, _ in lines)
    return "\n".join(f"{left:<{width}}  {right}" for left, right in lines)


def _below(solution: Solution, depth: int, row: int, indent: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of the states that follow one state: what stands on the left, and the numbers."""
    level = solution.tree.levels[depth]
    children = range(level.first[row], level.first[row + 1])
    for child in children:
        below = solution.tree.levels[depth + 1]
        last = child == children[-1]
        move = escaped(solution.tree.move_text(int(below.action[child])))
        taken = np.exp(solution.log_policy[depth][child])
        usual = np.exp(solution.log_reference[depth][child])
        chosen = f"pi* {taken:.4f}  ref {usual:.4f}"
        if below.chance is not None and not np.isnan(below.chance[child]):
            move, chosen = f"[{move}]", f"chance {taken:.4f}        "
        yield f"{indent}{'└─ ' if last else '├─ '}{move}", f"{chosen}  Q* {solution.action_values[depth][child]:.4f}"
        yield from _below(solution, depth + 1, child, indent + ("   " if last else "│  "))


@dataclass(frozen=True)
class SolveFlags:
    """Solve a small environment exactly: V*(s0) of every prompt, J of the reference, J*, and the optimum's answers.

    Example: textgym solve Stop-v0 --beta 0.1 --prompts 2
    """

    id: EnvId
    """Id of the environment, as in `textgym list`."""
    beta: float | None = None
    """Reward units per nat of KL; 0 maximises the reward only; by default the task's."""
    gamma: float | None = None
    """Discount per token; by default the task's."""
    split: Split = "train"
    """Prompts to solve: train, eval (held-out), or tune (for choosing settings)."""
    completions: int = 5
    """Number of the optimal policy's most likely completions to show for each prompt."""
    prompts: int = 10
    """Number of prompts to show; JSON contains all of them."""
    tree: int = 60
    """Draw the tree if it has at most this many states."""
    max_states: int = 2_000_000
    """Maximum number of states of a tree to solve."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=3."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        for name, least in {"completions": 1, "prompts": 0, "tree": 0, "max_states": 1}.items():
            check_count(name, getattr(self, name), least)
        for name, most, unit in (("beta", math.inf, BETA), ("gamma", 1.0, GAMMA)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0, most, unit)


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(SolveFlags, arguments, "solve")
    env_id = find_id(flags.id)
    env = gym.make(env_id, split=flags.split, **env_options(flags.env, taken=("split",)))
    solution = solve(env, beta=flags.beta, gamma=flags.gamma, max_states=flags.max_states)
    if flags.json:
        print(json.dumps(_report(env_id, solution, flags.completions), indent=2, allow_nan=False))
    else:
        _print(env_id, solution, flags)


def _report(env_id: str, solution: Solution, count: int) -> JsonObject:
    tree, optimal = solution.tree, solution.optimal
    prompts = tree.task.encoded(tree.split)
    return {
        "id": env_id,
        "split": tree.split,
        "beta": solution.beta,
        "gamma": solution.gamma,
        "states": tree.states,
        "objective": solution.objective,
        "reference_objective": solution.reference_objective,
        "expected_return": optimal.expected_return,
        # Infinite for a hard optimum that the reference never writes: JSON has no number for it.
        "kl": optimal.kl if np.isfinite(optimal.kl) else None,
        "prompts": [
            {
                "prompt": prompt.text,
                "weight": float(tree.weights[row]),
                "value": float(solution.prompt_values[row]),
                "reference_value": float(solution.reference.prompt_objectives[row]),
                "completions": [
                    {
                        "text": completion.text,
                        "tokens": list(completion.tokens),
                        "probability": completion.probability,
                        "reference_probability": completion.reference_probability,
                        "return": completion.ret,
                    }
                    for completion in solution.likeliest(row, count)
                ],
            }
            for row, prompt in enumerate(prompts)
        ],
    }


def _print(env_id: str, solution: Solution, flags: SolveFlags) -> None:
    console, tree, optimal = output(), solution.tree, solution.optimal
    setting = f"beta {solution.beta:g}, gamma {solution.gamma:g}, {tree.states:,} states"
    console.print(untrusted(f"{env_id}, {tree.split} prompts, {setting}"))
    console.print(
        f"optimum    J* {solution.objective:.4f} = return {optimal.expected_return:.4f} "
        f"- {solution.beta:g} x KL {optimal.kl:z.4f} nats"
    )
    console.print(f"reference  J  {solution.reference_objective:.4f}")
    console.print(_table(solution, flags, console.width < _NARROW))
    hidden = len(solution.prompt_values) - flags.prompts
    if hidden > 0:
        console.print(f"{hidden} more prompts: --prompts {len(solution.prompt_values)} shows all of them")
    if tree.states <= flags.tree:
        console.print(draw_tree(solution), markup=False, soft_wrap=True)


def _table(solution: Solution, flags: SolveFlags, narrow: bool) -> Table:
    """Return the likeliest completions of every prompt. Args: narrow: leave out what leaves no room for texts."""
    probabilities = [number(heading, no_wrap=True) for heading in ("pi*", "ref", "return")[:: 2 if narrow else 1]]
    values = [] if narrow else [number("J ref"), number("V*")]
    found = table(folded("prompt"), *values, folded("the optimum writes"), *probabilities)
    prompts = solution.tree.task.encoded(solution.tree.split)[: flags.prompts]
    for row, prompt in enumerate(prompts):
        base, value = solution.reference.prompt_objectives[row], solution.prompt_values[row]
        head = (untrusted(prompt.text), f"{base:.4f}", f"{value:.4f}")[: 1 + len(values)]
        for place, completion in enumerate(solution.likeliest(row, flags.completions)):
            numbers = (
                f"{completion.probability:.4f}",
                f"{completion.reference_probability:.2g}",
                f"{completion.ret:.4g}",
            )
            found.add_row(
                *((("",) * len(head)) if place else head),
                untrusted(completion.text),
                *numbers[:: 2 if narrow else 1],
            )
    return found
