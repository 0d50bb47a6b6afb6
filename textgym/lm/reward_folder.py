"""What the folder of a reward model must hold, checked without loading it."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

from textgym.data_files import read_object


def find_reward_model(name: str | Path) -> str:
    """The folder of that name, checked and absolute, or else the name, which is then a hub id.

    Raises: TypeError if it is no name; ValueError for a folder without a reward model.
    """
    if not isinstance(name, str | Path) or not name:
        raise TypeError(f"model={name!r:.80}: a folder or a hub id is allowed, or a list of them")
    folder = Path(name)
    if not folder.is_dir():
        return str(name)
    check_reward_folder(folder)
    read_offset(folder)
    return str(folder.resolve())


def check_installed() -> None:
    """Raises ModuleNotFoundError without the packages that a reward model needs."""
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(
                f'a reward model needs {module}, which is not installed: pip install "textgym[lm]"',
                name=module,
            )


def check_reward_folder(folder: Path) -> None:
    """Looks for a sequence classifier with one label, safetensors weights and a tokenizer.

    Raises: ValueError that names the folder and what it lacks.
    """
    if not (folder / "config.json").is_file():
        inner = folder / "model"
        hint = f" Did you mean {str(inner)!r}?" if (inner / "config.json").is_file() else ""
        raise ValueError(f"model={str(folder)!r}: no reward model there: it has no config.json.{hint}")
    config = read_object(folder / "config.json")
    kinds = config.get("architectures") or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(f"{folder / 'config.json'}: architectures={kinds!r:.80}; a list of names is allowed")
    if kinds and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ValueError(
            f"model={str(folder)!r}: no reward model but a {kinds[0]!r:.60}; "
            "allowed is a sequence classifier with one label"
        )
    names = config.get("id2label") or {"0": "", "1": ""}  # Hugging Face writes them unless there are two
    if not isinstance(names, dict):
        raise ValueError(f"{folder / 'config.json'}: id2label={names!r:.80}; a JSON object is allowed")
    labels = len(names)
    if labels != 1:
        raise ValueError(f"model={str(folder)!r}: num_labels={labels}; a reward model has 1 (one score)")
    for pattern in ("*.safetensors", "tokenizer.json"):
        if not any(folder.glob(pattern)):
            raise ValueError(
                f"model={str(folder)!r}: no {pattern} in that folder; save_pretrained of the model and of its "
                "fast tokenizer write both files"
            )


def read_offset(folder: Path) -> float:
    """The model's mean score on reference samples, reward units, from its reward.json; 0 without one.

    Raises: ValueError if the file holds no finite number under "offset".
    """
    path = folder / "reward.json"
    if not path.is_file():
        return 0.0
    offset = read_object(path).get("offset", 0.0)
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not math.isfinite(offset):
        raise ValueError(f"{path}: offset={offset!r:.80}; a finite number is allowed")
    return float(offset)
