"""Reward models over texts: r = w^T h at the last token of prompt and completion."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from textgym.lm.backbone import make_backbone
from textgym.lm.llama import supports
from textgym.lm.loading import load_weights
from textgym.lm.reward_vocabulary import load_reward_vocabulary
from textgym.vocab import Vocabulary


class Encoded(NamedTuple):
    """A prompt and a completion as a reward model reads them.

    Args:
        ids: the tokens.
        prompt_tokens: how many of them are the prompt's, template included.
        cut: how many tokens were left out because of the length.
    """

    ids: list[int]
    prompt_tokens: int
    cut: int


def end_id(vocabulary: Vocabulary) -> int | None:
    """The token that closes a completion which came to its end; None where the vocabulary has none."""
    return vocabulary.stop_ids[0] if vocabulary.stop_ids else None


def encode_pair(
    vocabulary: Vocabulary,
    prompt: str,
    completion: str,
    ended: bool = True,
    end_id: int | None = None,
    max_length: int | None = None,
) -> Encoded:
    """The tokens of a prompt, of a completion, and of its end.

    What is too long loses the first tokens of the prompt's text, while what the template or the tokenizer puts
    around it stays, and then the last tokens of the completion, its end first. `cut` counts them: callers report it.

    Args:
        vocabulary: of the reward model.
        prompt: see `Vocabulary.encode_prompt`.
        completion: may be empty; what reads like a control token is encoded as plain text.
        ended: whether the completion was written to its end.
        end_id: the token that says so; None for none.
        max_length: tokens; None for no limit.
    Raises: ValueError if the prompt or the completion cannot be encoded or `max_length` does not hold the template.
    """
    head = list(vocabulary.encode_prompt(prompt))
    try:
        completion.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"completion {completion!r:.80} cannot be written as UTF-8 ({error.reason})"
        ) from error
    tail = vocabulary.codec.encode(completion) if completion else []
    if ended and end_id is not None:
        tail = [*tail, end_id]
    total = len(head) + len(tail)
    if max_length is None or total <= max_length:
        return Encoded([*head, *tail], len(head), 0)
    before, after = len(vocabulary.before_ids), len(vocabulary.after_ids)
    if before + after >= max_length:
        raise ValueError(
            f"max_length={max_length}: the template alone has {before + after} tokens; more is allowed"
        )
    kept = max(max_length - before - after - len(tail), 0)  # of the prompt's own text
    stop = len(head) - after
    head = [*head[:before], *head[stop - kept :]]
    ids = [*head, *tail][:max_length]
    return Encoded(ids, len(head), total - len(ids))


def pad_right(rows: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one tensor (B, T) int64 padded on the right, and their lengths (B,) int64."""
    lengths = [len(row) for row in rows]
    width = max(lengths)
    padded = [[*row, *[pad_id] * (width - length)] for row, length in zip(rows, lengths, strict=True)]
    return torch.tensor(padded), torch.tensor(lengths)


def sequence_scores(model: Any, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """The score of every row, read at its last token; differentiable.

    Where a row ends is known from `lengths`, never from its ids, so padding may be any token, the end of the text
    included.

    Args:
        model: a Hugging Face sequence classifier with one label.
        input_ids: (B, T) int64, padded on the right.
        lengths: (B,) int64, from 1 to T.
    Returns: (B,) float32, reward units.
    """
    last = lengths - 1
    rows = torch.arange(len(last), device=input_ids.device)
    if supports(model) and not torch.is_autocast_enabled(input_ids.device.type):
        return make_backbone(model, lean=True).states(input_ids, rows, last)[0][:, 0]
    mask = (torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]).long()
    if not reads_last_token(model):
        return torch.as_tensor(model(input_ids=input_ids, attention_mask=mask).logits[:, 0]).float()
    base = model.base_model
    options = {"use_cache": False} if "use_cache" in inspect.signature(base.forward).parameters else {}
    hidden = base(input_ids=input_ids, attention_mask=mask, **options).last_hidden_state
    return torch.as_tensor(model.score(hidden[rows, last])[:, 0]).float()


