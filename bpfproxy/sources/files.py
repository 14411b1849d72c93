"""Manifests from files and directories, read once or watched live."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from bpfproxy.errors import InputError
from bpfproxy.model.event import Object, Update
from bpfproxy.sources.ledger import Ledger, Settled
from bpfproxy.sources.manifest import MAX_FAULTS, Manifest, decode_manifest, input_error
from bpfproxy.sources.watch import MISSING, Scan, Watcher, list_files

MAX_SIZE: Final = 256 << 20
"""Bytes of one file."""

_INLINE: Final = 16 << 10
"""Bytes up to which files are read in the event loop; more goes to a worker thread."""


def load_manifests(paths: Iterable[Path]) -> tuple[Object, ...]:
    """All objects in `paths`, files or directories (their *.yaml, *.yml and *.json, not hidden, no sub-directories).

    Raises InputError with one line for each fault; an object, nodePort or ClusterIP that stands twice is one.
    """
    faults: list[str] = []
    manifests: dict[str, Manifest | None] = {}
    for path in paths:
        try:
            names = [name for name, _ in list_files(str(path))] if path.is_dir() else [str(path)]
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
            continue
        for name in dict.fromkeys(names):
            try:
                manifests[name] = decode_manifest(_read(name, regular=False) or b"", name)
            except OSError as error:
                faults.append(f"{name}: {error.strerror}")
            except InputError as error:
                faults.extend(str(error).splitlines())
    settled = Ledger().settle(manifests)
    faults.extend(fault for clashes in settled.clashes.values() for fault in clashes)
    if faults:
        raise input_error(faults[:MAX_FAULTS])
    return settled.objects


def _read(path: str, *, regular: bool = True) -> bytes | None:
    """The content of a file; None for anything else, unless it need not be `regular`: then a pipe is read to its end.

    Raises OSError or InputError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | (os.O_NONBLOCK if regular else 0))
    try:
        status = os.fstat(descriptor)
        if regular and not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size <= MAX_SIZE:
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_SIZE + 1)
            if len(data) <= MAX_SIZE:
                return data
    finally:
        os.close(descriptor)
    raise InputError(f"{path}: expected at most {MAX_SIZE >> 20} MiB")


def _is_much(paths: Collection[str]) -> bool:
    """Whether reading `paths` would hold up the event loop."""
    size = 0
    for path in paths:
        with suppress(OSError):
            size += Path(path).stat().st_size + 256
        if size > _INLINE:
            return True
    return False


class FilesSource:
    """Follows manifests in files and directories.

    A file counts as a whole: while any document in it is refused, all its former objects stay in force. `on_error` is
    called in the thread of the event loop, once for each fault (one line) until it changes or goes away.
    """

    def __init__(self, paths: Iterable[Path], on_error: Callable[[InputError], None]) -> None:
        self._roots = tuple(dict.fromkeys(str(path) for path in paths))
        self._on_error = on_error
        self._ledger = Ledger()
        self._files: set[str] = set()
        self._digests: dict[str, bytes] = {}
        self._told: dict[str, frozenset[str]] = {}
        self._seen: set[str] = set()  # roots that were there once
        self._complete: bool | None = None  # as delivered last

    async def run(self, sink: Callable[[Update], None]) -> None:
        """See `base.Source`. Raises UnsupportedError if inotify cannot be had."""
        with Watcher(self._roots) as watcher:
            await self._take_all(watcher.scan(), sink)
            while True:
                batch = await watcher.wait()
                if batch.rescan or watcher.refresh(batch.changed | batch.vanished):
                    await self._take_all(watcher.scan(), sink)
                else:
                    await self._take(batch.changed, batch.vanished, sink)

    async def _take_all(self, scan: Scan, sink: Callable[[Update], None]) -> None:
        self._seen.update(root for root in self._roots if root not in scan.missing)
        for root in set(self._roots) - set(scan.files):
            self._tell(root, [f"{root}: {scan.missing[root]}"] if root in scan.missing else [])
        await self._take(scan.files, self._files - set(scan.files), sink)

    async def _take(self, changed: Collection[str], vanished: Collection[str], sink: Callable[[Update], None]) -> None:
        """Look at these files and deliver what that changes."""
        work = partial(self._look, changed, vanished)
        settled, faults = await asyncio.to_thread(work) if _is_much(changed) else work()
        for path, lines in faults.items():
            self._tell(path, lines)
        complete = self._seen.issuperset(self._roots) and self._files <= self._ledger.in_force.keys()
        if settled.objects or settled.removed or complete != self._complete:
            self._complete = complete
            sink(Update(objects=settled.objects, removed=settled.removed, complete=complete))

    def _look(self, changed: Collection[str], vanished: Collection[str]) -> tuple[Settled, dict[str, list[str]]]:
        """Read `changed`, forget `vanished`, and settle what is in force. Returns the faults, too, of each file whose
        faults may be others now. Runs in a worker thread if that is much."""
        fresh: dict[str, Manifest | None] = {}
        refused: dict[str, list[str]] = {}
        for path in sorted({*changed, *vanished}):
            try:
                data = None if path in vanished else _read(path)
                if data is None:
                    self._forget(path)
                    fresh[path] = None
                    continue
                self._files.add(path)
                digest = hashlib.blake2b(data, digest_size=16).digest()
                if self._digests.get(path) != digest:
                    self._digests[path] = digest
                    fresh[path] = decode_manifest(data, path)
            except (FileNotFoundError, NotADirectoryError):
                self._forget(path)
                fresh[path] = None
            except OSError as error:
                self._files.add(path)
                self._digests.pop(path, None)
                refused[path] = [f"{path}: {error.strerror}"]
            except InputError as error:
                refused[path] = str(error).splitlines()
        looked_at = {*fresh, *self._ledger.waiting}
        settled = self._ledger.settle(fresh, refused)
        gone = {path: [f"{path}: {MISSING}"] for path in self._roots if path in fresh and fresh[path] is None}
        return settled, {path: [] for path in looked_at} | gone | settled.clashes | refused

    def _forget(self, path: str) -> None:
        self._files.discard(path)
        self._digests.pop(path, None)

    def _tell(self, path: str, faults: list[str]) -> None:
        told = self._told.pop(path, frozenset())
        if faults:
            self._told[path] = frozenset(faults)
        for fault in faults:
            if fault not in told:
                self._on_error(InputError(fault))
