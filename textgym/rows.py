"""Read rows of data, in one way: from files of JSON lines, CSV and parquet, and from data sets of `datasets`.

A source is a path or the id of a data set on the hub. After a # it may say more, as in
`qa.csv#prompt=question,rows=1000`: `split=NAME` of a data set that has splits (default train), `rows=N` for its first N
rows, which of a data set on the hub are streamed, and NAME=COLUMN for a column that the file has under another name.

CSV has a header and no types. The columns prompt, completion, chosen and rejected hold texts, or lists of messages in
JSON; where one cell of a column is such a list, a row with anything else is broken. In any other column an empty cell
is null, and the others are JSON if that holds for all of them, else texts.
"""

from __future__ import annotations

import csv
import importlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from textgym.checks import JsonObject, not_one_of
from textgym.files import check_file, json_object, json_value, line_text, numbered_lines, reading

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ReadRow = Callable[[], JsonObject]
SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
_TEXTS = ("prompt", "completion", "chosen", "rejected")
_PYTHON = re.compile(r"\[\{'.*'(role|content)': ", re.DOTALL)  # messages as pandas writes them
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SAVED = ("state.json", "dataset_dict.json")  # one of them is in a folder that `save_to_disk` wrote
_PROBE = 1.5  # seconds that the hub has to say whether it knows a data set


@dataclass(frozen=True)
class RowSource:
    """Where rows are, see the module.

    Args:
        place: a path or a hub id.
        columns: the name that the reader asks for -> the name in the data.
        split: of a data set; None: train, or all rows where there are no splits.
        rows: how many of the first rows are read; None: all.
    """

    place: str
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    rows: int | None = None

    @property
    def suffix(self) -> str:
        """Return the end of the path, as in ".csv"."""
        return Path(self.place).suffix

    @property
    def on_hub(self) -> bool:
        """Return whether the place can only be a data set's id on the hub."""
        missing = not Path(self.place).exists() and self.suffix not in (*SUFFIXES, ".txt", ".json")
        return missing and _HUB_ID.fullmatch(self.place) is not None


def row_source(source: str | Path) -> RowSource:
    """Return what a source says. Raises: ValueError for what stands after # and is not NAME=VALUE."""
    text = str(source)
    place, mark, options = text.rpartition("#")
    if not mark or "=" not in options or Path(text).exists():
        return RowSource(text)
    found: dict[str, str] = {}
    for option in options.split(","):
        name, equals, value = option.partition("=")
        if not (name and equals and value) or name in found:
            raise ValueError(f"{text!r:.200}: after # allowed are split=NAME, rows=N and NAME=COLUMN, each name once")
        found[name] = value
    split, rows = found.pop("split", None), found.pop("rows", None)
    if rows is not None and not (rows.isascii() and rows.isdecimal() and int(rows) > 0):
        raise ValueError(f"{text!r:.200}: rows={rows!r:.40}, allowed is a whole number from 1")
    return RowSource(place, found, split, None if rows is None else int(rows))


def holds_rows(folder: Path) -> bool:
    """Return whether a folder is a data set of `datasets`: one that it saved, or with files of rows."""
    names = [path.name for path in folder.iterdir()]
    return any(name in _SAVED or name.endswith(SUFFIXES) for name in names)


def numbered_rows(source: str | Path) -> Iterator[tuple[int, ReadRow]]:
    """Yield the number of every row, from 1, and a function that returns the row.

    In files of text the number is that of the line (of CSV the row's last), and blank lines are no rows. The function
    raises ValueError for a row that cannot be used; the rows after it can be read all the same.

    Raises: FileNotFoundError; ValueError for what is no data; ModuleNotFoundError where a library is missing.
    """
    chosen = row_source(source)
    for number, read in islice(_rows(chosen), chosen.rows):
        yield number, partial(_renamed, read, chosen.columns) if chosen.columns else read


def _rows(source: RowSource) -> Iterator[tuple[int, ReadRow]]:
    path = Path(source.place)
    if path.is_dir() or source.on_hub:
        return _table(_data_set(source))
    if source.split is not None:
        _check_there(path)
        raise ValueError(f"{path}: {_no_split(source.split, {})}")
    if source.suffix in (".csv", ".tsv"):
        return _csv_rows(path, source.columns)
    if source.suffix == ".parquet":
        return _table(_parquet_rows(path))
    return ((number, partial(_json_row, line, number)) for number, line in numbered_lines(path))


def _json_row(line: bytes, number: int) -> JsonObject:
    return json_object(line_text(line, number))


def _renamed(read: ReadRow, columns: Mapping[str, str]) -> JsonObject:
    """Return a row with its columns under the names that are asked for; they hide others of these names."""
    row = read()
    for own in columns.values():
        if own not in row:
            raise ValueError(not_one_of("column", own, row))
    kept = {name: value for name, value in row.items() if name not in columns.values()}
    return kept | {name: row[own] for name, own in columns.items()}


def _table(rows: Iterator[JsonObject]) -> Iterator[tuple[int, ReadRow]]:
    """Yield the rows of a table, which are all good."""
    return ((number, partial(dict, row)) for number, row in enumerate(rows, 1))


