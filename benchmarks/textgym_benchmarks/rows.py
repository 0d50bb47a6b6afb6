"""What the measuring scripts share: a line of JSON for every result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console


def keep(row: dict[str, Any], out: Path | None) -> None:
    """Prints a row to standard error as a line of JSON, and appends it to a file."""
    line = json.dumps(row)
    Console(stderr=True).print_json(line, indent=None)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
