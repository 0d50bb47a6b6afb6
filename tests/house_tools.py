"""The script that prints the form of the house, as a module."""

from __future__ import annotations

from pathlib import Path

from core_tools import load_script

HOUSE = load_script(Path(__file__).parents[1] / ".ci" / "house.py")
