"""Preferences between completions: data types, file formats, and collecting them from a policy."""

from textgym.preferences.collect import Collected, annotate, check_temperature, collect
from textgym.preferences.data import Demonstration, Problem, Ranking, Reading, disagreement, pairs
from textgym.preferences.files import read_demonstrations, read_rankings, write_demonstrations, write_rankings

__all__ = [
    "Collected",
    "Demonstration",
    "Problem",
    "Ranking",
    "Reading",
    "annotate",
    "check_temperature",
    "collect",
    "disagreement",
    "pairs",
    "read_demonstrations",
    "read_rankings",
    "write_demonstrations",
    "write_rankings",
]
