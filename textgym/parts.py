"""Parts of a sampling in a folder, from which one that was broken off goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.checks import JsonObject
from textgym.files import make_folder, reading, remove_folder, write_bytes

Arrays = dict[str, NDArray[Any]]


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
        signs: what tells this sampling from any other; parts of another one are not read.
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
            if kept["signs"] != self.signs:
                return None
            found: dict[str, Arrays] = {"arrays": {}, "terms": {}}
            for key in file.keys():  # noqa: SIM118
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
        kept = json.dumps({"signs": self.signs, "texts": texts, "facts": part.facts})
        make_folder(self.folder)
        content = save({name: np.ascontiguousarray(values) for name, values in numbers.items()}, {"part": kept})
        write_bytes(self._path(self.folder, first), content)

    def clear(self) -> None:
        """Remove the folder."""
        if self.folder is not None:
            remove_folder(self.folder)

    def _path(self, folder: Path, first: int) -> Path:
        return folder / f"{first}.safetensors"
