"""Check with the exact solver that an agent implements its algorithm, one statement at a time."""

from textgym_agents.conformance.hooks import Estimator, LossGradient, TrainingBatch
from textgym_agents.conformance.run import check, check_names
from textgym_agents.conformance.under_test import FAILS, HOLDS, NOT_ASKED, Finding, LearningTask

__all__ = [
    "FAILS",
    "HOLDS",
    "NOT_ASKED",
    "Estimator",
    "Finding",
    "LearningTask",
    "LossGradient",
    "TrainingBatch",
    "check",
    "check_names",
]
