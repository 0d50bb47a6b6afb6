"""How a causal LM is run: the fastest way whose every answer equals the model's own plain forward."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym.lm import llama
from textgym.lm.backbone import (
    Backbone,
    HuggingFaceBackbone,
    RereadingBackbone,
    StateSpaceBackbone,
    last_hidden,
    max_tokens,
)
from textgym.lm.decoder import Decoder
from textgym.rewards.base import TextGymWarning

Way = Callable[[Any], Backbone]
_Key = tuple[bool, torch.dtype | None]

# Tokens of a prompt and of the finished row. The rows stop one after the other, so that one of them pauses inside the
# cache and then some are dropped from it.
_PROMPTS = np.array([1, 5, 2, 3])
_LENGTHS = np.array([6, 6, 5, 5])
_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}

_chosen: WeakKeyDictionary[Any, dict[_Key, Way]] = WeakKeyDictionary()


class _Rows(NamedTuple):
    """Rows of tokens, and what the model says of each of them alone.

    `ids` (B, T) int64; `prompts` and `lengths` (B,) int64, tokens; `logits` (B, T, V) and `hidden` (B, T, H), 0
    behind a row's end.
    """

    ids: NDArray[np.int64]
    prompts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    logits: Tensor
    hidden: Tensor


class _Answer(NamedTuple):
    """Logits (N, V) and hidden states (N, H) that a backbone gave at the positions (rows, columns)."""

    logits: Tensor
    hidden: Tensor
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


def choose_backbone(model: Any, lean: bool = True) -> Backbone:
    """The fastest backbone whose answers equal the model's own plain forward.

    A few short rows are read alone, each by one plain forward; then a backbone has to say the same of them all at
    once, token by token while rows stop, and in branches. This is done once for a model object and a precision,
    in evaluation mode; neither random state nor training mode changes.

    Args:
        model: a Hugging Face causal LM, on its device.
        lean: whether the hand-written Llama may be chosen.
    Raises: ValueError if no backbone does, or the model's forward changes its own parameters; it names the model
        and the difference.
    Warns: TextGymWarning if the model can only be run without a cache.
    """
    known = _chosen.setdefault(model, {})
    device = next(model.parameters()).device
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    if (lean, autocast) not in known:
        with undisturbed(model):
            way = _find_way(model, lean, device)
        known[lean, autocast] = way
    return known[lean, autocast](model)


def _find_way(model: Any, lean: bool, device: torch.device) -> Way:
    """The first way that is right in full precision and, where autocast is on, works there too."""
    ways: dict[str, Way] = {
        "with a cache": HuggingFaceBackbone,
        "with a state": StateSpaceBackbone,
        "without a cache": RereadingBackbone,
    }
    if lean and llama.supports(model):
        ways = {"by the hand-written Llama": llama.LlamaBackbone, **ways}
    autocast = torch.is_autocast_enabled(device.type)
    faults: list[str] = []
    for name, way in ways.items():
        fault = None
        for enabled in (False, True) if autocast else (False,):
            with torch.autocast(device.type, enabled=enabled):
                fault = fault or _fault(model, way, device)
        if fault is None:
            if way is RereadingBackbone:
                _warn(model, faults[-1])
            return way
        faults.append(f"{name} {fault}")
    raise ValueError(
        f"model: {type(model).__name__} cannot be used, it does not give what its own forward gives for a row alone: "
        + "; ".join(faults)
    )


def _warn(model: Any, fault: str) -> None:
    warnings.warn(
        f"model: {type(model).__name__} is run without a key-value cache, which takes longer the longer a row is "
        f"({fault})",
        TextGymWarning,
        stacklevel=5,
    )


def _fault(model: Any, way: Way, device: torch.device) -> str | None:
    """What is wrong with running `model` that way; None if nothing is."""
    try:
        backbone = way(model)
        rows = _read_alone(model, backbone.vocab_size, device)
        off = [_difference(rows, answer) for answer in _answers(backbone, rows, device)]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model may fail in any way, and another way of running it may do
        reason = (str(error).strip().splitlines() or [""])[0]
        return f"it fails ({type(error).__name__}: {reason:.120})"
    tolerance = _TOLERANCES[_precision(model, device)]
    if max(relative for relative, _ in off) <= tolerance:
        return None
    return f"its log-probabilities are off by up to {max(nats for _, nats in off):.2g} nats"


def _precision(model: Any, device: torch.device) -> torch.dtype:
    """The coarsest type that the model computes in."""
    types = {parameter.dtype for parameter in model.parameters()} & set(_TOLERANCES)
    if torch.is_autocast_enabled(device.type):
        types.add(torch.get_autocast_dtype(device.type))
    return max(types, key=lambda kind: _TOLERANCES[kind], default=torch.float32)


def _read_alone(model: Any, vocab_size: int, device: torch.device) -> _Rows:
    """The plain forward of each row by itself: no padding, no mask, no cache."""
    limit = max_tokens(model)
    lengths = np.minimum(_LENGTHS, limit or _LENGTHS.max())
    size = min(vocab_size, model.get_input_embeddings().weight.shape[0])
    ids = np.random.default_rng(0).integers(size, size=(len(lengths), lengths.max()))
    outputs = [
        model(input_ids=torch.tensor(row[None, :length], device=device), output_hidden_states=True)
        for row, length in zip(ids, lengths, strict=True)
    ]
    logits = torch.nn.utils.rnn.pad_sequence([output.logits[0] for output in outputs], batch_first=True)
    hidden = torch.nn.utils.rnn.pad_sequence([last_hidden(output)[0] for output in outputs], batch_first=True)
    return _Rows(ids, np.minimum(_PROMPTS, lengths), lengths, logits, hidden)


def _answers(backbone: Backbone, rows: _Rows, device: torch.device) -> Iterator[_Answer]:
    yield _scored(backbone, rows, device)
    yield from _decoded(backbone, rows, device)
    if (rows.prompts < rows.lengths).all():
        yield _branched(backbone, rows, device)


def _scored(backbone: Backbone, rows: _Rows, device: torch.device) -> _Answer:
    """All states at once, as a trainer reads them."""
    place = np.arange(rows.ids.shape[1])
    where = np.nonzero((place >= min(1, place[-1])) & (place < rows.lengths[:, None]))
    states = backbone.states(*(torch.tensor(part, device=device) for part in (rows.ids, *where)))
    return _Answer(*states, *where)


def _decoded(backbone: Backbone, rows: _Rows, device: torch.device) -> Iterator[_Answer]:
    """Token by token, as an agent acts."""
    decoder = Decoder(backbone, device)
    for step in range(int((rows.lengths - rows.prompts).max()) + 1):
        now = np.minimum(rows.prompts + step, rows.lengths)
        mask = np.arange(rows.ids.shape[1]) < now[:, None]
        logits, hidden = decoder.advance({"input_ids": rows.ids, "attention_mask": mask})
        yield _Answer(logits, hidden, np.arange(len(now)), now - 1)


def _branched(backbone: Backbone, rows: _Rows, device: torch.device) -> _Answer:
    """One token more for some of the rows, one of them twice."""
    chosen = np.array([2, 0, 0, 3])
    columns = rows.prompts[chosen]
    ids, prompts, picked, tokens = (
        torch.tensor(part, device=device)
        for part in (rows.ids[:, : rows.prompts.max()], rows.prompts, chosen, rows.ids[chosen, columns])
    )
    cache = backbone.select(backbone.open(ids, prompts, 1)[0], picked)
    return _Answer(*backbone.extend(cache, tokens), chosen, columns)


def _difference(rows: _Rows, answer: _Answer) -> tuple[float, float]:
    """How far an answer is from the truth: root mean square relative to the truth's own spread, and nats."""
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
def undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients, and afterwards the training mode and random state that there were.

    Raises: ValueError if the model's parameters were written to.
    """
    training = [module for module in model.modules() if module.training]
    versions = [parameter._version for parameter in model.parameters() if not parameter.is_inference()]
    model.eval()
    try:
        device = next(model.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
    if versions != [parameter._version for parameter in model.parameters()]:
        raise ValueError(
            f"model: {type(model).__name__} cannot be used, its forward changes its own parameters"
        )
