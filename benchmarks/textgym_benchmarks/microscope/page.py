"""The page of one or two episodes: a single file that opens from disk, without a server and without the network."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict
from pathlib import Path

from markupsafe import Markup

from textgym.files import make_folder, write_text
from textgym.interrupts import disk_full_at
from textgym_benchmarks.microscope.trace import QUANTITIES, Quantity, Trace, trace_json
from textgym_benchmarks.pages import assets, environment, generator, shared_assets

KIND = "microscope"
_PACKAGE = "textgym_benchmarks.microscope"
_CHOSEN = {"sampled": "sampled", "likeliest": "the likeliest tokens", "given": "a given completion"}
_HEAD = 2000  # bytes of a page that hold its generator


def write_page(traces: list[Trace], path: Path) -> None:
    """Write the page of one episode, or of two with the same prompt; the file is replaced atomically.

    Raises: as `check_out`; DiskFullError.
    """
    check_out(path)
    with disk_full_at(path):
        make_folder(path.parent)
        write_text(path, page_html(traces))


def check_out(path: Path) -> None:
    """Raise FileExistsError unless a file is a new one, or an earlier page of the microscope."""
    if not path.exists():
        return
    mark = f'<meta name="generator" content="{generator(KIND)}">'.encode()
    # A pipe is not read: reading would wait until something is written to it.
    is_file = path.is_file()
    if not is_file or mark not in _first_bytes(path):
        what = "a folder" if path.is_dir() else "another file" if is_file else "something that is no file"
        raise FileExistsError(
            f"out {str(path)!r}: there is {what}; allowed are a new name and a page of the microscope"
        )


def page_html(traces: list[Trace]) -> str:
    """Return the page. Only its own scripts may run in it: their digests are in its policy, and nothing is fetched."""
    own, shared = assets(_PACKAGE), shared_assets()
    theme = shared["theme.js"].decode()
    scripts = [own[f"{name}.js"].decode() for name in ("parts", "panel", "microscope")]
    return environment(_PACKAGE).get_template("microscope.html").render(
        kind=KIND,
        style=Markup(shared["base.css"].decode() + own["microscope.css"].decode()),
        theme=Markup(theme),
        scripts=[Markup(script) for script in scripts],
        digests=Markup(" ".join(f"'sha256-{_digest(script)}'" for script in (theme, *scripts))),
        traces=traces,
        first=traces[0],
        data=trace_json(traces) | {"quantities": list(map(asdict, QUANTITIES))},
        columns=[_columns(trace) for trace in traces],
        unknown=_unknown(traces),
        chosen=_CHOSEN[traces[0].chosen],
    )  # fmt: skip


def _columns(trace: Trace) -> list[Quantity]:
    """Return the quantities that are known at some step."""
    return [q for q in QUANTITIES if any(getattr(step, q.name) is not None for step in trace.steps)]


def _unknown(traces: list[Trace]) -> list[tuple[str, str]]:
    """Return the names of unknown quantities, and why they are, for both agents or one."""
    labels = {quantity.name: quantity.label for quantity in QUANTITIES}
    found: dict[tuple[str, str], list[str]] = {}
    for trace in traces:
        for reason in dict.fromkeys(trace.unknown.values()):
            names = [labels[name] for name, why in trace.unknown.items() if why == reason and name in labels]
            found.setdefault((", ".join(names), reason), []).append(trace.agent)
    everyone = len(traces)
    return [
        (names if len(agents) == everyone else f"{names} of {agents[0]}", reason)
        for (names, reason), agents in found.items()
    ]


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)
