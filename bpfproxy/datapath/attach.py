"""Attachments: bpf_links pinned in a directory of the bpffs, so that they outlive the agent.

A link that is there already is switched to the new program in one step, and no connection meets a gap.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Protocol

from bpfproxy.datapath import features, libbpf
from bpfproxy.datapath.libbpf import ffi, lib
from bpfproxy.errors import DatapathError, PermissionsError, UnsupportedError

CGROUP_HOOKS: Final = (
    "cgroup_inet_sock_release",
    "cgroup_udp4_recvmsg",
    "cgroup_udp6_recvmsg",
    "cgroup_inet4_getpeername",
    "cgroup_inet6_getpeername",
    "cgroup_udp4_sendmsg",
    "cgroup_udp6_sendmsg",
    "cgroup_inet4_connect",
    "cgroup_inet6_connect",
    "cgroup_inet4_post_bind",
    "cgroup_inet6_post_bind",
)
ORDER: Final = (*CGROUP_HOOKS, "tcx_egress", "xdp", "tcx_ingress")
"""Hooks by attach type, in the order in which they are attached or switched: what translates back comes before what
translates, so that no client ever sees a backend's address. They are detached from the end."""


class AttachError(DatapathError):
    """The kernel refused an attachment; `code` is the errno."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Outcome(Enum):
    """What `attach` had to do."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


class Attachable(Protocol):
    """A program to attach; `Program` of the loaders is one."""

    @property
    def name(self) -> str:
        """Its name in the C tree."""
        ...

    @property
    def fd(self) -> int:
        """Its descriptor."""
        ...

    @property
    def attach_type(self) -> int:
        """Its hook, as the kernel numbers it."""
        ...


class Target(Protocol):
    """What a program is attached to: a cgroup, or a place at a device."""

    def link(self, program: Attachable) -> int:
        """A new link's descriptor; raises OSError."""
        ...

    def holds(self, info: Any, program: Attachable) -> bool:
        """Whether a `struct bpf_link_info` is that of a link by which `program` could run here."""
        ...

    def explain(self, error: OSError) -> str:
        """Why `link` failed, for people."""
        ...


@dataclass(frozen=True, slots=True)
class CgroupTarget:
    """A cgroup v2 directory: programs see the sockets of its processes and of those below it."""

    path: Path

    def link(self, program: Attachable) -> int:
        """See `Target.link`."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return create_link(program, fd, program.attach_type)
        finally:
            os.close(fd)

    def holds(self, info: Any, program: Attachable) -> bool:
        """See `Target.holds`; a link whose cgroup was removed has none."""
        return bool(
            info.type == libbpf.LINK_CGROUP
            and info.cgroup.cgroup_id == self.path.stat().st_ino
            and info.cgroup.attach_type == program.attach_type
        )

    def explain(self, error: OSError) -> str:
        """See `Target.explain`."""
        if isinstance(error, PermissionError):
            return "a program there, or above, was attached without allowing others (BPF_F_ALLOW_MULTI)"
        return error.strerror or str(error)

    def __str__(self) -> str:
        return f"cgroup {self.path}"


@dataclass(frozen=True, slots=True)
class Link:
    """A pinned link as the kernel shows it."""

    name: str
    type: str
    program: str
    program_id: int
    attach_type: str
    cgroup_id: int
    """Of links of cgroups: the inode number of the directory, 0 if that was removed."""
    ifindex: int
    """Of links of devices: the device, 0 if it is gone."""

    @property
    def alive(self) -> bool:
        """Whether what it was attached to is still there."""
        return bool(self.cgroup_id or self.ifindex)


def in_order(programs: Iterable[Any]) -> list[Any]:
    """Programs in the order of ORDER; hooks that it does not name come last."""
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted(programs, key=lambda p: places.get(libbpf.attach_type_name(p.attach_type), len(places)))


def of_cgroups(programs: Iterable[Any]) -> list[Any]:
    """Those of `programs` that are attached to a cgroup, in the order of ORDER."""
    return [p for p in in_order(programs) if libbpf.attach_type_name(p.attach_type) in CGROUP_HOOKS]


def attach(directory: Path, name: str, program: Attachable, target: Target) -> Outcome:
    """See to it that the link pinned as `directory`/`name` runs `program` at `target`.

    A link to elsewhere, or to a cgroup or device that is gone, is replaced. Raises PermissionsError, UnsupportedError
    or AttachError.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return _attach(directory / name, program, target)
    except OSError as error:
        missing = features.missing_capabilities()
        if isinstance(error, PermissionError) and missing:
            raise PermissionsError(f"attaching {program.name} to {target} needs {', '.join(missing)}") from error
        message = f"cannot attach {program.name} to {target}: {target.explain(error)}"
        raise AttachError(message, error.errno or 0) from error


