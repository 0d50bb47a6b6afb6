"""Every public name is where the table says, and the packages export what is recorded."""

from __future__ import annotations

import importlib
from operator import attrgetter

import pytest
from record import NAMES, PACKAGES, Names, exports, read

DATA: Names = read(NAMES)


def fault(new: object) -> str | None:
    """Why a value of the table does not hold, or None."""
    if isinstance(new, dict) and new.keys() == {"new", "why"} and new["new"] is None and new["why"]:
        return None
    if not isinstance(new, str):
        return 'allowed is "module:name", or {"new": null, "why": "..."}'
    module, _, name = new.partition(":")
    try:
        attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_where_the_table_says(package: str) -> None:
    table = {old: new for old, new in DATA["names"].items() if old.partition(":")[0].partition(".")[0] == package}
    assert table
    found = [f"{old} -> {new}: {why}" for old, new in table.items() if (why := fault(new)) is not None]
    assert not found, "\n".join([f"write the new paths into {NAMES.name}, or why a name was removed", *found])


@pytest.mark.slow
def test_modules_export_what_is_recorded() -> None:
    old, new = DATA["exports"], exports()
    found = [
        f"{module}: recorded is {old.get(module)}, now it is {new.get(module)}"
        for module in sorted({*old, *new})
        if old.get(module) != new.get(module)
    ]
    assert not found, "\n".join(["python tests/golden/record.py names writes the exports anew", *found])
