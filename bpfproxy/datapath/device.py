"""Places at a network device where a program runs: XDP, and tc by tcx. Devices are named by their interface index in
the calling thread's network namespace."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

from bpfproxy.datapath import libbpf
from bpfproxy.datapath.attach import Attachable, create_link
from bpfproxy.datapath.libbpf import ffi, lib

_BPF_XDP: Final = 37
_XDP_FLAGS: Final = {"generic": 1 << 1, "native": 1 << 2}


class Hook(StrEnum):
    """A place at a device. The value is part of a pin's name."""

    XDP = "xdp"
    TC_IN = "tc_in"
    TC_OUT = "tc_out"


@dataclass(frozen=True, slots=True)
class XdpTarget:
    """XDP of a device; `native` (in the driver) or `generic` (after the packet was received), never what happens to
    be there. A device holds one program at a time, whoever's it is."""

    ifindex: int
    mode: Literal["native", "generic"] = "native"

    def link(self, program: Attachable) -> int:
        """See `Target.link`."""
        return create_link(program, self.ifindex, _BPF_XDP, _XDP_FLAGS[self.mode])

    def holds(self, info: Any, program: Attachable) -> bool:
        """See `Target.holds`; a link whose device is gone has none."""
        return bool(info.type == libbpf.LINK_XDP and info.xdp.ifindex == self.ifindex)

    def explain(self, error: OSError) -> str:
        """See `Target.explain`."""
        if not exists(self.ifindex):
            return "the device is gone"
        match error.errno:
            case errno.EBUSY:
                return f"another XDP program is on it ({libbpf.describe_program(xdp_program(self.ifindex))})"
            case errno.ERANGE:
                return "its MTU is too large for XDP"
            case errno.EOPNOTSUPP:
                return f"its driver has no {self.mode} XDP"
        return error.strerror or str(error)

    def __str__(self) -> str:
        return f"XDP of {device_name(self.ifindex)}"


@dataclass(frozen=True, slots=True)
class TcxTarget:
    """tc of a device by a link, behind the programs that are there (Linux 6.6)."""

    ifindex: int
    direction: Literal["ingress", "egress"]

    @property
    def attach_type(self) -> int:
        """The kernel's number."""
        return libbpf.TCX_INGRESS if self.direction == "ingress" else libbpf.TCX_EGRESS

    def link(self, program: Attachable) -> int:
        """See `Target.link`."""
        return create_link(program, self.ifindex, self.attach_type)

    def holds(self, info: Any, program: Attachable) -> bool:
        """See `Target.holds`; a link whose device is gone has none."""
        return bool(
            info.type == libbpf.LINK_TCX
            and info.tcx.ifindex == self.ifindex
            and info.tcx.attach_type == self.attach_type
        )

    def explain(self, error: OSError) -> str:
        """See `Target.explain`."""
        return error.strerror or str(error) if exists(self.ifindex) else "the device is gone"

    def __str__(self) -> str:
        return f"tc {self.direction} of {device_name(self.ifindex)}"


def exists(ifindex: int) -> bool:
    """Whether there is a device of this index."""
    try:
        socket.if_indextoname(ifindex)
    except OSError:
        return False
    return True


def device_name(ifindex: int) -> str:
    """Its name, or `device N` if it is gone."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"device {ifindex}"


def xdp_program(ifindex: int) -> int:
    """The id of the XDP program on a device, in whichever mode; 0 if there is none. Raises OSError."""
    found = ffi.new("uint32_t *")
    libbpf.check(lib().bpf_xdp_query_id(ifindex, 0, found), f"XDP of {device_name(ifindex)}")
    return int(found[0])


def tcx_programs(ifindex: int, direction: Literal["ingress", "egress"]) -> list[int]:
    """The ids of the tcx programs on a device, in the order in which they run. Raises OSError."""
    room = 64
    ids, count = ffi.new("uint32_t[]", room), ffi.new("uint32_t *", room)
    kind = TcxTarget(ifindex, direction).attach_type
    result = lib().bpf_prog_query(ifindex, kind, 0, ffi.NULL, ids, count)
    libbpf.check(result, f"tc {direction} of {device_name(ifindex)}")
    return list(ids[0 : count[0]])
