"""Write the policy of a saved agent as a plain Hugging Face folder, an adapter merged into the weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from textgym.checks import JsonObject
from textgym.files import read_json, reading, recover_folder, replace_folder
from textgym.lm.causal import load_adapter, load_causal_lm
from textgym_agents.lm.lora import merged
from textgym_agents.lm.start import fingerprint
from textgym_agents.saving import HEAD

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_model(path: str | Path, out: str | Path) -> JsonObject:
    """Write the model of a saved LM agent with its tokenizer, for `AutoModelForCausalLM` and `AutoTokenizer`.

    A temperature and the tokens that a task forbids are the agent's and not the model's.

    Args:
        path: the agent's folder, or that of its run.
        out: a new folder.
    Returns: the agent's name, `temperature`, `adapter` (whether there was one) and `parameters`.
    Raises: ValueError if there is no such agent, `out` exists, or the model under its adapter has changed.
    """
    folder, out = Path(path), Path(out)
    folder = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    if os.path.lexists(out):
        raise ValueError(f"out={str(out)!r}: it exists; allowed is a new folder")
    recover_folder(folder)
    if not (folder / HEAD).is_file():
        raise ValueError(f"path={str(path)!r}: no saved agent there")
    head = read_json(folder / HEAD)
    if not (folder / "model").is_dir():
        raise ValueError(f"path={str(path)!r}: agent {head.get('agent')!r:.80} has no language model")
    with reading(folder, "the saved agent"):
        model = _plain_model(folder, head)

    def write(place: Path) -> None:
        model.save_pretrained(place)
        for file in (folder / "model").iterdir():
            if file.name.startswith("tokenizer") or file.suffix == ".jinja" or file.name == "special_tokens_map.json":
                shutil.copyfile(file, place / file.name)

    replace_folder(out, write)
    return {
        "agent": head["agent"],
        "temperature": head["config"].get("temperature", 1.0),
        "adapter": (folder / "model" / "adapter_config.json").is_file(),
        "parameters": model.num_parameters(),
    }


def _plain_model(folder: Path, head: JsonObject) -> PreTrainedModel:
    """Return the policy's model in float32. Raises: ValueError if the model under an adapter is another one now."""
    config, state = head["config"], head["state"]
    base = state.get("base") or folder / "base"
    if not (folder / "model" / "adapter_config.json").is_file():
        return load_causal_lm(folder / "model")
    has_bf16 = config.get("lora_rank") is not None and config.get("precision") == "bfloat16"
    adapted = load_adapter(folder / "model", base, torch.bfloat16 if has_bf16 else torch.float32)
    if state.get("base") and fingerprint(adapted) != state["start"]:
        raise ValueError(f"base={base!r}: its weights are not those that the adapter was trained on")
    # Merged in float32: what an adapter adds is often below the rounding of bfloat16.
    return merged(adapted.float())
