"""Makes the report of a benchmark: leaderboard, curves, charts, samples; as offline pages, or served live."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import tyro

from textgym.commands.console import UsageError, note, output, untrusted
from textgym.commands.flags import parse
from textgym.render import counted

if TYPE_CHECKING:
    from textgym_benchmarks.report import Report

STATES: Final = ("done", "failed", "running", "interrupted", "missing")
NAMES: Final = ("127.0.0.1", "localhost")
"""Of this machine, in a request. A page of another site whose name leads to this machine sends its own."""
PORTS: Final = 100
"""Number of ports to try, starting with the requested one."""
SHARE: Final = 20
"""Results are read again after this many times as long as the last read took, at least one second."""
WATCHED: Final = 5.0
"""Seconds; a page that is open asks more often."""
_KINDS: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


@dataclass(frozen=True)
class ReportFlags:
    """Make a report of results: one folder of pages that open offline, in any browser; or serve it live.

    Example: textgym report runs/bench-quick --out report
    """

    run: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of `textgym bench` or `textgym train`, or files of exported results; they are combined in one report."""
    out: Path | None = None
    """Output folder; by default `report` in the first RUN, or beside it if that is a file. An existing report is
    rebuilt; no other files are replaced."""
    live: bool = False
    """Write nothing: serve the report to this machine's browsers and update it while runs continue, until Ctrl-C. A RUN
    need not exist yet."""
    port: int = 8765
    """Port for --live; if it is taken, the next free one."""
    until_eof: bool = False
    """With --live: stop when the standard input ends, which happens when the program that holds it ends."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(ReportFlags, arguments, "report")
    if flags.live:
        serve(flags)
        return
    from textgym_benchmarks.report import build_report, default_folder

    out = default_folder(flags.run) if flags.out is None else flags.out
    sources = build_report(flags.run, out)
    if sources.repeated:
        note(_repeated(sources.repeated))
    fates = [result.state for result in sources.results]
    counts = ", ".join(f"{fates.count(fate)} {fate}" for fate in STATES if fate in fates)
    output().print(untrusted(f"cells: {counts}"))
    output().print(untrusted(f"report: {out / 'index.html'}"), soft_wrap=True)


def _repeated(keys: tuple[str, ...]) -> str:
    many, them = counted(len(keys), "cell"), "is" if len(keys) == 1 else "are"
    return (
        f"{many} {them} in several of the runs; shown is the first that is finished, else that failed, else that began"
    )


def serve(flags: ReportFlags) -> None:
    """Serve a report until Ctrl-C, or the end of the standard input if that is asked for.

    Raises: UsageError for no RUN, a folder to write, or a port that is none.
    """
    if not flags.run:
        raise UsageError("RUN: nothing given; name the folder of a run, as in textgym report runs/demo-1 --live")
    if flags.out is not None:
        raise UsageError(f"--out {flags.out}: --live writes nothing; leave one of the two out")
    if not 1 <= flags.port < 65_536:
        raise UsageError(f"--port {flags.port}: allowed is 1 to 65535")
    with LiveServer(flags.run, flags.port) as server, contextlib.suppress(KeyboardInterrupt):
        output().print(untrusted(f"live report: http://{NAMES[0]}:{server.server_port}/"), soft_wrap=True)
        for run in flags.run:
            if not run.exists() and not flags.until_eof:  # who has started this makes the run
                note(f"waiting for {run}, which does not exist yet")
        sys.stdout.flush()
        logging.getLogger(__name__).info("")  # waiting is no stage of the work
        if flags.until_eof:
            threading.Thread(target=server.end_with_input, daemon=True).start()
        server.serve_forever()


class LiveServer(ThreadingHTTPServer):
    """Serves a report on 127.0.0.1 and renews it as its runs continue.

    Args:
        runs: what `read_sources` takes; they need not exist yet. port: the first to try.
    Raises: UsageError if no port is free.
    """

    allow_reuse_address = os.name == "posix"  # elsewhere two programs could then have the same port

    def __init__(self, runs: tuple[Path, ...], port: int) -> None:
        from textgym_benchmarks.report import report_assets

        self._runs, self._files = runs, report_assets(live=True)
        self._lock = threading.Lock()
        self._report: Report | None = None
        self._notes: tuple[str, ...] = ()
        self._asked, self._due = -WATCHED, 0.0  # monotonic: when somebody asked for a page, and when to read anew
        for each in range(port, min(port + PORTS, 65_536)):
            with contextlib.suppress(OSError):
                super().__init__((NAMES[0], each), _Handler)
                return
        raise UsageError(f"--port {port}: neither it nor the next {PORTS - 1} are free; name another: --port 9000")

    def content(self, path: str) -> bytes | None:
        """Return a page or file by its path from the index, "" for the index itself; None where there is none."""
        if path in self._files:
            return self._files[path]
        key = path.removeprefix("cells/").removesuffix(".html")
        with self._lock:
            self._asked = time.monotonic()
            if self._asked >= self._due:
                self._read()
                now = time.monotonic()
                self._due = now + max(1.0, SHARE * (now - self._asked))
            if path in ("", "index.html"):
                return self._index().encode()
            if self._report is not None and path == f"cells/{key}.html" and key in self._report.results:
                return self._report.cell(key).encode()
        return None

    def _read(self) -> None:
        from textgym_benchmarks.report import Report
        from textgym_benchmarks.results.store import read_sources

        found = read_sources(self._runs, patient=True)
        self._notes = (*found.unread, *([_repeated(found.repeated)] if found.repeated else []))
        self._report = Report(found.results, found.suite, None, self._notes, live=True) if found.results else None

    def _index(self) -> str:
        from textgym_benchmarks.report import report_templates

        if self._report is not None:
            return self._report.index()
        return report_templates(live=True).get_template("waiting.html").render(notes=self._notes)

    def end_with_input(self) -> None:
        """Stop once the standard input has ended, and a page that is open has fetched the last state."""
        sys.stdin.read()
        ended, self._due = time.monotonic(), 0.0
        while ended - self._asked < WATCHED and time.monotonic() < ended + WATCHED / 2:
            time.sleep(0.1)
        self.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD where the request names this machine."""

    server: LiveServer
    server_version, sys_version, timeout = "textgym", "", 10

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0]).removeprefix("/")
        if re.sub(r":\d+$", "", self.headers.get("Host", "")) not in NAMES:
            self.send_error(403, f"Allowed as Host: {' and '.join(NAMES)}")
        elif (content := self.server.content(path)) is None:
            self.send_error(404)
        else:
            with contextlib.suppress(ConnectionError):  # a browser that has gone
                self._send(content, _KINDS[Path(path or "index.html").suffix])

    do_HEAD = do_GET  # noqa: N815

    def _send(self, content: bytes, kind: str) -> None:
        tag = f'"{sha256(content).hexdigest()[:32]}"'
        same = self.headers.get("If-None-Match") == tag
        self.send_response(304 if same else 200)
        self.send_header("ETag", tag)
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        if self.command == "GET" and not same:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: a page asks every second."""
