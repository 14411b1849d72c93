"""What labs and their agents leave in a kernel: find it, remove it.

All names carry the lab's id, which starts with the process id of its owner. `sweep` removes labs whose owner is dead;
`leftovers` lists what is there, and is empty when everybody has cleaned up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from bpfproxy.lab import bpf, cgroup, netns

RUN = Path("/run/bpfproxy-lab")
"""A directory per lab, by its id."""

_PREFIX = "bpfproxy-lab-"
_serial = count(1)
ENVIRONMENT = "BPFPROXY_LAB"
"""Environment variable that every process of a lab inherits: the lab's id."""


def new_id() -> str:
    """An id for a lab of this process."""
    return f"{os.getpid()}-{next(_serial)}"


def prefix(lab_id: str) -> str:
    """What the names of a lab's namespaces and cgroups start with."""
    return _PREFIX + lab_id


def directory(lab_id: str) -> Path:
    """Where a lab keeps its files."""
    return RUN / lab_id


def claim(lab_id: str) -> None:
    """Write down that this process owns the lab `lab_id`, before any of it is made."""
    while not directory(lab_id).is_dir():
        RUN.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # somebody else's last lab took RUN along
            directory(lab_id).mkdir()
    (directory(lab_id) / "owner").write_text(f"{os.getpid()} {_start_time(os.getpid())}")


def remove(lab_id: str) -> None:
    """Remove all of a lab. Every step is tried, whatever happens to the others; raises what went wrong at the end."""
    names = prefix(lab_id)
    steps: list[Callable[[], None]] = [
        lambda: _kill_strays(lab_id),
        lambda: cgroup.kill(cgroup.mount_point() / names),
        lambda: _unmount_below(directory(lab_id)),
        *(lambda name=name: netns.remove(name) for name in netns.names(names + "-")),
        lambda: cgroup.remove(cgroup.mount_point() / names),
        lambda: shutil.rmtree(directory(lab_id)) if directory(lab_id).exists() else None,
        _drop_empty_run_directory,
    ]
    errors = []
    for step in steps:
        try:
            step()
        except Exception as error:
            errors.append(error)
    if errors:
        raise ExceptionGroup(f"lab {lab_id} was not removed whole", errors)


def sweep() -> list[str]:
    """Remove the labs whose owners are dead; returns their ids. Without root there are none, and nothing is done."""
    if os.geteuid() != 0:
        return []
    with _alone():
        dead = [lab_id for lab_id in _known() if not _alive(lab_id)]
        for lab_id in dead:
            remove(lab_id)
    return dead


def give_up() -> None:
    """Remove all that this process owns: for one that was told to end, and ends without having removed it."""
    for lab_id in _known():
        if lab_id.split("-")[0] == str(os.getpid()):
            remove(lab_id)


def leftovers(owner: int | None = None) -> set[str]:
    """What there is of labs and of bpfproxy in this kernel, a line each; with `owner`, of that process's labs alone."""

    def belongs(lab_id: str) -> bool:
        return owner is None or lab_id.split("-")[0] == str(owner)

    found = {f"namespace {name}" for name in netns.names(_PREFIX) if belongs(name.removeprefix(_PREFIX))}
    cgroups = [
        path
        for top in cgroup.mount_point().glob(_PREFIX + "*")
        if belongs(top.name.removeprefix(_PREFIX))
        for path in cgroup.directories(top)
    ]
    found |= {f"cgroup {path}" for path in cgroups}
    found |= {f"process {pid} of lab {lab_id}" for pid, lab_id in _processes() if belongs(lab_id)}
    for mount in _bpffs_mounts():
        if (owner is None and _is_ours(mount)) or (
            mount.is_relative_to(RUN) and belongs(mount.relative_to(RUN).parts[0])
        ):
            found |= {f"bpffs {mount}"} | {f"pin {pin}" for pin in _below(mount)}
    if RUN.is_dir():
        found |= {f"directory {path}" for path in RUN.iterdir() if belongs(path.name)}
    inodes = {cgroup.inode(path): path for path in cgroups}
    found |= {
        f"link {link.id} of {link.program} on {inodes[link.cgroup_id]}"
        for link in bpf.cgroup_links()
        if link.cgroup_id in inodes
    }
    return found | {f"device {name}" for name in _devices()}


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two that sweep at a time would take things from under each other."""
    RUN.mkdir(exist_ok=True)
    fd = os.open(RUN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
        _drop_empty_run_directory()


def _below(top: Path) -> list[Path]:
    """Everything below a directory; nothing if it goes away meanwhile."""
    with contextlib.suppress(OSError):
        return list(top.rglob("*"))
    return []


def _is_ours(mount: Path) -> bool:
    """A state directory's: an agent mounts a bpffs at STATE/bpf, beside its lock."""
    return mount.name == "bpf" and (mount.is_relative_to(RUN) or (mount.parent / "lock").exists())


def _devices() -> Iterator[str]:
    """Devices outside the lab's namespaces that have a proxier's name; labs make none there."""
    for path in Path("/sys/class/net").iterdir():
        if path.name.startswith(("bpfproxy", "kube-ipvs")):
            yield path.name


def _known() -> set[str]:
    found = {path.name for path in RUN.iterdir()} if RUN.is_dir() else set()
    found |= {path.name.removeprefix(_PREFIX) for path in cgroup.mount_point().glob(_PREFIX + "*")}
    return found | {"-".join(name.removeprefix(_PREFIX).split("-")[:2]) for name in netns.names(_PREFIX)}


def _alive(lab_id: str) -> bool:
    """Whether the process that claimed the lab still runs; its start time tells it from a later one of that id."""
    try:
        pid, started = (directory(lab_id) / "owner").read_text().split()
    except (FileNotFoundError, ValueError):
        return Path("/proc", lab_id.split("-")[0]).exists()
    return _start_time(int(pid)) == started


def _start_time(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def _processes() -> Iterator[tuple[int, str]]:
    """Processes that some lab started, wherever they are now, with the lab's id."""
    marker = ENVIRONMENT.encode() + b"="
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                for variable in (entry / "environ").read_bytes().split(b"\0"):
                    if variable.startswith(marker):
                        yield int(entry.name), variable.removeprefix(marker).decode()


def _kill_strays(lab_id: str) -> None:
    """Processes of the lab that are not in its cgroups: killed before they entered."""
    for pid, owner in _processes():
        if owner == lab_id:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


def _bpffs_mounts() -> list[Path]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [Path(line.split()[4]) for line in lines if line.partition(" - ")[2].split()[0] == "bpf"]


def _unmount_below(top: Path) -> None:
    """Unmount every bpffs below `top`: pins go with it, and with the pins the programs."""
    for mount in reversed(_bpffs_mounts()):
        if mount.is_relative_to(top):
            subprocess.run(["umount", "--lazy", str(mount)], check=True)


def _drop_empty_run_directory() -> None:
    with contextlib.suppress(OSError):
        RUN.rmdir()
