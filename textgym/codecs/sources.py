"""Find the codec of a tokenizer, and what goes with it: from an object, a folder, a file or a list of words."""

from __future__ import annotations

import importlib.util
import inspect
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tokenizers import Tokenizer, models

from textgym.checks import JsonObject, TextGymWarning
from textgym.codecs.chat import JinjaTemplate, Template
from textgym.codecs.kinds import FastCodec, SlowCodec, WordCodec
from textgym.codecs.protocol import Codec
from textgym.files import check_file, read_json, reading
from textgym.rows import local_only

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILTIN_FOLDER = Path(__file__).parent.parent / "world" / "assets" / "model"

# A bare tokenizer does not say which of its tokens ends a text; these are the usual names.
_EOS_NAMES = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "[EOS]")
_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|endoftext|>")
_CONFIG_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_CLEANS = "clean_up_tokenization_spaces"
_CLEANS_BPE = f"{_CLEANS}_for_bpe_even_though_it_will_corrupt_output"
_PLAIN_CLASSES = ("PreTrainedTokenizer", "PythonBackend", "TokenizersBackend")  # without tokens of their own


@dataclass(frozen=True)
class Source:
    """A tokenizer and what goes with it; None where it does not say.

    Args:
        template: the tokenizer's chat template.
        folder: where its files are.
        config: what a tokenizer_config.json says of it.
        template_names: of its chat templates, where it has several and none that is the default.
        builtin: whether it is the tokenizer of the built-in world.
    """

    codec: Codec
    eos_id: int | None = None
    pad_id: int | None = None
    template: Template | None = None
    folder: Path | None = None
    config: JsonObject = field(default_factory=dict)
    template_names: tuple[str, ...] = ()
    builtin: bool = False


def find_source(tokenizer: object) -> Source:
    """Recognise a tokenizer.

    Args:
        tokenizer: None, a path, a hub id, a list or tuple of words, a `tokenizers.Tokenizer`, or a Hugging Face
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
        return _from_hugging_face(cast("PreTrainedTokenizerBase", tokenizer))
    raise TypeError(
        f"tokenizer: {type(tokenizer).__name__} is none of None (built in), the path of a tokenizer.json or "
        "its folder, a hub id, a list of words, a tokenizers.Tokenizer, a Hugging Face tokenizer"
    )


def _from_path(path: Path) -> Source:
    file = path if path.is_file() else path / "tokenizer.json"
    said = "no tokenizer.json is there"
    try:
        file = file if path.exists() else _tokenizer_file(path.as_posix()) or file
    except FileNotFoundError as error:
        said = str(error)
    if not file.is_file():
        raise FileNotFoundError(
            f"tokenizer={str(path)!r}: {said}. Allowed are a tokenizer.json, a folder with one and, with transformers, "
            "the hub id of one; for other formats give the object, as AutoTokenizer.from_pretrained(...)"
        )
    with reading(file, "the tokenizer"):
        return _from_files(file)


def _from_files(file: Path) -> Source:
    tokenizer = Tokenizer.from_file(str(file))
    template_file = file.with_name("chat_template.jinja")
    config = _config(file, tokenizer)
    source: str | None
    template_names: tuple[str, ...] = ()
    if os.path.lexists(template_file):
        check_file(template_file)
        source = template_file.read_text(encoding="utf-8")
    else:
        source, template_names = _chat_template((config or {}).get("chat_template"))
    if config is None:
        bare = _from_bare(tokenizer)
        template = JinjaTemplate(source, bare.config) if source else None
        config = {**bare.config, "chat_template": source} if source else bare.config
        return replace(bare, folder=file.parent, template=template, config=config)
    names = _named_tokens(config)
    extra = [
        _token_text(token)
        for key in ("additional_special_tokens", "extra_special_tokens")
        if isinstance(tokens := config.get(key), list)
        for token in tokens
    ]
    special = [name for name in [*names.values(), *extra] if name]
    codec = FastCodec(tokenizer, special, bool(_cleaning(config, tokenizer)))
    eos, pad = names.get("eos_token"), names.get("pad_token")
    return Source(
        codec,
        eos_id=codec.token_id(eos) if eos else None,
        pad_id=codec.token_id(pad) if pad else None,
        template=JinjaTemplate(source, names) if source else None,
        folder=file.parent,
        config={**config, "chat_template": source} if source else config,
        template_names=template_names,
        builtin=file.parent.resolve() == BUILTIN_FOLDER.resolve(),
    )


def with_template(source: Source, file: Path) -> Source:
    """Return a tokenizer with the chat template of a file in place of its own.

    Raises: ValueError for a file that is not there, or no UTF-8.
    """
    check_file(file)
    with reading(file, "the chat template"):
        text = file.read_text(encoding="utf-8")
    template = JinjaTemplate(text, _named_tokens(source.config))
    return replace(source, template=template, config={**source.config, "chat_template": text}, builtin=False)


def _config(file: Path, tokenizer: Tokenizer) -> JsonObject | None:
    """Return what the files beside a tokenizer.json say, as `AutoTokenizer` reads them; None without any."""
    config_file, map_file = (file.with_name(f"{name}.json") for name in ("tokenizer_config", "special_tokens_map"))
    if not os.path.lexists(config_file) and not os.path.lexists(map_file):
        return None
    config = read_json(config_file) if os.path.lexists(config_file) else {}
    if "added_tokens_decoder" not in config and os.path.lexists(map_file):
        config |= {key: _without_flags(value) for key, value in read_json(map_file).items()}
    return _class_tokens(config, file.parent, tokenizer) | config


def _without_flags(tokens: object) -> object:
    """Return token texts for the tokens of a special_tokens_map.json."""
    if isinstance(tokens, list):
        return [_token_text(token) for token in tokens]
    if isinstance(tokens, dict) and "content" not in tokens:
        return {key: _token_text(token) for key, token in tokens.items()}
    return _token_text(tokens)


def _token_text(token: object) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise ValueError(f"token {text!r:.80}: allowed is a text")
    return text


def _named_tokens(config: JsonObject) -> dict[str, str]:
    """Return the tokens that a chat template may name: the usual ones and the model's own, as image_token."""
    named = {
        key: token
        for key, token in config.items()
        # add_bos_token is a bool
        if key in _CONFIG_TOKENS or (key.endswith("_token") and isinstance(token, str | dict))
    }
    extra = config.get("extra_special_tokens")
    named |= extra if isinstance(extra, dict) else {}
    return {key: text for key, token in named.items() if (text := _token_text(token))}


