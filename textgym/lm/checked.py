"""Choose how a causal LM is run: the fastest way whose every answer equals the model's own plain forward."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from textgym.checks import Ints, TextGymWarning, first_line
from textgym.lm import llama
from textgym.lm.backbone import (
    Backbone,
    HuggingFaceBackbone,
    RereadingBackbone,
    StateSpaceBackbone,
    embedding_rows,
    last_hidden,
    max_tokens,
)
from textgym.lm.decoder import Decoder
from textgym.lm.encdec import EncoderDecoderBackbone, decoder_start, is_encoder_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Way = Callable[[PreTrainedModel], Backbone]
_Key = tuple[bool, torch.dtype | None, tuple[int, ...], frozenset[torch.dtype]]
_Answers = Callable[[Backbone, "_Rows"], Iterator["_Answer"]]

# Tokens of a prompt and of the finished row. The rows stop one after the other, so that one of them pauses inside the
# cache and then some are dropped from it.
_PROMPTS = np.array([1, 5, 2, 3])
_LENGTHS = np.array([6, 6, 5, 5])
_PIECES = np.array([2, 0, 1, 2])  # tokens of the first reply
# Settings that change how a model reads rows longer than their value.
_THRESHOLD = re.compile(r"window|chunk_size|index_topk|floor_scale|local|block_size|original_max_position")
_BYTES = 2**30  # of the logits of rows that are as long as such a setting
_LONG = 4096  # tokens of such rows
_SHORT = 512  # tokens of rows that anybody may read
_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}

_WAYS: dict[str, Way] = {
    "by the hand-written Llama": llama.LlamaBackbone,
    "with a cache": HuggingFaceBackbone,
    "whole, with a cache": partial(HuggingFaceBackbone, whole=True),
    "with a state": StateSpaceBackbone,
    "whole, with a state": partial(StateSpaceBackbone, whole=True),
    "without a cache": RereadingBackbone,
    "whole, without a cache": partial(RereadingBackbone, whole=True),
    "as an encoder-decoder": EncoderDecoderBackbone,
}

_chosen: WeakKeyDictionary[torch.nn.Module, dict[_Key, tuple[Way, bool]]] = WeakKeyDictionary()


class _Rows(NamedTuple):
    """Rows of tokens, and the model's output for each of them alone.

    `ids` (B, T) int64; `prompts` and `lengths` (B,) int64, tokens; `logits` (B, T, V) and `hidden` (B, T, H), 0
    behind a row's end, and inside an encoder-decoder's prompt; `prompt_end`, see `Backbone`.
    """

    ids: Ints
    prompts: Ints
    lengths: Ints
    logits: Tensor
    hidden: Tensor
    prompt_end: int | None = None


class _Answer(NamedTuple):
    """Logits (N, V) and hidden states (N, H) that a backbone gave at the positions (rows, columns)."""

    logits: Tensor
    hidden: Tensor
    rows: Ints
    columns: Ints


def choose_backbone(model: PreTrainedModel, lean: bool = True, tokens: int | None = None) -> Backbone:
    """Return the fastest backbone whose answers equal the model's own plain forward.

    A few short rows are read alone, each by one plain forward; then a backbone has to say the same of them all at
    once, token by token while rows stop, and in branches. The same rows say whether its cache can get several tokens of
    a row at once, as those of a reply; where it cannot, rows are read again. Where the config has a setting below
    `tokens` that changes what the model does in longer rows, such as an attention window, rows that are longer are
    compared too. This is done once for a model object and a precision, in evaluation mode; neither random state nor
    training mode changes.

    Args:
        model: a Hugging Face causal LM or encoder-decoder, on its device.
        lean: whether the hand-written Llama may be chosen.
        tokens: the longest row that will be read; None: not known, taken for 512.
    Raises: ValueError if no backbone does, or the model changes as it is used, as RWKV does with `rescale_every` and
        BigBird with "block_sparse" attention; it names the model and the difference.
    Warns: TextGymWarning if the model can only be run without a cache, or longer rows are too large to be compared.
    """
    tokens = _SHORT if tokens is None else tokens
    refuse_changing(model, tokens)
    known = _chosen.setdefault(model, {})
    thresholds = _thresholds(model, tokens)
    device = next(model.parameters()).device
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    # An adapter that was put into it, another precision or gradient checkpointing makes it another model to run.
    lean = lean and llama.supports(model)
    key = (lean, autocast, thresholds, frozenset(each.dtype for each in model.parameters()))
    if key not in known:
        with undisturbed(model):
            way, faults, by_pieces = _find_way(model, lean, device, thresholds)
        if getattr(way, "func", way) is RereadingBackbone:
            warnings.warn(
                f"model: {type(model).__name__} reads a whole row again for every new token ({'; '.join(faults)})",
                TextGymWarning,
                stacklevel=2,
            )
        known[key] = way, by_pieces
    way, by_pieces = known[key]
    backbone = way(model)
    backbone.by_pieces = by_pieces
    return backbone


def refuse_changing(model: PreTrainedModel, tokens: int) -> None:
    """Raise ValueError if rows of up to `tokens` tokens change what a model computes afterwards."""
    config, who = model.config, f"model: {type(model).__name__} cannot be used with"
    if (every := getattr(config, "rescale_every", None) or 0) > 0:
        raise ValueError(
            f"{who} rescale_every={every}: it divides its own weights when it is first used, and again when they are "
            "saved and loaded; allowed is rescale_every=0 in the config.json that it is loaded from"
        )
    if getattr(config, "attention_type", None) == "block_sparse" and _switches(model):
        full = (5 + 2 * config.num_random_blocks) * config.block_size
        if full < tokens:
            raise ValueError(
                f"{who} attention_type='block_sparse' and rows of up to {tokens} tokens: the first one of at most "
                f"{full} makes it 'original_full' for all that follow; allowed is attention_type=\"original_full\" in "
                f"the config.json that it is loaded from, or rows of at most {full} tokens"
            )


def choose_alike(copy: PreTrainedModel, model: PreTrainedModel) -> None:
    """Let an exact copy of a model, on its device and in its precision, be run as was found right for the model."""
    _chosen[copy] = dict(_chosen.get(model, {}))


def _thresholds(model: PreTrainedModel, tokens: int) -> tuple[int, ...]:
    """Return the lengths below `tokens` beyond which a model's config says that it does something else."""
    found: dict[int, str] = {}

    def search(config: Mapping[str, object]) -> None:
        for name, value in config.items():
            if isinstance(value, Mapping):
                search(value)
            elif type(value) is int and _THRESHOLD.search(name) and _LENGTHS.min() <= value < tokens:
                found[value] = name

    search(model.config.get_text_config().to_dict())
    limit = max_tokens(model) or tokens
    size = 4 * len(_LENGTHS) * embedding_rows(model)  # bytes of a column of logits
    for value, name in list(found.items()):
        if value + 3 > limit:
            del found[value]
        elif value > _LONG or size * (value + 3) > _BYTES:
            del found[value]
            warnings.warn(
                f"model: {type(model).__name__} has {name}={value}; rows that are longer were not compared with its "
                "plain forward, which takes too long",
                TextGymWarning,
                stacklevel=3,
            )
    return tuple(sorted(found))


