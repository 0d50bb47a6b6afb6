"""The prompts of a task: texts with data columns and weights, and reading them from files."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from textgym.checks import Floats, JsonObject, TextGymWarning, not_one_of, shown
from textgym.codecs.chat import Message, read_dialogue, write_dialogue
from textgym.files import line_text, numbered_lines
from textgym.rows import SUFFIXES, ReadRow, RowSource, numbered_rows, row_source

Split = Literal["train", "eval", "tune"]
"""Prompts for training ("train"), and held-out prompts to report ("eval") and to choose settings on ("tune")."""
Overlong = Literal["refuse", "drop", "cut"]
"""What to do with a prompt that is too long."""
HeldOut = Literal["eval", "tune"]
Prompt = str | Sequence[Message]
"""A text, or messages of which the last is the user's, see `textgym.codecs.chat.write_dialogue`."""
PromptSource = str | Path | Sequence[Prompt]
"""A list of prompts, the path of a .txt file, or a source of `textgym.rows`."""
Columns = Mapping[str, Sequence[Any]]
"""Data for the reward: name -> one value per prompt."""

# A reward gets these as arguments already.
RESERVED_COLUMNS = ("prompts", "completions", "completion_ids", "episode_seeds")


@dataclass(frozen=True, eq=False)
class PromptSet:
    """The initial states of one split, made by `prompt_set`.

    Args:
        texts: n prompts, without the chat template.
        columns: data for the reward, name -> n values.
        weights: float64 (n,), summing to 1: the distribution rho.
    """

    texts: tuple[str, ...]
    columns: Mapping[str, tuple[Any, ...]] = field(repr=False)
    weights: Floats = field(repr=False)

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"PromptSet({len(self)} prompts, {shown(self.texts[0])}, ...)"

    @cached_property
    def cumulative(self) -> list[float]:
        """Return the distribution function of `weights`, ending in exactly 1, for drawing by bisection."""
        total = np.cumsum(self.weights)
        cumulative: list[float] = (total / total[-1]).tolist()
        return cumulative

    @cached_property
    def index(self) -> dict[str, int]:
        """Return the index of every text; for equal texts the first."""
        return {text: i for i, text in reversed(list(enumerate(self.texts)))}


