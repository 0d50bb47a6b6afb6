"""Finding out what a user's tokenizer is: its codec, its EOS and padding tokens, its chat template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from textgym.codecs.chat import render_jinja
from textgym.codecs.fast import FastCodec
from textgym.codecs.protocol import Codec
from textgym.codecs.slow import SlowCodec
from textgym.codecs.words import WordCodec
from textgym.data_files import read_object

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
        render: from a user's message to the text of a conversation, by the tokenizer's chat template.
        builtin: whether it is the tokenizer of the built-in world.
    """

    codec: Codec
    eos_id: int | None = None
    pad_id: int | None = None
    render: Callable[[str], str] | None = None
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
        return Source(words, pad_id=words.token_id("<pad>"))
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
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower type
        raise ValueError(
            f"tokenizer={str(path)!r}: {str(file)!r} is not a tokenizer.json ({error})"
        ) from error
    config_file = file.parent / "tokenizer_config.json"
    if not config_file.is_file():
        return _from_bare(tokenizer)
    config = read_object(config_file)
    names = {key: _token_text(config.get(key)) for key in _CONFIG_TOKENS}
    extra = [_token_text(token) for token in config.get("additional_special_tokens") or ()]
    codec = FastCodec(tokenizer, [name for name in [*names.values(), *extra] if name])
    template = _template(config, file.parent / "chat_template.jinja")
    variables = {key: name for key, name in names.items() if name}
    return Source(
        codec,
        eos_id=codec.token_id(names["eos_token"]) if names["eos_token"] else None,
        pad_id=codec.token_id(names["pad_token"]) if names["pad_token"] else None,
        render=(lambda text: render_jinja(template, variables)(text)) if template else None,
        builtin=file.parent.resolve() == BUILTIN_FOLDER.resolve(),
    )


def _template(config: dict[str, Any], file: Path) -> str | None:
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _token_text(token: Any) -> str | None:
    text: str | None = token.get("content") if isinstance(token, dict) else token
    return text


def _from_bare(tokenizer: Tokenizer) -> Source:
    codec = FastCodec(tokenizer)
    special = {codec.token(token_id): token_id for token_id in codec.special_ids}
    padding = tokenizer.padding
    pad_id = padding["pad_id"] if padding else next((special[n] for n in _PAD_NAMES if n in special), None)
    return Source(codec, eos_id=next((special[n] for n in _EOS_NAMES if n in special), None), pad_id=pad_id)


def _from_hugging_face(tokenizer: Any) -> Source:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        codec: Codec = FastCodec(backend, tokenizer.all_special_tokens)
    else:
        codec = SlowCodec(tokenizer)

    def render(text: str) -> str:
        messages = [{"role": "user", "content": text}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    has_template = getattr(tokenizer, "chat_template", None) is not None
    return Source(codec, tokenizer.eos_token_id, tokenizer.pad_token_id, render if has_template else None)
