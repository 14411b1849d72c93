"""What this kernel and this process can do, asked of the kernel itself and never guessed from its version.

Questions about BPF raise PermissionsError without the capabilities to ask.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

from bpfproxy.datapath import libbpf
from bpfproxy.datapath.libbpf import ffi, lib
from bpfproxy.errors import PermissionsError, UnsupportedError

CAPABILITIES: Final = {"CAP_BPF": 39, "CAP_NET_ADMIN": 12, "CAP_PERFMON": 38, "CAP_SYS_ADMIN": 21}
_REQUIRED: Final = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")
_STANDS_FOR: Final = {"CAP_BPF": "CAP_SYS_ADMIN", "CAP_PERFMON": "CAP_SYS_ADMIN"}

HELPERS: Final = {
    "bpf_get_socket_cookie": 46,
    "bpf_sk_storage_get": 107,
    "bpf_get_netns_cookie": 122,
    "bpf_ktime_get_coarse_ns": 160,
    "bpf_set_retval": 187,
}
"""Numbers of helpers in the kernel's ABI."""

_MISSING_HELPER: Final = re.compile(
    r"(?:unknown func|invalid func|program of this type cannot use helper) (?:bpf_)?(\w+)#\d+"
)
_SO_NETNS_COOKIE: Final = 71
_SOCKET_FILTER: Final = 1


def held_capabilities() -> frozenset[str]:
    """Those of CAPABILITIES that are in effect."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)
    raise UnsupportedError("/proc/self/status shows no capabilities")


def missing_capabilities() -> list[str]:
    """What this process lacks to load and attach programs. CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, as in
    the kernel."""
    held = held_capabilities()
    return [name for name in _REQUIRED if name not in held and _STANDS_FOR.get(name) not in held]


def require_capabilities() -> None:
    """Raises PermissionsError that names what is missing."""
    missing = missing_capabilities()
    if missing:
        raise PermissionsError(f"missing {', '.join(missing)}: run as root, or grant them")


def has_program_type(section: str) -> bool:
    """Whether the kernel takes programs of a section such as `cgroup/connect4`."""
    kind, _ = libbpf.program_type(section)
    return _probed(lib().libbpf_probe_bpf_prog_type, kind)


def has_map_type(number: int) -> bool:
    """Whether the kernel has maps of a type."""
    return _probed(lib().libbpf_probe_bpf_map_type, number)


@cache
def has_helper(section: str, helper: str) -> bool:
    """Whether programs of a section may call a helper of HELPERS."""
    require_capabilities()
    kind, attach_type = libbpf.program_type(section)
    # call helper; exit. It is refused for its arguments at the latest, and the log tells whether for the helper itself,
    # in words that libbpf's own probe does not know all of.
    log = ffi.new("char[]", 4096)
    options = ffi.new("struct bpf_prog_load_opts *", {"expected_attach_type": attach_type})
    options.sz = ffi.sizeof("struct bpf_prog_load_opts")
    options.log_level, options.log_size, options.log_buf = 1, len(log), log
    fd = _load(kind, [{"code": 0x85, "imm": HELPERS[helper]}, {"code": 0x95}], options)
    if fd >= 0:
        os.close(fd)
    elif fd == -errno.EPERM:
        libbpf.check(fd, "probing")
    return missing_helper(libbpf.text(log)) is None


def missing_helper(log: str) -> str | None:
    """The helper that the verifier did not know, or did not allow, according to its log."""
    match = _MISSING_HELPER.search(log)
    return match[1] if match else None


def has_links() -> bool:
    """Whether attachments can be bpf_links."""
    require_capabilities()
    return bool(lib().bpf_link_create(-1, -1, 0, ffi.NULL) != -errno.EINVAL)


def has_tcx() -> bool:
    """Whether tc programs can be attached by links. Asks about the loopback device, which is always there."""
    require_capabilities()
    return bool(
        lib().bpf_prog_query(1, libbpf.TCX_INGRESS, 0, ffi.NULL, ffi.NULL, ffi.new("uint32_t *")) != -errno.EINVAL
    )


def has_jit() -> bool:
    """Whether programs are compiled to machine code: loads one and looks."""
    # r0 = 0; exit
    fd = libbpf.check(_load(_SOCKET_FILTER, [{"code": 0xB7}, {"code": 0x95}], ffi.NULL), "loading a program")
    try:
        return bool(libbpf.info(fd, "prog").jited_prog_len)
    finally:
        os.close(fd)


def netns_cookie() -> int:
    """The cookie of this thread's network namespace, as `bpf_get_netns_cookie(ctx)` gives it to programs.

    Raises UnsupportedError before Linux 5.14.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            value = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError as error:
            raise UnsupportedError("this kernel lacks SO_NETNS_COOKIE (Linux 5.14)") from error
    return int.from_bytes(value, sys.byteorder)


def _load(kind: int, instructions: list[dict[str, int]], options: Any) -> int:
    code = ffi.new("struct bpf_insn[]", instructions)
    fd: int = lib().bpf_prog_load(kind, b"probe", b"GPL", code, len(instructions), options)
    return fd


def _probed(question: Callable[..., int], *arguments: int) -> bool:
    require_capabilities()  # without them the answers are wrong
    answer = question(*arguments, ffi.NULL)
    # libbpf cannot ask about what it does not know itself.
    return answer != -errno.EOPNOTSUPP and libbpf.check(answer, "probing") == 1
