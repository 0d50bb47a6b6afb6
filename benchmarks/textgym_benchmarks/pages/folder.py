"""Folders of pages: self-contained, rebuilt in place, and never written over anything else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from textgym.faults import disk_full_at
from textgym.files import make_folder, write_bytes

_UNFINISHED = """<!doctype html><meta charset="utf-8"><meta name="generator" content="{generator}">
<title>Not finished</title><p>These pages were not written to their end. The same command builds them anew.</p>
"""
_HEAD = 2000  # bytes of a page that must hold its generator


def generator(kind: str) -> str:
    """What the pages of a kind name as their generator, by which a folder is known again."""
    return f"textgym {kind}"


def check_folder(folder: Path, kind: str) -> None:
    """Makes sure that pages may be written to a folder: a new one, an empty one, or one of pages of the same kind.

    Args:
        folder: where.
        kind: "report", "microscope".
    Raises: FileExistsError for anything else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"out {str(folder)!r}: it is a file; allowed is a folder")
    if any(folder.iterdir()) and not _is_ours(folder / "index.html", kind):
        raise FileExistsError(
            f"out {str(folder)!r}: it holds files and is no {kind}; allowed are a new folder, an empty one, "
            f"or a {kind} (which is built anew)"
        )


def write_folder(folder: Path, contents: Mapping[str, str | bytes], kind: str) -> None:
    """Writes pages and what belongs to them; each file is replaced at once, the index last.

    Args:
        folder: see `check_folder`.
        contents: relative path -> text or bytes; holds "index.html".
        kind: see `check_folder`.
    Raises: FileExistsError as `check_folder` does; DiskFullError.
    """
    check_folder(folder, kind)
    with disk_full_at(folder):
        if not (folder / "index.html").exists():
            # What breaks off here is known again, and built anew.
            _write(folder / "index.html", _UNFINISHED.format(generator=generator(kind)))
        for name in sorted(contents, key=lambda name: name == "index.html"):
            _write(folder / name, contents[name])


def _write(path: Path, content: str | bytes) -> None:
    make_folder(path.parent)
    write_bytes(path, content.encode() if isinstance(content, str) else content)


def shared_assets() -> dict[str, bytes]:
    """The files that `base.html` refers to: base.css and theme.js."""
    return assets("textgym_benchmarks.pages")


def assets(package: str) -> dict[str, bytes]:
    """The files in the folder `assets` of a package, by name."""
    return {file.name: file.read_bytes() for file in files(package).joinpath("assets").iterdir()}


def plotly_script() -> bytes:
    """The JavaScript of Plotly that comes with its Python package."""
    return files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()


def _is_ours(page: Path, kind: str) -> bool:
    if not page.is_file():
        return False
    with page.open("rb") as file:
        return f'<meta name="generator" content="{generator(kind)}">'.encode() in file.read(_HEAD)
