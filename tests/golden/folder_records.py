"""What the golden tests of saved folders record: every kind of folder that the command line writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from safetensors import safe_open
from textgym_benchmarks.results.store import export_results, load_results, suite_summary

import textgym
from textgym.cli import main

PACKAGES = Path(textgym.__file__).parents[1]

UNSTABLE = {
    "busy",
    "cores",
    "dataset_size",
    "env_spec",
    "found",
    "machine",
    "minari_version",
    "rewards/accuracies",
    "source",
    "start",
    "started",
    "transformers_version",
    "versions",
}
"""Names of JSON values that tell of the day, the machine, the sources or rounding: their type is recorded alone."""
EVENTS = "events.out.tfevents"
LARGEST = 1e6
"""Numbers of this size, which stand for infinity, count as 0 in means: they would hide the others."""


@dataclass(frozen=True)
class Kind:
    """One folder or file that a command writes.

    Args:
        words: of the command line, without `--out`; `export` writes results to a file, which has no command.
        needs: other kinds, which are made before it, in the same folder.
        long: whether it takes some ten seconds, so that its test is marked `long`.
        content: whether what is in the files is recorded too, not only their names.
        printed: whether the command prints the file.
    """

    words: str
    needs: tuple[str, ...] = ()
    long: bool = False
    content: bool = True
    printed: bool = False


def _trained(settings: str, *needs: str) -> Kind:
    words = "train textgym/Stop-v0 --env difficulty=3 --episodes 24 --eval-every 1 --final-per-prompt 2"
    return Kind(f"{words} --samples 2 --agent {settings}", needs)


_LM = "--batch 12 --device cpu"
_FIT = "--epochs 1 --batch 4 --micro-batches 2 --save-every 3 --device cpu"
_PPO = "--env max_new_tokens=12 --batch 16 --minibatches 1 --epochs 1 --episodes 16 --device cpu"
_RLHF = "--demonstration-count 16 --sft-epochs 1 --preferences 24 --reward-model-epochs 1 --best-of 2"
_HACKED = "--pairs 8 16 --reward-model-epochs 1 1 --layers 1 --betas 0.1 0.0 --samples 8 --prompts 4"
_STATEMENTS = " ".join(str(number) for number in range(1, 15))

KINDS: Mapping[str, Kind] = {
    "lm-ppo": _trained(f"lm-ppo {_LM}"),
    "soft-q": _trained(f"soft-q {_LM}"),
    "dpo": _trained(f"dpo --data stop-lm-v0 {_LM}", "stop-lm-v0"),
    "behaviour-cloning": _trained(f"behaviour-cloning --data stop-lm-v0 --best-share 0.5 {_LM}", "stop-lm-v0"),
    "alphazero": _trained(f"alphazero --simulations 4 {_LM}"),
    "mcts": _trained("mcts --batch 12 --simulations 4"),
    "q-learning": _trained("q-learning --batch 12"),
    "sb3-ppo": _trained("sb3-ppo --batch 12 --width 8"),
    "sb3-dqn": _trained("sb3-dqn --batch 12 --width 8"),
    "random": _trained("random"),
    "best-of-n": _trained("best-of-n --n 2"),
    "value-guided": _trained("value-guided --run lm-ppo --k 2", "lm-ppo"),
    "stop-lm-v0": Kind(
        "record textgym/Stop-v0 --env difficulty=3 --episodes 8 --per-prompt 4 --agent lm-ppo", ("lm-ppo",)
    ),
    "pairs.jsonl": Kind("preferences Helpful-v0 --env max_new_tokens=12 --n 16 --noise 0.1"),
    "rankings.jsonl": Kind(
        "preferences Helpful-v0 --env max_new_tokens=12 --n 6 --candidates 3 --format rankings --keep-ties"
    ),
    "dialogues.jsonl": Kind("preferences Helpful-v0 --env max_new_tokens=12 --n 6 --format transcripts"),
    "sft": Kind(f"sft --data pairs.jsonl --eval-every 2 {_FIT}", ("pairs.jsonl",)),
    "reward-model": Kind(f"reward-model --data pairs.jsonl --members 2 {_FIT}", ("pairs.jsonl",)),
    "rlhf": Kind(f"rlhf Helpful-v0 {_RLHF} --per-prompt 2 --optimum-per-prompt 2 {_PPO}", long=True),
    "overoptimise": Kind(f"overoptimise Helpful-v0 {_HACKED} --per-prompt 2 {_PPO}", long=True),
    "bench": Kind("bench --suite ci --agents random q-learning --engine serial --keep-checkpoints"),
    "results.json": Kind("export bench", ("bench",)),
    "report": Kind("report bench", ("bench",), content=False),
    "eval.json": Kind("eval textgym/Stop-v0 --agent lm-ppo --per-prompt 2 --json", ("lm-ppo",), printed=True),
    "solve.json": Kind("solve textgym/Stop-v0 --env difficulty=3 --json", printed=True),
    "inspect.json": Kind("inspect textgym/Stop-v0 --agent lm-ppo --json", ("lm-ppo",), printed=True),
    "check.json": Kind(f"check lm-ppo --only {_STATEMENTS} --settings device=cpu --json", long=True, printed=True),
}


class Folders:
    """Folders of all kinds in one place, each made when it is first asked for. Args: path: of an empty folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, name: str) -> dict[str, Any]:
        """Return what is in a folder: relative path -> content as JSON values, None where only the name counts."""
        self._make(name)
        made = self._path / name
        files = [made] if made.is_file() else [path for path in made.rglob("*") if path.is_file()]
        found = {}
        for path in files:
            place = path.relative_to(made).as_posix() if path != made else name
            if path.name.startswith(EVENTS):
                place = f"{Path(place).parent.as_posix()}/{EVENTS}"
            found[place] = content_of(path, f"{self._path}/") if KINDS[name].content else None
        return dict(sorted(found.items()))

    def _make(self, name: str) -> None:
        if (self._path / name).exists():
            return
        kind = KINDS[name]
        for need in kind.needs:
            self._make(need)
        with contextlib.chdir(self._path):  # so that files which tell of others do so by short names
            command, *words = kind.words.split()
            if command == "export":
                export_results(load_results(*words), name, suite_summary(*words))
            elif kind.printed:
                with Path(name).open("w") as file, contextlib.redirect_stdout(file):
                    _run(command, *words)
            else:
                _run(command, *words, "--out", name)


