"""Load or start reward models, encode prompts and completions for them, and score rows of tokens."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from textgym.checks import first_line
from textgym.codecs.chat import common_start
from textgym.lm.backbone import embedding_rows, max_tokens
from textgym.lm.causal import load_weights
from textgym.lm.checked import undisturbed
from textgym.lm.encdec import refuse_encoder_decoder
from textgym.lm.llama import LlamaBackbone, supports
from textgym.rows import local_only
from textgym.vocab import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def _load_vocabulary(
    name: str | Path,
    model: PreTrainedModel,
    own_tokenizer: str | Path | None = None,
    chat: bool | str | None = None,
) -> Vocabulary:
    """Return the vocabulary that a reward model reads.

    An encoder without a chat template reads prompt and completion as the two texts of a pair, framed by the tokenizer:
    [CLS] prompt [SEP] completion [SEP]. Any other model reads a prompt as a policy with that tokenizer does.

    Raises: ValueError if there is no tokenizer, it has more tokens than the model, but for control tokens that nothing
        writes, or it gives the two texts of a pair other token types than 0 and 1.
    """
    tokenizer = _tokenizer(name if own_tokenizer is None else own_tokenizer)
    own = name if own_tokenizer is None else None
    rows = embedding_rows(model)

    def load(stop: int | None = None) -> Vocabulary:
        load_sized = partial(load_vocabulary, tokenizer, stop=stop, chat=chat, model=own)
        found = load_sized()
        if found.size > rows:
            with contextlib.suppress(ValueError):
                return load_sized(vocab_size=rows)
        return found

    vocabulary = load()
    encodes_pairs = not reads_last_token(model) and vocabulary.conversation is None
    frame = _pair_frame(tokenizer) if encodes_pairs else None
    if frame is not None:
        has_types = has_token_types(model) and any(frame.types)
        if has_types and frame.types != frame.pair_types:
            raise ValueError(
                f"model={str(name)!r}: its tokenizer gives two texts the token types {frame.types}; allowed are 0 for "
                f"all tokens, and {frame.pair_types}"
            )
        vocabulary = load(frame.after)
        vocabulary = replace(vocabulary, before_ids=frame.before, after_ids=frame.between, has_types=has_types)
    ending = [] if vocabulary.conversation is None else vocabulary.conversation.ending_ids
    if max([vocabulary.size - 1, *ending]) >= rows:
        tokens = vocabulary.codec.size
        raise ValueError(f"model={str(name)!r}: its tokenizer has {tokens} tokens but the model only {rows}")
    return vocabulary


def _tokenizer(name: str | Path) -> Path | PreTrainedTokenizerBase:
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
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False, local_files_only=local_only(name))
    except (OSError, ValueError) as error:
        raise ValueError(f"model={str(name)!r}: no tokenizer there ({first_line(error)})") from error


class _Frame(NamedTuple):
    """The ids that a tokenizer writes before, between and after two texts.

    Args:
        types: the token types of two texts of a token each.
        pair_types: what they are where a model reads two texts: 0 before the second, 1 from there on.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: int
    types: list[int]
    pair_types: list[int]


def _pair_frame(tokenizer: Path | PreTrainedTokenizerBase) -> _Frame | None:
    """Return how a tokenizer frames two texts; None if it writes nothing between or after them."""
    if isinstance(tokenizer, Path):
        backend: object = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    else:
        backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    pair = backend.encode("a", "a")
    read = [place for place, there in enumerate(pair.attention_mask) if there]  # the file may say to pad
    ids, types = ([part[place] for place in read] for part in (pair.ids, pair.type_ids))
    texts = [pair.sequence_ids[place] for place in read]
    first, second = ([place for place, part in enumerate(texts) if part == number] for number in (0, 1))
    between, after = ids[first[-1] + 1 : second[0]], ids[second[-1] + 1 :]
    if not between or not after:
        return None
    pair_types = [int(place >= second[0]) for place in range(len(ids))]
    return _Frame(tuple(ids[: first[0]]), tuple(between), after[0], types, pair_types)


