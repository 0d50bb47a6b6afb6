"""Where states stand in a tree: by a batch of observations, by their tokens, and by a state of the environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from core_tools import word_task
from solver_tools import bigram, odd_grammar, small_task

from textgym import make_task
from textgym.solver import prefix_tree, solve
from textgym.solver.solution import Lookup
from textgym.state import TokenState


def batch(*rows: list[int], width: int = 5) -> dict[str, Any]:
    """Observations of these tokens, padded with a token that could follow."""
    ids, mask = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=np.int8)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask}


def test_states_of_all_depths_are_found_in_one_batch() -> None:
    solution = solve(small_task(), bigram())
    tree = solution.tree
    places = [(depth, row) for depth in (3, 0, 2, 1) for row in range(len(tree.levels[depth].parent))]
    tokens = []
    for depth, row in places:
        prompt = tree.task.encoded("train")[int(tree.prompt_of[depth][row])]
        tokens.append([*prompt.ids, *tree.written(depth, np.array([row]))[0][0]])
    assert tree.written(1, np.arange(3)) == ([[0], [1], [2]], [(), (), ()])
    depths, rows = Lookup(tree).locate(batch(*tokens))
    assert [*zip(depths.tolist(), rows.tolist(), strict=True)] == places
    values = [solution.values[depth][row] for depth, row in places]
    np.testing.assert_array_equal(solution.state_values(batch(*tokens)), values)


# Prompts are 0 and 1 2; 3 ends an answer. In the grammar 1 cannot follow a prompt, and 0 and 3 only stand there.
@pytest.mark.parametrize("foreign", [[2], [0, 3, 0, 0], [1, 2, 3, 0], [0, 3, 3], [0, 0, 0, 0, 0]])
@pytest.mark.parametrize("known", [[], [[0]], [[1, 2], [0, 0]]])
def test_what_is_no_state_is_named_by_its_place_in_the_batch(foreign: list[int], known: list[list[int]]) -> None:
    lookup = Lookup(prefix_tree(small_task()))
    with pytest.raises(ValueError, match=rf"observation {len(known)}: its tokens .* are no state"):
        lookup.locate(batch(*known, foreign, [0]))


@pytest.mark.parametrize("foreign", [[0, 1, 1], [0, 1, 2, 0], [0, 0, 0], [1, 2, 2, 3]])
def test_what_the_mask_forbids_is_no_state(foreign: list[int]) -> None:
    lookup = Lookup(prefix_tree(small_task(mask=odd_grammar)))
    assert lookup.locate(batch([0, 0, 1], [1, 2, 2, 2]))[0].tolist() == [2, 2]
    with pytest.raises(ValueError, match=r"observation 1: its tokens .* are no state"):
        lookup.locate(batch([0, 2], foreign))


@pytest.mark.parametrize("turns", [None, 1])
def test_what_looks_like_two_states_is_named_by_its_place_in_the_batch(turns: int | None) -> None:
    # The second prompt stands there twice, with other data.
    options: dict[str, Any] = {"tokenizer": ["a", "b", "<end>"], "stop": "<end>", "max_new_tokens": 1}
    if turns is not None:
        options |= {"responder": lambda asked: ["b"] * len(asked), "turns": 1, "turn_tokens": 1, "reply_tokens": 1}
        del options["max_new_tokens"]
    task = make_task("Text", prompts=["a", "b", "b"], columns={"answer": ["a", "a", "b"]}, reward="length", **options)
    lookup = Lookup(prefix_tree(task))
    assert [each.tolist() for each in lookup.locate(batch([0], [0]))] == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match="observation 1: two states"):
        lookup.locate(batch([0], [1], [0]))


@pytest.mark.parametrize("mask", [None, lambda states: np.ones((len(states), 4), dtype=np.bool_)])
def test_tokens_that_go_on_after_the_end_lead_nowhere(mask: Any) -> None:
    tree = prefix_tree(small_task(mask=mask))
    assert tree.levels[0].action.tolist() == [-1, -1]  # nothing led to the prompts
    for tokens in ((3, 0), (1, 3, 0), (0, 0, 0, 0), (3, 3)):
        with pytest.raises(KeyError, match=f"move {len(tokens) - 1} is not legal"):
            tree.find(1, tokens)


def test_states_of_the_environment_have_their_place_in_the_tree_of_their_split() -> None:
    task = word_task(max_new_tokens=2)
    train, other = prefix_tree(task), prefix_tree(task, "eval")
    states = [TokenState(prompt, (1, 2)) for prompt in task.encoded("train")]
    assert [train.place(state) for state in states] == [train.find(row, (1, 2)) for row in range(3)]
    for state in states:  # "eval" has one prompt, which is another
        with pytest.raises(KeyError, match="eval has none like it"):
            other.place(state)
    nowhere = replace(states[0], prompt=replace(states[0].prompt, index=None))
    with pytest.raises(KeyError, match="train has none like it"):
        train.place(nowhere)
