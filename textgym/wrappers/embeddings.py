"""Points for tokens: a language model's embeddings in few dimensions, or a random code."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.references import has_language_model, reference_model
from textgym.task import Task


def token_embedding(task: Task, dimensions: int, seed: int = 0) -> NDArray[np.float64]:
    """A point in [-1, 1]^D for every token: alike tokens are near each other where the reference is an LM.

    Args:
        task: supplies vocabulary and reference.
        dimensions: D; with an LM at most the width of its embedding.
        seed: of the random directions that stand in where the reference is no LM.
    Returns: (V, D) float64.
    Raises: ValueError for D out of range.
    """
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or dimensions < 1:
        raise ValueError(f"dimensions={dimensions!r}: allowed is an int from 1 on")
    if has_language_model(task):
        return _scaled(_principal(_input_embedding(task), dimensions, task.vocabulary.allowed))
    points = np.random.default_rng([seed, 3]).standard_normal((task.vocabulary.size, dimensions))
    return _scaled(points / np.linalg.norm(points, axis=1, keepdims=True))


def _input_embedding(task: Task) -> NDArray[Any]:
    from textgym.lm.causal import load_causal_lm

    weights: NDArray[Any] = (
        load_causal_lm(reference_model(task)).get_input_embeddings().weight.detach().double().numpy()
    )
    return weights


def _principal(rows: NDArray[Any], dimensions: int, allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The rows on the main axes of the allowed ones."""
    if dimensions > rows.shape[1]:
        raise ValueError(
            f"dimensions={dimensions!r}: the reference's embedding has {rows.shape[1]}, allowed is no more"
        )
    centred = rows - rows[allowed].mean(0)
    axes = np.linalg.svd(centred[allowed], full_matrices=False)[2][:dimensions]
    return np.asarray(centred @ axes.T)


def _scaled(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.clip(points / np.abs(points).max(0), -1.0, 1.0))
