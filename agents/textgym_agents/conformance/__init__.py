"""Does an agent do what its algorithm says? Checks against the exact solver, one statement each."""

from textgym_agents.conformance.hooks import Estimator, LossGradient, TrainingBatch
from textgym_agents.conformance.run import check, check_names
from textgym_agents.conformance.subject import FAILS, HOLDS, NOT_ASKED, Finding, LearningTask

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