class Encoded(NamedTuple):
    """A prompt and a completion as a reward model reads them.

    Args:
        ids: the tokens.
        prompt_tokens: how many of them are the prompt's, template included.
        cut: how many tokens were left out because of the length.
        first_tokens: how many have the token type 0; None: all.
    """

    ids: list[int]
    prompt_tokens: int
    cut: int
    first_tokens: int | None = None


def end_id(vocabulary: Vocabulary) -> int | None:
    """Return the token that closes a completion which came to its end; None where the vocabulary has none."""
    return vocabulary.stop_ids[0] if vocabulary.stop_ids else None


def encode_pair(
    vocabulary: Vocabulary,
    prompt: str,
    completion: str,
    ended: bool = True,
    end_id: int | None = None,
    max_length: int | None = None,
) -> Encoded:
    """Return the tokens of a prompt as a policy is asked it, of a completion as a policy writes it, and of its end.

    A completion's tokens are those that a chat template's conversation goes on with after the prompt's. Where it does
    not start with the prompt's tokens, which a policy is given as they are, the completion is encoded by itself.

    Beyond `max_length`, the first tokens of the prompt's text are left out, but not those that the template or the
    tokenizer puts around it; then the last tokens of the completion, its end first. Callers report the count, `cut`.

    Args:
        vocabulary: of the policy.
        prompt: see `Vocabulary.encode_prompt`.
        completion: may be empty; text that looks like a control token is encoded as plain text.
        ended: whether the completion was written to its end.
        end_id: the token that says so; None for none.
        max_length: tokens; None for no limit.
    Raises: ValueError if the prompt or the completion cannot be encoded or `max_length` does not hold the template.
    """
    head = list(vocabulary.encode_prompt(prompt))
    _check_writable(completion)
    tail = _continuation(vocabulary, prompt, completion, head) if completion else []
    if ended and end_id is not None:
        tail = [*tail, end_id]
    return _shortened(vocabulary, [*head, *tail], len(head), max_length)


def encode_exchange(
    vocabulary: Vocabulary, prompt: str, completion: str, ended: bool = True, max_length: int | None = None
) -> Encoded:
    """Return the tokens of a prompt and a completion as a reward model reads them.

    With a chat template of the tokenizer's they are those of `apply_chat_template([user, assistant])`: the template
    alone says how an answer ends. Without one they are those of `encode_pair`, and the end is the first stop id.

    Args:
        vocabulary: of the reward model.
        prompt, completion, max_length: see `encode_pair`.
        ended: whether the completion was written to its end; False leaves out the tokens that mark the end.
    Raises: ValueError as `encode_pair`, and for a template that refuses the two messages.
    """
    conversation = vocabulary.conversation
    if conversation is None or not conversation.takes_completions:
        return encode_pair(vocabulary, prompt, completion, ended, end_id(vocabulary), max_length)
    head = vocabulary.encode_prompt(prompt)
    _check_writable(completion)
    ids = conversation.encode(prompt, completion, ended=ended)
    return _shortened(vocabulary, ids, common_start(head, ids), max_length)


def _continuation(vocabulary: Vocabulary, prompt: str, completion: str, head: list[int]) -> list[int]:
    conversation = vocabulary.conversation
    if conversation is not None and conversation.takes_completions:
        ids = conversation.encode(prompt, completion, ended=False)
        tail = ids[len(head) :]
        if ids[: len(head)] == head and vocabulary.codec.control_ids.isdisjoint(tail):
            return tail
    return vocabulary.codec.encode(completion)


def _check_writable(completion: str) -> None:
    try:
        completion.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"completion {completion!r:.80} cannot be written as UTF-8 ({error.reason})") from error