def prompt_set(
    texts: Sequence[Prompt],
    columns: Columns | None = None,
    weights: Sequence[float] | Floats | None = None,
    argument: str = "prompts",
) -> PromptSet:
    """Check prompts and return them as a `PromptSet`.

    Args:
        texts: at least one; a list of messages becomes the text that stands for it.
        columns: name -> one value per text; none of the names in RESERVED_COLUMNS.
        weights: one per text, finite, not negative, not all 0; they need not sum to 1. None: all equal.
        argument: the name of `texts`, for messages.
    Raises: TypeError or ValueError, naming the argument.
    """
    if _is_list(texts) and not isinstance(texts, Sized):
        texts = list(texts)  # a generator can be read once
    written = _written(texts, argument)
    if not written:
        raise ValueError(f"{argument}: the list is empty, at least one is needed")
    if not isinstance(columns, Mapping | None):
        raise TypeError(f"columns={shown(columns)}: allowed is a dict from names to lists")
    for name, values in (columns or {}).items():
        if name in RESERVED_COLUMNS:
            raise ValueError(f"columns: the name {name!r} is taken ({', '.join(RESERVED_COLUMNS)} are)")
        if not _is_list(values) or not isinstance(values, Sized) or len(values) != len(texts):
            raise ValueError(f"columns: {name!r} must be a list with one value for each of the {len(texts)} prompts")
    try:
        array = np.ones(len(texts)) if weights is None else np.array(weights, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    if array.shape != (len(texts),) or not np.isfinite(array).all() or (array < 0).any() or not array.any():
        raise ValueError(f"weights: must be {len(texts)} numbers (one per prompt), finite, not negative, not all 0")
    array /= array.max() if array.max() > 1e300 else 1.0  # their sum may be infinite
    array /= array.sum()
    array.flags.writeable = False
    lists = {name: _plain_list(values) for name, values in (columns or {}).items()}
    frozen = {name: tuple(values) for name, values in lists.items()}
    return PromptSet(tuple(written), frozen, array)


def _plain_list(values: Sequence[object]) -> Sequence[object]:
    """Return a column's values, Python's own where an array has such."""
    plain = isinstance(values, np.ndarray) and (values.dtype.kind in "biuUO" or values.dtype == np.float64)
    return values.tolist() if plain and isinstance(values, np.ndarray) else values


def _written(prompts: Sequence[Prompt], argument: str) -> list[str]:
    """Return prompts as texts. Raises: TypeError or ValueError, naming the argument."""
    if not _is_list(prompts) or not all(isinstance(prompt, str | list | tuple) for prompt in prompts):
        raise TypeError(f"{argument}: {type(prompts).__name__} is not a list of strings, or of lists of messages")
    try:
        return [prompt if isinstance(prompt, str) else write_dialogue(list(prompt)) for prompt in prompts]
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error


def refuse_held_out(**sources: PromptSource | None) -> None:
    """Raise ValueError for prompts of another split in a task that generates those of "train" itself."""
    for name, source in sources.items():
        if source is not None:
            raise ValueError(f"{name}={shown(source)}: allowed is None where there are no prompts of your own")


def own_splits(
    prompts: PromptSource,
    eval_prompts: PromptSource | None,
    tune_prompts: PromptSource | None,
    columns: Columns | None = None,
    eval_columns: Columns | None = None,
    tune_columns: Columns | None = None,
    weights: Sequence[float] | None = None,
) -> dict[str, PromptSet]:
    """Return the splits of a task of your own.

    Args:
        prompts: prompts of "train", see `read_prompts`.
        eval_prompts: prompts of "eval"; None: the same.
        tune_prompts: prompts of "tune"; None: the same if `eval_prompts` is None too, otherwise there is no such split.
        columns, eval_columns, tune_columns: data for the reward; they replace columns of a file.
        weights: how often each prompt of "train" is drawn; None: all equally often.
    Raises: as `read_prompts` and `prompt_set`.
    """
    for name, source, data in (("eval", eval_prompts, eval_columns), ("tune", tune_prompts, tune_columns)):
        if source is None and data is not None:
            raise ValueError(f"{name}_columns={shown(data)}: allowed is None where there are no {name}_prompts")
    splits = {"train": _read_set("prompts", prompts, columns, weights)}
    splits["eval"] = splits["train"]
    if eval_prompts is not None:
        splits["eval"] = _read_set("eval_prompts", eval_prompts, eval_columns)
    if tune_prompts is not None:
        splits["tune"] = _read_set("tune_prompts", tune_prompts, tune_columns)
    elif eval_prompts is None:
        splits["tune"] = splits["train"]
    return splits


def fit_prompts(
    splits: Mapping[str, PromptSet], length: Callable[[str], int], most: int, overlong: Overlong
) -> dict[str, PromptSet]:
    """Return splits whose prompts have at most `most` tokens.

    Args:
        length: maps a prompt to its number of tokens, including the template around it.
        most: maximum number of tokens; 0: no limit.
        overlong: "refuse" keeps the prompts, and their task refuses them; "drop" removes long ones; "cut" removes the
            oldest turns after the system message, then the first characters of the last message.
    Raises: ValueError for another `overlong`, a split without prompts that fit, or a prompt that cannot be cut so far.
    Warns: TextGymWarning with the number of prompts that were dropped or cut.
    """
    if not isinstance(overlong, str) or overlong not in get_args(Overlong):
        raise ValueError(not_one_of("overlong", overlong, get_args(Overlong)))
    if overlong == "refuse" or not most:
        return dict(splits)
    # Splits may be one and the same.
    distinct = {id(split): (name, split) for name, split in reversed(list(splits.items()))}
    fitted = {key: _fit(name, split, length, most, overlong) for key, (name, split) in distinct.items()}
    return {name: fitted[id(split)] for name, split in splits.items()}


def _fit(name: str, split: PromptSet, length: Callable[[str], int], most: int, overlong: Overlong) -> PromptSet:
    long = {i for i, text in enumerate(split.texts) if length(text) > most}
    if not long:
        return split
    cut = {i: _cut_left(split.texts[i], length, most) for i in long} if overlong == "cut" else {}
    kept = [i for i in range(len(split)) if i not in long]
    if (enough := max(map(length, cut.values()), default=0)) > most:
        said = f"a {name} prompt cut to its last character has {enough} tokens, the chat template's included"
        raise ValueError(f"max_prompt_tokens={most}: {said}; allowed is {enough} or more")
    if not (cut or split.weights[kept].any()):
        drawn = np.flatnonzero(split.weights)
        enough = min(length(split.texts[i]) for i in drawn)
        left = "is left that is ever drawn" if kept else "is left"
        said = f"no {name} prompt {left}, the shortest of {len(drawn)} has {enough} tokens"
        raise ValueError(f"max_prompt_tokens={most}: {said}; allowed is {enough} or more")
    did = f"have more than max_prompt_tokens={most} tokens and are {'cut' if cut else 'left out'}"
    warnings.warn(f"{len(long)} of {len(split)} {name} prompts {did}", TextGymWarning, stacklevel=4)
    if cut:
        return replace(split, texts=tuple(cut.get(i, text) for i, text in enumerate(split.texts)))
    columns = {key: [values[i] for i in kept] for key, values in split.columns.items()}
    return prompt_set([split.texts[i] for i in kept], columns, split.weights[kept], f"{name} prompts")


def _cut_left(text: str, length: Callable[[str], int], most: int) -> str:
    """Return the longest end of a prompt that fits, or the last character where none does."""
    turns = read_dialogue(text)
    system = turns[:1] if turns[0]["role"] == "system" else []
    turns = turns[len(system) :]
    while len(turns) > 1 and length(write_dialogue([*system, *turns])) > most:
        turns = turns[1:] if turns[1]["role"] == "user" else turns[2:]

    def ending(start: int) -> str:
        return write_dialogue([*system, *turns[:-1], turns[-1] | {"content": turns[-1]["content"][start:]}])

    if length(ending(0)) <= most:
        return ending(0)
    size = len(turns[-1]["content"])
    start = bisect_left(range(1, size), True, key=lambda i: length(ending(i)) <= most) + 1
    return ending(min(start, size - 1))


def _read_set(
    argument: str, source: PromptSource, columns: Columns | None, weights: Sequence[float] | None = None
) -> PromptSet:
    texts, file_columns = read_prompts(source, argument)
    if not isinstance(columns, Mapping | None):
        name = argument.replace("prompts", "columns")
        raise TypeError(f"{name}={shown(columns)}: allowed is a dict of lists")
    return prompt_set(texts, {**file_columns, **(columns or {})}, weights, argument)


def read_prompts(source: PromptSource, argument: str = "prompts") -> tuple[list[str], dict[str, list[Any]]]:
    """Return the prompts of a list or a file.

    Args:
        source: a list of texts or lists of messages; a .txt file with one prompt per line (empty lines are ignored); or
            rows of `textgym.rows`, where "prompt" is the text or a list of messages, and every other key is a data
            column. Files are UTF-8 without a byte order mark, see `textgym.files`.
        argument: its name, for messages.
    Returns: the texts, and the columns of the rows.
    Raises: FileNotFoundError or ValueError, naming the file and the line.
    """
    allowed = "allowed are a list of texts, the path of a .txt, .jsonl, .csv, .tsv or .parquet file, and a data set"
    if not isinstance(source, str | Path):
        if not _is_list(source):
            raise TypeError(f"{argument}={shown(source)}: {allowed}")
        return _written(list(source), argument), {}
    if not str(source):
        raise ValueError(f"{argument}='': {allowed}")
    chosen = row_source(source)
    path = Path(chosen.place)
    if not path.is_dir() and not chosen.on_hub:
        if chosen.suffix not in (".txt", *SUFFIXES):
            more = (
                "; behind # commas part what is chosen, as in a.csv#prompt=text,rows=9" if "#" in chosen.place else ""
            )
            raise ValueError(f"{argument}={shown(str(source))}: {allowed}{more}")
        if not path.exists():
            raise FileNotFoundError(f"{argument}={shown(str(source), 300)}: there is no such file")
    names: list[str] = []
    rows: list[JsonObject] = []
    found = _text_rows(chosen) if chosen.suffix == ".txt" else numbered_rows(source)
    if path.is_dir() or chosen.split is not None:
        try:
            found = iter(list(found))
        except ValueError as error:
            raise ValueError(f"{argument}={shown(str(source), 300)}: {error}") from error
    for number, read in found:
        try:
            row = _prompt_row(read(), names if rows else None)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if chosen.suffix != ".txt" or not row["prompt"].isspace():
            names = names or [name for name in row if name != "prompt"]
            rows.append(row)
    return [row["prompt"] for row in rows], {name: [row[name] for row in rows] for name in names}


def _text_rows(source: RowSource) -> Iterator[tuple[int, ReadRow]]:
    if source.split is not None or source.columns:
        raise ValueError(f"{source.place}: lines of text have neither splits nor columns; allowed after # is rows=N")
    lines = islice(numbered_lines(Path(source.place)), source.rows)
    return ((number, partial(_text_row, line, number)) for number, line in lines)


def _text_row(line: bytes, number: int) -> JsonObject:
    text = line_text(line, number)
    if "\r" in text:
        raise ValueError("a carriage return inside the line; lines end in \\n or \\r\\n")
    return {"prompt": text}


def _is_list(values: object) -> bool:
    """Return whether values have an order: the keys of a dict and the members of a set have none."""
    return isinstance(values, Iterable) and not isinstance(values, str | bytes | bytearray | Mapping | Set)


def _prompt_row(row: JsonObject, names: list[str] | None) -> JsonObject:
    """Return a row with the columns `names`, any where that is None, and its prompt as a text. Raises: ValueError."""
    if "prompt" not in row:
        raise ValueError(f'has the keys {sorted(row)!s:.200}; needed is "prompt", or #prompt=KEY behind the source')
    if isinstance(row["prompt"], list):
        row = row | {"prompt": write_dialogue(row["prompt"])}
    if not isinstance(row["prompt"], str):
        raise ValueError('must be an object with a string, or a list of messages, under "prompt"')
    if names is not None and set(row) != {"prompt", *names}:
        raise ValueError(f"has the keys {sorted(row)!s:.200}, the first object has {sorted(['prompt', *names])!s:.200}")
    return row