def _find_way(
    model: PreTrainedModel, lean: bool, device: torch.device, thresholds: tuple[int, ...]
) -> tuple[Way, list[str], bool]:
    """Return the first way that is right, in full precision and under autocast where it is on.

    Returns: the way, the faults of those before it, and whether it is right by pieces.
    """
    autocasts = (False, True) if torch.is_autocast_enabled(device.type) else (False,)
    shapes = [(_PROMPTS, _LENGTHS)]
    for most in thresholds:  # rows that cross it while they are written, beside a short one
        shapes.append((np.array([most - 1, 2, most, most + 1]), np.array([most + 3, 5, most + 3, most + 2])))
    cases = [(autocast, *shape) for shape in shapes for autocast in autocasts]
    rows = [_read_alone(model, device, *case) for case in cases]
    faults: list[str] = []
    for name, way in _WAYS.items():
        if (way is EncoderDecoderBackbone) != is_encoder_decoder(model):
            continue
        if way is llama.LlamaBackbone and not (lean and llama.supports(model)):
            continue

        def faulty(answers: _Answers, way: Way = way) -> str | None:
            found = (_fault(model, way, row, case[0], answers) for row, case in zip(rows, cases, strict=True))
            return next((fault for fault in found if fault is not None), None)

        fault = faulty(_answers)
        if fault is None:
            return way, faults, faulty(_in_pieces) is None
        faults.append(f"{name} {fault}")
    raise ValueError(
        f"model: {type(model).__name__} cannot be used, as it does not give what its own forward gives for a row "
        f"alone: {'; '.join(faults)}"
    )


