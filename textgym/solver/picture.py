"""The solved prefix tree of a small task, drawn as text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from textgym.render import escaped
from textgym.solver.optimum import Solution


def draw_tree(solution: Solution) -> str:
    """One line per state: the token that leads there, pi* and the reference's probability of it, and Q*.

    Of a state that has ended, Q* is what was paid on the way there. Values are in units of reward at time 0.
    """
    tree, lines = solution.tree, []
    for row, prompt in enumerate(tree.task.encoded(tree.split)):
        lines.append((f"{escaped(prompt.text)}", f"V* {solution.values[0][row]:.4f}"))
        lines += _below(solution, 0, row, "")
    width = max(len(left) for left, _ in lines)
    return "\n".join(f"{left:<{width}}  {right}" for left, right in lines)


def _below(solution: Solution, depth: int, row: int, indent: str) -> Iterator[tuple[str, str]]:
    """The lines of the states that follow one state: what stands on the left, and the numbers."""
    level, vocabulary = solution.tree.levels[depth], solution.tree.task.vocabulary
    children = range(level.first[row], level.first[row + 1])
    for child in children:
        last = child == children[-1]
        token = escaped(vocabulary.token_text(int(solution.tree.levels[depth + 1].action[child])))
        taken = np.exp(solution.log_policy[depth][child])
        usual = np.exp(solution.log_reference[depth][child])
        numbers = f"pi* {taken:.4f}  ref {usual:.4f}  Q* {solution.action_values[depth][child]:.4f}"
        yield f"{indent}{'└─ ' if last else '├─ '}{token}", numbers
        yield from _below(solution, depth + 1, child, indent + ("   " if last else "│  "))
