"""Parts of a sampling in a folder, from which one that was broken off goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.checks import JsonObject
from textgym.files import make_folder, reading, write_bytes

Arrays = dict[str, NDArray[Any]]
_ENDS = ".part.safetensors"


@dataclass(frozen=True)
class Part:
    """Episodes of B rows.

    Attributes:
        arrays: name -> values (B, ...); texts are object arrays of strings. terms: reward term -> values (B,).
        facts: what else the sampling knew after them, as JSON values.
    """

    arrays: Arrays
    terms: Arrays
    facts: JsonObject


@dataclass(frozen=True)
class KeptParts:
    """The parts that a sampling has played, a file each.

    Attributes:
        folder: their folder, which is made where it is needed; None: nothing is kept.
        signs: a name that tells this sampling from any other, whose parts may be in the same folder.
    """

    folder: Path | None
    signs: str

    def read(self, first: int) -> Part | None:
        """Return a part that was kept; None if there is none. Raises: ValueError naming a damaged file."""
        path = None if self.folder is None else self._path(self.folder, first)
        if path is None or not path.is_file():
            return None
        from safetensors import safe_open

        with reading(path, "the part of a sampling"), safe_open(path, "numpy") as file:
            kept = json.loads((file.metadata() or {})["part"])
            found: dict[str, Arrays] = {"arrays": {}, "terms": {}}
            for key in kept["names"]:  # in the order of the sampling; the file has its own
                kind, name = key.split("/", 1)
                found[kind][name] = file.get_tensor(key)
            for name, texts in kept["texts"].items():
                found["arrays"][name] = np.array(texts, dtype=object)
            return Part(**found, facts=kept["facts"])

    def write(self, first: int, part: Part) -> None:
        """Keep a part, atomically."""
        if self.folder is None:
            return
        from safetensors.numpy import save

        texts = {name: values.tolist() for name, values in part.arrays.items() if values.dtype == object}
        numbers = {f"arrays/{name}": values for name, values in part.arrays.items() if name not in texts}
        numbers |= {f"terms/{name}": values for name, values in part.terms.items()}
        kept = json.dumps({"names": list(numbers), "texts": texts, "facts": part.facts})
        make_folder(self.folder)
        content = save({name: np.ascontiguousarray(values) for name, values in numbers.items()}, {"part": kept})
        write_bytes(self._path(self.folder, first), content)

    def _path(self, folder: Path, first: int) -> Path:
        return folder / f"{self.signs}-{first}{_ENDS}"


@contextlib.contextmanager
def kept_until_done(folder: Path | None) -> Iterator[Path | None]:
    """Give a folder to samplings for their parts, which are removed once all of them have ended without an error.

    Other files in the folder stay, and so does the folder if there are any.
    """
    yield folder
    if folder is not None:
        for path in folder.glob(f"*{_ENDS}*"):  # also what a killed process had begun to write
            path.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()