def _class_tokens(config: JsonObject, folder: Path, tokenizer: Tokenizer) -> dict[str, str | None]:
    """Return the tokens that the tokenizer's class in transformers has where its files do not name them."""
    if all(key in config for key in ("bos_token", "eos_token")):
        return {}
    model_file = folder / "config.json"
    model = read_json(model_file) if model_file.is_file() else {}
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if "auto_map" in config or _short(name) in _PLAIN_CLASSES or not (name or model.get("model_type")):
        return {}
    if importlib.util.find_spec("transformers") is None:
        warnings.warn(
            f"tokenizer: {folder} names no bos_token or no eos_token, and the class {name or 'of its model'} "
            "may have its own, which needs transformers (pip install transformers); they are left out",
            TextGymWarning,
            stacklevel=2,
        )
        return {}
    from transformers.models.auto import tokenization_auto as auto

    usual = auto.TOKENIZER_MAPPING_NAMES.get(model.get("model_type", ""))
    other = bool(usual) and _short(name or usual) != _short(usual) and _short(usual) in _PLAIN_CLASSES
    byte_level = "ByteLevel" in f"{tokenizer.pre_tokenizer}{tokenizer.decoder}"
    if other or (byte_level and _short(name) == "LlamaTokenizer"):
        # transformers takes the plain class instead
        return {"bos_token": None, "eos_token": None}
    name = str(name or usual)
    found = auto.tokenizer_class_from_name(_short(name)) or auto.tokenizer_class_from_name(name)
    if found is None:
        return {}
    parameters = inspect.signature(found.__init__).parameters
    defaults = {key: parameters[key].default for key in _CONFIG_TOKENS if key in parameters}
    return {key: str(token) for key, token in defaults.items() if token not in (None, inspect.Parameter.empty)}


def _short(name: object) -> str:
    return str(name).removesuffix("Fast")


def _chat_template(templates: object) -> tuple[str | None, tuple[str, ...]]:
    """Return a chat template, the default of several named ones; and their names if none is the default."""
    names: tuple[str, ...] = ()
    if isinstance(templates, list):
        templates = {entry["name"]: entry["template"] for entry in templates}
    if isinstance(templates, Mapping):
        names, templates = tuple(map(str, templates)), templates.get("default")
    if templates is not None and not isinstance(templates, str):
        raise ValueError(f"chat_template={templates!r:.80}: allowed is a text, or a list of named ones")
    return templates, () if templates else names


def _cleaning(settings: Mapping[str, object], tokenizer: Tokenizer) -> JsonObject:
    """Return those of a Hugging Face tokenizer's settings that make it clean decoded texts; none where it does not."""
    names = [_CLEANS, _CLEANS_BPE] if isinstance(tokenizer.model, models.BPE) else [_CLEANS]
    return dict.fromkeys(names, True) if all(settings.get(name) for name in names) else {}


