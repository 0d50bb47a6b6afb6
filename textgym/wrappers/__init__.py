"""Wrappers, single and vector: for value-based agents, small networks on real vocabularies, and other libraries."""

from textgym.wrappers.actions import (
    AllowedActions,
    AnswerEnv,
    EmbeddingActions,
    TopKActions,
    TurnEnv,
    VectorAllowedActions,
    VectorEmbeddingActions,
    VectorTopKActions,
)
from textgym.wrappers.libraries import (
    ActionMaskInfo,
    NoInfo,
    OneHotTokens,
    VectorActionMaskInfo,
    VectorNoInfo,
    VectorOneHotTokens,
)
from textgym.wrappers.reference import (
    LMFeatures,
    ReferenceReward,
    VectorLMFeatures,
    VectorReferenceReward,
    token_embedding,
)

__all__ = [
    "ActionMaskInfo",
    "AllowedActions",
    "AnswerEnv",
    "EmbeddingActions",
    "LMFeatures",
    "NoInfo",
    "OneHotTokens",
    "ReferenceReward",
    "TopKActions",
    "TurnEnv",
    "VectorActionMaskInfo",
    "VectorAllowedActions",
    "VectorEmbeddingActions",
    "VectorLMFeatures",
    "VectorNoInfo",
    "VectorOneHotTokens",
    "VectorReferenceReward",
    "VectorTopKActions",
    "token_embedding",
]
