"""The inputs of supervised training: rows of a file, split by prompt, and the base model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import numpy as np
import torch
from torch import nn

from textgym.checks import JsonObject, check_count
from textgym.files import replace_folder, write_json
from textgym.lm.backbone import max_tokens, recompute_layers
from textgym.lm.causal import load_causal_lm, load_weights
from textgym.lm.checked import choose_backbone, refuse_changing
from textgym.lm.encdec import refuse_encoder_decoder
from textgym.lm.reference import Reference
from textgym.lm.scoring import Encoded
from textgym.preferences import Demonstration, Ranking, Reading, collect
from textgym.rows import local_only, numbered_rows, row_source
from textgym.task import Task
from textgym.vocab import Vocabulary, load_vocabulary
from textgym.world import MODEL_PATH
from textgym_agents.lm.devices import join
from textgym_agents.lm.lora import add_lora, model_tensors, save_model
from textgym_agents.rlhf.settings import FitSettings
from textgym_agents.training.loop import Watcher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Source = TypeVar("Source", Demonstration, Ranking)
Item = TypeVar("Item")

_SHOWN = 10  # broken rows that are named one by one
_LONGEST = 1024  # tokens; a longer row costs memory that few machines have for a whole batch
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

# Rows


@dataclass(frozen=True)
class SplitRows(Generic[Item]):
    """Encoded rows to learn from and held-out ones.

    Args:
        train, held_out: rows.
        held_out_prompts: of the held-out rows.
        report: counts of what was read, left out and cut.
    """

    train: list[Item]
    held_out: list[Item]
    held_out_prompts: list[str]
    report: dict[str, int]


def split_by_prompt(prompts: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return row numbers to train on and to hold out; rows with the same prompt are on the same side.

    Args:
        prompts: of every row.
        share: of the different prompts that is held out; at least one if it is not 0.
    Raises: ValueError if there are too few prompts for rows on both sides.
    """
    names = sorted(set(prompts))
    count = max(1, round(share * len(names))) if share else 0
    if count >= len(names):
        raise ValueError(
            f"held_out={share}: the data have {len(names)} different prompts, so none is left to train on; "
            "allowed are more prompts, or held_out=0"
        )
    chosen = np.random.default_rng([seed, 0]).permutation(len(names))[:count]
    away = {names[index] for index in chosen}
    held_out = [row for row, prompt in enumerate(prompts) if prompt in away]
    return [row for row, prompt in enumerate(prompts) if prompt not in away], held_out


def read_rows(
    reading: Reading[Source],
    encode: Callable[[Source], Item],
    settings: FitSettings,
    watcher: Watcher,
    argument: str = "data",
) -> tuple[list[str], list[Item]]:
    """Return the prompts and the encoded forms of the rows that can be used.

    Args:
        reading: of the file that the setting `argument` names.
        encode: raises ValueError or TypeError for a row that cannot be used.
    Raises: ValueError for a row that cannot be encoded, unless such rows are to be skipped; or without any row.
    """
    path = getattr(settings, argument)
    problems = [str(problem) for problem in reading.problems]
    prompts, items = [], []
    for place, row in enumerate(reading.rows):
        try:
            items.append(encode(row))
            prompts.append(row.prompt)
        except (ValueError, TypeError) as error:
            message = f"{path}, line {_line_of(place, reading, path)}: {error}"
            if settings.on_broken == "stop":
                raise ValueError(message) from error
            problems.append(message)
    for problem in problems[:_SHOWN]:
        watcher.note(f"left out: {problem}")
    if len(problems) > _SHOWN:
        watcher.note(f"left out: {len(problems) - _SHOWN} more broken rows")
    if not items:
        raise ValueError(f"{argument}={path!r}: no usable row is in it")
    return prompts, items


def _line_of(place: int, reading: Reading[Source], path: str) -> int:
    """Return the line of a file that gave a row: every line that is neither blank nor a problem gave one."""
    if not Path(row_source(path).place).exists():
        return place + 1
    broken = {problem.line for problem in reading.problems}
    good = [number for number, _ in numbered_rows(path) if number not in broken]
    return good[place]


def split_rows(
    reading: Reading[Source],
    encode: Callable[[Source], Item],
    answers: Callable[[Item], Sequence[Encoded]],
    settings: FitSettings,
    max_length: int,
    watcher: Watcher,
) -> SplitRows[Item]:
    """Encode rows, split them by prompt, and count them and what was left out and cut.

    Args:
        reading: of `settings.data`.
        encode: see `read_rows`.
        answers: of an encoded row.
        max_length: tokens that rows were cut to.
    Raises: ValueError for broken rows that are not to be skipped, or too few rows.
    """
    prompts, items = read_rows(reading, encode, settings, watcher)
    train, held_out = split_by_prompt(prompts, settings.held_out, settings.seed)
    cuts = [sum(answer.cut for answer in answers(item)) for item in items]
    report = {
        "prompts": len(set(prompts)),
        "train_rows": len(train),
        "held_out_rows": len(held_out),
        "rows_cut": sum(cut > 0 for cut in cuts),
        "tokens_cut": sum(cuts),
        "tokens": sum(len(answer.ids) for item in items for answer in answers(item)),
        "broken_rows": len(reading.problems) + len(reading.rows) - len(items),
        "max_length": max_length,
    }
    if report["rows_cut"]:
        watcher.note(
            f"{report['rows_cut']} of {len(items)} rows are longer than {max_length} tokens: "
            f"{report['tokens_cut']} tokens were cut, first from prompts"
        )
    held_out_prompts = [prompts[row] for row in held_out]
    return SplitRows([items[row] for row in train], [items[row] for row in held_out], held_out_prompts, report)