def reads_last_token(model: Any) -> bool:
    """Whether a classifier is a decoder with one linear head over its last token, as Llama's and GPT-2's are."""
    return isinstance(getattr(model, "score", None), nn.Linear) and model.base_model is not model


def max_tokens(model: Any) -> int | None:
    """The longest row that a model can read, tokens; None where it has no limit.

    RoBERTa and its kin count positions from behind their padding token's id.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - int(module.padding_idx) - 1
    return limit


def load_reward_model(name: str | Path) -> tuple[Any, Vocabulary]:
    """Loads a reward model in float32, in evaluation mode, and the vocabulary that it reads.

    Args:
        name: a folder in Hugging Face layout with its tokenizer.json, or a hub id.
    Raises: ValueError if there is no sequence classifier with one label, trained head, safetensors weights and
        tokenizer; it names the argument and the cause.
    """
    model, missing = _load(name)
    if missing:
        raise ValueError(
            f"model={str(name)!r}: no reward model: its weights lack {min(missing)!r:.80}; train one on it first"
        )
    if model.config.num_labels != 1:
        raise ValueError(
            f"model={str(name)!r}: num_labels={model.config.num_labels}; a reward model has 1 (one score)"
        )
    return model.eval(), _vocabulary(name, model)


def start_reward_model(base: str | Path, seed: int | None = None) -> tuple[Any, Vocabulary]:
    """A reward model to be trained: a base model with a new head, in float32, in evaluation mode.

    A base that is a reward model already keeps its head. The padding token of the vocabulary is written into the
    configuration, for those who read the model with Hugging Face's own forward. No global random state is touched.

    Args:
        base: a folder in Hugging Face layout with its tokenizer.json, or a hub id.
        seed: of the head, normal with variance 1 / (H + 1); None starts it at 0: every score is 0.
    Raises: ValueError if no such model can be loaded, or it has more than one label.
    Source: Stiennon et al. (2020), arXiv:2009.01325, appendix B (variance).
    """
    model, missing = _load(base, "base", num_labels=1, seed=0 if seed is None else seed)
    body = f"{model.base_model_prefix}."
    lost = [key for key in missing if key.startswith(body) and "pooler" not in key]
    if lost:
        raise ValueError(f"base={str(base)!r}: its weights lack {min(lost)!r:.80}")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == 1 and f"{name}.weight" in missing:
            _start_head(module, generator)
    vocabulary = _vocabulary(base, model)
    model.config.get_text_config().pad_token_id = vocabulary.pad_id
    return model.eval(), vocabulary


def _load(name: str | Path, argument: str = "model", seed: int = 0, **options: Any) -> tuple[Any, set[str]]:
    """A sequence classifier and the names of the weights that its files lack; those are drawn from `seed`."""
    from transformers import AutoModelForSequenceClassification

    what = f"{argument}={str(name)!r}: no sequence classifier"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return load_weights(AutoModelForSequenceClassification, name, what, **options)


def _vocabulary(name: str | Path, model: Any) -> Vocabulary:
    vocabulary = load_reward_vocabulary(name, pairs=not reads_last_token(model))
    rows = model.get_input_embeddings().weight.shape[0]
    if vocabulary.size > rows:
        raise ValueError(
            f"model={str(name)!r}: its tokenizer has {vocabulary.size} tokens but the model only {rows}"
        )
    return vocabulary


def _start_head(head: nn.Linear, generator: torch.Generator | None) -> None:
    with torch.no_grad():
        if head.bias is not None:
            head.bias.zero_()
        if generator is None:
            head.weight.zero_()
        else:
            head.weight.normal_(0.0, (head.in_features + 1) ** -0.5, generator=generator)
