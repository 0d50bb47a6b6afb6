"""Finding out what a user's tokenizer is: its codec, its EOS and padding tokens, its chat template."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from textgym.codecs.chat import JinjaTemplate, Template
from textgym.codecs.fast import FastCodec
from textgym.codecs.protocol import Codec
from textgym.codecs.slow import SlowCodec
from textgym.codecs.words import WordCodec
from textgym.files import check_file, read_json, reading

BUILTIN_FOLDER = Path(__file__).parent.parent / "world" / "assets" / "model"

# A bare tokenizer does not say which of its tokens ends a text; these are the usual names.
_EOS_NAMES = (
    "<|end|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "</s>",
    "<eos>",
    "[EOS]",
)
_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|endoftext|>")
_CONFIG_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Source:
    """A tokenizer and what goes with it; None where it does not say.

    Args:
        codec: text to ids and back.
        eos_id, pad_id: token ids.
        template: the tokenizer's chat template.
        folder: where its files are.
        config: what a tokenizer_config.json says of it.
        builtin: whether it is the tokenizer of the built-in world.
    """

    codec: Codec
    eos_id: int | None = None
    pad_id: int | None = None
    template: Template | None = None
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    builtin: bool = False


def find_source(tokenizer: Any) -> Source:
    """Recognise a tokenizer.

    Args:
        tokenizer: None, a path, a list or tuple of words, a `tokenizers.Tokenizer`, or a Hugging Face
            tokenizer.
    Raises: ValueError, FileNotFoundError or TypeError, naming what is allowed.
    """
    if tokenizer is None:
        return _from_path(BUILTIN_FOLDER)
    if isinstance(tokenizer, str | Path):
        return _from_path(Path(tokenizer))
    if isinstance(tokenizer, list | tuple):
        words = WordCodec(tokenizer)
        pad_id = words.token_id("<pad>")
        return Source(words, pad_id=pad_id, config={} if pad_id is None else {"pad_token": "<pad>"})
    if isinstance(tokenizer, Tokenizer):
        return _from_bare(tokenizer)
    if hasattr(tokenizer, "convert_ids_to_tokens") and hasattr(tokenizer, "all_special_ids"):
        return _from_hugging_face(tokenizer)
    raise TypeError(
        f"tokenizer: {type(tokenizer).__name__} is none of None (built in), the path of a tokenizer.json or "
        "its folder, a list of words, a tokenizers.Tokenizer, a Hugging Face tokenizer"
    )


def _from_path(path: Path) -> Source:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"tokenizer={str(path)!r}: there is no file {str(file)!r}. Allowed are a tokenizer.json and a "
            "folder with one; for other formats give the object, as AutoTokenizer.from_pretrained(...)"
        )
    with reading(file, "the tokenizer"):
        return _from_files(file)


def _from_files(file: Path) -> Source:
    tokenizer = Tokenizer.from_file(str(file))
    config_file = file.with_name("tokenizer_config.json")
    template_file = file.with_name("chat_template.jinja")
    if not os.path.lexists(config_file):
        return replace(_from_bare(tokenizer), folder=file.parent)
    config = read_json(config_file)
    names = {key: _token_text(config.get(key)) for key in _CONFIG_TOKENS}
    extra = [_token_text(token) for token in config.get("additional_special_tokens") or ()]
    codec = FastCodec(tokenizer, [name for name in [*names.values(), *extra] if name])
    source = _template(config, template_file)
    variables = {key: name for key, name in names.items() if name}
    return Source(
        codec,
        eos_id=codec.token_id(names["eos_token"]) if names["eos_token"] else None,
        pad_id=codec.token_id(names["pad_token"]) if names["pad_token"] else None,
        template=JinjaTemplate(source, variables) if source else None,
        folder=file.parent,
        config={**config, "chat_template": source} if source else config,
        builtin=file.parent.resolve() == BUILTIN_FOLDER.resolve(),
    )


def _template(config: dict[str, Any], file: Path) -> str | None:
    if os.path.lexists(file):
        check_file(file)
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"chat_template={template!r:.80}: allowed is a text, or a list of named ones")
    return template


def _token_text(token: Any) -> str | None:
    text: str | None = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise ValueError(f"token {text!r:.80}: allowed is a text")
    return text


def _from_bare(tokenizer: Tokenizer) -> Source:
    codec = FastCodec(tokenizer)
    special = {codec.token(token_id): token_id for token_id in codec.special_ids}
    padding = tokenizer.padding
    pad_id = padding["pad_id"] if padding else next((special[n] for n in _PAD_NAMES if n in special), None)
    eos_id = next((special[n] for n in _EOS_NAMES if n in special), None)
    tokens = {"eos_token": eos_id, "pad_token": pad_id}
    config = {name: codec.token(token_id) for name, token_id in tokens.items() if token_id is not None}
    return Source(codec, eos_id, pad_id, config=config)


def _from_hugging_face(tokenizer: Any) -> Source:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        codec: Codec = FastCodec(backend, tokenizer.all_special_tokens)
    else:
        codec = SlowCodec(tokenizer)

    variables = dict(tokenizer.special_tokens_map)
    source = getattr(tokenizer, "chat_template", None)
    if isinstance(source, Mapping):  # several named templates
        source = source.get("default")
    name = getattr(tokenizer, "name_or_path", "")
    return Source(
        codec,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        template=JinjaTemplate(source, variables) if source else None,
        folder=Path(name) if name and Path(name).is_dir() else None,
        config={**variables, "chat_template": source} if source else variables,
    )


def generation_stops(model: str | Path) -> list[int]:
    """The ids that end a text by a model's generation_config.json; [] without such a file or without any in it.

    Args:
        model: a folder in Hugging Face layout, or a hub id.
    Raises: ValueError for a file that names no ids.
    """
    file = _generation_config(model)
    if file is None:
        return []
    config = read_json(file)
    stops = config.get("eos_token_id") if isinstance(config, dict) else config
    ids = [] if stops is None else stops if isinstance(stops, list) else [stops]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ValueError(
            f"{file}: eos_token_id={stops!r:.80}; allowed are null, a token id and a list of them"
        )
    return ids


def _generation_config(model: str | Path) -> Path | None:
    if Path(model).is_dir():
        file = Path(model) / "generation_config.json"
        return file if file.is_file() else None
    try:
        from transformers.utils.hub import cached_file

        found = cached_file(str(model), "generation_config.json")
    except (ImportError, OSError, ValueError):  # loading the model itself says what is wrong
        return None
    return None if found is None else Path(found)