def _from_bare(tokenizer: Tokenizer) -> Source:
    codec = FastCodec(tokenizer)
    special = {codec.token(token_id): token_id for token_id in codec.special_ids}
    padding = tokenizer.padding
    pad_id = padding["pad_id"] if padding else next((special[n] for n in _PAD_NAMES if n in special), None)
    eos_id = next((special[n] for n in _EOS_NAMES if n in special), None)
    tokens = {"eos_token": eos_id, "pad_token": pad_id}
    config = {name: codec.token(token_id) for name, token_id in tokens.items() if token_id is not None}
    return Source(codec, eos_id, pad_id, config=config)


def _from_hugging_face(tokenizer: PreTrainedTokenizerBase) -> Source:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    special = tokenizer.all_special_tokens
    cleaning = _cleaning(vars(tokenizer), backend) if isinstance(backend, Tokenizer) else {}
    codec = FastCodec(backend, special, bool(cleaning)) if isinstance(backend, Tokenizer) else SlowCodec(tokenizer)
    variables = dict(tokenizer.special_tokens_map)
    source, template_names = _chat_template(getattr(tokenizer, "chat_template", None))
    name = getattr(tokenizer, "name_or_path", "")
    return Source(
        codec,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        template=JinjaTemplate(source, variables) if source else None,
        folder=Path(name) if name and Path(name).is_dir() else None,
        config={**variables, **cleaning, **({"chat_template": source} if source else {})},
        template_names=template_names,
    )


def generation_stops(model: str | Path) -> tuple[list[int], bool]:
    """Return the ids that end a text by a model's generation_config.json, and whether somebody chose them.

    There are none without such a file. Files that transformers derives from a model's config are not chosen: they hold
    the defaults of its architecture.

    Args:
        model: a folder in Hugging Face layout, or a hub id.
    Raises: ValueError for an eos_token_id that is neither null nor a whole number nor a list of them.
    """
    file = model_file(model, "generation_config.json")
    if file is None:
        return [], False
    config = read_json(file)
    stops = config.get("eos_token_id")
    ids = [] if stops is None else stops if isinstance(stops, list) else [stops]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ValueError(f"{file}: eos_token_id={stops!r:.80}; allowed are null, a token id and a list of them")
    return ids, not config.get("_from_model_config")


def model_tokenizer(model: str | Path) -> Path | None:
    """Return the folder of a model's own tokenizer; None where it has none, or the built-in world's.

    Args:
        model: a folder in Hugging Face layout, or a hub id.
    """
    file = _tokenizer_file(model)
    if file is None:
        return None
    with reading(file, "the tokenizer"):
        same = Tokenizer.from_file(str(file)).to_str() == _builtin_tokenizer()
    return None if same else file.parent


def _tokenizer_file(model: str | Path) -> Path | None:
    """Return the tokenizer.json of a folder or hub id, beside what else says of it; None where there is none."""
    file = model_file(model, "tokenizer.json")
    if file is not None and not Path(model).is_dir():
        for name in ("tokenizer_config", "special_tokens_map", "config", "generation_config"):
            model_file(model, f"{name}.json")  # the cache has what was asked for
        model_file(model, "chat_template.jinja")
    return file


@cache
def _builtin_tokenizer() -> str:
    return str(Tokenizer.from_file(str(BUILTIN_FOLDER / "tokenizer.json")).to_str())


def model_logits(model: str | Path) -> int:
    """Return the number of a model's logits by its config.json; 0 where that does not say."""
    file = model_file(model, "config.json")
    config = {} if file is None else read_json(file)
    inner = config.get("text_config")
    size = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    return size if isinstance(size, int) else 0


def encodes_prompts(model: str | Path) -> bool:
    """Return whether a model in a folder, or of a hub id, is an encoder-decoder by its config.json.

    One that cannot be read is none: loading the model itself says what is wrong.
    """
    try:
        file = model_file(model, "config.json")
        return file is not None and read_json(file).get("is_encoder_decoder") is True
    except (OSError, ValueError):
        return False


def model_file(model: str | Path, name: str) -> Path | None:
    """Return a file of a model's folder, or of a hub id's from the cache or the hub; None where there is none.

    Raises: FileNotFoundError, within 2 s, for a model that is nowhere.
    """
    if Path(model).is_dir():
        file = Path(model) / name
        return file if file.is_file() else None
    try:
        local = local_only(model)
        from transformers.utils.hub import cached_file
    except ImportError:
        return None
    try:
        found = cached_file(str(model), name, local_files_only=local)
    except (OSError, ValueError):  # loading the model itself says what is wrong
        return None
    return None if found is None else Path(found)
