"""A disk that forgets: what would be in a folder if the power failed now, if little is kept that was not asked for.

A file's content reaches the disk by an fsync of the file, names in a folder by an fsync of the folder. Of what was not
synced, either nothing is there, or, file by file and folder by folder, whatever chance has written meanwhile.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CALLS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")


class Disk:
    """Follows the calls that change a folder, from when it is installed.

    Args:
        root: an empty folder. cut: called after each of the calls.
    """

    def __init__(self, root: Path, cut: Callable[[], None]) -> None:
        self.root, self._cut = root, cut
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {root.stat().st_ino: {}}
        self._folders = {root.stat().st_ino}
        self._held: dict[int, int] = {}  # open files, so that no inode is used again
        self._looking = False

    def install(self, patch: Any) -> None:
        """Patches `os` by a fixture `monkeypatch`."""
        for name in _CALLS:
            patch.setattr(os, name, self._followed(name, getattr(os, name)))

    def image(self, target: Path, rng: random.Random | None = None) -> Path:
        """Writes what is on the disk to a new folder; with `rng`, some of what was not synced is there, too."""
        now = {path.lstat().st_ino: path for path in (self.root, *self.root.rglob("*"))}
        before, self._looking = self._looking, True
        self._put(self.root.stat().st_ino, target, now, rng)
        self._looking = before
        return target

    def _put(self, inode: int, target: Path, now: dict[int, Path], rng: random.Random | None) -> None:
        path = now.get(inode)
        lucky = rng is not None and rng.random() < 0.5
        if inode in self._folders or (path is not None and path.is_dir()):
            names = self._names.get(inode, {})
            if lucky:
                names = {} if path is None else {each.name: each.lstat().st_ino for each in path.iterdir()}
            target.mkdir()
            for name, child in names.items():
                self._put(child, target / name, now, rng)
        elif lucky and path is not None:
            target.write_bytes(path.read_bytes())
        else:
            target.write_bytes(self._contents.get(inode, b""))

    def _followed(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            if not self._looking:
                if name == "fsync":
                    self._sync(arguments[0])
                self._looking = True
                try:
                    self._cut()
                finally:
                    self._looking = False
            return result

        return call

    def _sync(self, descriptor: int) -> None:
        inode = self._hold(os.dup(descriptor))
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self._contents[inode] = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            return
        self._folders.add(inode)
        self._names[inode] = {}
        for name in os.listdir(descriptor):
            child = self._hold(os.open(name, os.O_RDONLY, dir_fd=descriptor))
            self._names[inode][name] = child
            if stat.S_ISDIR(os.stat(name, dir_fd=descriptor).st_mode):
                self._folders.add(child)

    def _hold(self, descriptor: int) -> int:
        inode = os.fstat(descriptor).st_ino
        if inode in self._held:
            os.close(descriptor)
        else:
            self._held[inode] = descriptor
        return inode

    def close(self) -> None:
        """Lets go of all files."""
        for descriptor in self._held.values():
            os.close(descriptor)