def _fault(model: PreTrainedModel, way: Way, rows: _Rows, autocast: bool, answers: _Answers) -> str | None:
    """Say what is wrong with running `model` that way; None if nothing is."""
    try:
        with torch.autocast(rows.logits.device.type, enabled=autocast):
            backbone = way(model)
            backbone.prompt_end = rows.prompt_end
            off = [_difference(rows, answer) for answer in answers(backbone, rows)]
            tolerance = _TOLERANCES[_precision(model, rows.logits.device)]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model may fail in any way, and another way of running it may do
        return f"it fails ({type(error).__name__}: {first_line(error):.120})"
    relative, nats = (max(part) for part in zip(*off, strict=True))
    if relative <= tolerance:
        return None
    return f"its log-probabilities are off by up to {nats:.2g} nats, its answers by {relative:.2g} of their spread"


def _precision(model: PreTrainedModel, device: torch.device) -> torch.dtype:
    """Return the coarsest type that the model computes in; TF32, where torch may use it, has float16's mantissa."""
    types = {parameter.dtype for parameter in model.parameters()} & set(_TOLERANCES)
    if device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        types.add(torch.float16)
    if torch.is_autocast_enabled(device.type):
        types.add(torch.get_autocast_dtype(device.type))
    return max(types, key=lambda kind: _TOLERANCES[kind], default=torch.float32)


def _read_alone(model: PreTrainedModel, device: torch.device, autocast: bool, prompts: Ints, lengths: Ints) -> _Rows:
    """Run the plain forward on each row by itself: no padding, no mask, no cache.

    Raises: ValueError if it fails.
    """
    lengths = np.minimum(lengths, max_tokens(model) or lengths.max())
    config = model.config.get_text_config()
    embedded = embedding_rows(model)
    size = min(embedded, getattr(config, "vocab_size", embedded))
    ids = np.random.default_rng(0).integers(size, size=(len(lengths), lengths.max()))
    pad_id = getattr(config, "pad_token_id", None)
    if isinstance(pad_id, int) and 0 <= pad_id < size:
        ids[0, ids.shape[1] // 2] = pad_id  # a token like any other: often it ends a text
    prompts = np.minimum(prompts, lengths)
    ends = is_encoder_decoder(model)
    if ends:
        ids[:, : prompts.max()] %= size - 1
        ids[np.arange(len(ids)), prompts - 1] = size - 1
    try:
        with torch.autocast(device.type, enabled=autocast):
            outputs = [
                _plain(model, torch.tensor(row[None, :length], device=device), int(prompt))
                for row, prompt, length in zip(ids, prompts, lengths, strict=True)
            ]
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"model: {type(model).__name__} cannot be used, its forward fails "
            f"({type(error).__name__}: {first_line(error):.120})"
        ) from error
    logits, hidden = (pad_sequence(list(part), batch_first=True) for part in zip(*outputs, strict=True))
    return _Rows(ids, prompts, lengths, logits, hidden, size - 1 if ends else None)


def _plain(model: PreTrainedModel, row: Tensor, prompt: int) -> tuple[Tensor, Tensor]:
    """Return logits (T, V) and last hidden states (T, H) of a row (1, T) by its model's own forward."""
    if not is_encoder_decoder(model):
        output = model(input_ids=row, output_hidden_states=True)
        return output.logits[0], last_hidden(output.hidden_states)[0]
    start = row.new_full((1, 1), decoder_start(model))
    written = torch.cat([start, row[:, prompt:]], 1)
    output = model(input_ids=row[:, :prompt], decoder_input_ids=written, output_hidden_states=True)
    logits, hidden = output.logits[0], output.decoder_hidden_states[-1][0]
    return pad(logits, (0, 0, prompt - 1, 0)), pad(hidden, (0, 0, prompt - 1, 0))


def _answers(backbone: Backbone, rows: _Rows) -> Iterator[_Answer]:
    yield _scored(backbone, rows)
    yield from _decoded(backbone, rows)
    if (rows.prompts < rows.lengths).all():
        yield _branched(backbone, rows)


