"""Small data, a small base with dropout, and watchers for the tests of supervised training."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from lm.tiny_models import tiny_gpt2

from textgym.world import MODEL_PATH

ANSWERS = ("It is big.", "It is small.", "You are welcome!", "Sure, here it is.", "No.")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pair_file(path: Path, count: int = 40) -> str:
    """Preferences for the longer of two answers."""
    rows = []
    for number in range(count):
        two = [ANSWERS[number % 5], ANSWERS[(number + 1 + number % 4) % 5]]
        chosen, rejected = sorted(two, key=len, reverse=True)
        rows.append({"prompt": f"What is {number}?", "chosen": chosen, "rejected": rejected})
    return write_rows(path, rows)


def dropout_base(folder: Path) -> str:
    """A GPT-2 with dropout in the built-in world's vocabulary."""
    size = json.loads((MODEL_PATH / "config.json").read_text())["vocab_size"]
    model = tiny_gpt2(vocab=size)
    assert model.config.resid_pdrop == 0.1
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(MODEL_PATH / name, folder / name)
    return str(folder)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def result_of(run: Path) -> dict[str, Any]:
    result = json.loads((run / "result.json").read_text())
    return {name: value for name, value in result.items() if name != "seconds"}


class Stops:
    """A watcher that presses Ctrl-C when an iteration is over."""

    def __init__(self, iteration: int) -> None:
        self._iteration = iteration
        self.notes: list[str] = []

    def stage(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)

    def iteration(self, row: dict[str, Any]) -> None:
        if row["iteration"] == self._iteration:
            raise KeyboardInterrupt
