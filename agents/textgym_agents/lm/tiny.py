"""The model that an agent starts from: for a task whose reference is no LM, a tiny one with its probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym.checks import Bools, Ints
from textgym.lm.causal import load_causal_lm, logit_bias
from textgym.lm.reference import NGramReference, Reference, UniformReference
from textgym.solver import UnsolvableError, prefix_tree
from textgym.task import Task, has_language_model, make_reference, reference_model
from textgym_agents.protocol import Observation, token_rows

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel

    from textgym_agents.lm.table import TableLM

HIDDEN = 32
LAYERS = 2
HEADS = 4
TOLERANCE = 1e-3
"""Nats: the greatest mean KL(reference || model) over a task's states that a start may have."""
_PAIRS_UP_TO = 128
_ROWS = 64
_STEPS = 2000
_CHECK_EVERY = 50
_RATE = 1e-2


def start_model(task: Task, name: str | None = None, seed: int = 0) -> PreTrainedModel:
    """Return the causal LM that an agent starts from: `name`, else the task's reference, else a tiny one equal to it.

    Args:
        name: folder or hub id; None asks the task.
        seed: of the tiny model's weights.
    Raises: ValueError if no such model can be loaded, or a tiny one cannot equal the reference.
    """
    if name is not None or has_language_model(task):
        return load_causal_lm(name or reference_model(task))
    return tiny_model(task, seed)


def tiny_model(task: Task, seed: int = 0) -> LlamaForCausalLM:
    """Return a Llama with the task's V and some twenty thousand parameters that starts as the task's reference.

    For the uniform reference the output layer is zero. For a table of pairs (n up to 2) the layers add nothing and the
    output layer is solved for. Both are exact to float32; any other reference is distilled to `TOLERANCE`.

    Args:
        task: its reference gives every allowed token a positive probability.
        seed: of the weights and the distillation; global generators are not touched.
    Raises: ValueError if a probability is 0 or distillation does not reach the tolerance. It cannot where texts differ
        only in how often they repeat one token, and the reference tells them apart: attention takes averages.
    """
    generator = torch.Generator().manual_seed(seed)
    reference = make_reference(task)
    size = task.vocabulary.size
    pairs = isinstance(reference, NGramReference) and reference.order <= 2 and size <= _PAIRS_UP_TO
    # A table of pairs may say anything after each of V tokens, so their hidden states must be independent.
    hidden = max(HIDDEN, 2 * HEADS * math.ceil(size / (2 * HEADS))) if pairs else HIDDEN
    model = _random_llama(size, hidden, task.max_prompt_tokens + task.max_new_tokens, generator)
    if isinstance(reference, UniformReference):
        torch.nn.init.zeros_(model.lm_head.weight)
    elif pairs:
        _solve_pairs(model, reference, task.vocabulary.allowed)
    else:
        _distil(model, reference, task, seed)
    _check(model, reference, task, seed)
    return model


def table_model(task: Task) -> TableLM:
    """Return a table of a task's states, of all splits, that starts as its reference; see `textgym_agents.lm.table`.

    Raises: ValueError if the states are too many to be listed, or the reference gives a token probability 0.
    """
    from textgym_agents.lm.table import make_table

    reference, allowed = make_reference(task), task.vocabulary.allowed
    found: dict[tuple[int, ...], Tensor] = {}
    try:
        trees = [prefix_tree(task, split) for split in task.prompts]
    except UnsolvableError as error:
        raise ValueError(f"model='table': task {task.name!r} has no list of its states ({error})") from error
    for tree in trees:
        for depth in range(len(tree.levels) - 1):
            for rows in tree.batches(depth):
                states = tree.observations(depth, rows)
                found.update(zip(token_rows(states), _finite(reference.log_probs(states), allowed), strict=True))
    return make_table(list(found), torch.stack(list(found.values())))


