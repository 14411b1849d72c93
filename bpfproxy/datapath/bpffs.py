"""The bpffs at STATE/bpf that holds pinned maps and links.

It has to outlive the agent. In a mount namespace of its own (a shell of `ip netns exec`, say) a mount ends with the
namespace's last process, and the datapath with it. So where the init process sees the same state directory, the
bpffs is mounted in *its* namespace and reached through /proc/1/root.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bpfproxy.datapath.namespaces import check, ffi, in_mount_namespace, libc
from bpfproxy.errors import DatapathError, PermissionsError

_MAGIC: Final = 0xCAFE4A11
_INIT: Final = Path("/proc/1")
_FLAGS: Final = 2 | 4 | 8  # MS_NOSUID, MS_NODEV, MS_NOEXEC
_MS_PRIVATE: Final = 1 << 18
_MNT_DETACH: Final = 2


def is_bpffs(path: Path) -> bool:
    """Whether `path` lies on a bpffs."""
    result = ffi.new("long[64]")
    return bool(libc.statfs(os.fsencode(path), result) == 0 and result[0] & 0xFFFFFFFF == _MAGIC)


def locate(state_dir: Path) -> Path | None:
    """The bpffs of a state directory as this process can reach it, or None if it is not mounted."""
    return next((path for path in _places(state_dir) if is_bpffs(path)), None)


def mount(state_dir: Path) -> Path:
    """The bpffs of a state directory, mounted if need be.

    Raises PermissionsError without CAP_SYS_ADMIN, DatapathError where the kernel refuses for another reason.
    """
    if found := locate(state_dir):
        return found
    target = state_dir / "bpf"
    places = _places(state_dir)
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        if len(places) > 1:
            with _init_mounts() as namespace:
                in_mount_namespace(namespace, lambda: _mount(target.absolute()))
        else:
            _mount(target)
    except PermissionError as error:
        raise PermissionsError(
            f"mounting a bpffs at {target} needs CAP_SYS_ADMIN, or one mounted there before"
        ) from error
    except OSError as error:
        raise DatapathError(f"cannot mount a bpffs at {target}: {error.strerror}") from error
    return next(path for path in places if is_bpffs(path))


def unmount(state_dir: Path) -> bool:
    """Remove all pins of a state directory's bpffs, unmount it and remove its mount point; returns whether there was
    anything to remove. Raises PermissionsError or DatapathError."""
    target = state_dir / "bpf"
    existed = target.is_dir()
    try:
        for path in _places(state_dir):
            while is_bpffs(path):
                # Another namespace may hold a copy of the mount, so the pins do not go with this one.
                remove_tree(path, keep_top=True)
                if path == target:
                    _unmount(target)
                else:
                    with _init_mounts() as namespace:
                        in_mount_namespace(namespace, lambda: _unmount(target.absolute()))
        with contextlib.suppress(FileNotFoundError):
            target.rmdir()
    except PermissionError as error:
        raise PermissionsError(f"unmounting {target} needs CAP_SYS_ADMIN") from error
    except OSError as error:
        raise DatapathError(f"cannot unmount {target}: {error.strerror}") from error
    return existed


def remove_tree(top: Path, *, keep_top: bool = False) -> None:
    """Unpin all that is below a directory of a bpffs, and remove it; nothing happens if it is not there."""
    for at, directories, files in os.walk(top, topdown=False):
        for name in files:
            if "." not in name:  # the kernel's own: users' names have no dot
                Path(at, name).unlink(missing_ok=True)
        for name in directories:
            Path(at, name).rmdir()
    if not keep_top:
        with contextlib.suppress(FileNotFoundError):
            top.rmdir()


def _places(state_dir: Path) -> list[Path]:
    """Where the bpffs may be: here, and in the init process's namespace if that has the same state directory."""
    here = state_dir / "bpf"
    with contextlib.suppress(OSError):
        if not os.path.samestat((_INIT / "ns/mnt").stat(), Path("/proc/self/ns/mnt").stat()):
            there = _INIT / "root" / state_dir.absolute().relative_to("/")
            state_dir.mkdir(parents=True, exist_ok=True)
            if os.path.samestat(there.stat(), state_dir.stat()):
                return [here, there / "bpf"]
    return [here]


@contextlib.contextmanager
def _init_mounts() -> Iterator[int]:
    fd = os.open(_INIT / "ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _mount(target: Path) -> None:
    path = os.fsencode(target)
    check(libc.mount(b"bpf", path, b"bpf", _FLAGS, b"mode=0700"), "mount")
    # Later copies of it in other namespaces are no peers.
    check(libc.mount(ffi.NULL, path, ffi.NULL, _MS_PRIVATE, ffi.NULL), "mount")


def _unmount(target: Path) -> None:
    if libc.umount2(os.fsencode(target), _MNT_DETACH) < 0 and ffi.errno != errno.EINVAL:
        check(-1, "umount")
