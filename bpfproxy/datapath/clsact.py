"""tc programs by classifiers of a clsact qdisc, for kernels without tcx (before 6.6).

Such a filter belongs to nobody: it outlives the agent without a pin, and is replaced in one step under its fixed
priority and handle. So that it is known whose it is, its program is pinned beside the links, as `HOOK-IFINDEX`; a
directory `qdisc-IFINDEX` says that the qdisc is ours, too. Others' filters and qdiscs are never touched.

pyroute2 is imported with this module: import it where it is needed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpfproxy.datapath import device, libbpf
from bpfproxy.datapath.attach import Attachable, AttachError, Outcome
from bpfproxy.datapath.device import Hook
from bpfproxy.errors import DatapathError

_NAME: Final = "bpfproxy"
_PRIORITY: Final = 1100
_HANDLE: Final = 0xB9F
_ALL_PROTOCOLS: Final = 3
_PARENT: Final = {Hook.TC_IN: 0xFFFFFFF2, Hook.TC_OUT: 0xFFFFFFF3}
_QDISC: Final = "qdisc"
_GONE: Final = (errno.ENODEV, errno.ENOENT, errno.EINVAL)
"""A device, a qdisc or a filter that is not there any more."""


def attach(directory: Path, hook: Hook, ifindex: int, program: Attachable) -> Outcome:
    """See to it that `program` runs at a device. Raises AttachError."""
    path = directory / f"{hook}-{ifindex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with IPRoute() as netlink:
            found = _filter(netlink, hook, ifindex)
            if found and not path.exists():
                raise AttachError(f"{_place(hook, ifindex)}: another bpfproxy is there", errno.EBUSY)
            if found and _pinned(path) == libbpf.info(program.fd, "prog").id:
                return Outcome.UNCHANGED
            _add_qdisc(netlink, directory, ifindex)
            # Pinned first: a filter without a pin would be a stranger's.
            fresh = path.with_name(f"{path.name}_new")
            fresh.unlink(missing_ok=True)
            libbpf.pin(program.fd, fresh if found else _free(path))
            netlink.tc(
                "replace-filter",
                "bpf",
                ifindex,
                _HANDLE,
                fd=program.fd,
                name=_NAME,
                parent=_PARENT[hook],
                prio=_PRIORITY,
                protocol=_ALL_PROTOCOLS,
                direct_action=True,
            )
            if found:
                fresh.replace(path)
            return Outcome.UPDATED if found else Outcome.CREATED
    except (OSError, NetlinkError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno or 0
        reason = os.strerror(code) if device.exists(ifindex) else "the device is gone"
        raise AttachError(f"cannot attach {program.name} to {_place(hook, ifindex)}: {reason}", code) from error


def detach(directory: Path, hook: Hook, ifindex: int) -> bool:
    """Remove our filter, and the qdisc if we made it and nothing else is there; returns whether there was one.
    Raises DatapathError."""
    path = directory / f"{hook}-{ifindex}"
    if not path.exists():
        return False
    try:
        with IPRoute() as netlink:
            if _filter(netlink, hook, ifindex):
                with _unless_gone():
                    netlink.tc(
                        "del-filter",
                        "bpf",
                        ifindex,
                        _HANDLE,
                        parent=_PARENT[hook],
                        prio=_PRIORITY,
                        protocol=_ALL_PROTOCOLS,
                    )
            path.unlink()
            path.with_name(f"{path.name}_new").unlink(missing_ok=True)
            _remove_qdisc(netlink, directory, ifindex)
    except (OSError, NetlinkError) as error:
        raise DatapathError(f"cannot detach from {_place(hook, ifindex)}: {error}") from error
    return True


def standing(directory: Path) -> dict[tuple[Hook, int], int]:
    """Our filters and the ids of their programs. Filters that another hand removed are missing."""
    found: dict[tuple[Hook, int], int] = {}
    pins = pinned(directory)
    if pins:
        with IPRoute() as netlink:
            for hook, ifindex in pins:
                if _filter(netlink, hook, ifindex):
                    found[hook, ifindex] = _pinned(directory / f"{hook}-{ifindex}")
    return found


def others(hook: Hook, ifindex: int) -> list[str]:
    """Names of filters that are not ours: a BPF program's, or the kind of the classifier. Raises DatapathError."""
    try:
        with IPRoute() as netlink:
            found = {
                (message["info"] >> 16, message["handle"]): _name(message)
                for message in netlink.get_filters(index=ifindex, parent=_PARENT[hook])
                if message["handle"] and not _is_ours(message)
            }
    except NetlinkError as error:
        if error.code in _GONE:
            return []
        raise DatapathError(f"{_place(hook, ifindex)}: {os.strerror(error.code)}") from error
    return [found[place] for place in sorted(found)]


def _name(message: Any) -> str:
    options = message.get_attr("TCA_OPTIONS")
    name = options.get_attr("TCA_BPF_NAME") if message.get_attr("TCA_KIND") == "bpf" and options else None
    return name or str(message.get_attr("TCA_KIND"))


def pinned(directory: Path) -> list[tuple[Hook, int]]:
    """The filters that were attached and not detached, whether they are there or not."""
    if not directory.is_dir():
        return []
    names = (path.name.split("-") for path in sorted(directory.iterdir()) if path.is_file())
    return [(Hook(hook), int(ifindex)) for hook, ifindex in names if ifindex.isdecimal()]


def _filter(netlink: IPRoute, hook: Hook, ifindex: int) -> bool:
    """Whether our filter, or that of another bpfproxy, is there."""
    try:
        filters = netlink.get_filters(index=ifindex, parent=_PARENT[hook])
        return any(_is_ours(message) for message in filters)
    except NetlinkError as error:
        if error.code in _GONE:
            return False
        raise


def _is_ours(message: Any) -> bool:
    options = message.get_attr("TCA_OPTIONS")
    return bool(
        message["handle"] == _HANDLE
        and message["info"] >> 16 == _PRIORITY
        and message.get_attr("TCA_KIND") == "bpf"
        and options is not None
        and options.get_attr("TCA_BPF_NAME") == _NAME
    )


def _add_qdisc(netlink: IPRoute, directory: Path, ifindex: int) -> None:
    """What is there stays, whoever made it."""
    if _qdisc(netlink, ifindex):
        return
    netlink.tc("add", "clsact", ifindex)
    (directory / f"{_QDISC}-{ifindex}").mkdir(exist_ok=True)


def _remove_qdisc(netlink: IPRoute, directory: Path, ifindex: int) -> None:
    made = directory / f"{_QDISC}-{ifindex}"
    if not made.is_dir() or any((directory / f"{hook}-{ifindex}").exists() for hook in _PARENT):
        return
    with _unless_gone():
        if _qdisc(netlink, ifindex) and not any(
            list(netlink.get_filters(index=ifindex, parent=parent)) for parent in _PARENT.values()
        ):
            netlink.tc("del", "clsact", ifindex)
    made.rmdir()


def _qdisc(netlink: IPRoute, ifindex: int) -> bool:
    return any(message.get_attr("TCA_KIND") == "clsact" for message in netlink.get_qdiscs(ifindex))


def _pinned(path: Path) -> int:
    fd = libbpf.open_pin(path)
    try:
        return int(libbpf.info(fd, "prog").id)
    finally:
        os.close(fd)


def _free(path: Path) -> Path:
    path.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in _GONE:
            raise


def _place(hook: Hook, ifindex: int) -> str:
    direction = "ingress" if hook is Hook.TC_IN else "egress"
    return f"tc {direction} of {device.device_name(ifindex)}"