def _scored(backbone: Backbone, rows: _Rows) -> _Answer:
    """Read all states at once, as a trainer does."""
    place = np.arange(rows.ids.shape[1])
    first = min(1, place[-1]) if rows.prompt_end is None else rows.prompts[:, None] - 1
    where = np.nonzero((place >= first) & (place < rows.lengths[:, None]))
    features = backbone.features(*(_tensor(part, rows) for part in (rows.ids, *where)))
    return _Answer(*backbone.read_out(features), *where)


def _decoded(backbone: Backbone, rows: _Rows) -> Iterator[_Answer]:
    """Read token by token, as an agent acts."""
    return _followed(backbone, rows, range(int((rows.lengths - rows.prompts).max()) + 1))


def _in_pieces(backbone: Backbone, rows: _Rows) -> Iterator[_Answer]:
    """Read several tokens of some rows at once, then a token of each, then what is left."""
    backbone.by_pieces = True
    room = np.zeros_like(rows.ids)  # in the cache, for the pieces of short rows
    rows = rows._replace(ids=np.concatenate([rows.ids, room], 1))
    return _followed(backbone, rows, [0, _PIECES, _PIECES + 1, max(rows.lengths)])


def _followed(backbone: Backbone, rows: _Rows, steps: Iterable[int | Ints]) -> Iterator[_Answer]:
    """Read rows as they grow by so many tokens behind their prompts, as far as they go."""
    decoder = Decoder(backbone, rows.logits.device)
    for step in steps:
        now = np.minimum(rows.prompts + step, rows.lengths)
        mask = (np.arange(rows.ids.shape[1]) < now[:, None]).astype(np.int8)
        features = decoder.advance({"input_ids": rows.ids, "attention_mask": mask})
        yield _Answer(*backbone.read_out(features), np.arange(len(now)), now - 1)


def _branched(backbone: Backbone, rows: _Rows) -> _Answer:
    """Append one token to some of the rows, to one of them twice."""
    chosen = np.array([2, 0, 0, 3])
    columns = rows.prompts[chosen]
    cache = backbone.open(_tensor(rows.ids[:, : rows.prompts.max()], rows), _tensor(rows.prompts, rows), 1)[0]
    branches = backbone.select(cache, _tensor(chosen, rows))
    features = backbone.extend(branches, _tensor(rows.ids[chosen, columns], rows))
    return _Answer(*backbone.read_out(features), chosen, columns)


def _tensor(array: Ints, rows: _Rows) -> Tensor:
    return torch.tensor(array, device=rows.logits.device)


def _difference(rows: _Rows, answer: _Answer) -> tuple[float, float]:
    """Return how far an answer is from the truth: root mean square relative to the truth's own spread, and nats."""
    logits = rows.logits[answer.rows, answer.columns].float().log_softmax(-1)
    nats = answer.logits.float().log_softmax(-1) - logits
    hidden = rows.hidden[answer.rows, answer.columns].float()
    relative = [
        (got.square().mean(-1) / want.var(-1, correction=0).clamp(min=1e-12)).sqrt().max()
        for got, want in ((nats, logits), (answer.hidden.float() - hidden, hidden))
    ]
    worst = float(torch.stack(relative).nan_to_num(nan=torch.inf).max())
    return worst, float(nats.abs().max())


@contextlib.contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Run a block in evaluation mode without gradients, then restore training mode, attention and random state.

    Raises: ValueError if the model's parameters were written to.
    """
    training = [module for module in model.modules() if module.training]
    attention = [(module, module.attention_type, {**module._modules}) for module in _switches(model)]
    versions = _versions(model)
    model.eval()
    try:
        device = next(model.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            yield
    finally:
        for module, kind, parts in attention:
            module.attention_type = kind
            module._modules.update(parts)
        for module in training:
            module.training = True
    if versions != _versions(model):
        raise ValueError(f"model: {type(model).__name__} cannot be used, its forward changes its own parameters")


def _switches(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the modules of BigBird that put another attention in place of their own when they read a short row."""
    return [module for module in model.modules() if hasattr(module, "set_attention_type")]


def _versions(model: PreTrainedModel) -> list[int]:
    return [parameter._version for parameter in model.parameters() if not parameter.is_inference()]
