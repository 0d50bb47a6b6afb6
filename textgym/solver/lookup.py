"""From observations back to the states of a prefix tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.solver.tree import Ints, PrefixTree


class Lookup:
    """Finds the states that a batch of observations shows.

    An observation does not say where its prompt ends. Where one prompt is the beginning of another, two states may look
    the same; then no policy of observations can tell them apart, and asking for such a state is an error.
    """

    def __init__(self, tree: PrefixTree) -> None:
        self._tree = tree
        self._size = tree.task.vocabulary.size
        first: dict[tuple[int, ...], int] = {}
        for row, prompt in enumerate(tree.task.encoded(tree.split)):
            first.setdefault(prompt.ids, row)
        self._prompts = [(np.array(ids), row) for ids, row in first.items()]
        # Siblings stand in the order of their actions and families in that of their parents: the key is ascending.
        self._keys = [level.parent * self._size + level.action for level in tree.levels]

    def locate(self, observation: Mapping[str, NDArray[Any]]) -> tuple[Ints, Ints]:
        """Depth and row of every observation, (B,) each.

        Raises: ValueError for an observation that shows no state of the tree, or more than one.
        """
        ids = np.asarray(observation["input_ids"])
        lengths = np.count_nonzero(observation["attention_mask"], axis=1)
        depths, rows = np.full(len(ids), -1), np.full(len(ids), -1)
        for prompt, root in self._prompts:
            start = len(prompt)
            here = np.flatnonzero((lengths >= start) & (ids[:, :start] == prompt).all(1))
            here, row = self._descend(ids, lengths, here, start, root)
            if (rows[here] >= 0).any():
                index = int(here[rows[here] >= 0][0])
                raise ValueError(
                    f"observation {index}: two states of this task look like it, because one prompt begins "
                    "with another; allowed are tasks whose prompts end in a mark of their own"
                )
            depths[here], rows[here] = lengths[here] - start, row
        if (rows < 0).any():
            index = int(np.flatnonzero(rows < 0)[0])
            tokens = ids[index, : lengths[index]].tolist()
            raise ValueError(
                f"observation {index}: its tokens {tokens} are no state that legal actions reach from a "
                f"prompt of the {self._tree.split} split"
            )
        return depths, rows

    def _descend(self, ids: Ints, lengths: Ints, here: Ints, start: int, root: int) -> tuple[Ints, Ints]:
        """Of the observations `here`, all of one prompt, those that are in the tree, and their rows."""
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
