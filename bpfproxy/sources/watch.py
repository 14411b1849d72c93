"""Which manifest files have changed: inotify on what a path leads through, symbolic links included.

Only names that inotify reports are looked at again. A directory whose entries matter (a manifest directory, or one with
a symbolic link or a missing name on the way to one) is watched for them, every other directory on the way for its own
disappearance alone.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Collection
from contextlib import suppress
from itertools import filterfalse
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from asyncinotify import Event, Inotify, Mask, Watch

from bpfproxy.errors import UnsupportedError
from bpfproxy.sources.readable import readable

SUFFIXES: Final = (".yaml", ".yml", ".json")
SETTLE: Final = 0.05
"""Seconds that a name which went away has to come back: some editors move a file aside before they write it anew."""

MISSING: Final = "expected a file or directory, found none"

_APPEARED: Final = Mask.CREATE | Mask.MOVED_TO
_VANISHED: Final = Mask.DELETE | Mask.MOVED_FROM
_SELF_GONE: Final = Mask.DELETE_SELF | Mask.MOVE_SELF
_PASSAGE: Final = _SELF_GONE | Mask.ONLYDIR | Mask.MASK_ADD
_ENTRIES: Final = _PASSAGE | _APPEARED | _VANISHED | Mask.CLOSE_WRITE | Mask.ATTRIB
_MAX_LINKS: Final = 40


def _join(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}"


class Trail(NamedTuple):
    """The way from the root directory to what a path leads to."""

    entries: frozenset[tuple[str, str]]
    """(directory, name) of each symbolic link on the way and of its end, unless that is a directory."""
    passages: tuple[str, ...]
    """Directories on the way, without symbolic links in them."""
    target: str | None
    """Where it ends; None if it leads nowhere."""
    is_directory: bool


def trace(path: str) -> Trail:
    """Follow `path` through all symbolic links."""
    pending = Path(path).absolute().as_posix().split("/")[::-1]
    here = "/"
    entries: set[tuple[str, str]] = set()
    passages: list[str] = []
    links = 0
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            here = str(Path(here).parent)
            continue
        full = _join(here, name)
        try:
            mode = os.lstat(full).st_mode
        except OSError:
            return Trail(frozenset({*entries, (here, name)}), tuple(passages), None, False)
        if stat.S_ISDIR(mode):
            here = full
            passages.append(full)
            continue
        entries.add((here, name))
        if not stat.S_ISLNK(mode):
            return Trail(frozenset(entries), tuple(passages), None if pending else full, False)
        links += 1
        try:
            target = str(Path(full).readlink())
        except OSError:
            links = _MAX_LINKS
        if links >= _MAX_LINKS:
            return Trail(frozenset(entries), tuple(passages), None, False)
        pending.extend(target.split("/")[::-1])
        if target.startswith("/"):
            here = "/"
    return Trail(frozenset(entries), tuple(passages), here, True)


def eligible(name: str) -> bool:
    """Whether a directory's entry is a manifest by its name."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


class Scan(NamedTuple):
    """What is there now."""

    files: tuple[str, ...]
    missing: dict[str, str]
    """Roots that lead nowhere or cannot be listed, with the reason."""


def list_files(root: str) -> list[tuple[str, bool]]:
    """(path, whether it is a symbolic link) of each manifest in a directory, sorted; raises OSError."""
    with os.scandir(root) as entries:
        return sorted(
            (_join(root, entry.name), entry.is_symlink())
            for entry in entries
            if eligible(entry.name) and (entry.is_symlink() or entry.is_file())
        )


class Batch:
    """Changes that were reported together."""

    def __init__(self) -> None:
        self.rescan = False
        self.changed: set[str] = set()
        self.vanished: set[str] = set()


class _Directory:
    """A watched directory."""

    __slots__ = ("entries", "users", "watch")

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self.entries = False
        self.users: set[str] = set()