def detach(directory: Path, name: str) -> bool:
    """Detach and unpin a link; returns whether there was one. Raises DatapathError."""
    path = directory / name
    try:
        fd = libbpf.open_pin(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DatapathError(str(error)) from error
    try:
        # At once: a link that just loses its last reference is detached some time later.
        result = lib().bpf_link_detach(fd)
        if result not in (0, -errno.EOPNOTSUPP, -errno.ENOLINK):
            raise DatapathError(str(libbpf.os_error(-result, f"detaching {path}")))
        path.unlink()
    finally:
        os.close(fd)
    return True


def detach_all(directory: Path) -> list[str]:
    """Detach all links of a directory, in the opposite of ORDER, and remove it; returns their names."""
    places = {name: place for place, name in enumerate(ORDER)}
    found = sorted(links(directory), key=lambda link: places.get(link.attach_type, len(places)), reverse=True)
    for link in found:
        detach(directory, link.name)
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()
    return [link.name for link in found]


def links(directory: Path) -> list[Link]:
    """All links that are pinned in a directory, by name; none if it is not there."""
    if not directory.is_dir():
        return []
    return [_inspect(path) for path in sorted(directory.iterdir())]


def create_link(program: Attachable, target: int, attach_type: int, flags: int = 0) -> int:
    """A descriptor of a new link from `program` to the descriptor or interface index `target`.

    Raises OSError, or UnsupportedError where the kernel has no links.
    """
    options = ffi.new("struct bpf_link_create_opts *", {"sz": ffi.sizeof("struct bpf_link_create_opts")})
    options.flags = flags
    link: int = lib().bpf_link_create(program.fd, target, attach_type, options)
    if link == -errno.EINVAL and not features.has_links():
        raise UnsupportedError(f"cannot attach {program.name}: this kernel has no bpf_link (Linux 5.7)")
    return libbpf.check(link, "bpf_link_create")


def _attach(path: Path, program: Attachable, target: Target) -> Outcome:
    try:
        former = libbpf.open_pin(path)
    except FileNotFoundError:
        _create(path, program, target)
        return Outcome.CREATED
    try:
        info = libbpf.info(former, "link")
        if not target.holds(info, program):
            fresh = path.with_name(f"{path.name}_new")
            fresh.unlink(missing_ok=True)
            _create(fresh, program, target)
            fresh.replace(path)
            lib().bpf_link_detach(former)
            return Outcome.CREATED
        if info.prog_id == libbpf.info(program.fd, "prog").id:
            return Outcome.UNCHANGED
        libbpf.check(lib().bpf_link_update(former, program.fd, ffi.NULL), f"update of {path}")
        return Outcome.UPDATED
    finally:
        os.close(former)


def _create(path: Path, program: Attachable, target: Target) -> None:
    link = target.link(program)
    try:
        libbpf.pin(link, path)
    finally:
        os.close(link)


def _attach_type(info: Any) -> str:
    match info.type:
        case libbpf.LINK_CGROUP:
            return libbpf.attach_type_name(info.cgroup.attach_type)
        case libbpf.LINK_TCX:
            return libbpf.attach_type_name(info.tcx.attach_type)
        case libbpf.LINK_XDP:
            return "xdp"
    return ""


def _inspect(path: Path) -> Link:
    try:
        fd = libbpf.open_pin(path)
        try:
            info = libbpf.info(fd, "link")
        finally:
            os.close(fd)
    except OSError as error:
        raise DatapathError(f"{path} is no pinned link of ours: {error.strerror}") from error
    is_cgroup = info.type == libbpf.LINK_CGROUP
    return Link(
        name=path.name,
        type=libbpf.link_type_name(info.type),
        program=libbpf.program_name(info.prog_id),
        program_id=info.prog_id,
        attach_type=_attach_type(info),
        cgroup_id=info.cgroup.cgroup_id if is_cgroup else 0,
        ifindex=0 if is_cgroup else info.xdp.ifindex,
    )
