"""The model that a training starts from, trained models as folders, and the reward model that the package ships."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from textgym.files import replace_folder, write_json
from textgym.lm.backbone import max_tokens
from textgym.lm.causal import load_causal_lm
from textgym.lm.checked import choose_backbone
from textgym.vocab import Vocabulary, load_vocabulary
from textgym.world import MODEL_PATH


@contextlib.contextmanager
def own_generators() -> Iterator[None]:
    """Whatever happens inside to the global generators of Python, numpy and torch is undone at the end."""
    # transformers' Trainer seeds all three by itself and saves their states with every checkpoint.
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No logs below errors and no progress bars of transformers; both are as before at the end."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


_LONGEST = 1024  # tokens; a longer row costs memory that few machines have for a whole batch
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def base_name(base: str) -> str:
    """The folder or hub id that a base's name stands for."""
    return str(MODEL_PATH) if base == "builtin" else base


def load_base_lm(base: str) -> tuple[Any, Vocabulary]:
    """A causal LM, and the vocabulary in which the environment shows its prompts.

    Raises: ValueError if there is no such model, it is not causal, or there is no tokenizer with it.
    """
    name = base_name(base)
    if not Path(name).exists() and name.startswith((".", "/", "~")):
        raise ValueError(f"base={base!r}: there is no such folder")
    model = load_causal_lm(name)
    choose_backbone(model)
    tokenizer = name if Path(name).is_dir() else _hub_tokenizer(name)
    return model, load_vocabulary(tokenizer, vocab_size=model.config.get_text_config().vocab_size, model=name)


def resize_model(base: str, layers: int, folder: Path, seed: int = 0) -> None:
    """Writes a base model with another number of layers: its first ones, or all of them with new ones on top.

    New layers begin as the identity (nothing of what they compute is added), so that a deepened model says exactly
    what its base says.

    Args:
        base: a causal LM; to be deepened it needs the projections that Llama's layers end in.
        layers: at least 1.
        folder: written to.
        seed: of the new layers' other weights; global random state is not touched.
    Raises: ValueError for a base without such layers, or no number of layers.
    """
    from transformers import AutoModelForCausalLM

    if layers < 1:
        raise ValueError(f"layers={layers!r}: allowed is an integer >= 1")
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base_name(base),
            num_hidden_layers=layers,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    model, report = loaded
    fresh = {key for key in report["missing_keys"] if key.endswith((".o_proj.weight", ".down_proj.weight"))}
    if report["missing_keys"] and not fresh:
        raise ValueError(f"layers={layers!r}: base={base!r} has fewer, and is no model that can be deepened")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in fresh:
                parameter.zero_()
    save_model_folder(folder, model, base)


def freeze_first_layers(model: Any, layers: int) -> None:
    """Leaves the embeddings and the first layers as they are in training; 0 trains everything.

    Raises: ValueError if the model has fewer layers.
    """
    has = model.config.get_text_config().num_hidden_layers
    if not 0 <= layers <= has:
        raise ValueError(f"freeze={layers!r}: allowed is 0..{has}, the layers of the model")
    if layers:
        model.get_input_embeddings().requires_grad_(False)
    for name, parameter in model.named_parameters():
        number = next((int(part) for part in name.split(".") if part.isdigit()), layers)
        if number < layers:
            parameter.requires_grad_(False)


def longest_row(model: Any, asked: int | None) -> int:
    """The most tokens of a row: what is asked for, or what the model reads, up to 1024.

    Raises: ValueError if more is asked for than the model reads.
    """
    limit = max_tokens(model)
    if asked is None:
        return min(limit or _LONGEST, _LONGEST)
    if limit is not None and asked > limit:
        raise ValueError(f"max_length={asked}: the model reads at most {limit} tokens")
    return asked


def save_model_folder(path: Path, model: Any, base: str, files: Mapping[str, Any] | None = None) -> None:
    """Writes a model with the tokenizer of its base, replacing what was at `path` at once.

    Args:
        files: more files of the folder: name -> JSON object.
    """

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        name = Path(base_name(base))
        if name.is_dir():
            for file in _TOKENIZER_FILES:
                if (name / file).is_file():
                    shutil.copyfile(name / file, folder / file)
        else:
            _hub_tokenizer(str(name)).save_pretrained(folder)
        for file, data in (files or {}).items():
            write_json(folder / file, data)

    replace_folder(path, write)


def _hub_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"base={name!r}: no tokenizer there ({first})") from error
