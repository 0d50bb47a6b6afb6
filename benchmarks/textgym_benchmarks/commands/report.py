"""Makes the report of a benchmark: leaderboard, curves, charts, samples; as pages that open offline, or served live."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

import tyro

from textgym.commands.console import UsageError, note, output, untrusted
from textgym.commands.flags import parse

if TYPE_CHECKING:
    from textgym_benchmarks.report import Report

HOST: Final = "127.0.0.1"
NAMES: Final = (HOST, "localhost")
"""Of this machine, in a request: a page of another site that has its name resolved to it sends its own."""
STATES: Final = ("done", "failed", "running", "interrupted", "missing")
PORTS: Final = 100
"""Tried, from the one that was asked for."""
SHARE: Final = 20
"""Results are read anew after so many times as long as that took, one second at least."""
_WATCHED = 5.0  # seconds; a page that has not asked for longer is closed
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


@dataclass(frozen=True)
class ReportFlags:
    """Make a report of results: one folder of pages that opens offline, in any browser; or serve it live."""

    run: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of `textgym bench` or `textgym train`, or files of exported results; all of them go into one report."""
    out: Path | None = None
    """The folder; by default `report` in the first RUN, or beside it where that is a file. A report there is built
    anew, nothing else is ever replaced."""
    live: bool = False
    """Write nothing: serve the report to this machine's browsers and renew it while runs go on, until Ctrl-C. A RUN
    need not be there yet."""
    port: int = 8765
    """Of --live; where it is taken, the next one that is free."""
    until_eof: bool = False
    """Of --live: end with the standard input, too, which ends with the program that holds it."""


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
        note(f"{len(sources.repeated)} cells are in several of the runs; the first finished one is shown")
    fates = [result.state for result in sources.results]
    counts = ", ".join(f"{fates.count(fate)} {fate}" for fate in STATES if fate in fates)
    output().print(untrusted(f"cells: {counts}"))
    output().print(untrusted(f"report: {out / 'index.html'}"), soft_wrap=True)


class LivePages:
    """The pages of a report that is made anew as its runs go on, and the files that they need.

    Args: runs: what `read_sources` takes; they need not be there yet.
    """

    def __init__(self, runs: tuple[Path, ...]) -> None:
        from textgym_benchmarks.report import report_assets

        self._runs, self._files = runs, report_assets()
        self._lock = threading.Lock()
        self._report: Report | None = None
        self._notes: tuple[str, ...] = ()
        self.asked = -_WATCHED
        """When a page was last asked for, and when results are read anew, on the monotonic clock."""
        self.due = 0.0

    def content(self, path: str) -> bytes | None:
        """Return a page or file by its path from the index, "" for the index itself; None where there is none."""
        if path in self._files:
            return self._files[path]
        key = path.removeprefix("cells/").removesuffix(".html")
        with self._lock:
            self.asked = time.monotonic()
            if self.asked >= self.due:
                self._read()
                now = time.monotonic()
                self.due = now + max(1.0, SHARE * (now - self.asked))
            if path in ("", "index.html"):
                return (self._waiting() if self._report is None else self._report.index()).encode()
            if self._report is not None and path == f"cells/{key}.html" and key in self._report.results:
                return self._report.cell(key).encode()
        return None

    def _read(self) -> None:
        from textgym_benchmarks.report import Report
        from textgym_benchmarks.results.store import read_sources

        found = read_sources(self._runs, patient=True)
        again = f"{len(found.repeated)} cells are in several of the runs; the first finished one is shown"
        self._notes = (*found.unread, *([again] if found.repeated else []))
        self._report = Report(found.results, found.suite, None, self._notes, live=True) if found.results else None

    def _waiting(self) -> str:
        from textgym_benchmarks.report import report_templates

        return report_templates(live=True).get_template("waiting.html").render(notes=self._notes)


class LiveServer(ThreadingHTTPServer):
    """Serves live pages on 127.0.0.1. Args: port: the first to try. Raises: UsageError if none is free."""

    allow_reuse_address = os.name == "posix"  # elsewhere two programs could then have the same port

    def __init__(self, pages: LivePages, port: int) -> None:
        self.pages = pages
        for each in range(port, min(port + PORTS, 65_536)):
            with contextlib.suppress(OSError):
                super().__init__((HOST, each), _Handler)
                return
        raise UsageError(
            f"--port {port}: neither it nor the next {PORTS - 1} are free; name another, as in --port 9000"
        )

    def handle_error(self, request: object, client_address: object) -> None:
        """See `BaseServer.handle_error`; a browser that has closed a connection is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def address(self) -> str:
        """The address of the index."""
        return f"http://{HOST}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD, where the request names this machine."""

    server: LiveServer
    server_version, sys_version, timeout = "textgym", "", 10

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing: a page asks every second."""

    def _answer(self) -> None:
        try:
            named = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            named = None
        if named not in NAMES:
            self.send_error(403, f"Allowed as Host: {' and '.join(NAMES)}")
            return
        path = unquote(urlsplit(self.path).path).removeprefix("/")
        content = self.server.pages.content(path)
        if content is None:
            self.send_error(404)
            return
        tag = f'"{sha256(content).hexdigest()[:32]}"'
        same = self.headers.get("If-None-Match") == tag
        self.send_response(304 if same else 200)
        self.send_header("Content-Type", f"{_KINDS.get(Path(path or 'index.html').suffix)}; charset=utf-8")
        for name, value in (
            ("ETag", tag),
            ("Cache-Control", "no-cache"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        if not same:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET" and not same:
            self.wfile.write(content)


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
    pages = LivePages(flags.run)
    with LiveServer(pages, flags.port) as server, contextlib.suppress(KeyboardInterrupt):
        output().print(untrusted(f"live report: {server.address}"), soft_wrap=True)
        sys.stdout.flush()
        if flags.until_eof:
            threading.Thread(target=_end_with_input, args=(server,), daemon=True).start()
        server.serve_forever()


def _end_with_input(server: LiveServer) -> None:
    """Stop a server once the standard input has ended, and a page that is open has fetched the last state."""
    sys.stdin.read()
    ended, server.pages.due = time.monotonic(), 0.0
    while ended - server.pages.asked < _WATCHED and time.monotonic() < ended + _WATCHED / 2:
        time.sleep(0.1)
    server.shutdown()