def _shortened(vocabulary: Vocabulary, ids: list[int], head: int, max_length: int | None) -> Encoded:
    """Keep at most `max_length` of the ids, of which the first `head` are the prompt's."""
    if max_length is None or len(ids) <= max_length:
        return Encoded(ids, head, 0, head if vocabulary.has_types else None)
    before = common_start(vocabulary.before_ids, ids[:head])
    after = common_start(vocabulary.after_ids[::-1], ids[before:head][::-1])
    if before + after >= max_length:
        raise ValueError(f"max_length={max_length}: the template alone has {before + after} tokens; more is allowed")
    kept = max(max_length - before - after - (len(ids) - head), 0)  # of the prompt's own text
    start = head - after - kept
    short = [*ids[:before], *ids[start:]][:max_length]
    prompt_tokens = before + head - start
    return Encoded(short, prompt_tokens, len(ids) - len(short), prompt_tokens if vocabulary.has_types else None)


def first_tokens(rows: Sequence[Encoded]) -> Tensor:
    """Return how many tokens of every row have the token type 0, (B,) int64."""
    return torch.tensor([len(row.ids) if row.first_tokens is None else row.first_tokens for row in rows])


def pad_right(rows: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Return rows of token ids as one tensor (B, T) int64 padded on the right, and their lengths (B,) int64."""
    lengths = [len(row) for row in rows]
    width = max(lengths)
    padded = [[*row, *[pad_id] * (width - length)] for row, length in zip(rows, lengths, strict=True)]
    return torch.tensor(padded), torch.tensor(lengths)


def has_token_types(model: PreTrainedModel) -> bool:
    """Return whether a classifier is told which of two texts a token is of, as BERT is and RoBERTa is not."""
    has_several = (getattr(model.config, "type_vocab_size", None) or 0) > 1
    return has_several and "token_type_ids" in inspect.signature(model.forward).parameters


def sequence_scores(model: PreTrainedModel, input_ids: Tensor, lengths: Tensor, firsts: Tensor | None = None) -> Tensor:
    """Return the score of every row, read at its last token; differentiable.

    A row ends where `lengths` says, so padding may be any token, the end of the text included.

    Args:
        model: a Hugging Face sequence classifier with one label.
        input_ids: (B, T) int64, padded on the right.
        lengths: (B,) int64, from 1 to T.
        firsts: see `first_tokens`, which a model without token types does not read; None: all.
    Returns: (B,) float32, reward units.
    """
    last = lengths - 1
    rows = torch.arange(len(last), device=input_ids.device)
    if supports(model) and not torch.is_autocast_enabled(input_ids.device.type):
        backbone = LlamaBackbone(model)
        return backbone.read_out(backbone.features(input_ids, rows, last))[0][:, 0].float()
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    mask = (places < lengths[:, None]).long()
    if not reads_last_token(model):
        types = {}
        if firsts is not None and has_token_types(model):
            types = {"token_type_ids": mask * (places >= firsts[:, None])}
        return torch.as_tensor(model(input_ids=input_ids, attention_mask=mask, **types).logits[:, 0]).float()
    base = model.base_model
    options = {"use_cache": False} if "use_cache" in inspect.signature(base.forward).parameters else {}
    hidden = base(input_ids=input_ids, attention_mask=mask, **options).last_hidden_state
    return torch.as_tensor(cast(nn.Linear, model.score)(hidden[rows, last])[:, 0]).float()


def reads_last_token(model: PreTrainedModel) -> bool:
    """Return whether a classifier is a decoder with one linear head over its last token, as Llama's and GPT-2's are."""
    return isinstance(getattr(model, "score", None), nn.Linear) and model.base_model is not model


def check_scores(model: PreTrainedModel) -> None:
    """Raise ValueError unless rows read at once get the scores that the model's own forward gives each of them."""
    lengths = torch.tensor([6, 1, 4, 3]).clamp(max=max_tokens(model) or 6)
    size = embedding_rows(model)
    ids = torch.randint(size, (len(lengths), int(lengths.max())), generator=torch.Generator().manual_seed(0))
    config = model.config.get_text_config()
    pad_id, end = getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
    if reads_last_token(model) and isinstance(pad_id, int):
        ids[ids == pad_id] = (pad_id + 1) % size  # the model's own forward reads in front of it
    elif isinstance(end, int):
        ids.scatter_(1, lengths[:, None] - 1, end)  # where BART reads
    ids, lengths = ids.to(model.device), lengths.to(model.device)
    with undisturbed(model):
        try:
            together = sequence_scores(model, ids, lengths)
            alone = torch.cat(
                [model(input_ids=row[None, :n]).logits[:, 0] for row, n in zip(ids, lengths, strict=True)]
            )
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(
                f"model: {type(model).__name__} cannot be used, it does not score rows of several lengths "
                f"({first_line(error)})"
            ) from error
    off = (together - alone).abs()
    near = 1e-4 if model.dtype == torch.float32 else 0.05
    if not (off <= near * (alone.abs() + alone.std())).all():
        raise ValueError(
            f"model: {type(model).__name__} cannot be used, its scores of rows read at once are off by up to "
            f"{off.max():.2g} from those of each row alone"
        )


def load_reward_model(
    name: str | Path,
    tokenizer: str | Path | None = None,
    chat: bool | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, Vocabulary]:
    """Load a reward model in evaluation mode, and the vocabulary that it reads.

    Args:
        name: a folder in Hugging Face layout with its tokenizer.json, or a hub id.
        tokenizer: another folder or hub id than `name`; None: the same.
        chat: the chat template, see `load_vocabulary`.
        dtype: of the weights.
    Raises: ValueError if there is no sequence classifier with one label, trained head, safetensors weights and
        tokenizer; it names the argument and the cause.
    """
    model, missing = _load(name, dtype=dtype)
    if missing:
        raise ValueError(
            f"model={str(name)!r}: no reward model: its weights lack {min(missing)!r:.80}; train one on it first"
        )
    if model.config.num_labels != 1:
        raise ValueError(f"model={str(name)!r}: num_labels={model.config.num_labels}; a reward model has 1 (one score)")
    check_scores(model)
    model.eval()
    return model, _load_vocabulary(name, model, tokenizer, chat)


def start_reward_model(base: str | Path, seed: int | None = None) -> tuple[PreTrainedModel, Vocabulary]:
    """Start a reward model to be trained: a base model with a new head, in float32, in evaluation mode.

    A base that is a reward model already keeps its head. The vocabulary's padding token is written into the
    configuration, for Hugging Face's own forward. No global random state is touched.

    Args:
        base: a folder in Hugging Face layout with its tokenizer.json, or a hub id.
        seed: of the head, normal with variance 1 / (H + 1); None starts it at 0: every score is 0.
    Raises: ValueError if no such model can be loaded, or it has more than one label.
    Source: Stiennon et al. (2020), arXiv:2009.01325, appendix B (variance).
    """
    model, missing = _load(base, "base", num_labels=1, seed=0 if seed is None else seed)
    if getattr(model, "peft_config", None):
        raise ValueError(
            f"base={str(base)!r}: an adapter; allowed is a model that it is merged into, see textgym export"
        )
    body = f"{model.base_model_prefix}."
    lost = [key for key in missing if key.startswith(body) and "pooler" not in key]
    if lost:
        raise ValueError(f"base={str(base)!r}: its weights lack {min(lost)!r:.80}")
    check_scores(model)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for name, head in model.named_modules():
        if isinstance(head, nn.Linear) and head.out_features == 1 and f"{name}.weight" in missing:
            nn.init.zeros_(head.weight)
            if generator is not None:
                nn.init.normal_(head.weight, 0.0, (head.in_features + 1) ** -0.5, generator)
            if head.bias is not None:
                nn.init.zeros_(head.bias)
    vocabulary = _load_vocabulary(base, model)
    model.config.get_text_config().pad_token_id = vocabulary.pad_id
    model.eval()
    return model, vocabulary


def _load(
    name: str | Path, argument: str = "model", seed: int = 0, **options: object
) -> tuple[PreTrainedModel, set[str]]:
    """Load a sequence classifier; also return which weights its files lack: those are drawn from `seed`."""
    from transformers import AutoModelForSequenceClassification

    refuse_encoder_decoder(name, f"{argument}={str(name)!r}: as a reward model")
    what = f"{argument}={str(name)!r}: no sequence classifier"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return load_weights(AutoModelForSequenceClassification, name, what, **options)