def _random_llama(size: int, hidden: int, positions: int, generator: torch.Generator) -> LlamaForCausalLM:
    """Return a Llama whose weights come from `generator` alone, in evaluation mode."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would stand in the way when the model is saved
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=max(positions, 64),
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},  # short texts: positions far apart
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                continue
            # Every layer passes on as much variance as it gets.
            deviation = 1.0 if "embed" in name else parameter.shape[1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    model.eval()
    return model


@torch.no_grad()
def _solve_pairs(model: LlamaForCausalLM, reference: Reference, allowed: Bools) -> None:
    """Make the logits after a token a function of that token alone, and equal to the table's log-probabilities."""
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    size = len(allowed)
    one_token: Observation = {
        "input_ids": np.arange(size)[:, None],
        "attention_mask": np.ones((size, 1), dtype=np.int8),
    }
    table = _finite(reference.log_probs(one_token), allowed)
    hidden = model.model(torch.arange(size)[:, None]).last_hidden_state[:, 0].double()
    model.lm_head.weight.copy_(torch.linalg.lstsq(hidden, table).solution.t())


def _distil(model: LlamaForCausalLM, reference: Reference, task: Task, seed: int) -> None:
    """Minimise KL(reference || model) over random texts of the task by Adam, until it is half the tolerance."""
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
    recent: list[float] = []
    for step, (ids, states) in enumerate(_texts(task, seed), 1):
        loss = _divergence(model, reference, task, ids, states)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append(float(loss.detach()))
        if step == _STEPS or (step % _CHECK_EVERY == 0 and np.mean(recent[-_CHECK_EVERY:]) < TOLERANCE / 2):
            return
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / _STEPS)


@torch.no_grad()
def _check(model: LlamaForCausalLM, reference: Reference, task: Task, seed: int) -> None:
    divergence = float(_divergence(model, reference, task, *next(_texts(task, seed + 1))))
    if not divergence < TOLERANCE:
        raise ValueError(
            f"reference={str(task.reference)!r} of task {task.name!r}: a tiny LM stays {divergence:.2g} nats per state "
            f"away, allowed is {TOLERANCE:g}; give the agent model=FOLDER_OR_HUB_ID"
        )


def _texts(task: Task, seed: int) -> Iterator[tuple[Ints, Bools]]:
    """Yield random texts of the task: a training prompt, then allowed tokens to the end of the budget.

    They come as batches of ids (B, L) and of bool (B, L), True at the last tokens of the states in which a policy acts.
    """
    generator = np.random.default_rng([seed, 5])
    prompts, weights = task.encoded("train"), task.prompt_set("train").weights
    choices = np.flatnonzero(task.vocabulary.allowed)
    while True:
        chosen = [prompts[index].ids for index in generator.choice(len(prompts), _ROWS, p=weights)]
        last = np.array([len(ids) for ids in chosen])[:, None] - 1
        ids = generator.choice(choices, (_ROWS, int(last.max()) + task.max_new_tokens))
        for row, prompt in zip(ids, chosen, strict=True):
            row[: len(prompt)] = prompt
        place = np.arange(ids.shape[1])
        yield ids, (place >= last) & (place < last + task.max_new_tokens)


def _divergence(model: LlamaForCausalLM, reference: Reference, task: Task, ids: Ints, states: Bools) -> Tensor:
    """Return the mean KL(reference || model) over the states of these texts, nats; differentiable."""
    allowed = task.vocabulary.allowed
    rows, last = np.nonzero(states)
    mask = (np.arange(ids.shape[1]) <= last[:, None]).astype(np.int8)
    target = _finite(reference.log_probs({"input_ids": ids[rows], "attention_mask": mask}), allowed)
    logits = model(torch.tensor(ids)).logits[torch.tensor(rows), torch.tensor(last)]
    own = torch.log_softmax(logits.double() + logit_bias(allowed, len(allowed), logits.device), -1)
    return torch.where(torch.tensor(allowed), target.exp() * (target - own), 0.0).sum(-1).mean()


def _finite(log_probs: NDArray[np.floating], allowed: Bools) -> Tensor:
    """Return log-probabilities (B, V) float64 with 0 at tokens that are not allowed; -inf elsewhere is refused."""
    usable = np.where(allowed, log_probs, 0.0).astype(np.float64)
    if not np.isfinite(usable).all():
        raise ValueError(
            "reference: it gives an allowed token probability 0, which no LM can; allowed are positive ones"
        )
    return torch.tensor(usable)
