"""Errors of the command line, and any error as one line of text."""

from __future__ import annotations

import gymnasium as gym

from textgym.faults import with_remedy
from textgym.render import escaped

# What to install for a module that is missing: the project's extras.
_EXTRAS = {
    "torch": "lm",
    "transformers": "lm",
    "safetensors": "lm",
    "accelerate": "lm",
    "re2": "rewards",
    "jsonschema": "rewards",
    "llguidance": "rewards",
    "rouge_score": "rewards",
    "sacrebleu": "rewards",
    "vaderSentiment": "rewards",
    "stable_baselines3": "sb3",
    "sb3_contrib": "sb3",
    "minari": "data",
    "h5py": "data",
    "ray": "dist",
    "matplotlib": "report",
    "tensorboard": "report",
    "PIL": "report",
    "jinja2": "report",
    "markupsafe": "report",
    "plotly": "report",
    "scipy": "report",
}


class UsageError(Exception):
    """A command line that cannot be run; the message is for the user."""


_EXPLAINED = (
    str,
    Warning,
    UsageError,
    ValueError,
    TypeError,
    OSError,
    RuntimeError,
    ModuleNotFoundError,
    ArithmeticError,
    gym.error.Error,
)


def one_line(error: Exception | Warning | str) -> str:
    """What went wrong, without line breaks and without anything that could steer a terminal."""
    return escaped(" ".join(_explain(error).split()))


def _explain(error: Exception | Warning | str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _explain_missing(error.name)
    if isinstance(error, Exception) and (helps := with_remedy(error)) != str(error):
        return helps
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    # Gymnasium appends the whole call to what a constructor says.
    text = str(error).partition(" was raised from the environment creator for ")[0]
    if isinstance(error, _EXPLAINED) and text:
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _explain_missing(module: str) -> str:
    extra = _EXTRAS.get(module.split(".")[0])
    if extra is None:
        return f"module {module!r} cannot be found"
    return f'this needs {module.split(".")[0]}, which is not installed: pip install "textgym[{extra}]"'
