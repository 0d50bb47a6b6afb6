"""The script that prints the form of the house, as a module."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def load_house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", Path(__file__).parents[1] / ".ci" / "house.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOUSE = load_house()
