"""Identify the running sources: the folder that the packages come from, a digest of their files, and versions."""

from __future__ import annotations

import hashlib
import os
import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("textgym", "textgym_agents", "textgym_benchmarks")
_ROOTS = ("agents", "benchmarks")  # folders of a checkout that hold packages
_DIGITS = 12
_LIBRARIES = ("gymnasium", "numpy", "tokenizers", "torch", "transformers", "stable-baselines3", "sb3-contrib")


def source_folder() -> Path:
    """Return the checkout, or the folder of installed packages, that all of the packages come from.

    Raises: ValueError if they come from several, as where one checkout is installed and another is the working folder
        of `python -m`.
    """
    found = {name: _tree(folder) for name, folder in _packages().items()}
    if len(set(found.values())) > 1:
        places = ", ".join(f"{name} from {tree}" for name, tree in found.items())
        raise ValueError(
            f"two checkouts are mixed ({places}); allowed is one: install it, or name its folder and its agents and "
            "benchmarks in PYTHONPATH"
        )
    return found["textgym"]


@cache
def source_digest() -> str:
    """Return 12 hexadecimal digits that differ where any file of the packages does: code, weights, pages."""
    digest = hashlib.sha256()
    for name, folder in _packages().items():
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content = path.read_bytes()
                digest.update(f"{name}/{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()[:_DIGITS]


def _packages() -> dict[str, Path]:
    """Return the folder of each package, without importing it."""
    specs = {name: find_spec(name) for name in PACKAGES}
    return {name: Path(spec.origin).resolve().parent for name, spec in specs.items() if spec and spec.origin}


def _tree(package: Path) -> Path:
    return package.parents[1] if package.parent.name in _ROOTS else package.parent


def versions() -> dict[str, str]:
    """Return versions of what a run's numbers depend on; "source" is `source_digest`, which `textgym --version` prints.

    Raises: ValueError if the packages come from two checkouts.
    """
    source_folder()
    found = {
        "source": source_digest(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    for package in ("textgym", *_LIBRARIES):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