class Watcher:
    """Watches `roots`, files and directories, which need not exist. A context manager."""

    def __init__(self, roots: Collection[str]) -> None:
        self._roots = tuple(dict.fromkeys(roots))
        try:
            self._inotify = Inotify(sync_timeout=0, cache_size=64)
        except OSError as error:
            raise UnsupportedError(f"inotify: {error.strerror}: see fs.inotify.max_user_instances") from error
        self._forget()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._inotify.close()

    def _forget(self) -> None:
        self._directories: dict[str, _Directory] = {}
        self._paths_of: dict[int, list[str]] = {}  # by watch descriptor: bind mounts give one inode several paths
        self._trails: dict[str, Trail] = {}
        self._users: dict[tuple[str, str], set[str]] = {}
        self._listings: dict[str, list[str]] = {}

    # ---- looking ------------------------------------------------------------------------------------------------

    def scan(self) -> Scan:
        """Look at everything, and watch what was found."""
        for directory in self._directories.values():
            self._release(directory)
        self._forget()
        files: dict[str, None] = {}
        missing: dict[str, str] = {}
        for root in self._roots:
            trail = self._follow(root)
            if trail.target is None:
                missing[root] = MISSING
            elif not trail.is_directory:
                files[root] = None
            else:
                self._watch(trail.target, root, entries=True)
                self._listings.setdefault(trail.target, []).append(root)
                try:
                    found = list_files(root)
                except OSError as error:
                    missing[root] = f"expected a directory that can be listed: {error.strerror}"
                    continue
                for path, is_link in found:
                    files[path] = None
                    if is_link:
                        self._follow(path)
        return Scan(tuple(files), missing)

    def refresh(self, paths: Collection[str]) -> bool:
        """Follow changed `paths` anew where they lead through symbolic links. True if that calls for a new scan."""
        rescan = False
        for path in paths:
            is_root = path in self._roots
            if is_root or Path(path).is_symlink():
                rescan |= self._follow(path).is_directory and is_root
            elif path in self._trails:
                self._unfollow(path)
        return rescan

    def _follow(self, path: str) -> Trail:
        for _ in range(10):  # what changes between looking and watching would go unseen
            trail = trace(path)
            if self._trails.get(path) == trail:
                break
            self._unfollow(path)
            self._trails[path] = trail
            for entry in trail.entries:
                self._users.setdefault(entry, set()).add(path)
                self._watch(entry[0], path, entries=True)
            for directory in trail.passages:
                self._watch(directory, path, entries=False)
        return trail

    def _unfollow(self, path: str) -> None:
        trail = self._trails.pop(path, None)
        if trail is None:
            return
        for entry in trail.entries:
            users = self._users[entry]
            users.discard(path)
            if not users:
                del self._users[entry]
        for name in {*trail.passages, *(directory for directory, _ in trail.entries)}:
            directory = self._directories.get(name)
            if directory is not None:
                directory.users.discard(path)
                if not directory.users:
                    self._release(self._directories.pop(name), name)

    def _watch(self, name: str, user: str, *, entries: bool) -> None:
        directory = self._directories.setdefault(name, _Directory())
        directory.users.add(user)
        if directory.watch is not None and (directory.entries or not entries):
            return
        try:
            directory.watch = self._inotify.add_watch(name, _ENTRIES if entries else _PASSAGE)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise UnsupportedError("inotify: out of watches: see fs.inotify.max_user_watches") from error
            return  # gone again, or not ours to read; whoever needs it finds out by reading
        directory.entries |= entries
        paths = self._paths_of.setdefault(directory.watch.wd, [])
        if name not in paths:
            paths.append(name)

    def _release(self, directory: _Directory, name: str = "") -> None:
        """Give up a watch, unless another path leads to the same inode. Without a name: whatever else does."""
        if directory.watch is None:
            return
        paths = self._paths_of.get(directory.watch.wd, [])
        if name in paths:
            paths.remove(name)
        if not name or not paths:
            self._paths_of.pop(directory.watch.wd, None)
            with suppress(OSError):  # the kernel has dropped it already
                self._inotify.rm_watch(directory.watch)

    # ---- waiting ------------------------------------------------------------------------------------------------

    async def wait(self) -> Batch:
        """The next changes. A path under `vanished` was missing when last looked at."""
        while True:
            batch = Batch()
            await readable(self._inotify.fd)
            self._drain(batch)
            if batch.rescan or batch.vanished:
                await asyncio.sleep(SETTLE)
                self._drain(batch)
            # One that is there again is either complete and under `changed`, or will be when its writer closes it.
            batch.vanished = set(filterfalse(os.path.exists, batch.vanished))
            if batch.rescan or batch.changed or batch.vanished:
                return batch

    def _drain(self, batch: Batch) -> None:
        for event in self._inotify:
            self._note(event, batch)

    def _note(self, event: Event, batch: Batch) -> None:
        mask = event.mask
        if mask & Mask.Q_OVERFLOW:
            batch.rescan = True
            return
        paths = self._paths_of.get(event.watch.wd, []) if event.watch is not None else []
        if event.name is None:
            if paths and mask & (_SELF_GONE | Mask.UNMOUNT | Mask.IGNORED | Mask.ATTRIB):
                batch.rescan = True
            return
        for path in paths:
            self._note_entry(path, event.name.name, mask, batch)

    def _note_entry(self, directory: str, name: str, mask: Mask, batch: Batch) -> None:
        concerned = set(self._users.get((directory, name), ()))
        if eligible(name):
            concerned.update(_join(root, name) for root in self._listings.get(directory, ()))
        if not concerned:
            return
        if mask & Mask.CREATE and _to_be_written(_join(directory, name)):
            batch.changed -= concerned
            batch.vanished -= concerned
            return
        for path in concerned:
            trail = self._trails.get(path)
            if path in self._roots and trail is not None and (trail.is_directory or trail.target is None):
                batch.rescan = True
            elif mask & _VANISHED:
                batch.changed.discard(path)
                batch.vanished.add(path)
            else:
                batch.vanished.discard(path)
                batch.changed.add(path)


def _to_be_written(path: str) -> bool:
    """Whether a name that was just created is a file whose writer will close it, which is reported in turn. A
    symbolic link, a hard link or a directory is all there at once."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1
