"""From a task's `reference` to the policy itself: "builtin", "uniform", a folder, a hub id, or an object."""

from __future__ import annotations

from pathlib import Path

from textgym.lm.reference import Reference, UniformReference
from textgym.task import Task


def has_language_model(task: Task) -> bool:
    """Whether the task's reference is a causal LM, and not a table or a formula."""
    return isinstance(task.reference, str | Path) and task.reference != "uniform"


def reference_model(task: Task) -> str | Path:
    """Folder or hub id of the causal LM that is the task's reference.

    Raises: ValueError if the reference is no causal LM.
    """
    if task.reference == "builtin":
        from textgym.world import MODEL_PATH

        return MODEL_PATH
    if not isinstance(task.reference, str | Path) or task.reference == "uniform":
        raise ValueError(
            f"reference={str(task.reference)!r} of task {task.name!r} is no language model; "
            "pass reference=FOLDER_OR_HUB_ID to the environment or model=FOLDER_OR_HUB_ID to the agent"
        )
    return task.reference


def make_reference(task: Task, temperature: float = 1.0, device: str = "auto") -> Reference:
    """pi_ref of a task: numpy for "uniform", the object itself where the task holds one, a causal LM otherwise
    (needs the extra `lm`).

    Raises: ValueError if the model cannot be loaded or does not fit the task's vocabulary.
    """
    if task.reference == "uniform":
        return UniformReference(task.vocabulary.allowed)
    if not isinstance(task.reference, str | Path):
        return task.reference
    return load_reference(reference_model(task), task, temperature, device)


def load_reference(name: str | Path, task: Task, temperature: float = 1.0, device: str = "auto") -> Reference:
    """A causal LM as reference over the task's allowed tokens."""
    from textgym.lm.causal import CausalLM, check_positions, load_causal_lm

    model = load_causal_lm(name)
    tokens = task.max_prompt_tokens + task.max_new_tokens
    check_positions(model, tokens)
    return CausalLM(model, task.vocabulary.allowed, temperature, device, tokens)
