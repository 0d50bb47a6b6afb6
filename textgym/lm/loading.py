"""Loading a Hugging Face model from a folder in which anything may be damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from textgym.files import check_files, read_json

_LAYERS = ("layer", "layers")  # how the names of settings that count layers end


def load_weights(kind: Any, name: str | Path, what: str, **options: Any) -> tuple[Any, set[str]]:
    """Load a model in float32 from safetensors only. Says nothing on the standard error.

    Args:
        kind: of transformers, such as AutoModelForCausalLM. name: a folder in Hugging Face layout, or a hub id.
        what: begins the message of an error: what was looked for where.
        options: for `from_pretrained`.
    Returns: the model, and the names of the weights that its files lack.
    Raises: ValueError if no such model can be loaded: it gives the cause.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the report of missing weights is for the caller to give
    try:
        _check_folder(Path(name))
        loaded: Any = kind.from_pretrained(
            str(name),
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except ImportError:
        raise
    except Exception as error:  # what a damaged file leads to has no narrower type
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{what} with safetensors weights there ({first})") from error
    finally:
        logging.set_verbosity(verbosity)
    model, report = loaded
    return model, set(report["missing_keys"])


def _check_folder(folder: Path) -> None:
    """Looks at the files before the layers are made: a wrong number of them could take for ever. A hub id passes."""
    from safetensors import safe_open

    if not folder.is_dir():
        return
    check_files(folder)
    tensors = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            tensors += len(file.keys())
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    for key, value in config.items():
        if key.endswith(_LAYERS) and isinstance(value, int) and tensors and value > tensors:
            raise ValueError(
                f"{folder / 'config.json'}: {key}={value!r:.80}; its weights are {tensors} tensors"
            )