def noisy_pairs(
    task: Task, policy: Reference, wanted: int, noise: float, seed: int, drawn: float, argument: str
) -> list[Ranking]:
    """Return rankings of two answers of a policy to training prompts, by a Bradley-Terry annotator.

    Args:
        wanted: rankings.
        noise: temperature of the annotator, reward units.
        seed: of everything drawn.
        drawn: prompts for each ranking wanted, above 1: some give none.
        argument: the setting that asks for this many, for the message.
    Raises: ValueError if the prompts drawn give too few.
    """
    prompts = round(wanted * drawn)
    found = collect(task, policy, n=prompts, noise=noise, seed=seed).rankings
    if len(found) < wanted:
        raise ValueError(f"{argument}={wanted}: {prompts} prompts gave only {len(found)} rankings")
    return found[:wanted]


# Models


def base_name(base: str) -> str:
    """Return the folder or hub id that a base's name stands for."""
    return str(MODEL_PATH) if base == "builtin" else base


def load_base_lm(base: str, chat: bool | str | None = None) -> tuple[PreTrainedModel, Vocabulary]:
    """Return a causal LM, and the vocabulary in which the environment shows its prompts.

    Args: chat: the environment's option.
    Raises: ValueError if there is no such model, it is not causal, or there is no tokenizer with it.
    """
    name = base_name(base)
    if not Path(name).exists() and name.startswith((".", "/", "~")):
        raise ValueError(f"base={base!r}: there is no such folder")
    model: PreTrainedModel = load_causal_lm(name)
    choose_backbone(model)
    tokenizer = name if Path(name).is_dir() else _hub_tokenizer(name)
    logits = model.config.get_text_config().vocab_size
    return model, load_vocabulary(tokenizer, vocab_size=logits, chat=chat, model=name)


def prepared(
    model: PreTrainedModel, settings: FitSettings, seed: int, head: nn.Module | None = None
) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """Return a model ready to be trained, with an adapter and layers that run again where the settings ask for them.

    Args: seed, head: see `add_lora`.
    Returns: the model, and PEFT's around it; None without an adapter.
    """
    adapter = None if settings.lora_rank is None else add_lora(model, settings, seed, head)
    if settings.gradient_checkpointing:
        recompute_layers(model)
    return model, cast("PreTrainedModel | None", adapter)


def resize_model(base: str, layers: int, folder: Path, seed: int = 0) -> None:
    """Write a base model with another number of layers: its first ones, or all of them with new ones on top.

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

    check_count("layers", layers)
    refuse_encoder_decoder(base_name(base), f"base={base!r}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        what = f"base={base!r}: no causal LM"
        model, missing = load_weights(AutoModelForCausalLM, base_name(base), what, num_hidden_layers=layers)
    fresh = {key for key in missing if key.endswith((".o_proj.weight", ".down_proj.weight"))}
    if missing and not fresh:
        raise ValueError(f"layers={layers!r}: base={base!r} has fewer, and is no model that can be deepened")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in fresh:
                parameter.zero_()
    save_model_folder(folder, model, base)


def freeze_first_layers(model: PreTrainedModel, layers: int) -> None:
    """Leave the embeddings and the first layers as they are in training; 0 trains everything.

    Raises: ValueError if the model has fewer layers.
    """
    has = model.config.get_text_config().num_hidden_layers
    if not 0 <= layers <= has:
        raise ValueError(f"freeze={layers!r}: allowed is 0..{has}, the layers of the model")
    if not layers:
        return
    for part in model.modules():
        if isinstance(part, nn.Embedding):  # of tokens, positions and types
            part.requires_grad_(False)
    for name, parameter in model.named_parameters():
        number = next((int(part) for part in name.split(".") if part.isdigit()), layers)
        if number < layers or "embed" in name:  # what scales and projects embeddings
            parameter.requires_grad_(False)


def longest_row(model: PreTrainedModel, asked: int | None) -> int:
    """Return the most tokens of a row: what is asked for, or what the model reads, up to 1024.

    Raises: ValueError if more is asked for than the model reads, or rows of that length change it.
    """
    limit = max_tokens(model)
    if asked is not None and limit is not None and asked > limit:
        raise ValueError(f"max_length={asked}: the model reads at most {limit} tokens")
    length = min(limit or _LONGEST, _LONGEST) if asked is None else asked
    refuse_changing(model, length)
    return length


def save_model_folder(
    path: Path, model: PreTrainedModel, base: str, files: Mapping[str, JsonObject] | None = None
) -> None:
    """Write a model with the tokenizer of its base, replacing what was at `path` at once.

    Args:
        files: more files of the folder: name -> content.
    Of several processes all call this, and the one that leads writes.
    """
    leads = join().leads
    tensors = model_tensors(model, leads)
    if not leads:
        return

    def write(folder: Path) -> None:
        name = Path(base_name(base))
        save_model(model, folder, str(name.resolve()) if name.is_dir() else str(name), tensors)
        if name.is_dir():
            for file in _TOKENIZER_FILES:
                if (name / file).is_file():
                    shutil.copyfile(name / file, folder / file)
        else:
            _hub_tokenizer(str(name)).save_pretrained(folder)
        for file, data in (files or {}).items():
            write_json(folder / file, data)

    replace_folder(path, write)


def _hub_tokenizer(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False, local_files_only=local_only(name)
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"base={name!r}: no tokenizer there ({first})") from error
    return tokenizer
