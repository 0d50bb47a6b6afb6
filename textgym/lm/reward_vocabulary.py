"""The vocabulary of a reward model: from the tokenizer beside its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from textgym.vocab import Vocabulary, load_vocabulary


def load_reward_vocabulary(name: str | Path, pairs: bool = False) -> Vocabulary:
    """The vocabulary of the model at `name`.

    Args:
        name: a folder in Hugging Face layout with its tokenizer.json, or a hub id.
        pairs: read prompt and completion as the two texts of a pair, framed by the tokenizer: an encoder's
            [CLS] prompt [SEP] completion [SEP]. A chat template comes first. False reads a prompt as a policy
            with that tokenizer does.
    Raises: ValueError if there is no tokenizer.
    """
    tokenizer = _tokenizer(name)
    vocabulary = load_vocabulary(tokenizer)
    frame = _pair_frame(tokenizer) if pairs and vocabulary.conversation is None else None
    if frame is None:
        return vocabulary
    before, between, after = frame
    return replace(load_vocabulary(tokenizer, stop=after), before_ids=before, after_ids=between)


def _tokenizer(name: str | Path) -> Any:
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "tokenizer.json").is_file():
            raise ValueError(
                f"model={str(name)!r}: no tokenizer.json in that folder; a reward model needs its tokenizer: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder) writes it"
            )
        return folder
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"model={str(name)!r}: no tokenizer there ({first})") from error


def _pair_frame(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...], int] | None:
    """What a tokenizer writes before, between and after two texts, as ids; None if nothing between or after."""
    if isinstance(tokenizer, Path):
        tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        return None
    pair = backend.encode("a", "a")
    first, second = (
        [place for place, part in enumerate(pair.sequence_ids) if part == number] for number in (0, 1)
    )
    between, after = pair.ids[first[-1] + 1 : second[0]], pair.ids[second[-1] + 1 :]
    if not between or not after:
        return None
    return tuple(pair.ids[: first[0]]), tuple(between), after[0]