def _run(*words: str) -> None:
    code = main(list(words))
    if code != 0:
        raise RuntimeError(f"textgym {' '.join(words)}: ended with {code}")


def content_of(path: Path, root: str) -> Any:
    """Return the content of a file of JSON, tensors or a data set as JSON values; None for other files.

    Args:
        path: of the file.
        root: what is left out where a text begins with it.
    """
    if path.suffix in (".json", ".jsonl"):
        text = path.read_text(encoding="utf-8").replace(root, "").replace(f"{PACKAGES}/", "")
        if path.name == "tokenizer.json":
            return {"sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}
        lines = [text] if path.suffix == ".json" else text.splitlines()
        rows = [stable(json.loads(line)) for line in lines]
        return rows[0] if path.suffix == ".json" else rows
    if path.suffix == ".safetensors":
        with safe_open(path, "numpy") as file:
            tensors = {name: shape_of(file.get_tensor(name)) for name in sorted(file.keys())}
            return {"metadata": stable(file.metadata()), "tensors": tensors}
    if path.suffix == ".hdf5":
        with h5py.File(path) as file:
            return dict(_nodes(file))
    return None


def stable(value: Any, name: str = "") -> Any:
    """Return JSON values with the type in place of those that differ from run to run."""
    if name in UNSTABLE or "second" in name:
        return f"<{type(value).__name__}>"
    if isinstance(value, str):  # the digest of a reference that was trained depends on the machine
        digest = r"[0-9a-f]{32}"
        if name == "reference" and re.fullmatch(digest, value):
            return "<digest>"
        return re.sub(f'"reference": "{digest}"', '"reference": "<digest>"', value)
    if isinstance(value, dict):
        return {key: stable(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [stable(inner) for inner in value]
    return value


def shape_of(array: Any) -> list[Any]:
    """Return dtype, shape, mean and mean size of an array; of texts dtype, shape and the texts."""
    shape = [str(array.dtype), list(array.shape)]
    if array.dtype.kind == "O":
        return [*shape, [text.decode() for text in array.flat]]
    exact = np.asarray(array, dtype=np.float64)
    counted = np.where(np.abs(exact) < LARGEST, exact, 0.0)
    return [*shape, float(counted.mean()), float(np.abs(counted).mean())] if counted.size else shape


def _nodes(group: Any) -> Iterator[tuple[str, Any]]:
    names: list[str] = []
    group.visit(names.append)
    for name in ["/", *sorted(names)]:
        node: Any = group[name]
        yield name, shape_of(node[()]) if isinstance(node, h5py.Dataset) else sorted(node.attrs)