def _csv_rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, ReadRow]]:
    _check_there(path)
    try:
        text = line_text(path.read_bytes(), 1)
    except ValueError as error:
        raise ValueError(f"{path}, line 1: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    lines: list[tuple[int, list[str]]] = []
    before = csv.field_size_limit(2**31 - 1)  # of the whole process, 128 KiB by default
    try:
        lines += ((reader.line_num, cells) for cells in reader if cells)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(before)
    if not lines:
        return
    header = lines.pop(0)[1]
    _check_names(f"{path}, line 1", header)
    whole = [cells for _, cells in lines if len(cells) == len(header)]
    asked = dict(sorted(((own, name) for name, own in columns.items()), key=lambda pair: pair[1] in _TEXTS))
    cells_by_column = list(zip(*whole, strict=True)) or [()] * len(header)
    typed = [_csv_column(asked.get(name, name), cells) for name, cells in zip(header, cells_by_column, strict=True)]
    good = iter(zip(*typed, strict=True))
    for number, cells in lines:
        if len(cells) == len(header):
            yield number, partial(_csv_row, header, next(good))
        else:
            yield number, partial(_uneven, len(cells), len(header))


def _check_names(where: object, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: a column's name stands twice in {names!s:.200}")


def _csv_row(header: Sequence[str], values: Sequence[object]) -> JsonObject:
    for value in values:
        if isinstance(value, ValueError):
            raise value
    return dict(zip(header, values, strict=True))


def _csv_column(name: str, cells: Sequence[str]) -> Sequence[object]:
    """Return a column's values: its cells as JSON or texts; an error in the place of one that is neither."""
    if name in _TEXTS:
        return [_messages(name, cell) for cell in cells] if any(map(_are_messages, cells)) else cells
    try:
        return [json_value(cell) if cell else None for cell in cells]
    except ValueError:
        return [cell or None for cell in cells]


def _are_messages(cell: str) -> bool:
    """Return whether a cell is a list of messages, in JSON or as Python prints one."""
    if not cell.startswith("["):
        return False
    try:
        found = json_value(cell)
    except ValueError:
        return _PYTHON.match(cell) is not None
    return isinstance(found, list) and any(isinstance(each, dict) and {"role", "content"} & set(each) for each in found)


def _messages(name: str, cell: str) -> object:
    try:
        found = json_value(cell)
    except ValueError:
        found = None
    if isinstance(found, list):
        return found
    return ValueError(f'"{name}" is {cell!r:.60}, where a list of messages in JSON is needed, as other rows have one')


def _uneven(found: int, needed: int) -> JsonObject:
    raise ValueError(f"{found} cells, the header has {needed}")


def _parquet_rows(path: Path) -> Iterator[JsonObject]:
    _check_there(path)
    _need("pyarrow", str(path))
    from pyarrow import parquet

    with reading(path, "the table"), parquet.ParquetFile(path) as file:
        _check_names(path, file.schema_arrow.names)
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _data_set(source: RowSource) -> Iterator[JsonObject]:
    """Yield the rows of a folder of `datasets` or of a data set on the hub."""
    if source.on_hub:
        asks_hub(source.place, "dataset")
    _need("datasets", source.place)
    import datasets

    path = Path(source.place)
    with reading(path, "the data set"):
        saved = any((path / name).is_file() for name in _SAVED)
        streamed = not source.on_hub or source.rows is not None  # else a copy is kept in the cache
        found = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(source.place, streaming=streamed)
    own = getattr(found, "split", None)  # that a table was saved from
    splits = found if isinstance(found, dict) else {} if own is None else {str(own): found}
    if isinstance(found, dict) or source.split is not None:
        wanted = source.split or "train"
        if wanted not in splits:
            raise ValueError(f"{source.place}: {_no_split(wanted, splits)}")
        found = splits[wanted]
    yield from cast("Dataset | IterableDataset", found)


def _no_split(wanted: str, splits: Mapping[str, object]) -> str:
    return f"{not_one_of('split', wanted, splits)}{'' if splits else ' The data has no splits; leave split= out.'}"


def check_hub(name: str, source: object, kind: Literal["model", "dataset"]) -> None:
    """Raise FileNotFoundError for a model or data set that only the hub can have and that is nowhere; reads none.

    Takes a fraction of the time that importing torch does.

    Args: name: of the setting or option. source: its value; what is no hub id is left to others.
    """
    if not isinstance(source, str):
        return
    chosen = row_source(source) if kind == "dataset" else RowSource(source)
    if chosen.on_hub:
        try:
            asks_hub(chosen.place, kind)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{name}={error}") from error


@cache
def asks_hub(name: str, kind: Literal["model", "dataset"]) -> bool:
    """Return whether the hub knows a model or data set; False where it cannot say so and the cache has it.

    Raises: FileNotFoundError, within 2 s, if neither has it; ModuleNotFoundError without huggingface_hub.
    """
    _need("huggingface_hub", name)
    from huggingface_hub import HfApi, constants

    what = "model" if kind == "model" else "data set"
    said = "the hub is not asked, as HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            (HfApi().model_info if kind == "model" else HfApi().dataset_info)(name, timeout=_PROBE)
            return True
        except Exception as error:  # of several libraries for HTTP
            said = f"the hub does not give it ({type(error).__name__})"
    hub, short = Path(constants.HF_HUB_CACHE), name.replace("/", "--")
    prepared = hub.parent / "datasets" / name.replace("/", "___")
    if (hub / f"{kind}s--{short}").exists() or (kind == "dataset" and prepared.exists()):
        return False
    raise FileNotFoundError(f"{name}: there is no such file or folder, no such {what} in the cache, and {said}")


def local_only(model: str | Path) -> bool:
    """Return whether a model is read without the hub: a folder, or a hub id of which the cache alone can be had.

    Raises: as `asks_hub`.
    """
    return Path(model).exists() or not asks_hub(str(model), "model")


def _check_there(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    check_file(path)


def _need(library: str, place: str) -> None:
    try:
        importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{place}: reading it needs {library} (pip install 'textgym[datasets]'); without it give a .jsonl or .csv"
        ) from error
