"""One agent per state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from bpfproxy.errors import AlreadyRunningError, PermissionsError


class StateLock:
    """Holds STATE/lock from construction until `release`, or the end of the process.

    Makes the state directory if need be. Raises AlreadyRunningError that names the holder, PermissionsError where the
    directory cannot be written.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "lock"
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._fd = self._acquire()
        except PermissionError as error:
            raise PermissionsError(
                f"{self.path} cannot be written: run as root, or choose another --state-dir"
            ) from error

    def release(self, *, remove: bool = False) -> None:
        """Let another agent in. `remove` takes the file away, too."""
        if self._fd >= 0:
            if remove:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> StateLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _acquire(self) -> int:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(fd, 32).decode(errors="replace").strip()
                os.close(fd)
                process = f"process {holder}" if holder else "another process"
                raise AlreadyRunningError(f"{self.path} is held by {process}: one agent per state directory") from None
            if self._is_current(fd):
                os.truncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return fd
            os.close(fd)  # the former holder has just removed the file

    def _is_current(self, fd: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(fd), self.path.stat())
        return False


def holder(state_dir: Path) -> int | None:
    """The pid of the agent that holds a state directory, or None. Only looks: it cannot get in the way of one."""
    try:
        status = (state_dir / "lock").stat()
    except FileNotFoundError:
        return None
    identity = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5] == identity:
            return int(fields[4])
    return None
