"""Wrappers that make value-based and small-network agents strong on real vocabularies, single and vector."""

from textgym.wrappers.actions import (
    AllowedActions,
    EmbeddingActions,
    TopKActions,
    VectorAllowedActions,
    VectorEmbeddingActions,
    VectorTopKActions,
    token_embedding,
)
from textgym.wrappers.reference import LMFeatures, ReferenceReward, VectorLMFeatures, VectorReferenceReward

__all__ = [
    "AllowedActions",
    "EmbeddingActions",
    "LMFeatures",
    "ReferenceReward",
    "TopKActions",
    "VectorAllowedActions",
    "VectorEmbeddingActions",
    "VectorLMFeatures",
    "VectorReferenceReward",
    "VectorTopKActions",
    "token_embedding",
]
